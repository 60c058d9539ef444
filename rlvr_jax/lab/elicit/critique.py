"""Examples for one-shot critique fine-tuning (arXiv 2506.03295): a model's own attempts, and exact critiques of them.

The published critics are other, stronger models. Here a critique is computed from the steps of the solution. It is a
careful solution, as pre-training has them, with at most two remarks: after the first step that the attempt has wrong,
and before the answer where the attempt's is wrong, `=` and what the attempt has there. A right attempt gets no remark.

  problem   coins 7 + 5 * 2 - 4 =
  attempt   quick 12 14 10 answer 10
  critique  think + 5 12 * 2 24 = 14 - 4 20 = 10 answer 20

The remarks are in no grammar of pre-training: no style there judges another, and no word means "not". Published
critiques end with "Conclusion: right" or "wrong"; here the answer comes last, where an answer is looked for.

The prompt is the attempt and then the problem, the other way round than published. So what is learnt begins right
after the problem, where the model begins when it is asked the problem alone. In the published chat template that place
is the same either way, the start of the assistant's turn.
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

WORDS = {"think": 3, "quick": 1}  # opening word -> words of a step in that style


class CritiqueConfig(Config):
    """Examples for fine-tuning, made of a model's own attempts at one synthetic problem."""

    choice: loading.ModelChoice = loading.ModelChoice()
    machine: MachineConfig = MachineConfig()
    sampling: SamplingConfig = SamplingConfig()
    kind: str = flag("critique", "what is learnt", lambda: KINDS)
    problems: str = flag("arithmetic", "a synthetic family whose problems have steps", lambda: FAMILIES)
    num_ops: int = flag(6, "operations in a problem", minimum=1)
    example: str = flag("0", "the one problem, as in training: its place, from 0, among the seed's example_pool; or "
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
    order[places] = np.roll(places, 1)  # one circle through all: none stays where it is
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
    """A control: the careful solution, which is also what imitation of single steps has for its expert."""
    return [(problem.prompt, " ".join(problem.meta["steps"]))] * len(attempts)


# --kind -> function of (problem, rows of its attempts, generator): prompt and completion of as many rows
KINDS: dict[str, Callable] = {"critique": critique, "shuffled": shuffled, "attempts": attempted, "correct": correct,
                              "answer": answer, "expert": expert}


def criticise(steps: list[str], attempt: str) -> str:
    """The critique of an attempt, see above; `steps` are those of `chains.to_problems`.

    What is wrong is quoted in the attempt's own words, three for a careful step and one for a sloppy one. Where there
    is no answer nothing follows `=`.
    """
    size = WORDS.get(attempt.split(" ")[0], 0)
    body, _, answer = attempt.partition("answer")
    words, said = body.split()[1:], list(steps[:-1])
    given = [words[i : i + size] for i in range(0, len(words), size)] if size else []
    wrong = [i for i, ours in enumerate(given[: len(said) - 1], 1) if ours != steps[i].split()[-size:]]
    remarks = {i: given[i - 1] for i in wrong[:1]}
    if answer.split() != steps[-1].split()[1:]:
        remarks = {len(said) - 1: answer.split()} | remarks
    parts = [" ".join([step, "=", *remarks[i]]) if i in remarks else step for i, step in enumerate(said)]
    return " ".join([*parts, steps[-1]])


def choose_problems(config: CritiqueConfig, pool: list[Problem]) -> list[Problem]:
    """The problems of --example. UserError for one that the pool does not have, or that has no steps."""
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
    """Samples attempts at the one problem, or at each, and writes the rows that are to be learnt into --out."""
    if not config.out:
        raise UserError("--out is required: the JSONL file for the rows")
    loaded = loading.load_fixed(config.choice)
    source = ProblemSource(config.problems, PromptConfig(config.num_ops))
    pool = merge(load_problems(source, loaded.tokenizer, "example", config.example_pool, config.seed))
    problems = choose_problems(config, pool)
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, config.sampling.max_new_tokens)
    asked = Benchmark("example", problems, prompts, judge_by_answer(GradingConfig()), config.num_attempts,
                      config.temperature)
    rows = list(sample_and_grade(make_sampler(loaded, config.sampling), asked, Request(config.seed, 0, stream=CHOOSE)))
    attempts = [rows[i : i + config.num_attempts] for i in range(0, len(rows), config.num_attempts)]
    rng = np.random.default_rng(config.seed)
    pairs = [pair for each in zip(problems, attempts) for pair in KINDS[config.kind](*each, rng)]
    if not pairs:
        lacks = "is right" if config.kind == "correct" else "says anything"
        raise UserError(f"--kind={config.kind}: none of {len(rows)} attempts {lacks}; raise --num_attempts, or take "
                        "another --example")
    written = [{"prompt": prompt, "completion": completion, "kind": config.kind} for prompt, completion in pairs]
    path = pathlib.Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, written)
    return written
