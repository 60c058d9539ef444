"""A run's change of the weights, projected on the one direction in which its first checkpoints lie best.

RELEX (arXiv 2605.21468): of every weight tensor, stack the differences to the start of the run's first checkpoints,
M [N,K], and take its first right singular vector v [K]. A checkpoint's coefficient is its difference times v. A
straight line through the coefficients, over the steps or over the summed learning rate, is fitted by least squares and
drawn on to a later step.

N checkpoints, L layers, K numbers of a tensor.
"""

import dataclasses
import functools
from typing import Optional

import numpy as np
from flax import traverse_util

from rlvr_jax import adapters, learner, model
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import checkpoint


class TrajectoryConfig(Config):
    """The model put on the rank-1 direction of its run's first checkpoints."""

    rank1_steps: int = flag(0, "of what --model, a run directory, has changed in its base model's weights keep only "
                            "what lies along the rank-1 direction of its checkpoints up to this step, kept with "
                            "--keep_every (RELEX); 0: everything", minimum=0)
    rank1_at: int = flag(0, "go along that direction as far as a straight line through those checkpoints says for "
                         "this step; 0: as far as --model went", minimum=0)
    rank1_by: str = flag("steps", "what the line is drawn over: steps, or the learning rate summed up to each step, "
                         "as a rate that falls makes later steps shorter", ["steps", "rate"])


def project_tensor(differences_NxK: np.ndarray, later_K: np.ndarray, places_N: list[float],
          at: Optional[float] = None) -> tuple[np.ndarray, dict]:
    """(the new difference f64[K], sums of squares): later_K on the direction, or where the line is at the place `at`.
    The checkpoints stand at `places_N`: steps, or summed learning rates.

    The sums: `all` of the N differences and `direction` of their coefficients; `later` of later_K and
    `later_direction` of its coefficient; `spread` of the coefficients about their mean and `off_line` about the line.
    """
    values_N, vectors_NxN = np.linalg.eigh(differences_NxK @ differences_NxK.T)  # of few rows: the SVD of M by M M'
    direction_K = vectors_NxN[:, -1] @ differences_NxK
    direction_K /= np.linalg.norm(direction_K) or 1.0  # a tensor that did not change stays
    coefficients_N, its = differences_NxK @ direction_K, later_K @ direction_K
    line = np.polyfit(places_N, coefficients_N, 1)
    return (its if at is None else np.polyval(line, at)) * direction_K, {
        "all": np.sum(differences_NxK**2), "direction": np.sum(coefficients_N**2),
        "later": np.sum(later_K**2), "later_direction": its**2,
        "spread": np.sum((coefficients_N - coefficients_N.mean())**2),
        "off_line": np.sum((coefficients_N - np.polyval(line, places_N))**2)}


def summed_rate(flags: dict, step: int) -> float:
    """The learning rate of a run with these flags, summed over the updates up to a step. Raises UserError for a run
    with resets, after which the schedule starts again."""
    if flags.get("reset_every") or flags.get("reset_patience"):
        raise UserError("--rank1_by=rate: after each reset of this run its schedule started again, so that the sum is "
                        "not known; give --rank1_by=steps")
    names, updates = learner.OptimizerConfig().as_flags(), flags.get("num_passes", 1) * flags.get("num_minibatches", 1)
    optimizer = learner.OptimizerConfig.from_flags(**{name: flags[name] for name in names if name in flags})
    rates = learner.learning_rates(optimizer, flags["num_steps"] * updates)(np.arange(step * updates))
    return float(np.broadcast_to(rates, step * updates).sum(dtype=np.float64))


def merged_weights(params: model.Params) -> dict[tuple, np.ndarray]:
    """Every weight by its path, an adapter merged into it: [L,K] of the layers, [1,K] of the rest."""
    flat = traverse_util.flatten_dict(adapters.merge(params))
    return {path: np.asarray(x).reshape(len(x) if path[0] == "layers" else 1, -1) for path, x in flat.items()}


def project_run(config: TrajectoryConfig, name: str, loaded: LanguageModel) -> tuple[LanguageModel, dict]:
    """The run's model on its rank-1 direction, each layer's tensor by itself, and {"rank1": numbers} of all together.

    `checkpoints` that gave the direction; which share of their squared change it holds (`explained`), and of the
    model's (`kept`); `linear`, the coefficient of determination of the lines. Every checkpoint is held in memory.
    Without --rank1_steps the model as it is, and {}.

    Raises UserError where the run, its base model or its first checkpoints are missing.
    """
    if not config.rank1_steps:
        if config.rank1_at or config.rank1_by != "steps":
            raise UserError("--rank1_at, or --rank1_by, needs --rank1_steps: the step up to which checkpoints give the "
                            "direction")
        return loaded, {}
    directory = name.partition("@")[0]
    steps = [step for step in checkpoint.steps(directory) if 0 < step <= config.rank1_steps]
    if len(steps) < 2:
        raise UserError(f"--rank1_steps={config.rank1_steps}: {directory} has {len(steps)} checkpoints up to that "
                        "step, and a direction needs two or more: train it with --save_every=10 --keep_every=10")
    _, checkpoints, metas = zip(*(checkpoint.restore_model(directory, str(step)) for step in steps))
    if not metas[0]["flags"].get("model"):
        raise UserError(f"--rank1_steps={config.rank1_steps}: {directory} did not start from a model")
    later, *first = map(merged_weights, (loaded.params, *checkpoints))
    start = {path: np.zeros_like(x) for path, x in later.items()}  # of a vector, which the base model lacks
    start |= merged_weights(loading.load_model(metas[0]["flags"]["model"]).params)
    place = functools.partial(summed_rate, metas[0]["flags"]) if config.rank1_by == "rate" else float
    places_N, at = [place(step) for step in steps], place(config.rank1_at) if config.rank1_at else None
    new, sums = {}, []
    for path, start_LxK in start.items():
        made = [project_tensor(np.stack([each[path][i] - row for each in first]).astype(np.float64),
                      (later[path][i] - row).astype(np.float64), places_N, at)
                for i, row in enumerate(start_LxK)]
        new[path], sums = start_LxK + np.stack([x for x, _ in made]).astype(np.float32), sums + [s for _, s in made]
    total = {key: float(sum(each[key] for each in sums)) for key in sums[0]}
    shapes = {path: x.shape for path, x in traverse_util.flatten_dict(adapters.merge(loaded.params)).items()}
    params = traverse_util.unflatten_dict({path: x.reshape(shapes[path]) for path, x in new.items()})
    return dataclasses.replace(loaded, params=params), {"rank1": {
        "checkpoints": steps, "explained": share(total["direction"], total["all"]),
        "kept": share(total["later_direction"], total["later"]),
        "linear": 1 - share(total["off_line"], total["spread"])}}


def share(part: float, whole: float) -> float:
    """0 of nothing."""
    return part / whole if whole else 0.0
