"""Times sampling, the update and whole steps with SmolLM2-135M's shapes and random weights, and computes their share of
the machine's peak FLOP/s.

  python -m scripts.bench
  python -m scripts.bench --against=transformers,trl --out=results/bench_cpu.md

--against times other programs too, each in its own process; pip install -e '.[parity]' installs them.
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
