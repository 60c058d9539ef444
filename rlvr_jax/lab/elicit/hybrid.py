"""How much of a trained model's gain its base recovers, steered at the tokens of a gate (arXiv 2510.07364).

Vector and gate are fitted on one split, strength and rate chosen on another, and the arms measured on a third. After
the fit the hybrid and its controls run the base alone; the arm marked oracle runs the trained model at every token.
"""

import functools
import pathlib
from typing import Callable

import numpy as np

from rlvr_jax import parallel, sampler
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.completions import Folder, sample_and_keep
from rlvr_jax.evaluation.estimators import summarise_outcome, format_estimate
from rlvr_jax.evaluation.measure import Benchmark, Sampler
from rlvr_jax.lab.elicit import gate, steering, vectors
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.sampler import Decoding, Request

ORACLE = "trained_gate"  # the arm that runs the trained model at every token


class HybridConfig(Config):
    """How much of a trained model's gain its base recovers, steered at the tokens of a gate."""

    steering: vectors.SteeringConfig = vectors.SteeringConfig()
    strengths: tuple[float, ...] = flag((1.0, 2.0, 4.0), "times that the vector is added, to choose from", minimum=0)
    rates: tuple[float, ...] = flag((0.02, 0.05, 0.1, 0.2, 0.4), "shares of the tokens it was fitted on at which "
                                    "the gate acts, to choose from; the curve", above=0, maximum=1)


def hybrid(config: HybridConfig) -> dict:
    """Measures all arms; returns what summary.json in --out then holds, and table.md shows. Every completion is kept in
    a folder of its arm. The same configuration again continues where it was stopped."""
    if not config.steering.kept.out:
        raise UserError("--out is required: the directory for summary.json, table.md and the completions of each arm")
    config = vectors.pinned(config)
    kept, layer = config.steering.kept, config.steering.layer
    loaded = loading.load_fixed(kept.choice)
    trained = gate.load_trained(config.steering, loaded)
    fitted = gate.fit(config.steering, loaded, trained)
    chosen, ask = choose(config, loaded, fitted), asker(config, loaded, load_sets(kept, loaded))
    rows = {"base": ask("base", loaded.params)} | arms(config, loaded, ask, fitted, chosen)
    rows |= {"trained": ask("trained", trained.params)}
    rows |= {ORACLE: ask(ORACLE, {"model": loaded.params, "trained": trained.params, "steering": fitted.steering(
        chosen["strength"], chosen["rate"])}, steering.trained_gate_sample_fn(layer))}
    summaries = {name: summarise_outcome(arm, rows["base"], rows["trained"]) | {
        "steered": steering.share(arm) if "steered" in arm[0] else None, "oracle": name == ORACLE}
        for name, arm in rows.items()}
    curve = [{"rate": rate} | summaries.pop(f"rate_{rate:g}") for rate in sorted(config.rates)]
    summary = {"n": len(rows["base"]), "gap": summaries["trained"]["accuracy"] - summaries["base"]["accuracy"],
               "chosen": chosen, "gate": fitted.gate, "arms": summaries, "curve": curve, "flags": config.as_flags()}
    files.write_whole(pathlib.Path(kept.out) / "table.md", table(summary))
    files.write_json(pathlib.Path(kept.out) / "summary.json", summary)
    return summary


def asker(config: HybridConfig, loaded: LanguageModel, benchmarks: list[Benchmark]) -> Callable:
    """`ask(name, params, sample_fn)`: the rows of an arm on these problems, kept in a folder of its name. `sample_fn`
    and its `params` are as in `sampler.make_sampler`."""
    kept = config.steering.kept
    decoding = Decoding(loaded.tokenizer.eos_ids, kept.sampling.max_new_tokens, kept.sampling.num_slots)

    def ask(name: str, params: dict, sample_fn: Callable = sampler.sample) -> list[dict]:
        path = str(pathlib.Path(kept.out) / name)
        steered = Sampler(compiled(loaded.config, decoding, sample_fn), parallel.place_state(params), loaded.tokenizer)
        rows = sample_and_keep(Folder(path, "hybrid", config.with_flags(out=path), kept.resume, name), steered,
                               benchmarks,
                    Request(kept.seed, 0), kept.rows_per_call,
                    None if sample_fn is sampler.sample else steering.columns)
        return [row for part in rows.values() for row in part]
    return ask


@functools.lru_cache(8)
def compiled(shape: ModelConfig, decoding: Decoding, sample_fn: Callable) -> Callable:
    """One program for all arms that differ in numbers alone: most of the time of small models is compiling."""
    return sampler.make_sampler(shape, decoding, sample_fn=sample_fn)


def choose(config: HybridConfig, loaded: LanguageModel, fitted: gate.Fitted) -> dict:
    """The strength and the rate with which most problems of the split dev, or of --fit_problems, are solved; of several
    those with the fewest steered tokens."""
    kept, layer = config.steering.kept, config.steering.layer
    apart = kept.with_flags(heldout_split="dev", problems=config.steering.fit_problems or kept.source.problems)
    ask, sample_fn, results = asker(config, loaded, load_sets(apart, loaded)), steering.steered_sample_fn("gate",
                                                                                                          layer), []
    for strength in config.strengths:
        for rate in config.rates:
            params = {"model": loaded.params, "steering": fitted.steering(strength, rate)}
            rows = ask(f"dev/strength_{strength:g}_rate_{rate:g}", params, sample_fn)
            results.append({"strength": strength, "rate": rate, "steered": steering.share(rows),
                            "accuracy": float(np.mean([row["correct"] for row in rows]))})
    return max(results, key=lambda result: (result["accuracy"], -result["steered"]))


def arms(config: HybridConfig, loaded: LanguageModel, ask: Callable, fitted: gate.Fitted,
         chosen: dict) -> dict[str, list[dict]]:
    """The rows of the hybrid at every rate, and of its controls. Nothing here has the trained model."""
    def arm(name, where, values):
        return ask(name, {"model": loaded.params, "steering": values},
                   steering.steered_sample_fn(where, config.steering.layer))

    def turned(direction):  # another vector, as long
        return values.replace(vector=np.asarray(chosen["strength"] * direction(
            config.steering, loaded, fitted.problems, fitted.vector_D), np.float32))

    curve = {f"rate_{rate:g}": arm(f"rate_{rate:g}", "gate", fitted.steering(chosen["strength"], rate))
             for rate in config.rates}
    main, values = curve[f"rate_{chosen['rate']:g}"], fitted.steering(chosen["strength"], chosen["rate"])
    controls = {"random_vector": ("gate", turned(vectors.random)), "principal_direction": ("gate", turned(vectors.pca)),
                "random_places": ("shuffled_gate", values.replace(rate=np.float32(steering.share(main)))),
                "always_on": ("generated", values), "first_token": ("first", values)}
    return {"hybrid": main} | curve | {name: arm(name, *how) for name, how in controls.items()}


def table(summary: dict) -> str:
    """Markdown: a row for each arm, and for each rate of the curve."""
    flags, chosen, fit = summary["flags"], summary["chosen"], summary["gate"]
    every = summary["arms"] | {f"hybrid, rate {point['rate']:g}": point for point in summary["curve"]}
    rows = [[name + " (oracle)" * arm["oracle"], format_estimate(arm["accuracy"], arm["interval"]),
             format_estimate(arm["steered"]),
             format_estimate(arm["recovered"], arm["recovered_interval"])] for name, arm in every.items()]
    return "\n".join([
        f"{flags['model']} steered by {flags['vector']} after layer {flags['layer']}, where a gate expects "
        f"{flags['trained']} to differ; {summary['n']} problems, 95 % intervals in brackets.",
        f"Chosen on other problems: strength {chosen['strength']:g}, rate {chosen['rate']:g}. The two models differ at "
        f"{fit['differ']:.1%} of tokens; {fit['first_of_differ']:.1%} of these are first tokens. AUROC of the gate "
        f"{format_estimate(fit['auroc'])}.", "",
        markdown_table(["arm", "accuracy", "steered tokens", "gap recovered"], rows)]) + "\n"
