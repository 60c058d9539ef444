"""A run's change of the weights, projected on the one direction in which its first checkpoints lie best.

RELEX (arXiv 2605.21468): of every weight tensor, stack the differences to the start of the run's first checkpoints,
M [N,K], and take its first right singular vector v [K]. A checkpoint's coefficient is its difference times v. Nearly a
straight line over the steps, it is fitted by least squares and drawn on to a later step.

N checkpoints, L layers, K numbers of a tensor.
"""

import dataclasses

import numpy as np
from flax import traverse_util

from rlvr_jax import adapters, model
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import checkpoint


class TrajectoryConfig(Config):
    """The model put on the rank-1 direction of its run's first checkpoints."""

    rank1_steps: int = flag(0, "of what --model, a run directory, has changed in its base's weights keep only what "
                            "lies along the rank-1 direction of its checkpoints up to this step, kept with "
                            "--keep_every (RELEX); 0: everything", minimum=0)
    rank1_at: int = flag(0, "go along that direction as far as a straight line through those checkpoints says for "
                         "this step; 0: as far as --model went", minimum=0)


def rank1(differences_NxK: np.ndarray, later_K: np.ndarray, steps: list[int], at: int = 0) -> tuple[np.ndarray, dict]:
    """(the new difference f64[K], sums of squares): later_K on the direction, or the line's place at step `at`.

    The sums: `all` of the N differences and `direction` of their coefficients; `later` of later_K and
    `later_direction` of its coefficient; `spread` of the coefficients about their mean and `off_line` about the line.
    """
    values_N, vectors_NxN = np.linalg.eigh(differences_NxK @ differences_NxK.T)  # of few rows: the SVD of M by M M'
    direction_K = vectors_NxN[:, -1] @ differences_NxK
    direction_K /= np.linalg.norm(direction_K) or 1.0  # a tensor that did not change stays
    coefficients_N, its = differences_NxK @ direction_K, later_K @ direction_K
    line = np.polyfit(steps, coefficients_N, 1)
    return (np.polyval(line, at) if at else its) * direction_K, {
        "all": np.sum(differences_NxK**2), "direction": np.sum(coefficients_N**2),
        "later": np.sum(later_K**2), "later_direction": its**2,
        "spread": np.sum((coefficients_N - coefficients_N.mean())**2),
        "off_line": np.sum((coefficients_N - np.polyval(line, steps))**2)}


def weights(params: model.Params) -> dict[tuple, np.ndarray]:
    """Every weight by its path, an adapter merged into it: [L,K] of the layers, [1,K] of the rest."""
    flat = traverse_util.flatten_dict(adapters.merge(params))
    return {path: np.asarray(x).reshape(len(x) if path[0] == "layers" else 1, -1) for path, x in flat.items()}


def moved(config: TrajectoryConfig, name: str, loaded: LanguageModel) -> tuple[LanguageModel, dict]:
    """The run's model on its rank-1 direction, each layer's tensor by itself, and {"rank1": numbers} of all together.

    `checkpoints` that gave the direction; which share of their squared change it holds (`explained`), and of the
    model's (`kept`); `linear`, the coefficient of determination of the lines. Every checkpoint is held in memory.
    Without --rank1_steps the model as it is, and {}.

    Raises UserError where the run, its base or its first checkpoints are missing.
    """
    if not config.rank1_steps:
        if config.rank1_at:
            raise UserError("--rank1_at needs --rank1_steps: the step up to which checkpoints give the direction")
        return loaded, {}
    directory = name.partition("@")[0]
    steps = [step for step in checkpoint.steps(directory) if 0 < step <= config.rank1_steps]
    if len(steps) < 2:
        raise UserError(f"--rank1_steps={config.rank1_steps}: {directory} has {len(steps)} checkpoints up to that "
                        "step, and a direction needs two or more: train it with --save_every=10 --keep_every=10")
    _, checkpoints, metas = zip(*(checkpoint.restore_model(directory, str(step)) for step in steps))
    if not metas[0]["flags"].get("model"):
        raise UserError(f"--rank1_steps={config.rank1_steps}: {directory} did not start from a model")
    later, *first = map(weights, (loaded.params, *checkpoints))
    start = {path: np.zeros_like(x) for path, x in later.items()}  # of a vector, which the base lacks
    start |= weights(loading.load_model(metas[0]["flags"]["model"]).params)
    new, sums = {}, []
    for path, start_LxK in start.items():
        made = [rank1(np.stack([each[path][i] - row for each in first]).astype(np.float64),
                      (later[path][i] - row).astype(np.float64), steps, config.rank1_at)
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
