"""The chips that programs can be compiled for without having one: published numbers, compilers and targets."""

import importlib.metadata
import os
from typing import NamedTuple

from jax.experimental import topologies

from rlvr_jax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """Devices of one kind, with the numbers that their makers publish."""

    compiler: str  # the Python package of the compiler
    devices: int  # number of devices
    usable: float  # bytes of each device's memory that a program can use
    peak: dict  # {dtype: FLOP/s}; float32 numbers are multiplied in bfloat16 on TPUs and in TF32 on newer GPUs
    bandwidth: float  # bytes/s of the memory
    target: dict  # describes the chip to the compiler, see `devices`
    options: dict = {}  # compiler options
    clock: float = 0.0  # Hz of a TPU; 0 for a GPU


def _tpu(devices: int, usable: float, peak: float, bandwidth: float, clock: float, **target) -> Chip:
    """A TPU. `usable` is in GiB, as the compiler states it, `peak` in TFLOP/s, `bandwidth` in GB/s and `clock` in GHz.
    `clock` is peak / (2 x matrix units x size^2). A v4 or v5p has 8 matrix units of size 128, a v5e has 4. For a v6e, 4
    of size 256 are assumed, because its compiler schedules more products than 2 of them could compute."""
    peaks = dict.fromkeys(("float32", "bfloat16", "float16"), peak * 1e12)
    return Chip("libtpu", devices, usable * GIB, peaks, bandwidth * 1e9, target, clock=clock * 1e9)


def _gpu(memory: float, float32: float, bfloat16: float, float16: float, bandwidth: float, **target) -> Chip:
    """A GPU. CUDA offers `memory` GiB, of which a program can use 95 % with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 (JAX's
    default is 75 %). Peaks are in TFLOP/s, `bandwidth` in GB/s."""
    peaks = {"float32": float32 * 1e12, "bfloat16": bfloat16 * 1e12, "float16": float16 * 1e12}
    options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0,  # there is no GPU to time kernels on
               "xla_gpu_dot_merger_threshold_mb": 0}  # as in `machine.prepare_gpu`
    return Chip("jax-cuda12-plugin", 1, 0.95 * memory * GIB, peaks, bandwidth * 1e9, target, options)


def _cores(count: int, units: int, threads: int, shared: int, block: int, cache: int, clock: float) -> dict:
    """The compiler's fields for `count` multiprocessors, each with `units` float32 units, up to `threads` threads, and
    `shared` bytes of shared memory, `block` of which a thread block may use. L2 `cache` is in MiB, `clock` in GHz."""
    return dict(core_count=count, fpus_per_core=units, threads_per_core_limit=threads, shared_memory_per_core=shared,
                shared_memory_per_block_optin=block, l2_cache_size=cache << 20, clock_rate_ghz=clock)


_ONE, _MEGACORE = {"chips_per_host_bounds": (1, 1, 1)}, {"chip_config_name": "megacore"}  # options of libtpu
CHIPS = {
    "v4-8": _tpu(4, 30.75, 275, 1228, 1.05, topology_name="v4:2x2x1", **_MEGACORE),
    "v5e-1": _tpu(1, 15.75, 197, 819, 1.5, topology_name="v5e:1x1", **_ONE),
    "v5e-8": _tpu(8, 15.75, 197, 819, 1.5, topology_name="v5e:2x4"),
    "v5p-8": _tpu(4, 95.74, 459, 2765, 1.75, topology_name="v5:2x2x1", **_MEGACORE),
    "v6e-1": _tpu(1, 31.25, 918, 1640, 1.75, topology_name="v6e:1x1", **_ONE),
    "v6e-8": _tpu(8, 31.25, 918, 1640, 1.75, topology_name="v6e:2x4"),
    # A T4 has no units for bfloat16: its programs multiply in float32.
    "T4": _gpu(14.56, 8.1, 8.1, 65, 320, major=7, minor=5, **_cores(40, 64, 1024, 65_536, 65_536, 4, 1.59)),
    "L4": _gpu(22, 60, 121, 121, 300, major=8, minor=9, **_cores(58, 128, 1536, 102_400, 101_376, 48, 2.04)),
    "A100-40": _gpu(39.4, 156, 312, 312, 1555, major=8, minor=0,
                    **_cores(108, 64, 2048, 167_936, 166_912, 40, 1.41)),
    "H100": _gpu(79.6, 494, 989, 989, 3352, major=9, minor=0, **_cores(132, 128, 2048, 233_472, 232_448, 50, 1.98)),
    "RTX-PRO-6000": _gpu(95, 250, 500, 500, 1597, major=12, minor=0,
                         **_cores(188, 128, 1536, 131_072, 101_376, 128, 2.6)),
}
CHIPS["H100-8"] = CHIPS["H100"]._replace(devices=8)


def named(name: str) -> Chip:
    """Returns a row of CHIPS. Raises UserError for an unknown name, and if the chip's compiler is not installed."""
    if name not in CHIPS:
        raise UserError(f"--chip={name}: no such chip; known are {', '.join(CHIPS)}")
    try:
        importlib.metadata.version(CHIPS[name].compiler)
    except importlib.metadata.PackageNotFoundError:
        extra = "tpu-compiler" if CHIPS[name].compiler == "libtpu" else "gpu-compiler"
        raise UserError(f"--chip={name}: its compiler is not installed; `make chips` makes an environment that has "
                        f"it, .venv-chips, or pip install -e '.[{extra}]' in one of your own") from None
    return CHIPS[name]


def devices(chip: Chip) -> list:
    """Returns the chip's `jax.Device`s, for which programs can be compiled but not run. Sets libtpu's environment."""
    if chip.compiler == "libtpu":
        os.environ |= dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="true", TPU_WORKER_HOSTNAMES="localhost",
                           TPU_ACCELERATOR_TYPE="v5litepod-1")  # any type will do; libtpu warns without one
        return list(topologies.get_topology_desc(platform="tpu", **chip.target).devices)
    fields = chip.target | dict(  # fields of XLA's GpuTargetConfigProto
        threads_per_block_limit=1024, threads_per_warp=32, shared_memory_per_block=49_152,
        block_dim_limit_x=2**31 - 1, block_dim_limit_y=65_535, block_dim_limit_z=65_535,
        registers_per_core_limit=65_536, registers_per_block_limit=65_536,
        memory_bandwidth=int(chip.bandwidth), device_memory_size=int(chip.usable))
    text = "cuda_compute_capability {{ major: {} minor: {} }} ".format(fields.pop("major"), fields.pop("minor"))
    text += " ".join(f"{key}: {value}" for key, value in fields.items())
    text = f'gpu_device_info {{ {text} }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}'
    return list(topologies.get_topology_desc(platform="cuda", topology=f"1x1x{chip.devices}",
                                             target_config=text).devices)
