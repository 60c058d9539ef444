"""The data that the parts of the program exchange.

B completions, P distinct prompts, S prompt positions, T tokens of a completion. Arrays of `Prompts` and `Batch` are
numpy on the host, and JAX arrays on a device.
"""

import dataclasses
from typing import Any, Optional

import flax.struct
import jax

from rlvr_jax.config import Config, flag


# What NumPy draws on the host has a seed of four words, (seed, two counters, one of these): a missing word counts as 0,
# so that (seed, epoch) and (seed, step, 0) would be one stream.
EPOCH_ORDER, MINIBATCH_ORDER, REWARD_DRAWS = range(3)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question, its reference answer, and the exact text that the model continues."""

    question: str
    answer: str
    prompt: str
    meta: dict = dataclasses.field(default_factory=dict)
    copies: int = 1  # how often the file has it; in training each copy is a group


@flax.struct.dataclass
class Prompts:
    """Distinct prompts, right-padded to one width."""

    tokens: jax.Array  # i32[P,S]
    lengths: jax.Array  # i32[P], at least 1


@flax.struct.dataclass
class Rollouts:
    """Completions as sampled. The mask, not a token id, says what belongs to a completion."""

    prompt_index: jax.Array  # i32[B]
    completions: jax.Array  # i32[B,T], 0 after the end
    completion_mask: jax.Array  # bool[B,T], true up to and including the first end-of-text token
    sampler_logprobs: jax.Array  # f32[B,T] nats, under the distribution drawn from (at temperature 0: the model's own)
    ended: jax.Array  # bool[B], false if `max_new_tokens` cut the completion
    noted: Optional[dict] = None  # name -> [B] or [B,T], what hooks of the sampler recorded besides


@flax.struct.dataclass
class Batch:
    """Rows to learn from, on the host as numpy; on a device with a leading axis of micro-batches."""

    prompts: Prompts
    prompt_index: jax.Array  # i32[B] into prompts
    completions: jax.Array  # i32[B,T]
    completion_mask: jax.Array  # bool[B,T], false also on rows that are to have no influence
    advantages: jax.Array  # f32[B] of a completion's every token, or f32[B,T]
    sampler_logprobs: Optional[jax.Array] = None  # f32[B,T], None for data that no sampler drew
    old_logprobs: Optional[jax.Array] = None  # f32[B,T], None when the first update is the only one: the ratio is 1
    ref_logprobs: Optional[jax.Array] = None  # f32[B,T], None where no KL is measured


@flax.struct.dataclass
class LearnerState:
    """Everything training changes."""

    step: jax.Array  # i32[] batches learnt from, each in one or more optimiser updates
    params: dict  # f32; an update changes no bit of those that are not trained
    opt_state: Any  # optax state of the trained parameters alone
    ref_params: Optional[dict]  # the reference of the KL, if it is measured, where a copy is kept


class LoopConfig(Config):
    """How long a training is, and what its random choices depend on."""

    seed: int = flag(0, "seed of every random choice; a run is a function of (flags, seed, step)",
                     minimum=0, maximum=2**31 - 1)
    num_steps: int = flag(150, "updates to make", minimum=1, free=True)
