"""Measures a model on one or several benchmarks: saves completions, and a table with a row for each benchmark."""

import pathlib
import re
from typing import Callable

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import calibration
from rlvr_jax.evaluation.completions import Folder, KeptConfig, sample_and_keep
from rlvr_jax.evaluation.estimators import format_estimate, summarise_rows
from rlvr_jax.evaluation.measure import Benchmark, judge_by_answer, make_sampler, style_shares
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Rollouts
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.sampler import Request
from rlvr_jax.tasks import answers
from rlvr_jax.tasks.prompts import ProblemSource, check_style, encode_prompts, load_problems


def one_shot_protocol(stem: str) -> tuple[int, float]:
    """8 completions at temperature 0.6 if the file's name contains aime or amc, else 1, greedy (arXiv 2504.20571)."""
    return (8, 0.6) if re.search("aime|amc", stem.lower()) else (1, 0.0)


# --protocol -> function of a file's name without its suffix that returns (completions of each problem, temperature)
PROTOCOLS = {"one_shot": one_shot_protocol}


class EvaluateConfig(Config):
    """Accuracy of a model on a set of problems."""

    kept: KeptConfig = KeptConfig()
    protocol: str = flag("flags", "how each benchmark is sampled; flags: by num_samples and temperature",
                         lambda: {"flags": None} | PROTOCOLS)
    num_samples: int = flag(1, "completions of each problem; pass@k is estimated for k up to this number", minimum=1)
    temperature: float = flag(0.0, "sampling temperature; 0: greedy", minimum=0)
    top_p: float = flag(1.0, "sample from the most likely tokens that make up this probability", above=0, maximum=1)
    cut: int = flag(0, "also judge each completion cut after this many tokens, and write the results to a folder "
                    "cut_N in out; 0: do not", minimum=0)


def evaluate(config: EvaluateConfig) -> dict:
    """Measures a model and returns the summary. Writes summary.json, table.md and completions.jsonl into --out, and
    reliability.png if completions state confidences. A second call with the same config resumes the first."""
    if not config.kept.out:
        raise UserError("--out is required: the directory for summary.json, table.md and completions.jsonl")
    config = config.with_flags(model=loading.pin_step(config.kept.choice.model))  # DIR to DIR@STEP, its newest step
    loaded = loading.load_fixed(config.kept.choice)
    benchmarks = load_benchmarks(config, loaded)
    folder, out = Folder(config.kept.out, "evaluate", config, config.kept.resume), pathlib.Path(config.kept.out)
    rows = sample_benchmarks(config, loaded, folder, benchmarks)
    if config.cut:
        cut_rows = {b.name: truncate_rows(b, rows[b.name], config.cut) for b in benchmarks}
        cut_out = out / f"cut_{config.cut}"
        cut_out.mkdir(exist_ok=True)
        files.write_lines(cut_out / "completions.jsonl", [row for b in benchmarks for row in cut_rows[b.name]])
        write_report(config, cut_out, benchmarks, cut_rows)
    return write_report(config, out, benchmarks, rows)


def write_report(config: EvaluateConfig, out: pathlib.Path, benchmarks: list[Benchmark], rows: dict) -> dict:
    """Writes summary.json, table.md and reliability.png from {benchmark name: rows}, and returns the summary."""
    summaries = {b.name: summarise_benchmark(b, rows[b.name]) for b in benchmarks}
    summary = combine_summaries(summaries) | {"flags": config.as_flags()}
    if results := {name: each["calibration"] for name, each in summaries.items() if "calibration" in each}:
        files.write_figure(out / "reliability.png", lambda sheet: calibration.draw_reliability(sheet, results))
    files.write_whole(out / "table.md", format_table(config.kept.choice.model, summaries))
    files.write_json(out / "summary.json", summary)
    return summary


def sample_benchmarks(config: EvaluateConfig, loaded: LanguageModel, folder: Folder,
                      benchmarks: list[Benchmark]) -> dict[str, list[dict]]:
    """Returns {benchmark name: rows}, and saves them in `folder`. With --cut=N, row["cut"] is the text of N tokens."""
    sampler = make_sampler(loaded, config.kept.sampling, config.top_p < 1)

    def first_tokens(rollouts: Rollouts, texts: list[str], judged: list[dict]) -> list[dict]:
        short = rollouts.replace(completion_mask=rollouts.completion_mask[:, : config.cut])
        cut_texts = loaded.tokenizer.decode_rollouts(short)[: len(texts)]  # rollouts may end with repeated rows
        return [{"cut": text} for text in cut_texts]

    return sample_and_keep(folder, sampler, benchmarks, Request(config.kept.seed, 0, top_p=config.top_p),
                           config.kept.rows_per_call, first_tokens if config.cut else None)


def truncate_rows(benchmark: Benchmark, rows: list[dict], cut: int) -> list[dict]:
    """Returns the rows as if sampling had ended after `cut` tokens: row["cut"] becomes the completion, judged anew."""
    judged = benchmark.judge([row["cut"] for row in rows], [benchmark.problems[row["problem"]] for row in rows])
    uncut = [{key: value for key, value in row.items() if key != "confidence"} for row in rows]
    return [row | verdict | {"completion": row["cut"], "num_tokens": min(row["num_tokens"], cut),
                             "truncated": row["truncated"] or row["num_tokens"] > cut}
            for row, verdict in zip(uncut, judged)]


def combine_summaries(summaries: dict[str, dict]) -> dict:
    """Returns the only value of {benchmark name: summary}, or `{"benchmarks": summaries, "mean": mean accuracy}`."""
    if len(summaries) == 1:
        return next(iter(summaries.values()))
    return {"benchmarks": summaries, "mean": float(np.mean([each["accuracy"] for each in summaries.values()]))}


def load_benchmarks(config: EvaluateConfig, loaded: LanguageModel) -> list[Benchmark]:
    """Returns a benchmark for each source in --problems, sampled as --protocol says. UserError if flags conflict."""
    check_sampling(config)
    by_flags = lambda stem: (config.num_samples, config.temperature)
    return load_sets(config.kept, loaded, PROTOCOLS.get(config.protocol, by_flags))


def check_sampling(config: EvaluateConfig) -> None:
    """Raises UserError if the flags that say how often, and at which temperature, to sample conflict."""
    if config.protocol in PROTOCOLS and (config.num_samples, config.temperature) != (1, 0.0):
        raise UserError(f"--protocol={config.protocol} decides --num_samples and --temperature: leave those out")
    if config.num_samples > 1 and config.temperature == 0:
        raise UserError(f"--num_samples={config.num_samples} at --temperature=0 are one completion, repeated; give a "
                        "temperature above 0")


def load_sets(config: KeptConfig, loaded: LanguageModel, protocol: Callable = lambda stem: (1, 0.0)) -> list[Benchmark]:
    """Returns a benchmark for each source in --problems, named after the file without folder and suffix; if two files
    would share a name, all have their whole paths as names. `protocol`, like those in PROTOCOLS, is a function of that
    short name that returns (completions of each problem, temperature). Raises UserError for a source given twice."""
    check_style(config.source)
    paths, benchmarks = config.source.problems.split(","), []
    stems = [pathlib.Path(path).stem for path in paths]
    if len(set(paths)) < len(paths):
        raise UserError(f"--problems={config.source.problems} names a file twice")
    names = stems if len(set(stems)) == len(stems) else paths
    for path, stem, name in zip(paths, stems, names):
        problems = load_problems(ProblemSource(path, config.source.prompt), loaded.tokenizer, config.heldout_split,
                                 config.max_problems)
        benchmarks.append(make_benchmark(config, loaded, name, problems, *protocol(stem)))
    return benchmarks


def make_benchmark(config: KeptConfig, loaded: LanguageModel, name: str, problems: list, num_samples: int = 1,
                   temperature: float = 0.0) -> Benchmark:
    """Returns a benchmark called `name`: `num_samples` completions of each of `problems`, graded by --answer_format and
    --grader. --answer_format=auto is the format of the problem's family ("tag" for reasoning-gym); for other problems,
    such as those of a file, it is "lenient", which needs no box. Raises UserError if the grader is not installed."""
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, config.sampling.max_new_tokens,
                             config.source.prompt.max_prompt_tokens)
    answers.describe_graders(answers.criteria(problems, config.grading, "lenient"))  # raises that UserError
    return Benchmark(name, problems, prompts, judge_by_answer(config.grading, "lenient"), num_samples, temperature)


def summarise_benchmark(benchmark: Benchmark, rows: list[dict]) -> dict:
    """Returns the part of summary.json on one benchmark: `summarise_rows`, the temperature, the grader, and styles and
    calibration if there are any. The grader is read from the rows, because scripts.grade may have changed it."""
    summary = summarise_rows(rows, benchmark.num_samples) | {
        "temperature": benchmark.temperature, "graded_by": ", ".join(dict.fromkeys(row["graded_by"] for row in rows))}
    extras = {"styles": style_shares(rows, benchmark.problems), "calibration": calibration.summarise_calibration(rows)}
    return summary | {name: value for name, value in extras.items() if value}


def format_table(model: str, summaries: dict[str, dict]) -> str:
    """Returns Markdown: a table with a row for each benchmark, then lists of pass@k and maj@k for all k (where problems
    have several completions), of the styles of synthetic families, and of calibration (if confidences are stated)."""
    header = ["benchmark", "problems", "measure", "accuracy", "pass@k", "maj@k", "truncated", "timed out", "graded by"]
    rows, notes = [], []
    for name, each in summaries.items():
        largest_k, many = str(each["num_samples"]), each["num_samples"] > 1
        how = "greedy" if each["temperature"] == 0 else f"T={each['temperature']:g}"
        at_largest_k = [f"{curve[:-1]}{largest_k} "  # curve[:-1] is "pass@" or "maj@"
                        + format_estimate(each[curve][largest_k], each["intervals"][curve][largest_k])
                        if many else "-" for curve in ("pass@k", "maj@k")]
        rows.append([name, each["n"], f"{'avg' if many else 'pass'}@{largest_k}, {how}",
                     format_estimate(each["accuracy"], each["interval"]), *at_largest_k, f"{each['truncated']:.1%}",
                     each["timed_out"], each["graded_by"]])
        notes += [f"- {name}: " + ", ".join(f"{curve[:-1]}{k} {value:.3f}" for k, value in each[curve].items())
                  for curve in ("pass@k", "maj@k") if many]
        notes += [f"- {name}, {style}: {share:.1%} of completions"
                  + ("" if accuracy is None else f", {accuracy:.3f} correct")
                  for style, (share, accuracy) in each.get("styles", {}).items()]
        notes += [f"- {name}, {calibration.format_calibration(each['calibration'])}"] if "calibration" in each else []
    if len(summaries) > 1:
        mean = np.mean([each["accuracy"] for each in summaries.values()])
        rows.append(["mean", "", "", f"{mean:.3f}", *[""] * 5])
    lines = [f"{model}, 95 % intervals in brackets", "", markdown_table(header, rows)]
    return "\n".join(lines + ([""] + notes if notes else [])) + "\n"
