"""How completions open: the residuals at the last token of a prompt, the likeliest first token, and its style.

L layers, D width, P prompts, S positions.
"""

import dataclasses
import functools
from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import model
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.tasks.families import Family
from rlvr_jax.tasks.prompts import encode_prompts

PROMPTS = 64  # run through the model at a time


def at_last_token(loaded: LanguageModel, problems: list[Problem], max_prompt_tokens: int = 0) -> tuple:
    """(residual after every layer f64[L,P,D], likeliest next token i[P]) at the last token of each prompt. That next
    token is the first of the greedy completion."""
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, 1, max_prompt_tokens)
    count, parts = len(problems), []
    for start in range(0, count, PROMPTS):  # the last part keeps the shape of the others
        rows = np.minimum(np.arange(start, start + min(PROMPTS, count)), count - 1)
        parts.append(_at_last_token(loaded.params, loaded.config, jax.tree.map(lambda x, rows=rows: x[rows], prompts)))
    residuals, tokens = zip(*parts)
    return np.concatenate(residuals, 1)[:, :count].astype(np.float64), np.concatenate(tokens)[:count]


@functools.partial(jax.jit, static_argnums=1)
def _at_last_token(params: model.Params, config: model.ModelConfig, prompts: Prompts) -> tuple:
    def last(x_PxSxD):
        return x_PxSxD[jnp.arange(len(prompts.lengths)), prompts.lengths - 1]

    first_LxD = params["layers"].get("first_vector")

    def add_first(index, x_PxSxD, positions_PxS):  # which of a prompt's tokens is the last, `forward` does not know
        at_last_PxS = positions_PxS == prompts.lengths[:, None] - 1
        return x_PxSxD + jnp.where(at_last_PxS[..., None], first_LxD[index][None, None], 0)

    how = model.ForwardOptions(edit_residual=None if first_LxD is None else add_first, read_residual=last)
    hidden_PxSxD, residuals_LxPxD = model.forward(params, config, prompts.tokens, how=how)
    return residuals_LxPxD.astype(jnp.float32), jnp.argmax(model.head(params, last(hidden_PxSxD)), -1)


def continued(problems: list[Problem], opening: str) -> list[Problem]:
    """The problems with these words after their prompts."""
    return [dataclasses.replace(problem, prompt=f"{problem.prompt} {opening}") for problem in problems]


def opening_words(family: Family) -> tuple[list[str], list[str]]:
    """(words that open a careful solution, words that open any other)."""
    careful = next(iter(family.styles.values()))
    return tuple([word for word, style in family.styles.items() if (style == careful) == wanted]
                 for wanted in (True, False))


def carefully(family: Family, tokenizer: Tokenizer, tokens_P: np.ndarray) -> np.ndarray:
    """bool[P]: whether a completion with this first token opens in the family's careful style."""
    return np.array([tokenizer.decode([token]) in opening_words(family)[0] for token in tokens_P])


def difference_of_means(residuals_PxD: np.ndarray, careful_P: Optional[np.ndarray]) -> Optional[np.ndarray]:
    """f[D]: the mean over prompts that the base answers in the careful style, less the mean over all others. The
    "difference of means" direction of Marks and Tegmark (arXiv 2310.06824). None without prompts of both kinds."""
    if careful_P is None or careful_P.all() or not careful_P.any():
        return None
    return residuals_PxD[careful_P].mean(0) - residuals_PxD[~careful_P].mean(0)
