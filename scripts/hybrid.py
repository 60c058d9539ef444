"""Measures how much of a trained model's gain its base model recovers when steered at tokens that a gate chooses.

  python -m scripts.hybrid --model=checkpoints/tiny_base --trained=runs/demo --out=runs/hybrid
  python -m scripts.hybrid --model=checkpoints/tiny_base --trained=runs/demo --vector=trained --vectors=runs/vector \\
    --layer=2 --out=runs/hybrid_trained

Writes OUT/summary.json, OUT/table.md, and the completions of each variant into a folder of OUT. The same command
continues an interrupted run.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.lab.elicit.hybrid.hybrid", "table.md")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.elicit.hybrid.HybridConfig")
