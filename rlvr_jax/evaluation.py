"""Completions of a list of problems, sampled and graded; what a training run measures on held-out ones."""

from typing import Callable, Optional

import numpy as np

from rlvr_jax import families, grading, sampler
from rlvr_jax.model import Prompts
from rlvr_jax.problems import Problem
from rlvr_jax.sampler import Rollouts
from rlvr_jax.tokenizer import Tokenizer


def texts_of(words: Tokenizer, rollouts: Rollouts) -> list[str]:
    """Decoded completions, special tokens left out."""
    lengths = np.sum(rollouts.completion_mask, -1)
    return words.backend.decode_batch([row[:n].tolist() for row, n in zip(rollouts.completions, lengths)],
                                      skip_special_tokens=True)


def measure(draw: Callable, params, words: Tokenizer, problems: list[Problem], prompts: Prompts, *, temperature: float,
            num_samples: int, answer_format: str, seed: int, step: int, grader: str = "math", top_p: float = 1.0,
            rows_per_call: int = 512, stream: int = sampler.EVAL, done: int = 0,
            each: Optional[Callable] = None) -> list[dict]:
    """Samples `num_samples` completions of every problem and grades them.

    `draw` comes from `sampler.make_sampler`. Row i*num_samples+j is sample j of problem i: `{"problem", "sample",
    "prompt", "answer", "completion", "extracted", "correct", "timed_out", "graded_by", "truncated", "num_tokens"}`.
    The first `done` rows are there already and are left out. Every call samples the same rows with or without them,
    so that what is left comes out bit for bit as it would have. `each(rows)` is handed the rows of a call.
    """
    total, rows = len(problems) * num_samples, []
    size, graded_by = min(rows_per_call, total), grading.describe(answer_format, grader)
    for start in range(0, total, size):
        end = min(start + size, total)
        if end <= done:
            continue
        numbers = np.minimum(np.arange(start, start + size), total - 1)  # the last call keeps the shape of the others
        owners = numbers // num_samples
        rollouts = draw(params, narrowed(prompts, owners), owners, seed, step, temperature, top_p, stream=stream,
                        first_row=start, repeats=num_samples)
        texts = texts_of(words, rollouts)[: end - start]
        verdicts = grading.grade(texts, [problems[i].answer for i in owners[: end - start]], answer_format, grader)
        made = [{"problem": int(i), "sample": int(j), "prompt": problems[i].prompt, "answer": problems[i].answer,
                 "completion": text, "extracted": verdict.extracted, "correct": verdict.correct,
                 "timed_out": verdict.timed_out, "graded_by": graded_by, "truncated": not ended,
                 "num_tokens": int(mask.sum())}
                for text, verdict, i, j, ended, mask in zip(texts, verdicts, owners, numbers % num_samples,
                                                            rollouts.ended, rollouts.completion_mask)]
        made = made[max(done - start, 0) :]
        rows += made
        if each:
            each(made)
    return rows


def narrowed(prompts: Prompts, owners: np.ndarray) -> Prompts:
    """The prompts, cut to the longest one in use: a few long ones widen their own calls only.

    In steps of 64 tokens, since every width is one more program to compile.
    """
    width = -(-int(np.max(prompts.lengths[owners])) // 64) * 64
    return prompts.replace(tokens=prompts.tokens[:, :width])


def heldout(draw: Callable, params, words: Tokenizer, problems: list[Problem], prompts: Prompts, *, seed: int,
            step: int, answer_format: str, keep: Optional[Callable] = None) -> dict:
    """The eval/* metrics of a training run: accuracy greedy and at temperature 1, and styles on synthetic families.

    Where the problems are of several families, each one's accuracy has a metric of its own, such as greedy_boolean.

    `keep(step, rows)` is handed the greedy completions, as `measure` returns them.
    """
    found = {"eval/n": len(problems), "eval/graded_by": grading.describe(answer_format, "math")}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        rows = measure(draw, params, words, problems, prompts, temperature=temperature, num_samples=1,
                       answer_format=answer_format, seed=seed, step=step)
        if keep and name == "greedy":
            keep(step, rows)
        found[f"eval/{name}"] = float(np.mean([row["correct"] for row in rows]))
        for style, (share, accuracy) in style_shares(rows, problems).items():
            found |= {f"eval/{name}_{style}_share": share, f"eval/{name}_{style}_accuracy": accuracy}
        tasks = [problems[row["problem"]].meta.get("task") for row in rows]
        for task in dict.fromkeys(tasks) if len(set(tasks)) > 1 else ():
            mine = [row["correct"] for row, own in zip(rows, tasks) if own == task]
            found[f"eval/{name}_{task}"] = float(np.mean(mine))
    return found


def style_shares(rows: list[dict], problems: list[Problem]) -> dict[str, tuple[float, Optional[float]]]:
    """`{style: (share of the rows, accuracy of these)}` for every style of the problems' families."""
    styles = np.array([families.style_of(problems[row["problem"]], row["completion"]) or "" for row in rows])
    correct = np.array([row["correct"] for row in rows])
    known = dict.fromkeys(style for problem in problems if (family := families.of_problem(problem))
                          for style in family.styles.values())
    mine = {style: styles == style for style in known}
    return {style: (float(own.mean()), float(correct[own].mean()) if own.any() else None) for style, own in mine.items()}
