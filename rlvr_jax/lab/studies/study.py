"""Studies: a question asked of several arms and seeds, written down in a TOML file before its first run.

A file of configs/studies/ holds the question, what was known, the commands of an arm as a user types them, the arms as
flags added to these, what is measured, and the prediction: its rules (`rules.py`). This file runs any of them.
"""

import json
import os
import pathlib
import platform
import shlex
import tomllib
from typing import Callable, Optional

import jax
import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.lab.studies import bank, commands, design, records, rules, sources, statistics, study_figure
from rlvr_jax.lab.studies.commands import label, units, variables
from rlvr_jax.runs import files
from rlvr_jax.runs.origin import commit

FOLDER = pathlib.Path("configs/studies")
REQUIRED = {"title": str, "question": str, "known": str, "seeds": list, "commands": dict,
            "arms": dict, "measures": dict, "rules": list}
OPTIONAL = {"prediction": str, "short": str, "control": str, "quick": dict, "figure": dict, "note": str,
            "table": list, "shown": dict, "looks": list, "success": dict, "bases": list, "examples": list,
            "crossed": bool, "construction": str, "over": str, "abstract": str, "changed": dict, "story": str}


class StudyConfig(Config):
    """A question asked of several arms and seeds."""

    study: str = flag("one_shot", "a file of configs/studies by its name, or any .toml file like them")
    seeds: tuple[int, ...] = flag((), "seeds in place of the study's own", minimum=0, maximum=2**31 - 1)
    data: str = flag("", "directory of problem files, for the studies that need some")
    quick: bool = flag(False, "try the study out: its first seed alone, with the flags of its [quick] table; "
                       "written as STUDY_quick, and no result")
    work_dir: str = flag("", "directory for the runs; empty: runs/STUDY")
    bank: str = flag("runs/bank", "directory of the bases that studies share; each is made once")
    jobs: int = flag(1, "how many commands run side by side, each with its share of the cores, or a GPU; what they "
                     "print goes to work_dir/logs", minimum=1)
    dry_run: bool = flag(False, "run nothing; print the commands, and for how long they may take")
    out: str = flag("", "directory for STUDY.json, STUDY.md and STUDY.png; empty: results in work_dir; the "
                    "published ones are in results")


def run(config: StudyConfig, check: Callable[[str], None] = lambda line: None) -> Optional[pathlib.Path]:
    """Runs a study and returns the page that it wrote; JSON and a PNG lie beside it. None for a dry run.

    What has finished in the work directory is not run again, and a run that was cut goes on where it was. Before the
    first command `check(line)` may raise UserError for one whose flags are wrong.
    """
    name, study = load(config.study)
    if config.quick:
        few = {"bases": 3, "examples": 3} if study.get("crossed") else {}
        name, study = name + "_quick", study | {"story": ""} | {
            key: study[key][:count] for key, count in ({"seeds": 1} | few).items() if key in study}
    work = pathlib.Path(config.work_dir or f"runs/{name}")
    out = pathlib.Path(config.out) if config.out else work / "results"
    given = {"work": str(work)} | ({"data": config.data} if config.data else {})
    repeated = units(study, [int(seed) for seed in config.seeds or study["seeds"]])
    cells = {(arm, label(study, unit)): variables(study, given | {"arm": arm} | {k: str(v) for k, v in unit.items()})
             for unit in repeated for arm in study["arms"] if design.has(study, arm, unit["seed"])}
    lines = [commands.commands(study, cell, config.quick, config.bank) for cell in cells.values()]
    for line in dict.fromkeys(line for each in lines[: len(study["arms"])] for line in each):
        check(line)
    if config.dry_run:
        print(commands.plan(lines, work, config.bank, config.jobs))
        return None
    finished, earlier = commands.execute(lines, work, config.bank, config.jobs)

    def known(arm: str, name: str) -> Optional[list]:
        source = study["measures"][name]
        return None if isinstance(source, list) else [
            sources.source_values(name, source, cell) if (cell := cells.get((arm, label(study, unit)))) else None
            for unit in repeated]

    sources.refuse_strangers(study, list(cells.values()))
    found = sources.values_of(study, known, repeated)
    record = {"study": name} | written(study, measure(study, found, repeated), repeated) | {
        "origin": origin(config, study, finished, earlier), "summaries": summaries(study, cells)}
    made = {base.name: bank.note(base) | {"command": line.replace(str(base), "{bank}")}
            for line in finished if (base := bank.made_by(line, config.bank))}
    for key, value in (("bank", made), ("changed", changed_problems(study, cells)),
                       ("curves", study_figure.curves(study, cells))):
        record |= {key: value} if value else {}
    out.mkdir(parents=True, exist_ok=True)
    return write([plain(record)], out)[0]


def write(new: list[dict], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the records, their figures, and the pages that they are on, with what else of these stories is in the
    folder; returns the pages. What has joined a story loses the page of its own that it had before."""
    for record in new:
        files.write_json(folder / f"{record['study']}.json", record)
        study_figure.write(record, folder / f"{record['study']}.png")
    names, written = {record["study"] for record in new}, []
    for page, together in records.by_page(records.read_all(folder), folder).items():
        if names & (there := {record["study"] for record in together}):
            written.append(folder / f"{page}.md")
            files.write_whole(written[-1], records.markdown(page, together, folder))
            for name in there - {page}:
                (folder / f"{name}.md").unlink(missing_ok=True)
    return written


def load(study: str) -> tuple[str, dict]:
    """(name, content) of configs/studies/STUDY.toml, or of the TOML file named. Raises UserError for a bad file."""
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
    wrong += ["control"] * (not wrong and content.get("control", next(iter(content["arms"]))) not in content["arms"])
    if wrong:
        raise UserError(f"{path}: {', '.join(dict.fromkeys(wrong))} is missing, unknown or not as it should be; a "
                        f"study has {', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL)}; control is one of its "
                        "arms")
    if wrong := study_figure.fault(content) or design.fault(content) or abstract_fault(content) or rules.fault(
            content := sourced(content)):
        raise UserError(f"{path}: {wrong}")
    first = {key: str(value) for key, value in units(content, content["seeds"])[0].items()}
    cells = {arm: {"work": "WORK", "data": "DATA"} | first | {"arm": arm} for arm in content["arms"]}
    lines = {arm: commands.commands(content, cell, False, "BANK") for arm, cell in cells.items()}
    rules.refuse_twins(path, lines)
    if wrong := design.source_fault(content, cells, lines):
        raise UserError(f"{path}: {wrong}")
    return path.stem, content


def abstract_fault(study: dict) -> str:
    """Which number of its abstract the study does not have."""
    try:
        records.abstract(study.get("abstract", ""), {arm: dict.fromkeys(study["measures"], {"difference": {}})
                                                     for arm in study["arms"]})
    except KeyError as error:
        return f"abstract: {error} is no arm, or no measure; write [[ARM | MEASURE]] or [[ARM | MEASURE | difference]]"
    return ""


def sourced(study: dict) -> dict:
    """The study with the source of each measure, and `ranges` of those that state one."""
    stated = {name: source for name, source in study["measures"].items() if isinstance(source, dict)}
    return study | {"measures": study["measures"] | {name: source["source"] for name, source in stated.items()},
                    "ranges": {name: source["range"] for name, source in stated.items() if "range" in source}}


def measure(study: dict, found: dict, repeated: list[dict]) -> dict:
    """`{arm: {measure: what gather gives}}` of values by arm, measure and unit, with differences to the control."""
    bases, problems = [unit["base"] for unit in repeated], study.get("over") == "problems"
    spans = {name: rules.span(study, name) for name in study["measures"]}
    measured = {arm: {name: gather(values, spans[name], bases, problems) for name, values in by_name.items()}
                for arm, by_name in found.items()}
    control = study.get("control")
    for arm in measured if control else ():
        for name, mine in measured[arm].items() if arm != control else ():
            pairs = zip(mine["values"], measured[control][name]["values"])
            mine["difference"] = gather([None if a is None or b is None else a - b for a, b in pairs],
                                        rules.less(spans[name], spans[name]), bases, problems)
    return measured


def gather(values: list, span: tuple = statistics.ANY, bases: list = (), problems: bool = False) -> dict:
    """`{"seeds": [value of each], "mean", "interval"}`: over seeds, or over problems where there is one seed.

    With `problems`, what has a value for each problem also has `"of_problems"`, the mean over seeds of each problem,
    and its interval is over these.

    Where several seeds share a base model there is `"of_bases"` as well, the mean of each base model, and mean and
    interval are of these: bases are what is independent. Equal values have no interval, but `"equal": True`.
    """
    means = [None if value is None else float(np.mean(value)) for value in values]
    known = [(base, mean) for base, mean in zip(bases or range(len(means)), means) if mean is not None]
    by_base = {base: float(np.mean([mean for its, mean in known if its == base])) for base, _ in known}
    there = list(by_base.values())
    each = [value for value in values if value is not None and np.ndim(value)] if problems else []
    if each:
        of_problems = np.mean(each, 0)
        return {"values": values, "seeds": means, "mean": float(np.mean(of_problems)),
                "interval": estimators.bootstrap(of_problems), "of_problems": of_problems.round(6).tolist()}
    over_problems = len(values) == 1 and np.ndim(values[0]) > 0
    made = {"values": values, "seeds": means, "mean": float(np.mean(there)) if there else None, "interval":
            estimators.bootstrap(values[0]) if over_problems else statistics.interval(there, span)}
    made |= {"of_bases": there} if len(there) < len(known) else {}
    return made | ({"equal": True} if statistics.equal(there) else {})


def written(study: dict, measured: dict, repeated: list[dict]) -> dict:
    """What a record says of the study and its measures: the words of its page, rules, verdict and shares of success."""
    judged = rules.judged(study, measured, repeated)
    kept = {key: study[key] for key in records.WORDS if key in study} | {"prediction": study.get("prediction", "")}
    if "success" in study:
        kept["succeeded"] = {arm: succeeded(measures[study["success"]["measure"]]["seeds"], study["success"]["above"])
                             for arm, measures in measured.items()}
    kept |= {"units": repeated} if study.keys() & {"bases", "examples", "crossed"} else {}
    return kept | {"seeds": [label(study, unit) for unit in repeated], "measures": measured, "rules": judged,
                   "verdict": rules.primary(judged)["verdict"]}


def again(record: dict) -> dict:
    """The record with the words of its study's file, judged by its rules; the numbers are the record's.

    A measure that the record lacks is made of others, is that of another arm with the same file and path, or stands in
    the summary of a run, which the record keeps. What is over problems stays, for a record has no value of each problem
    in each seed. Where rules or verdicts change, the first ones stay as `rules_before`. Arms that the record lacks were
    not run yet: they and their rules are left out. The record stays where there is no such file, where the file plans
    other analyses, and where its primary rule, control, figure or abstract need such an arm.
    """
    if not (FOLDER / f"{record['study']}.toml").is_file():
        return record
    whole = load(record["study"])[1]
    study = whole | {"arms": {arm: keys for arm, keys in whole["arms"].items() if arm in record["measures"]},
                     "rules": [rule for rule in whole["rules"] if rule["arm"] in record["measures"]]}
    if (study.get("looks") != record.get("looks") or rules.primary(whole["rules"]) not in study["rules"]
            or study.get("control") not in (None, *study["arms"]) or study_figure.fault(study) or abstract_fault(study)):
        return record
    repeated = record.get("units") or [{"base": seed, "example": seed, "seed": seed} for seed in record["seeds"]]
    cells = {arm: [variables(study, {"work": "", "data": "", "arm": arm} | {k: str(v) for k, v in unit.items()})
                   for unit in repeated] for arm in study["arms"]}
    sourced = {(commands.fill(source, cell), i): record["measures"][arm][name]["seeds"][i]
               for name, source in study["measures"].items() if isinstance(source, str) for arm in cells
               for i, cell in enumerate(cells[arm]) if name in record["measures"][arm]}

    def summarised(arm: str, i: int, source: str):
        (file, _, path), run = source.partition(": "), study.get("figure", {}).get("run", "")
        summary = record.get("summaries", {}).get(arm, {}).get(str(label(study, repeated[i])), {})
        its = file == f"{commands.fill(run, cells[arm][i])}/summary.json"
        return sources.looked_up(pathlib.Path(file), path, summary)[0] if its else None

    def known(arm: str, name: str) -> Optional[list]:
        source = study["measures"][name]
        if isinstance(source, list) and name not in record["measures"][arm]:
            return None
        found = record["measures"][arm][name]["seeds"] if name in record["measures"][arm] else [
            sourced.get((commands.fill(source, cell), i), summarised(arm, i, commands.fill(source, cell)))
            for i, cell in enumerate(cells[arm])]
        return [None if value is None else np.array(value) for value in found]

    measured = measure(study, sources.values_of(study, known, repeated), repeated)
    for arm, by_name in measured.items():
        for name, old in record["measures"][arm].items():
            if name not in by_name or "of_problems" in old or len(record["seeds"]) == 1:
                by_name[name] = old
    unworded = {key: value for key, value in record.items() if key not in records.WORDS}
    new = unworded | written(study, record["measures"] | measured, repeated)
    asked = lambda rules: [(rule["says"], rule["verdict"]) for rule in rules]
    if asked(new["rules"]) != asked(record["rules"]):
        new.setdefault("rules_before", record["rules"])
    return json.loads(json.dumps(plain(new)))


def succeeded(values: list, above: float) -> dict:
    """How many of the seeds succeeded, their share and its exact interval."""
    there = [value for value in values if value is not None]
    count = sum(value > above for value in there)
    return {"count": count, "of": len(there), "mean": count / len(there) if there else None,
            "interval": statistics.exact_binomial(count, len(there)) if there else None}


def changed_problems(study: dict, cells: dict) -> dict:
    """`sources.changed` of the control and the arm of the file's `changed = {arm = "one", file = "FILE.jsonl"}`, in
    the first of its cells."""
    asked, control = study.get("changed"), study.get("control")
    if not asked:
        return {}
    first = next(unit for arm, unit in cells if arm == asked["arm"])
    paths = [pathlib.Path(cells[arm, first]["work"]) / commands.fill(asked["file"], cells[arm, first])
             for arm in (control, asked["arm"])]
    return sources.changed(*paths, [control, f"{asked['arm']}, seed {first}"])


def summaries(study: dict, cells: dict) -> dict:
    """summary.json of each arm's run, by arm and seed, where the study's figure names one."""
    by_arm = {}
    for (arm, seed), cell in cells.items():
        if (run := study_figure.run_dir(study, cell)) and (run / "summary.json").is_file():
            by_arm.setdefault(arm, {})[str(seed)] = files.read_json(run / "summary.json")
    return by_arm


def origin(config: StudyConfig, study: dict, finished: list[str], earlier: list[str]) -> str:
    """The command, commit, hardware and version of JAX, and how many commands an earlier start had finished. XLA_FLAGS,
    where they are set, stand before the command: they may change its numbers."""
    flags = f"XLA_FLAGS={shlex.quote(os.environ['XLA_FLAGS'])} " if os.environ.get("XLA_FLAGS") else ""
    more = " --data=DIR" * bool(config.data) + " --quick" * config.quick
    seeds = ",".join(map(str, config.seeds or study["seeds"]))
    return (f"`{flags}python -m scripts.study --study={config.study} --seeds={seeds}{more}`, commit "
            f"{commit()}, JAX {jax.__version__} on {jax.devices()[0].device_kind} ({platform.machine()})."
            + f" {len(earlier)} of its {len(finished)} commands were finished by an earlier start, perhaps at another "
            "commit." * bool(earlier)
            + " **Quick: smaller, shorter and one seed, to try the study out. Not a result.**" * config.quick)


def plain(record):
    """The record without "values", the arrays that its numbers were computed from."""
    if isinstance(record, dict):
        return {key: plain(value) for key, value in record.items() if key != "values"}
    return [plain(value) for value in record] if isinstance(record, (list, tuple)) else record
