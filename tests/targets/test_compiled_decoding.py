"""The sampler compiled for chips that are not here: what its decoding loop copies at every token.

Needs the chips' compilers: "jax[tpu]" and "jax[cuda12]", with JAX_PLATFORMS=cpu where there is no such chip.
"""

import dataclasses
import json
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from rlvr_jax import model, sampler
from rlvr_jax.pretrained import huggingface
from rlvr_jax.records import Prompts
from rlvr_jax.training import kernels

from fixtures import ROOT

SLOTS, TOKENS, LAYERS = 16, 3072, 2
H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072 cuda_compute_capability { major: 9 }
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
} platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }"""
CHIPS = {"v5e-1": dict(platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)),
         "H100": dict(platform="cuda", topology="1x1x1", target_config=H100)}
# Without a GPU nothing can be timed. The last is what scripts set for every GPU (`machine.prepare_gpu`).
OPTIONS = {"v5e-1": {}, "H100": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0,
                                 "xla_gpu_dot_merger_threshold_mb": 0}}
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
MOVES = {"copy", "convert", "concatenate", "slice", "dynamic-slice", "transpose", "gather"}  # change no number
FREE = {"parameter", "constant", "bitcast", "reshape", "tuple", "get-tuple-element", "broadcast"}


@pytest.fixture(params=CHIPS)
def chip(request, monkeypatch) -> tuple:
    """(name, devices) of a chip that need not be here; skipped where its compiler is not installed."""
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
                        "TPU_WORKER_HOSTNAMES": "localhost"}.items():
        monkeypatch.setitem(os.environ, name, value)
    try:
        devices = topologies.get_topology_desc(**CHIPS[request.param]).devices
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"no compiler for {request.param}: {error}")
    kept = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # what is kept cannot be read for such a chip
    yield request.param, devices
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)


def compiled_sampler(name: str, devices, attend=None) -> str:
    """HLO of the sampler of one prompt, with layers of Qwen2.5-Math-1.5B's shapes and parameters in float32."""
    published = json.loads((ROOT / "tests" / "golden" / "published_configs.json").read_text())["Qwen2.5-Math-1.5B"]
    config = dataclasses.replace(huggingface.config_from_hugging_face(published, "published"), num_layers=LAYERS,
                                 dtype="bfloat16")
    decoding = sampler.Decoding((0,), TOKENS, layout=model.LAYOUTS[devices[0].platform], attend=attend)

    def draw(params, prompts, index_B, seed):
        rows = sampler.Rows(index_B, sampler.rollout_keys(seed, 0, jnp.arange(SLOTS)), 1.0)
        return sampler.sample(params, config, prompts, rows, decoding)

    def shape(*dims, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((1, *dims), dtype)

    params = jax.eval_shape(lambda: model.init_params(jax.random.key(0), config))
    params = jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype), params)
    mapped = jax.pmap(draw, axis_name="data", devices=list(devices))
    lowered = mapped.lower(params, Prompts(shape(1, 192), shape(1)), shape(SLOTS), shape())
    return lowered.compile(compiler_options=OPTIONS[name] or None).as_text()


def computations(text: str) -> dict[str, list[tuple[str, str, str]]]:
    """By name, the instructions of each computation: (shape, kind, whole line)."""
    found: dict[str, list] = {}
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            current = found.setdefault(header[1], [])
        elif match := re.match(r"  (?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ([\w-]+)\(", line):
            current.append((match[1], match[2], line))
    return found


def size(shape: str) -> int:
    """Bytes of the arrays in a shape such as bf16[16,2]{1,0}."""
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        count = BYTES.get(kind, 8)
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += count
    return total


def named(line: str, *keys: str) -> list[str]:
    """The computations that an instruction has under these keys."""
    return [name.strip("% ") for key in keys for several, one in re.findall(key + r"=(?:\{([^}]*)\}|([%\w.-]+))", line)
            for name in (several or one).split(",")]


def executed(program: dict, name: str) -> list[tuple[str, str, str]]:
    """The instructions that a computation starts, with those of its branches and inner loops."""
    inner = [computation for _, kind, line in program[name] if kind in ("conditional", "while", "call")
             for computation in named(line, "branch_computations", "true_computation", "false_computation", "body",
                                      "to_apply")]
    return program[name] + [row for computation in inner for row in executed(program, computation)]


def copies(program: dict, name: str) -> list[str]:
    """The instructions that only move or cast more than 1 MB. A TPU's copy-start, by which it reads weights ahead, is
    none; float32 arrays of the slots are what is computed, scores and logits."""
    def moves(kind, line):
        if kind != "fusion":
            return kind in MOVES
        inside = {kind for computation in named(line, "calls") for shape, kind, _ in program[computation]
                  if size(shape) > 8}
        return bool(inside & MOVES) and inside <= MOVES | FREE
    return [line.strip()[:200] for shape, kind, line in executed(program, name)
            if size(shape) > 1e6 and moves(kind, line) and not shape.startswith(f"f32[{SLOTS},")]


@pytest.mark.parametrize("kernel", [False, True])
def test_no_weight_and_no_cache_is_copied_at_a_token(chip, kernel):
    attend = {"v5e-1": kernels.decode_mosaic, "H100": kernels.decode_triton}[chip[0]] if kernel else None
    program = computations(compiled_sampler(*chip, attend))
    loops = [name for rows in program.values() for shape, kind, line in rows
             if kind == "while" and f"s32[{SLOTS},{TOKENS}]" in shape for name in named(line, "body")]
    growing = chip[0] == "H100" and not kernel  # windows of 64, 256, 1024 and 3072
    assert len(loops) == (4 if growing else 1)
    for loop in loops:
        assert len(executed(program, loop)) > 100
        assert not copies(program, loop)
