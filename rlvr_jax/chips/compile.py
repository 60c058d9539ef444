"""Compiles a training run's programs for a chip that you need not have: whether they fit, and how fast they could be.

The programs of `grpo.compile_programs` are lowered from shapes alone; nothing is run. A program's peak memory is what
the compiler reports, plus the part of the state that is not an argument of the program. The least time of a call is
the roofline bound by the chip's published FLOP/s and bandwidth, without communication: once for completions of the full
length, once for 40 % of it on average. A state below `here.CACHED` bytes gets no time, because caches may hold it.
"""

import bisect
import dataclasses
import functools
import importlib.metadata
import math
import pathlib
import re
import time
from typing import Callable, NamedTuple, Optional

import jax
import numpy as np

from rlvr_jax import grpo, learner, model, parallel
from rlvr_jax.chips import cost, here, published
from rlvr_jax.chips.loads import POWERS, Load, decoding, learning, lengths
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import heldout_names
from rlvr_jax.grpo import GRPOConfig, Policy
from rlvr_jax.model import ModelConfig
from rlvr_jax.ops import ATTENTION, RopeScaling
from rlvr_jax.pretrained import huggingface, loading
from rlvr_jax.records import Batch, Prompts
from rlvr_jax.runs import files
from rlvr_jax.runs.machine import num_bytes
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.sampler import MOST_SLOTS, Request
from rlvr_jax.tasks import families
from rlvr_jax.training import pretrain
from rlvr_jax.training.train import TrainConfig

_QWEN = dict(max_seq_len=4096, rope_theta=10_000.0, qkv_bias=True)
# The shapes of published models, by the lower-case names of their Hugging Face repositories.
SHAPES = {
    "qwen2.5-math-1.5b": ModelConfig(vocab_size=151_936, num_layers=28, d_model=1536, num_heads=12, num_kv_heads=2,
                                     head_dim=128, d_ff=8960, **_QWEN),
    "qwen2.5-math-7b": ModelConfig(vocab_size=152_064, num_layers=28, d_model=3584, num_heads=28, num_kv_heads=4,
                                   head_dim=128, d_ff=18_944, tie_embeddings=False, **_QWEN),
    "llama-3.2-3b-instruct": ModelConfig(vocab_size=128_256, num_layers=28, d_model=3072, num_heads=24, num_kv_heads=8,
                                         head_dim=128, d_ff=8192, max_seq_len=131_072, rope_theta=500_000.0,
                                         rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), norm_eps=1e-5),
}
EVAL_ROWS = 512  # completions that `measure.measure_heldout` samples in one call, over all devices
LORA = {"trainable": "lora", "adapter_rank": 16, "params_dtype": "bfloat16"}  # flags for --fit if nothing else fits


class CompileConfig(Config):
    """The programs of a training run with these flags, compiled for a chip."""

    train: TrainConfig = TrainConfig()
    chip: str = flag("", "chips to compile for, joined by commas; empty: print the state's memory on every known "
                     "chip, which needs no compiler; here: print which chip this machine has, and the results "
                     "recorded for it", lambda: published.CHIPS, listed=True)
    shape: str = flag("", "published model that replaces --model: a row of the table SHAPES in "
                      "rlvr_jax/chips/compile.py; without either flag, the tiny base model")
    num_problems: int = flag(1, "number of distinct training problems; more than one with --example=all", minimum=1)
    prompt_tokens: int = flag(0, "tokens of the longest prompt; 0: --max_prompt_tokens, or if that is 0, the model's "
                              "window minus --max_new_tokens", minimum=0)
    name_flagfile: bool = flag(False, "with --chip=here: print only the flag file for this machine")
    fit: bool = flag(False, "find the largest micro-batch and the most decoding slots that fit; if none do, try LoRA")
    out: str = flag("", "JSON file for the results")
    page: str = flag("", "Markdown page of the scripts.compile commands in the comments of configs/**/*.flags: runs "
                     "those whose results are not in the .json file beside the page; other flags are ignored")


class Program(NamedTuple):
    """A program that a run calls."""

    mapped: Callable  # the pmapped function
    args: tuple  # its arguments, as arrays or shapes; the first is the training state or its parameters
    tokens: int  # tokens that one call samples or learns from, over all devices
    loads: list[Load]  # how often its loops and branches run, for completions of full length and of 40 % on average


def shape_of(config: CompileConfig) -> ModelConfig:
    """Returns the ModelConfig of --shape, else of --model, else of the tiny base model, with --dtype. Of a Hugging Face
    folder it reads only config.json. Raises UserError for an unknown --shape."""
    choice = config.train.choice
    file = pathlib.Path(choice.model) / "config.json"
    if config.shape not in ("", *SHAPES):
        raise UserError(f"--shape={config.shape}: no such shape; known are {', '.join(SHAPES)}")
    if config.shape:
        shape = SHAPES[config.shape]
    elif file.is_file():
        shape = huggingface.config_from_hugging_face(files.read_json(file), file)
    elif choice.model:
        shape = loading.load_model(choice.model).config
    else:
        shares = {"arithmetic": 1.0}  # task family -> its share of the tiny base model's training text
        shape = pretrain.make_model_config(pretrain.PretrainConfig(), shares, families.make_tokenizer(shares))
    return dataclasses.replace(shape, dtype=choice.dtype)


def state_of(config: GRPOConfig, shape: ModelConfig, devices: int):
    """Returns a run's LearnerState as `jax.ShapeDtypeStruct`s [devices, ...], those of divided leaves in `Shard`s."""
    params = jax.eval_shape(lambda: model.init_params(jax.random.key(0), shape))
    state = jax.eval_shape(lambda params: grpo.initial_state(Policy(shape, params, ()), config), params)

    def place(x, divisible: bool):
        dims, divided = [devices, *x.shape], config.update.divide_state and divisible
        if divided:
            dims[-2] //= devices
        leaf = jax.ShapeDtypeStruct(dims, x.dtype)
        return parallel.Shard(leaf) if divided else leaf
    return jax.tree.map(place, state, parallel.divided_leaves(state, devices))


def state_bytes(config: GRPOConfig, shape: ModelConfig, devices: int) -> int:
    """Returns the bytes of the state on each device: parameters, Adam's moments and the reference parameters."""
    return num_bytes(state_of(config, shape, devices)) // devices


def prompt_width(config: CompileConfig, shape: ModelConfig) -> int:
    """Returns the tokens of a padded prompt, a multiple of 16. Raises UserError if completions leave no room for it."""
    tokens = config.train.grpo.sampling.max_new_tokens
    width = config.prompt_tokens or config.train.source.prompt.max_prompt_tokens or shape.max_seq_len - tokens
    if not 0 < width <= shape.max_seq_len - tokens:
        raise UserError(f"--max_new_tokens={tokens} leave no room for a prompt of {width} tokens in the model's window "
                        f"of {shape.max_seq_len}; lower one of them, or name another model by --shape or --model")
    return -(-width // 16) * 16


def make_program(tokens: int, loads: list[Load], fn: Callable, *args) -> Program:
    """Runs `fn(*args)` up to its first call of a pmapped function, and returns the Program of that call. It raises
    NotRun, because `fn` was created inside `parallel.compiling_for`. `tokens` and `loads` are fields of Program."""
    try:
        fn(*args)
    except parallel.NotRun as call:
        return Program(*call.args, tokens, loads)  # call.args: (the pmapped function, its arguments)
    raise AssertionError("fn called no function that was pmapped inside parallel.compiling_for")


def programs_of(config: CompileConfig, shape: ModelConfig, devices: list) -> dict[str, Program]:
    """Returns {name: Program} for these devices: "sampling", "update", and "log-probabilities" and "evaluation" if the
    run needs them. Raises UserError if the rows of a step do not divide among devices and micro-batches."""
    flags, count, length = config.train.grpo, len(devices), config.train.grpo.sampling.max_new_tokens
    minibatches, micro = flags.update.num_minibatches, flags.update.grad_accumulation
    width, state = prompt_width(config, shape), state_of(flags, shape, count)
    groups = np.arange(flags.num_prompts, dtype=np.int32) % config.num_problems  # the problem of each group

    def prompts(number: int) -> Prompts:
        return Prompts(np.zeros((number, width), np.int32), np.ones(number, np.int32))

    def sampling(sample: Callable, num_problems: int, groups, group_size: int) -> Program:
        index, request = np.repeat(groups, group_size), Request(seed=0, step=0, repeats=group_size)
        rows, layout = -(-len(index) // count), model.LAYOUTS.get(devices[0].platform, model.Layout())  # of a device
        slots, attend = flags.sampling.num_slots, ATTENTION[flags.update.attention].cache
        loads = [decoding(lengths(rows, length, power), slots, length, layout, attend) for power in POWERS]
        return make_program(rows * count * length, loads, sample, state.params, prompts(num_problems), index, request)

    def batch(rows: int, power=0.0, old=False, reference=False) -> Batch:  # with old or reference log-probabilities
        index, zeros = np.repeat(groups, flags.loss_group_size)[:rows], np.zeros((rows, length), np.float32)
        mask = np.arange(length) < lengths(rows, length, power)[:, None]
        return Batch(prompts(config.num_problems), index, zeros.astype(np.int32), mask, zeros[:, 0], zeros,
                     old_logprobs=zeros if old else None, ref_logprobs=zeros if reference else None)

    def learn(rows: int, micro_batches: int, fn: Callable, *args) -> Program:
        loads = [learning(batch(rows, power), count, micro_batches) for power in POWERS]
        return make_program(rows * length, loads, fn, *args)

    rows, need_old = flags.num_prompts * flags.loss_group_size, flags.update.updates_per_batch > 1
    with parallel.compiling_for(devices):
        compiled = grpo.compile_programs(Policy(shape, None, (0,)), flags)
        programs = {"sampling": sampling(compiled.sample, config.num_problems, groups, flags.group_size)}
        if flags.measure_kl or need_old:
            params = learner.reference(state) if flags.measure_kl else state.params
            programs["log-probabilities"] = learn(rows, micro * minibatches, compiled.logprobs, params, batch(rows))
        learnt = batch(rows, old=need_old, reference=flags.measure_kl)  # `update` calls its program per minibatch
        programs["update"] = learn(rows // minibatches, micro, compiled.update, state, learnt, 0)
        source = "question" if config.train.pool.question else config.train.source.problems
        if heldout_names(config.train.heldout, source) != "none":
            eval_rows = min(config.train.measured.eval_size or EVAL_ROWS, EVAL_ROWS)
            programs["evaluation"] = sampling(compiled.sample, EVAL_ROWS, np.arange(eval_rows), group_size=1)
    return programs


@functools.cache
def compile_program(config: CompileConfig, name: str, which: str) -> dict:
    """Compiles the program `which` of `programs_of` for the chip `name`. Returns a dict: CPU "seconds" of compiling, a
    device's "peak" bytes, and for one call: "flops", the fields of `cost.Cost`, such as "bytes", the least seconds,
    "best" for the full length and "at_40" for 40 % of it, "tokens" per second at "best", seconds "by_cycles" (0: not
    estimated). If the compiler fails: "seconds", its message "refused", and the "peak" according to it, or None."""
    chip, shape = published.named(name), shape_of(config)
    program = programs_of(config, shape, published.devices(chip))[which]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.args)
    beside = state_bytes(config.train.grpo, shape, chip.devices) - num_bytes(program.args[0]) // chip.devices
    start = time.process_time()
    try:
        compiled = program.mapped.lower(*shapes).compile(compiler_options=chip.options)
    except jax.errors.JaxRuntimeError as error:
        required = re.search(r"required.*?\(([\d.]+)G\) exceeds", str(error))
        return {"seconds": time.process_time() - start, "refused": str(error).splitlines()[0],
                "peak": float(required[1]) * published.GIB + beside if required else None}
    seconds = time.process_time() - start
    peaks = [chip.peak["float32"], chip.peak[shape.dtype]]  # FLOP/s for each of the two numbers of `cost.flops`
    jaxpr, cost_of = jax.make_jaxpr(program.mapped)(*shapes).jaxpr, cost.parse_cost(compiled.as_text())
    costs = [(cost.flops(jaxpr, *load), cost_of(*load)) for load in program.loads]
    best, at_40 = (max(sum(flops / peaks), moved.bytes / chip.bandwidth) for flops, moved in costs)
    flops, longest = costs[0]  # for completions of the full length, POWERS[0]
    return {"seconds": seconds, "peak": compiled.memory_analysis().peak_memory_in_bytes + beside, "flops": sum(flops),
            "best": best, "at_40": at_40, "by_cycles": longest.cycles and longest.cycles / chip.clock,
            "tokens": program.tokens / best, **longest._asdict()}


def fit_flags(config: CompileConfig, name: str) -> CompileConfig:
    """Returns `config` with the largest micro-batch and the most slots that fit the chip; the smallest if none fits."""
    flags, chip = config.train.grpo, published.named(name)
    with parallel.compiling_for(published.devices(chip)):
        rows = grpo.check(flags.with_flags(grad_accumulation=1))
    sampled = -(-flags.num_prompts * flags.group_size // chip.devices)
    choices = {"update": [{"grad_accumulation": n} for n in range(rows, 0, -1) if rows % n == 0],
               "sampling": [{"num_slots": 1 << i} for i in range(sampled.bit_length())]}
    for which, options in choices.items():  # options are in the order of growing memory
        def is_too_large(option: dict) -> bool:
            return (compile_program(config.with_flags(**option), name, which)["peak"] or math.inf) > chip.usable
        num_fitting = bisect.bisect_left(options, True, key=is_too_large)  # compiles only some of the options
        config = config.with_flags(**options[max(num_fitting - 1, 0)])
    return config


def remedies(config: CompileConfig, chip: published.Chip, shape: ModelConfig) -> str:
    """Returns the end of a verdict, "; could fit with ...", or "": flags with which the state would take less than half
    of a device's memory, and --fit if it was not given."""
    flags, ways = config.train.grpo, []
    lora = state_bytes(flags.with_flags(**LORA), shape, chip.devices)
    if flags.adapter.trainable == "all" and lora < chip.usable / 2:
        ways.append(f"{format_flags(LORA)} (a state of {lora / 1e9:.1f} GB)")
    fewest = chip.devices + flags.update.divide_state  # a state that is divided already needs more devices than now
    sizes = {count: state_bytes(flags.with_flags(divide_state=True), shape, count) for count in (2, 4, 8, 16)
             if count >= fewest}
    ways += [f"--divide_state over {count} such devices ({size / 1e9:.1f} GB each)" for count, size in sizes.items()
             if size < chip.usable / 2][:1]  # the fewest devices that are enough
    ways += [] if config.fit else ["what --fit finds"]
    return f"; could fit with {', or '.join(ways)}" if ways else ""


def step_seconds(programs: dict, calls: dict[str, int], column: str) -> Optional[float]:
    """Returns the least seconds of a training step that calls each program as often as `calls` says; None if a program
    has no estimate. `column` is "best" (completions of full length) or "at_40" (of 40 % of it)."""
    times = {which: programs[which].get(column) for which, count in calls.items() if count}
    return sum(calls[which] * time for which, time in times.items()) if all(times.values()) else None


def compile_for_chip(config: CompileConfig, name: str) -> dict:
    """Compiles a run's programs for the chip `name`. Returns the chip's record for --out: `compile_program`'s results
    under "programs", a step's least seconds (None: unknown), and more. With --fit, tries LoRA if nothing else fits."""
    chip, shape = published.named(name), shape_of(config)
    state = state_bytes(config.train.grpo, shape, chip.devices)
    start = state if config.train.grpo.update.divide_state else 2 * state  # the original and the first device's copy
    slots = config.train.grpo.sampling.num_slots or MOST_SLOTS.get(name, 0)  # a run reads this off its device
    config = config.with_flags(num_slots=slots)
    config = fit_flags(config, name) if config.fit and start <= chip.usable else config
    flags, programs = config.train.grpo, {"start": {"peak": start}}  # memory while the state is created and copied
    with parallel.compiling_for(published.devices(chip)):
        micro_rows = grpo.check(flags)
    for which in programs_of(config, shape, published.devices(chip)):
        programs[which] = compile_program(config, name, which)
    calls = {"sampling": 1, "log-probabilities": flags.measure_kl + (flags.update.updates_per_batch > 1),
             "update": flags.update.updates_per_batch}
    step, at_40 = (step_seconds(programs, calls, column) for column in ("best", "at_40"))
    peaks = {which: program["peak"] for which, program in programs.items()}  # None: the compiler failed, size unknown
    over = [f"{which}, {peak / 1e9:.1f} GB" if peak else f"{which}, which the compiler gives up"
            for which, peak in peaks.items() if (peak or math.inf) > chip.usable]
    largest = max(peak or 0 for peak in peaks.values())  # of known sizes: LoRA and `remedies` are about these
    pace = f", at best {step:.3g} s a step, {at_40:.3g} at 40 % of the longest" if step and state >= here.CACHED else ""
    verdict = (f"does not fit in {chip.usable / 1e9:.1f} GB: {'; '.join(over)}" if over else
               f"fits: {largest / 1e9:.2f} of {chip.usable / 1e9:.1f} GB{pace}")
    if largest > chip.usable and config.fit and flags.adapter.trainable == "all":
        with_lora = compile_for_chip(config.with_flags(**LORA), name)
        with_lora["flags"] = LORA | with_lora["flags"]
        return with_lora | {"verdict": f"{verdict}; with {format_flags(with_lora['flags'])} it {with_lora['verdict']}"}
    return {"chip": name, "devices": chip.devices,
            "compiler": f"JAX {jax.__version__}, {chip.compiler} {importlib.metadata.version(chip.compiler)}",
            "usable": chip.usable, "state": state, "micro_rows": micro_rows, "programs": programs,
            "step": step, "step_at_40": at_40,
            "flags": {key: flags.as_flags()[key] for key in ("divide_state", "grad_accumulation", "num_slots")},
            "verdict": verdict + (remedies(config, chip, shape) if largest > chip.usable else "")}


def format_flags(flags: dict) -> str:
    return " ".join(f"--{name}={value}" for name, value in flags.items())


def format_chip(result: dict) -> str:
    """Returns a heading, a Markdown table of the programs in one chip's record, and the verdict."""
    def format_peak(peak: Optional[float]) -> str:
        return "" if peak is None else f"{peak / 1e9:.2f}, {'fits' if peak <= result['usable'] else 'does not fit'}"

    columns = {"seconds": "CPU seconds to compile", "flops": "FLOPs a call", "bytes": "bytes a call",
               "by_cycles": "by the compiler's cycles", "kernels": "kernels a call", "step_kernels": "kernels a token"}
    if result["state"] >= here.CACHED:
        columns |= {"best": "seconds at best", "at_40": "at 40 %", "tokens": "tokens/s at best"}
    rows = [[which, format_peak(program["peak"]),
             *(f"{program[key]:.4g}" if program.get(key) else "" for key in columns), program.get("refused", "")]
            for which, program in result["programs"].items()]
    header = ["program", f"peak of {result['usable'] / 1e9:.2f} GB", *columns.values(), "the compiler says"]
    return (f"{result['chip']}, devices: {result['devices']}, {result['compiler']}; {format_flags(result['flags'])}: "
            f"{result['micro_rows']} rows a micro-batch\n\n{markdown_table(header, rows)}\n\n"
            f"{result['chip']}: {result['verdict']}")


def state_table(config: GRPOConfig, shape: ModelConfig) -> str:
    """Returns a Markdown table: the memory that the state takes on each chip's devices, replicated and divided."""
    rows = []  # an undivided state is created on one device and copied to all: that device holds it twice at the start
    for name, chip in published.CHIPS.items():
        whole, part = (state_bytes(config.with_flags(divide_state=divide), shape, chip.devices)
                       for divide in (False, True))
        rows.append([name, chip.devices, *(f"{x / 1e9:.2f}" for x in (chip.usable, whole, 2 * whole, part)),
                     "fits" if 2 * whole < chip.usable else "--divide_state" if part < chip.usable else "does not fit"])
    header = ["GB on each device", "devices", "usable", "state, whole", "as a run begins", "state, divided", "verdict"]
    return markdown_table(header, rows)


def run(config: CompileConfig) -> str:
    """Returns what scripts.compile prints: without --chip a table of all chips; with --chip=A,B a table for A and B."""
    if config.page:
        return here.write_page(pathlib.Path(config.page))
    if config.chip == "here":
        return here.describe_machine(config.name_flagfile)
    if not config.chip:
        return state_table(config.train.grpo, shape_of(config))
    records = [compile_for_chip(config, name) for name in config.chip.split(",")]
    if config.out:
        files.write_json(pathlib.Path(config.out), {"chips": records})
    return "\n\n".join(map(format_chip, records))
