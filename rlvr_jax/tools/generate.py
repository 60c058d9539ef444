"""Completions of one prompt, for people to look at."""

import sys

import numpy as np

from rlvr_jax import parallel, sampler
from rlvr_jax.config import SampleConfig
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import loading
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import PROMPT_STYLES, encode_prompts

LONGEST = 512  # tokens of a completion under max_new_tokens=0, where the model's window leaves more


def generate(config: SampleConfig) -> list[dict]:
    """Rows of `prompt, completion, completion_ids, sampler_logprobs, stop_reason` ("eos" or "length"), and `pieces`,
    the text of each token. Under prompt_style=auto a model that has a chat template is asked in it, and stderr says so.
    """
    if not config.prompt:
        raise UserError("--prompt is required: the text to continue")
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    tokenizer, style = loaded.tokenizer, config.prompt_style
    if style == "auto":
        style = "plain" if tokenizer.chat_template is None else "chat"
        if style == "chat":
            print("asked in the model's chat template; --prompt_style=plain continues the bare prompt", file=sys.stderr)
    text = PROMPT_STYLES[style](tokenizer, config.prompt)
    prompts = encode_prompts(tokenizer, [Problem(text, "", text)], loaded.config, config.max_new_tokens or 1)
    longest = config.max_new_tokens or min(LONGEST, loaded.config.max_seq_len - int(prompts.lengths[0]))
    sample = sampler.make_sampler(loaded.config, eos_ids=tokenizer.eos_ids, max_new_tokens=longest,
                                  num_slots=config.num_slots, use_top_p=config.top_p < 1)
    rollouts = sample(parallel.place_state(loaded.params), prompts, np.zeros(config.num_samples, np.int32), config.seed,
                      0, config.temperature, config.top_p)
    rows = []
    for ids, mask, logprobs, ended in zip(rollouts.completions, rollouts.completion_mask, rollouts.sampler_logprobs,
                                          rollouts.ended):
        ids = ids[mask].tolist()
        shown = [tokenizer.decode(ids[: i + 1]) for i in range(len(ids))]  # some characters span tokens
        rows.append({"prompt": text, "completion": shown[-1], "completion_ids": ids,
                     "sampler_logprobs": logprobs[mask].tolist(), "stop_reason": "eos" if ended else "length",
                     "pieces": [now[len(before):] for before, now in zip([""] + shown, shown)]})
    return rows
