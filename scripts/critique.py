"""Writes examples for scripts.finetune: critiques of a model's own attempts at one problem, or a control.

  python -m scripts.critique --model=checkpoints/tiny_base --kind=critique --out=runs/critiques.jsonl
  python -m scripts.finetune --model=checkpoints/tiny_base --examples=runs/critiques.jsonl --window=96 \\
    --run_dir=runs/critique
"""

from scripts import cli


def describe(config, rows) -> str:
    different = len({(row["prompt"], row["completion"]) for row in rows})
    return f"{rows[0]['prompt']} -> {rows[0]['completion']}\n{len(rows)} rows, {different} different; {config.out}"


main = cli.print_result("rlvr_jax.lab.elicit.critique.make_examples", describe)

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.elicit.critique.CritiqueConfig")
