"""Residuals of a model over given texts: at the ends of prompts, or at the tokens that follow.

N tokens of all R texts together, B texts of a batch, T positions, P prompts, L layers, D width.
"""

import functools
from typing import NamedTuple, Optional, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import model
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.runs.log import progress
from rlvr_jax.tasks.prompts import encode_prompts, pad_rows

BATCH = 64  # texts run through the model at a time


def read_prompt_ends(loaded: LanguageModel, problems: list[Problem], max_prompt_tokens: int = 0) -> tuple:
    """(residual after every layer f64[L,P,D], likeliest next token i[P]) at each prompt's last token. The next token is
    the first of the greedy completion."""
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, 1, max_prompt_tokens)
    count, parts = len(problems), []
    for start in range(0, count, BATCH):
        rows = np.minimum(np.arange(start, start + min(BATCH, count)), count - 1)  # one shape to compile
        parts.append(_read_prompt_ends(loaded.params, loaded.config, prompts.replace(
            tokens=prompts.tokens[rows], lengths=prompts.lengths[rows])))
    residuals, tokens = zip(*parts)
    return np.concatenate(residuals, 1)[:, :count].astype(np.float64), np.concatenate(tokens)[:count]


@functools.partial(jax.jit, static_argnums=1)
def _read_prompt_ends(params: model.Params, config: model.ModelConfig, prompts: Prompts) -> tuple:
    def last(x_PxSxD):
        return x_PxSxD[jnp.arange(len(prompts.lengths)), prompts.lengths - 1]

    first_LxD = params["layers"].get("first_vector")

    def add_first(index, x_PxSxD, positions_PxS):  # `forward` does not know which prompt token is the last
        at_last_PxS = positions_PxS == prompts.lengths[:, None] - 1
        return x_PxSxD + jnp.where(at_last_PxS[..., None], first_LxD[index][None, None], 0)

    how = model.ForwardOptions(edit_residual=None if first_LxD is None else add_first, read_residual=last)
    hidden_PxSxD, residuals_LxPxD = model.forward(params, config, prompts.tokens, how=how)
    return residuals_LxPxD.astype(jnp.float32), jnp.argmax(model.head(params, last(hidden_PxSxD)), -1)


class Activations(NamedTuple):
    """Tokens of texts, one text after the other: entry n of each array is about the same token."""

    text: np.ndarray  # i[N], the number of its text
    position: np.ndarray  # i[N], its position in the text, from 0
    likeliest: np.ndarray  # i32[N], the likeliest next token
    residual: Optional[np.ndarray]  # f32[N,D], after the layer; None without one


def read_tokens(loaded: LanguageModel, texts: Sequence[Sequence[int]], starts_R: np.ndarray,
                layer: Optional[int] = None) -> Activations:
    """Runs R texts, rows of token ids, through the model and reads each from its position `starts_R` on.

    Raises UserError for a model of --trainable=first_vector.
    """
    if "first_vector" in loaded.params["layers"]:
        raise UserError("a model of --trainable=first_vector acts where a completion begins, which plain texts do not "
                        "show: take one of --trainable=vector")
    tokens_RxT, lengths_R = pad_rows(texts, 0, -(-max(map(len, texts)) // 16) * 16)
    positions_T = np.arange(tokens_RxT.shape[1])
    mask_RxT = (positions_T >= starts_R[:, None]) & (positions_T < lengths_R[:, None])
    params, parts = jax.device_put(loaded.params), []
    with progress(len(texts), 0, "activations", unit="text") as bar:
        for start in range(0, len(texts), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(texts) - 1)  # one shape to compile
            mask_BxT = mask_RxT[start : start + BATCH]
            parts.append([np.asarray(values_BxT)[: len(mask_BxT)][mask_BxT] for values_BxT in _read_tokens(
                params, loaded.config, tokens_RxT[rows], layer)])
            bar.update(len(mask_BxT))
    likeliest_N, *residuals = map(np.concatenate, zip(*parts))
    return Activations(*np.nonzero(mask_RxT), likeliest_N, residuals[0] if residuals else None)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _read_tokens(params: model.Params, config: model.ModelConfig, tokens_BxT: jax.Array, layer: Optional[int]) -> tuple:
    """(likeliest next tokens i32[B,T], with a layer also its residual f32[B,T,D])."""
    how = model.ForwardOptions(read_residual=None if layer is None else lambda x: x)
    hidden_BxTxD, residuals = model.forward(params, config, tokens_BxT, how=how)
    likeliest_BxT = jax.lax.map(  # the logits of one text at a time
        lambda x_TxD: jnp.argmax(model.head(params, x_TxD), -1).astype(jnp.int32), hidden_BxTxD)
    return likeliest_BxT, *([] if layer is None else [residuals[layer].astype(jnp.float32)])
