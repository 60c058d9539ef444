"""What training changed in the weights: how many of them moved, and how few directions the change has.

That few move is the claim of "RL finetunes small subnetworks" (arXiv 2505.11711), whose tolerance is absolute, 1e-5;
here it is relative to the weight, so that it means the same for large and small ones.
"""

from typing import Optional

import numpy as np

from rlvr_jax import adapters, model
from rlvr_jax.errors import UserError

TOLERANCE = 1e-5  # of a weight's own size
TOP = (1, 4, 16)  # singular values


def tensors(params: model.Params) -> dict[str, np.ndarray]:
    """Every weight by name, an adapter merged into it, those of the layers one by one: "embed", "layers/q/0"."""
    plain = adapters.merge(params)
    whole = {name: np.asarray(x) for name, x in plain.items() if name != "layers"}
    return whole | {f"layers/{name}/{i}": row for name, x in plain["layers"].items() for i, row in enumerate(
        np.asarray(x))}


def spectrum(difference: np.ndarray) -> Optional[dict]:
    """Of a matrix: `stable_rank`, its squared Frobenius norm over its largest squared singular value, and `top`, the
    shares of that norm in its TOP largest singular values. None for a vector, and where nothing changed."""
    if difference.ndim != 2 or not difference.any():
        return None
    wide = difference.astype(np.float64)
    gram = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
    return {"stable_rank": float(squares.sum() / squares[0]),
            "top": {str(k): float(squares[:k].sum() / squares.sum()) for k in TOP}}


def weight_difference(before: model.Params, after: model.Params) -> dict:
    """`{"all": ..., "tensors": {name: ...}}`: `size` in numbers, `moved`, the share of them that changed by more than
    TOLERANCE of their own size, `relative`, the norm of the change over that of the weight, and for matrices
    `spectrum`; of all matrices the mean `stable_rank` (None where none changed).

    A tensor that only one of the two has, such as the merged vector of an adapter, is zero in the other. Raises
    UserError for models of other shapes.
    """
    old, new = tensors(before), tensors(after)
    rows, moved = {}, 0
    for name in dict.fromkeys((*old, *new)):
        a, b = (part[name] if name in part else np.zeros_like((old | new)[name]) for part in (old, new))
        if a.shape != b.shape:
            raise UserError(f"--trained has {name} of shape {b.shape}, and --model of {a.shape}: name a model and what "
                            "was trained from it")
        count, size = int(np.sum(np.abs(b - a) > TOLERANCE * np.abs(a))), float(np.linalg.norm(a))
        moved += count
        rows[name] = {"size": a.size, "moved": count / a.size, "spectrum": spectrum(b - a),
                       "relative": float(np.linalg.norm(b - a)) / size if size else None}
    total = sum(row["size"] for row in rows.values())
    ranks = [row["spectrum"]["stable_rank"] for row in rows.values() if row["spectrum"]]
    return {"all": {"size": total, "moved": moved / total, "stable_rank": float(np.mean(ranks)) if ranks else None},
            "tensors": rows}
