"""Supervised fine-tuning on prompts and completions. Only completions are learnt, by the update that all runs share."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np

from rlvr_jax import adapters, learner
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.grading import extract
from rlvr_jax.learner import OptimizerConfig, UpdateConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Batch, LoopConfig, Prompts
from rlvr_jax.runs.files import read_lines
from rlvr_jax.runs.machine import MachineConfig, ProcessConfig
from rlvr_jax.runs.run import Run, RunConfig
from rlvr_jax.sampler import Decoding, SamplingConfig, make_sampler
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, check_style, pad_rows
from rlvr_jax.training import kernels
from rlvr_jax.training.driver import SHOW, RunCallbacks, make_meta, train_supervised


class FinetuneConfig(Config):
    """Supervised fine-tuning on prompts and completions from a file."""

    run: RunConfig = RunConfig()
    machine: MachineConfig = MachineConfig()
    processes: ProcessConfig = ProcessConfig()
    choice: loading.ModelChoice = loading.ModelChoice()
    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    update: UpdateConfig = UpdateConfig()
    sampling: SamplingConfig = SamplingConfig()
    measured: measure.HeldoutConfig = measure.HeldoutConfig()
    prompt: PromptConfig = nested(
        PromptConfig(), instruction="text added after every held-out question that does not end with it already",
        ignore_columns="columns of the held-out file to ignore, joined by commas",
        max_prompt_tokens="longest held-out prompt, in tokens; 0: whatever the model's window leaves")
    examples: str = flag("", "JSONL file to learn from; each row has a prompt, exact to the space, and a completion")
    batch_size: int = flag(32, "rows per step, from shuffled epochs over all rows", minimum=1)
    window: int = flag(0, "window of the trained model (most tokens of prompt and completion), if longer than that of "
                       "--model; 0: as in --model", minimum=0)
    heldout: str = flag("none", "problems to measure on: a synthetic family, a file, or none", lambda: FAMILIES,
                        listed=True)
    answer_format: str = flag("auto", "where a completion of a held-out problem has its answer; auto: as in "
                              "the problem's family, or else lenient", lambda: {"auto": None} | extract.EXTRACTORS)


class Examples(NamedTuple):
    """N completions of P distinct prompts."""

    texts: list[str]  # P prompts
    prompts: Prompts  # [P,S]
    index: np.ndarray  # i32[N], the prompt of each completion
    completions: np.ndarray  # i32[N,T], 0 after the end
    mask: np.ndarray  # bool[N,T], true up to and including the end token


def finetune(config: FinetuneConfig) -> dict:
    """Trains --model on --examples and returns the summary, which is also `run_dir/summary.json`."""
    loaded = loading.load_model(config.choice.model, config.choice.dtype)
    window = max(loaded.config.max_seq_len, config.window)
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, max_seq_len=window))
    learner.micro_rows(config.update, config.batch_size, "--batch_size")  # raises UserError if rows do not divide
    kernels.check_kernel(config.update.attention, config.choice.dtype)
    examples = read_examples(config.examples, loaded)
    sample = make_sampler(loaded.config, Decoding(loaded.tokenizer.eos_ids, config.sampling.max_new_tokens,
                                                  config.sampling.num_slots))
    heldout = measure.Heldout(ProblemSource(config.heldout or "none", config.prompt), config.measured,
                              config.answer_format, config.loop.seed, config.sampling.max_new_tokens)
    check_style(heldout.source)
    # `train_supervised` takes the parameters out of this list, so that the host keeps no copy of them.
    params, loaded = [loaded.params], dataclasses.replace(loaded, params=None)
    with Run(config.run, config, config.loop.num_steps, "finetune") as run:
        evaluate = measure.make_heldout(heldout, loaded, sample, set(examples.texts), run.keep_heldout)
        meta = make_meta(config, loaded.config, loaded.tokenizer)
        callbacks = RunCallbacks(run, meta, lambda row: (row, []), SHOW, evaluate)  # a step has no rollouts to log
        return train_supervised(
            callbacks, config, loaded.config, lambda: adapters.merge(params.pop()),
            functools.partial(make_batch, examples, config.batch_size, config.loop.seed),
            lambda batch: {"train/tokens": int(np.sum(batch.completion_mask))})


def make_batch(examples: Examples, size: int, seed: int, step: int) -> Batch:
    """Returns the `size` examples of step `step` (from 1) in endless shuffled epochs. Every advantage is 1."""
    count = len(examples.index)
    positions = np.arange((step - 1) * size, step * size)
    orders = {epoch: np.random.default_rng((seed, int(epoch))).permutation(count)
              for epoch in np.unique(positions // count)}
    rows = np.array([orders[position // count][position % count] for position in positions])
    return Batch(examples.prompts, examples.index[rows], examples.completions[rows], examples.mask[rows],
                 np.ones(size, np.float32))


def read_examples(path: str, loaded: LanguageModel) -> Examples:
    """Reads the examples of a JSONL file. A completion gets an end token unless its row has a true "truncated".
    Raises UserError, naming file and line, for a row without texts, with unknown words, or too long for the model."""
    file, tokenizer, encoded = pathlib.Path(path), loaded.tokenizer, []
    if not file.is_file():
        raise UserError(f"--examples={path}: no such file; it takes a JSONL file of rows with prompt and completion")
    for number, row in read_lines(file):
        texts = row.get("prompt"), row.get("completion")
        where = f"{file}, line {number}"
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: needs a prompt and a completion, both text; it has {', '.join(row)}")
        if unknown := tokenizer.unknown_words(" ".join(texts).split()):
            raise UserError(f"{where}: this model's tokenizer has no word {unknown[0]!r}")
        end = [] if row.get("truncated") else [tokenizer.eos_ids[0]]
        prompt, completion = tokenizer.encode(texts[0]), tokenizer.encode(texts[1]) + end
        if len(prompt) + len(completion) > loaded.config.max_seq_len:
            raise UserError(f"{where}: {len(prompt)} tokens of prompt and {len(completion)} of completion are more "
                            f"than the model's window of {loaded.config.max_seq_len}; --window makes it longer")
        encoded.append((texts[0], prompt, completion))
    if not encoded:
        raise UserError(f"{file} holds no examples")
    distinct = {text: prompt for text, prompt, _ in encoded}  # text of each prompt -> its token ids
    prompt_index = {text: i for i, text in enumerate(distinct)}
    prompts = Prompts(*pad_rows(list(distinct.values()), tokenizer.pad_id))
    completions, lengths = pad_rows([completion for _, _, completion in encoded], 0)
    index = np.array([prompt_index[text] for text, _, _ in encoded], np.int32)
    return Examples(list(distinct), prompts, index, completions, np.arange(completions.shape[1]) < lengths[:, None])
