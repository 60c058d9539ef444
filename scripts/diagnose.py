"""Measures whether training taught a model or switched on what it could do: the diagnostics of papers, in one table.

  python -m scripts.diagnose --base=checkpoints/tiny_base --trained=runs/demo --out=runs/demo/diagnose
  python -m scripts.diagnose --base=DIR --trained=DIR --problems=gsm8k.jsonl --max_problems=64 --num_samples=16 \\
    --max_new_tokens=256 --out=DIR

Writes OUT/summary.json, OUT/diagnose.md, OUT/diagnose.png and the completions. The same command continues an
interrupted run; --frontier, --sft and --diagnostics may have other values when it continues.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.lab.diagnostics.diagnose.diagnose", "diagnose.md")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.diagnostics.pair.DiagnoseConfig")
