"""How much of a trained model's gain its base recovers, steered where a gate says so (arXiv 2510.07364).

Vector and gate are fitted on one split, strength and rate chosen on another, and the arms measured on a third. After
the fit the hybrid and its controls ask the base alone; oracles ask the trained model at every token, and are named so.
"""

import dataclasses
import functools
import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax import sampler
from rlvr_jax.config import HybridConfig
from rlvr_jax.elicit import gate, steering, vectors
from rlvr_jax.elicit.oracles import ORACLES, oracle_draw
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.completions import Asked, keep
from rlvr_jax.evaluation.estimators import RESAMPLES, shown, wilson
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.loading import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

LEAST_GAP = 0.10  # between base and trained model, below which no share of it is reported


def hybrid(config: HybridConfig) -> dict:
    """Measures all arms; returns what summary.json in `config.out` then holds, and table.md shows.

    Every completion is kept in a folder of its arm. The same configuration again continues where it was stopped.
    """
    if not config.out:
        raise UserError("--out is required: the directory for summary.json, table.md and the completions of each arm")
    config = dataclasses.replace(config, **{name: loading.pinned(getattr(config, name))
                                            for name in ("model", "trained", "vectors")})
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    trained = gate.load_trained(config, loaded)
    fitted = gate.fit(config, loaded, trained)
    chosen, sets = choose(config, loaded, fitted), load_sets(config, loaded, lambda stem: (1, 0.0))
    rows = {"base": ask(config, loaded, sets, "base")} | own_arms(config, loaded, sets, fitted, chosen)
    rows |= {"trained": ask(config, trained, sets, "trained")}
    params = {"model": loaded.params, "trained": trained.params,
              "steering": fitted.steering(chosen["strength"], chosen["rate"])}
    rows |= {name: ask(config, loaded, sets, name, oracle_draw(name, config.layer), params) for name in ORACLES}
    told = {name: arm_summary(rows[name], rows["base"], rows["trained"]) | {"oracle": name in ORACLES} for name in rows}
    curve = [{"rate": rate} | told.pop(f"rate_{rate:g}") for rate in sorted(config.rates)]
    summary = {"n": len(rows["base"]), "gap": told["trained"]["accuracy"] - told["base"]["accuracy"], "chosen": chosen,
               "gate": fitted.gate, "arms": told, "curve": curve, "flags": dataclasses.asdict(config)}
    files.write_whole(pathlib.Path(config.out) / "table.md", table(summary))
    files.write_json(pathlib.Path(config.out) / "summary.json", summary)
    return summary


def ask(config: HybridConfig, loaded: LanguageModel, sets: list[Asked], name: str, draw: Optional[Callable] = None,
        params: Optional[dict] = None) -> list[dict]:
    """The rows of one arm; `draw` and its `params` are as in `steering.steered_draw`."""
    own = dataclasses.replace(config, out=str(pathlib.Path(config.out) / name))
    sample = sampler_of(loaded.config, tuple(loaded.tokenizer.eos_ids), config.max_new_tokens, config.num_slots, draw)
    kept = keep(own, dataclasses.replace(loaded, params=params or loaded.params), sets, what=name, sample=sample,
                tell=steering.columns if draw else None)
    return [row for rows in kept.values() for row in rows]


@functools.lru_cache(8)
def sampler_of(shape: ModelConfig, eos_ids: tuple, max_new_tokens: int, num_slots: int, draw: Optional[Callable]):
    """One compiled program for all arms that differ in numbers alone: most of the time of small models is compiling."""
    return sampler.make_sampler(shape, eos_ids=eos_ids, max_new_tokens=max_new_tokens, num_slots=num_slots, draw=draw)


def choose(config: HybridConfig, loaded: LanguageModel, fitted: gate.Fitted) -> dict:
    """The strength and the rate that solve most problems of the split dev, or of --fit_problems; of several those that
    steer the fewest tokens."""
    apart = dataclasses.replace(config, heldout_split="dev", problems=config.fit_problems or config.problems)
    sets, draw, found = load_sets(apart, loaded, lambda stem: (1, 0.0)), steering.steered_draw("gate", config.layer), []
    for strength in config.strengths:
        for rate in config.rates:
            rows = ask(config, loaded, sets, f"dev/strength_{strength:g}_rate_{rate:g}", draw,
                       {"model": loaded.params, "steering": fitted.steering(strength, rate)})
            found.append({"strength": strength, "rate": rate, "steered": steering.share(rows),
                          "accuracy": float(np.mean([row["correct"] for row in rows]))})
    return max(found, key=lambda one: (one["accuracy"], -one["steered"]))


def own_arms(config: HybridConfig, loaded: LanguageModel, sets: list[Asked], fitted: gate.Fitted,
             chosen: dict) -> dict[str, list[dict]]:
    """The rows of the hybrid at every rate, and of its controls. Nothing here has the trained model."""
    def arm(name, where, values):
        return ask(config, loaded, sets, name, steering.steered_draw(where, config.layer),
                   {"model": loaded.params, "steering": values})

    def turned(direction):  # another vector, as long
        return values.replace(vector=np.asarray(chosen["strength"] * direction(
            config, loaded, fitted.problems, fitted.vector_D), np.float32))

    curve = {f"rate_{rate:g}": arm(f"rate_{rate:g}", "gate", fitted.steering(chosen["strength"], rate))
             for rate in config.rates}
    main, values = curve[f"rate_{chosen['rate']:g}"], fitted.steering(chosen["strength"], chosen["rate"])
    controls = {"random_vector": ("gate", turned(vectors.random)), "principal_direction": ("gate", turned(vectors.pca)),
                "random_places": ("shuffled_gate", values.replace(rate=np.float32(steering.share(main)))),
                "always_on": ("generated", values), "first_token": ("first", values)}
    return {"hybrid": main} | curve | {name: arm(name, *how) for name, how in controls.items()}


def arm_summary(rows: list[dict], base: list[dict], trained: list[dict]) -> dict:
    right = [np.array([row["correct"] for row in some], float) for some in (base, trained, rows)]
    share, interval = recovered(*right)
    return {"accuracy": float(right[-1].mean()), "interval": wilson(float(right[-1].mean()), len(rows)),
            "steered": steering.share(rows) if "steered" in rows[0] else None, "recovered": share,
            "recovered_interval": interval}


def recovered(base_P: np.ndarray, trained_P: np.ndarray, hybrid_P: np.ndarray) -> tuple:
    """(share of the gap recovered, its 95 % interval): (hybrid - base) / (trained - base), the interval by a bootstrap
    over problems.

    None, None where the gap is below LEAST_GAP: a ratio of small differences says nothing.
    """
    base, trained, mine = (np.mean(x) for x in (base_P, trained_P, hybrid_P))
    if trained - base < LEAST_GAP - 1e-9:
        return None, None
    places = np.random.default_rng(0).integers(0, len(base_P), (RESAMPLES, len(base_P)))
    bases, traineds, mines = (x[places].mean(-1) for x in (base_P, trained_P, hybrid_P))
    there = traineds > bases
    ratios = (mines - bases)[there] / (traineds - bases)[there]
    return float((mine - base) / (trained - base)), tuple(np.quantile(ratios, (0.025, 0.975)).tolist())


def table(summary: dict) -> str:
    """Markdown: a row for each arm, and for each rate of the curve."""
    flags, chosen, found = summary["flags"], summary["chosen"], summary["gate"]
    arms = summary["arms"] | {f"hybrid, rate {one['rate']:g}": one for one in summary["curve"]}
    rows = [[name + " (oracle)" * one["oracle"], shown(one["accuracy"], one["interval"]), shown(one["steered"]),
             shown(one["recovered"], one["recovered_interval"])] for name, one in arms.items()]
    return "\n".join([
        f"{flags['model']} steered by {flags['vector']} after layer {flags['layer']}, where a gate expects "
        f"{flags['trained']} to differ; {summary['n']} problems, 95 % intervals in brackets.",
        f"Chosen on other problems: strength {chosen['strength']:g}, rate {chosen['rate']:g}. The two models differ at "
        f"{found['differ']:.1%} of tokens; {found['first_of_differ']:.1%} of these are first tokens. AUROC of the gate "
        f"{shown(found['auroc'])}.", "",
        markdown_table(["arm", "accuracy", "steered tokens", "gap recovered"], rows)]) + "\n"
