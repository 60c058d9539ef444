"""Studies: a question asked of several arms and seeds, written down in a TOML file before its first run.

A file of configs/studies/ holds the question, what was known, the prediction, the commands of an arm as a user types
them, the arms as flags added to these, what is measured, and the rules of the verdict. This file runs any of them.
"""

import dataclasses
import itertools
import pathlib
import platform
import shlex
import string
import subprocess
import sys
import tomllib
from typing import Optional

import jax
import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.lab.studies import records, study_figure
from rlvr_jax.records import setting
from rlvr_jax.runs import files
from rlvr_jax.runs.origin import commit

FOLDER = pathlib.Path("configs/studies")
REQUIRED = {"title": str, "question": str, "known": str, "prediction": str, "seeds": list, "commands": dict,
            "arms": dict, "measures": dict, "rules": list}
OPTIONAL = {"short": str, "control": str, "quick": dict, "figure": dict, "note": str, "table": list}

# how a measure is made of others -> function of their values
COMBINED = {"-": np.subtract, "/": lambda a, b: a / b if np.all(b) else None,  # no share of nothing
            "overlap": lambda *rights: (estimators.overlap(*rights) or [None])[0],  # base, one way, another
            "overlap by chance": lambda *rights: (estimators.overlap(*rights) or [0, None])[1]}


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A question asked of several arms and seeds."""

    study: str = setting("one_shot", "a file of configs/studies by its name, or any .toml file like them")
    seeds: tuple[int, ...] = setting((), "seeds in place of the study's own", minimum=0, maximum=2**31 - 1)
    data: str = setting("", "directory of problem files, for the studies that need some")
    quick: bool = setting(False, "try the study out: its first seed alone, with the flags of its [quick] table; "
                          "written as STUDY_quick, and no result")
    work_dir: str = setting("", "directory for the runs; empty: runs/STUDY")
    out: str = setting("", "directory for STUDY.json, STUDY.md and STUDY.png; empty: results in work_dir; the "
                       "published ones are in results")


def run(config: StudyConfig) -> pathlib.Path:
    """Runs a study and returns the Markdown file it wrote; JSON and a PNG lie beside it.

    What has finished in the work directory is not run again, and a run that was cut goes on where it was.
    """
    name, study = load(config.study)
    if config.quick:
        name, study = name + "_quick", study | {"seeds": study["seeds"][:1]}
    seeds = [int(seed) for seed in config.seeds or study["seeds"]]
    work = pathlib.Path(config.work_dir or f"runs/{name}")
    out = pathlib.Path(config.out) if config.out else work / "results"
    given = {"work": str(work)} | ({"data": config.data} if config.data else {})
    cells = {(arm, seed): variables(study, given | {"arm": arm, "seed": str(seed)})
             for arm, seed in itertools.product(study["arms"], seeds)}
    finished, earlier = execute(study, cells, work, config.quick)
    measured = {arm: {name: gather([source_values(study["measures"], name, cells[arm, seed]) for seed in seeds])
                   for name in study["measures"]} for arm in study["arms"]}
    compare(measured, study.get("control"))
    rules = [judge(rule, measured) for rule in study["rules"]]
    record = {"study": name} | {key: study[key] for key in records.WORDS if key in study} | {
              "question": study["question"], "prediction": study["prediction"], "seeds": seeds,
              "origin": origin(config, seeds, finished, earlier), "measures": measured, "rules": rules,
              "verdict": overall(rules), "summaries": summaries(study, cells)}
    out.mkdir(parents=True, exist_ok=True)
    study_figure.write(study, cells, measured, out / f"{name}.png")
    files.write_json(out / f"{name}.json", plain(record))
    files.write_whole(out / f"{name}.md", records.markdown(record))
    return out / f"{name}.md"


def load(study: str) -> tuple[str, dict]:
    """(name, content) of configs/studies/STUDY.toml, or of the TOML file named. Raises UserError for a bad file."""
    path = pathlib.Path(study) if study.endswith(".toml") else FOLDER / f"{study}.toml"
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise UserError(f"--study={study}: no file {path}; there are {known}, or name a .toml file") from None
    except ValueError as error:
        raise UserError(f"{path}: not TOML ({error})") from None
    wrong = [key for key, kind in REQUIRED.items() if not isinstance(content.get(key), kind) or not content[key]]
    wrong += [key for key, value in content.items() if not isinstance(value, (REQUIRED | OPTIONAL).get(key, ()))]
    wrong += ["control"] * (not wrong and content.get("control", next(iter(content["arms"]))) not in content["arms"])
    if wrong:
        raise UserError(f"{path}: {', '.join(dict.fromkeys(wrong))} is missing, unknown or not as it should be; a "
                        f"study has {', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL)}; control is one of its "
                        "arms")
    for rule in content["rules"]:
        known = rule.get("arm") in content["arms"] and rule.get("measure") in content["measures"]
        if not known or "says" not in rule:
            raise UserError(f"{path}: a rule needs says, arm (of the arms) and measure (of the measures); it has "
                            f"{rule}")
    unknown = [name for name in content.get("table", ()) if name not in content["measures"]]
    wrong = f"table: {unknown[0]!r} is none of the measures" if unknown else study_figure.fault(content)
    if wrong:
        raise UserError(f"{path}: {wrong}")
    return path.stem, content


def fill(template: str, values: dict) -> str:
    """The template with its {names} filled in. Raises UserError for a name that nothing gives."""
    missing = {name for _, name, _, _ in string.Formatter().parse(template) if name} - values.keys()
    if "data" in missing:
        raise UserError("--data is required by this study: the directory of its problem files")
    if missing:
        raise UserError(f"the study's {template!r} needs {', '.join(sorted(missing))}, which is not given")
    return template.format(**values)


def commands(study: dict, cell: dict, quick: bool) -> list[str]:
    """The commands of one arm and seed, in order, each as a user types it after `python -m scripts.`."""
    arm, made = study["arms"][cell["arm"]], []
    for name, command in study["commands"].items():
        flags = arm.get(name, [])
        if flags is not False:
            flags = [*flags, *(study.get("quick", {}).get(name, []) if quick else [])]
            made.append(fill(" ".join([command, *map(shlex.quote, flags)]), variables(study, cell)))
    return made


def variables(study: dict, cell: dict) -> dict:
    """The {names} that commands and measures of a cell may use: work, seed, arm, data, and the texts of its arm."""
    return cell | {key: fill(value, cell) for key, value in study["arms"][cell["arm"]].items()
                   if isinstance(value, str)}


def execute(study: dict, cells: dict, work: pathlib.Path, quick: bool) -> tuple[list[str], list[str]]:
    """Runs each command once; returns all commands, and those that an earlier start had finished."""
    wanted = list(dict.fromkeys(line for cell in cells.values() for line in commands(study, cell, quick)))
    log = work / "finished.txt"
    known = log.read_text("utf-8").splitlines() if log.is_file() else []
    work.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(wanted, 1):
        if line in known:
            continue
        print(f"[{number} of {len(wanted)}] python -m scripts.{line}", file=sys.stderr, flush=True)
        script(line)
        with files.naming(log), log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return wanted, [line for line in wanted if line in known]


def script(line: str) -> None:
    """Runs one of our scripts as a user would, its progress shown; raises UserError if it fails."""
    if subprocess.run([sys.executable, "-m", *shlex.split(f"scripts.{line}")], check=False).returncode:
        raise UserError(f"python -m scripts.{line} failed; its message is above. The same command continues the study")


def source_values(measures: dict, name: str, cell: dict) -> Optional[np.ndarray]:
    """A measure of one cell, an arm with a seed: a number, or one for each problem; None where its file is missing.

    A measure is "FILE.json: path.to.a.number" (or to a list, one for each problem), "FILE.jsonl: benchmark" (whether
    each problem of that benchmark was right), "RUN/metrics.jsonl: column" (its sum over all steps), "{word}" of an arm
    that is a number or one of these, or [a row of COMBINED, one measure, another, ...].
    """
    source = measures[name]
    if isinstance(source, list):
        parts = [source_values(measures, part, cell) for part in source[1:]]
        made = None if any(part is None for part in parts) else COMBINED[source[0]](*parts)
        return None if made is None else np.asarray(made)
    file, _, path = fill(source, cell).partition(": ")
    if not path:
        try:
            return np.array(float(file))
        except ValueError:
            raise UserError(f"the study's measure {name}: {file!r} is no number, nor FILE: WHAT") from None
    file = pathlib.Path(cell["work"]) / file
    if not file.exists():  # of a command that the arm leaves out
        return None
    if file.name == "metrics.jsonl":
        return np.array(sum(row.get(path, 0) for _, row in files.read_lines(file)), float)
    if file.suffix == ".jsonl":
        right = {}
        for _, row in files.read_lines(file):
            if row["benchmark"] == path:
                right.setdefault(row["problem"], []).append(row["correct"])
        return np.array([np.mean(values) for values in right.values()])
    value = files.read_json(file)
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else np.array(value, float)


def gather(values: list) -> dict:
    """`{"seeds": [value of each], "mean", "interval"}`: 95 %, over seeds, or over problems where there is one seed."""
    there = [value for value in values if value is not None]
    return {"values": values, "seeds": [None if value is None else float(np.mean(value)) for value in values],
            "mean": float(np.mean([np.mean(value) for value in there])) if there else None,
            "interval": interval(there)}


def interval(values: list) -> Optional[tuple[float, float]]:
    if len(values) > 1:
        return estimators.student([float(np.mean(value)) for value in values])
    return estimators.bootstrap(values[0]) if values and values[0].ndim else None


def compare(measured: dict, control: Optional[str]) -> None:
    """Adds to every other arm's measures its paired `difference` to the control: by seed, or by problem."""
    for arm in measured if control else ():
        for name, mine in measured[arm].items():
            pairs = list(zip(mine["values"], measured[control][name]["values"]))
            if arm != control:
                mine["difference"] = gather([None if a is None or b is None else a - b for a, b in pairs])


def judge(rule: dict, measured: dict) -> dict:
    """A rule with its verdict: agree where the interval lies on the predicted side of `above` or `below`.

    It is of the paired difference to the control with `difference = true`, else of the measure itself.
    """
    measure = measured[rule["arm"]][rule["measure"]]
    measure = measure.get("difference", {}) if rule.get("difference") else measure
    low, high = measure.get("interval") or (None, None)
    verdict = "undecided"
    if low is not None and "above" in rule:
        verdict = "agree" if low > rule["above"] else "disagree" if high < rule["above"] else verdict
    elif low is not None and "below" in rule:
        verdict = "agree" if high < rule["below"] else "disagree" if low > rule["below"] else verdict
    return rule | {"mean": measure.get("mean"), "interval": measure.get("interval"), "verdict": verdict}


def overall(rules: list[dict]) -> str:
    """Agree if every rule agrees, disagree if one disagrees, else undecided."""
    verdicts = {rule["verdict"] for rule in rules}
    return "disagree" if "disagree" in verdicts else "agree" if verdicts == {"agree"} else "undecided"


def summaries(study: dict, cells: dict) -> dict:
    """summary.json of each arm's run, by arm and seed, where the study's figure names one."""
    by_arm = {}
    for (arm, seed), cell in cells.items():
        run_dir = study_figure.run_dir(study, cell)
        if run_dir and (run_dir / "summary.json").is_file():
            by_arm.setdefault(arm, {})[str(seed)] = files.read_json(run_dir / "summary.json")
    return by_arm


def origin(config: StudyConfig, seeds: list[int], finished: list[str], earlier: list[str]) -> str:
    """The command, commit, hardware and version of JAX, and how many commands an earlier start had finished."""
    more = " --data=DIR" * bool(config.data) + " --quick" * config.quick
    return (f"`python -m scripts.study --study={config.study} --seeds={','.join(map(str, seeds))}{more}`, commit "
            f"{commit()}, JAX {jax.__version__} on {jax.devices()[0].device_kind} ({platform.machine()})."
            + f" {len(earlier)} of its {len(finished)} commands were finished by an earlier start, perhaps at another "
            "commit." * bool(earlier)
            + " **Quick: smaller, shorter and one seed, to try the study out. Not a result.**" * config.quick)


def plain(record):
    """The record without "values", the arrays that its numbers were computed from."""
    if isinstance(record, dict):
        return {key: plain(value) for key, value in record.items() if key != "values"}
    return [plain(value) for value in record] if isinstance(record, (list, tuple)) else record
