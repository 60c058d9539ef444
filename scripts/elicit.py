"""Measures a model under another decoding: what it can do without training.

  python -m scripts.elicit --method=forced --opening=think --model=runs/base --out=runs/base/forced
  python -m scripts.elicit --method=power --model=runs/base --num_blocks=4 --out=runs/base/power

Writes OUT/summary.json, OUT/table.md and OUT/completions.jsonl. The same command continues an interrupted one.
"""

import pathlib

from rlvr_jax.config import ElicitConfig
from scripts import cli


def main(config: ElicitConfig) -> None:
    from rlvr_jax.elicit.decoding import elicit

    elicit(config)
    print((pathlib.Path(config.out) / "table.md").read_text("utf-8") + f"\n{config.out}/summary.json")


if __name__ == "__main__":
    cli.run(main, ElicitConfig)
