"""Ways to decode a model, a table: each is measured on the same problems, and its cost is counted."""

import dataclasses
import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import summarise_benchmark, combine_summaries, load_sets
from rlvr_jax.evaluation.completions import Folder, sample_and_keep
from rlvr_jax.evaluation.estimators import format_estimate, wilson
from rlvr_jax.evaluation.measure import Benchmark, make_sampler
from rlvr_jax.lab.elicit import answer_selection, gate, latents, steering, trajectory, vectors
from rlvr_jax.lab.elicit.power import PowerConfig, power_sample_fn
from rlvr_jax.lab.elicit.trajectory import TrajectoryConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.sampler import Request, sample


class ElicitConfig(Config):
    """What a model can do under another decoding, without training."""

    steering: vectors.SteeringConfig = vectors.SteeringConfig()
    method: str = flag("greedy", "how a problem gets its answer", lambda: METHODS)
    num_samples: int = flag(10, "completions of each problem: of self_consistency drawn, of cot_decoding those of "
                            "the likeliest first tokens, of sae those that it is fitted on", minimum=1)
    temperature: float = flag(0.6, "sampling temperature of low_temperature and self_consistency", above=0)
    power: PowerConfig = PowerConfig()
    strength: float = flag(1.0, "steer adds the vector this many times; below 0 the other way", minimum=-1000)
    where: str = flag("generated", "tokens that steer acts at", lambda: steering.WHERE)
    rate: float = flag(0.1, "share of generated tokens at which steer acts: of those that the gate was fitted on, "
                       "or by chance under shuffled_gate", minimum=0, maximum=1)
    sae: latents.LatentConfig = latents.LatentConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()


@dataclasses.dataclass(frozen=True)
class Method:
    """How completions are drawn, and which of them counts as the answer to a problem."""

    num_samples: int = 1  # completions of each problem
    temperature: float = 0.0
    sample_fn: Callable = sample  # as in `sampler.make_sampler`
    params: Optional[dict] = None  # in place of the model's, for a draw that takes others
    summary: dict = dataclasses.field(default_factory=dict)  # what the summary holds besides
    columns: Callable = lambda rollouts, texts, judged: [{}] * len(texts)  # what rows have besides
    rules: dict[str, Callable] = dataclasses.field(  # name -> function of a problem's rows: the one that counts, or
        default_factory=lambda: {"only": answer_selection.first})  # None without an answer; the first is the method's


def greedy(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest token, again and again."""
    return Method()


def low_temperature(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """One completion at --temperature."""
    return Method(temperature=config.temperature)


def self_consistency(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The answer that most of --num_samples completions at --temperature give (arXiv 2203.11171)."""
    return Method(config.num_samples, config.temperature,
                  rules={"majority": answer_selection.majority, "first": answer_selection.first})


def forced(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion that begins with --opening: how far activation alone can lead."""
    opening, longest = config.steering.opening, config.steering.kept.sampling.max_new_tokens
    ids = loaded.tokenizer.encode(opening)
    if not 0 < len(ids) < longest or loaded.tokenizer.unknown_words(opening.split()):
        raise UserError(f"--opening={opening}: needs words that the model's tokenizer has, fewer tokens than "
                        f"--max_new_tokens={longest}")
    return Method(sample_fn=answer_selection.opened_sample_fn(tuple(ids)))


def cot_decoding(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion after each of the --num_samples likeliest first tokens; the answer whose tokens lead by
    the widest margins, summed over the completions that give it (arXiv 2402.10200)."""
    return Method(config.num_samples, sample_fn=answer_selection.branched_sample_fn(config.num_samples),
                  columns=answer_selection.margin_columns(loaded.tokenizer),
                  rules={name: getattr(answer_selection, name) for name in ("summed", "widest", "first")})


def power(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """One completion, drawn by its probability to the power --alpha (arXiv 2510.14901)."""
    def columns(rollouts, texts, judged):
        return [{"logprob": float(x), "accepted": float(y)} for x, y in zip(rollouts.noted["logprob"],
                                                                            rollouts.noted["accepted"])]
    return Method(temperature=1 / config.power.alpha, sample_fn=power_sample_fn(config.power), columns=columns)


def steer(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion where --vector, times --strength, is added after --layer at the tokens of --where."""
    vector = config.steering
    fitted = gate.fit(vector, loaded, gate.load_trained(vector, loaded) if config.where == "gate" else None)
    return Method(sample_fn=steering.steered_sample_fn(config.where, vector.layer), columns=steering.columns,
                  params={"model": loaded.params, "steering": fitted.steering(config.strength, config.rate)})


def sae(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion where one --latent of a sparse autoencoder is added after --layer, at the first token
    (arXiv 2601.08058)."""
    added, numbers = latents.choose_latent(config.sae, config.steering, loaded, config.num_samples)
    return Method(sample_fn=steering.steered_sample_fn("first", config.steering.layer), columns=steering.columns,
                  summary={"sae": numbers}, params={"model": loaded.params, "steering": added})


# --method -> how problems are decoded
METHODS = {"greedy": greedy, "low_temperature": low_temperature, "self_consistency": self_consistency,
           "forced": forced, "cot_decoding": cot_decoding, "power": power, "steer": steer, "sae": sae}


def elicit(config: ElicitConfig) -> dict:
    """Measures --model under --method; returns the summary. Writes it, table.md and every completion into --out. The
    same configuration again continues where it was stopped, as an evaluation does."""
    if not config.steering.kept.out:
        raise UserError("--out is required: the directory for summary.json, table.md and completions.jsonl")
    config = vectors.pinned(config)
    kept, out = config.steering.kept, pathlib.Path(config.steering.kept.out)
    loaded, numbers = trajectory.moved(config.trajectory, kept.choice.model, loading.load_fixed(kept.choice))
    method = METHODS[config.method](config, loaded)
    benchmarks = load_sets(kept, loaded, lambda stem: (method.num_samples, method.temperature))

    def more(rollouts, texts, judged):
        fed = (rollouts.noted or {}).get("forward_tokens", np.sum(rollouts.completion_mask, -1))
        return [{"forward_tokens": int(n)} | row for n, row in zip(fed, method.columns(rollouts, texts, judged))]

    sampler = make_sampler(loaded, kept.sampling, sample_fn=method.sample_fn, params=method.params)
    rows = sample_and_keep(Folder(kept.out, "elicit", config, kept.resume, config.method), sampler, benchmarks,
                Request(kept.seed, 0), kept.rows_per_call, more)
    summaries = {b.name: set_summary(method, b, rows[b.name]) for b in benchmarks}
    summary = {"method": config.method} | numbers | method.summary | combine_summaries(summaries) | {
        "flags": config.as_flags()}
    files.write_whole(out / "table.md", table(config, summaries))
    files.write_json(out / "summary.json", summary)
    return summary


def set_summary(method: Method, benchmark: Benchmark, rows: list[dict]) -> dict:
    """As of an evaluation, but `accuracy` counts the completion that each rule picks, Wilson's interval with it.

    `mean_accuracy` is that of all completions, `right` whether the first rule is right, by problem, `forward_tokens`
    the tokens run through the model for a problem: its prompt, once, and every token fed for its completions.
    """
    size, whole = method.num_samples, summarise_benchmark(benchmark, rows)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    picked = {name: [rule(group) for group in groups] for name, rule in method.rules.items()}
    right = {name: [bool(row and row["correct"]) for row in chosen] for name, chosen in picked.items()}
    rules = {name: {"accuracy": float(np.mean(x)), "interval": wilson(float(np.mean(x)), len(x))}
             for name, x in right.items()}
    cost = float(np.mean(benchmark.prompts.lengths)) + sum(row["forward_tokens"] for row in rows) / len(groups)
    main = next(iter(rules))
    more = {"accepted": float(np.mean([row["accepted"] for row in rows]))} if "accepted" in rows[0] else {}
    more |= {"steered": steering.share(rows)} if "steered" in rows[0] else {}
    return whole | rules[main] | {"mean_accuracy": whole["accuracy"], "rules": rules, "forward_tokens": cost,
                                  "right": list(map(int, right[main]))} | more


def table(config: ElicitConfig, summaries: dict[str, dict]) -> str:
    """Markdown: a row for each set of problems and rule."""
    header = ["problems", "n", "method", "answer", "accuracy", "forward tokens a problem", "graded by"]
    rows = [[name, each["n"], config.method, rule, format_estimate(right["accuracy"], right["interval"]),
             f"{each['forward_tokens']:.1f}", each["graded_by"]]
            for name, each in summaries.items() for rule, right in each["rules"].items()]
    return f"{config.steering.kept.choice.model}, 95 % intervals in brackets\n\n{markdown_table(header, rows)}\n"
