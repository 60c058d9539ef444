"""What training maximises: one table, name -> function of a step's completions. Add a reward by adding a row.

Whether a completion is *correct* is measured beside the reward in every run, so a spurious reward can be told from a
true one by its curve.
"""

import dataclasses
import functools
from typing import Callable, NamedTuple, Sequence

import numpy as np

from rlvr_jax import learner, parallel
from rlvr_jax.config import TrainConfig, parse_weights
from rlvr_jax.grading import confidence, grade
from rlvr_jax.grading.grade import Verdict
from rlvr_jax.learner import Batch
from rlvr_jax.pretrained import loading
from rlvr_jax.sampler import Rollouts
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import resolve_format


@dataclasses.dataclass(frozen=True)
class Policy:
    """The model that drew the rollouts, at the sampling temperature; computed on all devices when a reward asks.

    Every process has to ask alike. B completions, T tokens; values behind a completion's end mean nothing.
    """

    score: Callable  # learner.map_statistics
    encode: Callable[[str], list[int]]
    params: dict
    batch: Batch

    @functools.cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.score(self.params, self.batch)

    @property
    def logprobs(self) -> np.ndarray:
        """f32[B,T] nats: log-probability of each token."""
        return self.statistics[0]

    @property
    def entropies(self) -> np.ndarray:
        """f32[B,T] nats: entropy of the distribution that each token was drawn from."""
        return self.statistics[1]

    @property
    def self_certainty(self) -> np.ndarray:
        """f32[B,T] nats: KL(uniform || policy) of that distribution (Intuitor, arXiv 2505.19590)."""
        return self.statistics[2]

    def logprob_of(self, texts: Sequence[str], after: Sequence[str]) -> np.ndarray:
        """f32[B] nats: log-probability of `texts[b]` where completion b has begun with `after[b]`."""
        before, ids = ([self.encode(text) for text in part] for part in (after, texts))
        longest = max(len(a) + len(b) for a, b in zip(before, ids))
        width = max(self.batch.completions.shape[1], -(-longest // 32) * 32)  # in steps: each width is a program
        rows, mask = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), bool)
        for row, wanted, a, b in zip(rows, mask, before, ids):
            row[: len(a) + len(b)] = a + b
            wanted[len(a) : len(a) + len(b)] = True
        batch = self.batch.replace(completions=rows, completion_mask=mask, sampler_logprobs=None)
        return np.where(mask, self.score(self.params, batch)[0], 0).sum(-1)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step's completions as a reward sees them. Lists and arrays have one entry a completion, B in all."""

    config: TrainConfig
    problems: list[Problem]  # what each was asked
    texts: list[str]
    verdicts: list[Verdict]
    rollouts: Rollouts
    groups: np.ndarray  # i32[B] the group each belongs to
    key: tuple[int, ...]  # np.random.default_rng(step.key) draws the same on every process, and after a resume
    policy: Policy


Reward = Callable[[Step], np.ndarray]  # f32[B]


def correct(step: Step) -> np.ndarray:
    """1 if the extracted answer equals the reference answer, else 0."""
    return np.array([verdict.correct for verdict in step.verdicts], np.float32)


def well_formed(step: Step) -> np.ndarray:
    """1 if there is an answer to extract, whatever it says: the control that pays for format alone."""
    return np.array([bool(verdict.extracted) for verdict in step.verdicts], np.float32)


def coin(step: Step) -> np.ndarray:
    """1 with probability --random_rate, whatever was said (arXiv 2506.10947)."""
    return (np.random.default_rng(step.key).random(len(step.texts)) < step.config.random_rate).astype(np.float32)


def nothing(step: Step) -> np.ndarray:
    """0, whatever was said: no advantage, so the loss is its KL and entropy terms alone."""
    return np.zeros(len(step.texts), np.float32)


def calibrated(step: Step) -> np.ndarray:
    """1 + (c - (q - c)^2) / 2 where an answer is stated with a confidence q after it, c its correctness; else 0.

    As RLCR's code has it (arXiv 2507.16806): half for the form, half for the answer, half for the Brier score.
    """
    sure = [confidence.at_the_end(text) for text in step.texts]
    whole = np.array([bool(verdict.extracted) and q is not None for verdict, q in zip(step.verdicts, sure)])
    q, c = np.array([q or 0 for q in sure], np.float32), correct(step)
    return np.where(whole, 1 + (c - (q - c) ** 2) / 2, 0)


REWARDS: dict[str, Reward] = {"correct": correct, "format": well_formed, "random": coin, "none": nothing,
                              "calibrated": calibrated}


def parse(text: str) -> list[tuple[float, Reward]]:
    """The (weight, reward) pairs of `config.parse_weights`."""
    return [(weight, REWARDS[name]) for name, weight in parse_weights("reward", text, REWARDS)]


class Scored(NamedTuple):
    """A step's rewards and what else is logged of them: arrays with one entry a completion."""

    text: np.ndarray  # object: str
    reward: np.ndarray  # f32
    correct: np.ndarray  # f32, 0 or 1
    timed_out: np.ndarray  # f32, 0 or 1: a limit ended the grading
    graded_by: np.ndarray  # object: str


def make_scorer(config: TrainConfig, loaded: loading.LanguageModel, problems: list[Problem], prompts) -> Callable:
    r"""`score(params, rollouts, step, attempt=0) -> Scored`.

    The main process's verdicts and rewards hold on all. A completion is graded without its prompt. The released
    one-shot code grades both together: a completion without a box then falls back on the empty `\boxed{}` of the
    instruction and is wrong all the same, so the verdicts are equal.
    """
    answer_format = resolve_format(config.answer_format, config.source)
    graded_by, terms = grade.describe(answer_format, config.grader), parse(config.reward)
    statistics = learner.map_statistics(loaded.config, config)

    def score(params, rollouts: Rollouts, step: int, attempt: int = 0) -> Scored:
        texts = loaded.tokenizer.decode_rollouts(rollouts)
        asked = [problems[i] for i in rollouts.prompt_index]
        verdicts = grade.verdicts(texts, [problem.answer for problem in asked], answer_format, config.grader)
        flags = parallel.broadcast(np.array([[v.correct, v.timed_out] for v in verdicts], np.float32))
        verdicts = [v._replace(correct=bool(right), timed_out=bool(late)) for v, (right, late) in zip(verdicts, flags)]
        batch = Batch(prompts, rollouts.prompt_index, rollouts.completions, rollouts.completion_mask,
                      np.zeros(len(texts), np.float32))
        seen = Step(config, asked, texts, verdicts, rollouts, np.arange(len(texts)) // config.group_size,
                    (config.seed, step, attempt), Policy(statistics, loaded.tokenizer.encode, params, batch))
        reward = parallel.broadcast(np.sum([weight * reward(seen) for weight, reward in terms], 0, dtype=np.float32))
        return Scored(np.array(texts, object), reward, flags[:, 0], flags[:, 1],
                      np.full(len(texts), graded_by, object))

    return score
