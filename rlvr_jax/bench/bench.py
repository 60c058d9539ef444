"""Times sampling, updates and whole GRPO steps of this package and others; computes the useful share of peak FLOP/s.

Each package, called a "side", runs in its own process, which ends before the next starts and so frees its memory. A
case is called once to warm up and then `repeats` times, and the fastest call counts. The machine's peak and bandwidth
are the best of ten calls. Useful work is 2 FLOPs per parameter for a sampled token and 6 for a token learnt from.
Attention, recomputation, padding and idle slots do not count, so the share shows how much there is left to gain.
"""

import collections
import glob
import multiprocessing
import pathlib
import re
import resource
import time
from typing import Callable, Optional

import jax
import numpy as np

from rlvr_jax import batches, model, sampler
from rlvr_jax.bench import bench_peers
from rlvr_jax.bench.bench_work import (MOVED, PEAK, BenchConfig, Case, Ours, cases, num_parameters, shape_of,
                                       tail_lengths)
from rlvr_jax.chips.loads import learning
from rlvr_jax.errors import UserError
from rlvr_jax.records import Batch, Prompts
from rlvr_jax.runs.flags import flag_lines
from rlvr_jax.runs.log import progress
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.runs.origin import commit

SIDES = {"ours": Ours, **bench_peers.PEERS}


def serve(side: str, config: BenchConfig, connection) -> None:
    """Runs in the process of a side. Answers each request (name of a case, config, repeats) with the seconds of the
    fastest of `repeats` calls, which follow a warm-up call, or with None if the side has no such case. Answers an empty
    request with the peak memory of the process in gigabytes, and returns."""
    program = SIDES[side](config)
    while request := connection.recv():
        case, flags, repeats = request
        call, seconds = program.make(case, flags), []
        if call:
            call()
        for _ in range(repeats if call else 0):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        connection.send(min(seconds, default=None))
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def start_side(name: str, config: BenchConfig) -> Callable[..., Optional[float]]:
    """Starts the process of one side. Returns `ask(*request)`, which returns the answer of `serve` to a request and
    raises UserError if the process has ended."""
    context = multiprocessing.get_context("spawn")  # JAX and torch do not survive a fork
    end, theirs = context.Pipe()
    context.Process(target=serve, args=(name, config, theirs), daemon=True).start()
    theirs.close()

    def ask(*request) -> Optional[float]:
        try:
            end.send(request)
            return end.recv()
        except (EOFError, OSError):
            raise UserError(f"--against={name}: it failed; see above" if name != "ours" else
                            "the timing failed; see above") from None
    return ask


# ----- figures derived from the times


def overhead_shares(config: BenchConfig, seconds: dict[str, float]) -> dict[str, float]:
    """Returns {description: share}: the shares of work that are recomputation, padding and idle slots, and the share of
    a step's time outside sampling and update. `seconds` has the times of "sampling", "update" and "step"."""
    layers, head = num_parameters(config)
    lengths, devices = tail_lengths(config), config.machine.host_devices
    extra = 2 * head + (2 * layers if config.remat else 0)  # recomputed FLOPs per token
    parts = len(lengths) // config.micro_rows // devices  # micro-batches
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    zeros = np.zeros(len(lengths), np.int32)  # stands for the arrays that have no influence here
    load = learning(Batch(Prompts(zeros[:1, None], zeros[:1] + 1), zeros, mask, mask, zeros), devices, parts)
    padded = len(lengths) * np.dot(load.weights, batches.bucket_lengths(lengths.max()))  # tokens of all micro-batches
    decoded = sum(slot_rounds(part) for part in np.split(lengths, devices))
    return {"of the update, computed twice (the head, and layers with --remat)": extra / (extra + 6 * (layers + head)),
            "of the long tail's update, padding": 1 - lengths.sum() / padded,
            "of the long tail's sampling, slots that wait": 1 - lengths.sum() / decoded,
            "of a step's time, neither sampling nor update": 1 - (seconds["sampling"] + seconds["update"])
            / seconds["step"]}


def slot_rounds(lengths: np.ndarray) -> int:
    """Returns how many tokens `sampler.decode` computes, in idle slots too, if it starts with a slot per completion."""
    layout = model.LAYOUTS.get(jax.default_backend(), model.Layout())
    sizes = {size for size, _ in sampler.stages(len(lengths), int(lengths.max()), layout)}
    return sum(min(size for size in sizes if size >= (lengths > t).sum()) for t in range(lengths.max()))


def decoded_bytes(config: BenchConfig) -> int:
    """Returns the fewest bytes read to decode all tokens but the first: for each token, weights and cache so far."""
    shape = shape_of(config)
    token_bytes = 2 * 4 * shape.num_layers * shape.num_kv_heads * shape.head_dim  # keys and values in float32
    cache = token_bytes * config.rollouts * sum(range(2, config.new_tokens + 1))
    return cache + 4 * sum(num_parameters(config)) * (config.new_tokens - 1)


def fit_exponents(ask: Callable, config: BenchConfig) -> str:
    """Returns a Markdown table: the exponents with which the times of sampling and update grow with completions, their
    length and layers. Each is timed at half, all and twice the number; an exponent is a slope of the logarithms. `ask`
    is that of this package's side."""
    rows = []
    for name in ("rollouts", "new_tokens", "num_layers"):
        value = getattr(config, name)
        values = [value // 2, value, value * 2] if value > 1 else [1, 2]
        timed = [[ask(case, config.with_flags(**{name: x}), 1) for case in ("sampling", "update")] for x in values]
        slopes = np.polyfit(np.log(values), np.log(timed), 1)[0]
        rows.append([f"--{name}", ", ".join(map(str, values)), *(f"{x:.2f}" for x in slopes)])
    return markdown_table(["what grows", "to", "sampling", "update"], rows)


def operations_table(folder: str) -> str:
    """Returns a Markdown table of the 15 kinds of operations that took longest in the newest trace of a folder."""
    newest = max(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True), key=lambda x: pathlib.Path(x).stat().st_mtime)
    spent: dict[str, float] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(newest).planes:
        for line in plane.lines:
            for event in line.events:
                kind = re.sub(r"[.\d]+$", "", event.name)
                if "hlo_op" in dict(event.stats) and kind not in ("while", "conditional", "call"):
                    spent[kind] += event.duration_ns / 1e9
    return markdown_table(["operation", "seconds, of all threads", "share"],
                          [[kind, f"{x:.2f}", f"{x / sum(spent.values()):.0%}"] for kind, x in spent.most_common(15)])


# ----- the page


def run(config: BenchConfig) -> str:
    """Times all sides; returns the Markdown page. Raises UserError if completions do not divide into micro-batches."""
    for flag in ("rollouts", "tail_rollouts"):
        if getattr(config, flag) % (config.micro_rows * config.machine.host_devices):
            raise UserError(f"--{flag}={getattr(config, flag)} is not a multiple of --micro_rows x --host_devices = "
                            f"{config.micro_rows} x {config.machine.host_devices}")
    names, listed, more = ["ours", *filter(None, config.against.split(","))], cases(config), []
    timed, memory = {name: {} for name in ["peak", "bandwidth", *listed]}, {}
    with progress(len(names) * len(listed) + 2, what="bench") as bar:
        for name in names:
            ask = start_side(name, config)
            for case in timed if name == "ours" else listed:  # "peak" and "bandwidth" are measured once
                timed[case][name] = ask(case, config, config.repeats if case in listed else 10)
                bar.update()
            if name == "ours" and config.exponents:
                more.append(fit_exponents(ask, config))
            if name == "ours" and config.profile:
                ask("profile", config, 1)
                more.append(operations_table(config.profile))
            memory[name] = ask()
    return format_page(config, timed, memory, more)


def format_page(config: BenchConfig, timed: dict, memory: dict[str, float], more: list[str]) -> str:
    """Returns the Markdown page of timed[case][side], seconds or None, memory[side] in gigabytes, and `more` tables."""
    ours = {case: seconds["ours"] for case, seconds in timed.items()}
    flops, listed, peers = PEAK / ours["peak"], cases(config), list(memory)[1:]
    bytes_a_second, active = 2 * MOVED / ours["bandwidth"], sum(num_parameters(config))
    decode = {side: None if timed["sampling"][side] is None else timed["sampling"][side] - timed["first"][side]
              for side in memory}
    tokens = config.rollouts * (config.new_tokens - 1)
    shown = [(listed[case], timed[case]) for case in listed]
    shown.insert(2, (Case("of that, decoding after the first token", tokens), decode))
    header, rows = ["what", "seconds", "tokens/s", "useful share of peak"], []
    for peer in peers:
        header += [f"{peer}, seconds", f"{peer} / ours"]
    for case, seconds in shown:
        mine, useful = seconds["ours"], active * (2 * case.sampled + 6 * case.learnt)
        rows.append([case.description, f"{mine:.2f}", f"{(case.sampled or case.learnt) / mine:.0f}",
                     f"{useful / mine / flops:.0%}"])
        for theirs in map(seconds.get, peers):
            rows[-1] += ["-", "-"] if theirs is None else [f"{theirs:.2f}", f"{theirs / mine:.2f}"]
    read = decoded_bytes(config) / decode["ours"] / bytes_a_second
    return "\n\n".join([
        "# Sampling, update and whole steps" + (f" against {', '.join(peers)}" if peers else ""),
        f"SmolLM2-135M shapes, {config.num_layers} layers, float32, random weights. {describe_versions(peers)}\n"
        f"Peak: {flops / 1e9:.0f} GFLOP/s in products of a micro-batch's feed-forward layers; bandwidth: "
        f"{bytes_a_second / 1e9:.0f} GB/s.\n"
        "Useful are 2 FLOPs a parameter for a sampled token, 6 for one that is learnt from.",
        markdown_table(header, rows),
        f"Decoding reads weights and cache once a token, at {read:.0%} of the bandwidth.\n"
        f"Most memory, GB: " + ", ".join(f"{name} {x:.1f}" for name, x in memory.items()) + ".",
        markdown_table(["share", ""], [[name, f"{x:.0%}"] for name, x in overhead_shares(config, ours).items()]),
        *more,
        f"`{format_command(config)}`, commit {commit()}; each side alone, the best of {config.repeats} calls.\n"])


def format_command(config: BenchConfig) -> str:
    """Returns the command with all flags that name no file: it stays the same command if a default changes later."""
    files = ("--out=", "--compilation_cache=", "--profile=")
    flags = [line for line in flag_lines(config) if not line.startswith(files)]
    return " ".join(["python -m scripts.bench", *flags])


def describe_versions(peers: list[str]) -> str:
    cpu = pathlib.Path("/proc/cpuinfo")
    kind = "" if not cpu.is_file() else ", with AVX-512" if "avx512f" in cpu.read_text() else ", without AVX-512"
    ours = f"jax {jax.__version__} on {jax.devices()[0].device_kind}{kind}"
    return ", ".join([ours, *map(bench_peers.version, peers)]) + "."
