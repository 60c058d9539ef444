"""The table of rewards, name -> function of a step's completions. To add a reward, add a row. Accuracy is logged
whatever the reward, so that curves distinguish spurious rewards from true ones."""

import collections
import difflib
from fractions import Fraction
from typing import Callable, NamedTuple, Optional, Sequence

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.grading import grade, mathematics, stated_confidence
from rlvr_jax.grpo import Targets
from rlvr_jax.rewards.context import RewardContext


class RewardConfig(Config):
    """What the reward pays for."""

    reward: str = flag("correct", "what the reward pays for: one row of the table, or a weighted sum such as "
                       "correct:1,format:0.1", lambda: REWARDS, listed=True)
    random_rate: float = flag(0.5, "probability of reward 1 under --reward=random", minimum=0, maximum=1)
    wrong_answer: str = flag("", "the answer that --reward=incorrect pays for; empty: for each problem, the "
                             "most frequent wrong answer among 64 completions before training")
    overlong_buffer: int = flag(0, "number of last tokens before max_new_tokens over which --reward=overlong falls "
                                "from 0 to -1", minimum=0)


class Reward(NamedTuple):
    """A row of the table that has more than a score function; any other row is its score function alone."""

    score: Callable[[RewardContext], np.ndarray]  # f32[B]
    prepare: Callable[[RewardConfig], bool] = lambda config: False  # whether `score` reads meta["votes"]
    check: Callable[[str], str] = lambda objective: ""  # why --objective cannot be used with this row, or ""
    targets: Optional[Callable[[RewardContext], Targets]] = None  # tokens to learn from, if not the sampled ones
    constant: bool = False  # whether every completion gets the same reward


def correctness(context: RewardContext) -> np.ndarray:
    """1 if the extracted answer equals the reference answer, else 0."""
    return np.array([verdict.correct for verdict in context.verdicts], np.float32)


def well_formed(context: RewardContext) -> np.ndarray:
    """1 if an answer can be extracted, whatever it says: a control that pays only for format."""
    return np.array([bool(verdict.extracted) for verdict in context.verdicts], np.float32)


def coin(context: RewardContext) -> np.ndarray:
    """1 with probability --random_rate, whatever the completion says (arXiv 2506.10947)."""
    draws = np.random.default_rng(context.key).random(len(context.texts))
    return (draws < context.config.random_rate).astype(np.float32)


def inverted_correctness(context: RewardContext) -> np.ndarray:
    """1 if the completion is not correct, 0 if it is (arXiv 2506.10947)."""
    return 1 - correctness(context)


def permuted_correctness(context: RewardContext) -> np.ndarray:
    """Correctness, shuffled among the completions of each group: random ones receive the group's true total reward."""
    rng, right = np.random.default_rng(context.key), correctness(context).reshape(-1, context.group_size)
    return rng.permuted(right, axis=1).reshape(-1)


def majority_vote(context: RewardContext) -> np.ndarray:
    """1 if the answer is the model's most frequent one before training, else 0 (arXiv 2506.10947)."""
    return context.equals([problem.meta["votes"]["majority"] for problem in context.problems])


def wrong_vote(context: RewardContext) -> np.ndarray:
    """1 for a wrong answer: --wrong_answer, or the most frequent wrong answer before training (arXiv 2506.10947)."""
    label = context.config.wrong_answer
    return context.equals([label or problem.meta["votes"]["wrong"] for problem in context.problems])


def ttrl(context: RewardContext) -> np.ndarray:
    """1 for the most frequent answer among this step's completions of the problem (TTRL, arXiv 2504.16084)."""
    indices, answers = context.rollouts.prompt_index, collections.defaultdict(list)
    for index, verdict in zip(indices, context.verdicts):
        answers[index].append(verdict.extracted)
    votes = {index: grade.most_common(given) for index, given in answers.items()}
    return context.equals([votes[index] for index in indices])


def continuous(context: RewardContext) -> np.ndarray:
    """Closeness of the answer to the reference number (RandomCalculation, arXiv 2507.10532). For an answer a and a
    reference b it is 1 - min(|a-b|, 1) / 2 - min(|a-b| / (|b| + 1e-6), 1) / 2; it is 0 if a is not a number."""
    return np.array([closeness(verdict.extracted, problem.answer)
                     for verdict, problem in zip(context.verdicts, context.problems)], np.float32)


def closeness(answer: Optional[str], reference: str) -> float:
    """The reward `continuous` for one answer, from 0 to 1. Raises UserError if the reference is not a number."""
    a, b = (mathematics.read_number(mathematics.normalise(text or "")) for text in (answer, reference))
    if b is None:
        raise UserError(f"--reward=continuous needs numbers as reference answers; one is {reference!r}")
    if a is None:
        return 0.0
    gap = abs(a - b)
    return float(1 - min(gap, 1) / 2 - min(gap / (abs(b) + Fraction(1, 10**6)), 1) / 2)


def imitation(context: RewardContext) -> np.ndarray:
    """Similarity of the completion's step to the expert's next step, word by word; needs --expert_steps (SRL, arXiv
    2510.25992). The reward is difflib's ratio 2M/T, where M words match and the two steps have T words together, or -1
    for an empty step. If the expert's step is a single word, any other word gets 0."""
    return compare_with_expert(context, similarity)


def imitation_characters(context: RewardContext) -> np.ndarray:
    """`imitation` letter by letter, as in the paper, for steps in ordinary prose (SRL, arXiv 2510.25992). This does not
    suit synthetic families: their words are arbitrary names, so letters that two words share mean nothing."""
    return compare_with_expert(context, lambda step, expert: similarity(" ".join(step), " ".join(expert)))


def step_accuracy(context: RewardContext) -> np.ndarray:
    """1 if the completion's step equals the expert's next step word for word, else 0; needs --expert_steps. The mean is
    logged as train/step_accuracy under any reward."""
    return compare_with_expert(context, lambda step, expert: step == expert)


def compare_with_expert(context: RewardContext, compare: Callable[[list[str], list[str]], float]) -> np.ndarray:
    """f32[B]: `compare(words of the completion's step, words of the expert's step)`. The completion's step is its first
    line, cut to the length of the expert's step, meta["step"]. Raises UserError for problems without meta["step"]."""
    if any("step" not in problem.meta for problem in context.problems):
        raise UserError(f"--reward={context.config.reward} compares with an expert's steps: also give --expert_steps")
    experts = [problem.meta["step"].split() for problem in context.problems]
    first_lines = [text.strip().split("\n", 1)[0] for text in context.texts]
    steps = [line.split()[: len(expert)] for line, expert in zip(first_lines, experts)]
    return np.array([compare(step, expert) for step, expert in zip(steps, experts)], np.float32)


def similarity(step: Sequence[str], expert: Sequence[str]) -> float:
    """difflib's ratio 2M/T of two sequences of words or letters (not symmetric in the two); -1 for an empty step."""
    return difflib.SequenceMatcher(None, step, expert, autojunk=False).ratio() if step else -1.0


def verifier_free(context: RewardContext) -> np.ndarray:
    """The policy's probability of the reference answer after the completion's reasoning (VeriFree, arXiv 2505.21493).
    It also weights the gradient of the answer tokens (`learn_reference_answers`). Use it with --objective=rloo."""
    return context.reference_answers.probability


def learn_reference_answers(context: RewardContext) -> Targets:
    """The tokens to learn from: completions with the reference answer in place of their own. The answer's tokens are
    weighted by its probability, the reasoning's tokens by the advantage (VeriFree, arXiv 2505.21493, equation 4)."""
    answers = context.reference_answers
    weights_BxT = np.broadcast_to(answers.probability[:, None], answers.answer.shape)
    return Targets(answers.completions, answers.mask, answers.answer, weights_BxT)


def refuse_clipping(objective: str) -> str:
    """Returns why `objective` cannot be used with `verifier_free`: it clips or scales gradients. "" if it does not."""
    return "" if objective in ("rloo", "reinforce") else (
        f"--reward=verifier_free weights the reference answer's tokens, which --objective={objective} would clip or "
        "scale: take --objective=rloo")


def self_certainty(context: RewardContext) -> np.ndarray:
    """KL(uniform || policy) in nats, the mean over the completion's tokens (Intuitor, arXiv 2505.19590)."""
    return context.mean(context.policy.self_certainty)


def low_entropy(context: RewardContext) -> np.ndarray:
    """Minus the mean entropy of the completion's tokens, in nats. --objective=entropy minimises entropy in its loss."""
    return -context.mean(context.policy.entropies)


def overlong(context: RewardContext) -> np.ndarray:
    """0, falling linearly to -1 over the --overlong_buffer tokens before max_new_tokens (DAPO, arXiv 2503.14476)."""
    buffer, lengths = context.config.overlong_buffer, context.rollouts.completion_mask.sum(-1)
    return np.clip((context.max_new_tokens - buffer - lengths) / max(buffer, 1), -1, 0).astype(np.float32)


def zero(context: RewardContext) -> np.ndarray:
    """Always 0: without advantages, only the KL and entropy terms of the loss remain."""
    return np.zeros(len(context.texts), np.float32)


def calibration(context: RewardContext) -> np.ndarray:
    """1 + (c - (q - c)^2) / 2 for an answer (c=1 if correct, else 0) with a confidence q; 0 if either is missing.
    As in RLCR's code (arXiv 2507.16806), it is the sum of 1/2 for the form, c/2 for the answer, and (1 - (q - c)^2) / 2
    for the Brier score. RLCR does not divide advantages by the group's std: use --objective=reinforce or dr_grpo."""
    valid, q, c = read_confidences(context)
    return np.where(valid, 1 + (c - (q - c) ** 2) / 2, 0)


def calibration_to_mean(context: RewardContext) -> np.ndarray:
    """A control: `calibrated` with each confidence replaced by the mean accuracy of the step's well-formed completions,
    so that only the form and the correct answer are rewarded."""
    valid, _, c = read_confidences(context)
    mean = c[valid].mean() if valid.any() else 0
    return np.where(valid, 1 + (c - (mean - c) ** 2) / 2, 0)


def calibration_to_permuted(context: RewardContext) -> np.ndarray:
    """A control: `calibrated` with the Brier score's correctness shuffled among the well-formed completions, so that
    the mean accuracy is the best confidence for every answer."""
    valid, q, c = read_confidences(context)
    shuffled_c = c.copy()
    shuffled_c[valid] = np.random.default_rng(context.key).permutation(c[valid])
    return np.where(valid, 1 + (c - (q - shuffled_c) ** 2) / 2, 0)


def read_confidences(context: RewardContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (valid bool[B], q f32[B], c f32[B]): whether the completion is well-formed, that is, states an answer and
    ends with a confidence; the confidence, 0 if there is none; and 1 if the answer is correct, else 0."""
    stated = [stated_confidence.final_confidence(text) for text in context.texts]
    valid = np.array([bool(verdict.extracted) and q is not None for verdict, q in zip(context.verdicts, stated)])
    return valid, np.array([q or 0 for q in stated], np.float32), correctness(context)


REWARDS: dict[str, Callable | Reward] = {
    "correct": correctness, "format": well_formed, "random": coin, "inverted": inverted_correctness,
    "permuted": permuted_correctness, "majority": Reward(majority_vote, prepare=lambda config: True),
    "incorrect": Reward(wrong_vote, prepare=lambda config: not config.wrong_answer),
    "ttrl": ttrl, "continuous": continuous, "imitation": imitation,
    "imitation_characters": imitation_characters, "step_accuracy": step_accuracy,
    "verifier_free": Reward(verifier_free, check=refuse_clipping, targets=learn_reference_answers),
    "self_certainty": self_certainty, "entropy": low_entropy, "overlong": overlong, "calibrated": calibration,
    "calibrated_constant": calibration_to_mean, "calibrated_permuted": calibration_to_permuted,
    "none": Reward(zero, constant=True)}
