"""Compares a trained model with its base token by token: where they differ, and whether that is all the gain.

  python -m scripts.when --model=runs/demo_base --trained=runs/demo --out=runs/demo/when

Writes OUT/summary.json, OUT/when.md, OUT/when.png and the completions. The same command continues an interrupted one.
"""

import pathlib

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.elicit.when import when

    when(config)
    print((pathlib.Path(config.kept.out) / "when.md").read_text("utf-8") + f"\n{config.kept.out}/summary.json")


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.elicit.when.WhenConfig")
