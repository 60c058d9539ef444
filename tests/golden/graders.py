"""Writes results/graders.md from grading.json and results/graders.json: where graders differ.

    PYTHONPATH=.:tests python tests/golden/graders.py
"""

import collections
import json
import pathlib

from rlvr_jax.runs.markdown import markdown_table

GOLDEN = json.loads((pathlib.Path(__file__).parent / "grading.json").read_text("utf-8"))
PAGE = pathlib.Path(__file__).parents[2] / "results" / "graders.md"
MEASURED = PAGE.with_suffix(".json")
HEAD = r"""# Two graders

`--grader=math` (the default) asks whether two answers are equal as mathematics; `--grader=original` pays what the
released one-shot training reward paid, quirks included. Both are bounded in time and memory, and every report names the
one that graded.

What `math` takes for equal:

- **Numbers** are exact: 64/5, `12\frac{4}{5}` and `1.28\times 10^1` are 12.8; 0.333 is not 1/3. `2516_8` is 1358.
- **Units** may be left out. Where both answers have a known one, they must be the same; nothing is converted.
- **Per cent:** `12.8\%` is 12.8 and also 0.128.
- **Names** may be left out: `V = 12.8` is 12.8. Two different names are two answers.
- **Lists and sets** have no order. Tuples and intervals have one, and their brackets must agree. `1,2` is not `(1,2)`.
- **One answer:** `12.8 or 13` is a list of two; of `8\sqrt[3]{4} \approx 12.7` the exact part counts.
- **Case** counts in formulas, not in words.

[Math-Verify](https://github.com/huggingface/Math-Verify) judges what neither text nor number decides, element by
element, with decimals made exact. `original` reads the last `\boxed`, whatever `--answer_format` says, by pylatexenc
and SymPy, as the released code does.

The verdicts differ on {differ} of the {count} pairs in `tests/golden/grading.json`, which the tests run through both:
how many, and the first of them.

"""
REGRADED = r"""
## What our rules add to Math-Verify

`math` before it was shortened and now, and the library alone (same text, same exact number, else Math-Verify), on pairs
of the table, of MATH-500's references rewritten by `tests/golden/distortions.py`, and of a model's answers. Accepted;
wrongly accepted; wrongly refused, by

```
python -m scripts.evaluate --model=smollm2 --prompt_style=chat --problems=... --max_new_tokens=200 --out=KEPT
PYTHONPATH=.:tests python tests/golden/regrading.py now MATH500.jsonl KEPT/completions.jsonl ...
```

"""
SETS = {"table": "table", "rewritten": "MATH-500, rewritten", "kept": "SmolLM2-135M, greedy"}


def render(golden: dict, record: dict) -> str:
    """The page: each kind of difference with an example of each side, and the regraded sets."""
    differ, rows = [pair for pair in golden["pairs"] if pair[2] != pair[3]], []
    for kind, reason in golden["kinds"].items():
        sides = [[pair for pair in differ if pair[4] == kind and pair[2] is right] for right in (True, False)]
        rows.append([reason, *(f"{len(side)}: {cell(side[0][0])} for {cell(side[0][1])}" if side else ""
                               for side in sides)])
    return HEAD.replace("{count}", str(len(golden["pairs"]))).replace("{differ}", str(len(differ))) + markdown_table(
        ["`original`", "only `math` accepts", "only `original` accepts"], rows) + "\n" + REGRADED + regraded(record)


def regraded(record: dict) -> str:
    """How often each grader is wrong in each set; of kept completions it is not known which verdict is right."""
    def counts(key: str, found: dict) -> str:
        wrong = [sum(want is side for _, _, want, _ in found["wrong"]) for side in (False, True)]
        return "; ".join(map(str, [found["accepted"], *wrong][: 1 if key == "kept" else 3]))

    header = [f"{title}: {record['now']['sets'][key]['pairs']} pairs" for key, title in SETS.items()]
    rows = [[f"{name}, {column['commit']}", *(counts(key, column["sets"][key]) for key in SETS)]
            for name, column in record.items()]
    rules = collections.Counter(rule for *_, rule in record["library"]["sets"]["rewritten"]["wrong"])
    return markdown_table(["grader, commit", *header], rows) + "\n\nErrors of the library on rewritten references: " + (
        ", ".join(f"{rule} {count}" for rule, count in rules.most_common()) + ".\n")


def cell(answer: str) -> str:
    return "`" + answer.replace("|", r"\|") + "`"


if __name__ == "__main__":
    PAGE.write_text(render(GOLDEN, json.loads(MEASURED.read_text("utf-8"))), "utf-8")
