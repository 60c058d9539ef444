"""Measures sampling, the update and whole steps on SmolLM2-135M's shapes (random weights), and what share of the
machine's peak they use.

  python -m scripts.bench
  python -m scripts.bench --against=transformers,trl --out=results/bench_cpu.md

Other programs are timed after this one, each in its own process; the extra `parity` installs them.
"""

import pathlib

from scripts import cli


def main(config) -> None:
    from rlvr_jax.bench import bench

    text = bench.run(config)
    print(text)
    if config.out:
        pathlib.Path(config.out).write_text(text)


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.bench.bench.BenchConfig")
