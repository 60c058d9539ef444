"""Problems drawn from the generators of reasoning-gym (installed by the extra `gym`): `--problems=gym:chain_sum`.

Problems are plain text. Each data set has its own verifier (`grading.gym`), which needs a problem's whole entry, stored
as JSON in meta["entry"]. A hash of the question decides the split, so two splits share no question, whatever the seeds.
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
TRIES = 8  # entries drawn for each problem asked for: only a third of the entries belong to the split
# Matches the source of a verifier that may execute a model's answer as code; executing a part of the entry is allowed.
_RUNS_CODE = re.compile(r"\b(eval|exec|parse_expr|sympify)\((?!entry\[)")
# Data sets (version 0.1.25) drawn from Python sets, whose order differs between processes: a run could not be resumed.
UNSTEADY = {"isomorphic_strings", "ransom_note", "word_ladder"}


def draw_problems(name: str, seed: int, count: int, split: str) -> list[Problem]:
    """Returns up to `count` distinct problems of `split`, one of SPLITS, from the data set `name`, "gym:NAME". Raises
    UserError if reasoning-gym or the data set is missing, if its verifier is unusable, and if no problem is found."""
    data, drawn = make_dataset(name, seed, TRIES * count), {}  # drawn: {question: Problem}
    for entry in (data[i] for i in range(len(data))):
        if len(drawn) == count:
            break
        question, answer = entry["question"], entry["answer"]
        if SPLITS[hashlib.sha256(question.encode()).digest()[0] % len(SPLITS)] != split or question in drawn:
            continue
        text = json.dumps(entry)
        if not isinstance(answer, str) or data.score_answer(answer, json.loads(text)) != 1:
            raise UserError(f"{name}: the verifier does not accept the data set's own answer; choose another data set")
        if len(text) <= gym.MAX_REFERENCE:  # the grader refuses longer entries
            drawn[question] = Problem(question, answer, question, {"index": len(drawn), "task": name, "entry": text})
    if not drawn:
        raise UserError(f"{name} has no problem of the {split} split among {len(data)}; choose another data set")
    return list(drawn.values())


def make_dataset(name: str, seed: int, size: int):
    """Returns reasoning-gym's data set `name`, "gym:NAME", of `size` entries. UserError if missing or unusable."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError(gym.MISSING) from None
    task = name.removeprefix(PREFIX)
    if task not in DATASETS:
        near = sorted(known for known in DATASETS if task and known.startswith(task[:3]))
        raise UserError(f"reasoning-gym has no data set {task!r}"
                        + (f"; similar names: {', '.join(near)}" if near else "; choose one, such as chain_sum"))
    if task in UNSTEADY:
        raise UserError(f"{name}: this data set draws different problems in each process, so no run could be continued")
    if _RUNS_CODE.search(inspect.getsource(DATASETS[task][0].score_answer)):
        raise UserError(f"{name}: its verifier executes a model's answer as Python code; choose another data set")
    hashed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 1  # because seeds s, s+1 share entries
    try:
        return reasoning_gym.create_dataset(task, seed=hashed, size=size)
    except (AssertionError, ValueError) as error:
        raise UserError(f"{name} needs settings that it is not given here: {error}; choose another data set") from None
