"""Contamination (arXiv 2507.10532): can a model continue a question after seeing only its first part?

The prompt is the beginning of the question, without template or instruction; the completion is greedy. A model that has
never seen the question can only guess the rest. A control shows how well guessing works: twins of the problems
(`twins.py`), or a source of problems that the model cannot have seen.

The text RULE says how a source is judged against a control. ROUGE-L counts only against renumbered twins of chains and
calculations, which are drawn from the same distribution as the originals. Against other controls ROUGE-L also depends
on the style of the texts, and random numbers in a word problem are harder to guess than the original ones.
"""

import dataclasses
import functools
import math
import pathlib
import re
from fractions import Fraction
from typing import Callable, Iterator, Optional

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import EvaluateConfig, make_benchmark
from rlvr_jax.evaluation.calibration import auroc
from rlvr_jax.evaluation.completions import KeptConfig
from rlvr_jax.evaluation.estimators import bootstrap, bootstrap_difference, format_estimate
from rlvr_jax.evaluation.measure import Benchmark
from rlvr_jax.lab.probes.rouge import rouge_l
from rlvr_jax.lab.probes.rows import Result, estimate_share, format_share, group_rows, make_items
from rlvr_jax.lab.probes.twins import TWINS, make_twins
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks.prompts import ProblemSource, load_problems

OF = ("source", "twin", "item", "fraction")  # columns: source, kind of twin ("": none), problem's index, share shown
NEEDS = ("prompt", "rest", "exact", "rouge_l", "correct", "too_short", *OF)  # columns that each row must have


class ContaminationConfig(Config):
    """How much of a question is shown, and with which controls a source is compared."""

    fractions: tuple[float, ...] = flag((0.4, 0.6, 0.8), "contamination: shares of a question's words that are "
                                        "shown", above=0, below=1)
    twins: str = flag("", "contamination: also probe twins of the problems, which no model can have seen, as controls: "
                      "any of these kinds, joined by commas", lambda: TWINS, listed=True)
    clean: str = flag("", "contamination: a source of problems that the model cannot have seen, as a control for "
                      "--problems, such as calculation:3; may be among --problems")


def make_benchmarks(config: ContaminationConfig, measured: EvaluateConfig, loaded: LanguageModel) -> list[Benchmark]:
    """Returns a benchmark for each source in --problems, each kind of its twins, and --clean, at each of --fractions.
    Raises UserError for flags of `measured` that do not fit this probe, and for questions too short for a fraction."""
    prompt = measured.kept.source.prompt
    if (measured.num_samples, measured.temperature, prompt.prompt_style, prompt.instruction) != (1, 0, "plain", ""):
        raise UserError("--probe=contamination is one greedy completion without a template: leave out --num_samples, "
                        "--temperature, --prompt_style and --instruction")
    benchmarks = []
    for label, problems in load_questions(config, measured.kept, loaded):
        for fraction in config.fractions:
            shortened = list(filter(None, (cut_question(problem, fraction) for problem in problems)))
            if not shortened:
                raise UserError(f"no question of {label} has enough words for --fractions={fraction:g}")
            benchmark = make_benchmark(measured.kept, loaded, f"{label} {fraction:g}", shortened)
            benchmarks.append(benchmark._replace(judge=functools.partial(judge_rest, benchmark.judge), columns=OF))
    return benchmarks


def load_questions(config: ContaminationConfig, kept: KeptConfig, loaded: LanguageModel
                   ) -> Iterator[tuple[str, list[Problem]]]:
    """Yields (label, problems) for each source and each kind of its twins. Each problem's meta has the columns OF
    except "fraction". No twins are made of --clean, because this source is itself a control."""
    sources = kept.source.problems.split(",")
    sources += [config.clean] if config.clean and config.clean not in sources else []
    if len(set(sources)) < len(sources):
        raise UserError(f"--problems={kept.source.problems} names a source twice")
    stems = [pathlib.Path(source).stem for source in sources]
    for source, name in zip(sources, stems if len(set(stems)) == len(stems) else sources):
        originals = load_problems(ProblemSource(source, kept.source.prompt), loaded.tokenizer, kept.heldout_split,
                                  kept.max_problems)
        twins = make_twins("" if source == config.clean else config.twins, originals, kept.seed)
        for twin, problems in ({"": dict(enumerate(originals))} | twins).items():  # problems: {index: problem}
            if not problems:
                raise UserError(f"--twins={config.twins}: no question of {source} has a twin that is {twin}; leave it "
                                "out, or probe this source alone")
            yield make_label(name, twin), [dataclasses.replace(problem, meta=problem.meta | {
                "source": name, "twin": twin, "item": item}) for item, problem in problems.items()]


def make_label(source: str, twin: str) -> str:
    return f"{source}, {twin}" if twin else source


def cut_question(problem: Problem, fraction: float) -> Optional[Problem]:
    """The problem with the first floor(fraction * words) words of its question as its prompt, and the other words in
    meta["rest"]. None if no word would be shown."""
    ends = [word.end() for word in re.finditer(r"\S+", problem.question)]
    num_shown = math.floor(Fraction(str(fraction)) * len(ends))  # as floats, .29 * 100 would be below 29
    if not num_shown:
        return None
    end = ends[num_shown - 1]
    return dataclasses.replace(problem, prompt=problem.question[:end], meta=problem.meta | {
        "rest": problem.question[end:].strip(), "fraction": fraction})


def judge_rest(by_answer: Callable, texts: list[str], problems: list[Problem]) -> list[dict]:
    """Returns a dict for each of the completions `texts`: what the judge `by_answer` returns, and the comparison with
    the hidden rest of the question. For a twin whose answer is unknown, "correct" is None."""
    return [verdict | ({"correct": None} if problem.meta["twin"] and not problem.answer else {})
            | compare_with_rest(text, problem.meta["rest"])
            for text, problem, verdict in zip(texts, problems, by_answer(texts, problems))]


def compare_with_rest(text: str, rest: str) -> dict:
    """Compares the hidden text `rest` with as many first words of the completion `text`. Returns "rest" itself;
    "exact", whether all words are equal; "rouge_l", a float; and "too_short", whether `text` has fewer words."""
    hidden, words = rest.split(), text.split()
    first = words[: len(hidden)]
    return {"rest": rest, "exact": first == hidden, "rouge_l": rouge_l(" ".join(first), rest),
            "too_short": len(words) < len(hidden)}


def probe_contamination(rows_by_file: dict[str, list[dict]], clean: str = "") -> Result:
    """Summarises each file of completions, given as {name: rows}, by source, kind of twins and fraction. Compares each
    source with its controls, at the same fraction: its twins, and the source `clean` if that is not empty."""
    record: dict[str, dict] = {"files": {}}
    for name, rows in rows_by_file.items():
        groups = group_rows(rows, lambda row: (row["source"], row["twin"], row["fraction"]))
        clean_source, summaries = find_clean_source(clean, rows), {}
        for (source, twin, fraction), group in groups.items():
            summary, against = {"fraction": fraction, "twin": twin} | summarise_benchmark(group), {}
            for (other, kind, other_fraction), control in groups.items():
                is_control = other == source and kind or (other, kind) == (clean_source, "")
                if is_control and other_fraction == fraction and not twin and source != clean_source:
                    against[make_label(other, kind)] = compare_with_control(group, control, kind)
            summary |= {"against": against} if against else {}
            summaries.setdefault(make_label(source, twin), {})[f"{100 * fraction:g}%"] = summary
        record["files"][name] = summaries
    items = make_items(rows_by_file, (*OF, "prompt", "rest", "completion", "exact", "rouge_l", "correct"))
    items.sort(key=lambda item: (item["twin"] != "", -item["exact"], -item["rouge_l"]))
    return Result(record, format_page(record), lambda sheet: draw_figure(record, sheet), items, {
        "exact": "exact", "correct": "right", "source": "problems", "fraction": "shown"})


def find_clean_source(clean: str, rows: list[dict]) -> Optional[str]:
    """The "source" in `rows` that is `clean` or its stem; None if `clean` is "". Raises UserError if there is none."""
    sources = dict.fromkeys(row["source"] for row in rows)
    names = [name for name in (clean, pathlib.Path(clean).stem) if name in sources]
    if clean and not names:
        raise UserError(f"--clean={clean}: the completions are of {', '.join(sources)}; name one of these")
    return names[0] if names else None


def summarise_benchmark(rows: list[dict]) -> dict:
    """Summarises rows, one for each problem: returns their number, "n"; the shares "exact" and "correct" (among known
    answers) and the mean "rouge_l", each with "value" and 95 % "interval" over problems; and the share "too_short"."""
    share = lambda values: estimate_share(values, range(len(values)))  # each value is of a problem of its own
    rouge_P = np.array([row["rouge_l"] for row in rows])
    right = [row["correct"] for row in rows if row["correct"] is not None]
    return {"n": len(rows), "exact": share([row["exact"] for row in rows]),
            "rouge_l": {"value": float(np.mean(rouge_P)), "interval": list(bootstrap(rouge_P))},
            "correct": share(right), "too_short": float(np.mean([row["too_short"] for row in rows]))}


def compare_with_control(rows: list[dict], control: list[dict], twin: str) -> dict:
    """Compares the rows of a source with those of a control: differences of mean "exact" and "rouge_l", with intervals;
    the "auroc" of each, how well it separates the source's problems from the control's; and the "verdict" by RULE. If
    the control is a kind of twins, `twin`, differences are paired, and problems without a twin are left out."""
    if twin:
        originals, twins = ({row["item"]: row for row in side} for side in (rows, control))
        pairs = [item for item in originals if item in twins]
        rows, control = [originals[item] for item in pairs], [twins[item] for item in pairs]
    comparison = {"n": len(rows), "control_n": len(control), "paired": bool(twin), "auroc": {}}
    for key in ("exact", "rouge_l"):
        mine, theirs = (np.array([row[key] for row in side], float) for side in (rows, control))  # f64[P] each
        interval = bootstrap(mine - theirs, (-1, 1)) if twin else bootstrap_difference(theirs, mine)
        comparison[key] = {"difference": float(mine.mean() - theirs.mean()), "interval": list(interval)}
        comparison["auroc"][key] = auroc(np.concatenate([mine, theirs]), np.arange(len(mine) + len(theirs)) < len(mine))
    # Only renumbered chains and calculations have an answer: each is solved again with its new numbers.
    drawn_alike = twin == "renumbered" and all(row["correct"] is not None for row in control)
    decisive = ("exact", "rouge_l") if drawn_alike else ("exact",)
    return comparison | {"verdict": "seen" if any(comparison[key]["interval"][0] > 0 for key in decisive)
                         else "no sign"}


NOTE = """\
The model is shown the first part of a question, without a template, and continues greedily. Exact: it says the rest
word for word. ROUGE-L (F1): mean likeness to the rest. Too short: fewer words than are hidden, which cannot be exact;
unless the model chose to end, raise --max_new_tokens."""
RULE = """\
Differences are source less control, with 95 % bootstrap intervals over pairs of a problem and its twin, or over each
side. AUROC: how well ROUGE-L tells the two apart (.5: not at all). `seen`: the interval of exact continuations is above
0, or that of ROUGE-L beside renumbered twins of chains and calculations, which are drawn as the originals were.

`no sign` does not prove that nothing was seen, only that nothing could be said from memory. `seen` means that the text
is known, not the answers, nor that accuracy comes from it. Beside other controls a text may only be easier to guess,
so likeness does not decide. Each deciding interval errs one time in forty: of many lines some say `seen` by chance.
Read the exact continuations, first in the items file."""


def list_summaries(record: dict) -> list[tuple]:
    """Returns [(file, label, fraction, summary)], all that is in record["files"], {file: {label: {fraction: summary}}}.
    A label is "source" or "source, kind of twins"; a fraction is text such as "40%"."""
    return [(file, label, fraction, summary) for file, by_label in record["files"].items()
            for label, by_fraction in by_label.items() for fraction, summary in by_fraction.items()]


def format_page(record: dict) -> str:
    """The Markdown page: a table of all benchmarks and, if there are controls, a table of comparisons with them."""
    summaries, sets, comparisons = list_summaries(record), [], []
    many_files, many_fractions = len(record["files"]) > 1, len({fraction for _, _, fraction, _ in summaries}) > 1
    for name, source, fraction, summary in summaries:
        label = (f"{name}, " if many_files else "") + source + (f", {fraction}" if many_fractions else "")
        right = format_share(summary["correct"]) if summary["correct"]["n"] else "-"
        sets.append([label, format_share(summary["exact"]), format_estimate(*summary["rouge_l"].values()), right,
                     f"{summary['too_short']:.1%}"])
        for control, against in summary.get("against", {}).items():
            differences = [format_estimate(against[key]["difference"], against[key]["interval"], "+")
                           for key in ("exact", "rouge_l")]
            comparisons.append([label, control.removeprefix(f"{source}, "), *differences,
                                format_estimate(against["auroc"]["rouge_l"]), against["verdict"]])
    text = NOTE + "\n\n" + markdown_table(["problems", "exact", "ROUGE-L", "right answer", "too short"], sets) + "\n"
    return text if not comparisons else text + "\n" + RULE + "\n\n" + markdown_table(
        ["problems", "control", "exact, difference", "ROUGE-L, difference", "AUROC", "verdict"], comparisons) + "\n"


def draw_figure(record: dict, sheet) -> None:
    """Draws a row for each source and each kind of twins on the matplotlib Figure `sheet`. The panels show exact
    continuations, ROUGE-L, right answers, and the AUROC of ROUGE-L against each control. A colour is a fraction."""
    summaries = list_summaries(record)
    rows = list(dict.fromkeys((file, source) for file, source, _, _ in summaries))
    fractions = sorted({summary["fraction"] for *_, summary in summaries})
    titles = {"exact": "exact continuation", "rouge_l": "ROUGE-L", "correct": "right answer", "auroc": "AUROC, ROUGE-L"}
    sheet.set_size_inches(11, 1.2 + 0.28 * len(rows))
    panels = dict(zip(titles, sheet.subplots(1, len(titles), sharey=True)))
    for file, source, _, summary in summaries:
        number = fractions.index(summary["fraction"])
        colour, y = f"C{number}", rows.index((file, source)) + 0.2 * (number - (len(fractions) - 1) / 2)
        for key in ("exact", "rouge_l", "correct"):
            estimate = summary[key]
            if estimate["value"] is not None:
                panels[key].plot(estimate["interval"], [y] * 2, colour, linewidth=1.2)
                panels[key].plot(estimate["value"], y, "o", color=colour, markersize=4,
                                 mfc="white" if summary["twin"] else colour)
        for against in summary.get("against", {}).values():
            panels["auroc"].plot(against["auroc"]["rouge_l"], y, "o", color=colour, markersize=4)
    for key, axes in panels.items():
        axes.set(xlabel=titles[key], xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.3)
    panels["auroc"].axvline(0.5, color="0.6", linewidth=1)
    panels["exact"].set_yticks(range(len(rows)), [
        f"{file}: {source}" if len(record["files"]) > 1 else source for file, source in rows], fontsize=8)
    for i, fraction in enumerate(fractions):
        panels["exact"].plot([], [], "o", color=f"C{i}", markersize=4, label=f"{fraction:.0%} shown")
    sheet.legend(*panels["exact"].get_legend_handles_labels(), loc="outside lower center", ncols=len(fractions),
                 fontsize=8, title="hollow: a twin" if any(summary["twin"] for *_, summary in summaries) else None,
                 title_fontsize=8)
