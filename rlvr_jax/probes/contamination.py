"""Contamination (arXiv 2507.10532): can a model go on with a question of which it sees the first part alone?

The prompt is the beginning of the question as it stands, no template, no instruction; the completion is greedy. Who
has never met the question can only guess how it goes on. How well, is asked of a control: twins of the problems
(`twins.py`), or a source that the model cannot have met.

The verdict on a source beside a control is `seen` where the 95 % interval of a difference lies above 0, else `no sign`:
of the share of exact continuations or, beside renumbered twins of chains and calculations, of the mean ROUGE-L. Only
these are drawn as the originals were; likeness to anything else differs by style as well, and random numbers in a story
are harder to guess than its own. Intervals are of a bootstrap over pairs of a problem with its twin, and over each side
by itself where the control is another source. R: words of the question that are hidden.
"""

import dataclasses
import math
import pathlib
import re
from fractions import Fraction
from typing import Callable, Iterator, Optional

import numpy as np

from rlvr_jax.config import ProbeConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import Asked
from rlvr_jax.evaluation.calibration import auroc
from rlvr_jax.evaluation.estimators import bootstrap, bootstrap_difference, shown
from rlvr_jax.evaluation.measure import by_answer
from rlvr_jax.pretrained import loading
from rlvr_jax.probes import twins
from rlvr_jax.probes.likeness import rouge_l, same_words
from rlvr_jax.probes.rows import Found, said, share
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts, load_problems

OF = ("source", "twin", "item", "fraction")  # of which problem, and of which part, a row is
NEEDS = ("prompt", "rest", "exact", "rouge_l", "correct", "too_short", *OF)


# ----- asking


def ask(config: ProbeConfig, loaded: loading.LanguageModel) -> list[Asked]:
    """A set for each source in --problems, its twins, and --clean, at each of --fractions. Raises UserError for what is
    not this probe."""
    if (config.num_samples, config.temperature, config.prompt_style, config.instruction) != (1, 0, "plain", ""):
        raise UserError("--probe=contamination is one greedy completion without a template: leave out --num_samples, "
                        "--temperature, --prompt_style and --instruction")
    judge = judging(by_answer(config.answer_format, config.grader, "lenient"))
    made = []
    for label, problems in questions(config, loaded):
        for fraction in config.fractions:
            if not (parts := [part for problem in problems if (part := cut(problem, fraction))]):
                raise UserError(f"no question of {label} has enough words for --fractions={fraction:g}")
            prompts = encode_prompts(loaded.tokenizer, parts, loaded.config, config.max_new_tokens,
                                     config.max_prompt_tokens)
            made.append(Asked(f"{label} {fraction:g}", parts, prompts, 1, 0.0, judge))
    return made


def questions(config: ProbeConfig, loaded: loading.LanguageModel) -> Iterator[tuple[str, list[Problem]]]:
    """(label, problems) of each source and of its twins. The clean source has no twins: it is a control itself."""
    sources = config.problems.split(",")
    sources += [config.clean] if config.clean and config.clean not in sources else []
    if len(set(sources)) < len(sources):
        raise UserError(f"--problems={config.problems} names a source twice")
    stems = [pathlib.Path(source).stem for source in sources]
    for source, name in zip(sources, stems if len(set(stems)) == len(stems) else sources):
        whole = load_problems(source, loaded.tokenizer, count=config.max_problems, num_ops=config.num_ops,
                              split=config.heldout_split, ignore_columns=config.ignore_columns)
        kinds = twins.make("" if source == config.clean else config.twins, whole, config.seed)
        for twin, own in ({"": dict(enumerate(whole))} | kinds).items():
            if not own:
                raise UserError(f"--twins={config.twins}: no question of {source} has a twin that is {twin}; leave it "
                                "out, or probe this source alone")
            yield label(name, twin), [dataclasses.replace(problem, meta=problem.meta | {
                "source": name, "twin": twin, "item": item}) for item, problem in own.items()]


def label(source: str, twin: str) -> str:
    return f"{source}, {twin}" if twin else source


def cut(problem: Problem, fraction: float) -> Optional[Problem]:
    """The problem with the first floor(fraction * words) words of its question for a prompt, the others in
    meta["rest"]. None if no word is left."""
    ends = [word.end() for word in re.finditer(r"\S+", problem.question)]
    shown_words = math.floor(Fraction(str(fraction)) * len(ends))  # .29 of 100 words are 29, and of floats 28
    if not shown_words:
        return None
    end = ends[shown_words - 1]
    return dataclasses.replace(problem, prompt=problem.question[:end], meta=problem.meta | {
        "rest": problem.question[end:].strip(), "fraction": fraction})


def judging(by_answer: Callable) -> Callable:
    """The `judge` of `Asked`: that of the answer, and how like the hidden rest the completion begins. Nobody knows the
    answer of some twins: "correct" of these is None."""
    def judge(texts: list[str], problems: list[Problem]) -> list[dict]:
        return [verdict | ({"correct": None} if problem.meta["twin"] and not problem.answer else {})
                | reconstruction(text, problem.meta["rest"]) | {key: problem.meta[key] for key in OF}
                for text, problem, verdict in zip(texts, problems, by_answer(texts, problems))]
    return judge


def reconstruction(text: str, rest: str) -> dict:
    """`exact` and `rouge_l` of the first R words of a completion against the hidden ones, and whether it has fewer."""
    count, words = len(rest.split()), text.split()
    first = " ".join(words[:count])
    return {"rest": rest, "exact": same_words(first, rest), "rouge_l": rouge_l(first, rest),
            "too_short": len(words) < count}


# ----- finding


def find(kept: dict[str, list[dict]], clean: str = "") -> Found:
    """What the rows of each model say: of each source, its twins, and each fraction, and beside which control."""
    items, by_file = [], {}
    for name, rows in kept.items():
        parts: dict[tuple, list[dict]] = {}
        for row in rows:
            parts.setdefault((row["source"], row["twin"], row["fraction"]), []).append(row)
        control, by_file[name] = clean_source(clean, rows), {}
        for (source, twin, fraction), own in parts.items():
            beside = {} if twin or source == control else {
                label(*key[:2]): compare(own, other, key[1]) for key, other in parts.items()
                if key[2] == fraction and (key[:2] == (control, "") or (key[0] == source and key[1]))}
            by_file[name].setdefault(label(source, twin), {})[f"{100 * fraction:g}%"] = {
                "fraction": fraction, "twin": twin} | summary(own) | ({"against": beside} if beside else {})
        keys = (*OF, "prompt", "rest", "completion", "exact", "rouge_l", "correct")
        items += [{"file": name} | {key: row[key] for key in keys if key in row} for row in rows]
    items.sort(key=lambda one: (one["twin"] != "", -one["exact"], -one["rouge_l"]))
    record = {"files": by_file}
    return Found(record, page(record), lambda sheet: draw(record, sheet), items)


def clean_source(clean: str, rows: list[dict]) -> Optional[str]:
    """What the rows call the source of --clean. Raises UserError if they have none of it."""
    there = dict.fromkeys(row["source"] for row in rows)
    found = [name for name in (clean, pathlib.Path(clean).stem) if name in there]
    if clean and not found:
        raise UserError(f"--clean={clean}: the completions are of {', '.join(there)}; name one of these")
    return found[0] if found else None


def summary(rows: list[dict]) -> dict:
    """Shares with 95 % intervals, over problems: of exact continuations, of right answers (of those that have one),
    and the mean ROUGE-L."""
    likeness = [row["rouge_l"] for row in rows]
    right = [row["correct"] for row in rows if row["correct"] is not None]
    return {"n": len(rows), "exact": share([row["exact"] for row in rows], range(len(rows))),
            "rouge_l": {"value": float(np.mean(likeness)), "interval": list(bootstrap(np.array(likeness)))},
            "correct": share(right, range(len(right))),
            "too_short": float(np.mean([row["too_short"] for row in rows]))}


def compare(rows: list[dict], control: list[dict], twin: str) -> dict:
    """A source beside a control: differences with 95 % intervals, AUROC (how well it tells a problem of the source from
    one of the control), and the verdict. Problems that have no twin are left out beside twins, `twin` of which kind."""
    if twin:
        own, other = ({row["item"]: row for row in side} for side in (rows, control))
        pairs = [item for item in own if item in other]
        rows, control = [own[item] for item in pairs], [other[item] for item in pairs]
    made = {"n": len(rows), "control_n": len(control), "paired": bool(twin), "auroc": {}}
    for key in ("exact", "rouge_l"):
        mine, theirs = (np.array([row[key] for row in side], float) for side in (rows, control))
        interval = bootstrap(mine - theirs) if twin else bootstrap_difference(theirs, mine)
        made[key] = {"difference": float(mine.mean() - theirs.mean()), "interval": list(interval)}
        made["auroc"][key] = auroc(np.concatenate([mine, theirs]), np.arange(len(mine) + len(theirs)) < len(mine))
    drawn_alike = twin == "renumbered" and all(row["correct"] is not None for row in control)  # it was solved anew
    decides = ("exact", "rouge_l") if drawn_alike else ("exact",)
    return made | {"verdict": "seen" if any(made[key]["interval"][0] > 0 for key in decides) else "no sign"}


# ----- showing


NOTE = """\
What a greedy completion makes of the first part of a question, without a template: the share that says the rest word by
word, the mean likeness to it (ROUGE-L, F1), the share that ends in the right answer. Completions that end before as
many words as are hidden can not be exact; where that is not by the model's choice, --max_new_tokens is too small."""
RULE = """\
Differences are source less control, with 95 % intervals of a bootstrap: over pairs of a problem and its twin, or over
each side by itself where the control is another source. AUROC is how well a number tells the two apart: .5 is not at
all. `seen`: the interval of exact continuations lies above 0 or, beside renumbered twins of chains and calculations,
which are drawn as the originals were, that of ROUGE-L. `no sign`: neither does.

What does not follow: `no sign` is not proof that nothing was seen, only that nothing could be said from memory.
`seen` says that text is known, not that answers are, nor that accuracy comes from it. Beside other controls than those
twins the text may only be easier to guess, which is why likeness does not count there. Each line errs one time in forty
for each interval that decides: of many lines, some say `seen` by chance. The items file has the exact continuations
first: read them."""


def lines(record: dict) -> Iterator[tuple]:
    """(file, label, fraction, what was found of it) of everything that was asked."""
    for name, sources in record["files"].items():
        for source, fractions in sources.items():
            for one in fractions.values():
                yield name, source, f"{one['fraction']:.0%}", one


def page(record: dict) -> str:
    def both(one: dict) -> str:
        return shown(one["difference"], one["interval"], "+")

    sets = [[name, source, part, said(one["exact"]), shown(one["rouge_l"]["value"], one["rouge_l"]["interval"]),
             said(one["correct"]) if one["correct"]["n"] else "-", f"{one['too_short']:.1%}"]
            for name, source, part, one in lines(record)]
    beside = [[name, source, part, control, f"{found['n']}, {found['control_n']}", both(found["exact"]),
               both(found["rouge_l"]), shown(found["auroc"]["exact"]), shown(found["auroc"]["rouge_l"]),
               found["verdict"]] for name, source, part, one in lines(record)
              for control, found in one.get("against", {}).items()]
    text = NOTE + "\n\n" + markdown_table(
        ["of", "problems", "shown", "exact", "ROUGE-L", "right answer", "too short"], sets) + "\n"
    return text if not beside else text + "\n" + RULE + "\n\n" + markdown_table(
        ["of", "problems", "shown", "control", "n", "exact, difference", "ROUGE-L, difference", "AUROC, exact",
         "AUROC, ROUGE-L", "verdict"], beside) + "\n"


def draw(record: dict, sheet) -> None:
    """A line for each source and its twins: exact continuations, likeness, right answers, AUROC beside each control.
    The colour is how much of the question was shown."""
    found = list(lines(record))
    rows = list(dict.fromkeys((file, source) for file, source, _, _ in found))
    shares = sorted({one["fraction"] for *_, one in found})
    names = {"exact": "exact continuation", "rouge_l": "ROUGE-L", "correct": "right answer", "auroc": "AUROC, ROUGE-L"}
    sheet.set_size_inches(11, 1.2 + 0.28 * len(rows))
    panels = dict(zip(names, sheet.subplots(1, len(names), sharey=True)))
    for file, source, _, one in found:
        colour = f"C{shares.index(one['fraction'])}"
        place = rows.index((file, source)) + 0.2 * (shares.index(one["fraction"]) - (len(shares) - 1) / 2)
        for key in ("exact", "rouge_l", "correct"):
            if one[key].get("n", one["n"]):
                low, high = one[key]["interval"]
                panels[key].plot([low, high], [place] * 2, colour, linewidth=1.2)
                panels[key].plot(one[key]["value"], place, "o", color=colour, markersize=4,
                                 mfc="white" if one["twin"] else colour)
        for beside in one.get("against", {}).values():
            panels["auroc"].plot(beside["auroc"]["rouge_l"], place, "o", color=colour, markersize=4)
    for key, axes in panels.items():
        axes.set(xlabel=names[key], xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.3)
    panels["auroc"].axvline(0.5, color="0.6", linewidth=1)
    several = len(record["files"]) > 1
    panels["exact"].set_yticks(range(len(rows)), [f"{file}: {source}" if several else source for file, source in rows],
                               fontsize=8)
    for i, fraction in enumerate(shares):
        panels["exact"].plot([], [], "o", color=f"C{i}", markersize=4, label=f"{fraction:.0%} shown")
    sheet.legend(*panels["exact"].get_legend_handles_labels(), loc="outside lower center", ncols=len(shares),
                 fontsize=8, title="hollow: a twin" if any(one["twin"] for *_, one in found) else None,
                 title_fontsize=8)
