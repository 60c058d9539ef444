"""Finds what is wrong with the file of a study, apart from its rules, before the first command runs."""

import pathlib
import re

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import bank, sources, statistics
from rlvr_jax.lab.studies.commands import fill, names, variables

GIVEN = ("work", "data", "arm", "base", "example", "seed", "bank")  # {names} that the program fills in


def shape_fault(study: dict) -> str:
    """A message on what is wrong with a measure, {bank}, or a key such as `looks` (planned analyses), and on how to
    correct it; "" if nothing is wrong."""
    looks, success = study.get("looks", [5, 10, 20]), study.get("success")
    if len(looks) != statistics.LOOKS or not all(isinstance(x, int) for x in looks) or looks != sorted(set(looks)):
        return "looks: write three rising numbers of seeds, as in looks = [5, 10, 20]"
    pair = study.get("changed", {})
    if pair and not (pair.keys() == {"arm", "file"} and {pair["arm"], study.get("control")} <= {*study["arms"]}):
        return 'changed: write changed = {arm = "one of the arms", file = "FILE.jsonl"}, in a study with a control'
    if study.get("over", "problems") != "problems":
        return 'over: write over = "problems", for intervals over problems, or leave it out'
    if success is not None and not (success.keys() == {"measure", "above"} and success["measure"] in study["measures"]
                                    and isinstance(success["above"], (int, float))):
        return 'success: write success = {measure = "one of the measures", above = 0.8}'
    for key in ("bases", "examples"):
        if not study.get("crossed") and len(study.get(key, study["seeds"])) != len(study["seeds"]):
            return f"{key}: write a list with one number for each of `seeds`, in their order, or crossed = true"
    if strays := uncomputable(study["measures"]):
        takes = ", ".join(f"{operation} takes {count}" for operation, count in sources.PARTS.items())
        return (f"measure {strays[0]}: it is made of {study['measures'][strays[0]]}; write an operation and as many "
                f"other measures of this study as it takes, none of them made of {strays[0]}: {takes}")
    wrong = [name for name, source in study["measures"].items()
             if isinstance(source, list) and source[0] in sources.CROSSED
             and not (study.get("crossed") and min(len(study.get(key, ())) for key in ("bases", "examples")) > 2)]
    if wrong:
        return f"measure {wrong[0]}: variances need crossed = true, and three bases and examples or more"
    if study.get("crossed") and success:
        return "success: leave it out, for its interval is of independent seeds, and crossed ones share their bases"
    uses = [command for command in study["commands"].values() if "{bank}" in command]
    if uses and bank.MAKES not in uses[0]:
        return f"commands: the first one with {{bank}} makes the base model: it needs {bank.MAKES}"
    for name, source in study["measures"].items():
        bounds = source.get("range", [0, 1]) if isinstance(source, dict) else [0, 1]
        if isinstance(source, dict) and not {"source"} <= source.keys() <= {"source", "range"} or not (
                isinstance(bounds, list) and len(bounds) == 2 and bounds[0] < bounds[1]):
            return f'measure {name}: write {{source = "FILE: PATH", range = [0, 1]}}, or "FILE: PATH" alone'
    return ""


def uncomputable(measures: dict) -> list[str]:
    """Names of measures that cannot be computed, among those written as a list [operation, measure, measure ...]: the
    operation is unknown or gets too few or too many, or a measure is missing, circular or cannot be computed either."""
    left = {name: source or [""] for name, source in measures.items() if isinstance(source, list)}  # [""]: for []
    while computable := [name for name, (word, *others) in left.items() if len(others) == sources.PARTS.get(str(word))
                         and all(str(other) in measures and other not in left for other in others)]:
        left = {name: source for name, source in left.items() if name not in computable}
    return list(left)


def arm_fault(study: dict) -> str:
    """A message on what is wrong with a template, or with a key of an arm or of [quick]; "" if nothing is wrong. An arm
    may have `seeds`, commands, and texts that a template uses as {key}; [quick] may have commands."""
    commands, written = study["commands"], study.get("figure", {}).get("run", "")
    templates = [*commands.values(), *(text for text in study["measures"].values() if isinstance(text, str)), written,
                 *(value for arm in study["arms"].values() for value in arm.values() if isinstance(value, str))]
    try:
        used = set().union(*map(names, templates)) - {*GIVEN}
    except UserError as error:
        return str(error)
    tables = {f"arm {arm}": keys for arm, keys in study["arms"].items()} | {"[quick]": study.get("quick", {})}
    for where, keys in tables.items():
        for key, value in keys.items():
            if key == "seeds" and where != "[quick]":
                if not (isinstance(value, list) and value and {*value} <= {*study["seeds"]}):
                    return f"{where}: seeds: write some of the study's, as in seeds = {study['seeds'][:2]}"
            elif key in commands:
                is_list = isinstance(value, list) and all(isinstance(flag, str) for flag in value)
                if not is_list and value is not False:
                    return (f'{where}: {key} is a command; write its flags, {key} = ["--seed=1"], or false to leave it '
                            "out")
            elif where == "[quick]" or not (isinstance(value, str) and key in used):
                return (f"{where}: nothing reads {key}; there are the commands {', '.join(commands)}"
                        + (f", and the texts {', '.join(sorted(used))}" if used else ""))
    return ""


def twin_fault(lines: dict[str, list[str]]) -> str:
    """A message that names two arms with the same commands, `lines[arm]`; "" if there are none. Before commands are
    compared, the value of each --run_dir or --out is replaced by a number, wherever it occurs: names may differ."""
    seen = {}  # {commands of an arm, with numbers for names: the first arm that has them}
    for arm in lines:
        text = "\n".join(lines[arm])
        outputs = dict.fromkeys(re.findall(r"(?<!\S)--(?:run_dir|out)=(\S+)", text))
        for number, name in sorted(enumerate(outputs), key=lambda pair: -len(pair[1])):  # a name may contain another
            text = text.replace(name, f"<{number}>")
        if seen.setdefault(text, arm) != arm:
            return (f"the arms {seen[text]} and {arm} have the same commands; give one of them other flags, or take it "
                    "out")
    return ""


def source_fault(study: dict, cells: dict[str, dict], lines: dict[str, list[str]]) -> str:
    """A message that names a measure whose file no command writes; "" if there is none. `cells` has a cell of each arm,
    the values of {names}, and `lines` the commands of that cell."""
    outputs = {pathlib.Path(word.split("=", 1)[1]) for arm in lines for line in lines[arm]
               for word in bank.words_of(line) if word.startswith(("--run_dir=", "--out="))}
    for name, source in study["measures"].items():
        filled = [] if isinstance(source, list) else [
            (cell["work"], fill(source, variables(study, cell))) for cell in cells.values()]
        files = {pathlib.Path(work) / text.partition(": ")[0] for work, text in filled if ": " in text}
        if files and not any({file, *file.parents} & outputs for file in files):
            return (f"measure {name}: no command writes {sorted(files)[0]}; they write "
                    + ", ".join(map(str, sorted(outputs))))
    return ""
