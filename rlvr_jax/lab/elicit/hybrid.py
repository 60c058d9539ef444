"""How much of a trained model's gain the base model recovers when a gate decides where to steer it (arXiv 2510.07364).

The vector, times `strength`, is added at the share `rate` of tokens. Vector and gate are fitted on one split, strength
and rate are chosen on a second, and all arms, which are ways to write completions, are compared on a third. The hybrid
and its controls run only the base model; the oracle also runs the trained model at every token.
"""

import functools
import itertools
import pathlib
from typing import Callable

import numpy as np

from rlvr_jax import parallel, sampler
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.estimators import summarise_outcome, format_estimate
from rlvr_jax.evaluation.measure import Benchmark, Sampler
from rlvr_jax.lab.elicit import gate, steering, vectors
from rlvr_jax.lab.elicit.comparison import load_trained, sample_into, share_of_tokens
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

ORACLE = "trained_gate"  # the arm that runs the trained model at every token
# Arms that differ only in their params share a sampler, because small models spend most of their time compiling.
compile_sampler = functools.lru_cache(8)(sampler.make_sampler)


class HybridConfig(Config):
    """How much of a trained model's gain the base model recovers when a gate decides at which tokens it is steered."""

    steering: vectors.SteeringConfig = vectors.SteeringConfig()
    strengths: tuple[float, ...] = flag((1.0, 2.0, 4.0), "strengths to choose from: multiples of the vector", minimum=0)
    rates: tuple[float, ...] = flag((0.02, 0.05, 0.1, 0.2, 0.4), "rates to choose from: the gate acts at this share of "
                                    "the tokens that it was fitted on; all are measured", above=0, maximum=1)


def hybrid(config: HybridConfig) -> dict:
    """Measures all arms and returns the summary: each arm's accuracy, and the share of the gap between both models that
    it recovers; `curve` lists these at each rate. Writes summary.json and table.md into --out, and completions into a
    folder for each arm, from which the same command resumes. Raises UserError without --out or --trained."""
    if not config.steering.kept.out:
        raise UserError("--out is required: the directory for summary.json, table.md and the completions of each arm")
    config = vectors.pin_models(config)
    kept = config.steering.kept
    loaded = loading.load_fixed(kept.choice)
    trained = load_trained(config.steering.trained, loaded, f"--model={kept.choice.model}", kept.choice.dtype)
    fitted = gate.fit(config.steering, loaded, trained)
    chosen, benchmarks = choose_setting(config, loaded, fitted), load_sets(kept, loaded)
    rows = {"base": sample_arm(config, loaded, benchmarks, "base", loaded.params)}
    rows |= sample_arms(config, loaded, benchmarks, fitted, chosen)
    rows["trained"] = sample_arm(config, loaded, benchmarks, "trained", trained.params)
    values = fitted.steering(chosen["strength"], chosen["rate"])
    rows[ORACLE] = sample_arm(config, loaded, benchmarks, ORACLE, {
        "model": loaded.params, "trained": trained.params, "steering": values},
        steering.trained_gate_sample_fn(config.steering.layer))
    summaries = {name: summarise_outcome(arm, rows["base"], rows["trained"]) | {
        "steered": share_of_tokens(arm, "steered") if "steered" in arm[0] else None, "oracle": name == ORACLE}
        for name, arm in rows.items()}
    curve = [{"rate": rate} | summaries.pop(f"rate_{rate:g}") for rate in sorted(config.rates)]
    summary = {"n": len(rows["base"]), "gap": summaries["trained"]["accuracy"] - summaries["base"]["accuracy"],
               "chosen": chosen, "gate": fitted.gate, "arms": summaries, "curve": curve, "flags": config.as_flags()}
    files.write_whole(pathlib.Path(kept.out) / "table.md", format_table(summary))
    files.write_json(pathlib.Path(kept.out) / "summary.json", summary)
    return summary


def sample_arm(config: HybridConfig, loaded: LanguageModel, benchmarks: list[Benchmark], name: str, params: dict,
               sample_fn: Callable = sampler.sample) -> list[dict]:
    """Samples all problems by `sample_fn` with `params`; returns graded rows, saved in the folder `name` of --out."""
    sampling = config.steering.kept.sampling
    decoding = sampler.Decoding(loaded.tokenizer.eos_ids, sampling.max_new_tokens, sampling.num_slots)
    compiled = Sampler(compile_sampler(loaded.config, decoding, sample_fn=sample_fn), parallel.place_state(params),
                       loaded.tokenizer)
    return sample_into(name, "hybrid", config, compiled, benchmarks)


def sample_steered(config: HybridConfig, loaded: LanguageModel, benchmarks: list[Benchmark], name: str, where: str,
                   values: steering.Steering) -> list[dict]:
    """`sample_arm` with the base model, steered by `values` at the tokens of `where` (a key of `steering.WHERE`)."""
    return sample_arm(config, loaded, benchmarks, name, {"model": loaded.params, "steering": values},
                      steering.steered_sample_fn(where, config.steering.layer))


def choose_setting(config: HybridConfig, loaded: LanguageModel, fitted: gate.Fitted) -> dict:
    """Measures each pair of --strengths and --rates on the dev split, or on the file --fit_problems. Returns
    `{"strength", "rate", "steered" (share of tokens), "accuracy"}` of the pair with the highest accuracy; of tied
    pairs, of the one that steers the fewest tokens. Raises UserError if these problems are the measured ones."""
    kept, measured = config.steering.kept, []
    vectors.check_split(config.steering, "dev")
    benchmarks = load_sets(kept.with_flags(
        heldout_split="dev", problems=config.steering.fit_problems or kept.source.problems), loaded)
    for strength, rate in itertools.product(config.strengths, config.rates):
        rows = sample_steered(config, loaded, benchmarks, f"dev/strength_{strength:g}_rate_{rate:g}", "gate",
                              fitted.steering(strength, rate))
        measured.append({"strength": strength, "rate": rate, "steered": share_of_tokens(rows, "steered"),
                         "accuracy": float(np.mean([row["correct"] for row in rows]))})
    return max(measured, key=lambda result: (result["accuracy"], -result["steered"]))


def sample_arms(config: HybridConfig, loaded: LanguageModel, benchmarks: list[Benchmark], fitted: gate.Fitted,
                chosen: dict) -> dict[str, list[dict]]:
    """Samples with the strength of `chosen`, the result of `choose_setting`. Returns {arm: rows}: "rate_R" is steered
    at the rate R, "hybrid" at the chosen rate, and the other arms are controls."""
    values = fitted.steering(chosen["strength"], chosen["rate"])

    def with_direction(direction):  # `values` with the vector of a control, as long as the fitted one
        vector_D = direction(config.steering, loaded, fitted.problems, fitted.vector_D)
        return values.replace(vector=np.asarray(chosen["strength"] * vector_D, np.float32))

    curve = {f"rate_{rate:g}": sample_steered(config, loaded, benchmarks, f"rate_{rate:g}", "gate",
                                              fitted.steering(chosen["strength"], rate)) for rate in config.rates}
    main = curve[f"rate_{chosen['rate']:g}"]
    controls = {"random_vector": ("gate", with_direction(vectors.random)),  # arm -> (where, values)
                "principal_direction": ("gate", with_direction(vectors.pca)),
                "random_places": ("shuffled_gate", values.replace(rate=np.float32(share_of_tokens(main, "steered")))),
                "always_on": ("generated", values), "first_token": ("first", values)}
    return {"hybrid": main} | curve | {name: sample_steered(config, loaded, benchmarks, name, where, steered_by)
                                       for name, (where, steered_by) in controls.items()}


def format_table(summary: dict) -> str:
    """The text of table.md: the chosen strength and rate, and a table with a row for each arm, then for each rate."""
    flags, chosen, fitted = summary["flags"], summary["chosen"], summary["gate"]
    arms = summary["arms"] | {f"hybrid, rate {arm['rate']:g}": arm for arm in summary["curve"]}
    rows = [[name + (" (oracle)" if arm["oracle"] else ""), format_estimate(arm["accuracy"], arm["interval"]),
             format_estimate(arm["steered"]), format_estimate(arm["recovered"], arm["recovered_interval"])]
            for name, arm in arms.items()]
    header = ["arm", "accuracy", "steered tokens", "gap recovered"]
    return (f"{flags['model']} steered by {flags['vector']} after layer {flags['layer']}, where a gate expects "
            f"{flags['trained']} to differ; {summary['n']} problems, 95 % intervals in brackets.\nChosen on other "
            f"problems: strength {chosen['strength']:g}, rate {chosen['rate']:g}. The two models differ at "
            f"{fitted['differ']:.1%} of tokens; {fitted['first_of_differ']:.1%} of these are first tokens. "
            f"AUROC of the gate {format_estimate(fitted['auroc'])}.\n\n{markdown_table(header, rows)}\n")
