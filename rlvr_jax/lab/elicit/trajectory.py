"""Projects a run's change of the weights onto one direction per weight tensor, given by the run's first checkpoints.

RELEX (arXiv 2605.21468): for each weight tensor, the differences between the first N checkpoints and the start of the
run are the rows of M [N,K]; the direction is M's first right singular vector v [K]. A checkpoint's coefficient is the
dot product of its difference and v. A straight line is fitted by least squares to the coefficients, over the steps or
over the summed learning rate, and extrapolated to a later step. N checkpoints, L layers, K numbers of a tensor.
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
    """The projection of a model onto the rank-1 direction of its run's first checkpoints."""

    rank1_steps: int = flag(0, "project the weight change of --model, a run directory, onto the rank-1 direction of "
                            "its checkpoints up to this step, which its --keep_every has kept (RELEX); 0: do not "
                            "project", minimum=0)
    rank1_at: int = flag(0, "set the coefficient of that direction to the value at this step of a straight line fitted "
                         "to those checkpoints; 0: to that of --model", minimum=0)
    rank1_by: str = flag("steps", "variable of that line: steps, or rate: the learning rate summed up to each step, "
                         "because a falling learning rate makes later steps smaller", ["steps", "rate"])


def project_tensor(differences_NxK: np.ndarray, later_K: np.ndarray, times_N: list[float],
                   at: Optional[float] = None) -> tuple[np.ndarray, dict]:
    """Projects `later_K`, the change of one tensor in a later checkpoint, onto the first right singular vector of its
    changes in the first N checkpoints, `differences_NxK`. Returns (new change f64[K], dict of sums of squares). A
    change's coefficient is its dot product with that vector. The new change is the vector times the coefficient of
    `later_K` or, if `at` is given, times the value at `at` of a line fitted to the N coefficients over `times_N` (steps
    or summed learning rates). The sums of squares are of: the N changes (`all`), their coefficients (`direction`),
    `later_K` (`later`), its coefficient (`later_direction`), and the N coefficients' distances from their mean
    (`spread`) and from the line (`off_line`)."""
    _, vectors_NxN = np.linalg.eigh(differences_NxK @ differences_NxK.T)  # M's left singular vectors, largest last
    direction_K = vectors_NxN[:, -1] @ differences_NxK
    direction_K /= np.linalg.norm(direction_K) or 1.0  # stays 0 for a tensor that did not change
    coefficients_N, later_coefficient = differences_NxK @ direction_K, later_K @ direction_K
    line = np.polyfit(times_N, coefficients_N, 1)
    return (later_coefficient if at is None else np.polyval(line, at)) * direction_K, {
        "all": np.sum(differences_NxK**2), "direction": np.sum(coefficients_N**2),
        "later": np.sum(later_K**2), "later_direction": later_coefficient**2,
        "spread": np.sum((coefficients_N - coefficients_N.mean())**2),
        "off_line": np.sum((coefficients_N - np.polyval(line, times_N))**2)}


def summed_rate(flags: dict, step: int) -> float:
    """The learning rate of a run with these flags, summed over all optimiser updates up to `step`. Raises UserError for
    a run with resets, each of which starts the schedule again."""
    if flags.get("reset_every") or flags.get("reset_patience"):
        raise UserError("--rank1_by=rate: after each reset of this run its schedule started again, so that the sum is "
                        "not known; give --rank1_by=steps")
    updates = flags.get("num_passes", 1) * flags.get("num_minibatches", 1)  # of the optimiser in each step
    optimizer = learner.OptimizerConfig.from_flags(**{
        name: flags[name] for name in learner.OptimizerConfig().as_flags() if name in flags})
    rates = learner.learning_rates(optimizer, flags["num_steps"] * updates)(np.arange(step * updates))
    return float(np.broadcast_to(rates, step * updates).sum(dtype=np.float64))


def merged_weights(params: model.Params) -> dict[tuple, np.ndarray]:
    """{path: array} of all weights, adapters merged: [L,K] for a tensor of the layers, [1,K] for another tensor."""
    flat = traverse_util.flatten_dict(adapters.merge(params))
    return {path: np.asarray(x).reshape(len(x) if path[0] == "layers" else 1, -1) for path, x in flat.items()}


def project_run(config: TrajectoryConfig, name: str, loaded: LanguageModel) -> tuple[LanguageModel, dict]:
    """Projects `loaded`, the model of run `name` (DIR or DIR@STEP): each tensor of each layer onto its own direction.
    Returns (projected model, {"rank1": numbers}); without --rank1_steps, (`loaded`, {}). The numbers for all tensors:
    `checkpoints`, the steps that give the directions; `explained`, the share of the squared change of these checkpoints
    that is along the directions; `kept`, the same share of the change of `loaded`; `linear`, R^2 of the lines. All
    checkpoints are held in memory. Raises UserError if the run, its base model or its first checkpoints are missing."""
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
    later, *first = map(merged_weights, (loaded.params, *checkpoints))  # {path: [L,K]} of each model
    start = {path: np.zeros_like(x) for path, x in later.items()}  # a vector starts at 0: the base model has none
    start |= merged_weights(loading.load_model(metas[0]["flags"]["model"]).params)
    time_of = functools.partial(summed_rate, metas[0]["flags"]) if config.rank1_by == "rate" else float
    times_N, at = [time_of(step) for step in steps], time_of(config.rank1_at) if config.rank1_at else None
    new, sums = {}, []
    for path, start_LxK in start.items():
        projected = []
        for i, start_K in enumerate(start_LxK):
            *changes_NxK, later_K = ((weights[path][i] - start_K).astype(np.float64) for weights in (*first, later))
            projected.append(project_tensor(np.stack(changes_NxK), later_K, times_N, at))
        projections_LxK, squares = zip(*projected)
        new[path] = start_LxK + np.stack(projections_LxK).astype(np.float32)
        sums += squares
    total = {key: float(sum(each[key] for each in sums)) for key in sums[0]}
    shapes = {path: x.shape for path, x in traverse_util.flatten_dict(adapters.merge(loaded.params)).items()}
    params = traverse_util.unflatten_dict({path: x.reshape(shapes[path]) for path, x in new.items()})
    return dataclasses.replace(loaded, params=params), {"rank1": {
        "checkpoints": steps, "explained": share(total["direction"], total["all"]),
        "kept": share(total["later_direction"], total["later"]),
        "linear": 1 - share(total["off_line"], total["spread"])}}


def share(part: float, whole: float) -> float:
    """part / whole; 0 if whole is 0."""
    return part / whole if whole else 0.0
