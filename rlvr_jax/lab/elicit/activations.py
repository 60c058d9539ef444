"""A model's residuals, the hidden states after its layers: at the last token of prompts, or at many tokens of texts.

Axes: R texts with N tokens in all, B texts of a batch, T positions, P prompts with S positions, L layers, D width.
"""

import functools
from typing import NamedTuple, Optional, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import model
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import KeptConfig
from rlvr_jax.evaluation.measure import Benchmark, Sampler, sample_and_grade
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.runs.log import progress
from rlvr_jax.sampler import CHOOSE, Request
from rlvr_jax.tasks.prompts import encode_prompts, pad_rows

BATCH = 64  # texts per call; the last call repeats its last text, so that all calls share one compiled shape


def read_prompt_ends(loaded: LanguageModel, problems: list[Problem], max_prompt_tokens: int = 0) -> tuple:
    """Returns (residual after every layer f64[L,P,D], most likely next token i32[P]) at the last token of each prompt.
    Raises the UserErrors of `encode_prompts`, such as for a prompt of over `max_prompt_tokens` tokens (0: no limit)."""
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, 1, max_prompt_tokens)
    count, batches = len(problems), []
    for start in range(0, count, BATCH):
        rows = np.minimum(np.arange(start, start + min(BATCH, count)), count - 1)  # repeats the last prompt, see BATCH
        batches.append(_read_prompt_ends(loaded.params, loaded.config, prompts.replace(
            tokens=prompts.tokens[rows], lengths=prompts.lengths[rows])))
    residuals, tokens = zip(*batches)
    return np.concatenate(residuals, 1)[:, :count].astype(np.float64), np.concatenate(tokens)[:count]


@functools.partial(jax.jit, static_argnums=1)
def _read_prompt_ends(params: model.Params, config: model.ModelConfig, prompts: Prompts) -> tuple:
    def take_last(x_PxSxD):
        return x_PxSxD[jnp.arange(len(prompts.lengths)), prompts.lengths - 1]

    vectors_LxD = params["layers"].get("first_vector")

    def add_at_last(index, x_PxSxD, positions_PxS):  # `forward` itself adds a first_vector only after a prefix
        is_last_PxS = positions_PxS == prompts.lengths[:, None] - 1
        return x_PxSxD + jnp.where(is_last_PxS[..., None], vectors_LxD[index][None, None], 0)

    how = model.ForwardOptions(edit_residual=None if vectors_LxD is None else add_at_last, read_residual=take_last)
    hidden_PxSxD, residuals_LxPxD = model.forward(params, config, prompts.tokens, how=how)
    return residuals_LxPxD.astype(jnp.float32), jnp.argmax(model.head(params, take_last(hidden_PxSxD)), -1)


def sample_texts(kept: KeptConfig, config: model.ModelConfig, sampler: Sampler, problems: list[Problem],
                 num_samples: int = 1, temperature: float = 0.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Samples `num_samples` completions of each problem. Returns (R texts, i32[R] lengths of their prompts), problem by
    problem. A text is the token ids of a prompt and its completion. `config` is that of the sampler's model."""
    prompts = encode_prompts(sampler.tokenizer, problems, config, kept.sampling.max_new_tokens,
                             kept.source.prompt.max_prompt_tokens)
    judge_nothing = lambda texts, _: [{}] * len(texts)
    benchmark = Benchmark("example", problems, prompts, judge_nothing, num_samples, temperature)

    def token_ids(rollouts, *_):  # without the padding after a completion
        return [{"ids": ids[mask]} for ids, mask in zip(rollouts.completions, rollouts.completion_mask)]
    rows = sample_and_grade(sampler, benchmark, Request(kept.seed, 0, stream=CHOOSE), kept.rows_per_call,
                            more=token_ids)
    prompt_ids = [tokens[:length] for tokens, length in zip(prompts.tokens, prompts.lengths)]
    texts = [np.concatenate([prompt_ids[row["problem"]], row["ids"]]) for row in rows]
    return texts, np.repeat(prompts.lengths, num_samples)


class Activations(NamedTuple):
    """Tokens of several texts, one text after another: entry n of every array describes the n-th of these tokens."""

    text: np.ndarray  # i[N], index of the text that the token belongs to
    position: np.ndarray  # i[N], index of the token in its text
    likeliest: np.ndarray  # i32[N], the model's most likely next token
    residual: Optional[np.ndarray]  # f32[N,D], after the chosen layer; None if no layer was chosen


def read_tokens(loaded: LanguageModel, texts: Sequence[Sequence[int]], starts_R: np.ndarray,
                layer: Optional[int] = None) -> Activations:
    """Runs R texts, given as token ids, through the model. Returns the activations at the tokens of each text r from
    position `starts_R[r]` on. They include the residual after layer `layer` (from 0), unless `layer` is None.
    Raises UserError for a model trained with --trainable=first_vector."""
    if "first_vector" in loaded.params["layers"]:
        raise UserError("a model of --trainable=first_vector acts where a completion begins, which plain texts do not "
                        "show: take one of --trainable=vector")
    tokens_RxT, lengths_R = pad_rows(texts, 0, -(-max(map(len, texts)) // 16) * 16)  # to a multiple of 16
    positions_T = np.arange(tokens_RxT.shape[1])
    mask_RxT = (positions_T >= starts_R[:, None]) & (positions_T < lengths_R[:, None])
    params, batches = jax.device_put(loaded.params), []
    with progress(len(texts), 0, "activations") as bar:
        for start in range(0, len(texts), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(texts) - 1)
            mask_BxT = mask_RxT[start : start + BATCH]
            arrays = _read_tokens(params, loaded.config, tokens_RxT[rows], layer)  # [B,T], and [B,T,D] with a layer
            batches.append([np.asarray(x)[: len(mask_BxT)][mask_BxT] for x in arrays])
            bar.update(len(mask_BxT))
    likeliest_N, *residuals = map(np.concatenate, zip(*batches))  # `residuals` is [f32[N,D]], or [] without a layer
    text_N, position_N = np.nonzero(mask_RxT)
    return Activations(text_N, position_N, likeliest_N, residuals[0] if residuals else None)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _read_tokens(params: model.Params, config: model.ModelConfig, tokens_BxT: jax.Array, layer: Optional[int]) -> tuple:
    """Returns (likeliest next tokens i32[B,T],) and, unless `layer` is None, the residual after `layer` f32[B,T,D]."""
    how = model.ForwardOptions(read_residual=None if layer is None else lambda x: x)
    hidden_BxTxD, residuals = model.forward(params, config, tokens_BxT, how=how)
    likeliest_BxT = jax.lax.map(  # one text at a time, because the logits of a whole batch would take much memory
        lambda x_TxD: jnp.argmax(model.head(params, x_TxD), -1).astype(jnp.int32), hidden_BxTxD)
    return likeliest_BxT, *([] if layer is None else [residuals[layer].astype(jnp.float32)])
