"""Measures a model under another decoding method: what it can do without training.

  python -m scripts.elicit --method=forced --opening=think --model=checkpoints/tiny_base --out=runs/forced
  python -m scripts.elicit --method=power --model=checkpoints/tiny_base --num_blocks=4 --out=runs/power

Writes OUT/summary.json, OUT/table.md and OUT/completions.jsonl. The same command continues an interrupted run.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.lab.elicit.decoding.elicit", "table.md")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.elicit.decoding.ElicitConfig")
