"""Metrics of a step's rollouts, and the summary of a run's log."""

import math

import numpy as np

from rlvr_jax.objectives import live_groups

SATURATED = 0.99  # the training accuracy from which a batch counts as saturated


def throughput(seconds: dict, row: dict) -> dict:
    """Returns `seconds`, {"seconds/PHASE": s}, and {"PHASE/tokens_per_second": rate} for sample and update."""
    rates = {}
    for phase in ("sample", "update"):
        key = f"seconds/{phase}"
        if "train/tokens" in row and key in seconds:
            rates[f"{phase}/tokens_per_second"] = row["train/tokens"] / seconds[key]
    return rates | seconds


def describe_step(rollouts, scored, group_size: int) -> dict:
    """Returns the train/* metrics of a step's rollouts (`records.Rollouts`, `grpo.Scored`; host arrays): rewards,
    lengths, repetition, and the share of groups whose rewards differ (live) or are all equal (zero-variance)."""
    reward, info, correct = scored.reward, scored.info, scored.info["correct"] > 0
    lengths, live = rollouts.completion_mask.sum(-1), live_groups(reward.reshape(-1, group_size)).mean()
    optional = {f"train/{name}": info[name].mean() for name in reward_terms(info)}
    if "step_correct" in info:
        optional["train/step_accuracy"] = info["step_correct"].mean()
    return optional | {"train/graded_by": ", ".join(sorted(set(info["graded_by"]))),
            "train/grader_timeouts": int(info["timed_out"].sum()),
            "train/accuracy": correct.mean(), "train/reward_mean": reward.mean(), "train/reward_std": reward.std(),
            "train/live_groups": live, "train/frac_reward_zero_std": 1 - live,  # as TRL names it
            "train/completion_length": lengths.mean(),
            "train/length_correct": lengths[correct].mean() if correct.any() else math.nan,
            "train/length_wrong": lengths[~correct].mean() if not correct.all() else math.nan,
            "train/tokens": int(lengths.sum()), "train/truncated": 1.0 - rollouts.ended.mean(),
            "train/repetition": repetition(rollouts.completions, rollouts.completion_mask)}


def reward_terms(info: dict) -> list[str]:
    """Returns the keys of `info` for the terms of a summed reward, such as "reward/format"; [] for a single reward."""
    terms = [name for name in info if name.startswith("reward/")]
    return terms if len(terms) > 1 else []


def repetition(completions: np.ndarray, mask: np.ndarray, n: int = 4) -> float:
    """Share of n-grams that occurred before in the same completion; near 1 when a policy degenerates into loops.
    `completions` are i32[B,T]; `mask` is bool[B,T], true up to the end of each completion. Compares 64-bit hashes."""
    width = max(completions.shape[1] - n + 1, 0)
    factors = np.random.default_rng(0).integers(1, 2**63, n + 1, np.uint64)
    hashes = factors[n] * np.arange(len(completions), dtype=np.uint64)[:, None]  # so that rows never match
    for i in range(n):
        hashes = hashes + factors[i] * completions[:, i : i + width].astype(np.uint64)
    hashes = np.sort(hashes[mask[:, n - 1 :]])  # only n-grams whose last token belongs to the completion
    return float(np.sum(hashes[1:] == hashes[:-1]) / max(len(hashes), 1))


def rollout_rows(problems: list, record, group_size: int, count: int) -> list[dict]:
    """Returns at most `count` rollouts of a step (`grpo.Record`) as rows of rollouts.jsonl: evenly spaced whole groups
    or, if a group is larger, part of the first one. "group" is the group's index, "group_mean" its mean reward."""
    rows, rollouts, scored, info = [], record.rollouts, record.scored, record.scored.info
    means = scored.reward.reshape(-1, group_size).mean(-1)
    groups = np.linspace(0, len(means) - 1, min(max(count // group_size, 1), len(means))).astype(int)
    indices = np.arange(len(scored.reward)).reshape(-1, group_size)[groups].ravel()
    for i in indices[:count]:
        problem, group = problems[rollouts.prompt_index[i]], i // group_size
        rows.append({"step": record.prompt_batch.step, "group": int(group), "prompt": problem.prompt,
                     "answer": problem.answer, "completion": info["text"][i], "reward": scored.reward[i],
                     "correct": bool(info["correct"][i]),
                     "advantage": np.mean(record.batch.advantages[i]), "group_mean": means[group],
                     "graded_by": info["graded_by"][i], "truncated": not rollouts.ended[i],
                     "num_tokens": int(rollouts.completion_mask[i].sum())}
                    | {name: info[name][i] for name in reward_terms(info)})
    return rows


def evaluation(row: dict) -> dict:
    """Returns {NAME: value} for the metrics eval/NAME of a row."""
    return {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}


def summarise(rows: list) -> dict:
    """Returns the content of summary.json, documented in docs/formats.md, from a run's rows of metrics."""
    evaluated = [row for row in rows if evaluation(row)]
    saturated = next((row["step"] for row in rows if (row.get("train/accuracy") or 0) >= SATURATED), None)
    after = [row for row in evaluated if saturated is not None and row["step"] >= saturated]
    phases = sorted({key for row in rows for key in row if key.startswith("seconds/")})
    curve = {name: {"at_saturation": after[0][key], "peak": max(row[key] for row in after), "end": after[-1][key]}
             for name, key in (("greedy", "eval/greedy"), ("sampled", "eval/sampled")) if after}
    first, last = (evaluated[0], evaluated[-1]) if evaluated else ({}, {})
    seconds = {key.removeprefix("seconds/"): round(sum(row.get(key) or 0 for row in rows), 2) for key in phases}
    return {"base": evaluation(first), "final": evaluation(last), "train_accuracy": rows[-1].get("train/accuracy"),
            "saturation_step": saturated, "steps": rows[-1]["step"], "graded_by": rows[-1].get("train/graded_by"),
            "after_saturation": curve, "seconds": seconds}
