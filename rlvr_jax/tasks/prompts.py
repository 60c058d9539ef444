"""From the name of a source of problems to problems, and from a question to a prompt's token ids."""

import dataclasses

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.tasks import calculation, families, gym, problems

HELDOUT_SEED = 20_250_429  # of the synthetic held-out problems: the same ones in every run


class PromptConfig(Config):
    """How problems are drawn or read, and how a question becomes a prompt."""

    num_ops: int = flag(6, "operations in a problem of a synthetic family", minimum=1)
    prompt_style: str = flag("plain", "how a question becomes a prompt", lambda: PROMPT_STYLES)
    prompt_date: str = flag("", "date, YYYY-MM-DD, for a chat template that writes today's into the prompt; empty: "
                            "the template's own default, so that prompts are the same on any day")
    instruction: str = flag("", "text added after every question of a file that does not end with it already")
    ignore_columns: str = flag("", "columns of a file of problems, joined by commas, to read as if they were not "
                               "there; a file with text that belongs to no known layout is refused without this")
    max_prompt_tokens: int = flag(0, "longest prompt, in tokens; 0: whatever the model's window leaves", minimum=0)


class ProblemSource(Config):
    """Problems, by the name of their source."""

    problems: str = flag("arithmetic", "a synthetic family, gym:NAME for a data set of reasoning-gym, "
                         "calculation:LEVEL for expressions of 1 to 20 operations (calculation:LEVEL:SEED for "
                         "others), a JSONL file, or a .parquet file of One-Shot-RLVR; or several, joined by commas",
                         lambda: families.FAMILIES, listed=True)
    prompt: PromptConfig = PromptConfig()


def load_problems(source: ProblemSource, tokenizer: Tokenizer, split: str = "test", count: int = 0,
                  seed: int = HELDOUT_SEED) -> list[Problem]:
    """Problems of one source, or of several whose names are joined by commas, in their order, as `load_source` does. A
    `count` other than 0 is divided evenly among them. Raises UserError for a name that comes twice."""
    names = source.problems.split(",")
    if len(set(names)) < len(names):
        raise UserError(f"{source.problems} names a source of problems twice: give each once")
    counts = families.divide(dict.fromkeys(names, 1), count) if count else dict.fromkeys(names, 0)
    return [problem for name in counts for problem in load_source(
        ProblemSource(name, source.prompt), tokenizer, split, counts[name], seed)]


def check_style(source: ProblemSource) -> None:
    """Raises UserError where --prompt_style or --prompt_date would change no prompt."""
    prompt = source.prompt
    if prompt.prompt_style != "plain" and set(source.problems.split(",")) <= set(families.FAMILIES):
        raise UserError(f"--prompt_style={prompt.prompt_style} is for questions of files and of gym:NAME; problems of "
                        f"{source.problems} are asked in their own words: leave it out")
    if prompt.prompt_date and prompt.prompt_style != "chat":
        raise UserError(f"--prompt_date={prompt.prompt_date} is for --prompt_style=chat alone: leave it out")


def is_drawn(name: str) -> bool:
    """Whether a source's problems are drawn from a seed, as those of families are, and not read from a file."""
    return name in families.FAMILIES or name.startswith((gym.PREFIX, calculation.PREFIX))


def load_source(source: ProblemSource, tokenizer: Tokenizer, split: str, count: int, seed: int) -> list[Problem]:
    """Problems of a synthetic family's, reasoning-gym's or a calculation's `split`, or of a file row by row, with
    prompts as the model reads them.

    `count` 0 is all of a file and 512 of any other. A calculation's seed is in its name. Raises UserError for a family
    whose words the model does not know.
    """
    name, drawn = source.problems, count or 512
    if name in families.FAMILIES:
        if unknown := tokenizer.lacks(families.FAMILIES[name].vocabulary):
            raise UserError(f"{name} problems have words such as {unknown[0]!r}, which this model's tokenizer lacks: "
                            f"pre-train a base on them, scripts.pretrain --task_shares={name}")
        return families.draw_problems(name, np.random.default_rng(seed), drawn, split, source.prompt.num_ops)
    bare = (gym.draw_problems(name, seed, drawn, split) if name.startswith(gym.PREFIX) else
            calculation.draw_problems(name, drawn, split) if name.startswith(calculation.PREFIX) else
            problems.load(name, source.prompt.ignore_columns)[: count or None])
    return with_prompts(bare, tokenizer, source.prompt)


def with_prompts(bare: list[Problem], tokenizer: Tokenizer, config: PromptConfig) -> list[Problem]:
    """The problems with their questions as prompts. A question that ends with the instruction has it already."""
    style, text = PROMPT_STYLES[config.prompt_style], config.instruction
    asked = [p.question if p.question.endswith(text) else f"{p.question} {text}" for p in bare]
    date = config.prompt_date
    return [dataclasses.replace(p, prompt=style(tokenizer, question, date)) for p, question in zip(bare, asked)]


def plain(tokenizer: Tokenizer, text: str, date: str = "") -> str:
    """The question as it is."""
    return text


def chat(tokenizer: Tokenizer, text: str, date: str = "") -> str:
    """The question in the model's own chat template."""
    return tokenizer.render_chat([{"role": "user", "content": text}], date=date)


def qwen_math(tokenizer: Tokenizer, text: str, date: str = "") -> str:
    """Qwen2.5-Math's template and system line, as One-Shot-RLVR has them, whatever the model's own template."""
    if tokenizer.encode("<|im_start|>") != [tokenizer.backend.token_to_id("<|im_start|>")]:
        raise UserError("--prompt_style=qwen_math: this model's tokenizer has no <|im_start|>; use chat or plain")
    return ("<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


# How a question becomes the text that the model continues: style -> function of (tokenizer, question, date).
PROMPT_STYLES = {"plain": plain, "chat": chat, "qwen_math": qwen_math}


def encode_prompts(tokenizer: Tokenizer, asked: list[Problem], config: ModelConfig, max_new_tokens: int,
                   max_prompt_tokens: int = 0) -> Prompts:
    """Token ids of the prompts, padded to a multiple of 16. Raises UserError for one that does not fit the window, or
    that has words which the model does not know."""
    words = dict.fromkeys(word for problem in asked for word in problem.prompt.split())
    if unknown := tokenizer.lacks(words):
        known = sorted(tokenizer.backend.get_vocab(), key=tokenizer.backend.token_to_id)
        raise UserError(f"the model does not know {', '.join(map(repr, unknown[:8]))}{', ...' * (len(unknown) > 8)}: "
                        "its tokenizer has whole words, and none for these; write prompts in its own words, such as "
                        + ", ".join(known[2:8]))
    room = config.max_seq_len - max_new_tokens
    room = min(room, max_prompt_tokens) if max_prompt_tokens else room
    ids = [tokenizer.encode(problem.prompt) for problem in asked]
    longest = max(map(len, ids), default=0)
    for problem, row in zip(asked, ids):
        if not row:
            raise UserError(f"a prompt has 0 tokens: {problem.prompt[:80]!r}; give the model words to continue")
        if len(row) > room:
            fits = config.max_seq_len - longest
            advice = (f"raise --max_prompt_tokens to {longest}" if len(row) + max_new_tokens <= config.max_seq_len else
                      f"lower --max_new_tokens to {fits}, if that is enough for an answer, or take shorter prompts"
                      if fits > 0 else "take shorter prompts")
            raise UserError(f"a prompt has {len(row)} tokens, and --max_new_tokens={max_new_tokens} of the model's "
                            f"window of {config.max_seq_len} (or --max_prompt_tokens) leave it 1 to {max(room, 0)}; "
                            f"{advice} (--num_ops of a synthetic family): {problem.prompt[:80]!r}")
    return Prompts(*pad_rows(ids, tokenizer.pad_id, -(-max(map(len, ids)) // 16) * 16))


def pad_rows(rows: list[list[int]], filler: int, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(i32[N,T], i32[N] lengths): rows of token ids, filled up to the width, or to the longest."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), width or lengths.max()), filler, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths
