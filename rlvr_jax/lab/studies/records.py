"""The record of a study, STUDY.json: which keys it must have, its tables, and the Markdown page made from it."""

import html
import itertools
import pathlib
import re

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.lab.studies import rules as judging, statistics
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

KINDS = {"study": str, "question": str, "prediction": str, "seeds": list, "origin": str, "measures": dict,
         "rules": list, "verdict": str}
RULE = {"says", "arm", "measure", "verdict", "mean", "interval"}  # what each of the rules has
# of the study's file; older records lack them
WORDS = ("title", "short", "abstract", "construction", "known", "note", "control", "table")
MOST_COLUMNS = 9  # of a table with a row for each arm
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
    wrong = ["verdict"] * (record["verdict"] not in VERDICTS)
    wrong += [f"rule {i}" for i, rule in enumerate(record["rules"], 1)
              if not isinstance(rule, dict) or not RULE <= rule.keys()
              or rule["measure"] not in record["measures"].get(rule["arm"], ())]
    for arm, measures in record["measures"].items():
        whole = isinstance(measures, dict) and all(
            isinstance(measure, dict) and {"mean", "interval"} <= measure.keys()
            and isinstance(measure.get("seeds"), list) and len(measure["seeds"]) == len(record["seeds"])
            for measure in measures.values())
        whole = whole and set(record.get("table", ())) <= measures.keys()
        wrong += [f"measures of {arm}"] * (not whole)
    return wrong


def shown(measure: dict, sign: str = "") -> str:
    text = estimators.shown(measure.get("mean"), measure.get("interval"), sign)
    return text + " (equal in all seeds)" * bool(measure.get("equal"))


def names(record: dict) -> list[str]:
    """The measures of the tables, in their order: those of the study's `table`, or all."""
    return record.get("table") or list(next(iter(record["measures"].values()), {}))


def listed(record: dict) -> dict[str, list[dict]]:
    """Each arm with the measures of the tables."""
    return {arm: [measures[name] for name in names(record)] for arm, measures in record["measures"].items()}


def arms(record: dict) -> list[list]:
    """[arm, (mean with interval, paired difference to the control or ""), ...]: a pair for each measure."""
    return [[arm, *((shown(measure), shown(measure["difference"], "+") if "difference" in measure else "")
                    for measure in measures)] for arm, measures in listed(record).items()]


def seeds(record: dict) -> list[list[str]]:
    """[arm, seed, the value of each measure ...]; one row for a base where its examples have the same values."""
    rows = [[arm, str(seed), *(shown({"mean": measure["seeds"][i]}) for measure in measures)]
            for arm, measures in listed(record).items() for i, seed in enumerate(record["seeds"])]
    of_base = lambda row: (row[0], row[1].split(", example ")[0])
    groups = [list(group) for _, group in itertools.groupby(rows, of_base)]
    alike = lambda group: len(group) > 1 and all(row[2:] == group[0][2:] for row in group)
    return [row for group in groups for row in ([[*of_base(group[0]), *group[0][2:]]] if alike(group) else group)]


RULES = ("rule", "holds if", "measured", "level", "verdict")


def rules(record: dict) -> list[list[str]]:
    """A row for each rule, as RULES has its columns: with the level of its interval, and why it is undecided."""
    return [[rule["says"] + " **(primary)**" * (rule is judging.primary(record["rules"]))
             + " ({})".format(rule.get("added")) * ("added" in rule), judging.required(rule), shown(rule),
             level(rule), ": ".join([rule["verdict"], *filter(None, [rule.get("open")])])]
            for rule in record["rules"]]


def level(rule: dict) -> str:
    """At which level the interval of a rule is; records of before have 95 % throughout."""
    if not rule.get("interval"):
        return "-"
    return percent(rule.get("level", 0.95)) + " over problems" * (rule.get("over") == "problems")


def percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def successes(record: dict) -> list[list[str]]:
    """[arm, how many seeds succeeded, the exact interval of their share] of a study that says what success is."""
    return [[arm, f"{found['count']} of {found['of']}", estimators.shown(
        found["count"] / found["of"], found["interval"]) if found["of"] else "-"]
        for arm, found in record.get("succeeded", {}).items()]


def quartiles(record: dict) -> list[list[str]]:
    """[arm, interquartile mean with its interval of each measure of the tables]; no rows where seeds are few."""
    rows = [[arm, *(shown(measure.get("quartiles", {})) for measure in measures)]
            for arm, measures in listed(record).items()]
    return rows if any(cell != "-" for _, *cells in rows for cell in cells) else []


def verdict(record: dict) -> str:
    """In words: the rule that the verdict is of, and how many of the others held."""
    if not record["rules"]:
        return record["verdict"]
    more = f" Of the other rules: {judging.tally(record['rules'])}." * (len(record["rules"]) > 1)
    return f"{record['verdict']}, by the primary rule: {judging.primary(record['rules'])['says']}.{more}"


AGAIN = "Judged again from its record after the runs, by the rules that the study's file has now."


def method(record: dict) -> str:
    """In words: how the rules were judged."""
    known = percent(record.get("level", 0.95))
    return (f"The rules are the prediction. The primary rule has an interval of {known}" + " (three looks)" * (
        "looks" in record) + ", the others have theirs at the level of Holm's method over them; a rule `within` two "
        "numbers is judged by two one-sided tests, and its interval has twice the error. A rule is undecided where its "
        f"interval has the number in it, with one seed, and with fewer than {statistics.FEWEST_EQUAL} seeds that are "
        "all equal. Seeds that an undecided rule needs are for a power of .9 at the effect and spread seen.")


def spread(record: dict) -> str:
    """In words: what the numbers of `arms` are, and whether their intervals are over seeds or problems."""
    if len(record["seeds"]) == 1 and any(
            measure["interval"] for measures in record["measures"].values() for measure in measures.values()):
        return "One seed; 95 % intervals are over problems, and decide no rule"
    if len(record["seeds"]) == 1:
        return "One seed, without intervals"
    if record.get("over") == "problems":
        return ("Means over seeds. Where every problem has a value, the interval is 95 %, by a bootstrap over problems "
                "of each problem's mean over seeds: it is about these trained models, on other problems like these. "
                "Elsewhere it is over seeds")
    return f"Means with {percent(record.get('level', 0.95))} intervals over seeds (Student's t, cut to the range)"


def abstract(text: str, measures: dict) -> str:
    """The text with the numbers it names: "[[arm | measure]]", and "[[arm | measure | difference]]" to the control.
    Raises KeyError for an arm or measure that is not there."""
    def number(match: re.Match) -> str:
        arm, name, *difference = match[1].split(" | ")
        measure = measures[arm][name]
        return shown(measure["difference"], "+") if difference == ["difference"] else shown(measure)
    return re.sub(r"\[\[(.+?)\]\]", number, text)


def changed(record: dict) -> str:
    """The problems that `sources.changed` found, each with both completions side by side, as HTML."""
    cells = lambda *texts: "<tr>" + "".join(f'<td valign="top">{text}</td>' for text in texts) + "</tr>"
    as_html = lambda text: html.escape(text).replace("\\", "&#92;").replace("$", "&#36;").replace("\n", "<br>")
    return "\n\n".join(f"{what}: problem {pair['problem']} of {pair['benchmark']}, answer {pair['answer']}.\n\n<table>"
                       + cells(*map(as_html, pair["arms"])) + cells(*map(as_html, pair["completions"])) + "</table>"
                       for what, pair in record.get("changed", {}).items())


def construction(record: dict) -> str:
    """The first paragraph of a study whose result is decided by how its problems, models or rewards were made."""
    return f"**Decided by construction.** {record['construction']}" if record.get("construction") else ""


def of_arms(record: dict) -> str:
    """The table of `arms`; many measures have a row each, and the arms the columns."""
    rows = [["arm", *names(record)]] + [[arm, *("; ".join(filter(None, pair)) for pair in pairs)]
                                        for arm, *pairs in arms(record)]
    if len(rows[0]) > max(MOST_COLUMNS, len(rows)):
        rows = [*map(list, zip(*rows))]
        rows[0][0] = "measure"
    return markdown_table(rows[0], rows[1:])


def agreements(record: dict) -> list[str]:
    """For each arm that is an AUROC, in words and as a table: how far any two measures rank its runs alike."""
    texts = []
    for arm, found in record.get("agreement", {}).items():
        numbers = [str(i + 1) for i in range(len(found["names"]))]
        rows = [[f"{number} {name}", *("-" if rho is None else f"{rho:+.2f}" for rho in row)]
                for number, name, row in zip(numbers, found["names"], found["rho"])]
        texts += ["Agreement between the measures: Spearman's rank correlations over the "
                  f"{found['n']} runs that count for *{arm}*.", markdown_table(["measure", *numbers], rows)]
    return texts


def markdown(record: dict) -> str:
    """The page of a study: question, verdict, rules, means, every seed, and the command that made it."""
    control = record.get("control")
    few, robust = successes(record), quartiles(record)
    success = record.get("success", {})
    paragraphs = [f"# {record['title']}", abstract(record.get("abstract", ""), record["measures"]),
                  construction(record), record["origin"],
                  AGAIN * bool(record.get("judged_again")), f"**Question.** {record['question']}",
                  f"**Known before.** {record['known']}", f"**Verdict: {verdict(record)}**",
                  f"**Prediction.** {method(record)}", markdown_table(RULES, rules(record)),
                  f"**In words, as written with the rules.** {record['prediction']}" * bool(record["prediction"]),
                  spread(record) + f"; behind the semicolon the paired difference to {control}" * bool(control) + ".",
                  of_arms(record), changed(record), *agreements(record),
                  (f"Seeds with {success.get('measure')} above {success.get('above')}, and the exact interval of their "
                   "share (Clopper-Pearson).") * bool(few),
                  markdown_table(["arm", "succeeded", "share"], few) if few else "",
                  "Interquartile means, by a bootstrap of the seeds within each base." * bool(robust),
                  markdown_table(["arm", *names(record)], robust) if robust else "",
                  markdown_table(["arm", "seed", *names(record)], seeds(record)),
                  record.get("note", ""), f"![{record['title']}]({record['study']}.png)"]
    return "\n\n".join(text.strip() for text in paragraphs if text.strip()) + "\n"
