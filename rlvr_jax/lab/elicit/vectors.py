"""Steering vectors, directions of the residual: computed from how a model starts completions, trained, or controls.

The first word of a solution in a synthetic family tells its style, and the careful style is the accurate one.
P problems, L layers, D width.
"""

import dataclasses
from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import KeptConfig
from rlvr_jax.lab.elicit.activations import read_prompt_ends
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem
from rlvr_jax.tasks.families import FAMILIES, Family
from rlvr_jax.tasks.prompts import ProblemSource, is_drawn, load_problems


class SteeringConfig(Config):
    """A vector that is added to the residual, and a gate that chooses the tokens."""

    kept: KeptConfig = KeptConfig()
    opening: str = flag("think", "words with which completions of the method forced start, and which --vector=means "
                        "and the method sae append to prompts if --problems is not a synthetic family")
    vector: str = flag("means", "vector to add; all except trained have the length of means", lambda: VECTORS)
    vectors: str = flag("", "run directory of scripts.train --trainable=vector, for --vector=trained")
    layer: int = flag(1, "layer, from 0, whose output the gate uses, and after which the vector is added; arXiv "
                      "2510.07364 takes one at 37 % of the depth", minimum=0)
    trained: str = flag("", "trained model to fit the gate to: the gate learns where the most likely token of this "
                        "model differs from that of --model")
    fit_problems: str = flag("", "file of problems to fit vector and gate, and to choose settings, on; empty: the "
                             "example split, and to choose the dev split, of the synthetic family in --problems")
    num_fit: int = flag(512, "number of problems to fit on", minimum=5)


def pin_models(config):
    """Returns `config` with --model, --trained and --vectors pinned: DIR or DIR@best becomes DIR@STEP (`pin_step`)."""
    flags = config.as_flags()
    return config.with_flags(**{name: loading.pin_step(flags[name]) for name in ("model", "trained", "vectors")})


def check_layer(config: SteeringConfig, loaded: LanguageModel) -> None:
    """Raises UserError for a layer that the model lacks."""
    if config.layer >= loaded.config.num_layers:
        raise UserError(f"--layer={config.layer}: the layers of the model are 0 to {loaded.config.num_layers - 1}")


def load_fit_problems(config: SteeringConfig, loaded: LanguageModel, split: str) -> list[Problem]:
    """Returns --num_fit problems: of the file --fit_problems or, if that flag is empty, of the split `split` of
    --problems. Raises UserError if --fit_problems is empty and --problems names a file, which has no splits, and as
    `check_split` does."""
    source = config.kept.source
    check_split(config, split)
    if not config.fit_problems and not all(map(is_drawn, source.problems.split(","))):
        raise UserError(f"--problems={source.problems} names a file, which has no second split to fit on: name another "
                        "file with --fit_problems")
    return load_problems(ProblemSource(config.fit_problems or source.problems, source.prompt), loaded.tokenizer, split,
                         config.num_fit)


def check_split(config: SteeringConfig, split: str) -> None:
    """Raises UserError if problems that are measured are also those to fit, or to choose settings, on: --problems and
    --fit_problems share a file, or --heldout_split is `split` of a source that is drawn."""
    measured, kept = config.kept.source.problems.split(","), config.kept
    for name in (config.fit_problems or kept.source.problems).split(","):
        if name in measured and is_drawn(name) and kept.heldout_split == split:
            raise UserError(f"--heldout_split={split}: settings are chosen on this split of {name}, and would be "
                            "measured on it, too; measure on another split")
        if name in measured and not is_drawn(name) and config.fit_problems:
            raise UserError(f"--fit_problems={name}: --problems measures on the same file; name another one")


# ----- how completions start


def append_words(problems: list[Problem], words: str) -> list[Problem]:
    """The problems with `words` appended to their prompts."""
    return [dataclasses.replace(problem, prompt=f"{problem.prompt} {words}") for problem in problems]


def opening_words(family: Family) -> tuple[list[str], list[str]]:
    """(words that start a careful solution, words that start any other solution) of the family."""
    careful = next(iter(family.styles.values()))  # `styles` maps words to styles, of which the first is the careful one
    return ([word for word, style in family.styles.items() if style == careful],
            [word for word, style in family.styles.items() if style != careful])


def is_careful(family: Family, tokenizer: Tokenizer, tokens_P: np.ndarray) -> np.ndarray:
    """bool[P]: whether a completion whose first token is the one in `tokens_P` starts in the family's careful style."""
    careful, _ = opening_words(family)
    return np.array([tokenizer.decode([token]) in careful for token in tokens_P])


def difference_of_means(residuals_PxD: np.ndarray, careful_P: Optional[np.ndarray]) -> Optional[np.ndarray]:
    """f[D]: the mean residual of the problems where the bool `careful_P` is true, minus the mean of all other problems
    (Marks and Tegmark, arXiv 2310.06824). None if `careful_P` is None, or the same for all problems."""
    if careful_P is None or careful_P.all() or not careful_P.any():
        return None
    return residuals_PxD[careful_P].mean(0) - residuals_PxD[~careful_P].mean(0)


# ----- the vectors


def means(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem]) -> np.ndarray:
    """f64[D]: a difference of two means of the residual after --layer at the last token of prompts. If --problems is a
    synthetic family: the mean over problems whose completion starts in the careful style, minus the mean over all other
    problems; UserError if either group is empty. Otherwise: the mean over prompts followed by the words of --opening,
    minus the mean over prompts alone."""
    residuals_LxPxD, tokens_P = read_prompt_ends(loaded, problems)
    residuals_PxD, family = residuals_LxPxD[config.layer], FAMILIES.get(config.kept.source.problems)
    if family is None:
        opened_LxPxD, _ = read_prompt_ends(loaded, append_words(problems, config.opening))
        return (opened_LxPxD[config.layer] - residuals_PxD).mean(0)
    careful_P = is_careful(family, loaded.tokenizer, tokens_P)
    vector_D = difference_of_means(residuals_PxD, careful_P)
    if vector_D is None:
        raise UserError(f"--vector=means: {careful_P.sum()} of {len(problems)} completions start in the careful style; "
                        "some that do and some that do not are needed: raise --num_fit, or take another vector")
    return vector_D


def random(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem],
           like_D: Optional[np.ndarray] = None) -> np.ndarray:
    """A control: a random direction, f[D], as long as the vector of `means`, or as `like_D` if given."""
    like_D = means(config, loaded, problems) if like_D is None else like_D
    return scale_to(like_D, np.random.default_rng(config.kept.seed).standard_normal(loaded.config.d_model))


def pca(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem],
        like_D: Optional[np.ndarray] = None) -> np.ndarray:
    """A control: the first principal component of residuals at the end of prompts, with the length of `means` and its
    sign (a positive dot product). `like_D`, if given, takes the place of means in both."""
    like_D = means(config, loaded, problems) if like_D is None else like_D
    residuals_LxPxD, _ = read_prompt_ends(loaded, problems)
    residuals_PxD = residuals_LxPxD[config.layer]
    _, _, components_KxD = np.linalg.svd(residuals_PxD - residuals_PxD.mean(0), full_matrices=False)
    first_D = components_KxD[0]
    return scale_to(like_D, first_D if first_D @ like_D >= 0 else -first_D)


def scale_to(like_D: np.ndarray, direction_D: np.ndarray) -> np.ndarray:
    """f[D]: `direction_D`, scaled to the length of `like_D`."""
    return direction_D * (np.linalg.norm(like_D) / np.linalg.norm(direction_D))


def trained(config: SteeringConfig, loaded: LanguageModel, problems: list[Problem]) -> np.ndarray:
    """The vector after --layer of the model --vectors, which was trained with one for each layer."""
    if not config.vectors:
        raise UserError("--vector=trained needs --vectors: a run directory of scripts.train --trainable=vector")
    shape = loaded.config.num_layers, loaded.config.d_model
    return trained_vectors("vectors", config.vectors, loading.load_model(config.vectors), shape)[config.layer]


# --vector -> function of (flags, model, problems to fit on) that returns f64[D]
VECTORS: dict[str, Callable] = {"means": means, "random": random, "pca": pca, "trained": trained}


def trained_vectors(flag: str, name: str, loaded: LanguageModel, shape: Optional[tuple] = None) -> np.ndarray:
    """f64[L,D]: the trained vectors of the model `loaded`, one for each layer. Raises UserError if the model has none,
    or if their shape is not `shape` (None: any). The errors name the model as --`flag`=`name`."""
    arrays = [x for leaf, x in loaded.params["layers"].items() if leaf in ("vector", "first_vector")]
    if not arrays:
        raise UserError(f"--{flag}={name} has no vectors: name a run directory of scripts.train --trainable=vector or "
                        "first_vector")
    vectors_LxD = np.asarray(arrays[0], np.float64)
    if shape not in (None, vectors_LxD.shape):
        raise UserError(f"--{flag}={name}: its vectors are {vectors_LxD.shape[0]} of width {vectors_LxD.shape[1]}, and "
                        f"--model needs {shape[0]} of width {shape[1]}; take a model of the same shape")
    return vectors_LxD
