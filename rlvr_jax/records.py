"""The data that modules exchange, numpy or JAX arrays. B completions, P prompts, S prompt positions, T tokens."""

import dataclasses
from typing import Any, Optional

import flax.struct
import jax

from rlvr_jax.config import Config, flag

# The last of the four numbers that seed NumPy: seed, two counters, purpose. Fewer, padded with 0, could collide.
EPOCH_ORDER, MINIBATCH_ORDER, REWARD_DRAWS = range(3)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question, its reference answer, and the exact text that the model continues."""

    question: str
    answer: str
    prompt: str
    meta: dict = dataclasses.field(default_factory=dict)  # further columns, such as "index", "task" and "steps"
    copies: int = 1  # how often the problem occurs in the file, and in an epoch of training


@flax.struct.dataclass
class Prompts:
    """Distinct prompts, right-padded to one width."""

    tokens: jax.Array  # i32[P,S]
    lengths: jax.Array  # i32[P], at least 1


@flax.struct.dataclass
class Rollouts:
    """Completions as sampled. The mask, not a token id, tells which tokens belong to a completion."""

    prompt_index: jax.Array  # i32[B]
    completions: jax.Array  # i32[B,T], 0 after the end
    completion_mask: jax.Array  # bool[B,T], true up to and including the first end-of-text token
    sampler_logprobs: jax.Array  # f32[B,T] nats, under the distribution sampled from; greedy tokens: at temperature 1
    ended: jax.Array  # bool[B], false if `max_new_tokens` truncated the completion
    noted: Optional[dict] = None  # {name: [B] or [B,T]}, recorded while sampling (`sampler.Hooks`)


@flax.struct.dataclass
class Batch:
    """Rows to learn from: numpy arrays on the host; on a device, with a leading axis of micro-batches."""

    prompts: Prompts
    prompt_index: jax.Array  # i32[B], the prompt of each row
    completions: jax.Array  # i32[B,T]
    completion_mask: jax.Array  # bool[B,T], false throughout rows that the loss leaves out
    advantages: jax.Array  # f32[B], for all tokens of a completion, or f32[B,T]
    sampler_logprobs: Optional[jax.Array] = None  # f32[B,T], None for tokens that were not sampled
    old_logprobs: Optional[jax.Array] = None  # f32[B,T], None if a batch has one update: then ratios are 1
    ref_logprobs: Optional[jax.Array] = None  # f32[B,T], None if no KL is measured


@flax.struct.dataclass
class LearnerState:
    """Everything that training changes."""

    step: jax.Array  # i32[] number of batches learnt from, each in one or more optimiser updates
    params: dict  # frozen parameters, which may be 16-bit, stay bitwise equal; trained ones are f32
    opt_state: Any  # optax state of the trained parameters
    ref_params: Optional[dict]  # the reference of the KL, if one is kept


class LoopConfig(Config):
    """How long training takes, and the seed of its random choices."""

    seed: int = flag(0, "random seed; each step is a function of (flags, seed, step)", minimum=0, maximum=2**31 - 1)
    num_steps: int = flag(150, "steps to train", minimum=1, free=True)
