"""A model on one or several benchmarks: a table of the completions that are kept, a row for each benchmark."""

import dataclasses
import pathlib
import re
from typing import Callable

import numpy as np

from rlvr_jax.config import EvaluateConfig, KeptConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import calibration
from rlvr_jax.evaluation.completions import Asked, keep
from rlvr_jax.evaluation.estimators import shown, summarise
from rlvr_jax.evaluation.measure import by_answer, style_shares
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks import answers
from rlvr_jax.tasks.prompts import encode_prompts, load_problems


def one_shot(stem: str) -> tuple[int, float]:
    """8 completions at temperature 0.6 where the file's name has aime or amc, else one, greedy (arXiv 2504.20571)."""
    return (8, 0.6) if re.search("aime|amc", stem.lower()) else (1, 0.0)


# --protocol -> function of a file's name without ending: completions of each of its problems, and temperature
PROTOCOLS = {"one_shot": one_shot}


def evaluate(config: EvaluateConfig) -> dict:
    """Measures `config.model`; returns the summary. Writes it, the table and every completion into `config.out`, and a
    reliability diagram where completions state how sure they are.

    The same configuration again continues where it was stopped (`completions.keep`).
    """
    if not config.out:
        raise UserError("--out is required: the directory for summary.json, table.md and completions.jsonl")
    config = dataclasses.replace(config, model=loading.pinned(config.model))
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    benchmarks = load_benchmarks(config, loaded)
    kept = keep(config, loaded, benchmarks, top_p=config.top_p)
    summaries = {b.name: benchmark_summary(b, kept[b.name]) for b in benchmarks}
    summary = joined(summaries) | {"flags": dataclasses.asdict(config)}
    out = pathlib.Path(config.out)
    calibration.draw({name: one["calibration"] for name, one in summaries.items() if "calibration" in one},
                     out / "reliability.png")
    files.write_whole(out / "table.md", table(config, summaries))
    files.write_json(out / "summary.json", summary)
    return summary


def joined(summaries: dict[str, dict]) -> dict:
    """The summary of one benchmark, or those of several with the mean of their accuracies."""
    return next(iter(summaries.values())) if len(summaries) == 1 else {
        "benchmarks": summaries, "mean": float(np.mean([one["accuracy"] for one in summaries.values()]))}


def load_benchmarks(config: EvaluateConfig, loaded: loading.LanguageModel) -> list[Asked]:
    """One for each name in `config.problems` (`load_sets`), sampled as the protocol or the flags say."""
    if config.protocol in PROTOCOLS and (config.num_samples, config.temperature) != (1, 0.0):
        raise UserError(f"--protocol={config.protocol} decides --num_samples and --temperature: leave those out")
    if config.num_samples > 1 and config.temperature == 0:
        raise UserError(f"--num_samples={config.num_samples} at --temperature=0 are one completion, repeated; give a "
                        "temperature above 0")
    return load_sets(config, loaded, PROTOCOLS.get(
        config.protocol, lambda stem: (config.num_samples, config.temperature)))


def load_sets(config: KeptConfig, loaded: loading.LanguageModel, protocol: Callable) -> list[Asked]:
    """One for each name in `config.problems`, called by the file's name where that tells them apart; a row of PROTOCOLS
    says how each is sampled."""
    sources, made = config.problems.split(","), []
    stems = [pathlib.Path(source).stem for source in sources]
    if len(set(sources)) < len(sources):
        raise UserError(f"--problems={config.problems} names a file twice")
    for source, stem in zip(sources, stems):
        num_samples, temperature = protocol(stem)
        problems = load_problems(source, loaded.tokenizer, count=config.max_problems, num_ops=config.num_ops,
                                 split=config.heldout_split, prompt_style=config.prompt_style,
                                 instruction=config.instruction, ignore_columns=config.ignore_columns)
        prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, config.max_new_tokens,
                                 config.max_prompt_tokens)
        name = stem if len(set(stems)) == len(stems) else source
        answers.described(answers.rules(problems, config.answer_format, config.grader, "lenient"))  # or it ends here
        judge = by_answer(config.answer_format, config.grader, "lenient")
        made.append(Asked(name, problems, prompts, num_samples, temperature, judge))
    return made


def benchmark_summary(b: Asked, rows: list[dict]) -> dict:
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
