"""A model on one or several benchmarks: every completion kept, one row of a table for each, resumable anywhere."""

import contextlib
import dataclasses
import functools
import pathlib
import re
from typing import Iterator

import numpy as np

from rlvr_jax import parallel, sampler
from rlvr_jax.config import EvaluateConfig
from rlvr_jax.errors import Interrupted, UserError
from rlvr_jax.evaluation import calibration
from rlvr_jax.evaluation.estimators import shown, summarise
from rlvr_jax.evaluation.measure import measure, style_shares
from rlvr_jax.model import Prompts
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files
from rlvr_jax.runs.flags import changed_flags, claim, flag_lines
from rlvr_jax.runs.log import JsonLines, progress
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts, load_problems, resolve_format


def one_shot(stem: str) -> tuple[int, float]:
    """8 completions at temperature 0.6 where the file's name has aime or amc, else one, greedy (arXiv 2504.20571)."""
    return (8, 0.6) if re.search("aime|amc", stem.lower()) else (1, 0.0)


# --protocol -> function of a file's name without ending: completions of each of its problems, and temperature
PROTOCOLS = {"one_shot": one_shot}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row of the table: what is asked, how often, and the parser that finds the answers."""

    name: str
    source: str
    problems: list[Problem]
    prompts: Prompts
    num_samples: int
    temperature: float
    answer_format: str


def evaluate(config: EvaluateConfig) -> dict:
    """Measures `config.model`; returns the summary. Writes it, the table and every completion into `config.out`, and a
    reliability diagram where completions state how sure they are.

    Completions are appended to completions.jsonl as they come, and the same configuration again continues after the
    last whole line. Raises UserError where other flags began what is there, Interrupted on Ctrl-C.
    """
    if not config.out:
        raise UserError("--out is required: the directory for summary.json, table.md and completions.jsonl")
    config = dataclasses.replace(config, model=loading.pinned(config.model))
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    benchmarks = load_benchmarks(config, loaded)
    sample = sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                  num_slots=config.num_slots, use_top_p=config.top_p < 1)
    params, summaries, start = parallel.replicate(loaded.params), {}, 0
    total = sum(len(b.problems) * b.num_samples for b in benchmarks)
    with (open_log(config, benchmarks) as log,
          progress(total, len(log.rows), "evaluate", unit="completion") as bar):
        def keep(name, rows):
            for row in rows:
                log.write({"benchmark": name} | row)
            bar.update(len(rows))

        for b in benchmarks:
            end = start + len(b.problems) * b.num_samples
            try:
                measure(
                    sample, params, loaded.tokenizer, b.problems, b.prompts, temperature=b.temperature,
                    num_samples=b.num_samples, answer_format=b.answer_format, grader=config.grader, seed=config.seed,
                    step=0, top_p=config.top_p, rows_per_call=config.rows_per_call,
                    done=min(max(len(log.rows) - start, 0), end - start), each=functools.partial(keep, b.name))
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted with {len(log.rows)} of {total} completions in {log.path}; the same "
                                  "command continues", 130) from None
            summaries[b.name], start = benchmark_summary(b, log.rows[start:end]), end
    summary = next(iter(summaries.values())) if len(summaries) == 1 else {
        "benchmarks": summaries, "mean": float(np.mean([one["accuracy"] for one in summaries.values()]))}
    summary = summary | {"flags": dataclasses.asdict(config)}
    calibration.draw({name: one["calibration"] for name, one in summaries.items() if "calibration" in one},
                     log.path.with_name("reliability.png"))
    files.write_whole(log.path.with_name("table.md"), table(config, summaries))
    files.write_json(log.path.with_name("summary.json"), summary)
    return summary


def load_benchmarks(config: EvaluateConfig, loaded: loading.LanguageModel) -> list[Benchmark]:
    """One for each name in `config.problems`, called by the file's name where that tells them apart."""
    sources, made = config.problems.split(","), []
    stems = [pathlib.Path(source).stem for source in sources]
    if len(set(sources)) < len(sources):
        raise UserError(f"--problems={config.problems} names a file twice")
    if config.protocol in PROTOCOLS and (config.num_samples, config.temperature) != (1, 0.0):
        raise UserError(f"--protocol={config.protocol} decides --num_samples and --temperature: leave those out")
    if config.num_samples > 1 and config.temperature == 0:
        raise UserError(f"--num_samples={config.num_samples} at --temperature=0 are one completion, repeated; give a "
                        "temperature above 0")
    for source, stem in zip(sources, stems):
        protocol = PROTOCOLS.get(config.protocol, lambda stem: (config.num_samples, config.temperature))
        num_samples, temperature = protocol(stem)
        problems = load_problems(source, loaded.tokenizer, count=config.max_problems, num_ops=config.num_ops,
                                 split=config.heldout_split, prompt_style=config.prompt_style,
                                 instruction=config.instruction, ignore_columns=config.ignore_columns)
        prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, config.max_new_tokens,
                                 config.max_prompt_tokens)
        name = stem if len(set(stems)) == len(stems) else source
        made.append(Benchmark(name, source, problems, prompts, num_samples, temperature,
                              resolve_format(config.answer_format, source, "lenient")))
    return made


@contextlib.contextmanager
def open_log(config: EvaluateConfig, benchmarks: list[Benchmark]) -> Iterator[JsonLines]:
    """completions.jsonl with the rows it has, the flags beside it. Raises UserError if they are of something else."""
    out = pathlib.Path(config.out)
    flags, path = out / "flags.txt", out / "completions.jsonl"
    if config.resume == "must" and not flags.exists():
        raise UserError(f"--resume=must, but {out} holds no evaluation")
    with claim(out, "--out", config.resume):
        if path.exists() and not flags.exists():
            raise UserError(f"{path} is there without the flags that made it; choose another --out, or --resume=never")
        refusal = changed_flags(out, config, "--out") if flags.exists() else ""
        if refusal:
            raise UserError(refusal)
        files.write_whole(flags, "\n".join(flag_lines(config)) + "\n")
        log = JsonLines(path, 0)
        with contextlib.closing(log.file):
            check_rows(log, benchmarks)
            yield log


def check_rows(log: JsonLines, benchmarks: list[Benchmark]) -> None:
    """Raises UserError if a row of the log is not of these problems, in their order."""
    wanted = ({"benchmark": b.name, "problem": i, "sample": j, "prompt": problem.prompt, "answer": problem.answer}
              for b in benchmarks for i, problem in enumerate(b.problems) for j in range(b.num_samples))
    for number, row in enumerate(log.rows, 1):
        want = next(wanted, {"benchmark": None})
        if want != {key: row.get(key) for key in want}:
            raise UserError(f"{log.path}, line {number}: not of these problems, which have changed since; choose "
                            "another --out, or start over with --resume=never")


def benchmark_summary(b: Benchmark, rows: list[dict]) -> dict:
    """What summary.json says of one benchmark. Rows that `scripts.grade` graded again say so."""
    summary = summarise(rows, b.num_samples) | {
        "temperature": b.temperature, "graded_by": ", ".join(dict.fromkeys(row["graded_by"] for row in rows))}
    more = {"styles": style_shares(rows, b.problems), "calibration": calibration.calibration(rows)}
    return summary | {name: found for name, found in more.items() if found}


def table(config: EvaluateConfig, summaries: dict[str, dict]) -> str:
    """Markdown: one row a benchmark, then all k of those sampled more than once, styles of synthetic families, and
    calibration where confidences are stated."""
    header = ["benchmark", "problems", "measure", "accuracy", "pass@k", "maj@k", "truncated", "timed out", "graded by"]
    rows, notes = [], []
    for name, one in summaries.items():
        last, many = str(one["num_samples"]), one["num_samples"] > 1
        how = "greedy" if one["temperature"] == 0 else f"T={one['temperature']:g}"
        curves = [f"{curve[:-1]}{last} {shown(one[curve][last], one['intervals'][curve][last])}" if many else "-"
                  for curve in ("pass@k", "maj@k")]
        rows.append([name, one["n"], f"{'avg' if many else 'pass'}@{last}, {how}",
                     shown(one["accuracy"], one["interval"]), *curves, f"{one['truncated']:.1%}",
                     one["timed_out"], one["graded_by"]])
        notes += [f"- {name}: " + ", ".join(f"{curve[:-1]}{k} {value:.3f}" for k, value in one[curve].items())
                  for curve in ("pass@k", "maj@k") if many]
        notes += [f"- {name}, {style}: {part:.1%} of completions" + ("" if right is None else f", {right:.3f} correct")
                  for style, (part, right) in one.get("styles", {}).items()]
        notes += [f"- {name}, {calibration.line(one['calibration'])}"] if "calibration" in one else []
    if len(summaries) > 1:
        mean = np.mean([one["accuracy"] for one in summaries.values()])
        rows.append(["mean", "", "", f"{mean:.3f}", *[""] * 5])
    return "\n".join([f"{config.model}, 95 % intervals in brackets", "", markdown_table(header, rows),
                      *([""] + notes if notes else [])]) + "\n"
