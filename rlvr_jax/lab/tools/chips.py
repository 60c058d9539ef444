"""The chips that programs can be compiled for, none of which has to be here, and their compilers."""

import importlib.metadata
import importlib.util
import os
from typing import NamedTuple, Optional

import jax
from jax.experimental import topologies

from rlvr_jax.errors import UserError

GIB = 2**30
# What XLA's compiler has to know of an NVIDIA GPU, where all that this program may run on are alike.
GPU = {"threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49_152,
       "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65_535, "block_dim_limit_z": 65_535,
       "thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64,
       "registers_per_core_limit": 65_536, "registers_per_block_limit": 65_536}


class Gpu(NamedTuple):
    """A GPU as its maker describes it; sizes are bytes."""

    capability: tuple[int, int]
    cores: int
    lanes: int  # float32 units of a core
    threads: int  # most of a core
    shared: int  # memory of a core that its threads share
    shared_block: int  # most of it for one block of threads
    cache: int  # of the second level
    clock: float  # GHz


class Chip(NamedTuple):
    """Devices of one kind as the makers publish them, and the bytes of each that a program can use."""

    devices: int
    usable: float
    peak: float  # floating-point operations a second in bfloat16
    peak_float32: float  # and of float32 arrays by default: TPUs multiply in bfloat16, newer GPUs in TF32
    bandwidth: float  # bytes a second
    tpu: dict = {}  # how its compiler names the devices
    gpu: Optional[Gpu] = None


def _tpu(devices: int, usable: float, peak: float, bandwidth: float, name: str, **more) -> Chip:
    return Chip(devices, usable * GIB, peak * 1e12, peak * 1e12, bandwidth * 1e9, {"topology_name": name} | more)


def _gpu(cuda: float, peak: float, peak_float32: float, bandwidth: float, gpu: Gpu) -> Chip:
    """Of what CUDA has of the memory, 95 %: XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, where JAX itself takes 75 %."""
    return Chip(1, 0.95 * cuda * GIB, peak * 1e12, peak_float32 * 1e12, bandwidth * 1e9, gpu=gpu)


_ONE, _MEGACORE = {"chips_per_host_bounds": (1, 1, 1)}, {"chip_config_name": "megacore"}
CHIPS = {
    "v4-8": _tpu(4, 30.75, 275, 1228, "v4:2x2x1", **_MEGACORE),
    "v5e-1": _tpu(1, 15.75, 197, 819, "v5e:1x1", **_ONE), "v5e-8": _tpu(8, 15.75, 197, 819, "v5e:2x4"),
    "v5p-8": _tpu(4, 95.74, 459, 2765, "v5:2x2x1", **_MEGACORE),
    "v6e-1": _tpu(1, 31.25, 918, 1640, "v6e:1x1", **_ONE), "v6e-8": _tpu(8, 31.25, 918, 1640, "v6e:2x4"),
    # A T4 has no units for bfloat16: the compiler has it multiply in float32.
    "T4": _gpu(14.56, 8.1, 8.1, 320, Gpu((7, 5), 40, 64, 1024, 65_536, 65_536, 4 << 20, 1.59)),
    "L4": _gpu(22, 121, 60, 300, Gpu((8, 9), 58, 128, 1536, 102_400, 101_376, 48 << 20, 2.04)),
    "A100-40": _gpu(39.4, 312, 156, 1555, Gpu((8, 0), 108, 64, 2048, 167_936, 166_912, 40 << 20, 1.41)),
    "H100": _gpu(79.6, 989, 494, 3352, Gpu((9, 0), 132, 128, 2048, 233_472, 232_448, 50 << 20, 1.98)),
    "RTX-PRO-6000": _gpu(95, 500, 250, 1597, Gpu((12, 0), 188, 128, 1536, 131_072, 101_376, 128 << 20, 2.6)),
}
OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}  # else XLA would time kernels on a GPU


def named(name: str) -> Chip:
    """The row of the table. Raises UserError for another name, and where no compiler for it is installed."""
    if name not in CHIPS:
        raise UserError(f"--chip={name}: no such chip; known are {', '.join(CHIPS)}")
    package, extra = ("libtpu", "tpu-compiler") if CHIPS[name].tpu else ("jax_plugins.xla_cuda12", "gpu-compiler")
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if not found:
        raise UserError(f"--chip={name}: its compiler is not installed; `make chips` makes an environment with all "
                        f"of them in .venv-chips, or pip install -e '.[{extra}]'")
    return CHIPS[name]


def devices(chip: Chip) -> list:
    """The chip's devices, which are not here, to compile for."""
    if chip.tpu:
        os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="true", TPU_WORKER_HOSTNAMES="localhost",
                          TPU_ACCELERATOR_TYPE="v5litepod-1")  # of any chip; without it libtpu warns
        return list(topologies.get_topology_desc(platform="tpu", **chip.tpu).devices)
    return list(topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=described(chip)).devices)


def described(chip: Chip) -> str:
    """XLA's description of a GPU, in the text form of its GpuTargetConfigProto."""
    gpu, (major, minor) = chip.gpu, chip.gpu.capability
    fields = GPU | {
        "core_count": gpu.cores, "fpus_per_core": gpu.lanes, "threads_per_core_limit": gpu.threads,
        "shared_memory_per_core": gpu.shared, "shared_memory_per_block_optin": gpu.shared_block,
        "l2_cache_size": gpu.cache, "clock_rate_ghz": gpu.clock, "memory_bandwidth": int(chip.bandwidth),
        "device_memory_size": int(chip.usable)}
    lines = " ".join(f"{name}: {value}" for name, value in fields.items())
    return (f"gpu_device_info {{ {lines} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }')


def compiler(chip: Chip) -> str:
    """The versions that a figure depends on."""
    package = "libtpu" if chip.tpu else "jax-cuda12-plugin"
    return f"JAX {jax.__version__}, {package} {importlib.metadata.version(package)}"
