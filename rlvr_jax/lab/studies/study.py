"""Studies: a question asked of several arms and seeds, written down in a TOML file before its first run.

A file of configs/studies/ holds the question, what was known, the commands of an arm as a user types them, the arms as
flags added to these, what is measured, and the prediction: its rules (`rules.py`). This file runs any of them.
"""

import os
import pathlib
import platform
import shlex
import tomllib
from typing import Callable, Optional

import jax
import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.lab.studies import bank, commands, design, records, rules, sources, statistics, study_figure
from rlvr_jax.lab.studies.commands import label, units, variables
from rlvr_jax.records import checked, setting
from rlvr_jax.runs import files
from rlvr_jax.runs.origin import commit

FOLDER = pathlib.Path("configs/studies")
REQUIRED = {"title": str, "question": str, "known": str, "seeds": list, "commands": dict,
            "arms": dict, "measures": dict, "rules": list}
OPTIONAL = {"prediction": str, "short": str, "control": str, "quick": dict, "figure": dict, "note": str,
            "table": list, "looks": list, "success": dict, "bases": list, "examples": list, "crossed": bool,
            "construction": str, "over": str, "abstract": str, "changed": dict}


@checked
class StudyConfig:
    """A question asked of several arms and seeds."""

    study: str = setting("one_shot", "a file of configs/studies by its name, or any .toml file like them")
    seeds: tuple[int, ...] = setting((), "seeds in place of the study's own", minimum=0, maximum=2**31 - 1)
    data: str = setting("", "directory of problem files, for the studies that need some")
    quick: bool = setting(False, "try the study out: its first seed alone, with the flags of its [quick] table; "
                          "written as STUDY_quick, and no result")
    work_dir: str = setting("", "directory for the runs; empty: runs/STUDY")
    bank: str = setting("runs/bank", "directory of the bases that studies share; each is made once")
    jobs: int = setting(1, "how many commands run side by side, each with its share of the cores, or a GPU; what they "
                        "print goes to work_dir/logs", minimum=1)
    dry_run: bool = setting(False, "run nothing; print the commands, and for how long they may take")
    out: str = setting("", "directory for STUDY.json, STUDY.md and STUDY.png; empty: results in work_dir; the "
                       "published ones are in results")


def run(config: StudyConfig, check: Callable[[str], None] = lambda line: None) -> Optional[pathlib.Path]:
    """Runs a study and returns the Markdown file it wrote; JSON and a PNG lie beside it. None for a dry run.

    What has finished in the work directory is not run again, and a run that was cut goes on where it was. Before the
    first command `check(line)` may raise UserError for one whose flags are wrong.
    """
    name, study = load(config.study)
    if config.quick:
        few = {"bases": 3, "examples": 3} if study.get("crossed") else {}
        name, study = name + "_quick", study | {key: study[key][:count] for key, count in ({"seeds": 1} | few).items()
                                                if key in study}
    work = pathlib.Path(config.work_dir or f"runs/{name}")
    out = pathlib.Path(config.out) if config.out else work / "results"
    given = {"work": str(work)} | ({"data": config.data} if config.data else {})
    repeated = units(study, [int(seed) for seed in config.seeds or study["seeds"]])
    cells = {(arm, label(study, unit)): variables(study, given | {"arm": arm} | {k: str(v) for k, v in unit.items()})
             for unit in repeated for arm in design.ran(study) if design.has(study, arm, unit["seed"])}
    lines = [commands.commands(study, cell, config.quick, config.bank) for cell in cells.values()]
    for line in dict.fromkeys(line for each in lines[: len(design.ran(study))] for line in each):
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
    found = design.found(study, known, repeated)
    record = {"study": name} | written(study, measure(study, found, repeated), repeated) | {
        "origin": origin(config, study, finished, earlier), "summaries": summaries(study, cells)}
    made = {base.name: bank.note(base) | {"command": line.replace(str(base), "{bank}")}
            for line in finished if (base := bank.made_by(line, config.bank))}
    record |= {"bank": made} if made else {}
    drawn = study.get("figure", {}).get("measures") or records.names(record)
    agree = {arm: sources.agreement(contrast, found, drawn) for arm, contrast in design.contrasts(study).items()}
    record |= {"agreement": agree} if agree else {}
    record |= {"changed": changed} if (changed := changed_problems(study, cells)) else {}
    measured = record["measures"]
    out.mkdir(parents=True, exist_ok=True)
    study_figure.write(study, cells, measured, out / f"{name}.png")
    files.write_json(out / f"{name}.json", plain(record))
    files.write_whole(out / f"{name}.md", records.markdown(record))
    return out / f"{name}.md"


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
    wrong = [key for key, kind in REQUIRED.items() if not isinstance(content.get(key), kind) or not content[key]]
    wrong += [key for key, value in content.items() if not isinstance(value, (REQUIRED | OPTIONAL).get(key, ()))]
    wrong += ["control"] * (not wrong and content.get("control", next(iter(content["arms"]))) not in content["arms"])
    if wrong:
        raise UserError(f"{path}: {', '.join(dict.fromkeys(wrong))} is missing, unknown or not as it should be; a "
                        f"study has {', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL)}; control is one of its "
                        "arms")
    unknown = [name for name in content.get("table", ()) if name not in content["measures"]]
    wrong = f"table: {unknown[0]!r} is none of the measures" if unknown else study_figure.fault(content)
    wrong = wrong or design.fault(content) or abstract_fault(content)
    if wrong:
        raise UserError(f"{path}: {wrong}")
    content = sourced(content)
    wrong = rules.fault(content)
    if wrong:
        raise UserError(f"{path}: {wrong}")
    first = {key: str(value) for key, value in units(content, content["seeds"])[0].items()}
    cells = {arm: {"work": "WORK", "data": "DATA"} | first | {"arm": arm} for arm in design.ran(content)}
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
    error, bases = statistics.alpha(study.get("looks")), [unit["base"] for unit in repeated]
    spans = {name: rules.span(study, name) for name in study["measures"]}
    areas = design.contrasts(study)
    problems = study.get("over") == "problems"
    measured = {arm: {name: gather(values, rules.SHARE if arm in areas else spans[name], error, bases, problems)
                      for name, values in by_name.items()} for arm, by_name in found.items()}
    compare({arm: of for arm, of in measured.items() if arm not in areas}, study.get("control"), spans, error, bases,
            problems)
    return measured


def gather(values: list, span: tuple = statistics.ANY, error: float = statistics.ALPHA, bases: list = (),
           problems: bool = False) -> dict:
    """`{"seeds": [value of each], "mean", "interval"}`: over seeds, or over problems where there is one seed.

    With `problems`, what has a value for each problem also has `"of_problems"`, the mean over seeds of each problem,
    and its interval is over these.

    Where several seeds share a base there is `"of_bases"` as well, the mean of each base, and mean and interval are of
    these: bases are what is independent. Equal values have no interval, but `"equal": True`; many have `"quartiles"`.
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
            estimators.bootstrap(values[0]) if over_problems else statistics.interval(there, error, span)}
    made |= {"of_bases": there} if len(there) < len(known) else {}
    if statistics.equal(there):
        return made | {"equal": True}
    if len(known) < statistics.FEWEST_QUARTILES:
        return made
    return made | {"quartiles": statistics.quartiles([mean for _, mean in known], [base for base, _ in known], error)}


def compare(measured: dict, control: Optional[str], spans: Optional[dict] = None,
            error: float = statistics.ALPHA, bases: list = (), problems: bool = False) -> None:
    """Adds to every other arm's measures its paired `difference` to the control: by seed, or by problem."""
    for arm in measured if control else ():
        for name, mine in measured[arm].items():
            pairs = list(zip(mine["values"], measured[control][name]["values"]))
            span = (spans or {}).get(name, statistics.ANY)
            if arm != control:
                mine["difference"] = gather([None if a is None or b is None else a - b for a, b in pairs],
                                            rules.less(span, span), error, bases, problems)


def written(study: dict, measured: dict, repeated: list[dict]) -> dict:
    """What a record says of the study and its measures: the words of its page, rules, verdict and shares of success."""
    judged = rules.judged(study, measured, len({unit["base"] for unit in repeated}))
    error = statistics.alpha(study.get("looks"))
    kept = {key: study[key] for key in (*records.WORDS, "question", "looks", "success", "over") if key in study} | {
            "prediction": study.get("prediction", "")}
    if "success" in study:
        kept["succeeded"] = {arm: succeeded(measures[study["success"]["measure"]]["seeds"], study["success"]["above"],
                                            error) for arm, measures in measured.items()}
    kept |= {"units": repeated} if study.keys() & {"bases", "examples", "crossed"} else {}
    return kept | {"seeds": [label(study, unit) for unit in repeated], "level": 1 - error, "measures": measured,
                   "rules": judged, "verdict": rules.headline(judged)}


def succeeded(values: list, above: float, error: float) -> dict:
    """How many of the seeds succeeded, with the exact interval of their share."""
    there = [value for value in values if value is not None]
    count = sum(value > above for value in there)
    return {"count": count, "of": len(there),
            "interval": statistics.exact_binomial(count, len(there), error) if there else None}


def changed_problems(study: dict, cells: dict) -> dict:
    """`sources.changed` of the control and the arm of the file's `changed = {arm = "one", file = "FILE.jsonl"}`, in
    the first of its cells."""
    asked, control = study.get("changed"), study.get("control")
    if not asked:
        return {}
    label = next(label for arm, label in cells if arm == asked["arm"])
    paths = [pathlib.Path(cells[arm, label]["work"]) / commands.fill(asked["file"], cells[arm, label])
             for arm in (control, asked["arm"])]
    return sources.changed(*paths, [control, f"{asked['arm']}, seed {label}"])


def summaries(study: dict, cells: dict) -> dict:
    """summary.json of each arm's run, by arm and seed, where the study's figure names one."""
    by_arm = {}
    for (arm, seed), cell in cells.items():
        run_dir = study_figure.run_dir(study, cell)
        if run_dir and (run_dir / "summary.json").is_file():
            by_arm.setdefault(arm, {})[str(seed)] = files.read_json(run_dir / "summary.json")
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
