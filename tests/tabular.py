"""A policy that is a table of logits in place of the transformer: the update's own numbers, with nothing to round.

Completion b is row `prompt_index[b]` of the table, and its token t is drawn from softmax(table[b, t] / temperature).
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlvr_jax import learner, logprobs
from rlvr_jax.sampler import Rollouts

# Leaves parameters as they are, and its state is the gradient.
RECORD = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params),
                                      lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, params), gradient))


def completion_logprobs(params, config, prompts, prompt_index_B, completions_BxT, temperature, **options):
    table_BxTxV = params["table"][prompt_index_B]
    head = {"embed": jnp.eye(table_BxTxV.shape[-1])}
    return logprobs.token_logprobs(head, table_BxTxV, completions_BxT, temperature)


@functools.cache
def _update(config):
    return jax.jit(learner.make_update(None, config, RECORD))


def loss_and_gradient(config, table, batch, num_micro=1) -> tuple:
    """(loss, its gradient by the table) of the update under `config`, from a host batch in so many micro-batches."""
    pieces = jax.tree.map(lambda x: x.reshape(num_micro, -1, *x.shape[1:]), batch)
    state = learner.init_state({"table": jnp.array(table, jnp.float32)}, RECORD, keep_reference=False)
    with mock.patch.object(learner, "completion_logprobs", completion_logprobs):
        state, metrics = _update(config)(state, pieces, jnp.int32(1))
    return float(metrics["loss"]), np.asarray(state.opt_state["table"])


def random_rollouts(rng, rows=8, tokens=4, words=3) -> Rollouts:
    """Completions of 1 to `tokens` tokens, with garbage behind their end."""
    mask = np.arange(tokens) < rng.integers(1, tokens + 1, rows)[:, None]
    return Rollouts(np.arange(rows), rng.integers(0, words, (rows, tokens)), mask, None, np.ones(rows, bool))
