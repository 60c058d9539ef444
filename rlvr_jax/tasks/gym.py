"""Problems of reasoning-gym (the extra `gym`), drawn by a data set's generator: `--problems=gym:chain_sum`.

They are plain text for language models, and each data set has a verifier of its own (`grading.gym`), which reads a
problem's whole entry: it is in meta["entry"], as JSON. A hash of the question decides which split a problem is of, so
no two splits share one, whatever the seeds are.
"""

import hashlib
import inspect
import json
import re

from rlvr_jax.errors import UserError
from rlvr_jax.grading import gym
from rlvr_jax.records import Problem

PREFIX = "gym:"
SPLITS = ("example", "dev", "test")
ANSWER_FORMAT = "tag"  # reasoning-gym asks for <answer>...</answer>, too
TRIES = 8  # entries drawn for each problem that is wanted; a third of them is of the wanted split
_RUNS_CODE = re.compile(r"\b(eval|exec|parse_expr|sympify)\((?!entry\[)")
# They draw from sets of words, whose order is another one in every process (0.1.25): no run could be continued.
UNSTEADY = {"isomorphic_strings", "ransom_note", "word_ladder"}


def draw_problems(name: str, seed: int, count: int, split: str) -> list[Problem]:
    """`count` different problems of a split, fewer where the data set repeats itself. UserError without reasoning-gym,
    for a data set that it lacks, and for one whose verifier cannot be used here."""
    data, task = make_dataset(name, seed, TRIES * count), name.removeprefix(PREFIX)
    entries = (data[i] for i in range(len(data)))
    drawn = {}
    while len(drawn) < count and (entry := next(entries, None)):
        question, answer = entry["question"], entry["answer"]
        if SPLITS[hashlib.sha256(question.encode()).digest()[0] % len(SPLITS)] != split or question in drawn:
            continue
        text = json.dumps(entry)
        if not isinstance(answer, str) or data.score_answer(answer, json.loads(text)) != 1:
            raise UserError(f"{name}: no text is a right answer by the verifier of {task}; choose another data set")
        if len(text) <= gym.MAX_REFERENCE:
            drawn[question] = Problem(question, answer, question, {"index": len(drawn), "task": name, "entry": text})
    if not drawn:
        raise UserError(f"{name} has no problem of the split {split} among {len(data)}; choose another data set")
    return list(drawn.values())


def make_dataset(name: str, seed: int, size: int):
    """The data set of that name. UserError where it is not there, or not fit for training."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError(gym.MISSING) from None
    task = name.removeprefix(PREFIX)
    if task not in DATASETS:
        near = sorted(known for known in DATASETS if task and known.startswith(task[:3]))
        raise UserError(f"reasoning-gym has no data set {task!r}"
                        + (f"; near it are {', '.join(near)}" if near else "; chain_sum is one"))
    if task in UNSTEADY:
        raise UserError(f"{name}: this data set draws other problems in every process, so no run could be continued")
    if _RUNS_CODE.search(inspect.getsource(DATASETS[task][0].score_answer)):
        raise UserError(f"{name}: its verifier runs what a model answers as Python code; choose another data set")
    far = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 1  # entry i of seed s is i-1 of s+1
    try:
        return reasoning_gym.create_dataset(task, seed=far, size=size)
    except (AssertionError, ValueError) as error:
        raise UserError(f"{name} cannot be drawn as it is: {error}") from None
