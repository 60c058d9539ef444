"""A base and what training made of it, with all that diagnostics read: each part is computed when first asked for.

B rows, T positions, D width, P problems, N completions of each.
"""

import dataclasses
import functools
import pathlib
from typing import Callable

import jax
import numpy as np

from rlvr_jax import logprobs, model, parallel
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.completions import Folder, KeptConfig, sample_and_keep
from rlvr_jax.evaluation.estimators import LEAST_GAP
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.grading import mathematics
from rlvr_jax.lab.diagnostics import formulas
from rlvr_jax.lab.elicit import gate, hybrid, steering
from rlvr_jax.lab.elicit.hybrid import HybridConfig
from rlvr_jax.lab.elicit.swap import Gate
from rlvr_jax.lab.elicit.when import ENDS, largest, swap_columns, token_columns, written_under
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.log import progress
from rlvr_jax.sampler import Request
from rlvr_jax.tasks.prompts import pad_rows

TEXTS = 64  # run through a model at a time


class DiagnoseConfig(Config):
    """Did training teach a model, or switch on what its base could do? Every number that papers argue with."""

    base: str = flag("", "the model before training: a run directory (DIR, DIR@STEP or DIR@best), a Hugging Face "
                     "folder, a .gguf file, or smollm2")
    hybrid: HybridConfig = nested(
        HybridConfig.from_flags(rates=(0.05, 0.2)), model=None,
        trained="what was trained from --base, of the same shape and with its tokenizer: named as --base is",
        out="directory for summary.json, diagnose.md, diagnose.png, and the completions")
    num_samples: int = flag(256, "completions of each problem, at --temperature, for pass@k and Cover@tau",
                            minimum=1)
    sampled_problems: int = flag(128, "of the problems, how many are sampled so often; 0: all", minimum=0)
    temperature: float = flag(1.0, "sampling temperature of pass@k and Cover@tau", above=0)
    taus: tuple[float, ...] = flag((0.1, 0.5), "Cover@tau: success rates that count as solved", above=0, maximum=1)
    first: tuple[int, ...] = flag((1, 2, 4), "forced prefix: how many first tokens are the trained model's",
                                  minimum=1)
    shares: tuple[float, ...] = flag((0.01, 0.05, 0.1), "swaps: at which share of the tokens", above=0, maximum=1)
    frontier: str = flag("", "run directories of scripts.train with fewer trained numbers, from the same base, "
                         "joined by commas: for the numbers that reach half of the gain", free=True)
    sft: str = flag("", "run directory of scripts.finetune from the same base: for the tokens that RL takes, "
                    "compared with it", free=True)
    diagnostics: str = flag("", "rows to measure, joined by commas, such as rank,swap; empty: all", free=True)


class Undefined(Exception):
    """A diagnostic has no value for this pair: why, in words."""


def check_gain(base: float | np.ndarray, trained: float | np.ndarray) -> None:
    """Of two accuracies, or of what is right. Raises Undefined for a gain without shares (`estimators.LEAST_GAP`)."""
    gain = np.mean(trained) - np.mean(base)
    if gain < LEAST_GAP - 1e-9:
        raise Undefined(f"undefined: the gain, {gain:+.3f}, is below {LEAST_GAP:g}")


def percent(shares: tuple[float, ...]) -> dict[str, float]:
    """The shares by what they add to the label of a row."""
    return {f"{100 * share:g} %": share for share in shares}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models of one shape, and all that is known of them. `tokens` has forward tokens by part: what runs through a
    model, a prompt once for all its completions."""

    config: DiagnoseConfig
    base: LanguageModel
    trained: LanguageModel
    weights: dict  # weight_difference
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def kept(self) -> KeptConfig:
        return self.config.hybrid.steering.kept

    @property
    def name(self) -> str:
        """Of the trained model."""
        return self.config.hybrid.steering.trained

    def folder(self, name: str) -> Folder:
        """The folder of --out in which a part keeps its completions."""
        path = str(pathlib.Path(self.kept.out) / name)
        return Folder(path, "diagnose", self.config.with_flags(out=path), self.kept.resume, name)

    def count(self, name: str, rows: list[dict], models: int) -> None:
        """Notes what it took so many models to write the rows."""
        prompts = {(row["benchmark"], row["problem"]): row["prompt"] for row in rows}
        fed = sum(len(self.base.tokenizer.encode(text)) for text in prompts.values())
        self.tokens[name] = models * (fed + sum(row["num_tokens"] for row in rows))

    @functools.cached_property
    def texts(self) -> dict[str, list[dict]]:
        """The greedy texts, "base" and "trained", with columns of every token: those of `when`, `entropy`, `ids`."""
        def columns(rollouts, texts, judged):
            masks = rollouts.completion_mask
            return [row | {"entropy": rollouts.noted["entropy"][i][masks[i]].tolist(),
                           "ids": rollouts.completions[i][masks[i]].tolist()}
                    for i, row in enumerate(token_columns(rollouts, texts, judged))]
        return self.written("texts", ENDS, columns)

    @functools.cached_property
    def gates(self) -> dict[str, Gate]:
        """Where each swap takes place, by the label of its row. Thresholds are of the greedy text that is changed."""
        def at(text: str, column: str, share: float) -> float:
            return largest(np.concatenate([row[column] for row in self.texts[text]]), share)

        made = {f"forced_prefix, {k}": Gate(first=k) for k in self.config.first}
        for name, share in percent(self.config.shares).items():
            made |= {f"swap, {name}": Gate(least=at("base", "kl", share)),
                     f"reverse_swap, {name}": Gate(least=at("trained", "kl", share), reverse=True),
                     f"entropy_swap, {name}": Gate(unsure=at("base", "entropy", share))}
        return made

    @functools.cached_property
    def swapped(self) -> dict[str, list[dict]]:
        """What is written under each of `gates`."""
        return self.written("swapped", self.gates, swap_columns)

    def written(self, name: str, gates: dict[str, Gate], columns: Callable) -> dict[str, list[dict]]:
        rows = written_under(self.folder(name), self.kept, (self.base, self.trained), gates, columns)
        for label, written in rows.items():
            self.count(label, written, 2)
        return rows

    @property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """f64[P] of base and trained model, 1 where the greedy completion is right."""
        return tuple(np.array([row["correct"] for row in self.texts[name]], float) for name in ENDS)

    @functools.cached_property
    def samples(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of base and trained model (bool[P,N] whether a completion is right, f64[P] the chance of a right guess)."""
        count, kept, found = self.config.num_samples, self.kept, []
        few = min(filter(None, (kept.max_problems, self.config.sampled_problems)), default=0)
        sets = load_sets(kept.with_flags(max_problems=few), self.base, lambda stem: (count, self.config.temperature))
        sampler = make_sampler(self.base, kept.sampling)
        for name, loaded in zip(ENDS, (self.base, self.trained)):
            parts = sample_and_keep(self.folder(f"samples_{name}"),
                                    sampler._replace(params=parallel.place_state(loaded.params)),
                         sets, Request(kept.seed, 0), kept.rows_per_call)
            rows = [row for part in parts.values() for row in part]
            self.count(f"samples, {name}", rows, 1)
            right_PxN = np.array([row["correct"] for row in rows]).reshape(-1, count)
            answers_PxN = np.array([mathematics.normalise(row["extracted"] or "") for row in rows]).reshape(-1, count)
            truths_P = [mathematics.normalise(row["answer"]) for row in rows[::count]]
            found.append((right_PxN, formulas.guess_rates(answers_PxN.tolist(), right_PxN, truths_P)))
        return found

    @functools.cached_property
    def steered(self) -> tuple[list[dict], dict]:
        """(rows of the hybrid, what was chosen for it). Raises Undefined where it cannot be fitted."""
        out = pathlib.Path(self.kept.out) / "hybrid"
        config = self.config.hybrid.with_flags(out=str(out), model=self.config.base)
        try:
            fitted = gate.fit(config.steering, self.base, self.trained)
        except UserError as error:
            raise Undefined(f"not measured: {error}".replace("--model", "--base")) from None
        chosen = hybrid.choose(config, self.base, fitted)
        rows = hybrid.asker(config, self.base, load_sets(self.kept, self.base))(
            "test", {"model": self.base.params, "steering": fitted.steering(chosen["strength"], chosen["rate"])},
            steering.steered_sample_fn("gate", config.steering.layer))
        self.count("hybrid", rows, 1)
        for path in sorted((out / "dev").glob("*/completions.jsonl")):
            self.count(f"hybrid, {path.parent.name}", [row for _, row in files.read_lines(path)], 1)
        prompts = sum(len(self.base.tokenizer.encode(problem.prompt)) for problem in fitted.problems)
        # Both write a text, then both read both texts; the vector reads the prompts.
        self.tokens["hybrid, fitting"] = 7 * prompts + 3 * fitted.gate["n"]
        return rows, chosen

    @functools.cached_property
    def surprises(self) -> dict[str, np.ndarray]:
        """f64[n], log-perplexities by the trained model minus those by the base, nats a token, by the label of a row.

        Of the trained model's right greedy completions, of reference solutions, and of prompts after their first token.
        """
        encode, problems = self.base.tokenizer.encode, [p for b in load_sets(self.kept, self.base) for p in b.problems]
        prompts = [encode(problem.prompt) for problem in problems]
        steps = [" ".join(problem.meta.get("steps", ())) for problem in problems]
        texts = {"answer_perplexity, own": [(ids, row["ids"]) for ids, row in zip(prompts, self.texts["trained"])
                                            if row["correct"]],
                 "answer_perplexity, reference": [(ids, encode(text)) for ids, text in zip(prompts, steps) if text],
                 "prompt_perplexity": [(ids[:1], ids[1:]) for ids in prompts if len(ids) > 1]}
        for label, group in texts.items():
            self.tokens[label] = 2 * sum(len(given) + len(ids) for given, ids in group)
        return {label: log_perplexities(self.trained, group) - log_perplexities(self.base, group)
                for label, group in texts.items()}


def log_perplexities(loaded: LanguageModel, texts: list[tuple[list, list]]) -> np.ndarray:
    """f64[N] nats a token, the mean negative log-probability of the second part of each text, given the first."""
    params, found = jax.device_put(loaded.params), []
    with progress(len(texts), 0, "perplexity", unit="text") as bar:
        for start in range(0, len(texts), TEXTS):
            part = texts[start : start + TEXTS]
            tokens, _ = pad_rows([[*given, *ids] for given, ids in part], 0)
            tokens = np.pad(tokens, ((0, TEXTS - len(part)), (0, -tokens.shape[1] % 16)))  # few shapes to compile
            losses_BxT = -np.asarray(_logprobs(params, loaded.config, tokens), np.float64)
            found += [row[len(given) - 1 :][: len(ids)].mean() for row, (given, ids) in zip(losses_BxT, part)]
            bar.update(len(part))
    return np.array(found)


@functools.partial(jax.jit, static_argnums=1)
def _logprobs(params: model.Params, config: model.ModelConfig, tokens_BxT: jax.Array) -> jax.Array:
    """f32[B,T-1], of each token but the first."""
    hidden_BxTxD, _ = model.forward(params, config, tokens_BxT)
    return logprobs.token_logprobs(params, hidden_BxTxD[:, :-1], tokens_BxT[:, 1:], 1.0)[0]
