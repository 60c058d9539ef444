"""Did training teach a model, or switch on what it could do? Every diagnostic of the literature, in a table.

  python -m scripts.diagnose --base=checkpoints/tiny_base --trained=runs/demo --out=runs/demo/diagnose
  python -m scripts.diagnose --base=DIR --trained=DIR --problems=gsm8k.jsonl --max_problems=64 --num_samples=16 \\
    --max_new_tokens=256 --out=DIR

Writes OUT/summary.json, OUT/diagnose.md, OUT/diagnose.png and the completions. The same command continues an
interrupted one; --frontier, --sft and --diagnostics may be changed then.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.lab.diagnostics.diagnose.diagnose", "diagnose.md")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.diagnostics.pair.DiagnoseConfig")
