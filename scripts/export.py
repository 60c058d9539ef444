"""Writes a model as a Hugging Face folder, which transformers and others load.

  python -m scripts.export --model=runs/tiny --out=exported

LoRA is added to the weights. A vector after a layer has no place in such a folder, and is refused.
"""

from rlvr_jax.config import ExportConfig
from rlvr_jax.errors import UserError
from scripts import cli


def main(config: ExportConfig) -> None:
    from rlvr_jax import adapters
    from rlvr_jax.pretrained import huggingface, loading, tokenizer
    from rlvr_jax.runs import files

    if not config.out:
        raise UserError("--out is required: the folder to write")
    loaded = loading.load_model(config.model, params_dtype=config.dtype)
    with files.naming(config.out):
        huggingface.save_folder(loaded.config, adapters.merged(loaded.params), config.out, config.dtype)
        tokenizer.save_tokenizer(loaded.tokenizer, config.out)
    print(config.out)


if __name__ == "__main__":
    cli.run(main, ExportConfig)
