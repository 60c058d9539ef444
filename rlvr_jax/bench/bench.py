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
    """Runs in the process of a side. Answers each request (name of a case, BenchConfig of the case, repeats) with the
    seconds of the fastest of `repeats` calls, which follow a warm-up call, or with None if the side has no such case.
    Answers an empty request with the peak memory of the process in gigabytes, and returns."""
    program = SIDES[side](config)
    while request := connection.recv():
        case, case_config, repeats = request
        call, seconds = program.make(case, case_config), []
        if call:
            call()
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
        connection.send(min(seconds, default=None))
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def start_side(name: str, config: BenchConfig) -> Callable[..., Optional[float]]:
    """Starts the process of one side. Returns `ask(*request)`, which returns the answer of `serve` to a request. It
    raises UserError if the process has ended."""
    context = multiprocessing.get_context("spawn")  # JAX and torch do not survive a fork
    our_end, their_end = context.Pipe()
    context.Process(target=serve, args=(name, config, their_end), daemon=True).start()
    their_end.close()

    def ask(*request) -> Optional[float]:
        try:
            our_end.send(request)
            return our_end.recv()
        except (EOFError, OSError):
            flag = "" if name == "ours" else f"--against={name}: "
            raise UserError(f"{flag}the timing failed; its process printed the error above") from None
    return ask


# ----- figures derived from the times


def overhead_shares(config: BenchConfig, seconds: dict[str, float]) -> dict[str, float]:
    """Returns {description: share}: the shares of work that are recomputation, padding and idle slots, and the share of
    a step's time outside sampling and update. `seconds` has the times of "sampling", "update" and "step"."""
    layers, head = num_parameters(config)
    lengths, devices = tail_lengths(config), config.machine.host_devices
    recomputed = 2 * head + (2 * layers if config.remat else 0)  # FLOPs per token, beside 6 per parameter
    num_micro = len(lengths) // config.micro_rows // devices  # micro-batches of each device
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    zeros = np.zeros(len(lengths), np.int32)  # stands for the arrays that have no influence here
    load = learning(Batch(Prompts(zeros[:1, None], zeros[:1] + 1), zeros, mask, mask, zeros), devices, num_micro)
    padded = len(lengths) * np.dot(load.weights, batches.bucket_lengths(lengths.max()))  # tokens of all micro-batches
    decoded = sum(slot_rounds(part) for part in np.split(lengths, devices))
    twice, outside = recomputed / (recomputed + 6 * (layers + head)), seconds["sampling"] + seconds["update"]
    return {"of the update, computed twice (the head, and layers with --remat)": twice,
            "of the long tail's update, padding": 1 - lengths.sum() / padded,
            "of the long tail's sampling, slots that wait": 1 - lengths.sum() / decoded,
            "of a step's time, neither sampling nor update": 1 - outside / seconds["step"]}


def slot_rounds(lengths: np.ndarray) -> int:
    """Returns how many tokens `sampler.decode` computes, in idle slots too, if it starts with a slot per completion."""
    layout = model.LAYOUTS.get(jax.default_backend(), model.Layout())
    sizes = {size for size, _ in sampler.stages(len(lengths), int(lengths.max()), layout)}
    unfinished = [(lengths > t).sum() for t in range(lengths.max())]  # completions that need a slot in round t
    return sum(min(size for size in sizes if size >= count) for count in unfinished)


def decoded_bytes(config: BenchConfig) -> int:
    """Returns the fewest bytes read to decode all tokens but the first: in each round, weights and the cache so far."""
    shape = shape_of(config)
    token_bytes = 2 * 4 * shape.num_layers * shape.num_kv_heads * shape.head_dim  # keys and values in float32
    cache = token_bytes * config.rollouts * sum(range(2, config.new_tokens + 1))
    return cache + 4 * sum(num_parameters(config)) * (config.new_tokens - 1)


def fit_exponents(ask: Callable, config: BenchConfig) -> str:
    """Returns a Markdown table: the exponents with which the times of sampling and update grow with the number of
    completions, their length and the number of layers. Each number is also halved and doubled; an exponent is the slope
    of log time over log number. `ask` (`start_side`) times cases in the process of this package."""
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
                kind = re.sub(r"[.\d]+$", "", event.name)  # "dot" of "dot.12"
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
    sides, listed, tables = ["ours", *filter(None, config.against.split(","))], cases(config), []
    timed, memory = {case: {} for case in ["peak", "bandwidth", *listed]}, {}
    with progress(len(sides) * len(listed) + 2, what="bench") as bar:
        for side in sides:
            ask = start_side(side, config)
            for case in timed if side == "ours" else listed:  # "peak" and "bandwidth" are measured once
                timed[case][side] = ask(case, config, config.repeats if case in listed else 10)
                bar.update()
            if side == "ours" and config.exponents:
                tables.append(fit_exponents(ask, config))
            if side == "ours" and config.profile:
                ask("profile", config, 1)
                tables.append(operations_table(config.profile))
            memory[side] = ask()
    return format_page(config, timed, memory, tables)


def format_page(config: BenchConfig, timed: dict, memory: dict[str, float], tables: list[str]) -> str:
    """Returns the page of timed[case][side] in seconds (None: no such case), memory[side] in GB and Markdown tables."""
    ours = {case: seconds["ours"] for case, seconds in timed.items()}
    peak, listed, peers = PEAK / ours["peak"], cases(config), list(memory)[1:]
    bytes_a_second, parameters = 2 * MOVED / ours["bandwidth"], sum(num_parameters(config))
    decode = {side: None if timed["sampling"][side] is None else timed["sampling"][side] - timed["first"][side]
              for side in memory}
    tokens = config.rollouts * (config.new_tokens - 1)
    shown = [(listed[case], timed[case]) for case in listed]
    shown.insert(2, (Case("of that, decoding after the first token", tokens), decode))  # after "sampling" and "first"
    header, rows = ["what", "seconds", "tokens/s", "useful share of peak"], []
    for peer in peers:
        header += [f"{peer}, seconds", f"{peer} / ours"]
    for case, seconds in shown:
        mine, useful = seconds["ours"], parameters * (2 * case.sampled + 6 * case.learnt)
        rows.append([case.description, f"{mine:.2f}", f"{(case.sampled or case.learnt) / mine:.0f}",
                     f"{useful / mine / peak:.0%}"])
        for theirs in map(seconds.get, peers):
            rows[-1] += ["-", "-"] if theirs is None else [f"{theirs:.2f}", f"{theirs / mine:.2f}"]
    read = decoded_bytes(config) / decode["ours"] / bytes_a_second
    return "\n\n".join([
        "# Sampling, update and whole steps" + (f" against {', '.join(peers)}" if peers else ""),
        f"SmolLM2-135M shapes, {config.num_layers} layers, float32, random weights. {describe_versions(peers)}\n"
        f"Peak: {peak / 1e9:.0f} GFLOP/s in products of a micro-batch's feed-forward layers; bandwidth: "
        f"{bytes_a_second / 1e9:.0f} GB/s.\n"
        "Useful are 2 FLOPs a parameter for a sampled token, 6 for one that is learnt from.",
        markdown_table(header, rows),
        f"Decoding reads weights and cache once a token, at {read:.0%} of the bandwidth.\n"
        f"Most memory, GB: " + ", ".join(f"{name} {x:.1f}" for name, x in memory.items()) + ".",
        markdown_table(["share", ""], [[name, f"{x:.0%}"] for name, x in overhead_shares(config, ours).items()]),
        *tables,
        f"`{format_command(config)}`, commit {commit()}; each side alone, the best of {config.repeats} calls.\n"])


def format_command(config: BenchConfig) -> str:
    """Returns the command with every flag but those of files; defaults are spelled out, since they may change later."""
    files = ("--out=", "--compilation_cache=", "--profile=")
    flags = [line for line in flag_lines(config) if not line.startswith(files)]
    return " ".join(["python -m scripts.bench", *flags])


def describe_versions(peers: list[str]) -> str:
    cpu = pathlib.Path("/proc/cpuinfo")
    avx = f", {'with' if 'avx512f' in cpu.read_text() else 'without'} AVX-512" if cpu.is_file() else ""
    ours = f"jax {jax.__version__} on {jax.devices()[0].device_kind}{avx}"
    return ", ".join([ours, *map(bench_peers.version, peers)]) + "."
