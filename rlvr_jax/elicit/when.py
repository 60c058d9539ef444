"""When, not how: at which tokens a trained model differs from its base, and whether those tokens alone are the gain.

Both read the base's greedy completions and the trained model's. Then the base writes again, and at some of the places
where they differ the trained model's token stands (`swap.Gate`). At all of them that is the trained model itself.
"""

import collections
import dataclasses
import pathlib

import numpy as np

from rlvr_jax.config import WhenConfig
from rlvr_jax.elicit import when_page
from rlvr_jax.elicit.change import weight_change
from rlvr_jax.elicit.hybrid import recovered
from rlvr_jax.elicit.swap import Gate, swap_draw
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.completions import keep
from rlvr_jax.evaluation.estimators import wilson
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files

ENDS = {"base": Gate(first=0), "trained": Gate()}  # whose text it is
PAIRS = 12  # of tokens that are told


def when(config: WhenConfig) -> dict:
    """Compares `config.model` with `config.trained`; returns the summary, which summary.json of `config.out` holds.

    when.md and when.png show it; `texts/` and `swapped/` keep the completions, from which the same command goes on.
    """
    if not (config.out and config.trained):
        raise UserError("--out and --trained are required: a directory for what is found, and what was trained from "
                        "--model")
    config = dataclasses.replace(config, model=loading.pinned(config.model), trained=loading.pinned(config.trained))
    base, trained = (loading.load_model(name, config.dtype, config.dtype) for name in (config.model, config.trained))
    weights = weight_change(base.params, trained.params)
    if base.tokenizer.to_json() != trained.tokenizer.to_json():
        raise UserError("--trained has another tokenizer than --model: name a model and what was trained from it")
    both = dataclasses.replace(base, params={"base": base.params, "trained": trained.params})

    def written(folder: str, gates: dict[str, Gate], tell) -> dict[str, list[dict]]:
        mine = dataclasses.replace(config, out=str(pathlib.Path(config.out) / folder))
        sets = load_sets(mine, both, lambda stem: (len(gates), 0.0))
        kept = keep(mine, both, sets, what=folder, draw=swap_draw(list(gates.values())), tell=tell)
        rows = [row for one in sets for row in kept[one.name]]
        return {name: rows[i :: len(gates)] for i, name in enumerate(gates)}

    texts = written("texts", ENDS, token_columns)
    gates = make_gates(config, texts["base"])
    swapped = written("swapped", gates, swap_columns)
    done = texts | swapped
    right = {name: np.array([row["correct"] for row in rows], float) for name, rows in done.items()}
    summary = {"n": len(right["base"]), "texts": {name: reading(rows, both.tokenizer) for name, rows in texts.items()},
               "swapped": {name: outcome(rows, right["base"], right["trained"], right[name])
                           for name, rows in done.items()},
               "gates": {name: gate._asdict() | {"first": min(gate.first, config.max_new_tokens)}
                         for name, gate in gates.items()},
               "weights": weights, "flags": dataclasses.asdict(config)}
    out = pathlib.Path(config.out)
    files.write_whole(out / "when.md", when_page.page(summary))
    when_page.draw(summary, out / "when.png")
    files.write_json(out / "summary.json", summary)
    return summary


def outcome(rows: list[dict], base_P: np.ndarray, trained_P: np.ndarray, right_P: np.ndarray) -> dict:
    """Of one gate: accuracy with Wilson's interval, the share of `tokens` swapped, and what it recovers of the gain."""
    accuracy, (share, interval) = float(right_P.mean()), recovered(base_P, trained_P, right_P)
    return {"accuracy": accuracy, "interval": wilson(accuracy, len(rows)),
            "tokens": sum(row["swapped"] for row in rows) / sum(row["num_tokens"] for row in rows),
            "recovered": share, "recovered_interval": interval}


def swap_columns(rollouts, texts, judged) -> list[dict]:
    """`swapped`: how many tokens of each completion were the trained model's."""
    counts = np.sum(rollouts.noted["swapped"] & rollouts.completion_mask, -1)
    return [{"swapped": int(n)} for n in counts[: len(texts)]]


def token_columns(rollouts, texts, judged) -> list[dict]:
    """Besides, for every token: the likeliest of `base` and of `trained`, as ids, and `kl`."""
    return [one | {name: rollouts.noted[name][i][rollouts.completion_mask[i]].tolist()
                   for name in ("base", "trained", "kl")}
            for i, one in enumerate(swap_columns(rollouts, texts, judged))]


def make_gates(config: WhenConfig, rows: list[dict]) -> dict[str, Gate]:
    """The gates by name. `rows` are the base's text, whose tokens say where KL is among the largest.

    Of each --shares there is a control: as many swaps, at random ones of the places where the two differ.
    """
    kls, differ = (np.concatenate([column(row) for row in rows]) for column in (lambda row: row["kl"], differing))
    gates = {f"first {k}": Gate(first=k) for k in config.first}
    for share in config.shares:
        least = np.sort(kls)[::-1][max(round(share * len(kls)), 1) - 1]
        chance = float(np.sum(differ & (kls >= least)) / max(differ.sum(), 1))
        gates |= {f"largest KL, {100 * share:g} %": Gate(least=float(least)),
                  f"at random, as many as {100 * share:g} %": Gate(chance=chance)}
    return gates


def differing(row: dict) -> np.ndarray:
    """bool[T]: where the likeliest tokens of the two differ."""
    return np.array(row["base"]) != np.array(row["trained"])


def reading(rows: list[dict], tokenizer) -> dict:
    """Of one text: the share of tokens `changed`, how many of these are first tokens (`first_of_changed`, None where
    nothing changed), the mean `kl`, `changed` and `kl` `by_position` from 1 on, with the number of `tokens` there, and
    the pairs of likeliest tokens that differ, [base's, trained's, count], the most frequent first.
    """
    lengths = np.array([len(row["kl"]) for row in rows])
    mask_NxT = np.arange(lengths.max())[None, :] < lengths[:, None]
    changed_NxT, kl_NxT = np.zeros(mask_NxT.shape), np.zeros(mask_NxT.shape)
    changed_NxT[mask_NxT] = np.concatenate([differing(row) for row in rows])
    kl_NxT[mask_NxT] = np.concatenate([row["kl"] for row in rows])
    counts_T = mask_NxT.sum(0)
    pairs = collections.Counter((a, b) for row in rows for a, b in zip(row["base"], row["trained"]) if a != b)
    return {"tokens": int(counts_T.sum()), "changed": float(changed_NxT.sum() / counts_T.sum()),
            "first_of_changed": float(changed_NxT[:, 0].sum() / changed_NxT.sum()) if changed_NxT.any() else None,
            "kl": float(kl_NxT.sum() / counts_T.sum()),
            "by_position": [{"tokens": int(n), "changed": float(x / n), "kl": float(kl / n)}
                            for n, x, kl in zip(counts_T, changed_NxT.sum(0), kl_NxT.sum(0))],
            "pairs": [[*(tokenizer.backend.decode([i], skip_special_tokens=False) for i in pair), count]
                      for pair, count in pairs.most_common(PAIRS)]}
