"""Where a command runs: its settings, and an accelerator that JAX does not use."""

import glob
import os
import shutil
from typing import Optional

import jax

from rlvr_jax.config import Config, flag

# What a machine with an accelerator has, and the extra of the package jax that makes JAX use it. /dev/vfio/vfio and
# /dev/accel/ (chips of laptops) are on machines without a TPU, too.
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
    """Has XLA keep matrix products of an NVIDIA GPU apart, before its first use: to make one of two, it would put their
    weights side by side at every decoded token. What the user has set holds."""
    if which("nvidia-smi"):
        environ["XLA_FLAGS"] = f"--xla_gpu_dot_merger_threshold_mb=0 {environ.get('XLA_FLAGS', '')}".strip()


def size(tree) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def room() -> Optional[int]:
    """Bytes of a device's memory that JAX may use, where it says so; a CPU does not."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def platforms() -> set[str]:
    """The kinds of the devices that JAX uses, such as {"cpu"}; JAX takes hold of them here at the latest."""
    return {device.platform for device in jax.devices()}


def unused_accelerator(platforms=platforms, find=glob.glob, which=shutil.which) -> str:
    """One line about an accelerator that this machine seems to have and JAX does not use; "" where all is well.

    JAX without the plugin of the machine computes on the CPU and does not say so; with JAX_PLATFORMS=cpu that is meant.
    `platforms`, `find` and `which` ask JAX, the file system and the PATH; tests hand in their own answers.
    """
    signs = {kind: [name for pattern in patterns for name in find(pattern)] for kind, (_, patterns) in SIGNS.items()}
    if which("nvidia-smi"):
        signs["an NVIDIA GPU"].append("nvidia-smi")
    kind = next((kind for kind, names in signs.items() if names), "")
    if not kind or jax.config.jax_platforms == "cpu" or platforms() != {"cpu"}:
        return ""
    return (f"this machine seems to have {kind} ({signs[kind][0]}), but JAX finds none: EVERYTHING RUNS ON THE CPU. "
            f"pip install -e '.[plot]' \"jax[{SIGNS[kind][0]}]\"; if the CPU is meant, JAX_PLATFORMS=cpu")
