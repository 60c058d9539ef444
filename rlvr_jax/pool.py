"""What a run trains on: its pool of problems, their order, and what is kept of each one's accuracy."""

import collections
import functools
from typing import Callable

import numpy as np

from rlvr_jax import advice, evaluation, families, loading, metrics, parallel, sampler, selection
from rlvr_jax.config import TrainConfig, UserError
from rlvr_jax.problems import Problem, merge
from rlvr_jax.runs import Run


def training_problems(config: TrainConfig, start: loading.LanguageModel, draw: Callable,
                      once: Callable = lambda name, choose: choose()[0]) -> tuple:
    """(problems, prompts): the one example, or all of them, each distinct problem once.

    `once` is `Run.once`, which saves a run that goes on from choosing again. Raises UserError for an example that is
    not there, and for one that is given in two ways.
    """
    pool = merge(own_problem(config, start) if config.question or config.answer else file_problems(config, start))
    encode = lambda found: loading.encode_prompts(start.tokenizer, found, start.config, config.max_new_tokens,
                                                  config.max_prompt_tokens)
    if config.example == "auto" and not config.question:
        pool = [pool[once("example", functools.partial(example_place, config, start, draw, pool, encode(pool)))]]
    elif config.example not in ("all", "auto"):
        if not config.example.isdigit() or int(config.example) >= len(pool):
            raise UserError(f"--example={config.example}: {config.problems} has problems 0 to {len(pool) - 1}; "
                            "or auto, or all")
        pool = [pool[int(config.example)]]
    return pool, encode(pool)


def example_place(config: TrainConfig, start: loading.LanguageModel, draw: Callable, pool: list, prompts) -> tuple:
    """(place, facts): the place in the pool of the problem that example=auto chooses, by 64 completions of each, and
    what is kept of the choice: the problem, and its pass rate."""
    advice.warn(advice.on_answers(config, pool))
    rows = evaluation.measure(
        draw, parallel.replicate(start.params), start.tokenizer, pool, prompts, temperature=config.temperature,
        num_samples=64, answer_format=loading.answer_format(config.answer_format, config.source), grader=config.grader,
        seed=config.seed, step=0, stream=sampler.CHOOSE, rows_per_call=2048)
    place = selection.choose_example(rows, pool, config.example_pass_rate)
    right = [row["correct"] for row in rows if row["problem"] == place]
    return place, {"question": pool[place].question, "answer": pool[place].answer, "pass_rate": float(np.mean(right)),
                   "num_samples": len(right)}


def file_problems(config: TrainConfig, start: loading.LanguageModel) -> list[Problem]:
    """The rows of `config.problems`, or as many of a synthetic family as example=auto chooses from."""
    count = config.example_pool if config.example == "auto" or config.problems in families.FAMILIES else 0
    return loading.load_problems(config.problems, start.tokenizer, count=count, split="example", num_ops=config.num_ops,
                                 prompt_style=config.prompt_style, instruction=config.instruction,
                                 ignore_columns=config.ignore_columns, seed=config.seed)


def own_problem(config: TrainConfig, start: loading.LanguageModel) -> list[Problem]:
    """The problem written on the command line. The first, or all, of one problem is that one, so those may stay."""
    if not (config.question and config.answer):
        raise UserError("--question and --answer are one problem: give both")
    if config.problems != TrainConfig.problems or config.example not in ("auto", "all", "0"):
        raise UserError(f"--question and --answer are the only problem: leave out --problems={config.problems} and "
                        f"--example={config.example}")
    return loading.with_prompts([Problem(config.question, config.answer, config.question)], start.tokenizer,
                                config.prompt_style, config.instruction)


def curriculum(config: TrainConfig, pool: list[Problem], step: int) -> np.ndarray:
    """Which problem each of the step's completions answers: passes over all rows, copies too, each in a fresh order."""
    deck = np.repeat(np.arange(len(pool), dtype=np.int32), [problem.copies for problem in pool])
    places = (step - 1) * config.num_prompts + np.arange(config.num_prompts)
    epochs = {e: np.random.default_rng((config.seed, e)).permutation(deck) for e in set(places // len(deck))}
    rows = [epochs[place // len(deck)][place % len(deck)] for place in places]
    return np.repeat(np.array(rows, np.int32), config.group_size)


def record(config: TrainConfig, pool: list[Problem], prompt_index: np.ndarray, correct: np.ndarray) -> dict:
    """With `record_history` the metric `{index: [accuracy of each group of that problem in this step]}`, else {}."""
    if not config.record_history:
        return {}
    found, accuracies = {}, correct.reshape(-1, config.group_size).mean(-1, dtype=float).tolist()
    for i, accuracy in zip(prompt_index[:: config.group_size], accuracies):
        found.setdefault(str(pool[i].meta["index"]), []).append(accuracy)
    return {"train/group_accuracies": found}


def write_history(config: TrainConfig, run: Run, pool: list[Problem]) -> None:
    """With `record_history` brings the run's history.json (`selection.read_history`) up to the log, which survives."""
    if config.record_history and parallel.is_main():
        metrics.write_json(run.dir / selection.HISTORY, history(run.metrics.rows, pool))


def history(rows: list[dict], pool: list[Problem]) -> dict[str, list[float]]:
    """`{index: [accuracy in each whole pass]}` from rows of metrics.

    A pass takes each copy of a problem once, so its groups are that problem's next `copies` ones.
    """
    groups = collections.defaultdict(list)
    for row in rows:
        for index, accuracies in row.get("train/group_accuracies", {}).items():
            groups[index] += accuracies
    found = {}
    for index, size in ((str(problem.meta["index"]), problem.copies) for problem in pool):
        passes = len(groups[index]) // size
        if passes:
            found[index] = np.reshape(groups[index][: passes * size], (passes, size)).mean(-1).tolist()
    return found
