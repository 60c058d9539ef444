"""From the name of a source of problems to problems, and from a question to a prompt's token ids."""

import dataclasses

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.model import ModelConfig, Prompts
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.tasks import calculation, families, gym, problems
from rlvr_jax.tasks.problems import Problem

HELDOUT_SEED = 20_250_429  # of the synthetic held-out problems: the same ones in every run


def load_problems(names: str, tokenizer: Tokenizer, *, count: int = 0, **asked) -> list[Problem]:
    """Problems of one source, or of several whose `names` are joined by commas, in their order, as `load_source` does.

    A `count` other than 0 is divided evenly among them. Raises UserError for a name that comes twice.
    """
    sources = names.split(",")
    if len(set(sources)) < len(sources):
        raise UserError(f"{names} names a source of problems twice: give each once")
    counts = families.divide(dict.fromkeys(sources, 1), count) if count else dict.fromkeys(sources, 0)
    return [problem for source in counts for problem in load_source(source, tokenizer, count=counts[source], **asked)]


def is_drawn(name: str) -> bool:
    """Whether a source's problems are drawn from a seed, as those of families are, and not read from a file."""
    return name in families.FAMILIES or name.startswith((gym.PREFIX, calculation.PREFIX))


def load_source(name: str, tokenizer: Tokenizer, *, count: int = 0, split: str = "test", num_ops: int = 6,
                prompt_style: str = "plain", instruction: str = "", ignore_columns: str = "",
                seed: int = HELDOUT_SEED) -> list[Problem]:
    """Problems of a synthetic family's, reasoning-gym's or a calculation's `split`, or of a file row by row, with
    prompts as the model reads them.

    `count` 0 is all of a file and 512 of any other. A calculation's seed is in its name. Raises UserError for a family
    whose words the model does not know.
    """
    if name in families.FAMILIES:
        if unknown := tokenizer.lacks(families.FAMILIES[name].vocabulary):
            raise UserError(f"{name} problems have words such as {unknown[0]!r}, which this model's tokenizer lacks: "
                            f"pre-train a base on them, scripts.pretrain --task_shares={name}")
        return families.draw_problems(name, np.random.default_rng(seed), count or 512, split, num_ops)
    bare = (gym.draw(name, seed, count or 512, split) if name.startswith(gym.PREFIX) else
            calculation.draw(name, count or 512, split) if name.startswith(calculation.PREFIX) else
            problems.load(name, ignore_columns)[: count or None])
    return with_prompts(bare, tokenizer, prompt_style, instruction)


def with_prompts(bare: list[Problem], tokenizer: Tokenizer, prompt_style: str, instruction: str) -> list[Problem]:
    """The problems with their questions as prompts. A question that ends with the instruction has it already."""
    style = PROMPT_STYLES[prompt_style]
    texts = [p.question if p.question.endswith(instruction) else f"{p.question} {instruction}" for p in bare]
    return [dataclasses.replace(p, prompt=style(tokenizer, text)) for p, text in zip(bare, texts)]


def plain(tokenizer: Tokenizer, text: str) -> str:
    """The question as it is."""
    return text


def chat(tokenizer: Tokenizer, text: str) -> str:
    """The question in the model's own chat template."""
    return tokenizer.render_chat([{"role": "user", "content": text}])


def qwen_math(tokenizer: Tokenizer, text: str) -> str:
    """Qwen2.5-Math's template and system line, as One-Shot-RLVR has them, whatever the model's own template."""
    if tokenizer.encode("<|im_start|>") != [tokenizer.backend.token_to_id("<|im_start|>")]:
        raise UserError("--prompt_style=qwen_math: this model's tokenizer has no <|im_start|>; use chat or plain")
    return ("<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


# How a question becomes the text that the model continues: style -> function of (tokenizer, question).
PROMPT_STYLES = {"plain": plain, "chat": chat, "qwen_math": qwen_math}


def encode_prompts(tokenizer: Tokenizer, asked: list[Problem], config: ModelConfig, max_new_tokens: int,
                   max_prompt_tokens: int = 0) -> Prompts:
    """Token ids of the prompts, padded to a multiple of 16. Raises UserError for one that does not fit the window."""
    room = config.max_seq_len - max_new_tokens
    room = min(room, max_prompt_tokens) if max_prompt_tokens else room
    ids = [tokenizer.encode(problem.prompt) for problem in asked]
    for problem, row in zip(asked, ids):
        if not 0 < len(row) <= room:
            raise UserError(f"a prompt has {len(row)} tokens, and --max_new_tokens={max_new_tokens} of the model's "
                            f"window of {config.max_seq_len} (or --max_prompt_tokens) leave 1 to {room}: "
                            f"{problem.prompt[:80]!r}")
    width = -(-max(map(len, ids)) // 16) * 16
    tokens = np.full((len(ids), width), tokenizer.pad_id, np.int32)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = row
    return Prompts(tokens, np.array([len(row) for row in ids], np.int32))
