"""Problems drawn from the generators of reasoning-gym (the extra `gym`): `--problems=gym:chain_sum`.

They are plain text. Each data set has its own verifier (`grading.gym`), which needs a problem's whole entry, stored as
JSON in meta["entry"]. A hash of the question decides the split, so that splits share no problem under any seed.
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
ANSWER_FORMAT = "tag"  # reasoning-gym's own prompt asks for <answer>...</answer>
TRIES = 8  # entries drawn per problem; a third of them belong to the split
_RUNS_CODE = re.compile(r"\b(eval|exec|parse_expr|sympify)\((?!entry\[)")
# These draw from sets of words, whose order differs between processes (0.1.25), so no run could be continued.
UNSTEADY = {"isomorphic_strings", "ransom_note", "word_ladder"}


def draw_problems(name: str, seed: int, count: int, split: str) -> list[Problem]:
    """`count` different problems of a split, or fewer if the data set repeats itself. Raises UserError if reasoning-gym
    or the data set is missing, and if its verifier cannot be used."""
    data, task, drawn = make_dataset(name, seed, TRIES * count), name.removeprefix(PREFIX), {}
    for entry in (data[i] for i in range(len(data))):
        if len(drawn) == count:
            break
        question, answer = entry["question"], entry["answer"]
        if SPLITS[hashlib.sha256(question.encode()).digest()[0] % len(SPLITS)] != split or question in drawn:
            continue
        text = json.dumps(entry)
        if not isinstance(answer, str) or data.score_answer(answer, json.loads(text)) != 1:
            raise UserError(f"{name}: the verifier of {task} accepts no text as the answer; choose another data set")
        if len(text) <= gym.MAX_REFERENCE:
            drawn[question] = Problem(question, answer, question, {"index": len(drawn), "task": name, "entry": text})
    if not drawn:
        raise UserError(f"{name} has no problem of the {split} split among {len(data)}; choose another data set")
    return list(drawn.values())


def make_dataset(name: str, seed: int, size: int):
    """The data set of that name. Raises UserError if it is missing or unfit for training."""
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
        raise UserError(f"{name}: this data set draws different problems in each process, so no run could be continued")
    if _RUNS_CODE.search(inspect.getsource(DATASETS[task][0].score_answer)):
        raise UserError(f"{name}: its verifier executes a model's answer as Python code; choose another data set")
    far = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 1  # entry i of seed s is i-1 of s+1
    try:
        return reasoning_gym.create_dataset(task, seed=far, size=size)
    except (AssertionError, ValueError) as error:
        raise UserError(f"{name} needs settings that it is not given here: {error}; choose another data set") from None
