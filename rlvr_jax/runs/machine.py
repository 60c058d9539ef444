"""The devices that a command uses, and a warning about an accelerator that JAX does not use."""

import glob
import os
import shutil
from typing import Optional

import jax

from rlvr_jax.config import Config, flag

# An accelerator, the extra of the package jax that supports it, and the files that show it. /dev/vfio/vfio and
# /dev/accel/ (neural processors of laptops) exist without a TPU, too.
SIGNS = {"a TPU": ("tpu", ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")),
         "an NVIDIA GPU": ("cuda12", ("/dev/nvidia[0-9]*", "/dev/dxg"))}


class MachineConfig(Config):
    """The devices, and what is kept between commands."""

    host_devices: int = flag(1, "split a CPU host into this many devices; ignored with an accelerator", minimum=1,
                             free=True)
    compilation_cache: str = flag("auto", "directory that keeps compiled programs between runs, at most half a GB; "
                                  "auto: $JAX_COMPILATION_CACHE_DIR, else rlvr_jax/jax in your cache folder; none: "
                                  "keep nothing", free=True)


class ProcessConfig(Config):
    """The processes of one run."""

    coordinator_address: str = flag("", "host:port of process 0 for a run of several processes; 'auto' to detect",
                                    free=True)
    num_processes: int = flag(0, "processes of the run, with coordinator_address", minimum=0, free=True)
    process_id: int = flag(-1, "index of this process, with coordinator_address", minimum=-1, free=True)


def prepare_gpu(environ=os.environ, which=shutil.which) -> None:
    """Keeps XLA from merging matrix products on an NVIDIA GPU: to merge two, it would copy their weights for every
    decoded token. Call it before JAX is used; flags that the user has set prevail."""
    if which("nvidia-smi"):
        environ["XLA_FLAGS"] = f"--xla_gpu_dot_merger_threshold_mb=0 {environ.get('XLA_FLAGS', '')}".strip()


def num_bytes(tree) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_limit() -> Optional[int]:
    """Bytes of a device's memory that JAX may use; None on a CPU, which has no limit of its own."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def platforms() -> set[str]:
    """The kinds of JAX's devices, such as {"cpu"}. Initialises the devices."""
    return {device.platform for device in jax.devices()}


def unused_accelerator(platforms=platforms, find=glob.glob, which=shutil.which) -> str:
    """One line about an accelerator that this machine seems to have and JAX does not use; "" if there is none.

    JAX without the right plugin silently computes on the CPU; with JAX_PLATFORMS=cpu that is intended. Tests pass their
    own `platforms`, `find` and `which` in place of JAX, the file system and the PATH.
    """
    signs = {kind: [name for pattern in patterns for name in find(pattern)] for kind, (_, patterns) in SIGNS.items()}
    if which("nvidia-smi"):
        signs["an NVIDIA GPU"].append("nvidia-smi")
    kind = next((kind for kind, names in signs.items() if names), "")
    if not kind or jax.config.jax_platforms == "cpu" or platforms() != {"cpu"}:
        return ""
    return (f"this machine seems to have {kind} ({signs[kind][0]}), but JAX finds none: EVERYTHING RUNS ON THE CPU. "
            f"pip install -e '.[plot]' \"jax[{SIGNS[kind][0]}]\"; if the CPU is meant, JAX_PLATFORMS=cpu")
