"""What a run trains on: its pool of problems, the one that is chosen of them, and their order."""

import dataclasses
import functools
from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import TrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import loading
from rlvr_jax.tasks import families
from rlvr_jax.tasks.problems import Problem, merge
from rlvr_jax.tasks.prompts import encode_prompts, is_drawn, load_problems, with_prompts


def training_problems(config: TrainConfig, loaded: loading.LanguageModel, choose: Callable,
                      vote: Optional[Callable] = None, once: Callable = lambda name, make: make()) -> tuple:
    """(problems, prompts): the one example, or all of them, each distinct problem once.

    `choose(pool, prompts)` says which one example=auto takes and `vote(pool, prompts)`, where it is not None, what the
    model answers before training, which is kept as meta["votes"] (both of `evaluation.measure`). `once` is `Run.once`,
    which saves a run that goes on from asking them again. Raises UserError for an example that is not there, and for
    one that is given in two ways.
    """
    pool = merge(own_problem(config, loaded) if config.question or config.answer else file_problems(config, loaded))
    encode = lambda chosen: encode_prompts(loaded.tokenizer, chosen, loaded.config, config.max_new_tokens,
                                           config.max_prompt_tokens)
    if config.example == "auto" and not config.question:
        pool = [pool[once("example", lambda: choose(pool, encode(pool)))["example"]]]
    elif config.example not in ("all", "auto"):
        if not config.example.isdigit() or int(config.example) >= len(pool):
            raise UserError(f"--example={config.example}: {config.problems} has problems 0 to {len(pool) - 1}; "
                            "or auto, or all")
        pool = [pool[int(config.example)]]
    if vote:
        votes = once("votes", lambda: {"votes": vote(pool, encode(pool))})["votes"]
        pool = [dataclasses.replace(problem, meta=problem.meta | {"votes": of}) for problem, of in zip(pool, votes)]
    if config.only_wrong_majority:
        pool = [problem for problem in pool if not problem.meta["votes"]["majority_correct"]]
    if not pool:
        raise UserError("--only_wrong_majority leaves no problem: the most frequent answer before training is right "
                        "for all of them; choose another --example, or all")
    pool = expert_items(pool, config) if config.expert_steps else pool
    return pool, encode(pool)


def expert_items(pool: list[Problem], config: TrainConfig) -> list[Problem]:
    """Each problem as one item a step of its expert solution, meta["steps"] (SRL, arXiv 2510.25992).

    An item's prompt goes on with the steps before, and its meta["step"] is the one to say next. UserError for a
    problem without steps.
    """
    if missing := [problem for problem in pool if not problem.meta.get("steps")]:
        raise UserError(f"--expert_steps needs the steps of a solution, a list of texts in the column steps of "
                        f"--problems={config.problems}; {missing[0].question[:60]!r} has none")
    return [dataclasses.replace(problem, prompt=(" " if families.of_problem(problem) else "\n").join(
                                    [problem.prompt, *problem.meta["steps"][:k]]),
                                meta=problem.meta | {"step": step, "index": f"{problem.meta['index']}.{k}"})
            for problem in pool for k, step in enumerate(problem.meta["steps"])]


def file_problems(config: TrainConfig, loaded: loading.LanguageModel) -> list[Problem]:
    """The rows of each file of `config.problems`, and of those that are drawn `example_pool` problems in all.

    Where example=auto chooses, there are as many of files and drawn ones together, an even part of each.
    """
    sources = config.problems.split(",")
    counted = [source for source in sources if config.example == "auto" or is_drawn(source)]
    if len(counted) > config.example_pool:
        raise UserError(f"--example_pool={config.example_pool} is less than the {len(counted)} names of "
                        f"--problems={config.problems}")
    files = [source for source in sources if source not in counted]
    load = functools.partial(
        load_problems, tokenizer=loaded.tokenizer, split="example", num_ops=config.num_ops, seed=config.seed,
        prompt_style=config.prompt_style, instruction=config.instruction, ignore_columns=config.ignore_columns)
    return ((load(",".join(counted), count=config.example_pool) if counted else [])
            + (load(",".join(files)) if files else []))


def own_problem(config: TrainConfig, loaded: loading.LanguageModel) -> list[Problem]:
    """The problem written on the command line. The first, or all, of one problem is that one, so those may stay."""
    if not (config.question and config.answer):
        raise UserError("--question and --answer are one problem: give both")
    if config.problems != TrainConfig.problems or config.example not in ("auto", "all", "0"):
        raise UserError(f"--question and --answer are the only problem: leave out --problems={config.problems} and "
                        f"--example={config.example}")
    return with_prompts([Problem(config.question, config.answer, config.question)], loaded.tokenizer,
                        config.prompt_style, config.instruction)


def curriculum(config: TrainConfig, pool: list[Problem], step: int) -> np.ndarray:
    """Which problem each of the step's completions answers: passes over all rows, copies too, each in a fresh order."""
    deck = np.repeat(np.arange(len(pool), dtype=np.int32), [problem.copies for problem in pool])
    places = (step - 1) * config.num_prompts + np.arange(config.num_prompts)
    epochs = {e: np.random.default_rng((config.seed, e)).permutation(deck) for e in set(places // len(deck))}
    rows = [epochs[place // len(deck)][place % len(deck)] for place in places]
    return np.repeat(np.array(rows, np.int32), config.group_size)


def choose_example(rows: list[dict], pool: list[Problem], pass_rate: float) -> int:
    """The place in the pool of the problem whose pass rate is nearest `pass_rate`.

    `rows` are as many completions of every problem (`evaluation.measure`). A problem that is never or always solved
    teaches nothing. In a synthetic family a right answer that is not a careful one is luck: where more than 0.5 % of
    the completions are lucky, training would reward the wrong style, so such problems come last.
    """
    right, lucky = np.zeros((2, len(pool)))
    for row in rows:
        right[row["problem"]] += row["correct"]
        lucky[row["problem"]] += row["correct"] and families.is_careless(pool[row["problem"]], row["completion"])
    count = len(rows) / len(pool)
    right, lucky = right / count, lucky / count
    teaches = (right > 0) & (right < 1)
    if not teaches.any():
        raise UserError("--example=auto found no problem that the model solves sometimes but not always among "
                        f"{len(pool)}; raise --example_pool or --temperature, or name one with --example=INDEX")
    return int(np.argmin(np.abs(right - pass_rate) + 10.0 * (lucky > 0.005) + 100.0 * ~teaches))
