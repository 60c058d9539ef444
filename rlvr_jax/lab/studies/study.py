"""Studies: a question asked of several arms and seeds, written down in a TOML file before its first run.

A file of configs/studies/ holds the question, what was known, the commands of an arm as a user types them, the arms as
flags added to these, what is measured, and the prediction: its rules (`rules.py`). This file runs any of them.
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
from rlvr_jax.lab.studies import records, rules, statistics, study_figure
from rlvr_jax.records import setting
from rlvr_jax.runs import files
from rlvr_jax.runs.origin import commit

FOLDER = pathlib.Path("configs/studies")
REQUIRED = {"title": str, "question": str, "known": str, "seeds": list, "commands": dict,
            "arms": dict, "measures": dict, "rules": list}
OPTIONAL = {"prediction": str, "short": str, "control": str, "quick": dict, "figure": dict, "note": str,
            "table": list, "looks": list, "success": dict, "bases": list, "construction": str}

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
    found = {arm: {name: [source_values(study["measures"], name, cells[arm, seed]) for seed in seeds]
                   for name in study["measures"]} for arm in study["arms"]}
    measured = measure(study, found, seeds)
    record = {"study": name} | written(study, measured, seeds) | {
        "origin": origin(config, seeds, finished, earlier), "summaries": summaries(study, cells)}
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
    unknown = [name for name in content.get("table", ()) if name not in content["measures"]]
    wrong = f"table: {unknown[0]!r} is none of the measures" if unknown else study_figure.fault(content)
    wrong = wrong or design_fault(content)
    if wrong:
        raise UserError(f"{path}: {wrong}")
    content = sourced(content)
    wrong = rules.fault(content)
    if wrong:
        raise UserError(f"{path}: {wrong}")
    example = {"work": "WORK", "data": "DATA", "seed": str(content["seeds"][0])}
    rules.refuse_twins(path, {arm: commands(content, example | {"arm": arm}, False) for arm in content["arms"]})
    return path.stem, content


def design_fault(study: dict) -> str:
    """What is wrong with `looks`, `success`, `bases` or the range of a measure, and how to write it."""
    looks, success = study.get("looks", [5, 10, 20]), study.get("success")
    if len(looks) != statistics.LOOKS or not all(isinstance(x, int) for x in looks) or looks != sorted(set(looks)):
        return "looks: write three rising numbers of seeds, as in looks = [5, 10, 20]"
    if success is not None and not (success.keys() == {"measure", "above"} and success["measure"] in study["measures"]
                                    and isinstance(success["above"], (int, float))):
        return 'success: write success = {measure = "one of the measures", above = 0.8}'
    if len(study.get("bases", study["seeds"])) != len(study["seeds"]):
        return "bases: write the base of each of `seeds`, in their order"
    for name, source in study["measures"].items():
        bounds = source.get("range", [0, 1]) if isinstance(source, dict) else [0, 1]
        if isinstance(source, dict) and not {"source"} <= source.keys() <= {"source", "range"} or not (
                isinstance(bounds, list) and len(bounds) == 2 and bounds[0] < bounds[1]):
            return f'measure {name}: write {{source = "FILE: PATH", range = [0, 1]}}, or "FILE: PATH" alone'
    return ""


def sourced(study: dict) -> dict:
    """The study with the source of each measure, and `ranges` of those that state one."""
    stated = {name: source for name, source in study["measures"].items() if isinstance(source, dict)}
    return study | {"measures": study["measures"] | {name: source["source"] for name, source in stated.items()},
                    "ranges": {name: source["range"] for name, source in stated.items() if "range" in source}}


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


def measure(study: dict, found: dict, seeds: list[int]) -> dict:
    """`{arm: {measure: what gather gives}}` of values by arm, measure and seed, with differences to the control."""
    error, of_seed = statistics.alpha(study.get("looks")), dict(zip(study["seeds"], study.get("bases", ())))
    spans = {name: rules.span(study, name) for name in study["measures"]}
    bases = [of_seed.get(seed) for seed in seeds]
    measured = {arm: {name: gather(values, spans[name], error, bases) for name, values in by_name.items()}
                for arm, by_name in found.items()}
    compare(measured, study.get("control"), spans, error)
    return measured


def gather(values: list, span: tuple = statistics.ANY, error: float = statistics.ALPHA, bases: list = ()) -> dict:
    """`{"seeds": [value of each], "mean", "interval"}`: over seeds, or over problems where there is one seed.

    Seeds that are all equal have no interval, but `"equal": True`. Enough seeds have `"quartiles"` as well.
    """
    means = [None if value is None else float(np.mean(value)) for value in values]
    there = [value for value in means if value is not None]
    made = {"values": values, "seeds": means, "mean": float(np.mean(there)) if there else None,
            "interval": interval(values, span, error)}
    if statistics.equal(there):
        return made | {"equal": True}
    if len(there) < statistics.FEWEST_QUARTILES:
        return made
    return made | {"quartiles": statistics.quartiles(
        there, [base for base, value in zip(bases or [None] * len(means), means) if value is not None], error)}


def interval(values: list, span: tuple, error: float) -> Optional[tuple[float, float]]:
    if len(values) == 1 and np.ndim(values[0]):
        return estimators.bootstrap(values[0])
    return statistics.interval([float(np.mean(value)) for value in values if value is not None], error, span)


def compare(measured: dict, control: Optional[str], spans: Optional[dict] = None,
            error: float = statistics.ALPHA) -> None:
    """Adds to every other arm's measures its paired `difference` to the control: by seed, or by problem."""
    for arm in measured if control else ():
        for name, mine in measured[arm].items():
            pairs = list(zip(mine["values"], measured[control][name]["values"]))
            span = (spans or {}).get(name, statistics.ANY)
            if arm != control:
                mine["difference"] = gather([None if a is None or b is None else a - b for a, b in pairs],
                                            rules.less(span, span), error)


def written(study: dict, measured: dict, seeds: list[int]) -> dict:
    """What a record says of the study and its measures: the words of its page, rules, verdict and shares of success."""
    judged = rules.judged(study, measured, len(seeds))
    error = statistics.alpha(study.get("looks"))
    kept = {key: study[key] for key in (*records.WORDS, "question", "looks", "success") if key in study} | {
            "prediction": study.get("prediction", "")}
    if "success" in study:
        kept["succeeded"] = {arm: succeeded(measures[study["success"]["measure"]]["seeds"], study["success"]["above"],
                                            error) for arm, measures in measured.items()}
    return kept | {"seeds": seeds, "level": 1 - error, "measures": measured, "rules": judged,
                   "verdict": rules.headline(judged)}


def succeeded(values: list, above: float, error: float) -> dict:
    """How many of the seeds succeeded, with the exact interval of their share."""
    there = [value for value in values if value is not None]
    count = sum(value > above for value in there)
    return {"count": count, "of": len(there),
            "interval": statistics.exact_binomial(count, len(there), error) if there else None}


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
