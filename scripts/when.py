"""Compares a trained model with its base model token by token: where they differ, and whether that explains the whole
gain.

  python -m scripts.when --model=checkpoints/tiny_base --trained=runs/demo --out=runs/demo/when

Writes OUT/summary.json, OUT/when.md, OUT/when.png and the completions. The same command continues an interrupted run.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.lab.elicit.when.when", "when.md")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.elicit.when.WhenConfig")
