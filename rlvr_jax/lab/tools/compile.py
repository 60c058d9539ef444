"""Whether a training run fits a chip that is not here, and how fast it could be there: its programs, compiled for it.

They are lowered from shapes alone, as `grpo.compile_programs` makes them. A peak is what the compiler says of one
program, with what stays beside it on the device. The time is a bound, the roofline's: the chip's published operations
and bytes a second, and completions as long as they may be. Nothing is run, and wires between devices are not counted.
"""

import bisect
import dataclasses
import pathlib
import re
import time
from typing import Callable, NamedTuple, Optional

import jax
import numpy as np

from rlvr_jax import grpo, learner, model, parallel
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import heldout_names
from rlvr_jax.grpo import GRPOConfig, Policy
from rlvr_jax.lab.tools import chips, cost
from rlvr_jax.lab.tools.chips import CHIPS, Chip
from rlvr_jax.model import ModelConfig
from rlvr_jax.ops import RopeScaling
from rlvr_jax.pretrained import huggingface, loading
from rlvr_jax.records import Batch, Prompts, checked, replace, setting
from rlvr_jax.runs.files import read_json
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks import families
from rlvr_jax.training import pretrain
from rlvr_jax.training.train import TrainConfig

_QWEN = dict(max_seq_len=4096, rope_theta=10_000.0, qkv_bias=True)
# The published shapes, by the names of their Hugging Face repositories in lower case.
SHAPES = {
    "qwen2.5-math-1.5b": ModelConfig(vocab_size=151_936, num_layers=28, d_model=1536, num_heads=12, num_kv_heads=2,
                                     head_dim=128, d_ff=8960, **_QWEN),
    "qwen2.5-math-7b": ModelConfig(vocab_size=152_064, num_layers=28, d_model=3584, num_heads=28, num_kv_heads=4,
                                   head_dim=128, d_ff=18_944, tie_embeddings=False, **_QWEN),
    "llama-3.2-3b-instruct": ModelConfig(vocab_size=128_256, num_layers=28, d_model=3072, num_heads=24, num_kv_heads=8,
                                         head_dim=128, d_ff=8192, max_seq_len=131_072, rope_theta=500_000.0,
                                         rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), norm_eps=1e-5),
}
EVAL_ROWS = 512  # completions that `evaluation.heldout` hands to the sampler at a time, over all devices


@checked
class CompileConfig:
    """The programs of a training run with these flags, compiled for a chip."""

    train: TrainConfig = TrainConfig()
    chip: str = setting("", "chips to compile for, rows of the table CHIPS of rlvr_jax/lab/tools/chips.py, joined by "
                        "commas; empty: say what stays on each device, which needs no compiler", lambda: CHIPS,
                        listed=True)
    shape: str = setting("", "a published model in place of --model, by its shape: a row of the table SHAPES of "
                         "rlvr_jax/lab/tools/compile.py; without either it is the tiny base")
    num_problems: int = setting(1, "distinct problems trained on: more than one with --example=all", minimum=1)
    prompt_tokens: int = setting(0, "tokens of the longest prompt; 0: max_prompt_tokens, or what the model's window "
                                 "leaves", minimum=0)
    fit: bool = setting(False, "find the largest micro-batch and the most slots that fit")


class Program(NamedTuple):
    """One that a run calls: what can be compiled, and the shapes of its arguments, the first of them of the state."""

    mapped: Callable
    args: tuple
    tokens: int  # that a call draws or learns from, on all devices
    rounds: int  # of the loop over tokens that are drawn


class Compiled(NamedTuple):
    """What the compiler says of a program, on each device."""

    seconds: float
    peak: float  # bytes, with what stays beside it
    flops: float
    cost: Optional[cost.Cost]  # None: refused for its memory


def size(tree) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def shape_of(config: CompileConfig) -> ModelConfig:
    """The model that the flags name; of a Hugging Face folder only config.json is read."""
    choice = config.train.choice
    if config.shape not in ("", *SHAPES):
        raise UserError(f"--shape={config.shape}: no such shape; known are {', '.join(SHAPES)}")
    file = pathlib.Path(choice.model) / "config.json"
    if config.shape:
        shape = SHAPES[config.shape]
    elif file.is_file():
        shape = huggingface.config_from_hugging_face(read_json(file), file)
    elif choice.model:
        shape = loading.load_model(choice.model).config
    else:
        shares = {"arithmetic": 1.0}
        shape = pretrain.shape_of(pretrain.PretrainConfig(), shares, families.make_tokenizer(shares))
    return dataclasses.replace(shape, dtype=choice.dtype)


def state_of(config: GRPOConfig, shape: ModelConfig, devices: int):
    """The shapes of a run's state as it lies on the devices."""
    params = jax.eval_shape(lambda: model.init_params(jax.random.key(0), shape))
    state = jax.eval_shape(lambda params: grpo.initial_state(Policy(shape, params, ()), config), params)
    return parallel.placed_shapes(state, devices, config.update.divide_state)


def resident(config: GRPOConfig, shape: ModelConfig, devices: int) -> dict[str, int]:
    """Bytes that stay on each device from the first step to the last."""
    state = state_of(config, shape, devices)
    parts = {"parameters": state.params, "moments": state.opt_state, "reference": state.ref_params}
    return {name: size(part) // devices for name, part in parts.items()}


def prompt_width(config: CompileConfig, shape: ModelConfig) -> int:
    """Positions of a prompt, a multiple of 16. UserError where completions leave it none."""
    tokens = config.train.grpo.sampling.max_new_tokens
    width = config.prompt_tokens or config.train.source.prompt.max_prompt_tokens or shape.max_seq_len - tokens
    if not 0 < width <= shape.max_seq_len - tokens:
        raise UserError(f"--max_new_tokens={tokens} leave no room for a prompt of {width} tokens in the model's window "
                        f"of {shape.max_seq_len}; lower one of them, or name another model by --shape or --model")
    return -(-width // 16) * 16


def programs_of(config: CompileConfig, shape: ModelConfig, devices: list) -> dict[str, Program]:
    """The programs of a run on these devices, with the arguments that the run would hand them."""
    flags, count, size = config.train.grpo, len(devices), config.train.grpo.learnt_size
    grpo.check(flags, count)
    state, made = state_of(flags, shape, count), grpo.compile_programs(Policy(shape, None, (0,)), flags, devices)
    tokens, pieces = flags.sampling.max_new_tokens, flags.update.num_minibatches
    prompts = Prompts(np.zeros((config.num_problems, prompt_width(config, shape)), np.int32),
                      np.ones(config.num_problems, np.int32))

    def sampling(prompts: Prompts, index, repeats: int) -> Program:
        rows = -(-len(index) // count)
        local, index = model.localise(prompts, np.resize(index, rows * count), count, repeats)
        scalars = [np.zeros(count, kind) for kind in [np.int32] * 3 + [np.float32] * 2]
        turns = -(-rows // min(flags.sampling.num_slots or rows, rows))
        return Program(made.sample.mapped, (state.params, local, index, index, *scalars), rows * count * tokens,
                       turns * tokens)

    def batch(parts: int) -> Batch:
        index = np.repeat(np.arange(flags.num_prompts) % config.num_problems, size)
        index = index[: len(index) // parts].astype(np.int32)
        numbers = np.zeros((len(index), tokens), np.float32)
        many = flags.updates_per_batch > 1
        whole = Batch(prompts, index, numbers.astype(np.int32), numbers > 0, numbers[:, 0], numbers,
                      numbers if many else None, numbers if flags.measure_kl else None)
        return learner.lay_out(whole, count, flags.update.grad_accumulation * pieces // parts)

    learnt, groups = flags.num_prompts * size * tokens, np.arange(flags.num_prompts) % config.num_problems
    found = {"sampling": sampling(prompts, np.repeat(groups, flags.group_size), flags.group_size)}
    if flags.measure_kl or flags.updates_per_batch > 1:
        params = learner.reference(state) if flags.measure_kl else state.params
        scored = batch(1).replace(ref_logprobs=None, old_logprobs=None)
        found["log-probabilities"] = Program(made.logprobs.mapped, (params, scored), learnt, 0)
    found["update"] = Program(made.update.mapped, (state, batch(pieces), np.zeros(count, np.int32)), learnt // pieces,
                              0)
    asked = "question" if config.train.pool.question else config.train.source.problems
    if heldout_names(config.train.heldout, asked) != "none":
        rows = min(config.train.measured.eval_size or EVAL_ROWS, EVAL_ROWS)
        found["evaluation"] = sampling(jax.tree.map(lambda x: np.resize(x, (rows, *x.shape[1:])), prompts),
                                       np.arange(rows), 1)
    return found


def compiled(program: Program, chip: Chip, beside: int) -> Compiled:
    """The program, compiled for the chip; `beside` are bytes that stay on each device and that it does not read."""
    buckets = [64 * 2**i for i in range(24) if 64 * 2**i < program.tokens]
    weights = [1.0]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.args)
    begun = time.monotonic()
    flops = cost.flops(jax.make_jaxpr(program.mapped)(*shapes).jaxpr, program.rounds, weights)
    try:
        made = program.mapped.lower(*shapes).compile(compiler_options=chips.OPTIONS if chip.gpu else None)
    except jax.errors.JaxRuntimeError as error:
        print(error)
        raise
    seconds = time.monotonic() - begun
    return Compiled(seconds, made.memory_analysis().peak_memory_in_bytes + beside, flops,
                    cost.counted(made.as_text(), program.rounds, weights))
