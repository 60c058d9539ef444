"""What a run trains on: a pool of problems, one example from the pool, or single steps of an expert's solutions."""

import dataclasses
from typing import Callable, Optional

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem
from rlvr_jax.tasks import families
from rlvr_jax.tasks.problems import merge
from rlvr_jax.tasks.prompts import ProblemSource, check_style, is_drawn, load_problems, with_prompts


class PoolConfig(Config):
    """Which problems to train on, and in what form."""

    question: str = flag("", "text of the one problem to train on; with --answer, instead of --problems")
    answer: str = flag("", "reference answer of --question")
    example: str = flag("auto", "the one problem to train on: its index (from 0, repeated rows counted once), auto (of "
                        "example_pool problems the one whose pass rate is nearest to example_pass_rate), auto_by_style "
                        "(like auto, but avoids problems that careless styles of a synthetic family solve: an oracle, "
                        "since real models have no labels of style), or all (train on all problems; a repeated row "
                        "counts as often as the file has it)")
    example_pool: int = flag(128, "number of problems to draw; for example=auto, the number to choose from", minimum=1)
    example_pass_rate: float = flag(0.2, "pass rate that example=auto looks for", minimum=0, maximum=1)
    only_wrong_majority: bool = flag(False, "train only on problems whose most frequent answer, in 64 completions "
                                     "before training, is wrong")
    expert_steps: bool = flag(False, "train on single steps of an expert's solutions: each step becomes an item "
                              "whose prompt ends with the steps before it; see --reward=imitation")
    expert: str = flag("own", "with --expert_steps: the step that completions of an item are compared with",
                       lambda: EXPERTS)

CHOOSE = ("auto", "auto_by_style")  # values of --example for which `choose` picks the problem


def training_problems(config: PoolConfig, names: str, pool: list[Problem], choose: Callable,
                      vote: Optional[Callable] = None, once: Callable = lambda name, make: make()) -> list[Problem]:
    """Returns the problems to train on: one example or all of `pool`, or with --expert_steps items for their steps.
    `pool` is what `load_pool` returned; `names`, the value of --problems, is for messages. With example=auto,
    `choose(pool)` returns {"example": index in `pool`}. `vote(pool)`, if any, returns each problem's meta["votes"].
    `once(name, make)` returns `make()`, or in a resumed run the earlier result. Raises UserError if the example does
    not exist, if no problem is left, and for --expert without --expert_steps."""
    if config.example in CHOOSE and not config.question:
        pool = [pool[once("example", lambda: choose(pool))["example"]]]
    elif config.example not in ("all", *CHOOSE):
        if not config.example.isdecimal() or int(config.example) >= len(pool):
            raise UserError(f"--example={config.example}: {names} has problems 0 to {len(pool) - 1}; or auto, "
                            "auto_by_style, or all")
        pool = [pool[int(config.example)]]
    if vote:
        votes = once("votes", lambda: {"votes": vote(pool)})["votes"]  # one entry for each problem
        pool = [dataclasses.replace(problem, meta=problem.meta | {"votes": votes[i]}) for i, problem in enumerate(pool)]
    if config.only_wrong_majority:
        pool = [problem for problem in pool if not problem.meta["votes"]["majority_correct"]]
    if not pool:
        raise UserError("--only_wrong_majority leaves no problem: for all of them the most frequent answer before "
                        "training is correct; choose another --example, or all")
    if config.expert != "own" and not config.expert_steps:
        raise UserError(f"--expert={config.expert} selects steps of an expert: also give --expert_steps")
    return expert_items(pool, names, config.expert) if config.expert_steps else pool


def own_steps(pool: list[Problem]) -> list[list[Optional[str]]]:
    """The step of the problem's own solution. Returns the targets of all steps, a list for each problem."""
    return [problem.meta["steps"] for problem in pool]


def steps_after_first(pool: list[Problem]) -> list[list[Optional[str]]]:
    """Like `own_steps`, but None in place of the first step (in families, the opening word), which makes no item."""
    return [[None, *steps[1:]] for steps in own_steps(pool)]


def steps_of_next(pool: list[Problem]) -> list[list[Optional[str]]]:
    """A control: the step at the same position of the next problem's solution, of the right form but wrong content."""
    solutions = own_steps(pool)
    return [following[: len(steps)] for steps, following in zip(solutions, solutions[1:] + solutions[:1])]


def shuffled_steps(pool: list[Problem]) -> list[list[Optional[str]]]:
    """A control: random steps of other problems, the same in every run."""
    rng, solutions = np.random.default_rng(0), own_steps(pool)

    def draw_step(index: int) -> str:
        other = solutions[(index + rng.integers(1, len(pool))) % len(pool)]
        return other[rng.integers(len(other))]
    return [[draw_step(index) for _ in steps] for index, steps in enumerate(solutions)]


# --expert -> function of the pool that returns, for each problem, the targets of its steps; None: no item for a step
EXPERTS: dict[str, Callable] = {"own": own_steps, "opened": steps_after_first, "another": steps_of_next,
                                "shuffled": shuffled_steps}


def expert_items(pool: list[Problem], names: str, expert: str = "own") -> list[Problem]:
    """Returns one item, a Problem, for each step of each problem's expert solution, meta["steps"] (arXiv 2510.25992).
    An item's prompt is the problem's prompt and the earlier steps of its own solution. Its target, meta["step"], is
    what EXPERTS[expert] chooses: by default the next step of that solution. `names` names the pool in errors. Raises
    UserError for a problem without steps, and if `expert` takes steps of other problems and the pool has only one."""
    if expert in ("another", "shuffled") and len(pool) == 1:
        raise UserError(f"--expert={expert} takes steps of other problems: train on several, with --example=all")
    if missing := [problem for problem in pool if not problem.meta.get("steps")]:
        raise UserError("--expert_steps needs the steps of a solution, a list of texts in the column steps of "
                        f"--problems={names}; {missing[0].question[:60]!r} has none")

    def make_item(problem: Problem, k: int, target: str) -> Problem:
        texts = [problem.prompt, *problem.meta["steps"][:k]]
        return dataclasses.replace(problem, prompt=(" " if families.family_of(problem) else "\n").join(texts),
                                   meta=problem.meta | {"step": target, "index": f"{problem.meta['index']}.{k}"})
    return [make_item(problem, k, target) for problem, targets in zip(pool, EXPERTS[expert](pool))
            for k, target in enumerate(targets) if target]


def load_pool(config: PoolConfig, source: ProblemSource, tokenizer: Tokenizer, seed: int) -> list[Problem]:
    """Returns the single problem of --question and --answer or, if both are empty, each distinct problem of --problems.
    Raises UserError if only one of the two is given, or if --problems or --example asks for another problem."""
    if not (config.question or config.answer):
        return merge(source_problems(config, source, tokenizer, seed))
    if not (config.question.strip() and config.answer.strip()):
        raise UserError("--question and --answer together state one problem: give both")
    if source.problems != ProblemSource().problems or config.example not in (*CHOOSE, "all", "0"):
        raise UserError(f"--question and --answer state the only problem: leave out --problems={source.problems} and "
                        f"--example={config.example}")
    return merge(with_prompts([Problem(config.question, config.answer, config.question)], tokenizer, source.prompt))


def source_problems(config: PoolConfig, source: ProblemSource, tokenizer: Tokenizer, seed: int) -> list[Problem]:
    """Returns the problems of all sources in --problems: equal numbers from the sources that are drawn (`is_drawn`),
    `example_pool` in all, then all rows of the files. If --example is in CHOOSE, files share `example_pool`, too."""
    check_style(source)
    names = source.problems.split(",")
    limited = [name for name in names if config.example in CHOOSE or is_drawn(name)]
    if len(limited) > config.example_pool:
        raise UserError(f"--example_pool={config.example_pool} is less than the {len(limited)} sources of "
                        f"--problems={source.problems} that share it: raise it")
    whole_files = [name for name in names if name not in limited]

    def load(some: list[str], count: int) -> list[Problem]:
        selected = ProblemSource(",".join(some), source.prompt)
        return load_problems(selected, tokenizer, "example", count, seed) if some else []
    return load(limited, config.example_pool) + load(whole_files, 0)


def choose_example(rows: list[dict], pool: list[Problem], pass_rate: float, by_style: bool = False) -> int:
    """Returns the index in `pool` of the problem whose pass rate is nearest to `pass_rate`. Each of `rows` is a graded
    completion, {"problem": index in `pool`, "completion", "correct"}; all problems have equally many. A problem solved
    always or never is not chosen, as its rewards have no variance; UserError if all are. With `by_style`, one for which
    more than 0.5 % of completions are right by luck (`families.is_careless`) is chosen only if there is no other."""
    right, lucky = np.zeros((2, len(pool)))
    for row in rows:
        problem = pool[row["problem"]]
        right[row["problem"]] += row["correct"]
        lucky[row["problem"]] += by_style and row["correct"] and families.is_careless(problem, row["completion"])
    count = len(rows) / len(pool)
    right, lucky = right / count, lucky / count
    has_variance = (right > 0) & (right < 1)
    if not has_variance.any():
        raise UserError(f"--example=auto: the model solves each of {len(pool)} problems always or never; raise "
                        "--example_pool or --temperature, or name one with --example=INDEX")
    # A distance is at most 1: a penalty of 10 puts lucky problems behind all others, 100 those without variance last.
    return int(np.argmin(np.abs(right - pass_rate) + 10.0 * (lucky > 0.005) + 100.0 * ~has_variance))
