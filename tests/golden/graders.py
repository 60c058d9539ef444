"""Writes results/graders.md from grading.json and results/graders.json: where graders differ, pair by pair.

    PYTHONPATH=.:tests python tests/golden/graders.py
"""

import json
import pathlib

GOLDEN = json.loads((pathlib.Path(__file__).parent / "grading.json").read_text("utf-8"))
PAGE = pathlib.Path(__file__).parents[2] / "results" / "graders.md"
MEASURED = PAGE.with_suffix(".json")
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

`original` always looks into the last `\boxed` of the completion, whatever `--answer_format` says. As in the released
code, pylatexenc reads its LaTeX (a command that it does not know vanishes), and SymPy what comes out.

Below are all pairs of `tests/golden/grading.json`, the table of {count} that the tests run through both, on which the
verdicts differ: {differ} of them. This file is written by `tests/golden/graders.py`, and a test compares the two.
"""
REGRADED = r"""# What our rules add to Math-Verify

`math` at the commit before it was shortened and now, and the library alone: the same text, else the same exact number,
else Math-Verify as it comes, in the same child processes. Counted by

```
python -m scripts.evaluate --model=smollm2 --prompt_style=chat --problems=... --max_new_tokens=200 --out=KEPT
PYTHONPATH=.:tests python tests/golden/regrading.py now MATH500.jsonl KEPT/completions.jsonl ...
```
"""
SETS = {
    "table": "The {n} pairs of the acceptance table, whose verdicts are mathematics",
    "rewritten": "The references of MATH-500, rewritten without a change of meaning or changed "
                 "(`tests/golden/distortions.py`): {n} pairs",
    "kept": "{n} pairs of answer and reference in completions of SmolLM2-135M, greedy ({completions})"}



def render(golden: dict, record: dict) -> str:
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
    return text + "\n" + regraded(record)


def regraded(record: dict) -> str:
    """How often each grader is wrong, by set and rule; of kept completions, the verdicts that not all share."""
    text, names = REGRADED, ("before", "now", "library")
    kept = ", ".join(f"{count} of {name}" for name, count in record["now"]["completions"].items())
    text += "\n| | lines of `rlvr_jax/grading/` | commit |\n|---|---|---|\n"
    text += "".join(f"| {name} | {record[name]['lines'] or '-'} | {record[name]['commit']} |\n" for name in names)
    for title, sentence in SETS.items():
        columns = {name: record[name]["sets"][title] for name in names}
        text += "\n" + sentence.format(n=columns["now"]["pairs"], completions=kept) + ":\n\n"
        text += "| | " + " | ".join(names) + " |\n|---|---|---|---|\n"
        wrong = {name: {(given, answer): (want, rule) for given, answer, want, rule in found["wrong"]}
                 for name, found in columns.items()}
        text += row("accepted", [found["accepted"] for found in columns.values()])
        text += row("timed out", [found["timed_out"] for found in columns.values()])
        if title != "kept":
            for want, what in ((False, "wrongly accepted"), (True, "wrongly refused")):
                text += row(what, [sum(verdict[0] is want for verdict in found.values()) for found in wrong.values()])
                for rule in dict.fromkeys(r for found in wrong.values() for w, r in found.values() if w is want and r):
                    text += row(f"- {rule}", [list(found.values()).count((want, rule)) for found in wrong.values()])
        if title != "rewritten":
            pairs = [pair for pair in dict.fromkeys(pair for found in wrong.values() for pair in found)
                     if title == "table" or not all(pair in found for found in wrong.values())]
            text += "\n" + ("Pairs on which one is wrong" if title == "table" else "Pairs on which they differ")
            text += ":\n\n| answer | reference | " + " | ".join(names) + " |\n|---|---|---|---|---|\n" if pairs else (
                ": none.\n")
            for pair in pairs:
                want = next(found[pair][0] for found in wrong.values() if pair in found) or False
                said = ["accepts" if want != (pair in found) else "refuses" for found in wrong.values()]
                text += row(" | ".join(map(cell, pair)), said)
    return text


def row(first: str, cells: list) -> str:
    return f"| {first} | " + " | ".join(map(str, cells)) + " |\n"


def cell(answer: str) -> str:
    return "`" + answer.replace("|", r"\|") + "`"


if __name__ == "__main__":
    PAGE.write_text(render(GOLDEN, json.loads(MEASURED.read_text("utf-8"))), "utf-8")
