"""What training maximises: one table, name -> function of a step's completions. Add a reward by adding a row.

Whether a completion is *correct* is measured beside the reward, so that curves tell a spurious reward from a true one.
"""

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
    """What is paid for."""

    reward: str = flag("correct", "what is paid for: one row of the table, or a weighted sum such as "
                       "correct:1,format:0.1", lambda: REWARDS, listed=True)
    random_rate: float = flag(0.5, "chance of a reward under --reward=random", minimum=0, maximum=1)
    wrong_answer: str = flag("", "the answer that --reward=incorrect pays for; empty: of each problem the most "
                             "frequent wrong one of 64 completions before training")
    overlong_buffer: int = flag(0, "tokens before max_new_tokens over which --reward=overlong falls to -1",
                                minimum=0)


class Reward(NamedTuple):
    """A row of the table that needs more than a score; any other row is the function `score` alone."""

    score: Callable[[RewardContext], np.ndarray]  # f32[B]
    prepare: Callable[[RewardConfig], bool] = lambda config: False  # whether it needs votes: see `measure.votes`
    check: Callable[[str], str] = lambda objective: ""  # why it cannot go with --objective; empty if it can
    targets: Optional[Callable[[RewardContext], Targets]] = None  # tokens to learn from in place of the sampled ones
    constant: bool = False  # every completion is paid the same, whatever it is


def correctness(seen: RewardContext) -> np.ndarray:
    """1 if the extracted answer equals the reference answer, else 0."""
    return np.array([verdict.correct for verdict in seen.verdicts], np.float32)


def well_formed(seen: RewardContext) -> np.ndarray:
    """1 if there is an answer to extract, whatever it says: the control that pays for format alone."""
    return np.array([bool(verdict.extracted) for verdict in seen.verdicts], np.float32)


def coin(seen: RewardContext) -> np.ndarray:
    """1 with probability --random_rate, whatever was said (arXiv 2506.10947)."""
    return (np.random.default_rng(seen.key).random(len(seen.texts)) < seen.config.random_rate).astype(np.float32)


def inverted_correctness(seen: RewardContext) -> np.ndarray:
    """1 if the completion is not correct, 0 if it is (arXiv 2506.10947)."""
    return 1 - correctness(seen)


def permuted_correctness(seen: RewardContext) -> np.ndarray:
    """The correctness of the group's completions, shuffled among them: as much reward, credited at random."""
    rng, right = np.random.default_rng(seen.key), correctness(seen).reshape(-1, seen.group_size)
    return rng.permuted(right, axis=1).reshape(-1)


def majority_vote(seen: RewardContext) -> np.ndarray:
    """1 for the answer that the model gave most often before training (arXiv 2506.10947)."""
    return seen.equals([problem.meta["votes"]["majority"] for problem in seen.problems])


def wrong_vote(seen: RewardContext) -> np.ndarray:
    """1 for a wrong answer: --wrong_answer, or the most frequent wrong one before training (arXiv 2506.10947)."""
    return seen.equals([seen.config.wrong_answer or problem.meta["votes"]["wrong"] for problem in seen.problems])


def ttrl(seen: RewardContext) -> np.ndarray:
    """1 for the answer that most of this step's completions of the problem give (TTRL, arXiv 2504.16084)."""
    answers = collections.defaultdict(list)
    for place, verdict in zip(seen.rollouts.prompt_index, seen.verdicts):
        answers[int(place)].append(verdict.extracted)
    voted = {place: grade.most_common(given) for place, given in answers.items()}
    return seen.equals([voted[int(place)] for place in seen.rollouts.prompt_index])


def continuous(seen: RewardContext) -> np.ndarray:
    """1 at the reference number, less by distance and relative distance (RandomCalculation, arXiv 2507.10532). 1 -
    min(|a-b|, 1) / 2 - min(|a-b| / (|b| + 1e-6), 1) / 2; 0 where the answer is no number."""
    return np.array([closeness(verdict.extracted, problem.answer)
                     for verdict, problem in zip(seen.verdicts, seen.problems)], np.float32)


def closeness(given: Optional[str], answer: str) -> float:
    """`continuous` of one answer. UserError for a reference that is no number."""
    wanted, got = (mathematics.value(mathematics.normalise(text or "")) for text in (answer, given))
    if wanted is None:
        raise UserError(f"--reward=continuous needs numbers as reference answers; one is {answer!r}")
    if got is None:
        return 0.0
    gap = abs(got - wanted)
    return float(1 - min(gap, 1) / 2 - min(gap / (abs(wanted) + Fraction(1, 10**6)), 1) / 2)


def imitation(seen: RewardContext) -> np.ndarray:
    """Similarity of the next step to the expert's, word by word; needs --expert_steps (SRL, arXiv 2510.25992).

    difflib's ratio 2M/T, where M words match and both steps together have T words. Words are equal or they are not: for
    a step of one word, as a family's opening word is, the reward is 1 for that word and 0 for any other.
    """
    return compare_with_expert(seen, similarity)


def imitation_characters(seen: RewardContext) -> np.ndarray:
    """The same letter by letter, as the paper has it, for steps in running text (SRL, arXiv 2510.25992). Not for a
    synthetic family: its words are names, and "quick" is no nearer to "think" than "hmm" is."""
    return compare_with_expert(seen, lambda given, wanted: similarity(" ".join(given), " ".join(wanted)))


def step_accuracy(seen: RewardContext) -> np.ndarray:
    """1 if the next step is the expert's, word for word, else 0; needs --expert_steps. It is logged as
    train/step_accuracy whatever is paid."""
    return compare_with_expert(seen, lambda given, wanted: given == wanted)


def compare_with_expert(seen: RewardContext, compare: Callable[[list[str], list[str]], float]) -> np.ndarray:
    """f32[B] `compare(words of the step, words of the expert's)`. The step is the completion's first line, cut to as
    many words as the expert's has."""
    if any("step" not in problem.meta for problem in seen.problems):
        raise UserError(f"--reward={seen.config.reward} compares with the expert's steps: give --expert_steps, too")
    wanted = [problem.meta["step"].split() for problem in seen.problems]
    given = [text.strip().split("\n", 1)[0].split()[: len(step)] for text, step in zip(seen.texts, wanted)]
    return np.array([compare(*pair) for pair in zip(given, wanted)], np.float32)


def similarity(given: Sequence[str], wanted: Sequence[str]) -> float:
    """difflib's ratio 2M/T of two sequences, of words or of letters; -1 where nothing was said. It is not symmetric:
    the expert's is second."""
    return difflib.SequenceMatcher(None, given, wanted, autojunk=False).ratio() if given else -1.0


def verifier_free(seen: RewardContext) -> np.ndarray:
    """The policy's probability of the reference answer after its own reasoning (VeriFree, arXiv 2505.21493). It is the
    weight of the answer tokens' gradient too (`learn_reference_answers`). Take it with --objective=rloo."""
    return seen.reference_answers.probability


def learn_reference_answers(seen: RewardContext) -> Targets:
    """Each completion's answer replaced by the reference answer, whose tokens' gradient has its probability for a
    weight, the reasoning's tokens their advantage (VeriFree, arXiv 2505.21493, equation 4)."""
    put_in = seen.reference_answers
    weights_BxT = np.broadcast_to(put_in.probability[:, None], put_in.answer.shape)
    return Targets(put_in.completions, put_in.mask, put_in.answer, weights_BxT)


def refuse_clipping(objective: str) -> str:
    """Why a weighted gradient does not go with an objective; empty for those that neither clip nor scale."""
    return "" if objective in ("rloo", "reinforce") else (
        f"--reward=verifier_free weights the reference answer's tokens, which --objective={objective} would clip or "
        "scale: take --objective=rloo")


def self_certainty(seen: RewardContext) -> np.ndarray:
    """KL(uniform || policy), the mean over the completion's tokens, in nats (Intuitor, arXiv 2505.19590)."""
    return seen.mean(seen.policy.self_certainty)


def low_entropy(seen: RewardContext) -> np.ndarray:
    """Minus the mean entropy of the completion's tokens, in nats; as a loss it is --objective=entropy."""
    return -seen.mean(seen.policy.entropies)


def overlong(seen: RewardContext) -> np.ndarray:
    """0, falling to -1 over the last --overlong_buffer tokens before max_new_tokens (DAPO, arXiv 2503.14476)."""
    buffer, lengths = seen.config.overlong_buffer, seen.rollouts.completion_mask.sum(-1)
    return np.clip((seen.max_new_tokens - buffer - lengths) / max(buffer, 1), -1, 0).astype(np.float32)


def zero(seen: RewardContext) -> np.ndarray:
    """0, whatever was said: no advantage, so the loss is its KL and entropy terms alone."""
    return np.zeros(len(seen.texts), np.float32)


def calibration(seen: RewardContext) -> np.ndarray:
    """1 + (c - (q - c)^2) / 2 where an answer is stated with a confidence q after it, c its correctness; else 0.

    As RLCR's code has it (arXiv 2507.16806): half for the form, half for the answer, half for the Brier score. There,
    advantages are not divided by the group's std: take --objective=reinforce, or dr_grpo for a constant divisor.
    """
    whole, q, c = read_confidences(seen)
    return np.where(whole, 1 + (c - (q - c) ** 2) / 2, 0)


def calibration_to_mean(seen: RewardContext) -> np.ndarray:
    """`calibrated`, as if each confidence were the mean accuracy of the step's well-formed completions: a control.

    It pays for the form and the right answer alone."""
    whole, _, c = read_confidences(seen)
    mean = c[whole].mean() if whole.any() else 0
    return np.where(whole, 1 + (c - (mean - c) ** 2) / 2, 0)


def calibration_to_permuted(seen: RewardContext) -> np.ndarray:
    """`calibrated`, with the correctness in the Brier score shuffled over the well-formed completions: a control.

    The best confidence is then the mean accuracy, whatever the answer."""
    whole, q, c = read_confidences(seen)
    other = c.copy()
    other[whole] = np.random.default_rng(seen.key).permutation(c[whole])
    return np.where(whole, 1 + (c - (q - other) ** 2) / 2, 0)


def read_confidences(seen: RewardContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool[B], f32[B], f32[B]: whether an answer is stated with a confidence after it, that confidence (0 for none),
    and 1 where the answer is right."""
    sure = [stated_confidence.at_the_end(text) for text in seen.texts]
    whole = np.array([bool(verdict.extracted) and q is not None for verdict, q in zip(seen.verdicts, sure)])
    return whole, np.array([q or 0 for q in sure], np.float32), correctness(seen)


REWARDS: dict[str, Callable | Reward] = {
    "correct": correctness, "format": well_formed, "random": coin, "inverted": inverted_correctness, "permuted": permuted_correctness,
    "majority": Reward(majority_vote, prepare=lambda config: True),
    "incorrect": Reward(wrong_vote, prepare=lambda config: not config.wrong_answer),
    "ttrl": ttrl, "continuous": continuous, "imitation": imitation,
    "imitation_characters": imitation_characters, "step_accuracy": step_accuracy,
    "verifier_free": Reward(verifier_free, check=refuse_clipping, targets=learn_reference_answers),
    "self_certainty": self_certainty, "entropy": low_entropy, "overlong": overlong, "calibrated": calibration,
    "calibrated_constant": calibration_to_mean, "calibrated_permuted": calibration_to_permuted,
    "none": Reward(zero, constant=True)}
