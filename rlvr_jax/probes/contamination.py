"""Contamination (arXiv 2507.10532): can a model go on with a question of which it sees the first part alone?

The prompt is the beginning of the question as it stands, no template, no instruction; the completion is greedy. Who
has never met the question cannot know how it goes on. A twin that nobody can have met, such as a synthetic family,
says what is guessed. R: words of the question that are hidden.
"""

import dataclasses
import math
import pathlib
import re
from fractions import Fraction
from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import ProbeConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import Asked
from rlvr_jax.evaluation.estimators import bootstrap, shown
from rlvr_jax.evaluation.measure import by_answer
from rlvr_jax.pretrained import loading
from rlvr_jax.probes.likeness import rouge_l, same_words
from rlvr_jax.probes.rows import Found, said, share
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts, load_problems

NEEDS = ("prompt", "rest", "exact", "rouge_l", "correct", "source", "fraction", "too_short")


# ----- asking


def ask(config: ProbeConfig, loaded: loading.LanguageModel) -> list[Asked]:
    """A set for each source in --problems and each of --fractions. Raises UserError for what is not this probe."""
    if (config.num_samples, config.temperature, config.prompt_style, config.instruction) != (1, 0, "plain", ""):
        raise UserError("--probe=contamination is one greedy completion without a template: leave out --num_samples, "
                        "--temperature, --prompt_style and --instruction")
    made = []
    for source in config.problems.split(","):
        whole = load_problems(source, loaded.tokenizer, count=config.max_problems, num_ops=config.num_ops,
                              split=config.heldout_split, ignore_columns=config.ignore_columns)
        judge = judging(by_answer(config.answer_format, config.grader, "lenient"))
        for fraction in config.fractions:
            parts = [part for problem in whole if (part := cut(problem, fraction, pathlib.Path(source).stem))]
            if not parts:
                raise UserError(f"no question of {source} has enough words for --fractions={fraction:g}")
            prompts = encode_prompts(loaded.tokenizer, parts, loaded.config, config.max_new_tokens,
                                     config.max_prompt_tokens)
            made.append(Asked(f"{source} {fraction:g}", parts, prompts, 1, 0.0, judge))
    return made


def cut(problem: Problem, fraction: float, source: str) -> Optional[Problem]:
    """The problem with the first floor(fraction * words) words of its question for a prompt, the others in
    meta["rest"]. None if no word is left."""
    ends = [word.end() for word in re.finditer(r"\S+", problem.question)]
    shown_words = math.floor(Fraction(str(fraction)) * len(ends))  # .29 of 100 words are 29, and of floats 28
    if not shown_words:
        return None
    end = ends[shown_words - 1]
    return dataclasses.replace(problem, prompt=problem.question[:end], meta=problem.meta | {
        "rest": problem.question[end:].strip(), "fraction": fraction, "source": source})


def judging(by_answer: Callable) -> Callable:
    """The `judge` of `Asked`: that of the answer, and how like the hidden rest the completion begins."""
    def judge(texts: list[str], problems: list[Problem]) -> list[dict]:
        return [verdict | reconstruction(text, problem.meta["rest"])
                | {key: problem.meta[key] for key in ("source", "fraction")}
                for text, problem, verdict in zip(texts, problems, by_answer(texts, problems))]
    return judge


def reconstruction(text: str, rest: str) -> dict:
    """`exact` and `rouge_l` of the first R words of a completion against the hidden ones, and whether it has fewer."""
    count, words = len(rest.split()), text.split()
    first = " ".join(words[:count])
    return {"rest": rest, "exact": same_words(first, rest), "rouge_l": rouge_l(first, rest),
            "too_short": len(words) < count}


# ----- finding


def find(kept: dict[str, list[dict]]) -> Found:
    """What the rows of each model say: a line for each of its sources and fractions."""
    sets, items = [], []
    for name, rows in kept.items():
        for source, fraction in dict.fromkeys((row["source"], row["fraction"]) for row in rows):
            own = [row for row in rows if (row["source"], row["fraction"]) == (source, fraction)]
            sets.append({"file": name, "source": source, "fraction": fraction} | summary(own))
        keys = ("source", "fraction", "problem", "prompt", "rest", "completion", "exact", "rouge_l", "correct")
        items += [{"file": name} | {key: row[key] for key in keys if key in row} for row in rows]
    items.sort(key=lambda one: (-one["exact"], -one["rouge_l"]))
    record = {"sets": sets}
    return Found(record, page(record), lambda sheet: draw(record, sheet), items)


def summary(rows: list[dict]) -> dict:
    """Shares with 95 % intervals, over problems: of exact continuations, of right answers, and the mean ROUGE-L."""
    likeness = [row["rouge_l"] for row in rows]
    return {"n": len(rows), "exact": share([row["exact"] for row in rows], range(len(rows))),
            "rouge_l": {"value": float(np.mean(likeness)), "interval": list(bootstrap(np.array(likeness)))},
            "correct": share([row["correct"] for row in rows], range(len(rows))),
            "too_short": float(np.mean([row["too_short"] for row in rows]))}


def page(record: dict) -> str:
    rows = [[one["file"], one["source"], f"{one['fraction']:.0%}", said(one["exact"]),
             shown(one["rouge_l"]["value"], one["rouge_l"]["interval"]), said(one["correct"]),
             f"{one['too_short']:.1%}"] for one in record["sets"]]
    note = ("What a greedy completion makes of the first part of a question, without a template: the share that says "
            "the rest word by word, the mean likeness to it (ROUGE-L, F1), the share that ends in the right answer. "
            "Completions that end before as many words as are hidden can not be exact; where that is not by the "
            "model's choice, --max_new_tokens is too small.")
    return note + "\n\n" + markdown_table(["of", "problems", "shown", "exact", "ROUGE-L", "right answer", "too short"],
                                          rows) + "\n"


def draw(record: dict, sheet) -> None:
    """Left the share of exact continuations, right that of right answers, against how much was shown."""
    sheet.set_size_inches(8, 3.4)
    for axes, key, label in zip(sheet.subplots(1, 2), ("exact", "correct"), ("exact continuation", "right answer")):
        for name, source in dict.fromkeys((one["file"], one["source"]) for one in record["sets"]):
            own = [one for one in record["sets"] if (one["file"], one["source"]) == (name, source)]
            values = np.array([one[key]["value"] for one in own])
            ends = np.array([one[key]["interval"] for one in own]).T
            axes.errorbar([one["fraction"] for one in own], values,
                          np.maximum([values - ends[0], ends[1] - values], 0), fmt="o-", capsize=3,
                          label=f"{source}, {name}")
        axes.set(xlabel="share of the question that is shown", ylabel=label, ylim=(-0.03, 1.03))
        axes.legend(fontsize=6)
