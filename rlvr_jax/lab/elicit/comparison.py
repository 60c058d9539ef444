"""Compares a base model with a model trained from it: loads both, samples completions, measures weight differences.

"RL finetunes small subnetworks" (arXiv 2505.11711) reports that few weights change by more than an absolute tolerance
of 1e-5. Here the tolerance is relative to each weight, so that it means the same for large and small weights.
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

TOLERANCE = 1e-5  # a weight has moved if it changed by more than this times its absolute value
TOP = (1, 4, 16)  # `spectrum` gives the shares of this many largest singular values


def load_as(flag: str, name: str, dtype: str) -> LanguageModel:
    """Loads the model `name` in `dtype`. Raises the UserErrors of `load_model`, with `flag` in place of --model."""
    try:
        return loading.load_model(name, dtype, dtype)
    except UserError as error:
        raise UserError(str(error).replace("--model", flag)) from None


def load_trained(name: str, base: LanguageModel, base_flag: str, dtype: str) -> LanguageModel:
    """Loads the model `name` of --trained as `load_as` does, with the context window of the base model. Raises
    UserError for an empty name, and for a model whose shape or tokenizer is not the base model's. Errors call the base
    model `base_flag`, such as "--model=DIR"."""
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
    """Returns {name: number} for each of the completions `texts`: its entries of those arrays in `Rollouts.noted` that
    have shape [B]. The arguments are those of `more` in `measure.sample_and_grade`; `judged` is not used."""
    noted = {name: values for name, values in (rollouts.noted or {}).items() if values.ndim == 1}
    return [{name: values[i].item() for name, values in noted.items()} for i in range(len(texts))]


def sample_into(name: str, command: str, config: Config, sampler: Sampler, benchmarks: list[Benchmark],
                columns: Callable = noted_numbers) -> list[dict]:
    """Samples and grades all benchmarks; returns their rows as one list. Saves the rows in the folder `name` of --out,
    from which an interrupted command resumes. `command` is the name of the script, and `config` has its flags.
    `columns(rollouts, texts, judged)` returns a list: a dict of further columns for each row."""
    flags = config.as_flags()
    path = str(pathlib.Path(flags["out"]) / name)
    folder = Folder(path, command, config.with_flags(out=path), flags["resume"], name)
    rows = sample_and_keep(folder, sampler, benchmarks, Request(flags["seed"], 0), flags["rows_per_call"], columns)
    return [row for part in rows.values() for row in part]


def share_of_tokens(rows: list[dict], column: str) -> float:
    """The sum of `column`, a number of tokens such as "steered", over the number of all tokens of the completions."""
    return sum(row[column] for row in rows) / sum(row["num_tokens"] for row in rows)


def weight_difference(before: model.Params, after: model.Params) -> dict:
    """Compares weights before and after training, adapters merged: `{"all": {...}, "tensors": {name: {...}}}`. Each
    tensor has its `size`; `moved`, the share of its weights that changed by more than TOLERANCE times their absolute
    value; `relative`, the norm of the change divided by the norm before, or None if that was 0; and the `spectrum` of
    the change. "all" has the total `size`, the share `moved` of all weights, and the mean `stable_rank` of the matrices
    that changed, or None if none did. A tensor that only one model has counts as zero in the other."""
    old, new = _named_tensors(before), _named_tensors(after)
    rows, moved = {}, 0
    for name, tensor in (old | new).items():
        start, end = (tensors.get(name, np.zeros_like(tensor)) for tensors in (old, new))
        change, norm = end - start, float(np.linalg.norm(start))
        count = int(np.sum(np.abs(change) > TOLERANCE * np.abs(start)))
        moved += count
        rows[name] = {"size": start.size, "moved": count / start.size, "spectrum": spectrum(change),
                      "relative": float(np.linalg.norm(change)) / norm if norm else None}
    total = sum(row["size"] for row in rows.values())
    ranks = [row["spectrum"]["stable_rank"] for row in rows.values() if row["spectrum"]]
    return {"all": {"size": total, "moved": moved / total, "stable_rank": float(np.mean(ranks)) if ranks else None},
            "tensors": rows}


def _named_tensors(params: model.Params) -> dict[str, np.ndarray]:
    """{name: array} of all weights, adapters merged. Every layer has its own arrays: "layers/q/0" is q of layer 0."""
    merged = adapters.merge(params)
    return {name: np.asarray(x) for name, x in merged.items() if name != "layers"} | {
        f"layers/{name}/{i}": row for name, x in merged["layers"].items() for i, row in enumerate(np.asarray(x))}


def spectrum(difference: np.ndarray) -> Optional[dict]:
    """Returns `{"stable_rank", "top"}` of a matrix, or None for a vector or a matrix of zeros. The stable rank is the
    squared Frobenius norm over the largest squared singular value. "top" maps each k of TOP, as text, to the share of
    the squared norm that is in the k largest singular values."""
    if difference.ndim != 2 or not difference.any():
        return None
    matrix = difference.astype(np.float64)
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix  # the smaller of the two
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
    return {"stable_rank": float(squares.sum() / squares[0]),
            "top": {str(k): float(squares[:k].sum() / squares.sum()) for k in TOP}}
