"""Names on the command line to values: a model, a list of problems, prompts as token ids."""

import dataclasses
import pathlib

import numpy as np

from rlvr_jax import checkpoint, families, gguf_file, problems, tokenizer, weights
from rlvr_jax.config import ModelConfig, UserError
from rlvr_jax.model import Params, Prompts
from rlvr_jax.problems import Problem
from rlvr_jax.tokenizer import Tokenizer

HELDOUT_SEED = 20_250_429  # of the synthetic held-out problems: the same ones in every run


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model ready to use: parameters are numpy arrays, float32 wherever they are trained."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer


def load_model(name: str, dtype: str = "float32", params_dtype: str = "float32") -> LanguageModel:
    """Loads a run directory (`DIR`, `DIR@STEP` or `DIR@best`), a Hugging Face folder, a `.gguf` file, or `smollm2`.

    `dtype` is the computation's. `params_dtype` bfloat16 saves memory where nothing is trained, and changes no number
    of a bfloat16 computation; what a run saved stays float32.

    Raises UserError naming what is missing or does not fit together.
    """
    if not name:
        raise UserError("--model is required: a run directory, a Hugging Face folder, a .gguf file, or smollm2")
    directory, _, step = name.partition("@")
    path = pathlib.Path(directory)
    if name == "smollm2" or (path.suffix == ".gguf" and path.is_file()):
        path = gguf_file.smollm2_path() if name == "smollm2" else path
        config, params, words = gguf_file.load(path, params_dtype)
    elif (path / "config.json").is_file():
        config, params = weights.load_folder(path, params_dtype)
        words = tokenizer.load_folder(path)
    elif path.is_dir():
        if not step.isdigit() and step not in ("", "best"):
            raise UserError(f"--model={name}: what follows @ is the step of a checkpoint, a number, or best")
        config, params, meta = checkpoint.restore_model(directory, step)
        words = tokenizer.from_json(meta["tokenizer"])
    else:
        raise UserError(f"--model={name}: no such directory or .gguf file")
    weights.check_tokenizer(config, words)
    return LanguageModel(dataclasses.replace(config, dtype=dtype), params, words)


def load_problems(name: str, words: Tokenizer, *, count: int = 0, split: str = "test", num_ops: int = 6,
                  prompt_style: str = "plain", instruction: str = "", ignore_columns: str = "",
                  seed: int = HELDOUT_SEED) -> list[Problem]:
    """Problems of a synthetic family's `split`, or of a file row by row, with prompts as `words`' model reads them.

    `count` 0 is all of a file and 512 of a family. Raises UserError for a family whose words the model does not know.
    """
    if name in families.FAMILIES:
        if unknown := families.unknown_words(name, words):
            raise UserError(f"{name} problems have words such as {unknown[0]!r}, which this model's tokenizer lacks: "
                            f"pre-train a base on them, scripts.pretrain --task_shares={name}")
        return families.draw_problems(name, np.random.default_rng(seed), count or 512, split, num_ops)
    return with_prompts(problems.load(name, ignore_columns)[: count or None], words, prompt_style, instruction)


def with_prompts(found: list[Problem], words: Tokenizer, prompt_style: str, instruction: str) -> list[Problem]:
    """The problems with their questions as prompts. A question that ends with the instruction has it already."""
    texts = [p.question if p.question.endswith(instruction) else f"{p.question} {instruction}" for p in found]
    return [dataclasses.replace(p, prompt=PROMPT_STYLES[prompt_style](words, text)) for p, text in zip(found, texts)]


def _chat(words: Tokenizer, text: str) -> str:
    return tokenizer.render_chat(words, [{"role": "user", "content": text}])


def _qwen_math(words: Tokenizer, text: str) -> str:
    """Qwen2.5-Math's own chat, as One-Shot-RLVR trains and evaluates it, whatever the tokenizer's template says."""
    if tokenizer.encode(words, "<|im_start|>") != [words.backend.token_to_id("<|im_start|>")]:
        raise UserError("--prompt_style=qwen_math: this model's tokenizer has no <|im_start|>; use chat or plain")
    return ("<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


# How a question becomes the text that the model continues: style -> function of (tokenizer, question).
PROMPT_STYLES = {"plain": lambda words, text: text, "chat": _chat, "qwen_math": _qwen_math}


def pinned(name: str) -> str:
    """A run directory with its step spelt out: the same command, given again later, is about the same model."""
    directory, _, which = name.partition("@")
    steps = checkpoint.steps(directory) if directory and which in ("", "best") else []
    return f"{directory}@{checkpoint.best_step(directory) if which else steps[-1]}" if steps else name


def answer_format(name: str, problems_name: str, otherwise: str = "boxed") -> str:
    """What "auto" stands for: the family's own, else boxed in the reward and lenient in an evaluation."""
    family = families.FAMILIES.get(problems_name)
    return name if name != "auto" else family.answer_format if family else otherwise


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
