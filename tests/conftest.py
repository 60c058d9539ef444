"""Strict settings for every test: two host devices, no silent broadcasting, warnings as errors."""

import gc
import os
import pathlib

import jax
import pytest
from jax._src import compiler
from jax._src.compiler import get_compile_options

from fixtures import base, compiled, launch, paper_export, paper_run, parse, quick_options, qwen2_folder, sampled, seen  # noqa: F401

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

OPTIMISED = {"test_chips", "test_compiled_decoding", "test_weights", "test_parity", "test_sampler",
             "test_model"}  # as users run it
SAME_ROUNDING = {"test_resets", "test_train"}  # a KL between two programs is exactly 0 with XLA's newer code generator

DATA = pathlib.Path(os.environ.get("RLVR_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))


def with_quick_options(*args, **kwargs):
    """What JAX passes to XLA, and `quick_options`, which JAX takes for one function or for a whole process only."""
    options = get_compile_options(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, *quick_options().items()]
    return options


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile(request):
    """Compiling takes most of the time of short runs, and nothing in them depends on the speed of what is compiled."""
    name = request.module.__name__.split(".")[-1]
    jax.config.update("jax_disable_most_optimizations", name not in OPTIMISED)
    if name in OPTIMISED | SAME_ROUNDING:
        jax.clear_caches()  # of programs that were compiled otherwise, and so may round otherwise
        yield
        jax.clear_caches()
        return
    quick_options()  # asked before the patch, since this compiles a function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", with_quick_options)
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once(request):
    """What took a tenth of a second to compile is kept, for the other worker and the next session too."""
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("jax_programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Every compiled program keeps memory maps, and Linux gives one process 65,530: programs no longer used are let go."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The folder of real data sets, which the repository does not carry."""
    if not DATA.is_dir():
        pytest.skip(f"no data folder at {DATA}; set RLVR_DATA")
    return DATA
