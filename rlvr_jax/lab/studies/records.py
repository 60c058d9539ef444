"""The record of a study, STUDY.json: which keys it must have, its tables, and the Markdown page made from it."""

import pathlib

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

KINDS = {"study": str, "question": str, "prediction": str, "seeds": list, "origin": str, "measures": dict,
         "rules": list, "verdict": str}
RULE = {"says", "arm", "measure", "verdict", "mean", "interval"}  # what each of the rules has
WORDS = ("title", "short", "known", "note", "control", "table")  # of the study's file; older records lack them
VERDICTS = ("agree", "disagree", "undecided")


def read(path: pathlib.Path) -> dict:
    """The record in a file of JSON; {} for a file that has no "study", and so is no record.

    Raises UserError naming a file that is damaged.
    """
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
              if not isinstance(rule, dict) or not RULE <= rule.keys()]
    for arm, measures in record["measures"].items():
        whole = isinstance(measures, dict) and all(
            isinstance(measure, dict) and {"mean", "interval"} <= measure.keys()
            and isinstance(measure.get("seeds"), list) and len(measure["seeds"]) == len(record["seeds"])
            for measure in measures.values())
        whole = whole and set(record.get("table", ())) <= measures.keys()
        wrong += [f"measures of {arm}"] * (not whole)
    return wrong


def shown(measure: dict, sign: str = "") -> str:
    return estimators.shown(measure.get("mean"), measure.get("interval"), sign)


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
    """[arm, seed, the value of each measure ...]."""
    return [[arm, str(seed), *(shown({"mean": measure["seeds"][i]}) for measure in measures)]
            for arm, measures in listed(record).items() for i, seed in enumerate(record["seeds"])]


def rules(record: dict) -> list[list[str]]:
    """[what was predicted, what was measured, verdict] of each rule."""
    return [[rule["says"], shown(rule), rule["verdict"]] for rule in record["rules"]]


def spread(record: dict) -> str:
    """In words: what the numbers of `arms` are, and whether their intervals are over seeds or problems."""
    if not any(measure["interval"] for measures in record["measures"].values() for measure in measures.values()):
        return "One seed, without intervals"
    return "Means with 95 % intervals over " + ("seeds (Student's t)" if len(record["seeds"]) > 1 else "problems")


def markdown(record: dict) -> str:
    """The page of a study: question, prediction, verdict, means, every seed, and the command that made it."""
    control = record.get("control")
    means = [[arm, *("; ".join(filter(None, pair)) for pair in pairs)] for arm, *pairs in arms(record)]
    paragraphs = [f"# {record['title']}", record["origin"], f"**Question.** {record['question']}",
                  f"**Known before.** {record['known']}", f"**Prediction.** {record['prediction']}",
                  f"**Verdict: {record['verdict']}.**",
                  markdown_table(["prediction", "measured", "verdict"], rules(record)),
                  spread(record)
                  + f"; behind the semicolon the paired difference to {control}" * bool(control) + ".",
                  markdown_table(["arm", *names(record)], means),
                  markdown_table(["arm", "seed", *names(record)], seeds(record)),
                  record.get("note", ""), f"![{record['title']}]({record['study']}.png)"]
    return "\n\n".join(text.strip() for text in paragraphs if text.strip()) + "\n"
