"""The input of a reward: a training step's completions, their verdicts, and the policy that sampled them."""

import dataclasses
import functools
from typing import Any, Callable, NamedTuple, Optional, Sequence

import numpy as np

from rlvr_jax.grading import grade
from rlvr_jax.grading.extract import answer_opening
from rlvr_jax.records import Batch, Problem, Rollouts


@dataclasses.dataclass(frozen=True)
class PolicyScores:
    """Statistics of each sampled token under the policy that sampled it, at the sampling temperature: f32[B,T], nats,
    meaningless after a completion's end. The first access uses all devices: if one process makes it, all must."""

    score: Callable  # learner.map_statistics: (params, Batch) -> (logprobs, entropies, self_certainty)
    tokenizer: Any  # pretrained.tokenizer.Tokenizer
    params: dict
    batch: Batch

    @functools.cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three arrays `logprobs`, `entropies` and `self_certainty`."""
        return self.score(self.params, self.batch)

    logprobs = property(lambda self: self.statistics[0])  # log-probability of each sampled token
    entropies = property(lambda self: self.statistics[1])  # entropy of the distribution that it was sampled from
    # KL(uniform || policy) for the distribution that each token was sampled from (Intuitor, arXiv 2505.19590)
    self_certainty = property(lambda self: self.statistics[2])

    def logprob_of(self, texts: Sequence[str], after: Sequence[str]) -> np.ndarray:
        """f32[B] nats: log-probability of `texts[b]` as the continuation of completion b's prompt plus `after[b]`."""
        prefixes, targets = ([self.tokenizer.encode(text) for text in part] for part in (after, texts))
        longest = max(len(prefix) + len(target) for prefix, target in zip(prefixes, targets))
        width = max(self.batch.completions.shape[1], -(-longest // 32) * 32)  # few widths, as each compiles anew
        rows, mask = np.zeros((len(targets), width), np.int32), np.zeros((len(targets), width), bool)
        for row, row_mask, prefix, target in zip(rows, mask, prefixes, targets):
            length = len(prefix) + len(target)
            row[:length] = prefix + target
            row_mask[len(prefix) : length] = True
        return np.where(mask, self.logprobs_of(rows, mask), 0).sum(-1)

    def logprobs_of(self, completions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """f32[B,T] nats: log-probability of each token of `completions`, i32[B,T], which need not be the sampled ones.
        `mask`, bool[B,T], is true at the tokens to score."""
        batch = self.batch.replace(completions=completions, completion_mask=mask, sampler_logprobs=None)
        return self.score(self.params, batch)[0]


class ReferenceAnswers(NamedTuple):
    """Sampled completions, [B,T], in which the reference answer and the end token replace the first stated answer and
    all text after it. A completion that states no answer, or in which the reference does not fit, stays as sampled."""

    completions: np.ndarray  # i32
    mask: np.ndarray  # bool: true at the tokens of a completion
    answer: np.ndarray  # bool: true at the inserted tokens
    logprobs: np.ndarray  # f32 nats: log-probability of each token under the policy

    @property
    def probability(self) -> np.ndarray:
        """f32[B]: pi(reference answer and end token | prompt, reasoning); 0 where no reference answer was inserted."""
        logprob = np.where(self.answer, self.logprobs, 0).sum(-1)
        return np.where(self.answer.any(-1), np.exp(logprob), 0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class RewardContext:
    """The data of a training step that a reward receives. Lists and arrays have one entry for each of B completions."""

    config: Any  # RewardConfig of `rewards.rows`
    formats: list[str]  # answer format of each completion
    grader: str  # --grader, which applies to problems without their own verifier
    problems: list[Problem]  # problem of each completion
    texts: list[str]
    verdicts: list[grade.Verdict]
    rollouts: Rollouts
    groups: np.ndarray  # int[B]: index of each completion's group
    key: tuple[int, ...]  # seed for np.random.default_rng, the same on every process and after a resume
    policy: PolicyScores

    group_size = property(lambda self: len(self.groups) // (int(self.groups[-1]) + 1))
    max_new_tokens = property(lambda self: self.rollouts.completions.shape[1])

    @functools.cached_property
    def reference_answers(self) -> ReferenceAnswers:
        """Each completion up to the first words that introduce an answer, followed by the reference answer. These two
        parts are tokenised separately, so that no token spans both (VeriFree, arXiv 2505.21493). Raises UserError if
        the answer format has no words that introduce an answer."""
        encode, end = self.policy.tokenizer.encode, self.policy.tokenizer.eos_ids[0]
        completions, mask = np.array(self.rollouts.completions), np.array(self.rollouts.completion_mask)
        is_answer = np.zeros_like(mask)
        for b, (text, problem, answer_format) in enumerate(zip(self.texts, self.problems, self.formats)):
            opening, rest = answer_opening(answer_format)
            reasoning, opened, _ = text.partition(opening)  # `opened` is `opening`, or "" if the text lacks it
            before, reference = encode(reasoning + opened), [*encode(rest.format(problem.answer)), end]
            if opened and (length := len(before) + len(reference)) <= mask.shape[1]:
                completions[b, :length], mask[b] = before + reference, np.arange(mask.shape[1]) < length
                is_answer[b, len(before) : length] = True
        return ReferenceAnswers(completions, mask, is_answer, self.policy.logprobs_of(completions, mask))

    def mean(self, values_BxT: np.ndarray) -> np.ndarray:
        """f32[B]: the mean of `values_BxT` over each completion's tokens."""
        mask = self.rollouts.completion_mask
        return (np.where(mask, values_BxT, 0).sum(-1) / np.maximum(mask.sum(-1), 1)).astype(np.float32)

    def equals(self, labels: Sequence[Optional[str]]) -> np.ndarray:
        """f32[B]: 1 if the answer of completion b equals `labels[b]`, else 0. No answer equals the label None. --grader
        decides even for a problem with its own verifier, because a verifier compares only with the reference."""
        verdicts = grade.grade_texts(self.texts, [label or "" for label in labels], self.formats, self.grader)
        return np.array([v.correct and label is not None for v, label in zip(verdicts, labels)], np.float32)
