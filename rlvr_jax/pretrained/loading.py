"""Loads a model by name: a run directory, a Hugging Face folder or repository, a GGUF file, or smollm2."""

import dataclasses
import pathlib
import re

import jax
import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import gguf_file, huggingface
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from rlvr_jax.runs import checkpoint

HUB_NAME = r"[\w.-]+/[\w.-]+"  # OWNER/NAME
FILES = ["*.safetensors", "*.json", "*.jinja"]  # the files of a repository to download


class ModelChoice(Config):
    """The model to load, and the dtype of its computation."""

    model: str = flag("", "a run directory (DIR, DIR@STEP or DIR@best), a Hugging Face folder, a .gguf file, "
                      "hf:OWNER/NAME (downloaded), or smollm2")
    dtype: str = flag("float32", "dtype of the computation; trained parameters stay float32. With float32 a TPU "
                      "multiplies in bfloat16, a recent GPU in TF32, unless JAX_DEFAULT_MATMUL_PRECISION=highest is "
                      "set. float16 is for GPUs without bfloat16, such as a T4", ["float32", "bfloat16", "float16"])


def load_model(name: str, dtype: str = "float32", params_dtype: str = "float32") -> LanguageModel:
    """Loads the model `name`, a value of --model. `dtype` is that of the computation, `params_dtype` that of the
    parameters, but norms and all parameters of a run are float32. UserError for a missing or unsuitable model."""
    if not name:
        raise UserError("--model is required: a run directory, a Hugging Face folder, a .gguf file, or smollm2; to see "
                        "the program work, try `make demo`")
    directory, _, step = name.partition("@")
    path = download_folder(name[3:]) if name.startswith("hf:") else pathlib.Path(directory)
    meta = {}  # of a run's checkpoint
    if name == "smollm2" or (path.suffix == ".gguf" and path.is_file()):
        path = gguf_file.smollm2_path() if name == "smollm2" else path
        config, params, tokenizer = gguf_file.load(path, params_dtype)
    elif (path / "config.json").is_file() and not checkpoint.steps(str(path)):  # a run's directory may hold an export
        if step and not name.startswith("hf:"):
            raise UserError(f"--model={name}: @ names a checkpoint of a run, and {directory} is a Hugging Face folder")
        config, params = huggingface.load_folder(path, params_dtype)
        tokenizer = load_tokenizer(path)
    elif path.is_dir():
        if (path / "tokenizer.json").is_file() or any(path.glob("*.safetensors")):
            raise UserError(f"--model={name}: a Hugging Face folder without its config.json: also copy that file")
        if not step.isdigit() and step not in ("", "best"):
            raise UserError(f"--model={name}: after @, give the step of a checkpoint, a number, or best")
        config, params, meta = checkpoint.restore_model(directory, step)
        params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)  # frozen parameters may be saved in 16 bits
        tokenizer = Tokenizer.from_json(meta["tokenizer"])
    else:
        hint = (f"; if it is a model of the Hugging Face hub: hf download {name} --local-dir {name}, or "
                f"--model=hf:{name}" if re.fullmatch(HUB_NAME, name) else "")
        raise UserError(f"--model={name}: no such directory or .gguf file{hint}")
    check_tokenizer(tokenizer, config.vocab_size, name)
    return LanguageModel(dataclasses.replace(config, dtype=dtype), params, tokenizer, meta.get("flags", {}))


def download_folder(name: str) -> pathlib.Path:
    """Downloads the repository `name` (OWNER/NAME) from the Hugging Face hub, and returns its folder in the cache of
    huggingface_hub, which reuses downloads and resumes partial ones. Raises UserError if the download fails."""
    try:
        import huggingface_hub
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # many types: unknown name, no network, full disk, no permission
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"--model=hf:{name}: the download failed ({reason}); run the same command again to continue, "
                        "or name a folder that has the model") from error


def load_fixed(choice: ModelChoice) -> LanguageModel:
    """Loads a model that will not be trained. Its parameters have the dtype of the computation, except those that
    `load_model` always keeps in float32. This saves memory and does not change the results."""
    return load_model(choice.model, choice.dtype, choice.dtype)


def pin_step(name: str) -> str:
    """Replaces a name that may mean another checkpoint later: `DIR` by `DIR@STEP` of its newest step, `DIR@best` by
    that of its best step. Returns other names, and directories without checkpoints, unchanged."""
    directory, _, which = name.partition("@")
    steps = checkpoint.steps(directory) if directory and which in ("", "best") else []
    if not steps:
        return name
    return f"{directory}@{checkpoint.best_step(directory) if which else steps[-1]}"
