"""Finds what is wrong with the file of a study, apart from its rules, before the first command runs."""

import pathlib
import re

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import bank, sources, statistics
from rlvr_jax.lab.studies.commands import fill, names, variables

GIVEN = ("work", "data", "arm", "base", "example", "seed", "bank")  # {names} that the program fills in


def shape_fault(study: dict) -> str:
    """What is wrong with a measure, {bank}, or keys such as `looks` (planned analyses), and how to correct it; empty if
    nothing is."""
    looks, success = study.get("looks", [5, 10, 20]), study.get("success")
    if len(looks) != statistics.LOOKS or not all(isinstance(x, int) for x in looks) or looks != sorted(set(looks)):
        return "looks: write three rising numbers of seeds, as in looks = [5, 10, 20]"
    asked = study.get("changed", {})
    if asked and not (asked.keys() == {"arm", "file"} and {asked["arm"], study.get("control")} <= {*study["arms"]}):
        return 'changed: write changed = {arm = "one of the arms", file = "FILE.jsonl"}, in a study with a control'
    if study.get("over", "problems") != "problems":
        return 'over: write over = "problems", for intervals over problems, or leave it out'
    if success is not None and not (success.keys() == {"measure", "above"} and success["measure"] in study["measures"]
                                    and isinstance(success["above"], (int, float))):
        return 'success: write success = {measure = "one of the measures", above = 0.8}'
    for key in ("bases", "examples"):
        if not study.get("crossed") and len(study.get(key, study["seeds"])) != len(study["seeds"]):
            return f"{key}: write that of each of `seeds`, in their order, or crossed = true"
    if strays := unmade(study["measures"]):
        return (f"measure {strays[0]}: it is made of {study['measures'][strays[0]]}; write a word and that many other "
                "measures of this study: " + ", ".join(f"{word} {count}" for word, count in sources.PARTS.items()))
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


def unmade(measures: dict) -> list[str]:
    """The computed measures, each [operation, other measures ...], whose operation is unknown, or whose other measures
    are too few, too many, missing or circular."""
    left = {name: source or [""] for name, source in measures.items() if isinstance(source, list)}
    while computable := [name for name, (word, *parts) in left.items() if len(parts) == sources.PARTS.get(str(word))
                         and all(str(part) in measures and part not in left for part in parts)]:
        left = {name: source for name, source in left.items() if name not in computable}
    return list(left)


def arm_fault(study: dict) -> str:
    """What is wrong with a template, or with a key of an arm or of [quick]; empty if nothing is. A key is `seeds`, a
    command, or a text that a template uses as {key}. Any other key would have no effect."""
    commands, written = study["commands"], study.get("figure", {}).get("run", "")
    templates = [*commands.values(), *filter(lambda x: isinstance(x, str), study["measures"].values()), written,
                 *(value for arm in study["arms"].values() for value in arm.values() if isinstance(value, str))]
    try:
        read = set().union(*map(names, templates)) - {*GIVEN}
    except UserError as error:
        return str(error)
    for where, keys in [*((f"arm {arm}", keys) for arm, keys in study["arms"].items()),
                        ("[quick]", study.get("quick", {}))]:
        for key, value in keys.items():
            if key == "seeds" and where != "[quick]":
                if not (isinstance(value, list) and value and {*value} <= {*study["seeds"]}):
                    return f"{where}: seeds: write some of the study's, as in seeds = {study['seeds'][:2]}"
            elif key in commands:
                is_list = isinstance(value, list) and all(isinstance(flag, str) for flag in value)
                if not is_list and value is not False:
                    return (f'{where}: {key} is a command; write its flags, {key} = ["--seed=1"], or false to leave it '
                            "out")
            elif where == "[quick]" or not (isinstance(value, str) and key in read):
                return (f"{where}: nothing reads {key}; there are the commands {', '.join(commands)}"
                        + (f", and the texts {', '.join(sorted(read))}" if read else ""))
    return ""


def twin_fault(lines: dict[str, list[str]]) -> str:
    """Names two arms whose commands, `lines[arm]`, differ only in their outputs' names, after --run_dir= and --out=;
    empty if there are none. To compare commands, each of these names is replaced by a number, wherever it occurs."""
    seen = {}
    for arm in lines:
        text = "\n".join(lines[arm])
        made = dict.fromkeys(re.findall(r"(?<!\S)--(?:run_dir|out)=(\S+)", text))
        for number, name in sorted(enumerate(made), key=lambda pair: -len(pair[1])):  # a name may contain another
            text = text.replace(name, f"<{number}>")
        if seen.setdefault(text, arm) != arm:
            return (f"the arms {seen[text]} and {arm} have the same commands; give one of them other flags, or take it "
                    "out")
    return ""


def source_fault(study: dict, cells: dict[str, dict], lines: dict[str, list[str]]) -> str:
    """Names a measure whose file no command writes; empty if there is none. `cells` has a cell of each arm, and `lines`
    the commands of that cell."""
    outputs = {pathlib.Path(word.split("=", 1)[1]) for each in lines.values() for line in each
               for word in bank.words_of(line) if word.startswith(("--run_dir=", "--out="))}
    for name, source in study["measures"].items():
        files = {} if isinstance(source, list) else {
            pathlib.Path(cell["work"]) / file for cell in cells.values()
            for file, colon, _ in [fill(source, variables(study, cell)).partition(": ")] if colon}
        if files and not any({file, *file.parents} & outputs for file in files):
            return (f"measure {name}: no command writes {sorted(files)[0]}; they write "
                    + ", ".join(map(str, sorted(outputs))))
    return ""
