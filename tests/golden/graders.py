"""Writes results/graders.md from grading.json: where the two graders differ, pair by pair.

    PYTHONPATH=.:tests python tests/golden/graders.py
"""

import json
import pathlib

GOLDEN = json.loads((pathlib.Path(__file__).parent / "grading.json").read_text("utf-8"))
HEAD = r"""# Two graders

`--grader=math` (the default) asks whether two answers are equal as mathematics; `--grader=original` pays what the
released one-shot training reward paid, quirks included. Both are bounded in time and memory, and every report names
the one that graded (`lenient / math (math-verify 0.9.0)`).

What `math` takes for equal:

- **Numbers are exact.** 12.8, 64/5, `12\frac{4}{5}`, `1.28\times 10^1` and `0.\overline{3}`, 1/3 are equal in turn;
  0.333 is not 1/3 and 1.414 is not `\sqrt{2}`. `2516_8` is a number to base 8: 1358, but not 2516.
- **Units** are not asked for: `12.8 miles per hour` is 12.8. If both sides have one and both are known, they have to
  be the same: 12.8 km is not 12.8 m. Nothing is converted. A single letter is a unit within `\text{}` alone: `3m` is
  an expression.
- **A per cent sign** is both a unit and a hundredth: `12.8\%` is 12.8 (what a question for a percentage means) and
  0.128 (what it says).
- **Names** may be there or not: `V = 12.8` is 12.8. Two different names are two different answers.
- **Lists and sets** (`1,2`, `\{2,1\}`, `1 \text{ or } 2`, `a\pm b`) have no order. Tuples and intervals have, and their
  brackets have to agree; a column vector is a tuple. A list is no tuple: `1,2` is not `(1,2)`.
- **An answer is one answer.** `12.8 or 13` is a list of two; of `8\sqrt[3]{4} \approx 12.7` the exact part counts.
- Capital and small letters differ in formulas and not in words.

What neither text nor number decides goes to [Math-Verify](https://github.com/huggingface/Math-Verify), element by
element, with decimals made exact and without its own guesses about units.

`original` always looks into the last `\boxed` of the completion, whatever `--answer_format` says. Its reading of LaTeX
is that of a small table here, where the original has pylatexenc: a command outside it vanishes.

Below are all pairs of `tests/golden/grading.json`, the table of {count} that the tests run through both, on which the
verdicts differ: {differ} of them. This file is written by `tests/golden/graders.py`, and a test compares the two.
"""


def render(golden: dict) -> str:
    """The page: each kind of difference with its reason and its pairs, by reference answer."""
    differ = [pair for pair in golden["pairs"] if pair[2] != pair[3]]
    text = HEAD.replace("{count}", str(len(golden["pairs"]))).replace("{differ}", str(len(differ)))
    for kind, reason in golden["kinds"].items():
        rows = {}
        for given, answer, right, _, _ in (pair for pair in differ if pair[4] == kind):
            rows.setdefault(answer, ([], []))[0 if right else 1].append(cell(given))
        text += f"\n## {kind}\n\n{reason}\n\n| reference | only `math` accepts | only `original` accepts |\n"
        text += "|---|---|---|\n"
        text += "".join(f"| {cell(answer)} | {'; '.join(ours)} | {'; '.join(theirs)} |\n"
                        for answer, (ours, theirs) in rows.items())
    return text


def cell(answer: str) -> str:
    return "`" + answer.replace("|", r"\|") + "`"


if __name__ == "__main__":
    (pathlib.Path(__file__).parents[2] / "results" / "graders.md").write_text(render(GOLDEN), "utf-8")
