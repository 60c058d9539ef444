"""Makes a benchmark of which a known part leaks into pre-training, to test probes of contamination with."""

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

    problems: str = flag("arithmetic", "a synthetic family, whose test split they are of", lambda: FAMILIES)
    num_ops: int = flag(6, "operations in a problem", minimum=1)
    num_problems: int = flag(320, "different problems; half of them never leak", minimum=2)
    times: tuple[int, ...] = flag((1, 3, 10, 30, 100), "how often those of the other half are seen: as many of each",
                                  minimum=0)
    seed: int = flag(0, "seed of the problems", minimum=0, maximum=2**31 - 1)
    out: str = flag("", "directory for leaked.jsonl and times_N.jsonl")


def plant(config: PlantConfig) -> dict[int, list[Problem]]:
    """Draws problems of the test split, no two alike; returns them by how often pre-training is to see each.

    Half of them are never seen (0 times). The others are divided evenly among the numbers in --times. Writes
    OUT/times_N.jsonl, files of problems, and OUT/leaked.jsonl for `scripts.pretrain --leaked`: texts, each a question
    with its answer, and how often each is seen.
    """
    if not config.out:
        raise UserError("--out is required: the directory for leaked.jsonl and times_N.jsonl")
    times = sorted(set(config.times) - {0})
    if not times or config.num_problems % (2 * len(times)):
        raise UserError(f"--num_problems={config.num_problems}: half of them have to divide evenly among the "
                        f"{len(times)} numbers above 0 in --times")
    rng = np.random.default_rng(config.seed)
    different = {problem.question: problem for problem in
                 draw_problems(config.problems, rng, 2 * config.num_problems, "test", config.num_ops)}
    drawn = list(different.values())[: config.num_problems]
    if len(drawn) < config.num_problems:
        raise UserError(f"--num_problems={config.num_problems}: {config.problems} has {len(drawn)} of --num_ops="
                        f"{config.num_ops}")
    half, share = config.num_problems // 2, config.num_problems // 2 // len(times)
    by_times = {0: drawn[:half]} | {n: drawn[half + i * share :][:share] for i, n in enumerate(times)}
    answer_format, out = FAMILIES[config.problems].answer_format, pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for n, problems in by_times.items():
        files.write_lines(out / f"times_{n}.jsonl", [{"question": p.question, "answer": p.answer} for p in problems])
    files.write_lines(out / "leaked.jsonl", [
        {"text": f"{p.question} {extract.state(answer_format, p.answer)}", "times": n}
        for n, problems in by_times.items() for p in problems if n])
    return by_times
