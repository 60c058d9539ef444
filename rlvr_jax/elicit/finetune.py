"""Supervised training on completions of prompts: only the completions are learnt, by the same update as everything."""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from rlvr_jax import adapters, learner, parallel, sampler
from rlvr_jax.config import FinetuneConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import make_heldout
from rlvr_jax.model import Prompts
from rlvr_jax.pretrained import loading
from rlvr_jax.runs.files import read_lines
from rlvr_jax.runs.log import timed
from rlvr_jax.runs.run import Run
from rlvr_jax.tasks.problems import Problem


class Examples(NamedTuple):
    """N completions, each of one of P distinct prompts."""

    texts: list[str]  # P prompts
    prompts: Prompts  # [P,S]
    index: np.ndarray  # i32[N] into the prompts
    completions: np.ndarray  # i32[N,T], 0 after the end
    mask: np.ndarray  # bool[N,T], true up to and including the end token


def finetune(config: FinetuneConfig) -> dict:
    """Trains `config.model` on `config.examples` and returns the summary, which `run_dir/summary.json` holds too."""
    loaded = loading.load_model(config.model, config.dtype)
    window = max(loaded.config.max_seq_len, config.window)
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, max_seq_len=window))
    learner.micro_rows(config, config.batch_size, parallel.device_count(), "--batch_size")
    examples = read_examples(config.examples, loaded)
    optimizer = learner.make_optimizer(config)
    update = learner.map_update(loaded.config, config, optimizer)
    sample = sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                  num_slots=config.num_slots)
    meta = {"model": loaded.config.to_json(), "tokenizer": loaded.tokenizer.to_json(),
            "flags": dataclasses.asdict(config)}

    with Run(config, "finetune") as run:
        heldout = make_heldout(config, loaded, sample, [Problem(text, "", text) for text in examples.texts],
                               run.keep_heldout)
        state = parallel.place_state(run.restore(learner.init_state(
            adapters.merged(loaded.params), optimizer, keep_reference=False)))
        loaded = dataclasses.replace(loaded, params=None)  # the state has its own: a copy less in host memory
        if not run.resumed:
            run.log({"step": 0} | heldout(state.params, 0))
        for step in run.steps():
            seconds = {}
            learnt = batch(examples, config, step)
            with timed(seconds, "update"):
                state, updated = update(state, learnt, step)
            row = {"step": step, "train/tokens": int(np.sum(learnt.completion_mask))} | updated
            if run.due(step, config.eval_every, row):
                with timed(seconds, "eval"):
                    row |= heldout(state.params, step)
            run.log(row | seconds, ("train/loss", "eval/greedy", "eval/sampled"))
            if run.due(step, config.save_every):
                run.save(state, meta)
        return run.finish(state, meta)


def batch(examples: Examples, config: FinetuneConfig, step: int) -> learner.Batch:
    """The rows of a step, from 1: a part of endless epochs over all rows, each in an order of its own. Advantage 1."""
    count, size = len(examples.index), config.batch_size
    places = np.arange((step - 1) * size, step * size)
    orders = {epoch: np.random.default_rng((config.seed, int(epoch))).permutation(count)
              for epoch in np.unique(places // count)}
    rows = np.array([orders[place // count][place % count] for place in places])
    return learner.Batch(examples.prompts, examples.index[rows], examples.completions[rows], examples.mask[rows],
                         np.ones(size, np.float32))


def read_examples(path: str, loaded: loading.LanguageModel) -> Examples:
    """The rows of a file. An end token is added to each completion, unless its row says that it was `truncated`.

    Raises UserError naming the file, the line and what is amiss.
    """
    file, tokenizer, pairs = pathlib.Path(path), loaded.tokenizer, []
    if not path or not file.is_file():
        raise UserError(f"--examples={path}: no such file; it takes a JSONL file of rows with prompt and completion")
    for number, row in read_lines(file):
        texts = row.get("prompt"), row.get("completion")
        where = f"{file}, line {number}"
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: needs a prompt and a completion, both text; it has {', '.join(row)}")
        if unknown := tokenizer.lacks(" ".join(texts).split()):
            raise UserError(f"{where}: this model's tokenizer has no word {unknown[0]!r}")
        end = [] if row.get("truncated") else [tokenizer.eos_ids[0]]
        prompt, completion = tokenizer.encode(texts[0]), tokenizer.encode(texts[1]) + end
        if len(prompt) + len(completion) > loaded.config.max_seq_len:
            raise UserError(f"{where}: {len(prompt)} tokens of prompt and {len(completion)} of completion are more "
                            f"than the model's window of {loaded.config.max_seq_len}; --window makes it longer")
        pairs.append((texts[0], prompt, completion))
    if not pairs:
        raise UserError(f"{file} holds no examples")
    distinct = {text: prompt for text, prompt, _ in pairs}
    place = {text: i for i, text in enumerate(distinct)}
    tokens, lengths = padded(list(distinct.values()), tokenizer.pad_id)
    completions, sizes = padded([completion for _, _, completion in pairs], 0)
    return Examples(list(distinct), Prompts(tokens, lengths), np.array([place[text] for text, _, _ in pairs], np.int32),
                    completions, np.arange(completions.shape[1]) < sizes[:, None])


def padded(rows: list[list[int]], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """(i32[N,T], i32[N] lengths), the rows filled up to the longest."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), filler, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths
