"""Runs that train an adapter resume, start from one another, and export what they learnt."""

import json
import shutil

import jax
import numpy as np
import pytest

from rlvr_jax import adapters
from rlvr_jax.adapters import AdapterConfig
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import huggingface, loading
from rlvr_jax.training import train
from rlvr_jax.training.train import TrainConfig

from fixtures import TINY, assert_same_arrays, assert_same_run, random_params, read_jsonl, run, saved_arrays
from golden.cases import logits

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def run_of(base, run_dir, **changes):
    config = TrainConfig.from_flags(num_ops=2, example="1", num_prompts=4, group_size=4, max_new_tokens=10, remat=False,
                                    eval_size=16, reward="format", learning_rate=1e-2, entropy_coef=0.01, num_steps=3,
                                    eval_every=1, save_every=2, keep_every=2, kl_coef=0.01, weight_decay=0.1,
                                    model=str(base), run_dir=str(run_dir))
    train.train(config.with_flags(**changes))
    return read_jsonl(run_dir / "metrics.jsonl")


KINDS = {"lora": {"trainable": "lora", "adapter_rank": 2},
         "vector": {"trainable": "vector", "adapter_layers": (0,), "adapter_size": 4},
         **{dtype: {"trainable": "lora", "params_dtype": dtype, "dtype": dtype} for dtype in ("bfloat16", "float16")}}
FLOAT16 = pytest.param("float16", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """`trained(kind)`: the directory of a run of that kind, with checkpoints of steps 2 and 3. Each is made once."""
    folder = tmp_path_factory.mktemp("adapted")

    def get(kind):
        if not (folder / kind).exists():
            run_of(base, folder / kind, **KINDS[kind])
        return folder / kind
    return get


@pytest.mark.parametrize("kind", ["lora", "vector", "bfloat16", FLOAT16])
def test_a_run_that_goes_on_is_the_same_run(kind, trained, base, tmp_path):
    shutil.copytree(trained(kind), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    run_of(base, tmp_path / "run", **KINDS[kind])
    assert_same_run(tmp_path / "run", trained(kind), 3)


@pytest.mark.parametrize("kind, size", [("lora", 2 * (4 * 32 + 3 * 48)), ("vector", 4)])
def test_a_run_trains_the_adapter_alone_and_measures_the_kl_to_it_off(kind, size, trained, base):
    rows = read_jsonl(trained(kind) / "metrics.jsonl")
    assert rows[1]["train/kl"] == 0 < rows[3]["train/kl"] and rows[3]["train/logprob_gap_max"] < 1e-4
    before, after = saved_arrays(base, 200), saved_arrays(trained(kind), 3)
    model_of = {name: x for name, x in before.items() if name.startswith("params/")}
    assert_same_arrays({name: after[name] for name in model_of}, model_of)
    assert not [name for name in after if "ref_params" in name]
    assert sum(x.size for name, x in after.items() if "opt_state" in name) == 2 * size + 2
    assert json.loads((trained(kind) / "summary.json").read_text())["trained"] == size


def test_the_next_training_starts_from_the_merged_model(trained, tmp_path):
    rows = np.arange(8)[None]
    run_of(trained("lora"), tmp_path / "vector", trainable="vector")
    run_of(tmp_path / "vector", tmp_path / "all")
    loaded = {path.name: loading.load_model(str(path)) for path in (
        trained("lora"), tmp_path / "vector", tmp_path / "all")}
    config = loaded["lora"].config
    assert "down_bias" not in loaded["vector"].params["layers"] and "down_bias" in loaded["all"].params["layers"]
    for name, next_one in (("lora", "vector"), ("vector", "all")):
        ours, merged = loaded[name].params, adapters.merge(loaded[name].params)
        np.testing.assert_allclose(logits(ours, config, rows), logits(merged, config, rows), atol=1e-5)
        assert read_jsonl(tmp_path / next_one / "metrics.jsonl")[1]["train/kl"] == 0
    start, kept = adapters.merge(loaded["lora"].params), adapters.base_params(loaded["vector"].params)
    jax.tree.map(np.testing.assert_array_equal, start, kept)


def test_a_lora_run_exports_what_it_learnt(trained, base, compiled, tmp_path):
    run("export", f"--model={trained('lora')}", f"--out={tmp_path / 'out'}", compiled=compiled, expect=0)
    ours, theirs, start = (loading.load_model(str(path)) for path in (trained("lora"), tmp_path / "out", base))
    assert theirs.params["layers"].keys() == start.params["layers"].keys()
    np.testing.assert_allclose(*(logits(x.params, x.config, [TOKENS]) for x in (theirs, ours)), atol=1e-5)
    assert (theirs.params["layers"]["q"] != ours.params["layers"]["q"]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", FLOAT16])
def test_a_frozen_base_of_16_bits_is_kept_in_them_and_is_read_in_32(dtype, trained):
    row = read_jsonl(trained(dtype) / "metrics.jsonl")[1]
    assert row["train/logprob_gap_max"] < 0.05
    assert row.get("train/overflow") == (0 if dtype == "float16" else None)
    for name, x in saved_arrays(trained(dtype), 3).items():
        frozen = name.startswith("params/") and not any(part in name for part in ("lora_", "norm"))
        assert str(x.dtype) in ([dtype] if frozen else ["float32", "int32"]), name
    loaded = loading.load_model(str(trained(dtype)))
    assert {str(x.dtype) for x in jax.tree.leaves(adapters.merge(loaded.params))} == {"float32"}


def test_16_bit_parameters_need_an_adapter(base, tmp_path):
    with pytest.raises(UserError, match="--params_dtype needs an adapter"):
        run_of(base, tmp_path / "run", params_dtype="bfloat16")


def test_a_vector_has_no_place_in_a_hugging_face_folder(tmp_path):
    params = adapters.add(AdapterConfig(trainable="vector"), random_params(TINY), 0)
    params["layers"]["vector"] += 0.2
    params = adapters.merge(params)
    with pytest.raises(UserError, match="a Hugging Face folder cannot hold layers/down_bias: only lora adapters"):
        huggingface.save_folder(TINY, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()
