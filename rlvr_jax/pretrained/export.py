"""Exports a model as a Hugging Face folder."""

from rlvr_jax import adapters
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import huggingface, loading, tokenizer
from rlvr_jax.runs import files


class ExportConfig(Config):
    """A model to write for other programs."""

    choice: loading.ModelChoice = nested(loading.ModelChoice(), dtype="of the written tensors")
    out: str = flag("", "folder to write: config.json, model.safetensors, tokenizer files")


def export(config: ExportConfig) -> None:
    """Writes the folder, with LoRA added to the weights. Raises UserError for a vector, which it cannot represent."""
    if not config.out:
        raise UserError("--out is required: the folder to write")
    loaded = loading.load_model(config.choice.model, params_dtype=config.choice.dtype)
    with files.name_in_errors(config.out):
        huggingface.save_folder(loaded.config, adapters.merge(loaded.params), config.out, config.choice.dtype)
        tokenizer.save_tokenizer(loaded.tokenizer, config.out)
