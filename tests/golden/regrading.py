"""Measures the mathematical grader, and Math-Verify alone, on real answers; then writes results/graders.md.

    PYTHONPATH=.:tests python tests/golden/regrading.py now MATH500.jsonl KEPT.jsonl ...

The counts go into results/graders.json under the name that is given (`before` is a checkout of an earlier commit, put
first in PYTHONPATH); with `now` also those of the library alone: the same text, else the same exact number, else
Math-Verify as it comes, in the child. KEPT are completions.jsonl of scripts.evaluate.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import types
from fractions import Fraction

from golden import graders as page
from golden.distortions import distorted
from rlvr_jax.grading import child, grade, graders, workers

NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d{1,80})(?:\.\d{1,80}|/0*[1-9]\d{,80})?")


def same(given: str, answer: str, leaf) -> bool:
    numbers = [Fraction(text.replace(",", "")) for text in (given, answer) if NUMBER.fullmatch(text)]
    return given == answer or (numbers[0] == numbers[1] if len(numbers) == 2 else leaf(given, answer))


def equal(given: str, answer: str) -> bool:
    import math_verify

    config = [math_verify.LatexExtractionConfig()]
    gold, found = (math_verify.parse(f"${text}$", config, parsing_timeout=None) for text in (answer, given))
    return math_verify.verify(gold, found, timeout_seconds=None)


def rows(path: str) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").splitlines()]


def measure(name: str, math500: str, *kept: str) -> None:
    found = [row for path in kept for row in rows(path)]
    pairs = dict.fromkeys((row["extracted"], row["answer"]) for row in found if row["extracted"] is not None)
    sets = {"table": [(*pair[:3], "") for pair in page.GOLDEN["pairs"]],
            "rewritten": list(distorted([row["answer"] for row in rows(math500)])),
            "kept": [(*pair, None, "") for pair in pairs]}
    record = json.loads(page.MEASURED.read_text("utf-8")) if page.MEASURED.exists() else {}
    here = pathlib.Path(grade.__file__).parent
    git = ["git", "-C", here, "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in here.glob("*.py"))
    for column, grader, lines in ((name, "math", lines), ("library", "library", None))[: 1 + (name == "now")]:
        record[column] = {"lines": lines, "commit": commit.strip(), "sets": {},
                          "completions": collections.Counter(row["benchmark"] for row in found)}
        for title, quadruples in sets.items():
            given, answers, wanted, rules = zip(*quadruples)
            verdicts = grade.grade_texts([rf"\boxed{{{text}}}" for text in given], answers, "boxed", grader)
            record[column]["sets"][title] = {
                "pairs": len(given), "accepted": sum(verdict.correct for verdict in verdicts),
                "timed_out": sum(verdict.timed_out for verdict in verdicts),
                "wrong": [quadruple for quadruple, verdict in zip(quadruples, verdicts)
                          if verdict.correct != bool(quadruple[2])]}  # of kept completions: all that are accepted
    page.MEASURED.write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
    if "now" in record:
        page.PAGE.write_text(page.render(page.GOLDEN, record), "utf-8")


graders.GRADERS["library"] = types.SimpleNamespace(same=same, equal=equal, MAX_REFERENCE=10**6)
workers.COMMAND[3:] = [__file__, "child"]

if __name__ == "__main__":
    child.serve() if sys.argv[1] == "child" else measure(*sys.argv[1:])
