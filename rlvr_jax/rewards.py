"""What training maximises: one table, name -> function of a step's completions. Add a reward by adding a row.

Whether a completion is *correct* is measured beside the reward in every run, so a spurious reward can be told from a
true one by its curve.
"""

import collections
import difflib
from fractions import Fraction
from typing import Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax import learner, parallel
from rlvr_jax.config import TrainConfig, parse_weights
from rlvr_jax.errors import UserError
from rlvr_jax.grading import confidence, grade, mathematics
from rlvr_jax.learner import Batch
from rlvr_jax.pretrained import loading
from rlvr_jax.sampler import Rollouts
from rlvr_jax.step import Policy, References, Step
from rlvr_jax.tasks import answers
from rlvr_jax.tasks.problems import Problem

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


def inverted(step: Step) -> np.ndarray:
    """1 if the completion is not correct, 0 if it is (arXiv 2506.10947)."""
    return 1 - correct(step)


def permuted(step: Step) -> np.ndarray:
    """The correctness of the group's completions, shuffled among them: as much reward, credited at random."""
    rng, right = np.random.default_rng(step.key), correct(step).reshape(-1, step.config.group_size)
    return rng.permuted(right, axis=1).reshape(-1)


def majority(step: Step) -> np.ndarray:
    """1 for the answer that the model gave most often before training (arXiv 2506.10947)."""
    return step.equals([problem.meta["votes"]["majority"] for problem in step.problems])


def incorrect(step: Step) -> np.ndarray:
    """1 for a wrong answer: --wrong_answer, or the most frequent wrong one before training (arXiv 2506.10947)."""
    return step.equals([step.config.wrong_answer or problem.meta["votes"]["wrong"] for problem in step.problems])


def ttrl(step: Step) -> np.ndarray:
    """1 for the answer that most of this step's completions of the problem give (TTRL, arXiv 2504.16084)."""
    answers = collections.defaultdict(list)
    for place, verdict in zip(step.rollouts.prompt_index, step.verdicts):
        answers[int(place)].append(verdict.extracted)
    voted = {place: grade.most_common(given) for place, given in answers.items()}
    return step.equals([voted[int(place)] for place in step.rollouts.prompt_index])


def continuous(step: Step) -> np.ndarray:
    """1 at the reference number, less by distance and relative distance (RandomCalculation, arXiv 2507.10532).

    1 - min(|a-b|, 1) / 2 - min(|a-b| / (|b| + 1e-6), 1) / 2; 0 where the answer is no number.
    """
    return np.array([closeness(verdict.extracted, problem.answer)
                     for verdict, problem in zip(step.verdicts, step.problems)], np.float32)


def closeness(given: Optional[str], answer: str) -> float:
    """`continuous` of one answer. UserError for a reference that is no number."""
    wanted, got = (mathematics.value(mathematics.normalise(text or "")) for text in (answer, given))
    if wanted is None:
        raise UserError(f"--reward=continuous needs numbers as reference answers; one is {answer!r}")
    if got is None:
        return 0.0
    gap = abs(got - wanted)
    return float(1 - min(gap, 1) / 2 - min(gap / (abs(wanted) + Fraction(1, 10**6)), 1) / 2)


def imitation(step: Step) -> np.ndarray:
    """Similarity of the next step to the expert's; needs --expert_steps (SRL, arXiv 2510.25992).

    difflib's ratio 2M/T of the completion's first line, cut to as many words as the expert's step has. -1 for none.
    """
    if any("step" not in problem.meta for problem in step.problems):
        raise UserError("--reward=imitation compares with the expert's steps: give --expert_steps, too")
    return np.array([similarity(text, problem.meta["step"]) for text, problem in zip(step.texts, step.problems)],
                    np.float32)


def similarity(text: str, wanted: str) -> float:
    line = text.strip().split("\n", 1)[0]
    given = " ".join(line.split()[: len(wanted.split())])
    return difflib.SequenceMatcher(None, given, wanted, autojunk=False).ratio() if given else -1.0


def verifier_free(step: Step) -> np.ndarray:
    """The policy's probability of the reference answer after its own reasoning (VeriFree, arXiv 2505.21493).

    It is the weight of the answer tokens' gradient too (`grpo.with_advantages`). Take it with --objective=rloo.
    """
    return step.references.probability


def self_certainty(step: Step) -> np.ndarray:
    """KL(uniform || policy), the mean over the completion's tokens, in nats (Intuitor, arXiv 2505.19590)."""
    return step.mean(step.policy.self_certainty)


def low_entropy(step: Step) -> np.ndarray:
    """Minus the mean entropy of the completion's tokens, in nats; as a loss it is --objective=entropy."""
    return -step.mean(step.policy.entropies)


def overlong(step: Step) -> np.ndarray:
    """0, falling to -1 over the last --overlong_buffer tokens before max_new_tokens (DAPO, arXiv 2503.14476)."""
    buffer, lengths = step.config.overlong_buffer, step.rollouts.completion_mask.sum(-1)
    return np.clip((step.config.max_new_tokens - buffer - lengths) / max(buffer, 1), -1, 0).astype(np.float32)


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


REWARDS: dict[str, Reward] = {
    "correct": correct, "format": well_formed, "random": coin, "inverted": inverted, "permuted": permuted,
    "majority": majority, "incorrect": incorrect, "ttrl": ttrl, "continuous": continuous, "imitation": imitation,
    "verifier_free": verifier_free, "self_certainty": self_certainty, "entropy": low_entropy, "overlong": overlong,
    "calibrated": calibrated, "none": nothing}
VOTED = {"majority", "incorrect"}  # rewards that need the votes of the model before training, in each problem's meta


def parse(text: str) -> dict[str, float]:
    """The weight of each reward of `config.parse_weights`, by name. UserError for a name that comes twice."""
    pairs = parse_weights("reward", text, REWARDS)
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"--reward={text}: give each reward once")
    return dict(pairs)


def needs_votes(config: TrainConfig) -> bool:
    """Whether it has to be known what the model answers before training."""
    told = {"incorrect"} if config.wrong_answer else set()
    return config.only_wrong_majority or bool((VOTED & parse(config.reward).keys()) - told)


class Scored(NamedTuple):
    """A step's rewards and what else is known of its completions: arrays with one entry a completion."""

    text: np.ndarray  # object: str
    reward: np.ndarray  # f32
    correct: np.ndarray  # f32, 0 or 1
    timed_out: np.ndarray  # f32, 0 or 1: a limit ended the grading
    graded_by: np.ndarray  # object: str
    references: Optional[References] = None  # under `verifier_free`: what the update learns from instead


def make_scorer(config: TrainConfig, loaded: loading.LanguageModel, problems: list[Problem], prompts) -> Callable:
    r"""`score(params, rollouts, step, attempt=0) -> Scored`.

    The main process's verdicts and rewards hold on all. A completion is graded without its prompt. The released
    one-shot code grades both together: a completion without a box then falls back on the empty `\boxed{}` of the
    instruction and is wrong all the same, so the verdicts are equal.
    """
    rules, weights = answers.rules(problems, config.answer_format, config.grader), parse(config.reward)
    graded_by = np.array(answers.described(rules), object)
    statistics = learner.map_statistics(loaded.config, config)

    def score(params, rollouts: Rollouts, step: int, attempt: int = 0) -> Scored:
        texts = loaded.tokenizer.decode_rollouts(rollouts)
        asked = [problems[i] for i in rollouts.prompt_index]
        verdicts = answers.verdicts(texts, [rules[i] for i in rollouts.prompt_index])
        flags = parallel.broadcast(np.array([[v.correct, v.timed_out] for v in verdicts], np.float32))
        verdicts = [v._replace(correct=bool(right), timed_out=bool(late)) for v, (right, late) in zip(verdicts, flags)]
        batch = Batch(prompts, rollouts.prompt_index, rollouts.completions, rollouts.completion_mask,
                      np.zeros(len(texts), np.float32))
        seen = Step(config, asked, texts, verdicts, rollouts, np.arange(len(texts)) // config.group_size,
                    (config.seed, step, attempt), Policy(statistics, loaded.tokenizer, params, batch))
        reward = parallel.broadcast(np.sum([weight * REWARDS[name](seen) for name, weight in weights.items()], 0,
                                           dtype=np.float32))
        return Scored(np.array(texts, object), reward, flags[:, 0], flags[:, 1],
                      graded_by[rollouts.prompt_index], seen.references if "verifier_free" in weights else None)

    return score
