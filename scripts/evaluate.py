"""Measures a model on one or several sets of problems and saves every completion.

  python -m scripts.evaluate --model=runs/demo --out=runs/demo/eval                                  # greedy
  python -m scripts.evaluate --model=runs/demo --num_samples=64 --temperature=1 --out=runs/demo/passk  # pass@k, maj@k
  python -m scripts.evaluate --model=DIR --problems=math500.jsonl,aime24.jsonl --protocol=one_shot --out=runs/published

Writes OUT/summary.json, OUT/table.md and OUT/completions.jsonl, and OUT/reliability.png if completions state a
confidence. The same command continues an interrupted evaluation.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.evaluation.benchmarks.evaluate", "table.md")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.evaluation.benchmarks.EvaluateConfig")
