"""Ways to decode a model, a table: each is measured on the same problems, and says what it cost."""

import dataclasses
import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import ElicitConfig
from rlvr_jax.elicit import gate, latents, paths, steering
from rlvr_jax.elicit.power import power_draw
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import benchmark_summary, joined, load_sets
from rlvr_jax.evaluation.completions import Asked, keep
from rlvr_jax.evaluation.estimators import shown, wilson
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.loading import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table


@dataclasses.dataclass(frozen=True)
class Method:
    """How completions are drawn, and which of them speaks for a problem."""

    num_samples: int = 1  # completions of each problem
    temperature: float = 0.0
    draw: Optional[Callable] = None  # in place of `sampler.sample`, as in `make_sampler`
    params: Optional[dict] = None  # in place of the model's, for a draw that takes others
    told: dict = dataclasses.field(default_factory=dict)  # what the summary says besides
    columns: Callable = lambda rollouts, texts, judged: [{}] * len(texts)  # what rows have besides
    rules: dict[str, Callable] = dataclasses.field(  # name -> function of a problem's rows: the one that counts, or
        default_factory=lambda: {"only": paths.first})  # None where none answers; the first rule is the method's own


def greedy(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest token, again and again."""
    return Method()


def low_temperature(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """One completion at --temperature."""
    return Method(temperature=config.temperature)


def self_consistency(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The answer that most of --num_samples completions at --temperature give (arXiv 2203.11171)."""
    return Method(config.num_samples, config.temperature, rules={"majority": paths.majority, "first": paths.first})


def forced(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion that begins with --opening: how far activation alone can lead."""
    ids = loaded.tokenizer.encode(config.opening)
    if not 0 < len(ids) < config.max_new_tokens or loaded.tokenizer.lacks(config.opening.split()):
        raise UserError(f"--opening={config.opening}: needs words that the model's tokenizer has, fewer tokens than "
                        f"--max_new_tokens={config.max_new_tokens}")
    return Method(draw=paths.opened_draw(tuple(ids)))


def cot_decoding(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion after each of the --num_samples likeliest first tokens; the answer whose tokens lead by
    the widest margins, summed over the completions that give it (arXiv 2402.10200)."""
    return Method(config.num_samples, draw=paths.branched_draw(config.num_samples),
                  columns=paths.margin_columns(loaded.tokenizer),
                  rules={"summed": paths.summed, "widest": paths.widest, "first": paths.first})


def power(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """One completion, drawn by its probability to the power --alpha (arXiv 2510.14901)."""
    def columns(rollouts, texts, judged):
        return [{"logprob": float(x), "accepted": float(y)} for x, y in zip(rollouts.noted["logprob"],
                                                                            rollouts.noted["accepted"])]
    return Method(temperature=1 / config.alpha, columns=columns,  # that of the proposals
                  draw=power_draw(config.alpha, config.num_blocks, config.num_moves))


def steer(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion where --vector, times --strength, is added after --layer, --where it says."""
    fitted = gate.fit(config, loaded, gate.load_trained(config, loaded) if config.where == "gate" else None)
    return Method(draw=steering.steered_draw(config.where, config.layer), columns=steering.columns,
                  params={"model": loaded.params, "steering": fitted.steering(config.strength, config.rate)})


def sae(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The likeliest completion where one --latent of a sparse autoencoder is added after --layer, at the first token
    (arXiv 2601.08058)."""
    added, told = latents.chosen(config, loaded)
    return Method(draw=steering.steered_draw("first", config.layer), columns=steering.columns, told={"sae": told},
                  params={"model": loaded.params, "steering": added})


# --method -> how problems are decoded
METHODS = {"greedy": greedy, "low_temperature": low_temperature, "self_consistency": self_consistency,
           "forced": forced, "cot_decoding": cot_decoding, "power": power, "steer": steer, "sae": sae}


def elicit(config: ElicitConfig) -> dict:
    """Measures `config.model` under `config.method`; returns the summary. Writes it, table.md and every completion.

    The same configuration again continues where it was stopped, as an evaluation does.
    """
    if not config.out:
        raise UserError("--out is required: the directory for summary.json, table.md and completions.jsonl")
    config = dataclasses.replace(config, **{name: loading.pinned(getattr(config, name))
                                            for name in ("model", "trained", "vectors")})
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    method = METHODS[config.method](config, loaded)
    sets = load_sets(config, loaded, lambda stem: (method.num_samples, method.temperature))

    def tell(rollouts, texts, judged):
        fed = (rollouts.noted or {}).get("forward_tokens", np.sum(rollouts.completion_mask, -1))
        return [{"forward_tokens": int(n)} | more for n, more in zip(fed, method.columns(rollouts, texts, judged))]

    driven = dataclasses.replace(loaded, params=method.params or loaded.params)
    kept = keep(config, driven, sets, what=config.method, draw=method.draw, tell=tell)
    summaries = {one.name: set_summary(method, one, kept[one.name]) for one in sets}
    summary = {"method": config.method} | method.told | joined(summaries) | {"flags": dataclasses.asdict(config)}
    files.write_whole(pathlib.Path(config.out) / "table.md", table(config, summaries))
    files.write_json(pathlib.Path(config.out) / "summary.json", summary)
    return summary


def set_summary(method: Method, asked: Asked, rows: list[dict]) -> dict:
    """As of an evaluation, but `accuracy` counts the completion that each rule picks, Wilson's interval with it.

    `mean_accuracy` is that of all completions, `right` whether the first rule is right, by problem, `forward_tokens`
    the tokens run through the model for a problem: its prompt, once, and every token fed for its completions.
    """
    size, whole = method.num_samples, benchmark_summary(asked, rows)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    picked = {name: [rule(group) for group in groups] for name, rule in method.rules.items()}
    right = {name: [bool(row and row["correct"]) for row in chosen] for name, chosen in picked.items()}
    rules = {name: {"accuracy": float(np.mean(x)), "interval": wilson(float(np.mean(x)), len(x))}
             for name, x in right.items()}
    cost = float(np.mean(asked.prompts.lengths)) + sum(row["forward_tokens"] for row in rows) / len(groups)
    main = next(iter(rules))
    more = {"accepted": float(np.mean([row["accepted"] for row in rows]))} if "accepted" in rows[0] else {}
    more |= {"steered": steering.share(rows)} if "steered" in rows[0] else {}
    return whole | rules[main] | {"mean_accuracy": whole["accuracy"], "rules": rules, "forward_tokens": cost,
                                  "right": list(map(int, right[main]))} | more


def table(config: ElicitConfig, summaries: dict[str, dict]) -> str:
    """Markdown: a row for each set of problems and rule."""
    header = ["problems", "n", "method", "answer", "accuracy", "forward tokens a problem", "graded by"]
    rows = [[name, one["n"], config.method, rule, shown(told["accuracy"], told["interval"]),
             f"{one['forward_tokens']:.1f}", one["graded_by"]]
            for name, one in summaries.items() for rule, told in one["rules"].items()]
    return f"{config.model}, 95 % intervals in brackets\n\n{markdown_table(header, rows)}\n"
