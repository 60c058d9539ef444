"""Examples for one-shot critique fine-tuning (arXiv 2506.03295): a model's own attempts at one problem, and what an
exact critic says of them.

The published critics are other, stronger models. Here the critic knows the steps of the solution. It writes in the
family's own words, of which none means "not": a step as the attempt has it, `=`, the step as it should be, up to the
first that differs, and the answer in the same way:

  attempt   think + 5 12 * 2 22 - 4 18 answer 18
  critique  + 5 12 = + 5 12 * 2 22 = * 2 24 answer 18 = answer 20
"""

import pathlib
from typing import Callable

import numpy as np

from rlvr_jax import parallel, sampler
from rlvr_jax.config import CritiqueConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import by_answer, measure
from rlvr_jax.grading.extract import state
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.problems import Problem, merge
from rlvr_jax.tasks.prompts import encode_prompts, load_problems

WORDS = {"think": 3, "quick": 1}  # opening word -> words of a step in that style


def critique(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """What an exact critic says of each attempt."""
    return [(f"{problem.prompt} {row['completion']} =", criticise(problem.meta["steps"], row["completion"]))
            for row in attempts]


def shuffled(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the same critiques, each of another attempt."""
    prompts, said = zip(*critique(problem, attempts, rng))
    places, order = rng.permutation(len(said)), np.empty(len(said), int)
    order[places] = np.roll(places, 1)  # one circle through all: none stays where it is
    return [(prompt, said[place]) for prompt, place in zip(prompts, order)]


def correct(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the attempts that are right, over and over, without their critiques."""
    right = [row["completion"] for row in attempts if row["correct"]]
    if not right:
        raise UserError(f"--kind=correct: none of {len(attempts)} attempts is right; raise --num_attempts, or take "
                        "another --example")
    return [(problem.prompt, right[i % len(right)]) for i in range(len(attempts))]


def answer(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the right answer alone."""
    return [(problem.prompt, state(FAMILIES[problem.meta["task"]].answer_format, problem.answer))] * len(attempts)


# --kind -> function of (problem, rows of its attempts, generator): prompt and completion of as many rows
KINDS: dict[str, Callable] = {"critique": critique, "shuffled": shuffled, "correct": correct, "answer": answer}


def criticise(steps: list[str], attempt: str) -> str:
    """The critique of an attempt, see above; `steps` are those of `chains.expert_steps`."""
    said, size = [], WORDS.get(attempt.split(" ")[0], 0)
    body, _, stated = attempt.partition("answer")
    words = body.split()[1:]
    for i, step in zip(range(0, len(words), size) if size else (), steps[1:-1]):
        ours, right = words[i : i + size], step.split()[-size:]
        said += [*ours, "=", *right]
        if ours != right:
            break
    return " ".join([*said, *(["answer", *stated.split()] if stated else []), "=", steps[-1]])


def make_examples(config: CritiqueConfig) -> list[dict]:
    """Samples attempts at the one problem, and writes the rows that are to be learnt into `config.out`."""
    if not config.out:
        raise UserError("--out is required: the JSONL file for the rows")
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    pool = merge(load_problems(config.problems, loaded.tokenizer, count=config.example_pool, split="example",
                               num_ops=config.num_ops, seed=config.seed))
    if config.example >= len(pool) or not all(problem.meta.get("steps") for problem in pool):
        raise UserError(f"--example={config.example}: {config.problems} needs problems with steps, and has 0 to "
                        f"{len(pool) - 1}")
    problem = pool[config.example]
    sample = sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                  num_slots=config.num_slots)
    attempts = list(measure(
        sample, parallel.place_state(loaded.params), loaded.tokenizer, [problem],
        encode_prompts(loaded.tokenizer, [problem], loaded.config, config.max_new_tokens), seed=config.seed, step=0,
        temperature=config.temperature, num_samples=config.num_attempts, stream=sampler.CHOOSE,
        judge=by_answer(FAMILIES[config.problems].answer_format)))
    pairs = KINDS[config.kind](problem, attempts, np.random.default_rng(config.seed))
    rows = [{"prompt": prompt, "completion": completion, "kind": config.kind} for prompt, completion in pairs]
    path = pathlib.Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, rows)
    return rows
