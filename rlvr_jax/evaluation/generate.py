"""Samples completions of one prompt, for people to read."""

import sys

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.pretrained import loading
from rlvr_jax.records import Problem
from rlvr_jax.runs.machine import MachineConfig
from rlvr_jax.sampler import Request, SamplingConfig
from rlvr_jax.tasks.prompts import PROMPT_STYLES, encode_prompts

LONGEST = 512  # tokens of a completion under max_new_tokens=0, even if the model's window leaves more


class SampleConfig(Config):
    """Completions of one prompt."""

    choice: loading.ModelChoice = loading.ModelChoice()
    machine: MachineConfig = MachineConfig()
    prompt: str = flag("", "text to continue")
    num_samples: int = flag(1, "completions to draw", minimum=1)
    temperature: float = flag(1.0, "sampling temperature; 0: greedy", minimum=0)
    top_p: float = flag(1.0, "sample from the most likely tokens that make up this probability", above=0, maximum=1)
    prompt_style: str = flag("auto", "how the prompt is written; auto: chat if the model has a template, else plain",
                             lambda: {"auto": None} | PROMPT_STYLES)
    prompt_date: str = flag("", "date, YYYY-MM-DD, for a chat template that writes a date into the prompt")
    max_new_tokens: int = flag(0, "longest completion, in tokens; 0: what the model's window leaves after the "
                               "prompt, at most 512", minimum=0)
    num_slots: int = flag(0, "completions decoded at a time on each device; 0: all", minimum=0)
    seed: int = flag(0, "seed of the sampling", minimum=0, maximum=2**31 - 1)
    out: str = flag("", "JSONL file for the completions; empty: only print")


def generate(config: SampleConfig) -> list[dict]:
    """Returns a row for each completion: "prompt", "completion", "completion_ids", "sampler_logprobs" (of each token),
    "stop_reason" ("eos" or "length") and "pieces", the text that each token adds. Reports a chat template on stderr."""
    if not config.prompt:
        raise UserError("--prompt is required: the text to continue")
    loaded, style = loading.load_fixed(config.choice), config.prompt_style
    tokenizer = loaded.tokenizer
    if style == "auto":
        style = "plain" if tokenizer.chat_template is None else "chat"
        if style == "chat":
            print("asked in the model's chat template; --prompt_style=plain continues the bare prompt", file=sys.stderr)
    text = PROMPT_STYLES[style](tokenizer, config.prompt, config.prompt_date)
    prompts = encode_prompts(tokenizer, [Problem(text, "", text)], loaded.config, config.max_new_tokens or 1)
    longest = config.max_new_tokens or min(LONGEST, loaded.config.max_seq_len - int(prompts.lengths[0]))
    sampler = make_sampler(loaded, SamplingConfig(longest, config.num_slots), config.top_p < 1)
    rollouts = sampler.sample(sampler.params, prompts, np.zeros(config.num_samples, np.int32),
                              Request(config.seed, 0, config.temperature, config.top_p))
    rows = []
    for tokens, mask, logprobs, ended in zip(rollouts.completions, rollouts.completion_mask, rollouts.sampler_logprobs,
                                             rollouts.ended):
        ids = tokens[mask].tolist()
        texts = [tokenizer.decode(ids[: i + 1]) for i in range(len(ids))]  # up to token i: characters may span tokens
        rows.append({"prompt": text, "completion": texts[-1], "completion_ids": ids,
                     "sampler_logprobs": logprobs[mask].tolist(), "stop_reason": "eos" if ended else "length",
                     "pieces": [now[len(before):] for before, now in zip([""] + texts, texts)]})
    return rows
