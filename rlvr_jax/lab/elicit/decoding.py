"""Methods of decoding a model (METHODS), and `elicit`, which measures the accuracy and the cost of one of them.

K completions of one prompt that start with different tokens, P prompts, B completions in all, T tokens, V vocabulary.
"""

import collections
import dataclasses
import pathlib
import re
from typing import Callable, Optional

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import model, sampler
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import combine_summaries, load_sets, summarise_benchmark
from rlvr_jax.evaluation.completions import Folder, sample_and_keep
from rlvr_jax.evaluation.estimators import format_estimate, wilson
from rlvr_jax.evaluation.measure import Benchmark, make_sampler
from rlvr_jax.grading import grade, mathematics
from rlvr_jax.lab.elicit import gate, latents, steering, vectors
from rlvr_jax.lab.elicit.comparison import load_trained, noted_numbers, share_of_tokens
from rlvr_jax.lab.elicit.power import PowerConfig, power_sample_fn
from rlvr_jax.lab.elicit.trajectory import TrajectoryConfig, project_run
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table


class ElicitConfig(Config):
    """What a model can do under another decoding method, without training."""

    steering: vectors.SteeringConfig = vectors.SteeringConfig()
    method: str = flag("greedy", "how completions are decoded, and which of them counts", lambda: METHODS)
    num_samples: int = flag(10, "completions of each problem: those that self_consistency or cot_decoding chooses "
                            "from, or those that the autoencoder of sae is fitted on", minimum=1)
    temperature: float = flag(0.6, "sampling temperature of low_temperature and self_consistency", above=0)
    power: PowerConfig = PowerConfig()
    strength: float = flag(1.0, "steer adds the vector times this; a negative number reverses it", minimum=-1000)
    where: str = flag("generated", "tokens at which steer adds the vector", lambda: steering.WHERE)
    rate: float = flag(0.1, "share of generated tokens at which steer acts: for --where=gate, of those that the gate "
                       "was fitted on; for --where=shuffled_gate, the probability for each token", minimum=0, maximum=1)
    sae: latents.LatentConfig = latents.LatentConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()


# ----- rules: choose among a problem's completions, `rows`, the one that counts as its solution; None if none does


def first_completion(rows: list[dict]) -> Optional[dict]:
    """The first completion, whatever it answers."""
    return rows[0]


def majority_answer(rows: list[dict]) -> Optional[dict]:
    """The first completion with the most frequent answer (if several tie, the earliest); None if there is no answer."""
    answers = list(map(normalised_answer, rows))
    answer = grade.most_common(answers)
    return rows[answers.index(answer)] if answer else None


def widest_margin(rows: list[dict]) -> Optional[dict]:
    """The completion whose answer has the widest margin (`answer_margin`); None if no completion has an answer."""
    return max((row for row in rows if row["margin"] is not None), key=lambda row: row["margin"], default=None)


def largest_margin_sum(rows: list[dict]) -> Optional[dict]:
    """Sums the margins (`answer_margin`) of the completions that give the same answer, and returns the first completion
    that gives the answer with the largest sum; None if no completion has an answer."""
    answered = [row for row in rows if row["margin"] is not None]
    sums = collections.Counter()  # answer -> sum of the margins of its completions
    for row in answered:
        sums[normalised_answer(row)] += row["margin"]
    return max(answered, key=lambda row: sums[normalised_answer(row)], default=None)


def normalised_answer(row: dict) -> str:
    """A row's answer in a normalised form, so that equal answers are equal texts; "" if it has no answer."""
    return mathematics.normalise(row["extracted"] or "")


# ----- methods


def opened_sample_fn(opening: tuple[int, ...]) -> Callable:
    """Returns a `sample_fn` for `sampler.make_sampler` whose completions all begin with the token ids `opening`."""
    def sample_fn(params, config, prompts, rows, decoding):
        given_T = jnp.full(decoding.max_new_tokens, -1, jnp.int32).at[: len(opening)].set(jnp.array(opening, jnp.int32))
        rows = rows._replace(given=jnp.tile(given_T, (len(rows.keys), 1)))
        return sampler.sample(params, config, prompts, rows, decoding)
    return sample_fn


def branched_sample_fn(num_paths: int) -> Callable:
    """Returns a `sample_fn` for `sampler.make_sampler`: the j-th of a prompt's `num_paths` completions begins with the
    j-th most likely first token. `Rollouts.noted` has "margin", f32[B,T], the result of `margins` at each token, and
    "forward_tokens", i32[B], the number of tokens fed to the model for each completion. The first completion of each
    prompt counts one more: the prompt's last token, fed to rank the first tokens of all completions of this prompt."""
    note = sampler.Hooks(note=lambda logits, _: {"margin": margins(logits)})

    def sample_fn(params, config, prompts, rows, decoding):
        prefix, paths_B = model.prefill(params, config, prompts), rows.numbers % num_paths
        inputs = model.Inputs(prefix.last_tokens, jnp.zeros_like(prefix.last_tokens))
        logits_PxV, _ = model.decode_step(params, config, model.unroll_layers(params, prefix), inputs,
                                          model.init_cache(config, len(prefix.lengths), 1))
        _, tokens_PxK = jax.lax.top_k(logits_PxV, min(num_paths, config.vocab_size))
        first_B = tokens_PxK[rows.prompt_index, paths_B % config.vocab_size]  # repeated if the vocabulary is small
        given_BxT = jnp.full((len(rows.keys), decoding.max_new_tokens), -1, jnp.int32).at[:, 0].set(first_B)
        out = sampler.decode(params, config, prefix, rows._replace(given=given_BxT), decoding, note)
        fed_B = jnp.sum(out.completion_mask, -1) + (paths_B == 0)  # + the prompt token fed for `logits_PxV`
        return out.replace(noted=out.noted | {"forward_tokens": fed_B})
    return sample_fn


def margins(logits_BxV: jax.Array) -> jax.Array:
    """f32[B]: the probability of the most likely token minus that of the second most likely one."""
    probs_BxV = jax.nn.softmax(logits_BxV)  # no top_k: over 49,152 tokens, XLA's is 20 times slower on a CPU
    others_BxV = jnp.where(jnp.arange(probs_BxV.shape[-1])[None] == jnp.argmax(probs_BxV, -1)[:, None], 0, probs_BxV)
    return jnp.max(probs_BxV, -1) - jnp.max(others_BxV, -1)


def answer_margin(tokenizer: Tokenizer, ids: list[int], margins_T: np.ndarray, text: str,
                  answer: Optional[str]) -> Optional[float]:
    """The mean of `margins_T` over the tokens that spell the last occurrence of `answer` in `text`; None if `answer` is
    None or does not occur. `ids` are the tokens of `text`, and `margins_T[t]` is the margin of token t (`margins`)."""
    span = find_answer(text, answer)
    if span is None:
        return None
    ends_T = np.array([len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))])  # characters may span tokens
    starts_T = np.concatenate([[0], ends_T[:-1]])
    writes_T = (starts_T < span[1]) & (ends_T > span[0])
    return float(np.mean(margins_T[writes_T])) if writes_T.any() else None


def find_answer(text: str, answer: Optional[str]) -> Optional[tuple[int, int]]:
    """(start, end) of the last occurrence of `answer` in `text`, or None; "1234" occurs in "1,234", not in "12345"."""
    if not answer:
        return None
    pattern = rf"(?<!\d){',?'.join(map(re.escape, answer))}(?!\d)"
    spans = [match.span() for match in re.finditer(pattern, text)]
    return spans[-1] if spans else None


@dataclasses.dataclass(frozen=True)
class Method:
    """How completions are sampled, and which completion counts as the solution of a problem."""

    num_samples: int = 1  # completions of each problem
    temperature: float = 0.0
    sample_fn: Callable = sampler.sample  # see `sampler.make_sampler`
    params: Optional[dict] = None  # what `sample_fn` takes as params; None: the parameters of the model
    summary: dict = dataclasses.field(default_factory=dict)  # keys to add to the summary
    columns: Callable = lambda rollouts, texts, judged: [{}] * len(texts)  # a dict of columns to add, for each row
    rules: dict[str, Callable] = dataclasses.field(  # name -> rule, see above; the first rule gives `accuracy`
        default_factory=lambda: {"only": first_completion})


def greedy(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """One completion, with the most likely token at each step."""
    return Method()


def low_temperature(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """One completion at --temperature."""
    return Method(temperature=config.temperature)


def self_consistency(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """The most frequent answer of --num_samples completions at --temperature (arXiv 2203.11171)."""
    return Method(config.num_samples, config.temperature,
                  rules={"majority": majority_answer, "first": first_completion})


def forced(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """A greedy completion that begins with --opening: how much these words alone can raise accuracy. Raises UserError
    for an opening that is empty, too long, or has words that the tokenizer lacks."""
    opening, longest = config.steering.opening, config.steering.kept.sampling.max_new_tokens
    ids = loaded.tokenizer.encode(opening)
    if not 0 < len(ids) < longest or loaded.tokenizer.unknown_words(opening.split()):
        raise UserError(f"--opening={opening}: give at least one word, only words that the model's tokenizer has, and "
                        f"fewer tokens than --max_new_tokens={longest}")
    return Method(sample_fn=opened_sample_fn(tuple(ids)))


def cot_decoding(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """Greedy completions from each of the --num_samples most likely first tokens (arXiv 2402.10200). The margins
    (`answer_margin`) of completions with the same answer are summed, and the answer with the largest sum counts."""
    def columns(rollouts, texts, judged):
        completions = zip(rollouts.completions, rollouts.completion_mask, rollouts.noted["margin"], texts, judged)
        return [{"margin": answer_margin(loaded.tokenizer, ids[mask].tolist(), margins_T[mask], text,
                                         verdict["extracted"])} for ids, mask, margins_T, text, verdict in completions]
    return Method(config.num_samples, sample_fn=branched_sample_fn(config.num_samples), columns=columns, rules={
        "summed": largest_margin_sum, "widest": widest_margin, "first": first_completion})


def power(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """One completion, sampled in proportion to its probability to the power --alpha (arXiv 2510.14901)."""
    return Method(temperature=1 / config.power.alpha, sample_fn=power_sample_fn(config.power))


def steer(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """A greedy completion with --strength times --vector added to the residual after --layer at tokens of --where."""
    flags, choice, trained = config.steering, config.steering.kept.choice, None
    if config.where == "gate":
        trained = load_trained(flags.trained, loaded, f"--model={choice.model}", choice.dtype)
    fitted = gate.fit(flags, loaded, trained)
    return Method(sample_fn=steering.steered_sample_fn(config.where, flags.layer),
                  params={"model": loaded.params, "steering": fitted.steering(config.strength, config.rate)})


def sae(config: ElicitConfig, loaded: LanguageModel) -> Method:
    """A greedy completion with one --latent of a sparse autoencoder added at the first token (arXiv 2601.08058)."""
    added, numbers = latents.choose_latent(config.sae, config.steering, loaded, config.num_samples)
    return Method(sample_fn=steering.steered_sample_fn("first", config.steering.layer),
                  summary={"sae": numbers}, params={"model": loaded.params, "steering": added})


# --method -> function of (flags, model) that returns a Method
METHODS = {"greedy": greedy, "low_temperature": low_temperature, "self_consistency": self_consistency,
           "forced": forced, "cot_decoding": cot_decoding, "power": power, "steer": steer, "sae": sae}


def elicit(config: ElicitConfig) -> dict:
    """Measures --model under --method and returns the summary (`summarise_method`). Writes summary.json, table.md and
    completions.jsonl into --out; the same command resumes an interrupted one. Raises UserError without --out."""
    if not config.steering.kept.out:
        raise UserError("--out is required: the directory for summary.json, table.md and completions.jsonl")
    config = vectors.pin_models(config)
    kept, out = config.steering.kept, pathlib.Path(config.steering.kept.out)
    # `projection` has numbers for the summary; without --rank1_steps it is {}, and the model stays as it is.
    loaded, projection = project_run(config.trajectory, kept.choice.model, loading.load_fixed(kept.choice))
    method = METHODS[config.method](config, loaded)
    benchmarks = load_sets(kept, loaded, lambda stem: (method.num_samples, method.temperature))

    def columns(rollouts, texts, judged):
        lengths = np.sum(rollouts.completion_mask, -1)  # the cost, unless the sampler noted its own "forward_tokens"
        noted, of_method = noted_numbers(rollouts, texts, judged), method.columns(rollouts, texts, judged)
        return [{"forward_tokens": int(n)} | numbers | more for n, numbers, more in zip(lengths, noted, of_method)]

    rows = sample_and_keep(Folder(kept.out, "elicit", config, kept.resume, config.method),
                           make_sampler(loaded, kept.sampling, sample_fn=method.sample_fn, params=method.params),
                           benchmarks, sampler.Request(kept.seed, 0), kept.rows_per_call, columns)
    summaries = {b.name: summarise_method(method, b, rows[b.name]) for b in benchmarks}
    summary = {"method": config.method} | projection | method.summary | combine_summaries(summaries)
    summary |= {"flags": config.as_flags()}
    files.write_whole(out / "table.md", format_table(config, summaries))
    files.write_json(out / "summary.json", summary)
    return summary


def summarise_method(method: Method, benchmark: Benchmark, rows: list[dict]) -> dict:
    """The `summarise_benchmark` of a benchmark, but with `accuracy` and Wilson's `interval` of the completions that the
    method's first rule picks. Further keys: `rules` maps the name of each rule to its `{"accuracy", "interval"}`;
    `mean_accuracy` is the accuracy of all completions; `right` has 1 for each problem that the first rule solves, else
    0; `forward_tokens` is the mean cost of a problem: its prompt, once, and every token fed for its completions. With
    power, `accepted` is the mean share of accepted moves; with steering, `steered` the share of steered tokens."""
    of_all, size = summarise_benchmark(benchmark, rows), method.num_samples
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]  # the rows of each problem
    right = {name: [bool(row and row["correct"]) for row in map(rule, groups)] for name, rule in method.rules.items()}
    rules = {name: {"accuracy": float(np.mean(solved)), "interval": wilson(float(np.mean(solved)), len(solved))}
             for name, solved in right.items()}
    cost = float(np.mean(benchmark.prompts.lengths)) + sum(row["forward_tokens"] for row in rows) / len(groups)
    main = next(iter(rules))  # the name of the first rule
    summary = of_all | rules[main] | {"mean_accuracy": of_all["accuracy"], "rules": rules, "forward_tokens": cost,
                                      "right": list(map(int, right[main]))}
    if "accepted" in rows[0]:
        summary["accepted"] = float(np.mean([row["accepted"] for row in rows]))
    if "steered" in rows[0]:
        summary["steered"] = share_of_tokens(rows, "steered")
    return summary


def format_table(config: ElicitConfig, summaries: dict[str, dict]) -> str:
    """The text of table.md: a row for each benchmark and rule. `summaries`: {benchmark: its `summarise_method`}."""
    header = ["problems", "n", "method", "answer", "accuracy", "forward tokens a problem", "graded by"]
    rows = [[name, each["n"], config.method, rule, format_estimate(picked["accuracy"], picked["interval"]),
             f"{each['forward_tokens']:.1f}", each["graded_by"]]
            for name, each in summaries.items() for rule, picked in each["rules"].items()]
    return f"{config.steering.kept.choice.model}, 95 % intervals in brackets\n\n{markdown_table(header, rows)}\n"
