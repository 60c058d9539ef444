"""The devices that a command uses, and a warning about an accelerator that JAX does not use."""

import glob
import os
import shutil
from typing import Optional

import jax

from rlvr_jax.config import Config, flag

# Accelerator -> (extra of the package jax that supports it, patterns of the device files that reveal it). The patterns
# exclude /dev/vfio/vfio and /dev/accel/ (neural processors of laptops), which also exist without a TPU.
SIGNS = {"a TPU": ("tpu", ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")),
         "an NVIDIA GPU": ("cuda12", ("/dev/nvidia[0-9]*", "/dev/dxg"))}


class MachineConfig(Config):
    """The devices of a command, and the cache of compiled programs."""

    host_devices: int = flag(1, "split a CPU host into this many devices; ignored with an accelerator", minimum=1,
                             free=True)
    compilation_cache: str = flag("auto", "directory that keeps compiled programs between runs, at most half a GB; "
                                  "auto: $JAX_COMPILATION_CACHE_DIR, else rlvr_jax/jax in your cache folder; none: "
                                  "keep nothing", free=True)


class ProcessConfig(Config):
    """The processes of one run."""

    coordinator_address: str = flag("", "host:port of process 0 for a run of several processes; auto: detect it",
                                    free=True)
    num_processes: int = flag(0, "number of processes, if coordinator_address is host:port", minimum=0, free=True)
    process_id: int = flag(-1, "index of this process, if coordinator_address is host:port", minimum=-1, free=True)


def prepare_gpu(environ=os.environ, which=shutil.which) -> None:
    """On an NVIDIA GPU, sets XLA_FLAGS so that XLA does not merge matrix products: to merge two, XLA would copy their
    weights for every decoded token. Call this before JAX is used. Flags that the user has set take precedence."""
    if which("nvidia-smi"):
        environ["XLA_FLAGS"] = f"--xla_gpu_dot_merger_threshold_mb=0 {environ.get('XLA_FLAGS', '')}".strip()


def num_bytes(tree) -> int:
    """Returns the size in bytes of a pytree of arrays or of `jax.ShapeDtypeStruct`s."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_limit() -> Optional[int]:
    """Returns how many bytes of a device's memory JAX may use; None on a CPU, for which JAX reports no limit."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def platforms() -> set[str]:
    """Returns the platforms of JAX's devices, such as {"cpu"}. Initialises the devices."""
    return {device.platform for device in jax.devices()}


def unused_accelerator(platforms=platforms, find=glob.glob, which=shutil.which) -> str:
    """Returns a warning of one line if this machine seems to have an accelerator that JAX does not use; else "".
    Without the right plugin, JAX computes on the CPU and says nothing. JAX_PLATFORMS=cpu says that the CPU is meant.
    Tests pass their own `platforms`, `find` and `which`."""
    evidence = {kind: [file for pattern in patterns for file in find(pattern)] for kind, (_, patterns) in SIGNS.items()}
    if which("nvidia-smi"):
        evidence["an NVIDIA GPU"].append("nvidia-smi")
    kind = next((kind for kind, files in evidence.items() if files), "")  # the first accelerator with evidence
    if not kind or jax.config.jax_platforms == "cpu" or platforms() != {"cpu"}:
        return ""
    return (f"this machine seems to have {kind} ({evidence[kind][0]}), but JAX finds none: EVERYTHING RUNS ON THE CPU. "
            f"pip install -e '.[plot]' \"jax[{SIGNS[kind][0]}]\"; if the CPU is meant, JAX_PLATFORMS=cpu")
