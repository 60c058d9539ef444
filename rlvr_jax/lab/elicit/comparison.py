"""A base model beside a model trained from it: loaded together, sampled into folders, compared weight by weight.

"RL finetunes small subnetworks" (arXiv 2505.11711) claims that few weights move, with an absolute tolerance of 1e-5.
Here it is relative to the weight, so that it means the same for large and small weights.
"""

import dataclasses
import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax import adapters, model
from rlvr_jax.config import Config
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import Folder, sample_and_keep
from rlvr_jax.evaluation.measure import Benchmark, Sampler
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Rollouts
from rlvr_jax.sampler import Request

TOLERANCE = 1e-5  # of a weight's own size
TOP = (1, 4, 16)  # singular values


def load_as(flag: str, name: str, dtype: str) -> LanguageModel:
    """The model of this name. Raises UserError as `loading.load_model` does, but about this flag instead of --model."""
    try:
        return loading.load_model(name, dtype, dtype)
    except UserError as error:
        raise UserError(str(error).replace("--model", flag)) from None


def load_trained(name: str, base: LanguageModel, base_flag: str, dtype: str) -> LanguageModel:
    """The model of --trained, with the base model's window. `base_flag`, such as "--model=DIR", names the base model in
    errors.

    Raises UserError for an empty name, and for a model whose shape or tokenizer is not the base model's.
    """
    if not name:
        raise UserError("--trained is required: a model that was trained from --model")
    trained = load_as("--trained", name, dtype)
    config = dataclasses.replace(trained.config, max_seq_len=base.config.max_seq_len)
    for what, same in (("shape", config == base.config),
                       ("tokenizer", trained.tokenizer.to_json() == base.tokenizer.to_json())):
        if not same:
            raise UserError(f"--trained={name} has another {what} than {base_flag}; take a model that was trained "
                            "from it")
    return dataclasses.replace(trained, config=config)


def noted_numbers(rollouts: Rollouts, texts: list, judged: list) -> list[dict]:
    """Columns of a kept row (`completions.sample_and_keep`): the numbers that the sampler notes of each completion."""
    noted = {name: values for name, values in (rollouts.noted or {}).items() if values.ndim == 1}
    return [{name: values[i].item() for name, values in noted.items()} for i in range(len(texts))]


def sample_into(name: str, command: str, config: Config, sampler: Sampler, benchmarks: list[Benchmark],
                columns: Callable = noted_numbers) -> list[dict]:
    """The rows of all benchmarks, kept in the folder `name` of the command's --out (`completions.sample_and_keep`)."""
    flags = config.as_flags()
    path = str(pathlib.Path(flags["out"]) / name)
    folder = Folder(path, command, config.with_flags(out=path), flags["resume"], name)
    rows = sample_and_keep(folder, sampler, benchmarks, Request(flags["seed"], 0), flags["rows_per_call"], columns)
    return [row for part in rows.values() for row in part]


def share_of_tokens(rows: list[dict], column: str) -> float:
    """The tokens that this column counts ("steered", "swapped"), divided by all generated tokens."""
    return sum(row[column] for row in rows) / sum(row["num_tokens"] for row in rows)


def weight_difference(before: model.Params, after: model.Params) -> dict:
    """What training changed in a model's weights, adapters merged: `{"all": ..., "tensors": {name: ...}}`.

    A tensor has `size` numbers. `moved` is the share that changed by more than TOLERANCE of their size, `relative` the
    norm of the change divided by the norm of the weight; `spectrum` is for matrices. "all" has the mean `stable_rank`
    of the matrices, None if none changed. A tensor that one model lacks, such as a merged vector, counts as zero there.
    """
    old, new = _layer_tensors(before), _layer_tensors(after)
    rows, moved = {}, 0
    for name in dict.fromkeys((*old, *new)):
        a, b = (tensors[name] if name in tensors else np.zeros_like((old | new)[name]) for tensors in (old, new))
        count, norm = int(np.sum(np.abs(b - a) > TOLERANCE * np.abs(a))), float(np.linalg.norm(a))
        moved += count
        rows[name] = {"size": a.size, "moved": count / a.size, "spectrum": spectrum(b - a),
                      "relative": float(np.linalg.norm(b - a)) / norm if norm else None}
    total = sum(row["size"] for row in rows.values())
    ranks = [row["spectrum"]["stable_rank"] for row in rows.values() if row["spectrum"]]
    return {"all": {"size": total, "moved": moved / total, "stable_rank": float(np.mean(ranks)) if ranks else None},
            "tensors": rows}


def _layer_tensors(params: model.Params) -> dict[str, np.ndarray]:
    """Every weight by name, one for each layer: "embed", "layers/q/0"."""
    merged = adapters.merge(params)
    return {name: np.asarray(x) for name, x in merged.items() if name != "layers"} | {
        f"layers/{name}/{i}": row for name, x in merged["layers"].items() for i, row in enumerate(np.asarray(x))}


def spectrum(difference: np.ndarray) -> Optional[dict]:
    """`stable_rank`, the squared Frobenius norm divided by the largest squared singular value, and `top`, the share of
    that norm in the TOP largest singular values. None for a vector, and for a change of zero."""
    if difference.ndim != 2 or not difference.any():
        return None
    wide = difference.astype(np.float64)
    gram = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
    return {"stable_rank": float(squares.sum() / squares[0]),
            "top": {str(k): float(squares[:k].sum() / squares.sum()) for k in TOP}}
