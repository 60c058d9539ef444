"""Examples for one-shot critique fine-tuning (arXiv 2506.03295): a model's own attempts, and exact critiques of them.

The published critiques are written by stronger models. Here a critique is the careful solution with at most two
remarks, each `=` and a quote from the attempt. One quotes the attempt's first wrong step, and follows the right version
of that step. One quotes the attempt's answer if it is wrong, and precedes the right answer. If only the last step is
wrong, the step is quoted and not the answer.

  problem   coins 7 + 5 * 2 - 4 =
  attempt   quick 12 14 10 answer 10
  critique  think + 5 12 * 2 24 = 14 - 4 20 = 10 answer 20

The base model saw no such remarks in pre-training, and has no word for "not". Published critiques end with
"Conclusion: right" or "wrong"; here the right answer comes last, where graders look for it.
The prompt is the attempt followed by the problem, the reverse of the published order. So a critique starts right after
the problem, as a completion of the problem alone does. With the published chat template this holds for both orders.
"""

import pathlib
from typing import Callable

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import Benchmark, judge_by_answer, make_sampler, sample_and_grade
from rlvr_jax.grading.extract import state_answer
from rlvr_jax.pretrained import loading
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.runs.machine import MachineConfig
from rlvr_jax.sampler import CHOOSE, Request, SamplingConfig
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.problems import merge
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, encode_prompts, load_problems

STEP_WORDS = {"think": 3, "quick": 1}  # first word of a solution -> number of words in each of its steps


class CritiqueConfig(Config):
    """Examples for fine-tuning, made of a model's own attempts at one synthetic problem."""

    choice: loading.ModelChoice = loading.ModelChoice()
    machine: MachineConfig = MachineConfig()
    sampling: SamplingConfig = SamplingConfig()
    kind: str = flag("critique", "kind of examples", lambda: KINDS)
    problems: str = flag("arithmetic", "a synthetic family whose solutions have steps", lambda: FAMILIES)
    num_ops: int = flag(6, "operations in a problem", minimum=1)
    example: str = flag("0", "the problem to write examples of: its number in the pool of problems, from 0, as in "
                        "scripts.train; a run directory of scripts.train --example=auto, for the problem chosen "
                        "there; or all, for the whole pool")
    example_pool: int = flag(128, "number of problems in the pool, which the seed draws", minimum=1)
    num_attempts: int = flag(600, "attempts to sample, and rows to write, for each problem", minimum=1)
    temperature: float = flag(1.0, "sampling temperature of the attempts", above=0)
    seed: int = flag(0, "seed of the problems, the sampling and the shuffling", minimum=0, maximum=2**31 - 1)
    out: str = flag("", "JSONL file to write: a prompt and a completion in each row, for scripts.finetune")


def critique(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Each attempt followed by the problem as prompt, and an exact critique as completion."""
    return [(f"{row['completion']} {problem.prompt}".lstrip(), criticise(problem.meta["steps"], row["completion"]))
            for row in attempts]


def shuffled(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the prompts and critiques of `critique`, but each critique is that of another attempt."""
    prompts, critiques = zip(*critique(problem, attempts, rng))
    cycle, source = rng.permutation(len(critiques)), np.empty(len(critiques), int)
    source[cycle] = np.roll(cycle, 1)  # prompt i gets critique source[i]; one cycle of all, so no prompt keeps its own
    return [(prompt, critiques[i]) for prompt, i in zip(prompts, source)]


def attempted(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the attempts themselves, right or wrong, without critiques; empty attempts are left out."""
    return [(problem.prompt, row["completion"]) for row in attempts if row["completion"]]


def correct(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: only the right attempts, repeated up to the number of all attempts; no rows if no attempt is right."""
    right = [row["completion"] for row in attempts if row["correct"]]
    return [(problem.prompt, right[i % len(right)]) for i in range(len(attempts) if right else 0)]


def answer(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the right answer alone."""
    return [(problem.prompt,
             state_answer(FAMILIES[problem.meta["task"]].answer_format, problem.answer))] * len(attempts)


def expert(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the careful solution, which --reward=imitation of scripts.train also learns from."""
    return [(problem.prompt, " ".join(problem.meta["steps"]))] * len(attempts)


# --kind -> function of (problem, its attempts as graded rows, random generator) -> [(prompt, completion), ...]
KINDS: dict[str, Callable] = {"critique": critique, "shuffled": shuffled, "attempts": attempted, "correct": correct,
                              "answer": answer, "expert": expert}


def criticise(steps: list[str], attempt: str) -> str:
    """The critique of an attempt, as the top of this file describes. `steps` are those of the careful solution: its
    opening word, a text for each operation, and "answer VALUE" (`meta["steps"]` of a problem). Steps of an attempt that
    starts with "think" have three words and are quoted whole; those of "quick" have one word, and an attempt with any
    other first word has no steps to quote. The remark on a missing answer is `=` alone."""
    size = STEP_WORDS.get(attempt.split(" ")[0], 0)
    body, _, stated = attempt.partition("answer")
    words = body.split()[1:]
    last = len(steps) - 2  # the index of the last operation, before the answer
    attempted_steps = [words[i : i + size] for i in range(0, len(words), size)] if size else []
    wrong = [i for i, step in enumerate(attempted_steps[:last], 1) if step != steps[i].split()[-size:]]
    remarks = {i: attempted_steps[i - 1] for i in wrong[:1]}  # index in `steps` -> words of the attempt to quote
    if stated.split() != steps[-1].split()[1:]:
        remarks = {last: stated.split()} | remarks  # a wrong last step is quoted, not the answer
    return " ".join(" ".join([step, "=", *remarks[i]]) if i in remarks else step for i, step in enumerate(steps))


def choose_problems(config: CritiqueConfig, pool: list[Problem]) -> list[Problem]:
    """Returns the problems of the pool that --example names: one, or all. Raises UserError if it names none of them, or
    a run that trained on another question, and if any problem of the pool has no steps."""
    path = pathlib.Path(config.example.partition("@")[0]) / "example.json"
    chosen = files.read_json(path, missing={"example": config.example})
    number = str(chosen["example"])
    if not all(problem.meta.get("steps") for problem in pool):
        raise UserError(f"--problems={config.problems}: these problems have no steps, which critiques are made of")
    if number == "all":
        return pool
    if not number.isdigit() or int(number) >= len(pool):
        raise UserError(f"--example={config.example}: {config.problems} has problems 0 to {len(pool) - 1}; or all, or "
                        "a run directory with an example.json, which scripts.train with --example=auto writes")
    problem = pool[int(number)]
    if chosen.get("question", problem.question) != problem.question:
        raise UserError(f"--example={config.example}: that run trained on {chosen['question']!r}, which is not problem "
                        f"{number} here; give its --problems, --num_ops, --example_pool and --seed")
    return [problem]


def make_examples(config: CritiqueConfig) -> list[dict]:
    """Samples attempts at the problems of --example, makes examples of kind --kind from them, and writes the examples
    to --out. Returns the examples, `{"prompt", "completion", "kind"}` each; UserError without --out or examples."""
    if not config.out:
        raise UserError("--out is required: the JSONL file for the rows")
    loaded = loading.load_fixed(config.choice)
    source = ProblemSource(config.problems, PromptConfig(config.num_ops))
    pool = merge(load_problems(source, loaded.tokenizer, "example", config.example_pool, config.seed))
    problems = choose_problems(config, pool)
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, config.sampling.max_new_tokens)
    benchmark = Benchmark("example", problems, prompts, judge_by_answer(GradingConfig()), config.num_attempts,
                          config.temperature)
    rows = list(sample_and_grade(make_sampler(loaded, config.sampling), benchmark,
                                 Request(config.seed, 0, stream=CHOOSE)))
    rng, count, examples = np.random.default_rng(config.seed), config.num_attempts, []
    for i, problem in enumerate(problems):
        pairs = KINDS[config.kind](problem, rows[i * count : (i + 1) * count], rng)
        examples += [{"prompt": prompt, "completion": completion, "kind": config.kind} for prompt, completion in pairs]
    if not examples:
        needed = "is right" if config.kind == "correct" else "has any text"
        raise UserError(f"--kind={config.kind}: none of {len(rows)} attempts {needed}; raise --num_attempts, or take "
                        "another --example")
    path = pathlib.Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, examples)
    return examples
