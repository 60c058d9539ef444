"""Writes a model as a Hugging Face folder, which transformers and others load.

  python -m scripts.export --model=runs/demo --out=runs/exported

LoRA is added to the weights. A vector after a layer has no place in such a folder, and is refused.
"""

from scripts import cli

main = cli.print_result("rlvr_jax.pretrained.export.export", lambda config, _: config.out)

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.pretrained.export.ExportConfig")
