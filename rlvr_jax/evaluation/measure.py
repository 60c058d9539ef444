"""Completions of a list of problems, sampled and graded; what a training run measures on held-out ones."""

from typing import Callable, Iterator, NamedTuple, Optional

import numpy as np

from rlvr_jax import parallel
from rlvr_jax import sampler as sampling
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.calibration import calibration
from rlvr_jax.grading import grade
from rlvr_jax.grading.stated_confidence import confidence
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

    eval_size: int = flag(512, "held-out problems to measure on; 0: all of a file", minimum=0)
    heldout_split: str = flag("test", "split of a synthetic family to measure on", ["dev", "test"])


class Sampler(NamedTuple):
    """A compiled sampler (`sampler.make_sampler`) with the parameters it samples from, placed on the devices."""

    sample: Callable
    params: Params
    tokenizer: Tokenizer


class Benchmark(NamedTuple):
    """A set of problems: what is asked, how often, and how it is judged."""

    name: str  # "benchmark" of its rows
    problems: list[Problem]
    prompts: Prompts
    judge: Callable  # (texts, problems) -> a dict for each text, such as that of `by_answer`
    num_samples: int = 1
    temperature: float = 0.0


def make_sampler(loaded: LanguageModel, config: SamplingConfig, use_top_p: bool = False,
                 sample_fn: Callable = sampling.sample, params=None) -> Sampler:
    """A sampler of the model, or with `sample_fn` of whatever `params` that function takes."""
    decoding = Decoding(loaded.tokenizer.eos_ids, config.max_new_tokens, config.num_slots)
    return Sampler(sampling.make_sampler(loaded.config, decoding, use_top_p, sample_fn),
                   parallel.place_state(loaded.params if params is None else params), loaded.tokenizer)


def measure(sampler: Sampler, benchmark: Benchmark, request: Request, rows_per_call: int = 512, done: int = 0,
            more: Optional[Callable] = None) -> Iterator[dict]:
    """Samples and grades all completions of a benchmark; yields their rows as they come.

    Row i*num_samples+j is sample j of problem i: `{"problem", "sample", "prompt", "answer", "completion", "truncated",
    "num_tokens"}`, and the columns of `benchmark.judge`, and of `more(rollouts, texts, judged)`, where it is given.
    Seed, step, stream and top_p are those of the request.
    The first `done` rows are there already and are left out. Every call samples the same rows with or without them,
    so that what is left comes out bit for bit as it would have.
    """
    problems, count = benchmark.problems, benchmark.num_samples
    total = len(problems) * count
    size = min(rows_per_call, total)
    for start in range(0, total, size):
        end = min(start + size, total)
        if end <= done:
            continue
        numbers = np.minimum(np.arange(start, start + size), total - 1)  # the last call keeps the shape of the others
        owners = numbers // count
        rollouts = sampler.sample(sampler.params, narrowed(benchmark.prompts, owners), owners, request._replace(
            temperature=benchmark.temperature, first_row=start, repeats=count))
        texts = sampler.tokenizer.decode_rollouts(rollouts)[: end - start]
        judged = benchmark.judge(texts, [problems[i] for i in owners[: end - start]])
        columns = more(rollouts, texts, judged) if more else [{}] * len(texts)
        rows = [{"problem": int(i), "sample": int(j), "prompt": problems[i].prompt, "answer": problems[i].answer,
                 "completion": text} | verdict | {"truncated": not ended, "num_tokens": int(mask.sum())} | column
                for text, verdict, i, j, ended, mask, column in zip(
                    texts, judged, owners, numbers % count, rollouts.ended, rollouts.completion_mask, columns)]
        yield from rows[max(done - start, 0) :]


def by_answer(grading: GradingConfig, otherwise: str = "boxed") -> Callable:
    """A `judge` by the final answer: `{"extracted", "correct", "timed_out", "graded_by"}` of each text, and
    "confidence" where it states how sure it is. `otherwise` is as in `answers.criteria`."""
    def judge(texts: list[str], problems: list[Problem]) -> list[dict]:
        by = answers.criteria(problems, grading, otherwise)
        return [{"extracted": verdict.extracted, "correct": verdict.correct, "timed_out": verdict.timed_out,
                 "graded_by": graded_by} | ({} if (sure := confidence(text)) is None else {"confidence": sure})
                for text, verdict, graded_by in zip(texts, answers.verdicts(texts, by), answers.describe_graders(by))]
    return judge


def narrowed(prompts: Prompts, owners: np.ndarray) -> Prompts:
    """The prompts, cut to the longest one in use: a few long ones widen their own calls only. In steps of 64 tokens,
    since every width is one more program to compile."""
    width = -(-int(np.max(prompts.lengths[owners])) // 64) * 64
    return prompts.replace(tokens=prompts.tokens[:, :width])


def heldout(sampler: Sampler, problems: list[Problem], prompts: Prompts, request: Request,
            answer_format: str = "auto", keep: Optional[Callable] = None) -> dict:
    """The eval/* metrics of a training run: accuracy greedy and at temperature 1, and styles on synthetic families.

    Where the problems are of several families, the accuracy of each is a metric, too, such as greedy_boolean.
    Where greedy completions state how sure they are, there are metrics of calibration, and of the share that states it.

    `keep(step, rows)` is handed the greedy completions, as `measure` returns them.
    """
    grading = GradingConfig(answer_format)
    judge = by_answer(grading, otherwise="lenient")
    graded_by = answers.describe_graders(answers.criteria(problems, grading, otherwise="lenient"))
    metrics = {"eval/n": len(problems), "eval/graded_by": ", ".join(dict.fromkeys(graded_by))}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        rows = list(measure(sampler, Benchmark(name, problems, prompts, judge, 1, temperature),
                            request._replace(stream=sampling.EVAL)))
        if keep and name == "greedy":
            keep(request.step, rows)
        if name == "greedy" and (stated := calibration(rows)):
            metrics |= {"eval/confidence": stated["mean_confidence"],
                        **{f"eval/{key}": stated[key] for key in ("stated", "brier", "ece", "auroc")}}
        metrics[f"eval/{name}"] = float(np.mean([row["correct"] for row in rows]))
        for style, (share, accuracy) in style_shares(rows, problems).items():
            metrics |= {f"eval/{name}_{style}_share": share, f"eval/{name}_{style}_accuracy": accuracy}
        tasks = [problems[row["problem"]].meta.get("task") for row in rows]
        for task in dict.fromkeys(tasks) if len(set(tasks)) > 1 else ():
            correct = [row["correct"] for row, its_task in zip(rows, tasks) if its_task == task]
            metrics[f"eval/{name}_{task}"] = float(np.mean(correct))
    return metrics


def style_shares(rows: list[dict], problems: list[Problem]) -> dict[str, tuple[float, Optional[float]]]:
    """`{style: (share of the rows, accuracy of these)}` for every style of the problems' families."""
    styles = np.array([families.style_of(problems[row["problem"]], row["completion"]) or "" for row in rows])
    correct = np.array([row["correct"] for row in rows])
    known = dict.fromkeys(style for problem in problems if (family := families.family_of(problem))
                          for style in family.styles.values())
    places = {style: styles == style for style in known}
    return {style: (float(rows_N.mean()), float(correct[rows_N].mean()) if rows_N.any() else None)
            for style, rows_N in places.items()}


def before_training(sampler: Sampler, pool: list[Problem], prompts: Prompts, grading: GradingConfig,
                    request: Request) -> list[dict]:
    """64 completions of each problem by the model that the run starts from, graded as its reward grades."""
    answers.describe_graders(answers.criteria(pool, grading))  # what is not installed is reported first
    benchmark = Benchmark("pool", pool, prompts, by_answer(grading), 64, request.temperature)
    return list(measure(sampler, benchmark, request._replace(stream=sampling.CHOOSE), rows_per_call=2048))


def votes(rows: list[dict], num_problems: int) -> list[dict]:
    """What the model answers to each problem before training (arXiv 2506.10947): `majority`, the most frequent answer
    as text, whether it is right, and `wrong`, the most frequent wrong one. None: no such answer."""
    result = []
    for place in range(num_problems):
        given = [row for row in rows if row["problem"] == place]
        right = {row["extracted"] for row in given if row["correct"]}
        majority = grade.most_common([row["extracted"] for row in given])
        result.append({"majority": majority, "majority_correct": majority in right, "wrong": grade.most_common(
            [row["extracted"] for row in given if not row["correct"]])})
    return result


class Heldout(NamedTuple):
    """What a run of training measures on."""

    source: ProblemSource
    config: HeldoutConfig
    answer_format: str
    seed: int
    max_new_tokens: int


def make_heldout(asked: Heldout, loaded: LanguageModel, sample: Callable, trained: set[str],
                 keep: Optional[Callable] = None) -> Callable:
    """`heldout(params, step)`: greedy and T=1 accuracy on problems whose prompts are not among `trained`, as eval/*
    metrics; none for the source "none".

    `keep(step, rows)` is handed the greedy completions. Raises UserError where no problem is left.
    """
    if asked.source.problems == "none":
        return lambda params, step: {}
    if not asked.config.eval_size and (drawn := [*filter(is_drawn, asked.source.problems.split(","))]):
        raise UserError(f"--eval_size=0 is all of a file, and problems of {', '.join(drawn)} are drawn: give their "
                        "number, or --heldout=none to measure nothing")
    unseen = [problem for problem in load_problems(asked.source, loaded.tokenizer, asked.config.heldout_split,
                                                   asked.config.eval_size) if problem.prompt not in trained]
    if not unseen:
        raise UserError(f"--heldout={asked.source.problems} leaves no problem that is not trained on; name another "
                        "file, or none")
    prompts = encode_prompts(loaded.tokenizer, unseen, loaded.config, asked.max_new_tokens,
                             asked.source.prompt.max_prompt_tokens)
    return lambda params, step: heldout(Sampler(sample, params, loaded.tokenizer), unseen, prompts,
                                        Request(asked.seed, step), asked.answer_format, keep)


def heldout_names(heldout: str, trained_on: str) -> str:
    """The names of the problems to measure on: --heldout, else the drawn ones of those trained on; "none" for none."""
    return heldout or ",".join(filter(is_drawn, trained_on.split(","))) or "none"
