"""The programs of a run compiled by the compilers of real chips: `make chips`. Elsewhere they are skipped."""

import jax
import pytest

from rlvr_jax.chips import compile, published
from rlvr_jax.chips.compile import CompileConfig
from rlvr_jax.errors import UserError

from fixtures import ROOT


@pytest.fixture(autouse=True)
def compiled_anew():
    """No program that was kept: what a compiler says now counts."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def found(parse, chip: str, *flags: str) -> dict:
    try:
        published.named(chip)
    except UserError as error:
        pytest.skip(str(error))
    return compile.compile_for_chip(parse(CompileConfig, *flags), chip)


@pytest.mark.parametrize("chip", ["v5e-1", "v5e-8", "H100"])
def test_the_tiny_programs_compile_and_fit(parse, chip):
    one = found(parse, chip, f"--flagfile={ROOT / 'configs/tiny.flags'}", "--heldout=none")
    assert one["verdict"].startswith("fits: 0.") and list(one["programs"]) == [
        "start", "sampling", "log-probabilities", "update"]
    sampling, update = one["programs"]["sampling"], one["programs"]["update"]
    rows, layers = 128 // one["devices"], 3 * (4 * 64 * 64 + 3 * 64 * 256)
    products = 2 * rows * 22 * (layers + 55 * 64)  # of the tokens that are drawn, apart from attention and the prompt
    assert products < sampling["flops"] < 1.3 * products and 3 * products < update["flops"] < 4.5 * products
    assert 50 < sampling["step_kernels"] < 300 and update["kernels"] > 500
    assert one["usable"] > sampling["peak"] > one["state"]


@pytest.mark.slow
def test_the_whole_state_of_a_large_model_is_refused_and_the_divided_one_fits(parse):
    flags = (f"--flagfile={ROOT / 'configs/pi1_qwen2.5_math_1.5b.flags'}", "--shape=qwen2.5-math-1.5b",
             "--prompt_tokens=192", "--grad_accumulation=128", "--num_slots=16")
    config = parse(CompileConfig, *flags)
    found(parse, "v5e-8", f"--flagfile={ROOT / 'configs/tiny.flags'}", "--heldout=none")  # or skips
    whole = compile.compile_program(config, "v5e-8", "update")
    assert "exceeds available HBM (15.75G)" in whole["refused"] and 40e9 < whole["peak"] < 50e9
    divided = compile.compile_program(config.with_flags(divide_state=True), "v5e-8", "update")
    assert 3.09e9 < divided["peak"] < published.CHIPS["v5e-8"].usable
