"""Accuracy on a set of problems, greedy or sampled, with every completion kept."""

import dataclasses
import json
import math
import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax import arithmetic, grading, loading, metrics, parallel, sampler
from rlvr_jax.config import EvaluateConfig, UserError
from rlvr_jax.model import Prompts
from rlvr_jax.problems import Problem
from rlvr_jax.sampler import Rollouts
from rlvr_jax.tokenizer import Tokenizer


def texts_of(words: Tokenizer, rollouts: Rollouts) -> list[str]:
    """Decoded completions, special tokens left out."""
    lengths = np.sum(rollouts.completion_mask, -1)
    return words.backend.decode_batch([row[:n].tolist() for row, n in zip(rollouts.completions, lengths)],
                                      skip_special_tokens=True)


def measure(draw: Callable, params, words: Tokenizer, problems: list[Problem], prompts: Prompts, *, temperature: float,
            num_samples: int, answer_format: str, seed: int, step: int, top_p: float = 1.0, rows_per_call: int = 512,
            stream: int = sampler.EVAL, tick: Optional[Callable] = None) -> list[dict]:
    """Samples `num_samples` completions of every problem and grades them.

    `draw` comes from `sampler.make_sampler`. Row i*num_samples+j is sample j of problem i: `{"problem", "sample",
    "prompt", "answer", "completion", "correct", "truncated", "num_tokens"}`. `tick(n)` is told of n more rows.
    """
    total, rows = len(problems) * num_samples, []
    size = min(rows_per_call, total)
    for start in range(0, total, size):
        numbers = np.minimum(np.arange(start, start + size), total - 1)  # the last call keeps the shape of the others
        owners, fresh = numbers // num_samples, min(size, total - start)
        rollouts = draw(params, prompts, owners, seed, step, temperature, top_p, stream=stream, first_row=start,
                        repeats=num_samples)
        for text, i, j, ended, mask in zip(texts_of(words, rollouts), owners, numbers % num_samples, rollouts.ended,
                                           rollouts.completion_mask[:fresh]):
            rows.append({"problem": int(i), "sample": int(j), "prompt": problems[i].prompt,
                         "answer": problems[i].answer, "completion": text,
                         "correct": grading.correct(text, problems[i].answer, answer_format),
                         "truncated": not ended, "num_tokens": int(mask.sum())})
        if tick:
            tick(fresh)
    return rows


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one (Chen et al., arXiv 2107.03374)."""
    return 1.0 - math.prod(1.0 - k / j for j in range(num_samples - num_correct + 1, num_samples + 1))


def summarise(rows: list[dict], num_samples: int) -> dict:
    """avg@k (`accuracy`), pass@k for k = 1, 2, 4, ... up to `num_samples`, lengths; styles on the synthetic task."""
    counts = np.array([row["correct"] for row in rows]).reshape(-1, num_samples).sum(-1)
    ks = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    summary = {"n": len(counts), "num_samples": num_samples, "accuracy": float(counts.sum() / len(rows)),
               "pass@k": {str(k): float(np.mean([pass_at_k(num_samples, int(c), k) for c in counts])) for k in ks},
               "truncated": float(np.mean([row["truncated"] for row in rows])),
               "num_tokens": float(np.mean([row["num_tokens"] for row in rows]))}
    if num_samples == 1:
        summary["interval"] = metrics.wilson(summary["accuracy"], len(rows))
    else:  # samples of one problem are not independent: resample problems
        means = np.random.default_rng(0).choice(counts / num_samples, (2000, len(counts))).mean(-1)
        summary["interval"] = tuple(np.quantile(means, (0.025, 0.975)).tolist())
    return summary


def heldout(draw: Callable, params, words: Tokenizer, problems: list[Problem], prompts: Prompts, *, seed: int,
            step: int, answer_format: str, synthetic: bool) -> dict:
    """The eval/* metrics of a training run: accuracy greedy and at temperature 1, and styles on the synthetic task."""
    found = {"eval/n": len(problems)}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        rows = measure(draw, params, words, problems, prompts, temperature=temperature, num_samples=1,
                       answer_format=answer_format, seed=seed, step=step)
        found[f"eval/{name}"] = float(np.mean([row["correct"] for row in rows]))
        if synthetic:
            found |= {f"eval/{name}_{key}": value for key, value in style_shares(rows).items()}
    return found


def style_shares(rows: list[dict]) -> dict:
    """Share and accuracy of each style of the synthetic task: `{"careful_share", "careful_accuracy", ...}`."""
    styles = np.array([arithmetic.style_of(row["completion"]) or "other" for row in rows])
    correct = np.array([row["correct"] for row in rows])
    found = {}
    for style in arithmetic.STYLES:
        mine = styles == style
        found[f"{style}_share"] = float(mine.mean())
        found[f"{style}_accuracy"] = float(correct[mine].mean()) if mine.any() else None
    return found


def evaluate(config: EvaluateConfig) -> dict:
    """Measures `config.model`; returns the summary, and writes it and the completions into `config.out`."""
    if not config.out:
        raise UserError("--out is required: the directory for summary.json and completions.jsonl")
    loaded = loading.load_model(config.model, config.dtype)
    found = loading.load_problems(config.problems, loaded.tokenizer, count=config.max_problems, num_ops=config.num_ops,
                                  split=config.heldout_split, prompt_style=config.prompt_style,
                                  instruction=config.instruction)
    prompts = loading.encode_prompts(loaded.tokenizer, found, loaded.config, config.max_new_tokens,
                                     config.max_prompt_tokens)
    draw = sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                num_slots=config.num_slots, use_top_p=config.top_p < 1)
    with metrics.progress(len(found) * config.num_samples, what="evaluate", unit="completion") as bar:
        rows = measure(draw, parallel.replicate(loaded.params), loaded.tokenizer, found, prompts, seed=config.seed,
                       step=0, temperature=config.temperature, num_samples=config.num_samples, top_p=config.top_p,
                       answer_format=loading.answer_format(config.answer_format, config.problems),
                       rows_per_call=config.rows_per_call, tick=bar.update)
    summary = summarise(rows, config.num_samples) | {"flags": dataclasses.asdict(config)}
    if config.problems == "arithmetic":
        shares = style_shares(rows)
        summary["styles"] = {style: (shares[f"{style}_share"], shares[f"{style}_accuracy"])
                             for style in arithmetic.STYLES}
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "completions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    metrics.write_json(out / "summary.json", summary)
    return summary
