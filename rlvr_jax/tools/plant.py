"""A benchmark of which a known part leaks into pre-training: what a probe of contamination can be tried on."""

import pathlib

import numpy as np

from rlvr_jax.config import PlantConfig
from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract
from rlvr_jax.runs import files
from rlvr_jax.tasks.families import FAMILIES, draw_problems
from rlvr_jax.tasks.problems import Problem


def plant(config: PlantConfig) -> dict[int, list[Problem]]:
    """Draws different problems of the test split and deals them out, by how often each is to be seen.

    Half of them, those of 0 times, are never seen; the others are divided evenly among the numbers of times. Writes
    OUT/times_N.jsonl, problems that every command reads, and OUT/leaked.jsonl, which `scripts.pretrain --leaked` reads:
    the texts, question with answer, and their times.
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
    half, each = config.num_problems // 2, config.num_problems // 2 // len(times)
    dealt = {0: drawn[:half]} | {n: drawn[half + i * each :][:each] for i, n in enumerate(times)}
    answer_format, out = FAMILIES[config.problems].answer_format, pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for n, own in dealt.items():
        files.write_lines(out / f"times_{n}.jsonl", [{"question": one.question, "answer": one.answer} for one in own])
    files.write_lines(out / "leaked.jsonl", [
        {"text": f"{one.question} {extract.state(answer_format, one.answer)}", "times": n}
        for n, own in dealt.items() for one in own if n])
    return dealt
