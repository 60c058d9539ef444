"""Did training teach a model, or switch on what it could do? Every diagnostic of the literature, in a table.

  python -m scripts.diagnose --base=runs/demo_base --trained=runs/demo --out=runs/demo/diagnose
  python -m scripts.diagnose --base=DIR --trained=DIR --problems=gsm8k.jsonl --max_problems=64 --num_samples=16 \\
    --max_new_tokens=256 --out=DIR

Writes OUT/summary.json, OUT/diagnose.md, OUT/diagnose.png and the completions. The same command continues an
interrupted one; --frontier, --sft and --diagnostics may be changed then.
"""

import pathlib

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.diagnostics.diagnose import diagnose

    diagnose(config)
    out = pathlib.Path(config.hybrid.steering.kept.out)
    print((out / "diagnose.md").read_text("utf-8") + f"\n{out}/summary.json")


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.diagnostics.pair.DiagnoseConfig")
