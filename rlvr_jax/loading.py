"""Names on the command line to values: a model, a list of problems, prompts as token ids."""

import dataclasses
import pathlib

import numpy as np

from rlvr_jax import arithmetic, checkpoint, problems, tokenizer, weights
from rlvr_jax.config import ModelConfig, UserError
from rlvr_jax.model import Params, Prompts
from rlvr_jax.problems import Problem
from rlvr_jax.tokenizer import Tokenizer

HELDOUT_SEED = 20_250_429  # of the synthetic held-out problems: the same ones in every run


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model ready to use: parameters are float32 numpy arrays."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer


def load_model(name: str, dtype: str = "float32") -> LanguageModel:
    """Loads a run directory (`DIR` or `DIR@STEP`), a Hugging Face folder, a `.gguf` file, or `smollm2`.

    Raises UserError naming what is missing or does not fit together.
    """
    if not name:
        raise UserError("--model is required: a run directory, a Hugging Face folder, a .gguf file, or smollm2")
    directory, _, step = name.partition("@")
    path = pathlib.Path(directory)
    if name == "smollm2" or (path.suffix == ".gguf" and path.is_file()):
        config, params, words = weights.load_gguf(weights.smollm2_path() if name == "smollm2" else path)
    elif (path / "config.json").is_file():
        config, params = weights.load_folder(path)
        words = tokenizer.load_folder(path)
    elif path.is_dir():
        if step and not step.isdigit():
            raise UserError(f"--model={name}: what follows @ is the step of a checkpoint, a number")
        config, params, meta = checkpoint.restore_model(directory, int(step) if step else None)
        words = tokenizer.from_json(meta["tokenizer"])
    else:
        raise UserError(f"--model={name}: no such directory or .gguf file")
    weights.check_tokenizer(config, words)
    return LanguageModel(dataclasses.replace(config, dtype=dtype), params, words)


def load_problems(name: str, words: Tokenizer, *, count: int = 0, split: str = "test", num_ops: int = 6,
                  prompt_style: str = "plain", instruction: str = "", seed: int = HELDOUT_SEED) -> list[Problem]:
    """Problems of the synthetic task's `split`, or of a JSONL file, with prompts as `words`' model reads them.

    `count` 0 is all of a file and 512 of the synthetic task.
    """
    if name == "arithmetic":
        rng = np.random.default_rng(seed)
        return arithmetic.to_problems(arithmetic.generate(rng, count or 512, split, num_ops))
    found = problems.load_jsonl(name)[: count or None]
    texts = [" ".join([p.question, instruction]).strip() for p in found]
    if prompt_style == "chat":
        texts = [tokenizer.render_chat(words, [{"role": "user", "content": text}]) for text in texts]
    return [dataclasses.replace(p, prompt=text) for p, text in zip(found, texts)]


def answer_format(name: str, problems_name: str) -> str:
    """What "auto" stands for."""
    return name if name != "auto" else "answer" if problems_name == "arithmetic" else "boxed"


def encode_prompts(words: Tokenizer, found: list[Problem], config: ModelConfig, max_new_tokens: int,
                   max_prompt_tokens: int = 0) -> Prompts:
    """Token ids of the prompts, padded to a multiple of 16. Raises UserError for one that does not fit the window."""
    room = config.max_seq_len - max_new_tokens
    room = min(room, max_prompt_tokens) if max_prompt_tokens else room
    ids = [tokenizer.encode(words, problem.prompt) for problem in found]
    for problem, row in zip(found, ids):
        if not 0 < len(row) <= room:
            raise UserError(f"a prompt has {len(row)} tokens, and --max_new_tokens={max_new_tokens} of the model's "
                            f"window of {config.max_seq_len} (or --max_prompt_tokens) leave 1 to {room}: "
                            f"{problem.prompt[:80]!r}")
    width = -(-max(map(len, ids)) // 16) * 16
    tokens = np.full((len(ids), width), words.pad_id, np.int32)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = row
    return Prompts(tokens, np.array([len(row) for row in ids], np.int32))
