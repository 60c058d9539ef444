"""The sampler compiled for chips that are not here: what its decoding loop copies at every token.

Needs the chips' compilers, as `make chips` installs them; skipped elsewhere.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest

from rlvr_jax import model, sampler
from rlvr_jax.chips import cost, published
from rlvr_jax.chips.cost import Line
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import huggingface
from rlvr_jax.records import Prompts
from rlvr_jax.training import kernels

from fixtures import ROOT

SLOTS, TOKENS, LAYERS = 16, 3072, 2
MOVES = {"copy", "convert", "concatenate", "slice", "dynamic-slice", "transpose", "gather"}  # change no number


@pytest.fixture(params=["v5e-1", "H100"])
def chip(request) -> str:
    """The name of a chip that need not be here; skipped where its compiler is not installed."""
    try:
        published.named(request.param)
    except UserError as error:
        pytest.skip(str(error))
    jax.config.update("jax_enable_compilation_cache", False)  # what is kept cannot be read for such a chip
    yield request.param
    jax.config.update("jax_enable_compilation_cache", True)


def compiled_sampler(chip: published.Chip, attend=None) -> dict[str, Line]:
    """HLO of the sampler of one prompt, with layers of Qwen2.5-Math-1.5B's shapes and parameters in float32."""
    devices = published.devices(chip)
    configs = json.loads((ROOT / "tests" / "golden" / "published_configs.json").read_text())
    config = dataclasses.replace(huggingface.config_from_hugging_face(configs["Qwen2.5-Math-1.5B"], "published"),
                                 num_layers=LAYERS, dtype="bfloat16")
    decoding = sampler.Decoding((0,), TOKENS, layout=model.LAYOUTS[devices[0].platform], attend=attend)

    def draw(params, prompts, index_B, seed):
        rows = sampler.Rows(index_B, sampler.rollout_keys(seed, 0, jnp.arange(SLOTS)), 1.0)
        return sampler.sample(params, config, prompts, rows, decoding)

    def shape(*dims, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((1, *dims), dtype)

    params = jax.eval_shape(lambda: model.init_params(jax.random.key(0), config))
    params = jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype), params)
    mapped = jax.pmap(draw, axis_name="data", devices=devices)
    lowered = mapped.lower(params, Prompts(shape(1, 192), shape(1)), shape(SLOTS), shape())
    return cost.parse_hlo(lowered.compile(compiler_options=chip.options).as_text())


def size(shape: str) -> int:
    """Bytes of the arrays in a shape, in a TPU's fast memory too."""
    return sum(cost.array_bytes(re.sub(r"S\(\d+\)", "", shape)))


def executed(computation: dict[str, Line]) -> list[Line]:
    """The instructions that a computation starts, with those of its branches and inner loops."""
    lines = list(computation.values())
    return lines + [inner for line in lines if line.kind in ("conditional", "while", "call")
                    for called in line.called for inner in executed(called)]


def copies(lines: list[Line]) -> list[Line]:
    """The instructions that only move or cast more than 1 MB. A TPU's copy-start, by which it reads weights ahead, is
    none; float32 arrays of the slots are what is computed, scores and logits."""
    def moves(line):
        if line.kind != "fusion":
            return line.kind in MOVES
        inside = {inner.kind for inner in line.called[0].values() if size(inner.shape) > 8}
        return bool(inside & MOVES) and inside <= MOVES | cost.FREE | {"reshape", "broadcast"}
    return [line for line in lines
            if size(line.shape) > 1e6 and moves(line) and not line.shape.startswith(f"f32[{SLOTS},")]


@pytest.mark.parametrize("kernel", [False, True])
def test_no_weight_and_no_cache_is_copied_at_a_token(chip, kernel):
    attend = {"v5e-1": kernels.decode_mosaic, "H100": kernels.decode_triton}[chip] if kernel else None
    loops = [executed(line.called[1]) for line in executed(compiled_sampler(published.CHIPS[chip], attend))
             if line.kind == "while" and f"s32[{SLOTS},{TOKENS}]" in line.shape]
    growing = chip == "H100" and not kernel  # windows of 64, 256, 1024 and 3072
    assert len(loops) == (4 if growing else 1)
    for loop in loops:
        assert len(loop) > 100
        assert not copies(loop)
