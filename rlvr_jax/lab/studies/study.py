"""Studies: a question asked of several arms and seeds, written down in a TOML file before its first run.

A file of configs/studies/ has the question, what was known, the commands of an arm as a user types them, the flags that
each arm adds to the commands, what is measured, and the prediction, as rules (`rules.py`). This module runs such files.
"""

import json
import os
import pathlib
import platform
import shlex
import tomllib
from typing import Callable, Iterable, Optional

import jax
import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import bootstrap
from rlvr_jax.lab.studies import bank, commands, design, earlier, records, rules, sources, statistics, study_figure
from rlvr_jax.lab.studies.commands import label, units, variables
from rlvr_jax.runs import files
from rlvr_jax.runs.origin import commit

FOLDER = pathlib.Path("configs/studies")
REQUIRED = {"title": str, "question": str, "known": str, "seeds": list, "commands": dict,
            "arms": dict, "measures": dict, "rules": list}  # keys of a study's file -> types
OPTIONAL = {"prediction": str, "short": str, "control": str, "quick": dict, "figure": dict, "note": str,
            "table": list, "shown": dict, "looks": list, "success": dict, "bases": list, "examples": list,
            "crossed": bool, "construction": str, "over": str, "abstract": str, "changed": dict, "story": str}


class StudyConfig(Config):
    """A question asked of several arms and seeds."""

    study: str = flag("one_shot", "a file of configs/studies by its name, or any .toml file like them")
    seeds: tuple[int, ...] = flag((), "seeds that replace those of the study's file", minimum=0, maximum=2**31 - 1)
    arms: str = flag("", "arms to run, joined by semicolons; empty: all. The record and its rules are of these alone")
    data: str = flag("", "directory of problem files, for the studies that need some")
    quick: bool = flag(False, "try the study out: only its first seed, with the flags of its [quick] table; "
                       "written as STUDY_quick, which is no result")
    work_dir: str = flag("", "directory for the runs; empty: runs/STUDY")
    earlier: str = flag("", "STUDY.json of an earlier start whose runs may be lost: what it has results of is not run "
                        "again")
    bank: str = flag("runs/bank", "directory of the cache of base models, which studies share")
    jobs: int = flag(1, "number of commands that run in parallel, each with its share of the cores, or a GPU; if "
                     "above 1, their output goes to work_dir/logs", minimum=1)
    dry_run: bool = flag(False, "run nothing; print the commands and an estimate of their time")
    out: str = flag("", "directory for STUDY.json, STUDY.md and STUDY.png; empty: work_dir/results; the "
                    "published ones are in results")


def run(config: StudyConfig, check: Callable[[str], None] = lambda line: None) -> Optional[pathlib.Path]:
    """Runs a study, writes its record (JSON), figure (PNG) and page (Markdown), and returns the page's path; None for a
    dry run. Skips commands that have finished in the work directory. Before the first command, `check(line)` may raise
    UserError for a command whose flags are wrong."""
    name, study = asked(config)
    work = pathlib.Path(config.work_dir or f"runs/{name}")
    out = pathlib.Path(config.out) if config.out else work / "results"
    given = {"work": str(work)} | ({"data": config.data} if config.data else {})
    repeated = units(study, [int(seed) for seed in config.seeds or study["seeds"]])
    cells = {(arm, label(study, unit)): variables(study, given | {"arm": arm} | unit) for unit in repeated
             for arm, keys in study["arms"].items() if unit["seed"] in keys.get("seeds", [unit["seed"]])}
    lines_of = {key: commands.commands(study, cell, config.quick, config.bank) for key, cell in cells.items()}
    # Checks the commands of the first unit's arms; those of other units differ only in seeds and names.
    for line in dict.fromkeys(line for each in list(lines_of.values())[: len(study["arms"])] for line in each):
        check(line)
    old = earlier.read(config.earlier, name, study)
    kept = earlier.kept(old, study, lines_of, lambda arm, unit: commands.commands(
        study, variables(study, given | {"arm": arm} | unit), config.quick, config.bank))
    now = {key: cell for key, cell in cells.items() if key not in kept}
    lines = [lines_of[key] for key in now]
    if config.dry_run:
        print(commands.plan(lines, work, config.bank, config.jobs))
        return None
    finished, skipped = commands.execute(lines, work, config.bank, config.jobs)

    def known(arm: str, name: str) -> Optional[list]:  # a value for each unit; None: to compute from other measures
        source, keys = study["measures"][name], [(arm, label(study, unit)) for unit in repeated]
        return None if isinstance(source, list) else [
            sources.source_values(name, source, now[key]) if key in now else kept.get(key, {}).get(name)
            for key in keys]

    sources.refuse_missing_paths(study, list(now.values()))
    measured = measure(study, sources.values_of(study, known, repeated), repeated)
    summaries, curves = (earlier.joined(kept, old.get(key, {}), new)
                         for key, new in zip(("summaries", "curves"), sources.read_runs(study, now)))
    record = {"study": name} | written(study, measured, repeated)
    record |= {"origin": origin(config, study, finished, skipped, len(kept)), "recipes": earlier.recipes(study),
               "summaries": summaries}
    made = {base.name: bank.note(base) | {"command": line.replace(str(base), "{bank}")}
            for line in finished if (base := bank.made_by(line, config.bank))}
    for key, value in (("bank", old.get("bank", {}) | made), ("curves", curves),
                       ("changed", kept and old.get("changed") or sources.changed(study, now)),
                       ("earlier", kept and [*old.get("earlier", []), old["origin"]]),
                       ("rules_before", kept and old.get("rules_before"))):
        record |= {key: value} if value else {}
    out.mkdir(parents=True, exist_ok=True)
    return write([record], out)[0]


def asked(config: StudyConfig) -> tuple[str, dict]:
    """(name, content) of the study, of the arms in --arms alone, and with --quick of its first seed alone. Raises
    UserError for a bad file or an arm that it lacks."""
    name, study = load(config.study)
    if config.arms:
        wanted, arms = [arm.strip() for arm in config.arms.split(";")], "; ".join(study["arms"])
        study, wrong = limited(study, wanted)
        unknown = sorted({*wanted} - {*study["arms"]})
        if wrong or unknown:
            raise UserError(f"--arms={config.arms}: {wrong or f'no arm {unknown[0]}'}; the arms of {name}: {arms}")
    if config.quick:
        # How many seeds, bases and examples of the study are run. An empty `story` gives the study a page of its own.
        counts = {"seeds": 1} | ({"bases": 3, "examples": 3} if study.get("crossed") else {})
        name, study = name + "_quick", study | {"story": ""} | {
            key: study[key][:count] for key, count in counts.items() if key in study}
    return name, study


def write(new: list[dict], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the records `new` and their figures into the folder, and each page that shows one of them. Several studies
    may share a page (`records.by_page`), which also shows those whose records the folder already has. If a study is on
    another study's page, an earlier page of its own is deleted. Returns the paths of the pages written."""
    for record in new:
        files.write_json(folder / f"{record['study']}.json", record)
        study_figure.write(record, folder / f"{record['study']}.png")
    names, written = {record["study"] for record in new}, []
    for page, page_records in records.by_page(records.read_all(folder), folder).items():
        shown = {record["study"] for record in page_records}
        if names & shown:
            written.append(folder / f"{page}.md")
            files.write_whole(written[-1], records.markdown(page, page_records, folder))
            for name in shown - {page}:
                (folder / f"{name}.md").unlink(missing_ok=True)
    return written


def load(study: str) -> tuple[str, dict]:
    """(name, content) of configs/studies/STUDY.toml, or of the .toml file `study`. Raises UserError for a bad file."""
    path = pathlib.Path(study) if study.endswith(".toml") else FOLDER / f"{study}.toml"
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise UserError(f"--study={study}: no file {path}; there are {known}, or name a .toml file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not TOML ({error})") from None
    wrong = [*(key for key, kind in REQUIRED.items() if not isinstance(content.get(key), kind) or not content[key]),
             *(key for key, value in content.items() if not isinstance(value, (REQUIRED | OPTIONAL).get(key, ())))]
    if not wrong and content.get("control", next(iter(content["arms"]))) not in content["arms"]:
        wrong.append("control")
    if wrong:
        raise UserError(f"{path}: {', '.join(dict.fromkeys(wrong))} is missing, unknown or not as it should be; a "
                        f"study has {', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL)}; control is one of its "
                        "arms")
    if wrong := study_figure.fault(content) or design.shape_fault(content):
        raise UserError(f"{path}: {wrong}")
    content = sourced(content)
    if wrong := design.arm_fault(content) or abstract_fault(content) or rules.fault(content):
        raise UserError(f"{path}: {wrong}")
    cells = {arm: {"work": "WORK", "data": "DATA", "arm": arm} | units(content, content["seeds"])[0]
             for arm in content["arms"]}  # one of each arm
    lines = {arm: commands.commands(content, cell, False, "BANK") for arm, cell in cells.items()}
    if wrong := design.twin_fault(lines) or design.source_fault(content, cells, lines):
        raise UserError(f"{path}: {wrong}")
    return path.stem, content


def limited(study: dict, arms: Iterable[str]) -> tuple[dict, str]:
    """(the study with `arms` and the rules about them alone, ""), or (the whole study, a message) if its control,
    figure, abstract, `changed` or primary rule needs another arm."""
    less = study | {"arms": {arm: keys for arm, keys in study["arms"].items() if arm in arms},
                    "rules": [rule for rule in study["rules"] if rule["arm"] in arms]}
    needed = [study.get("control"), rules.primary(study["rules"])["arm"], study.get("changed", {}).get("arm")]
    missing = [arm for arm in needed if arm and arm not in less["arms"]]
    wrong = study_figure.fault(less) or abstract_fault(less) or (f"{missing[0]} is needed" if missing else "")
    return (study, wrong) if wrong else (less, "")


def abstract_fault(study: dict) -> str:
    """Names an arm or measure in the study's abstract that does not exist; empty if all exist."""
    try:
        records.abstract(study.get("abstract", ""), {arm: dict.fromkeys(study["measures"], {"difference": {}})
                                                     for arm in study["arms"]})
    except KeyError as error:
        return f"abstract: {error} is no arm, or no measure; write [[ARM | MEASURE]] or [[ARM | MEASURE | difference]]"
    return ""


def sourced(study: dict) -> dict:
    """The study with "ranges", {measure: range}, taken out of its "measures": a measure that is written as a table with
    `source` and perhaps `range` becomes its source alone."""
    tables = {name: table for name, table in study["measures"].items() if isinstance(table, dict)}
    return study | {"measures": study["measures"] | {name: table["source"] for name, table in tables.items()},
                    "ranges": {name: table["range"] for name, table in tables.items() if "range" in table}}


def measure(study: dict, values_of: dict, repeated: list[dict]) -> dict:
    """Returns {arm: {measure: its summary by `gather`}} for `values_of`, {arm: {measure: [value in each unit]}}. If the
    study has a control, summaries of other arms have a "difference", the summary of the paired differences to it."""
    bases, problems = [unit["base"] for unit in repeated], study.get("over") == "problems"
    spans = {name: rules.span(study, name) for name in study["measures"]}
    measured = {arm: {name: gather(values, spans[name], bases, problems) for name, values in by_name.items()}
                for arm, by_name in values_of.items()}
    control = study.get("control")
    for arm in [arm for arm in measured if control and arm != control]:
        for name, values in values_of[arm].items():
            pairs = zip(values, values_of[control][name])
            differences = [None if a is None or b is None else a - b for a, b in pairs]
            measured[arm][name]["difference"] = gather(
                differences, rules.less(spans[name], spans[name]), bases, problems)
    return measured


def gather(values: list, span: tuple = statistics.ANY, bases: list = (), problems: bool = False) -> dict:
    """Summarises a measure with a value for each seed, a number, an f64[P] over problems, or None: `{"seeds": [mean of
    each value, or None], "mean", "interval"}`. `span` is the measure's range, `bases` the base model of each value. If
    values share base models, only base models are independent: "of_bases" has the mean of each, and mean and interval
    are over these means; with `problems`, if values are f64[P], over the mean over seeds of each problem, and
    "of_problems" has each value. With one seed, the interval is over problems. Equal values have no interval, but
    `"equal": True`."""
    means = [None if value is None else float(np.mean(value)) for value in values]
    known = [(base, mean) for base, mean in zip(bases or range(len(means)), means) if mean is not None]
    by_base = {base: float(np.mean([mean for owner, mean in known if owner == base])) for base, _ in known}
    independent = list(by_base.values())
    if problems and any(np.ndim(value) for value in values if value is not None):
        of_problems = rules.of_problems(values)
        return {"seeds": means, "mean": float(np.mean(of_problems)), "interval": bootstrap(of_problems, span),
                "of_problems": [None if value is None else rounded(value) for value in values]}
    over_problems = len(values) == 1 and np.ndim(values[0]) > 0
    summary = {"seeds": means, "mean": float(np.mean(independent)) if independent else None}
    summary["interval"] = bootstrap(values[0], span) if over_problems else statistics.interval(independent, span)
    summary |= {"of_bases": independent} if len(independent) < len(known) else {}
    return summary | ({"equal": True} if statistics.equal(independent) else {})


def rounded(values_P: np.ndarray) -> list[float | int]:
    """The values to six decimals, whole numbers as integers: a record has thousands of zeros and ones."""
    return [int(value) if value.is_integer() else round(value, 6) for value in np.asarray(values_P, float).tolist()]


def written(study: dict, measured: dict, repeated: list[dict]) -> dict:
    """The part of a record that follows from the study's file and `measured`, the result of `measure`: the words of its
    page, "measures", judged "rules", "verdict", the labels of units as "seeds", and how many seeds "succeeded"."""
    judged = rules.judged(study, measured, repeated)
    part = {key: study[key] for key in records.WORDS if key in study} | {"prediction": study.get("prediction", "")}
    if "success" in study:
        part["succeeded"] = {arm: succeeded(measures[study["success"]["measure"]]["seeds"], study["success"]["above"])
                             for arm, measures in measured.items()}
    part |= {"units": repeated} if study.keys() & {"bases", "examples", "crossed"} else {}
    return part | {"seeds": [label(study, unit) for unit in repeated], "measures": measured, "rules": judged,
                   "verdict": rules.primary(judged)["verdict"]}


def again(record: dict) -> dict:
    """The record with the current words of its study's file, judged by the file's current rules. Its numbers stay. A
    measure that the record lacks is computed from others, taken from a measure with the same source, or read from the
    summary of a run in the record. In a record of one seed without "of_problems", intervals are over problems whose
    values it lacks: such measures stay. If rules or verdicts change, "rules_before" has the first ones. Arms that the
    record lacks were not run yet: they and their rules are left out. The record is returned as it is if there is no
    such file, if the file plans other analyses, or if the file needs an arm that was not run (`limited`)."""
    if not (FOLDER / f"{record['study']}.toml").is_file():
        return record
    study, wrong = limited(load(record["study"])[1], record["measures"])
    if wrong or study.get("looks") != record.get("looks"):
        return record
    repeated = record.get("units") or units({"seeds": record["seeds"]}, record["seeds"])
    cells = {arm: [variables(study, {"work": "", "data": "", "arm": arm} | unit) for unit in repeated]
             for arm in study["arms"]}
    by_source = {}  # {(filled-in source, index of the unit): recorded value}
    for name, source in study["measures"].items():
        for arm, i in ((arm, i) for arm in cells for i in range(len(repeated)) if isinstance(source, str)):
            if name in record["measures"][arm]:
                by_source[commands.fill(source, cells[arm][i]), i] = record["measures"][arm][name]["seeds"][i]

    def summarised(arm: str, i: int, source: str):  # value of `source` in the recorded summary.json of a run, or None
        (file, _, path), run = source.partition(": "), study.get("figure", {}).get("run", "")
        summary = record.get("summaries", {}).get(arm, {}).get(str(label(study, repeated[i])), {})
        is_summary = file == f"{commands.fill(run, cells[arm][i])}/summary.json"
        return sources.looked_up(pathlib.Path(file), path, summary)[0] if is_summary else None

    def known(arm: str, name: str) -> Optional[list]:  # a value for each unit; None: to compute from other measures
        source, recorded = study["measures"][name], record["measures"][arm].get(name)
        if isinstance(source, list) and not recorded:
            return None
        filled = [] if recorded else [commands.fill(source, cell) for cell in cells[arm]]
        values = recorded.get("of_problems", recorded["seeds"]) if recorded else [
            by_source.get((text, i), summarised(arm, i, text)) for i, text in enumerate(filled)]
        return [None if value is None else np.array(value) for value in values]

    measured = measure(study, sources.values_of(study, known, repeated), repeated)
    for arm, by_name in measured.items():
        for name, old in record["measures"][arm].items():
            if name not in by_name or len(record["seeds"]) == 1 and "of_problems" not in old:
                by_name[name] = old
    unworded = {key: value for key, value in record.items() if key not in records.WORDS}
    new = unworded | written(study, record["measures"] | measured, repeated)
    before, now = ([(rule["says"], rule["verdict"]) for rule in rules] for rules in (record["rules"], new["rules"]))
    if now != before:
        new.setdefault("rules_before", record["rules"])
    return json.loads(json.dumps(new))  # with lists for tuples, as in a record that was read from its file


def succeeded(values: list, above: float) -> dict:
    """{"count": number of values above `above`, "of": number of values that are not None, "mean": the first number as a
    share of the second, "interval": its exact 95 % interval}; "mean" and "interval" are None if all values are."""
    known = [value for value in values if value is not None]
    count = sum(value > above for value in known)
    return {"count": count, "of": len(known), "mean": count / len(known) if known else None,
            "interval": statistics.exact_binomial(count, len(known)) if known else None}


def origin(config: StudyConfig, study: dict, finished: list[str], skipped: list[str], kept: int) -> str:
    """A text of the command, commit, hardware and JAX's version, how many commands an earlier start had finished, and
    how many runs were `kept` from its record. XLA_FLAGS, if set, come first: they may change the numbers."""
    flags = f"XLA_FLAGS={shlex.quote(os.environ['XLA_FLAGS'])} " if os.environ.get("XLA_FLAGS") else ""
    more = (f" --arms='{config.arms}'" if config.arms else "") + (" --data=DIR" if config.data else "") + (
        " --quick" if config.quick else "")
    seeds = ",".join(map(str, config.seeds or study["seeds"]))
    return (f"`{flags}python -m scripts.study --study={config.study} --seeds={seeds}{more}`, commit "
            f"{commit()}, JAX {jax.__version__} on {jax.devices()[0].device_kind} ({platform.machine()})."
            + f" {len(skipped)} of its {len(finished)} commands were finished by an earlier start, perhaps at another "
            "commit." * bool(skipped)
            + f" {kept} of its runs are from an earlier record." * bool(kept)
            + " **Quick: smaller, shorter and one seed, to try the study out. Not a result.**" * config.quick)
