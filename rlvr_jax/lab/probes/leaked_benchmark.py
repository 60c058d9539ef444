"""Makes a benchmark of which a known part leaks into pre-training, to test the contamination probe."""

import pathlib

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.tasks.families import FAMILIES, draw_problems


class PlantConfig(Config):
    """A benchmark of which a known part leaks into pre-training."""

    problems: str = flag("arithmetic", "the synthetic family whose test split the problems come from", lambda: FAMILIES)
    num_ops: int = flag(6, "operations in a problem", minimum=1)
    num_problems: int = flag(320, "number of different problems; half of them never leak", minimum=2)
    times: tuple[int, ...] = flag((1, 3, 10, 30, 100), "how often pre-training sees a problem that leaks; the half "
                                  "that leaks is divided evenly among these numbers", minimum=0)
    seed: int = flag(0, "seed of the problems", minimum=0, maximum=2**31 - 1)
    out: str = flag("", "directory for leaked.jsonl and times_N.jsonl")


def plant_benchmark(config: PlantConfig) -> dict[int, list[Problem]]:
    """Draws different problems of the test split. Returns {n: the problems that pre-training is to see n times}: half
    of the problems never (n = 0), the other half divided evenly among the numbers n in --times. Writes the problems of
    each n to OUT/times_N.jsonl and, for `scripts.pretrain --leaked`, OUT/leaked.jsonl, whose lines have "text", a
    question with its answer, and "times", n. Raises UserError if the half does not divide so, or too few are drawn."""
    if not config.out:
        raise UserError("--out is required: the directory for leaked.jsonl and times_N.jsonl")
    numbers = sorted(set(config.times) - {0})
    if not numbers or config.num_problems % (2 * len(numbers)):
        raise UserError(f"--num_problems={config.num_problems}: half of the problems have to divide evenly among the "
                        f"{len(numbers)} numbers above 0 in --times, of which there has to be at least one")
    drawn = draw_problems(config.problems, np.random.default_rng(config.seed), 2 * config.num_problems, "test",
                          config.num_ops)
    different = list({problem.question: problem for problem in drawn}.values())[: config.num_problems]
    if len(different) < config.num_problems:
        raise UserError(f"--num_problems={config.num_problems}: {config.problems} has {len(different)} of --num_ops="
                        f"{config.num_ops}, as far as a sample shows; lower --num_problems or raise --num_ops")
    half = config.num_problems // 2
    size = half // len(numbers)  # how many problems each n > 0 gets
    by_times = {0: different[:half]} | {n: different[half + i * size :][:size] for i, n in enumerate(numbers)}
    answer_format, out = FAMILIES[config.problems].answer_format, pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for n, problems in by_times.items():
        files.write_lines(out / f"times_{n}.jsonl", [{"question": p.question, "answer": p.answer} for p in problems])
    files.write_lines(out / "leaked.jsonl", [
        {"text": f"{p.question} {extract.state_answer(answer_format, p.answer)}", "times": n}
        for n, problems in by_times.items() for p in problems if n])
    return by_times
