"""Samples and grades completions of problems, and measures training runs on held-out problems."""

from typing import Callable, Iterator, NamedTuple, Optional

import numpy as np

from rlvr_jax import parallel, sampler as sampling
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.calibration import summarise_calibration
from rlvr_jax.grading import grade
from rlvr_jax.grading.stated_confidence import stated_confidence
from rlvr_jax.model import Params
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.sampler import Decoding, Request, SamplingConfig
from rlvr_jax.tasks import answers, families
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks.prompts import ProblemSource, encode_prompts, is_drawn, load_problems


class HeldoutConfig(Config):
    """Which problems a training run measures on."""

    eval_size: int = flag(512, "number of held-out problems to measure on; 0: all of a file", minimum=0)
    heldout_split: str = flag("test", "split of a synthetic family to measure on", ["dev", "test"])


class Sampler(NamedTuple):
    """A compiled sampler (`sampler.make_sampler`), and the parameters, placed on the devices, that it samples from."""

    sample: Callable  # (params, prompts, prompt index of each completion, Request) -> Rollouts
    params: Params
    tokenizer: Tokenizer


class Benchmark(NamedTuple):
    """A set of problems, how they are sampled, and how completions are judged."""

    name: str  # value of "benchmark" in saved rows
    problems: list[Problem]
    prompts: Prompts
    judge: Callable  # (texts, problems) -> for each text a dict of columns, such as {"correct": True}
    num_samples: int = 1
    temperature: float = 0.0
    columns: tuple[str, ...] = ()  # keys of `Problem.meta` to copy into the rows


def make_sampler(loaded: LanguageModel, config: SamplingConfig, use_top_p: bool = False,
                 sample_fn: Callable = sampling.sample, params=None) -> Sampler:
    """Returns a `Sampler` of the model, or of `params`, that runs `sample_fn`. Without `use_top_p` it ignores top_p."""
    decoding = Decoding(loaded.tokenizer.eos_ids, config.max_new_tokens, config.num_slots)
    return Sampler(sampling.make_sampler(loaded.config, decoding, use_top_p, sample_fn),
                   parallel.place_state(loaded.params if params is None else params), loaded.tokenizer)


def sample_and_grade(sampler: Sampler, benchmark: Benchmark, request: Request, rows_per_call: int = 512, done: int = 0,
                     more: Optional[Callable] = None) -> Iterator[dict]:
    """Samples and grades all completions of a benchmark; yields their rows after each call of the sampler.
    Row i*num_samples+j is sample j of problem i: a dict of "problem" (i), "sample" (j), "prompt", "answer",
    "completion", "truncated", "num_tokens", the keys of `benchmark.columns`, those that `benchmark.judge` returns, and
    those of `more(rollouts, texts, judged)`, which returns a dict for each text. Seed, step, stream and top_p are those
    of `request`. The first `done` rows exist already and are skipped; the rows after them do not depend on `done`."""
    problems, count = benchmark.problems, benchmark.num_samples
    total = len(problems) * count
    size = min(rows_per_call, total)
    for start in range(0, total, size):
        end = min(start + size, total)
        if end <= done:
            continue
        numbers = np.minimum(np.arange(start, start + size), total - 1)  # repeats the last row: one shape for all calls
        indices = numbers // count
        rollouts = sampler.sample(sampler.params, trim_padding(benchmark.prompts, indices), indices, request._replace(
            temperature=benchmark.temperature, first_row=start, repeats=count))
        texts = sampler.tokenizer.decode_rollouts(rollouts)[: end - start]
        judged = benchmark.judge(texts, [problems[i] for i in indices[: end - start]])
        extras = more(rollouts, texts, judged) if more else [{}] * len(texts)
        for number, text, verdict, ended, mask, extra in zip(
                numbers, texts, judged, rollouts.ended, rollouts.completion_mask, extras):
            i, j = divmod(int(number), count)
            if number >= done:
                yield ({"problem": i, "sample": j, "prompt": problems[i].prompt, "answer": problems[i].answer,
                        "completion": text} | verdict | {key: problems[i].meta[key] for key in benchmark.columns}
                       | {"truncated": not ended, "num_tokens": int(mask.sum())} | extra)


def judge_by_answer(grading: GradingConfig, otherwise: str = "boxed") -> Callable:
    """Returns a `Benchmark.judge` of final answers: `{"extracted", "correct", "timed_out", "graded_by"}` of each text,
    and "confidence" if it states one. `otherwise` is the answer format where neither flag nor problem sets one."""
    def judge(texts: list[str], problems: list[Problem]) -> list[dict]:
        criteria, judged = answers.criteria(problems, grading, otherwise), []
        verdicts, graders = answers.verdicts(texts, criteria), answers.describe_graders(criteria)
        for text, verdict, graded_by in zip(texts, verdicts, graders):
            judged.append({"extracted": verdict.extracted, "correct": verdict.correct, "timed_out": verdict.timed_out,
                           "graded_by": graded_by})
            if (confidence := stated_confidence(text)) is not None:
                judged[-1]["confidence"] = confidence
        return judged
    return judge


def trim_padding(prompts: Prompts, indices: np.ndarray) -> Prompts:
    """Trims the padding to the longest prompt among `indices`, so that a long prompt widens only calls that contain it.
    Widths are multiples of 64 tokens, because a program is compiled for each width."""
    width = -(-int(np.max(prompts.lengths[indices])) // 64) * 64
    return prompts.replace(tokens=prompts.tokens[:, :width])


def measure_heldout(sampler: Sampler, problems: list[Problem], prompts: Prompts, request: Request,
                    answer_format: str = "auto", keep: Optional[Callable] = None) -> dict:
    """Samples each problem greedily and at temperature 1, with the seed and step of `request`. Returns the metrics
    {"eval/NAME": value}: the accuracies "greedy" and "sampled", and for both the share and accuracy of each style.
    Problems of several families add the accuracy on each, such as "greedy_boolean". Greedy completions that state
    confidences add their calibration. `keep(step, rows)`, if given, receives the greedy rows."""
    grading = GradingConfig(answer_format)
    graded_by = answers.describe_graders(answers.criteria(problems, grading, otherwise="lenient"))
    metrics = {"eval/n": len(problems), "eval/graded_by": ", ".join(dict.fromkeys(graded_by))}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        benchmark = Benchmark(name, problems, prompts, judge_by_answer(grading, "lenient"), 1, temperature)
        rows = list(sample_and_grade(sampler, benchmark, request._replace(stream=sampling.EVAL)))
        correct_N = np.array([row["correct"] for row in rows])
        if name == "greedy":
            if keep:
                keep(request.step, rows)
            if stated := summarise_calibration(rows):
                metrics |= {"eval/confidence": stated["mean_confidence"],
                            **{f"eval/{key}": stated[key] for key in ("stated", "brier", "ece", "auroc")}}
        metrics[f"eval/{name}"] = float(np.mean(correct_N))
        for style, (share, accuracy) in style_shares(rows, problems).items():
            metrics |= {f"eval/{name}_{style}_share": share, f"eval/{name}_{style}_accuracy": accuracy}
        tasks = [problems[row["problem"]].meta.get("task") for row in rows]
        if len(set(tasks)) > 1:
            for task in dict.fromkeys(tasks):
                metrics[f"eval/{name}_{task}"] = float(np.mean(correct_N[[each == task for each in tasks]]))
    return metrics


def style_shares(rows: list[dict], problems: list[Problem]) -> dict[str, tuple[float, Optional[float]]]:
    """Returns {style: (share of the rows, accuracy in it or None)} for all styles that the problems' families have."""
    style_N = np.array([families.style_of(problems[row["problem"]], row["completion"]) or "" for row in rows])
    correct_N = np.array([row["correct"] for row in rows])
    all_families = filter(None, map(families.family_of, problems))  # without the None of other problems
    styles = dict.fromkeys(style for family in all_families for style in family.styles.values())
    return {style: (float(np.mean(style_N == style)),
                    float(np.mean(correct_N[style_N == style])) if style in style_N else None) for style in styles}


def sample_before_training(sampler: Sampler, pool: list[Problem], prompts: Prompts, grading: GradingConfig,
                           request: Request) -> list[dict]:
    """Returns rows of 64 completions of each problem by the model before training, graded as the run's reward does."""
    answers.describe_graders(answers.criteria(pool, grading))  # raises UserError here, before sampling
    benchmark = Benchmark("pool", pool, prompts, judge_by_answer(grading), 64, request.temperature)
    return list(sample_and_grade(sampler, benchmark, request._replace(stream=sampling.CHOOSE), rows_per_call=2048))


def majority_votes(rows: list[dict], num_problems: int) -> list[dict]:
    """Returns `{"majority", "majority_correct", "wrong"}` for each problem (arXiv 2506.10947): its most frequent answer
    as text, whether this is right, and its most frequent wrong answer. An answer is None if there is none."""
    votes = []
    for index in range(num_problems):
        completions = [row for row in rows if row["problem"] == index]
        right = [row["extracted"] for row in completions if row["correct"]]
        wrong = [row["extracted"] for row in completions if not row["correct"]]
        majority = grade.most_common([row["extracted"] for row in completions])
        votes.append({"majority": majority, "majority_correct": majority in right, "wrong": grade.most_common(wrong)})
    return votes


class Heldout(NamedTuple):
    """The problems that a training run measures on, and how it samples and grades them."""

    source: ProblemSource
    config: HeldoutConfig
    answer_format: str
    seed: int
    max_new_tokens: int


def make_heldout(heldout: Heldout, loaded: LanguageModel, sample: Callable, trained: set[str],
                 keep: Optional[Callable] = None) -> Callable:
    """Returns `evaluate(params, step) -> {"eval/NAME": value}`: `measure_heldout` on problems whose prompt and question
    are not in `trained`, or {} for the source "none". `sample` is as in `Sampler`. UserError if no problem is left."""
    if heldout.source.problems == "none":
        return lambda params, step: {}
    drawn = [*filter(is_drawn, heldout.source.problems.split(","))]
    if drawn and not heldout.config.eval_size:
        raise UserError(f"--eval_size=0 is all of a file, and problems of {', '.join(drawn)} are drawn: give their "
                        "number, or --heldout=none to measure nothing")
    unseen = [problem for problem in load_problems(heldout.source, loaded.tokenizer, heldout.config.heldout_split,
                                                   heldout.config.eval_size)
              if not trained & {problem.prompt, problem.question}]
    if not unseen:
        raise UserError(f"--heldout={heldout.source.problems} leaves no problem that is not trained on; name another "
                        "file, or none")
    prompts = encode_prompts(loaded.tokenizer, unseen, loaded.config, heldout.max_new_tokens,
                             heldout.source.prompt.max_prompt_tokens)
    return lambda params, step: measure_heldout(Sampler(sample, params, loaded.tokenizer), unseen, prompts,
                                                Request(heldout.seed, step), heldout.answer_format, keep)


def heldout_names(heldout: str, trained_on: str) -> str:
    """Returns the names of the sources to measure on, joined by commas: `heldout`; if that is empty, the sources in
    `trained_on` from which unseen problems can be drawn (files cannot); if there are none, "none"."""
    return heldout or ",".join(filter(is_drawn, trained_on.split(","))) or "none"
