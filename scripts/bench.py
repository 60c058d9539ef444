"""Measures decoding and the update on SmolLM2-135M's shapes (random weights), side by side with torch + transformers.

  python -m scripts.bench --out=results/bench_cpu.md

The comparison needs the extra `parity`; without it our own figures are printed. Each pair alternates, ours then
theirs, and ratios are of the medians.
"""

import pathlib

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.tools import bench

    text = bench.run(config)
    print(text)
    if config.out:
        pathlib.Path(config.out).write_text(text)


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.tools.bench.BenchConfig")
