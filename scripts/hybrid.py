"""Measures how much of a trained model's gain its base recovers, steered by a vector at the tokens of a gate.

  python -m scripts.hybrid --model=runs/demo_base --trained=runs/demo --out=runs/hybrid
  python -m scripts.hybrid --model=runs/demo_base --trained=runs/demo --vector=trained --vectors=runs/vector \\
    --layer=2 --out=runs/hybrid_trained

Writes OUT/summary.json, OUT/table.md, and the completions of each arm in folders of OUT. The same command continues an
interrupted one.
"""

import pathlib

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.elicit.hybrid import hybrid

    hybrid(config)
    out = config.steering.kept.out
    print((pathlib.Path(out) / "table.md").read_text("utf-8") + f"\n{out}/summary.json")


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.elicit.hybrid.HybridConfig")
