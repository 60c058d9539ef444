"""The record of a study, STUDY.json: which keys it must have, and the Markdown page made from it.

The page has the answer, one figure, one table and the rules. Everything else is in the record, and index.html shows it.
The file of a study may have `story = "FIRST"`: then the study joins the page of the study FIRST, in its own section.
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
         "measures": dict, "rules": list, "verdict": str}  # required keys -> types
RULES = ("rule", "measured", "prediction")  # headings of the table of rules on a page
RULE = {"says", "arm", "measure", "verdict", "mean", "interval"}  # keys that each rule of a record has
# keys of a study's file that its record copies
WORDS = ("title", "question", "short", "abstract", "construction", "known", "note", "control", "table", "shown",
         "figure", "looks", "success", "over", "story")
ORDER = ("one_shot", "boolean")  # the first studies of index.html; the others follow by name
SECTION = '\n\n<a id="'  # start of the section of a study that joins the page of another
MOST_ARMS, MOST_MEASURES = 12, 4  # rows and columns of the table on a page
VERDICTS = judging.VERDICTS


def read(path: pathlib.Path) -> dict:
    """The record in a JSON file; {} for a file without "study", which is no record. UserError for a damaged file."""
    record = files.read_json(path, remedy="write it again with scripts.study, or take it away")
    if "study" not in record:
        return {}
    wrong = [key for key, kind in KINDS.items() if not isinstance(record.get(key), kind)] or faults(record)
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)} is missing or not as scripts.study writes it; write it again, or "
                        "take it away")
    return record


def read_all(folder: pathlib.Path) -> list[dict]:
    """The records in a directory: those in ORDER, then others by name. A study that joins a page follows its owner."""
    def sort_key(record: dict) -> tuple:
        first = record.get("story") or record["study"]
        return [*ORDER, first].index(first), first, first != record["study"], record["study"]
    return sorted((record for path in folder.glob("*.json") if (record := read(path))), key=sort_key)


def by_page(found: list[dict], folder: pathlib.Path) -> dict[str, list[dict]]:
    """`{page: its records}` for the records `found` in a directory. A study that names another as its `story` is on the
    other's page if the directory has the other's record or page; otherwise it has a page of its own."""
    leaders, pages = {record["study"] for record in found if not record.get("story")}, {}
    for record in found:
        story = record.get("story")
        joins = story and (story in leaders or (folder / f"{story}.md").is_file())
        pages.setdefault(story if joins else record["study"], []).append(record)
    return pages


def links(found: list[dict], folder: pathlib.Path) -> dict[str, str]:
    """`{study: link to it}`: STUDY.md, or PAGE.md#STUDY for a study on the page of another."""
    return {record["study"]: f"{page}.md" if page == record["study"] else f"{page}.md#{record['study']}"
            for page, page_records in by_page(found, folder).items() for record in page_records}


def faults(record: dict) -> list[str]:
    """The names of the malformed parts of a record that has all KINDS: "verdict", "rules", "rule 1", "measures of ARM".
    A rule needs the keys RULE, one of `rules.SIDES`, and a measure that its arm has."""
    def is_rule(rule) -> bool:
        return (isinstance(rule, dict) and RULE <= rule.keys() and bool({*judging.SIDES} & rule.keys())
                and rule["measure"] in record["measures"].get(rule["arm"], ()))

    def is_measure(measure) -> bool:
        return (isinstance(measure, dict) and {"mean", "interval"} <= measure.keys()
                and isinstance(measure.get("seeds"), list) and len(measure["seeds"]) == len(record["seeds"]))

    valid = {"verdict": record["verdict"] in VERDICTS, "rules": bool(record["rules"])}
    valid |= {f"rule {i}": is_rule(rule) for i, rule in enumerate(record["rules"], 1)}
    valid |= {f"measures of {arm}": isinstance(measures, dict) and all(map(is_measure, measures.values()))
              for arm, measures in record["measures"].items()}
    return [part for part, well_formed in valid.items() if not well_formed]


def shown(measure: dict, sign: str = "") -> str:
    """A measure or a judged rule as text: mean and interval. For a rule that predicts a side for most seeds: how many
    are on it, their share with its interval, and the median of all seeds. `sign="+"` writes the sign of the numbers."""
    text = estimators.format_estimate(measure.get("mean"), measure.get("interval"), sign)
    if "of" in measure:
        median = f", median {estimators.format_estimate(measure['median'], None)}" if "median" in measure else ""
        return f"{measure['count']} of {measure['of']}: {text}{median}"
    return text + " (all equal)" * bool(measure.get("equal"))


def abstract(text: str, measures: dict) -> str:
    """Replaces "[[arm | measure]]" in the text by mean and interval, "[[arm | measure | difference]]" by those of the
    difference to the control. `measures` is a record's {arm: {measure: {"mean", ...}}}. KeyError for unknown names."""
    def number(match: re.Match) -> str:
        arm, _, rest = " ".join(match[1].split()).partition(" | ")  # a name may contain a line break
        name, _, key = rest.partition(" | ")
        measure = measures[arm][name]
        return shown(measure[key], "+") if key else shown(measure)
    return re.sub(r"(?s)\[\[(.+?)\]\]", number, text)


def answer(record: dict) -> str:
    """The abstract; without an abstract, the primary rule with its verdict and what was measured."""
    if record.get("abstract"):
        return abstract(record["abstract"], record["measures"]).strip()
    rule = judging.primary(record["rules"])
    return f"{VERDICTS[rule['verdict']].capitalize()}: {rule['says']}, {shown(rule)}."


def first_sentence(text: str) -> str:
    return re.match(r".+?[.!?](?=\s+[A-Z]|\s*$)|.+", " ".join(text.split()))[0]


def seeds(record: dict) -> str:
    """The sample size as text: "10 seeds", or "3 base models" if these are fewer: several seeds can share one."""
    number, bases = len(record["seeds"]), len({unit["base"] for unit in record.get("units", ())})
    return f"{bases} base models" if 0 < bases < number else f"{number} seed{'s' * (number > 1)}"


def choose_columns(record: dict) -> tuple[list[str], list[str]]:
    """(arms, measures) of the page's table: those in the file's `shown`, else the first MOST_ARMS arms, and the first
    MOST_MEASURES of the figure's measures, else of the file's `table`, else of all measures."""
    measured, listed = record["measures"], record.get("shown", {})
    names = record.get("figure", {}).get("measures") or record.get("table") or list(next(iter(measured.values()), {}))
    return (listed.get("arms") or list(measured)[:MOST_ARMS]), (listed.get("measures") or names[:MOST_MEASURES])


def table(record: dict) -> list[list[str]]:
    """The page's table: a header, and a row of texts for each arm: means with intervals, and after a semicolon the
    difference to the control. If the file defines `success`, the last column says how many seeds succeeded."""
    arms, names = choose_columns(record)
    success = record.get("success", {})
    rows = [["arm", *names, *([f"{success['measure']} above {success['above']}"] if success else [])]]
    for arm in arms:
        cells = []
        for measure in map(record["measures"][arm].get, names):
            gain = measure.get("difference", {})
            cells.append(shown(measure) + ("" if gain.get("mean") is None else f"; {shown(gain, '+')}"))
        rows.append([arm, *cells, *([shown(record["succeeded"][arm])] if success else [])])
    return rows


def rules(record: dict) -> list[list[str]]:
    """A row of three texts for each rule, under the headings RULES: the sentence of the rule, in brackets with notes,
    such as what was known before; what was measured; and the verdict, with the reason if it is "undecided"."""
    def notes(rule: dict) -> list[str]:
        known, new, added = map(rule.get, ("known", "new", "added"))  # `added`: a note on a change after the runs
        if isinstance(known, list):  # the seeds that were known; `new` is the rule judged on the other seeds
            known = f"seeds {', '.join(map(str, known))}"
            if new:
                known += f"; the others alone: {shown(new)}, {VERDICTS[new['verdict']]}"
        cases = [("**primary**", rule is judging.primary(record["rules"])), (added, added),
                 (f"known before: {known}", known), ("reversed after a pilot: not counted", rule.get("turned")),
                 ("almost sure to hold: not counted", rule.get("easy"))]  # (note, whether it applies)
        return [note for note, applies in cases if applies]
    return [[rule["says"] + (f" ({'; '.join(notes(rule))})" if notes(rule) else ""), shown(rule),
             VERDICTS[rule["verdict"]] + (f": {rule['open']}" if rule.get("open") else "")] for rule in record["rules"]]


def verdict(record: dict) -> str:
    """A sentence on whether the prediction held, and on how many of the other rules did."""
    others = f" Of the other rules: {judging.tally(record['rules'])}." if len(record["rules"]) > 1 else ""
    held = "is undecided" if record["verdict"] == "undecided" else VERDICTS[record["verdict"]]
    return f"The prediction {held}, by the primary rule.{others}"


def spread(record: dict) -> str:
    """A sentence on what the numbers of `table` are, and on whether their intervals are over seeds or problems."""
    control = f"; after a semicolon the paired difference to {record['control']}" if "control" in record else ""
    if len(record["seeds"]) == 1:
        interval = any(measure["interval"] for by_name in record["measures"].values() for measure in by_name.values())
        return f"One seed{'; 95 % intervals are over problems, and decide no rule' if interval else ''}{control}."
    over = "problems, where each has a value: they are about these trained models" if record.get("over") else "these"
    return f"Means over {seeds(record)}, 95 % intervals over {over}{control}."


def changed(record: dict) -> str:
    """HTML of one problem in record["changed"], {caption: {"problem", "benchmark", "answer", "arms", "completions"}}, that
    with the shorter pair of completions, the control's and the arm's: the last two paragraphs of both."""
    def table_row(texts: list[str]) -> str:  # Markdown would read backslashes and dollars, even inside HTML
        cells = (html.escape(text).replace("\\", "&#92;").replace("$", "&#36;").replace("\n", "<br>") for text in texts)
        return "<tr>" + "".join(f'<td valign="top">{cell}</td>' for cell in cells) + "</tr>"

    if not (found := record.get("changed")):
        return ""
    caption, example = min(found.items(), key=lambda item: len("".join(item[1]["completions"])))
    ends = ["\n\n".join(text.split("\n\n")[-2:]) for text in example["completions"]]
    return (f"{caption}: problem {example['problem']} of {example['benchmark']}, answer {example['answer']}. The ends of "
            f"both completions:\n\n<table>{table_row(example['arms'])}{table_row(ends)}</table>")


def section(record: dict, joins: bool) -> list[str]:
    """The Markdown paragraphs on a study. If it `joins` another's page, only its heading and one link are different."""
    study, built, (head, *rows) = record["study"], record.get("construction", ""), table(record)
    return [f'<a id="{study}"></a>\n\n## {record["title"]}' if joins else f"# {record['title']}",
            f"**Question.** {record['question'].strip()}", f"**Answer.** {answer(record)}",
            "**Decided by construction.** " * bool(built) + built, f"![{record['title']}]({study}.png)",
            spread(record), markdown_table(head, rows), record.get("note", ""), changed(record),
            f"**[{verdict(record).replace(', by', '](README.md#how-to-read), by', 1)}**", markdown_table(RULES, rules(record)),
            f"**Known before.** {record['known'].strip()}", record["origin"]]


def markdown(page: str, page_records: list[dict], folder: pathlib.Path) -> str:
    """The text of FOLDER/PAGE.md, with a section for each of the records: question, answer, figure, table, rules, what
    was known before, and command. If the study PAGE is not among them, its section is taken from the existing file."""
    blocks, names = [], [record["study"] for record in page_records]
    if names[0] != page:
        blocks = [(folder / f"{page}.md").read_text("utf-8").split(SECTION)[0]]
    for record in page_records:
        blocks += section(record, record["study"] != page)
        if len(names) > 1 and record["study"] == page:
            more = [f"[{other.get('short') or other['question']}](#{other['study']})" for other in page_records[1:]]
            blocks.insert(1, f"Further down: {' '.join(more)}")
    links = ", ".join(f"[{name}.json]({name}.json)" for name in names)
    blocks.append(f"All seeds and measures: {links} and [index.html](index.html#{names[0]}).")
    return "\n\n".join(text.strip() for text in blocks if text.strip()) + "\n"
