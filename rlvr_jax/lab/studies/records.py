"""The record of a study, STUDY.json: which keys it must have, and the Markdown page made from it.

The page is for a reader: the answer, one figure, one table, the rules. Everything else stays in the record, and
index.html shows it.
"""

import html
import pathlib
import re

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.lab.studies import rules as judging
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

KINDS = {"study": str, "title": str, "known": str, "question": str, "prediction": str, "seeds": list, "origin": str,
         "measures": dict, "rules": list, "verdict": str}
RULE = {"says", "arm", "measure", "verdict", "mean", "interval"}  # what each of the rules has
# of the study's file, as it is
WORDS = ("title", "question", "short", "abstract", "construction", "known", "note", "control", "table", "shown",
         "figure", "looks", "success", "over")
MOST_ARMS, MOST_MEASURES = 12, 4  # of the table of a page
VERDICTS = ("agree", "disagree", "undecided")


def read(path: pathlib.Path) -> dict:
    """The record in a file of JSON; {} for a file that has no "study", and so is no record. Raises UserError naming a
    file that is damaged."""
    record = files.read_json(path, remedy="write it again with scripts.study, or take it away")
    if "study" not in record:
        return {}
    wrong = [key for key, kind in KINDS.items() if not isinstance(record.get(key), kind)] or faults(record)
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)} is missing or not as scripts.study writes it; write it again, or "
                        "take it away")
    return record


def faults(record: dict) -> list[str]:
    """Which parts of a record with all its keys are not as they should be."""
    wrong = ["verdict"] * (record["verdict"] not in VERDICTS) + ["rules"] * (not record["rules"])
    wrong += [f"rule {i}" for i, rule in enumerate(record["rules"], 1)
              if not isinstance(rule, dict) or not RULE <= rule.keys() or not {*judging.SIDES} & rule.keys()
              or rule["measure"] not in record["measures"].get(rule["arm"], ())]
    for arm, measures in record["measures"].items():
        whole = isinstance(measures, dict) and all(
            isinstance(measure, dict) and {"mean", "interval"} <= measure.keys()
            and isinstance(measure.get("seeds"), list) and len(measure["seeds"]) == len(record["seeds"])
            for measure in measures.values())
        wrong += [f"measures of {arm}"] * (not whole)
    return wrong


# ----- numbers in words


def shown(measure: dict, sign: str = "") -> str:
    """A mean with its interval; of a rule on most seeds their count with the interval of the share, and the median."""
    text = estimators.format_estimate(measure.get("mean"), measure.get("interval"), sign)
    if "of" in measure:
        median = f", median {estimators.format_estimate(measure['median'], None)}" if "median" in measure else ""
        return f"{measure['count']} of {measure['of']}: {text}{median}"
    return text + " (equal in all seeds)" * bool(measure.get("equal"))


def abstract(text: str, measures: dict) -> str:
    """The text with the numbers it names: "[[arm | measure]]", and "[[arm | measure | difference]]" to the control.
    A name may go on in the next line. Raises KeyError for what is not there."""
    def number(match: re.Match) -> str:
        arm, name, *less = " ".join(match[1].split()).split(" | ")
        measure = measures[arm][name]
        return shown(measure[less[0]], "+") if less else shown(measure)
    return re.sub(r"(?s)\[\[(.+?)\]\]", number, text)


def answer(record: dict) -> str:
    """The abstract; without one, the rule that gives the verdict with what was measured."""
    if record.get("abstract"):
        return abstract(record["abstract"], record["measures"]).strip()
    rule = judging.primary(record["rules"])
    return f"{rule['verdict'].capitalize()}: {rule['says']}, {shown(rule)}."


def first_sentence(text: str) -> str:
    return re.match(r".+?[.!?](?=\s+[A-Z]|\s*$)|.+", " ".join(text.split()))[0]


def seeds(record: dict) -> str:
    """How many units the record has, in words."""
    number, bases = len(record["seeds"]), len({unit["base"] for unit in record.get("units", ())})
    return f"{bases} base models" if 0 < bases < number else f"{number} seed{'s' * (number > 1)}"


# ----- tables


def chosen(record: dict) -> tuple[list[str], list[str]]:
    """(arms, measures) of the page's table: those that `shown` of the study's file names, or the first ones."""
    measured, named = record["measures"], record.get("shown", {})
    names = record.get("figure", {}).get("measures") or record.get("table") or list(next(iter(measured.values()), {}))
    return (named.get("arms") or list(measured)[:MOST_ARMS]), (named.get("measures") or names[:MOST_MEASURES])


def table(record: dict) -> list[list[str]]:
    """The header and a row for each arm: means with intervals, and behind a semicolon the difference to the control.
    Where the file says what success is, the last column has how many seeds succeeded."""
    arms, names = chosen(record)
    success = record.get("success", {})
    rows = [["arm", *names, *([f"{success['measure']} above {success['above']}"] if success else [])]]
    for arm in arms:
        cells = [[shown(measure), *(shown(less, "+") for less in [measure.get("difference", {})] if less.get("mean")
                                    is not None)] for measure in map(record["measures"][arm].get, names)]
        rows.append([arm, *map("; ".join, cells), *([shown(record["succeeded"][arm])] if success else [])])
    return rows


RULES = ("rule", "measured", "verdict")


def rules(record: dict) -> list[list[str]]:
    """A row for each rule, as RULES has its columns, with what was known of it and why it is undecided."""
    def notes(rule: dict) -> str:
        known, new = rule.get("known", ""), rule.get("new")
        if isinstance(known, list):
            known = f"seeds {', '.join(map(str, known))}" + (
                f"; the others alone: {shown(new)}, {new['verdict']}" if new else "")
        return "; ".join(filter(None, [
            "**primary**" * (rule is judging.primary(record["rules"])), rule.get("added", ""),
            f"known before: {known}" * bool(known), "turned after a pilot: not counted" * bool(
                rule.get("turned")), "could hardly fail: not counted" * bool(rule.get("easy"))]))
    return [[rule["says"] + (f" ({notes(rule)})" if notes(rule) else ""), shown(rule),
             ": ".join([rule["verdict"], *filter(None, [rule.get("open")])])] for rule in record["rules"]]


def verdict(record: dict) -> str:
    """In words: the rule that the verdict is of, and how many of the others held."""
    more = f" Of the other rules: {judging.tally(record['rules'])}." * (len(record["rules"]) > 1)
    return f"{record['verdict']}, by the primary rule: {judging.primary(record['rules'])['says']}.{more}"


def spread(record: dict) -> str:
    """In words: what the numbers of `table` are, and whether their intervals are over seeds or problems."""
    control = f"; after a semicolon the paired difference to {record.get('control')}" * ("control" in record)
    if len(record["seeds"]) == 1:
        over = any(measure["interval"] for of in record["measures"].values() for measure in of.values())
        return "One seed" + "; 95 % intervals are over problems, and decide no rule" * over + f"{control}."
    how = ("over problems, where each has a value: they are about these trained models" if record.get("over") else
           "over these")
    return f"Means over {seeds(record)}, 95 % intervals {how}{control}."


def changed(record: dict) -> str:
    """The problems that `sources.changed` found, each with both completions side by side, as HTML."""
    cells = lambda *texts: "<tr>" + "".join(f'<td valign="top">{text}</td>' for text in texts) + "</tr>"
    as_html = lambda text: html.escape(text).replace("\\", "&#92;").replace("$", "&#36;").replace("\n", "<br>")
    return "\n\n".join(f"{what}: problem {pair['problem']} of {pair['benchmark']}, answer {pair['answer']}.\n\n<table>"
                       + cells(*map(as_html, pair["arms"])) + cells(*map(as_html, pair["completions"])) + "</table>"
                       for what, pair in record.get("changed", {}).items())


HOW = "([How verdicts are made](README.md#how-to-read).)"


def markdown(record: dict) -> str:
    """The page of a study: question, answer, figure, a table, the rules, what was known, and the command."""
    study, built, (head, *rows) = record["study"], record.get("construction", ""), table(record)
    paragraphs = [f"# {record['title']}", f"**Question.** {record['question'].strip()}",
                  f"**Answer.** {answer(record)}", "**Decided by construction.** " * bool(built) + built,
                  f"![{record['title']}]({study}.png)", spread(record), markdown_table(head, rows),
                  record.get("note", ""), changed(record), f"**Verdict: {verdict(record)}** {HOW}",
                  markdown_table(RULES, rules(record)), f"**Known before.** {record['known'].strip()}",
                  record["origin"], f"Every seed and every other measure: [{study}.json]({study}.json) and "
                  f"[index.html](index.html#{study})."]
    return "\n\n".join(text.strip() for text in paragraphs if text.strip()) + "\n"
