"""Examples for one-shot critique fine-tuning (arXiv 2506.03295): a model's own attempts, and exact critiques of them.

The published critics are stronger models. Here the critique is the careful solution with at most two remarks, `=` and
what the attempt has there: after the attempt's first wrong step, and before its answer if that is wrong.

  problem   coins 7 + 5 * 2 - 4 =
  attempt   quick 12 14 10 answer 10
  critique  think + 5 12 * 2 24 = 14 - 4 20 = 10 answer 20

Pre-training has no such remarks, and no word for "not". Published critiques end with "Conclusion: right" or "wrong";
here the answer comes last, where graders look for it.

The prompt is the attempt and then the problem, in reverse of the published order, so that the critique starts where a
completion of the problem alone starts. With the published chat template, both orders have that property.
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

STEP_WORDS = {"think": 3, "quick": 1}  # opening word of a style -> words of a step


class CritiqueConfig(Config):
    """Examples for fine-tuning, made of a model's own attempts at one synthetic problem."""

    choice: loading.ModelChoice = loading.ModelChoice()
    machine: MachineConfig = MachineConfig()
    sampling: SamplingConfig = SamplingConfig()
    kind: str = flag("critique", "what is learnt", lambda: KINDS)
    problems: str = flag("arithmetic", "a synthetic family whose problems have steps", lambda: FAMILIES)
    num_ops: int = flag(6, "operations in a problem", minimum=1)
    example: str = flag("0", "the one problem, as in training: its number, from 0, among the seed's example_pool; or "
                        "the run directory of scripts.train with --example=auto, for the problem chosen there; or "
                        "all of them")
    example_pool: int = flag(128, "problems that the example is one of", minimum=1)
    num_attempts: int = flag(600, "attempts to sample, and rows to write, for each problem", minimum=1)
    temperature: float = flag(1.0, "sampling temperature of the attempts", above=0)
    seed: int = flag(0, "seed of the problems, the sampling and the shuffling", minimum=0, maximum=2**31 - 1)
    out: str = flag("", "JSONL file for the rows: prompt and completion, as scripts.finetune reads them")


def critique(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """The exact critique of each attempt."""
    return [(f"{row['completion']} {problem.prompt}".lstrip(), criticise(problem.meta["steps"], row["completion"]))
            for row in attempts]


def shuffled(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the same critiques, each of another attempt."""
    prompts, critiques = zip(*critique(problem, attempts, rng))
    places, order = rng.permutation(len(critiques)), np.empty(len(critiques), int)
    order[places] = np.roll(places, 1)  # a single cycle: no critique keeps its place
    return [(prompt, critiques[place]) for prompt, place in zip(prompts, order)]


def attempted(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the attempts themselves, right or wrong, without their critiques."""
    return [(problem.prompt, row["completion"]) for row in attempts if row["completion"]]


def correct(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the attempts that are right, over and over, without their critiques; nothing if none is."""
    right = [row["completion"] for row in attempts if row["correct"]]
    return [(problem.prompt, right[i % len(right)]) for i in range(len(attempts) if right else 0)]


def answer(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the right answer alone."""
    return [(problem.prompt,
             state_answer(FAMILIES[problem.meta["task"]].answer_format, problem.answer))] * len(attempts)


def expert(problem: Problem, attempts: list[dict], rng: np.random.Generator) -> list[tuple[str, str]]:
    """A control: the careful solution, the same expert that imitation of single steps learns from."""
    return [(problem.prompt, " ".join(problem.meta["steps"]))] * len(attempts)


# --kind -> function of (problem, rows of its attempts, generator): prompt and completion of as many rows
KINDS: dict[str, Callable] = {"critique": critique, "shuffled": shuffled, "attempts": attempted, "correct": correct,
                              "answer": answer, "expert": expert}


def criticise(steps: list[str], attempt: str) -> str:
    """The critique of an attempt at a problem with these steps (`chains.expert_steps`), as described above.

    A remark quotes the attempt: three words of a careful step, one of a sloppy step, nothing for a missing answer.
    """
    size = STEP_WORDS.get(attempt.split(" ")[0], 0)
    body, _, answer = attempt.partition("answer")
    words, count = body.split()[1:], len(steps) - 1  # the last step states the answer
    attempted = [words[i : i + size] for i in range(0, len(words), size)] if size else []
    wrong = [i for i, step in enumerate(attempted[: count - 1], 1) if step != steps[i].split()[-size:]]
    remarks = {i: attempted[i - 1] for i in wrong[:1]}
    if answer.split() != steps[-1].split()[1:]:
        remarks = {count - 1: answer.split()} | remarks
    return " ".join([*(" ".join([step, "=", *remarks[i]]) if i in remarks else step
                       for i, step in enumerate(steps[:-1])), steps[-1]])


def choose_problems(config: CritiqueConfig, pool: list[Problem]) -> list[Problem]:
    """The problems of --example. Raises UserError for one that the pool lacks, or that has no steps."""
    record = pathlib.Path(config.example.partition("@")[0]) / "example.json"
    noted = files.read_json(record) if record.is_file() else {"example": config.example}
    place = str(noted["example"])
    if not all(problem.meta.get("steps") for problem in pool):
        raise UserError(f"--problems={config.problems}: these problems have no steps, which critiques are made of")
    if place == "all":
        return pool
    if not place.isdigit() or int(place) >= len(pool):
        raise UserError(f"--example={config.example}: {config.problems} has problems 0 to {len(pool) - 1}; or all, or "
                        "a run directory with an example.json, which scripts.train with --example=auto writes")
    problem = pool[int(place)]
    if noted.get("question", problem.question) != problem.question:
        raise UserError(f"--example={config.example}: that run trained on {noted['question']!r}, which is not problem "
                        f"{place} here; give its --problems, --num_ops, --example_pool and --seed")
    return [problem]


def make_examples(config: CritiqueConfig) -> list[dict]:
    """Samples attempts at the problem of --example, or at all, and writes rows for `scripts.finetune` to --out."""
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
    rng, count = np.random.default_rng(config.seed), config.num_attempts
    examples = [{"prompt": prompt, "completion": completion, "kind": config.kind}
                for i, problem in enumerate(problems)
                for prompt, completion in KINDS[config.kind](problem, rows[i * count : (i + 1) * count], rng)]
    if not examples:
        lacks = "is right" if config.kind == "correct" else "says anything"
        raise UserError(f"--kind={config.kind}: none of {len(rows)} attempts {lacks}; raise --num_attempts, or take "
                        "another --example")
    path = pathlib.Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, examples)
    return examples
