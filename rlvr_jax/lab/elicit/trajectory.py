"""A run's weight change, projected on the direction in which its first checkpoints moved (RELEX, arXiv 2605.21468).

For every weight tensor, M [N,K] stacks the differences of the run's first checkpoints to its start; the direction is
its first right singular vector v [K]. A checkpoint's coefficient is its difference times v. Over the steps, the
coefficients are nearly a straight line, which a least-squares fit extends to a later step.

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
    """The model with its weight change projected on one direction."""

    rank1_steps: int = flag(0, "project the weight change of --model, a run directory, on the rank-1 direction of its "
                            "checkpoints up to this step, saved with --keep_every (RELEX); 0: do not", minimum=0)
    rank1_at: int = flag(0, "go along that direction as far as a straight line through those checkpoints predicts for "
                         "this step; 0: as far as --model went", minimum=0)


def project_tensor(differences_NxK: np.ndarray, later_K: np.ndarray, steps: list[int],
                   at: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(later_K projected on the direction f64[K], or the line's value at step `at`; squares f64[3,2]).

    The squares are a part and the whole: coefficients and differences; later_K's coefficient and later_K; the distances
    of the coefficients from the line and from their mean.
    """
    values_N, vectors_NxN = np.linalg.eigh(differences_NxK @ differences_NxK.T)  # N is small: cheaper than an SVD of M
    direction_K = vectors_NxN[:, -1] @ differences_NxK
    direction_K /= np.linalg.norm(direction_K) or 1.0  # zero for a tensor that did not change
    coefficients_N, coefficient = differences_NxK @ direction_K, later_K @ direction_K
    line = np.polyfit(steps, coefficients_N, 1)
    squares = [[np.sum(coefficients_N**2), np.sum(differences_NxK**2)], [coefficient**2, np.sum(later_K**2)],
               [np.sum((coefficients_N - np.polyval(line, steps))**2),
                np.sum((coefficients_N - coefficients_N.mean())**2)]]
    return (np.polyval(line, at) if at else coefficient) * direction_K, np.array(squares)


def project_run(config: TrajectoryConfig, name: str, loaded: LanguageModel) -> tuple[LanguageModel, dict]:
    """The run's model on its rank-1 direction, each layer's tensor by itself, and {"rank1": numbers over all tensors}.

    `checkpoints` are the steps that gave the direction; `explained` is the share of their squared change along it,
    `kept` that of the model's change, and `linear` the coefficient of determination of the lines. All checkpoints are
    in memory at once. Without --rank1_steps: the model as it is, and {}.

    Raises UserError if the run, its base or its first checkpoints are missing.
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
    later, *first = map(_merged_weights, (loaded.params, *checkpoints))
    start = {path: np.zeros_like(x) for path, x in later.items()}  # a merged vector starts at zero
    start |= _merged_weights(loading.load_model(metas[0]["flags"]["model"]).params)
    new, squares = {}, np.zeros((3, 2))
    for path, start_LxK in start.items():
        changes = []
        for i, row in enumerate(start_LxK):
            first_NxK = np.stack([(weights[path][i] - row).ravel() for weights in first]).astype(np.float64)
            later_K = (later[path][i] - row).ravel().astype(np.float64)
            change_K, more = project_tensor(first_NxK, later_K, steps, config.rank1_at)
            changes, squares = [*changes, change_K.astype(np.float32).reshape(row.shape)], squares + more
        moved = start_LxK + np.stack(changes)
        new[path] = moved if path[0] == "layers" else moved[0]
    explained, kept, off_line = (part / whole if whole else 0.0 for part, whole in squares.tolist())
    return dataclasses.replace(loaded, params=traverse_util.unflatten_dict(new)), {"rank1": {
        "checkpoints": steps, "explained": explained, "kept": kept, "linear": 1 - off_line}}


def _merged_weights(params: model.Params) -> dict[tuple, np.ndarray]:
    """Every weight by its path, adapters merged: [L,...] of the layers, [1,...] of the rest."""
    return {path: np.asarray(x) if path[0] == "layers" else np.asarray(x)[None]
            for path, x in traverse_util.flatten_dict(adapters.merged(params)).items()}
