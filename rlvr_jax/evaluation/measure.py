"""Completions of a list of problems, sampled and graded; what a training run measures on held-out ones."""

from typing import Callable, Iterator, Optional

import numpy as np

from rlvr_jax import advice, parallel, sampler
from rlvr_jax.config import TrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.calibration import calibration
from rlvr_jax.grading import grade
from rlvr_jax.grading.confidence import confidence
from rlvr_jax.model import Prompts
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.tasks import answers, families
from rlvr_jax.tasks.pool import choose_example
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts, is_drawn, load_problems


def measure(sample: Callable, params, tokenizer: Tokenizer, problems: list[Problem], prompts: Prompts, *,
            temperature: float, num_samples: int, judge: Callable, seed: int, step: int, top_p: float = 1.0,
            rows_per_call: int = 512, stream: int = sampler.EVAL, done: int = 0,
            tell: Optional[Callable] = None) -> Iterator[dict]:
    """Samples `num_samples` completions of every problem and grades them; yields their rows as they come.

    `sample` comes from `sampler.make_sampler`. Row i*num_samples+j is sample j of problem i: `{"problem", "sample",
    "prompt", "answer", "completion", "truncated", "num_tokens"}` and what `judge(texts, problems)`, such as that of
    `by_answer`, says of it: a dict for each text. So does `tell(rollouts, texts, judged)`, where it is given.
    The first `done` rows are there already and are left out. Every call samples the same rows with or without them,
    so that what is left comes out bit for bit as it would have.
    """
    total = len(problems) * num_samples
    size = min(rows_per_call, total)
    for start in range(0, total, size):
        end = min(start + size, total)
        if end <= done:
            continue
        numbers = np.minimum(np.arange(start, start + size), total - 1)  # the last call keeps the shape of the others
        owners = numbers // num_samples
        rollouts = sample(params, narrowed(prompts, owners), owners, seed, step, temperature, top_p, stream=stream,
                          first_row=start, repeats=num_samples)
        texts = tokenizer.decode_rollouts(rollouts)[: end - start]
        judged = judge(texts, [problems[i] for i in owners[: end - start]])
        told = tell(rollouts, texts, judged) if tell else [{}] * len(texts)
        made = [{"problem": int(i), "sample": int(j), "prompt": problems[i].prompt, "answer": problems[i].answer,
                 "completion": text} | said | {"truncated": not ended, "num_tokens": int(mask.sum())} | more
                for text, said, i, j, ended, mask, more in zip(texts, judged, owners, numbers % num_samples,
                                                               rollouts.ended, rollouts.completion_mask, told)]
        yield from made[max(done - start, 0) :]


def by_answer(answer_format: str, grader: str = "math", otherwise: str = "boxed") -> Callable:
    """A `judge` by the final answer: `{"extracted", "correct", "timed_out", "graded_by"}` of each text, and
    "confidence" where it states how sure it is. The arguments are those of `answers.rule`."""
    def judge(texts: list[str], problems: list[Problem]) -> list[dict]:
        rules = answers.rules(problems, answer_format, grader, otherwise)
        return [{"extracted": verdict.extracted, "correct": verdict.correct, "timed_out": verdict.timed_out,
                 "graded_by": graded_by} | ({} if (sure := confidence(text)) is None else {"confidence": sure})
                for text, verdict, graded_by in zip(texts, answers.verdicts(texts, rules), answers.described(rules))]
    return judge


def narrowed(prompts: Prompts, owners: np.ndarray) -> Prompts:
    """The prompts, cut to the longest one in use: a few long ones widen their own calls only.

    In steps of 64 tokens, since every width is one more program to compile.
    """
    width = -(-int(np.max(prompts.lengths[owners])) // 64) * 64
    return prompts.replace(tokens=prompts.tokens[:, :width])


def heldout(sample: Callable, params, tokenizer: Tokenizer, problems: list[Problem], prompts: Prompts, *, seed: int,
            step: int, answer_format: str = "auto", keep: Optional[Callable] = None) -> dict:
    """The eval/* metrics of a training run: accuracy greedy and at temperature 1, and styles on synthetic families.

    Where the problems are of several families, each one's accuracy has a metric of its own, such as greedy_boolean.
    Where greedy completions state how sure they are, so have the calibration and the share that states it.

    `keep(step, rows)` is handed the greedy completions, as `measure` returns them.
    """
    judge = by_answer(answer_format, otherwise="lenient")
    graded_by = answers.described(answers.rules(problems, answer_format, otherwise="lenient"))
    metrics = {"eval/n": len(problems), "eval/graded_by": ", ".join(dict.fromkeys(graded_by))}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        rows = list(measure(sample, params, tokenizer, problems, prompts, temperature=temperature, num_samples=1,
                            judge=judge, seed=seed, step=step))
        if keep and name == "greedy":
            keep(step, rows)
        if name == "greedy" and (told := calibration(rows)):
            metrics |= {"eval/confidence": told["mean_confidence"],
                        **{f"eval/{key}": told[key] for key in ("stated", "brier", "ece", "auroc")}}
        metrics[f"eval/{name}"] = float(np.mean([row["correct"] for row in rows]))
        for style, (share, accuracy) in style_shares(rows, problems).items():
            metrics |= {f"eval/{name}_{style}_share": share, f"eval/{name}_{style}_accuracy": accuracy}
        tasks = [problems[row["problem"]].meta.get("task") for row in rows]
        for task in dict.fromkeys(tasks) if len(set(tasks)) > 1 else ():
            mine = [row["correct"] for row, own in zip(rows, tasks) if own == task]
            metrics[f"eval/{name}_{task}"] = float(np.mean(mine))
    return metrics


def style_shares(rows: list[dict], problems: list[Problem]) -> dict[str, tuple[float, Optional[float]]]:
    """`{style: (share of the rows, accuracy of these)}` for every style of the problems' families."""
    styles = np.array([families.style_of(problems[row["problem"]], row["completion"]) or "" for row in rows])
    correct = np.array([row["correct"] for row in rows])
    known = dict.fromkeys(style for problem in problems if (family := families.of_problem(problem))
                          for style in family.styles.values())
    mine = {style: styles == style for style in known}
    return {style: (float(own.mean()), float(correct[own].mean()) if own.any() else None)
            for style, own in mine.items()}


def before_training(config: TrainConfig, loaded: loading.LanguageModel, sample: Callable, pool: list,
                    prompts) -> list[dict]:
    """64 completions of each problem by the model that the run starts from, graded as its reward grades."""
    answers.described(answers.rules(pool, config.answer_format, config.grader))  # what is not installed is said first
    judge = by_answer(config.answer_format, config.grader)
    return list(measure(
        sample, parallel.place_state(loaded.params), loaded.tokenizer, pool, prompts, temperature=config.temperature,
        num_samples=64, judge=judge, seed=config.seed, step=0, stream=sampler.CHOOSE, rows_per_call=2048))


def example_place(config: TrainConfig, loaded: loading.LanguageModel, sample: Callable, pool: list, prompts) -> dict:
    """The place in the pool of the problem that example=auto chooses, as "example", with the problem and its pass
    rate in 64 completions."""
    advice.warn(advice.on_answers(config, pool))
    rows = before_training(config, loaded, sample, pool, prompts)
    place = choose_example(rows, pool, config.example_pass_rate)
    right = [row["correct"] for row in rows if row["problem"] == place]
    return {"example": place, "question": pool[place].question, "answer": pool[place].answer,
            "pass_rate": float(np.mean(right)), "num_samples": len(right)}


def votes(config: TrainConfig, loaded: loading.LanguageModel, sample: Callable, pool: list, prompts) -> list[dict]:
    """What the model answers to each problem before training, in 64 completions (arXiv 2506.10947): `majority`, the
    most frequent answer as text, whether it is right, and `wrong`, the most frequent wrong one. None: no such answer.
    """
    rows, made = before_training(config, loaded, sample, pool, prompts), []
    for place in range(len(pool)):
        mine = [row for row in rows if row["problem"] == place]
        right = {row["extracted"] for row in mine if row["correct"]}
        majority = grade.most_common([row["extracted"] for row in mine])
        made.append({"majority": majority, "majority_correct": majority in right, "wrong": grade.most_common(
            [row["extracted"] for row in mine if not row["correct"]])})
    return made


def make_heldout(config: TrainConfig, loaded: loading.LanguageModel, sample: Callable, trained: list,
                 keep: Optional[Callable] = None) -> Callable:
    """`heldout(params, step)`: greedy and T=1 accuracy on problems that are not trained on, as eval/* metrics.

    `keep(step, rows)` is handed the greedy completions. Graded as `scripts.evaluate` does by default: where the reward
    wants a box, or another grader, these do not.
    """
    source = config.heldout or ",".join(filter(is_drawn, config.source.split(","))) or "none"
    if source == "none":
        return lambda params, step: {}
    unseen = load_problems(source, loaded.tokenizer, count=config.eval_size, split=config.heldout_split,
                          num_ops=config.num_ops, prompt_style=config.prompt_style, instruction=config.instruction,
                          ignore_columns=config.ignore_columns)
    unseen = [problem for problem in unseen if problem.prompt not in {p.prompt for p in trained}]
    if not unseen:
        raise UserError(f"--heldout={source} leaves no problem that is not trained on; name another file, or none")
    prompts = encode_prompts(loaded.tokenizer, unseen, loaded.config, config.max_new_tokens, config.max_prompt_tokens)
    return lambda params, step: heldout(
        sample, params, loaded.tokenizer, unseen, prompts, seed=config.seed, step=step,
        answer_format=config.answer_format, keep=keep)
