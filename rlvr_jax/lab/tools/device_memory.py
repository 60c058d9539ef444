"""Whether a training run fits: bytes on each device, item by item, without running it or allocating any of them.

Arguments (state, batch, prompts) are exact. Temporaries are counted array by array, with as many copies as XLA's CPU
compiler holds at once; a test compares both with `compiled.memory_analysis()`. XLA for TPU and GPU fuses more of a
layer's arithmetic and does not widen bfloat16: expect about as much there, or less.

Every device holds all parameters, optimiser state and reference; only completions are divided among devices.
"""

import dataclasses
import functools
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from rlvr_jax import adapters, grpo, model
from rlvr_jax.adapters import AdapterConfig
from rlvr_jax.errors import UserError
from rlvr_jax.grpo import GRPOConfig, Policy
from rlvr_jax.model import ModelConfig
from rlvr_jax.ops import RopeScaling
from rlvr_jax.pretrained import huggingface, loading
from rlvr_jax.records import Prompts, checked, replace, setting
from rlvr_jax.runs.files import read_json
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.training.train import TrainConfig

GIB = 2**30
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


@checked
class MemoryConfig:
    """The memory of a training run with these flags."""

    train: TrainConfig = TrainConfig()
    shape: str = setting("", "a published model in place of --model, by its shape: a row of the table SHAPES of "
                         "rlvr_jax/lab/tools/device_memory.py")
    num_problems: int = setting(1, "distinct problems trained on: more than one with --example=all", minimum=1)
    prompt_tokens: int = setting(0, "tokens of the longest prompt; 0: max_prompt_tokens, or what the model's window "
                                 "leaves", minimum=0)

    @property
    def rows(self) -> int:
        """Completions that a step learns from."""
        return self.train.grpo.num_prompts * self.train.grpo.learnt_size


class Machine(NamedTuple):
    """Devices of one kind, and the bytes of each that a program can use."""

    devices: int
    usable: int


# The TPU compiler leaves 15.75 of a v5e's 16 GiB, and 15.25 of each half of a v4's 32. Of what CUDA has of a GPU (T4
# 14.56 GiB, L4 about 22, A100 39.4, H100 79.6), 95 %: XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, where JAX itself takes 75 %.
MACHINES = {"T4, 16 GB": Machine(1, int(0.95 * 14.56 * GIB)), "L4, 24 GB": Machine(1, int(0.95 * 22 * GIB)),
            "A100, 40 GB": Machine(1, int(0.95 * 39.4 * GIB)),
            "TPU v5e-8": Machine(8, int(15.75 * GIB)), "TPU v4-8": Machine(4, int(30.5 * GIB)),
            "one H100": Machine(1, int(0.95 * 79.6 * GIB)), "eight H100": Machine(8, int(0.95 * 79.6 * GIB))}


def this_machine() -> Machine:
    """JAX's devices here. CPU devices share nine tenths of the RAM, or of what the container may have of it."""
    stats = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # the two versions of Linux' control groups
        path = pathlib.Path("/sys/fs/cgroup") / name
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []  # or "max"
    count = jax.local_device_count()
    return Machine(count, stats.get("bytes_limit") or int(0.9 * min(limits) / count))


EVAL_ROWS = 512  # completions that `evaluation.heldout` hands to the sampler at a time, over all devices


class Work(NamedTuple):
    """What one device has to do in a step."""

    rows: int  # completions of a step
    slots: int  # of them decoded at a time
    micro_rows: int  # of them in a micro-batch
    prompts: int  # distinct prompts, padded to prompt_tokens, that sampling prefills together
    micro_prompts: int  # of them in a micro-batch
    prompt_tokens: int
    new_tokens: int


def size(tree) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def work_of(config: MemoryConfig, shape: ModelConfig, devices: int) -> Work:
    """The step's completions spread over `devices`, with the prompts that `learner.lay_out` and the sampler give each.

    Raises UserError where they do not divide.
    """
    flags, sampling = config.train.grpo, config.train.grpo.sampling
    micro_rows = grpo.check(flags, devices)
    numbers = Prompts(np.zeros((config.num_problems, 1), np.int32), np.ones(config.num_problems, np.int32))

    def prompts(size, pieces, repeats):
        index = np.repeat(np.arange(flags.num_prompts) % config.num_problems, size)
        return model.localise(numbers, index, pieces, repeats)[0].lengths.shape[1]

    width = (config.prompt_tokens or config.train.source.prompt.max_prompt_tokens
             or shape.max_seq_len - sampling.max_new_tokens)
    rows = flags.num_prompts * flags.group_size // devices
    return Work(rows, min(sampling.num_slots or rows, rows), micro_rows,
                prompts(flags.group_size, devices, flags.group_size),
                prompts(flags.learnt_size, config.rows // micro_rows, 1), -(-width // 16) * 16, sampling.max_new_tokens)


@functools.cache
def base_of(shape: ModelConfig) -> model.Params:
    return jax.eval_shape(lambda: model.init_params(jax.random.key(0), shape))


def params_of(adapter: AdapterConfig, shape: ModelConfig) -> model.Params:
    """Shapes of the parameters, with the adapter."""
    return jax.eval_shape(lambda params: adapters.add(adapter, params, seed=0), base_of(shape))


def resident(config: GRPOConfig, shape: ModelConfig) -> dict[str, int]:
    """What stays on every device from the first step to the last."""
    state = jax.eval_shape(lambda params: grpo.initial_state(Policy(shape, params, ()), config), base_of(shape))
    return {"parameters": size(state.params), "Adam's two moments": size(state.opt_state),
            "reference": size(state.ref_params)}


def sampling(adapter: AdapterConfig, shape: ModelConfig, work: Work) -> dict[str, int]:
    """Temporaries of a call of the sampler."""
    bytes_, params, w = np.dtype(shape.dtype).itemsize, params_of(adapter, shape), work
    copied = size(params if bytes_ < 4 else params["layers"]) // 4 * bytes_  # a float32 embedding is read in place
    position = 2 * shape.num_kv_heads * shape.head_dim * bytes_  # a token's key and value in one layer
    seen = w.slots * (w.new_tokens + (w.prompt_tokens if w.prompts > 1 else 0))  # one prompt is not copied to the slots
    decoding = {"weights as the decoding loop reads them": copied,
                "key-value cache of the slots": shape.num_layers * w.slots * w.new_tokens * position,
                "one layer at work": seen * position
                + 3 * 4 * w.slots * shape.num_heads * (w.prompt_tokens + w.new_tokens),
                "logits": 3 * 4 * w.slots * shape.vocab_size}
    prefill = layer_bytes(shape, w.prompts, w.prompt_tokens, 0, backward=False)
    return {"prompts and row numbers": w.prompts * (4 * w.prompt_tokens + 4) + 8 * w.rows + 4 * 4,  # 4 scalars
            "prompts' keys and values": shape.num_layers * w.prompts * w.prompt_tokens * position,
            "completions": w.rows * w.new_tokens * (4 + 4 + 1), **decoding,
            "prefill, where it needs more": max(0, prefill - sum(decoding.values()))}


def layer_bytes(shape: ModelConfig, rows: int, tokens: int, prompt_tokens: int, backward: bool) -> int:
    """One layer of a forward pass, or its recomputation and backward pass, over `rows` whole rows."""
    bytes_, positions = np.dtype(shape.dtype).itemsize, rows * tokens
    scores = 4 * shape.num_heads * positions * (prompt_tokens + tokens)
    widths = shape.d_model + (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    feed_forward = positions * shape.d_ff * bytes_
    if not backward:
        return 3 * scores + 2 * positions * widths * bytes_ + 3 * feed_forward
    return 4 * scores + 4 * positions * widths * bytes_ + 6 * feed_forward


def update(config: GRPOConfig, shape: ModelConfig, work: Work) -> dict[str, int]:
    """Temporaries of an optimiser update: of one micro-batch, and the sum of those before it.

    The gradients of the layers come thrice: the sum, the micro-batch's through its completions, and through its
    prompts, whose keys and values the completions look at. Only what is trained has any.
    """
    bytes_, params, w = np.dtype(shape.dtype).itemsize, params_of(config.adapter, shape), work
    trained = adapters.split(params)[0]
    moved = {name: x for name, x in params["layers"].items()
             if config.adapter.trainable == "all" or name.endswith(adapters.TRAINED)}
    position = 2 * shape.num_kv_heads * shape.head_dim * bytes_
    positions = w.micro_rows * w.new_tokens + w.micro_prompts * w.prompt_tokens
    one_layer = layer_bytes(shape, w.micro_rows, w.new_tokens, w.prompt_tokens, backward=True)
    kept = (positions * shape.d_model * bytes_ if config.update.remat else
            layer_bytes(shape, w.micro_rows, w.new_tokens, w.prompt_tokens, backward=False))
    token = 4 + 1 + 4 + 4 * config.measure_kl + 4 * (config.updates_per_batch > 1)  # id, mask, log-probabilities
    batch = w.micro_rows * (4 + 4 + token * w.new_tokens) + w.micro_prompts * (4 + 4 * w.prompt_tokens)
    targets = w.micro_rows * w.new_tokens
    chunk = -(-targets // -(-targets // max(1, config.update.max_logits // shape.vocab_size)))
    return {"batch": config.update.grad_accumulation * batch + 4,  # and the number of the step
            "summed gradients": size(trained),
            "a micro-batch's gradients": size(trained),
            "its gradients through the prompts": size(moved),
            "kept for the backward pass": shape.num_layers * kept,
            "prompts' keys and values, there and back": 2 * shape.num_layers * w.micro_prompts * w.prompt_tokens
            * position,
            "a layer's weights, there and back": size(params["layers"]) // shape.num_layers * bytes_ // 4
            + size(moved) // shape.num_layers,
            "one layer at work": one_layer,
            "logits, where they need more": max(0, 4 * 4 * chunk * shape.vocab_size - one_layer)}


def phases(config: MemoryConfig, shape: ModelConfig, devices: int) -> dict[str, dict[str, int]]:
    """Bytes on one device, item by item: what is always there, and what each phase of a run adds.

    At the start the state is there as it was made and as the devices are to hold it. The reference's forward pass adds
    less than the update.
    """
    flags, work = config.train.grpo, work_of(config, shape, devices)
    state = resident(flags, shape)
    by_phase = {"always": state, "start": {"the state again": sum(state.values())},
                "sampling": sampling(flags.adapter, shape, work), "update": update(flags, shape, work)}
    if config.train.heldout not in ("", "none"):
        rows = -(-min(config.train.measured.eval_size or EVAL_ROWS, EVAL_ROWS) // devices)
        work = work._replace(rows=rows, slots=min(work.slots, rows), prompts=rows)
        by_phase["evaluation"] = sampling(flags.adapter, shape, work)
    return by_phase


def peaks(config: MemoryConfig, shape: ModelConfig, devices: int) -> dict[str, int]:
    """Bytes on one device in each phase, with what is always there."""
    sums = {name: sum(items.values()) for name, items in phases(config, shape, devices).items()}
    return {name: sums["always"] + added for name, added in sums.items() if name != "always"}


def largest_that_fit(config: MemoryConfig, shape: ModelConfig, machine: Machine) -> MemoryConfig:
    """The flags with the largest micro-batch and the most slots that fit, or with 1 of what does not fit at all."""
    rows = config.rows // machine.devices
    sampled = rows * config.train.grpo.group_size // config.train.grpo.learnt_size
    choices = {"update": [{"grad_accumulation": n} for n in range(1, rows + 1)
                          if rows % (n * config.train.grpo.update.num_minibatches) == 0],
               "sampling": [{"num_slots": sampled >> i} for i in range(sampled.bit_length())]}
    for phase, options in choices.items():
        fitting = (option for option in options if machine.usable >= peaks(
            replace(config, **option), shape, machine.devices)[phase])
        config = replace(config, **next(fitting, options[-1]))
    return config


def fitted(config: MemoryConfig, shape: ModelConfig, machine: Machine) -> MemoryConfig:
    """The flags as they are where they fit, else the largest that do."""
    update = config.train.grpo.update
    fits = config.rows % (machine.devices * update.num_minibatches * update.grad_accumulation) == 0 and (
        max(peaks(config, shape, machine.devices).values()) <= machine.usable)
    return config if fits else largest_that_fit(config, shape, machine)


def shape_of(config: MemoryConfig) -> ModelConfig:
    """The model that the flags name; of a Hugging Face folder only config.json is read."""
    choice = config.train.choice
    if bool(config.shape) == bool(choice.model) or config.shape not in ("", *SHAPES):
        raise UserError(f"name one model: --model=M, or --shape= one of {', '.join(SHAPES)}")
    file = pathlib.Path(choice.model) / "config.json"
    shape = (SHAPES[config.shape] if config.shape else
             huggingface.config_from_hugging_face(read_json(file), file) if file.is_file() else
             loading.load_model(choice.model).config)
    return dataclasses.replace(shape, dtype=choice.dtype)


def run(config: MemoryConfig) -> str:
    """A Markdown table of GB (10^9 bytes) on each device of `MACHINES` and this machine, and a verdict on each.

    Both are of the flags as they are where they fit, else of those with the largest micro-batch and the most slots that
    do. Raises UserError where the completions divide into minibatches on no machine.
    """
    shape, rows, update = shape_of(config), config.rows, config.train.grpo.update
    grpo.check(replace(config.train.grpo, grad_accumulation=1), devices=1)
    every = MACHINES | {"this machine": this_machine()}
    machines = {name: machine for name, machine in every.items()
                if rows % (machine.devices * update.num_minibatches) == 0}
    flags = {name: fitted(config, shape, machine) for name, machine in machines.items()}
    tables = [phases(flags[name], shape, machine.devices) for name, machine in machines.items()]
    sums = [peaks(flags[name], shape, machine.devices) for name, machine in machines.items()]

    def gigabytes(values):
        return [f"{value / 1e9:.2f}" for value in values]

    lines = [["devices", *(machine.devices for machine in machines.values())],
             ["usable", *gigabytes(machine.usable for machine in machines.values())],
             ["--grad_accumulation", *(used.train.grpo.update.grad_accumulation for used in flags.values())],
             ["--num_slots", *(used.train.grpo.sampling.num_slots for used in flags.values())]]
    for phase, items in tables[0].items():
        if phase != "always":
            lines.append([f"**{x}**" for x in (phase, *gigabytes(total[phase] for total in sums))])
        lines += [[item, *gigabytes(table[phase][item] for table in tables)] for item in items]
    verdicts = [f"- {name}: " + (verdict(flags[name], shape, machine) if name in flags else
                                 f"{rows} completions do not divide into {machine.devices} devices x "
                                 f"--num_minibatches={update.num_minibatches}") for name, machine in every.items()]
    return "\n".join([markdown_table(["GB on each device", *machines], lines), "", *verdicts])


def verdict(config: MemoryConfig, shape: ModelConfig, machine: Machine) -> str:
    """Whether these flags fit the machine, in one line, and if not what is too much for it."""
    sums = peaks(config, shape, machine.devices)
    if max(sums.values()) <= machine.usable:
        return (f"{max(sums.values()) / 1e9:.1f} of {machine.usable / 1e9:.1f} GB with "
                f"--grad_accumulation={config.train.grpo.update.grad_accumulation} "
                f"--num_slots={config.train.grpo.sampling.num_slots}")
    over = ", ".join(f"{phase} {total / 1e9:.1f} GB" for phase, total in sums.items() if total > machine.usable)
    table = phases(config, shape, machine.devices)
    whole = sum(table["always"].values()) + sum(x for item, x in table["update"].items() if "gradients" in item)
    shard = f"; state and gradients are {whole / 1e9:.1f} GB, whole on each, and would have to be divided among devices"
    return f"does not fit in {machine.usable / 1e9:.1f} GB: {over}" + shard * (whole > machine.usable)
