"""Examples for one-shot critique fine-tuning (arXiv 2506.03295): a model's own attempts at one problem, and exact
critiques of them.

The published critics are other, stronger models. Here a critique is computed from the steps of the solution. It is
written in the family's own words, of which none means "not": a step as the attempt has it, `=`, the step as it should
be, up to the first that differs, and the answer in the same way:

  attempt   think + 5 12 * 2 22 - 4 18 answer 18
  critique  + 5 12 = + 5 12 * 2 22 = * 2 24 answer 18 = answer 20
"""

import dataclasses
import pathlib
from typing import Callable

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import Benchmark, by_answer, make_sampler, measure
from rlvr_jax.grading.extract import state
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.loading import ModelChoice
from rlvr_jax.records import Problem, setting
from rlvr_jax.runs import files
from rlvr_jax.runs.machine import MachineConfig
from rlvr_jax.sampler import CHOOSE, Request, SamplingConfig
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.problems import merge
from rlvr_jax.tasks.prompts import PROMPT_STYLES, ProblemSource, PromptConfig, encode_prompts, load_problems

WORDS = {"think": 3, "quick": 1}  # opening word -> words of a step in that style


@dataclasses.dataclass(frozen=True)
class CritiqueConfig:
    """Examples for fine-tuning, made of a model's own attempts at one synthetic problem."""

    choice: ModelChoice = ModelChoice()
    machine: MachineConfig = MachineConfig()
    sampling: SamplingConfig = SamplingConfig()
    kind: str = setting("critique", "what is learnt", lambda: KINDS)
    problems: str = setting("arithmetic", "a synthetic family whose problems have steps", lambda: FAMILIES)
    num_ops: int = setting(6, "operations in a problem", minimum=1)
    prompt_style: str = setting("plain", "how a question becomes a prompt", lambda: PROMPT_STYLES)
    example: int = setting(0, "the one problem, as in training: its place, from 0, among the seed's example_pool",
                           minimum=0)
    example_pool: int = setting(128, "problems that the example is one of", minimum=1)
    num_attempts: int = setting(100, "attempts to sample, and rows to write", minimum=1)
    temperature: float = setting(1.0, "sampling temperature of the attempts", above=0)
    seed: int = setting(0, "seed of the problems, the sampling and the shuffling", minimum=0, maximum=2**31 - 1)
    out: str = setting("", "JSONL file for the rows: prompt and completion, as scripts.finetune reads them")


def critique(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """The exact critique of each attempt."""
    return [(f"{problem.prompt} {row['completion']} =", criticise(problem.meta["steps"], row["completion"]))
            for row in attempts]


def shuffled(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the same critiques, each of another attempt."""
    prompts, critiques = zip(*critique(problem, attempts, rng))
    places, order = rng.permutation(len(critiques)), np.empty(len(critiques), int)
    order[places] = np.roll(places, 1)  # one circle through all: none stays where it is
    return [(prompt, critiques[place]) for prompt, place in zip(prompts, order)]


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
    parts, size = [], WORDS.get(attempt.split(" ")[0], 0)
    body, _, stated = attempt.partition("answer")
    words = body.split()[1:]
    for i, step in zip(range(0, len(words), size) if size else (), steps[1:-1]):
        ours, right = words[i : i + size], step.split()[-size:]
        parts += [*ours, "=", *right]
        if ours != right:
            break
    return " ".join([*parts, *(["answer", *stated.split()] if stated else []), "=", steps[-1]])


def make_examples(config: CritiqueConfig) -> list[dict]:
    """Samples attempts at the one problem, and writes the rows that are to be learnt into --out."""
    if not config.out:
        raise UserError("--out is required: the JSONL file for the rows")
    loaded = loading.load_fixed(config.choice)
    source = ProblemSource(config.problems, PromptConfig(config.num_ops, config.prompt_style))
    pool = merge(load_problems(source, loaded.tokenizer, "example", config.example_pool, config.seed))
    if config.example >= len(pool) or not all(problem.meta.get("steps") for problem in pool):
        raise UserError(f"--example={config.example}: {config.problems} needs problems with steps, and has 0 to "
                        f"{len(pool) - 1}")
    problem = pool[config.example]
    prompts = encode_prompts(loaded.tokenizer, [problem], loaded.config, config.sampling.max_new_tokens)
    example = Benchmark("example", [problem], prompts, by_answer(GradingConfig()), config.num_attempts,
                        config.temperature)
    attempts = list(measure(make_sampler(loaded, config.sampling), example, Request(config.seed, 0, stream=CHOOSE)))
    pairs = KINDS[config.kind](problem, attempts, np.random.default_rng(config.seed))
    rows = [{"prompt": prompt, "completion": completion, "kind": config.kind} for prompt, completion in pairs]
    path = pathlib.Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, rows)
    return rows
