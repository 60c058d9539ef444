"""Loads problems by the names of their sources, writes their prompts, and encodes the prompts as token ids."""

import dataclasses

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.tasks import calculation, families, gym, problems

HELDOUT_SEED = 20_250_429  # for drawing held-out problems, so that all runs measure on the same ones


class PromptConfig(Config):
    """How problems are drawn or read, and how a question becomes a prompt."""

    num_ops: int = flag(6, "operations in a problem of a synthetic family", minimum=1)
    prompt_style: str = flag("plain", "how a question becomes a prompt", lambda: PROMPT_STYLES)
    prompt_date: str = flag("", "date, YYYY-MM-DD, for a chat template that writes the current date into the "
                            "prompt; empty: the template's default, so that prompts do not depend on the day")
    instruction: str = flag("", "text to append to questions that do not end with it; not for synthetic families")
    ignore_columns: str = flag("", "columns of a file of problems to ignore, joined by commas; a file is refused if it "
                               "has text in another column that its layout does not use")
    max_prompt_tokens: int = flag(0, "longest prompt, in tokens; 0: the window less max_new_tokens", minimum=0)


class ProblemSource(Config):
    """The sources of problems, and how prompts are written."""

    problems: str = flag("arithmetic", "a synthetic family, gym:NAME for a data set of reasoning-gym, "
                         "calculation:LEVEL for expressions of 1 to 20 operations (calculation:LEVEL:SEED draws "
                         "others), a JSONL file, or a .parquet file of One-Shot-RLVR; or several, joined by commas",
                         lambda: families.FAMILIES, listed=True)
    prompt: PromptConfig = PromptConfig()


def load_problems(source: ProblemSource, tokenizer: Tokenizer, split: str = "test", count: int = 0,
                  seed: int = HELDOUT_SEED) -> list[Problem]:
    """Loads the problems of all sources in `source.problems`, with prompts as the model reads them. A file gives its
    first rows. Families and reasoning-gym draw problems of `split` from `seed`; calculation has fixed problems for each
    split. `count` is divided evenly among the sources; 0 means all rows of a file, and 512 problems of another source.
    Raises UserError if a source is named twice, and for a family whose words the model does not know."""
    names = source.problems.split(",")
    if len(set(names)) < len(names):
        raise UserError(f"{source.problems} names a source of problems twice: give each once")
    counts = families.divide(dict.fromkeys(names, 1), count) if count else dict.fromkeys(names, 0)

    def load(name: str) -> list[Problem]:
        size = counts[name] or 512
        if name in families.FAMILIES:
            if unknown := tokenizer.unknown_words(families.FAMILIES[name].vocabulary):
                raise UserError(f"{name} problems have words such as {unknown[0]!r}, which this model's tokenizer "
                                f"lacks: pre-train a base model on them, scripts.pretrain --task_shares={name}")
            return families.draw_problems(name, np.random.default_rng(seed), size, split, source.prompt.num_ops)
        if name.startswith(gym.PREFIX):
            loaded = gym.draw_problems(name, seed, size, split)
        elif name.startswith(calculation.PREFIX):
            loaded = calculation.draw_problems(name, size, split)
        else:
            loaded = problems.load(name, source.prompt.ignore_columns)[: counts[name] or None]
        return with_prompts(loaded, tokenizer, source.prompt)
    return [problem for name in counts for problem in load(name)]


def check_style(source: ProblemSource) -> None:
    """Raises UserError if --prompt_style, --instruction or --prompt_date is set but would have no effect."""
    prompt = source.prompt
    for flag, given in ((f"prompt_style={prompt.prompt_style}", prompt.prompt_style != "plain"),
                        ("instruction", prompt.instruction)):
        if given and set(source.problems.split(",")) <= set(families.FAMILIES):
            raise UserError(f"--{flag} is for questions of files and of gym:NAME; problems of {source.problems} have "
                            "their own words: leave it out")
    if prompt.prompt_date and prompt.prompt_style != "chat":
        raise UserError(f"--prompt_date={prompt.prompt_date} needs --prompt_style=chat: give both, or leave it out")


def is_drawn(name: str) -> bool:
    """Whether the source `name` draws its problems from a seed; all other sources are files."""
    return name in families.FAMILIES or name.startswith((gym.PREFIX, calculation.PREFIX))


def with_prompts(problems: list[Problem], tokenizer: Tokenizer, config: PromptConfig) -> list[Problem]:
    """The problems with prompts in --prompt_style. The --instruction is added to questions that do not end with it."""
    write_prompt, text = PROMPT_STYLES[config.prompt_style], config.instruction
    questions = [p.question if p.question.endswith(text) else f"{p.question} {text}" for p in problems]
    return [dataclasses.replace(p, prompt=write_prompt(tokenizer, question, config.prompt_date))
            for p, question in zip(problems, questions)]


def plain(tokenizer: Tokenizer, text: str, date: str = "") -> str:
    """The question unchanged."""
    return text


def chat(tokenizer: Tokenizer, text: str, date: str = "") -> str:
    """The question in the model's own chat template."""
    return tokenizer.render_chat([{"role": "user", "content": text}], date=date)


def qwen_math(tokenizer: Tokenizer, text: str, date: str = "") -> str:
    """Qwen2.5-Math's template and system prompt, as in One-Shot-RLVR, whatever the model's own template."""
    if tokenizer.encode("<|im_start|>") != [tokenizer.backend.token_to_id("<|im_start|>")]:
        raise UserError("--prompt_style=qwen_math: this model's tokenizer has no <|im_start|>; use chat or plain")
    return ("<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


# --prompt_style -> function of (tokenizer, question, date): the text that the model continues
PROMPT_STYLES = {"plain": plain, "chat": chat, "qwen_math": qwen_math}


def encode_prompts(tokenizer: Tokenizer, problems: list[Problem], config: ModelConfig, max_new_tokens: int,
                   max_prompt_tokens: int = 0) -> Prompts:
    """Returns the prompts' token ids, right-padded to a multiple of 16. Raises UserError for a prompt without tokens,
    with unknown words, longer than `max_prompt_tokens` (unless 0), or too long for `max_new_tokens` in the window."""
    words = dict.fromkeys(word for problem in problems for word in problem.prompt.split())
    if unknown := tokenizer.unknown_words(words):
        known = sorted(tokenizer.backend.get_vocab(), key=tokenizer.backend.token_to_id)
        shown = ", ".join(map(repr, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise UserError(f"the model does not know {shown}: its tokenizer has only whole words; write prompts with "
                        "these, such as " + ", ".join(known[2:8]))  # after <pad> and <eos>
    room = config.max_seq_len - max_new_tokens
    room = min(room, max_prompt_tokens) if max_prompt_tokens else room
    ids = [tokenizer.encode(problem.prompt) for problem in problems]
    longest = max(map(len, ids))
    for problem, row in zip(problems, ids):
        if not row:
            raise UserError(f"a prompt has 0 tokens: {problem.prompt[:80]!r}; give the model words to continue")
        if len(row) > room:
            fits = config.max_seq_len - longest
            advice = "take shorter prompts (for a synthetic family, lower --num_ops)"
            if len(row) + max_new_tokens <= config.max_seq_len:
                advice = f"raise --max_prompt_tokens to {longest}"
            elif fits > 0:
                advice = f"lower --max_new_tokens to {fits}, if that is enough for an answer, or {advice}"
            raise UserError(f"a prompt has {len(row)} tokens, more than the {max(room, 0)} that --max_new_tokens="
                            f"{max_new_tokens} leaves of the model's window of {config.max_seq_len}, or that "
                            f"--max_prompt_tokens allows; {advice}: {problem.prompt[:80]!r}")
    return Prompts(*pad_rows(ids, tokenizer.pad_id, -(-longest // 16) * 16))


def pad_rows(rows: list[list[int]], filler: int, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens i32[N,T], lengths i32[N]): `rows` padded with `filler` to `width` (0: of the longest row)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), width or lengths.max()), filler, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths
