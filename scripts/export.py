"""Writes a model as a Hugging Face folder, which transformers and other programs load.

  python -m scripts.export --model=runs/demo --out=runs/exported

LoRA is merged into the weights. A model with trained vectors is refused: such a folder cannot hold them.
"""

from scripts import cli

main = cli.print_result("rlvr_jax.pretrained.export.export", lambda config, _: config.out)

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.pretrained.export.ExportConfig")
