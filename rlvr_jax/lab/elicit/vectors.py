"""Directions of the residual that may be added: computed from a model, trained, and controls; what they are fitted on.

P problems, L layers, D width.
"""

from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import KeptConfig
from rlvr_jax.lab.elicit import openings
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import ProblemSource, is_drawn, load_problems


class SteeringConfig(Config):
    """A vector that is added to the residual, and a gate that chooses the tokens."""

    kept: KeptConfig = KeptConfig()
    opening: str = flag("think", "words that completions begin with under forced, and after which --vector=means "
                        "reads a model that is of no synthetic family")
    vector: str = flag("means", "direction that is added; all but trained have the length of means", lambda: VECTORS)
    vectors: str = flag("", "run directory of scripts.train --trainable=vector, for --vector=trained")
    layer: int = flag(1, "layer, from 0, after which the gate reads and the vector is added; arXiv 2510.07364 takes "
                      "one at 37 % of the depth", minimum=0)
    trained: str = flag("", "the trained model that the gate is fitted to: where its likeliest token is another "
                        "than that of --model")
    fit_problems: str = flag("", "file of problems to fit vector and gate on; empty: the split example of the "
                             "synthetic family in --problems")
    num_fit: int = flag(512, "problems to fit on", minimum=5)


def pinned(config):
    """The record with the steps of its run directories spelt out (`loading.pin_step`)."""
    flags = config.as_flags()
    return config.with_flags(**{name: loading.pin_step(flags[name]) for name in ("model", "trained", "vectors")})


def check_layer(config: SteeringConfig, loaded: LanguageModel) -> None:
    """Raises UserError for a layer that the model lacks."""
    if config.layer >= loaded.config.num_layers:
        raise UserError(f"--layer={config.layer}: the layers of the model are 0 to {loaded.config.num_layers - 1}")


def problems_apart(config: SteeringConfig, loaded: LanguageModel, split: str) -> list[Problem]:
    """--num_fit problems that are not measured: those of another split of --problems, or of --fit_problems."""
    source = config.kept.source
    if not config.fit_problems and not all(map(is_drawn, source.problems.split(","))):
        raise UserError(f"--problems={source.problems} has one split, which is measured: name a file to fit on, "
                        "--fit_problems")
    return load_problems(ProblemSource(config.fit_problems or source.problems, source.prompt), loaded.tokenizer, split,
                         config.num_fit)


def means(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem]) -> np.ndarray:
    """From problems that the model opens in another way to those it opens carefully, the difference of their means;
    where there is no such style, from the end of the prompt to that of --opening after it."""
    residuals_LxPxD, tokens_P = openings.at_last_token(loaded, problems)
    residuals_PxD, family = residuals_LxPxD[config.layer], FAMILIES.get(config.kept.source.problems)
    if family is None:
        opened_LxPxD, _ = openings.at_last_token(loaded, openings.continued(problems, config.opening))
        return (opened_LxPxD[config.layer] - residuals_PxD).mean(0)
    careful_P = openings.carefully(family, loaded.tokenizer, tokens_P)
    vector_D = openings.difference_of_means(residuals_PxD, careful_P)
    if vector_D is None:
        raise UserError(f"--vector=means: the model opens {careful_P.sum()} of {len(problems)} problems carefully, and "
                        "there have to be some and others; raise --num_fit, or take another vector")
    return vector_D


def random(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem],
           like_D: Optional[np.ndarray] = None) -> np.ndarray:
    """A random direction with the length of means: a control."""
    return as_long(np.random.default_rng(config.kept.seed).standard_normal(loaded.config.d_model),
                   means(config, loaded, problems) if like_D is None else like_D)


def pca(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem],
        like_D: Optional[np.ndarray] = None) -> np.ndarray:
    """The direction in which the ends of prompts differ most, with the length and the side of means: a control."""
    like_D = means(config, loaded, problems) if like_D is None else like_D
    residuals_PxD = openings.at_last_token(loaded, problems)[0][config.layer]
    direction_D = np.linalg.svd(residuals_PxD - residuals_PxD.mean(0), full_matrices=False)[2][0]
    return as_long(direction_D if direction_D @ like_D >= 0 else -direction_D, like_D)


def trained(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem]) -> np.ndarray:
    """The vector of this layer in the model --vectors."""
    if not config.vectors:
        raise UserError("--vector=trained needs --vectors: a run directory of scripts.train --trainable=vector")
    vectors_LxD = trained_vectors(config.vectors, loading.load_model(config.vectors))
    if vectors_LxD.shape != (loaded.config.num_layers, loaded.config.d_model):
        raise UserError(f"--vectors={config.vectors}: its vectors are of another model's shape than --model")
    return vectors_LxD[config.layer]


# --vector -> (flags, model, problems to fit on) -> f64[D]
VECTORS: dict[str, Callable] = {"means": means, "random": random, "pca": pca, "trained": trained}


def trained_vectors(name: str, loaded: LanguageModel, shape: Optional[tuple] = None) -> np.ndarray:
    """The vectors of a model, f64[L,D]. Raises UserError if it has none, or if they are not of the given shape."""
    found = [x for leaf, x in loaded.params["layers"].items() if leaf in ("vector", "first_vector")]
    if not found:
        raise UserError(f"{name} has no vectors: it takes the run directory of scripts.train --trainable=vector or "
                        "first_vector")
    vectors_LxD = np.asarray(found[0], np.float64)
    if shape not in (None, vectors_LxD.shape):
        raise UserError(f"--beside={name}: its vectors are {vectors_LxD.shape[0]} of width {vectors_LxD.shape[1]}, and "
                        f"those of --model {shape[0]} of width {shape[1]}; compare models of one shape")
    return vectors_LxD


def as_long(direction_D: np.ndarray, like_D: np.ndarray) -> np.ndarray:
    """The direction with the length of the other vector."""
    return direction_D * (np.linalg.norm(like_D) / np.linalg.norm(direction_D))
