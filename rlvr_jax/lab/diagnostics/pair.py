"""A base model and a model trained from it, and the data that diagnostics need, each computed at its first use.

A "row" with a label, such as "swap, 5 %", is one result of a diagnostic. Lists called `rows` hold completions as dicts.
B texts, T positions, D width, P problems, N completions of each.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from rlvr_jax import logprobs, model, parallel
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.completions import KeptConfig
from rlvr_jax.evaluation.estimators import LEAST_GAP
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.grading import mathematics
from rlvr_jax.lab.diagnostics import formulas
from rlvr_jax.lab.elicit import gate, hybrid
from rlvr_jax.lab.elicit.comparison import load_as, load_trained, sample_into, weight_difference
from rlvr_jax.lab.elicit.hybrid import HybridConfig
from rlvr_jax.lab.elicit.when import UNSWAPPED, Gate, largest_threshold, sample_under_gates
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.log import progress
from rlvr_jax.tasks.prompts import pad_rows

TEXTS = 64  # number of texts in one forward pass of `log_perplexities`


class DiagnoseConfig(Config):
    """Diagnostics of whether training taught a model something new or switched on what its base model could do."""

    base: str = flag("", "the model before training: a run directory (DIR, DIR@STEP or DIR@best), a Hugging Face "
                     "folder, a .gguf file, or smollm2")
    hybrid: HybridConfig = nested(
        HybridConfig.from_flags(rates=(0.05, 0.2)), model=None,
        trained="model that was trained from --base, with the same shape and tokenizer: named as --base is",
        out="directory for summary.json, diagnose.md, diagnose.png, and the completions")
    num_samples: int = flag(256, "completions of each problem, at --temperature, for pass@k and Cover@tau", minimum=1)
    sampled_problems: int = flag(128, "problems of each source sampled for pass@k and Cover@tau; 0: all", minimum=0)
    temperature: float = flag(1.0, "sampling temperature of pass@k and Cover@tau", above=0)
    taus: tuple[float, ...] = flag((0.1, 0.5), "Cover@tau: least success rates of a solved problem", above=0, maximum=1)
    first: tuple[int, ...] = flag((1, 2, 4), "forced prefix: how many first tokens the trained model writes", minimum=1)
    shares: tuple[float, ...] = flag((0.01, 0.05, 0.1), "swaps: shares of tokens, those with the largest KL or "
                                     "entropy", above=0, maximum=1)
    frontier: str = flag("", "run directories of scripts.train that trained fewer parameters of the same base model, "
                         "joined by commas: how many parameters reach half of the gain", free=True)
    sft: str = flag("", "run directory of scripts.finetune from the same base model: how many training tokens it needs "
                    "for half of the gain", free=True)
    diagnostics: str = flag("", "rows to measure, joined by commas, such as rank,swap; empty: all", free=True)


class Undefined(Exception):
    """Raised by a diagnostic that has no value for this pair; the message, which the page shows, is the reason."""


def check_gain(base: float | np.ndarray, trained: float | np.ndarray) -> None:
    """Raises Undefined if the gain in (mean) accuracy is below LEAST_GAP, too small to be divided into shares."""
    gain = np.mean(trained) - np.mean(base)
    if gain < LEAST_GAP - 1e-9:
        raise Undefined(f"undefined: the gain, {gain:+.3f}, is below {LEAST_GAP:g}")


def label_shares(shares: tuple[float, ...]) -> dict[str, float]:
    """{label: share}, with labels such as "5 %"."""
    return {f"{100 * share:g} %": share for share in shares}


def load_pair(config: DiagnoseConfig) -> "Pair":
    """Loads --base and --trained. Raises UserError for a missing flag or model, or if shapes or tokenizers differ."""
    steering = config.hybrid.steering
    if not (config.base and steering.trained and steering.kept.out):
        raise UserError("--base, --trained and --out are required: a model, what was trained from it, and a directory "
                        "for the results")
    config = config.with_flags(base=loading.pin_step(config.base), trained=loading.pin_step(steering.trained))
    dtype = steering.kept.choice.dtype
    base = load_as("--base", config.base, dtype)
    trained = load_trained(config.hybrid.steering.trained, base, f"--base={config.base}", dtype)
    return Pair(config, base, trained, weight_difference(base.params, trained.params))


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models of one shape, and what is measured on them. `tokens` maps each part of the work to its forward tokens:
    all tokens run through a model, a prompt once for all its completions. The properties below add these parts."""

    config: DiagnoseConfig
    base: LanguageModel
    trained: LanguageModel
    weights: dict  # how much the weights differ, for all and for each tensor (`comparison.weight_difference`)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def kept(self) -> KeptConfig:  # the flags about completions, such as --problems, --max_new_tokens and --out
        return self.config.hybrid.steering.kept

    @property
    def trained_name(self) -> str:
        return self.config.hybrid.steering.trained

    @property
    def trained_run(self) -> pathlib.Path:
        """The run directory of --trained."""
        return pathlib.Path(self.trained_name.partition("@")[0])

    def count_tokens(self, part: str, rows: list[dict], models: int) -> None:
        """Sets `tokens[part]` to the forward tokens of the completions `rows`, each run through `models` models."""
        prompts = {(row["benchmark"], row["problem"]): row["prompt"] for row in rows}
        prompt_tokens = sum(len(self.base.tokenizer.encode(text)) for text in prompts.values())
        self.tokens[part] = models * (prompt_tokens + sum(row["num_tokens"] for row in rows))

    def _sample_under(self, name: str, gates: dict[str, Gate], columns: tuple = ()) -> dict[str, list[dict]]:
        """Samples greedily with each gate, a rule by which the other model writes some tokens; keeps the rows in --out,
        under `name`. Returns {label: rows}. For each name in `columns`, a row has a list with a value for each token."""
        rows = sample_under_gates(name, "diagnose", self.config, self.kept, self.base, self.trained, gates, columns)
        for label, group in rows.items():
            self.count_tokens(label, group, 2)  # both models run on every token
        return rows

    @functools.cached_property
    def texts(self) -> dict[str, list[dict]]:
        """{"base": rows, "trained": rows}: the models' greedy completions. A row has lists over its tokens: "base" and
        "trained", each model's most likely token; "kl" and "entropy" (`when.compare`), in nats; and token "ids"."""
        return self._sample_under("texts", UNSWAPPED, ("base", "trained", "kl", "entropy", "ids"))

    @functools.cached_property
    def gates(self) -> dict[str, Gate]:
        """{label of a row: gate of its swap}. Thresholds are from the greedy completions whose tokens are swapped."""
        def threshold(text: str, column: str, share: float) -> float:  # the value that this share of tokens reaches
            return largest_threshold(np.concatenate([row[column] for row in self.texts[text]]), share)

        gates = {f"forced_prefix, {k}": Gate(first=k) for k in self.config.first}
        for name, share in label_shares(self.config.shares).items():
            gates |= {f"swap, {name}": Gate(least=threshold("base", "kl", share)),
                      f"reverse_swap, {name}": Gate(least=threshold("trained", "kl", share), reverse=True),
                      f"entropy_swap, {name}": Gate(unsure=threshold("base", "entropy", share))}
        return gates

    @functools.cached_property
    def swapped(self) -> dict[str, list[dict]]:
        """{label of a row: completions under its gate}, for each of `gates`."""
        return self._sample_under("swapped", self.gates)

    @property
    def solved(self) -> tuple[np.ndarray, np.ndarray]:
        """(f64[P] of the base model, f64[P] of the trained model): 1 where the greedy completion is right, else 0."""
        return tuple(np.array([row["correct"] for row in self.texts[name]], float) for name in UNSWAPPED)

    @functools.cached_property
    def samples(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """A pair of arrays for the base model, one for the trained model: (bool[P,N], whether each completion is right;
        f64[P], how often a completion of another problem would be right for this one, `formulas.guess_rates`)."""
        count, kept, by_model = self.config.num_samples, self.kept, []
        limit = min(filter(None, (kept.max_problems, self.config.sampled_problems)), default=0)  # 0: all problems
        sets = load_sets(kept.with_flags(max_problems=limit), self.base, lambda stem: (count, self.config.temperature))
        sampler = make_sampler(self.base, kept.sampling)
        for name, loaded in (("base", self.base), ("trained", self.trained)):
            rows = sample_into(f"samples_{name}", "diagnose", self.config,
                               sampler._replace(params=parallel.place_state(loaded.params)), sets)
            self.count_tokens(f"samples, {name}", rows, 1)
            right_PxN = np.array([row["correct"] for row in rows]).reshape(-1, count)
            answers_PxN = np.array([mathematics.normalise(row["extracted"] or "") for row in rows]).reshape(-1, count)
            truths_P = [mathematics.normalise(row["answer"]) for row in rows[::count]]
            by_model.append((right_PxN, formulas.guess_rates(answers_PxN.tolist(), right_PxN, truths_P)))
        return by_model

    @functools.cached_property
    def steered(self) -> tuple[list[dict], dict]:
        """(rows of the steered base model's completions, the setting of the steering). The setting was chosen on other
        problems: its "strength" and "rate" and, on those problems, "steered", the share of steered tokens, and
        "accuracy" (`hybrid.choose_setting`). Raises Undefined if no gate can be fitted."""
        out = pathlib.Path(self.kept.out) / "hybrid"
        config = self.config.hybrid.with_flags(out=str(out), model=self.config.base)
        try:
            fitted = gate.fit(config.steering, self.base, self.trained)
        except UserError as error:
            raise Undefined(f"not measured: {error}".replace("--model", "--base")) from None
        chosen = hybrid.choose_setting(config, self.base, fitted)
        rows = hybrid.sample_steered(config, self.base, load_sets(self.kept, self.base), "test", "gate",
                                     fitted.steering(chosen["strength"], chosen["rate"]))
        self.count_tokens("hybrid", rows, 1)
        for path in sorted((out / "dev").glob("*/completions.jsonl")):
            self.count_tokens(f"hybrid, {path.parent.name}", [row for _, row in files.read_lines(path)], 1)
        prompts = sum(len(self.base.tokenizer.encode(problem.prompt)) for problem in fitted.problems)
        # Each of two models runs every prompt 3 times: to write a completion, and to read both models' completions. The
        # vector takes one more run of the prompts. Each of the `n` completion tokens is written once and read twice.
        self.tokens["hybrid, fitting"] = 7 * prompts + 3 * fitted.gate["n"]
        return rows, chosen

    @functools.cached_property
    def perplexity_changes(self) -> dict[str, np.ndarray]:
        """{label of a row: f64[n]}: each text's log-perplexity under the trained model minus that under the base model,
        in nats per token. Also sets `tokens` of these labels. The texts are the trained model's right greedy
        completions ("own"), the reference solutions, and the prompts from their second token on."""
        encode = self.base.tokenizer.encode
        problems = [problem for benchmark in load_sets(self.kept, self.base) for problem in benchmark.problems]
        prompts = [encode(problem.prompt) for problem in problems]
        solutions = [" ".join(problem.meta.get("steps", ())) for problem in problems]  # "" without a reference
        texts = {"answer_perplexity, own": [(ids, row["ids"]) for ids, row in zip(prompts, self.texts["trained"])
                                            if row["correct"]],
                 "answer_perplexity, reference": [(ids, encode(text)) for ids, text in zip(prompts, solutions) if text],
                 "prompt_perplexity": [(ids[:1], ids[1:]) for ids in prompts if len(ids) > 1]}
        for label, group in texts.items():
            self.tokens[label] = 2 * sum(len(given) + len(ids) for given, ids in group)  # both models read each text
        return {label: log_perplexities(self.trained, group) - log_perplexities(self.base, group)
                for label, group in texts.items()}


def log_perplexities(loaded: LanguageModel, texts: list[tuple[list, list]]) -> np.ndarray:
    """f64[n], nats per token: for each text (given, ids) of token ids, the mean of -log p of `ids` after `given`."""
    params, means = jax.device_put(loaded.params), []
    with progress(len(texts), 0, "perplexity") as bar:
        for start in range(0, len(texts), TEXTS):
            batch = texts[start : start + TEXTS]
            tokens, _ = pad_rows([[*given, *ids] for given, ids in batch], 0)  # (i32[B,T], lengths)
            tokens = np.pad(tokens, ((0, TEXTS - len(batch)), (0, -tokens.shape[1] % 16)))  # fewer shapes to compile
            losses_BxT = -np.asarray(_next_logprobs(params, loaded.config, tokens), np.float64)
            # Entry i of a text's losses is that of its token i + 1.
            means += [row[len(given) - 1 :][: len(ids)].mean() for row, (given, ids) in zip(losses_BxT, batch)]
            bar.update(len(batch))
    return np.array(means)


@functools.partial(jax.jit, static_argnums=1)
def _next_logprobs(params: model.Params, config: model.ModelConfig, tokens_BxT: jax.Array) -> jax.Array:
    """f32[B,T-1] nats, the log-probability of each token but the first of its text."""
    hidden_BxTxD, _ = model.forward(params, config, tokens_BxT)
    return logprobs.token_logprobs(params, hidden_BxTxD[:, :-1], tokens_BxT[:, 1:], 1.0)[0]
