"""Directions of the residual that may be added: found in a model, trained, and controls.

P problems, L layers, D width.
"""

import dataclasses
from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import SteeringConfig
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.loading import LanguageModel
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts
from rlvr_jax.tools import readout


def means(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem]) -> np.ndarray:
    """From problems that the model opens in another way to those it opens carefully, the difference of their means;
    where there is no such style, from the end of the prompt to that of --opening after it."""
    def last(asked):
        prompts = encode_prompts(loaded.tokenizer, asked, loaded.config, 1)
        residuals_LxPxD, said_P = readout.at_last_token(loaded.params, loaded.config, prompts)
        return residuals_LxPxD[config.layer], said_P

    (residuals_PxD, said_P), family = last(problems), FAMILIES.get(config.problems)
    if family is None:
        opened = [dataclasses.replace(one, prompt=f"{one.prompt} {config.opening}") for one in problems]
        return (last(opened)[0] - residuals_PxD).mean(0)
    careful_P = readout.carefully(family, loaded.tokenizer, said_P)
    vector_D = readout.difference_of_means(residuals_PxD, careful_P)
    if vector_D is None:
        raise UserError(f"--vector=means: the model opens {careful_P.sum()} of {len(problems)} problems carefully, and "
                        "there have to be some and others; raise --num_fit, or take another vector")
    return vector_D


def random(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem],
           like_D: Optional[np.ndarray] = None) -> np.ndarray:
    """A random direction with the length of means: a control."""
    return as_long(np.random.default_rng(config.seed).standard_normal(loaded.config.d_model),
                   means(config, loaded, problems) if like_D is None else like_D)


def pca(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem],
        like_D: Optional[np.ndarray] = None) -> np.ndarray:
    """The direction in which the ends of prompts differ most, with the length and the side of means: a control."""
    like_D = means(config, loaded, problems) if like_D is None else like_D
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, 1)
    residuals_PxD = readout.at_last_token(loaded.params, loaded.config, prompts)[0][config.layer]
    direction_D = np.linalg.svd(residuals_PxD - residuals_PxD.mean(0), full_matrices=False)[2][0]
    return as_long(direction_D if direction_D @ like_D >= 0 else -direction_D, like_D)


def trained(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem]) -> np.ndarray:
    """The vector of this layer that --vectors has learnt."""
    if not config.vectors:
        raise UserError("--vector=trained needs --vectors: a run directory of scripts.train --trainable=vector")
    vectors_LxD = readout.vectors(config.vectors, loading.load_model(config.vectors))
    if vectors_LxD.shape != (loaded.config.num_layers, loaded.config.d_model):
        raise UserError(f"--vectors={config.vectors}: its vectors are of another model's shape than --model")
    return vectors_LxD[config.layer]


# --vector -> (flags, model, problems to fit on) -> f64[D]
VECTORS: dict[str, Callable] = {"means": means, "random": random, "pca": pca, "trained": trained}


def as_long(direction_D: np.ndarray, like_D: np.ndarray) -> np.ndarray:
    return direction_D * (np.linalg.norm(like_D) / np.linalg.norm(direction_D))
