"""Hugging Face folders: lossless round trips, the logits of transformers, and errors that name what is wrong."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from hypothesis import given, settings, strategies as st

from rlvr_jax.errors import UserError
from rlvr_jax.model import ModelConfig, init_params
from rlvr_jax.ops import RopeScaling
from rlvr_jax.pretrained import huggingface, loading, tokenizer as tokenizer_lib

from fixtures import ROOT, run
from golden.cases import (CONFIGS, LINES, STRETCH, assert_same_params, greedy, logits, random_params, random_tokens,
                          write_qwen2_tokenizer)

GOLDEN = ROOT / "tests" / "golden"
CONFIG = CONFIGS["llama_untied"]


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
    huggingface.save_folder(CONFIG, random_params(CONFIG, 0), tmp_path)
    return tmp_path


# ----- round trips

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
        huggingface.save_folder(config, jax.tree.map(jnp.asarray, params), dir, shard_bytes=shard_bytes)
        size = sum(x.nbytes for x in jax.tree.leaves(params))
        assert (Path(dir) / "model.safetensors.index.json").is_file() == (shard_bytes < size)
        again, params_again = huggingface.load_folder(dir)
    assert again == config
    assert_same_params(params_again, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_others_wrote_in_shards_comes_out_byte_for_byte(name, dtype, tmp_path):
    huggingface.save_folder(CONFIGS[name], random_params(CONFIGS[name], 0), tmp_path, dtype)
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(x.shape).astype(x.dtype) for key, x in  # no symmetry
               safetensors.numpy.load_file(tmp_path / "model.safetensors").items()}
    largest, least = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_subnormal)
    tensors["model.norm.weight"].flat[:4] = [-0.0, largest, least, -largest]
    (tmp_path / "model.safetensors").unlink()
    where = {key: f"model-{1 + i % 3:05}-of-00003.safetensors" for i, key in enumerate(sorted(tensors))}
    for file in set(where.values()):
        safetensors.numpy.save_file({key: x for key, x in tensors.items() if where[key] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    config, params = huggingface.load_folder(tmp_path)
    huggingface.save_folder(config, params, tmp_path / "out", dtype)
    again = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        assert (again[key].dtype, again[key].shape, again[key].tobytes()) == (x.dtype, x.shape, x.tobytes())


def test_export_gives_a_bfloat16_folder_back_and_names_a_full_disk(tmp_path, compiled):
    config = dataclasses.replace(CONFIGS["qwen2_untied"], vocab_size=640)
    huggingface.save_folder(config, random_params(config, 0), tmp_path / "a", "bfloat16")
    write_qwen2_tokenizer(tmp_path / "a", LINES)
    run("export", f"--model={tmp_path / 'a'}", f"--out={tmp_path / 'b'}", "--dtype=bfloat16", compiled=compiled,
        expect=0)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").symlink_to("/dev/full")
    result = run("export", f"--model={tmp_path / 'a'}", f"--out={tmp_path / 'full'}", compiled=compiled, expect=1)
    assert len(result.errors) == 1 and "No space left" in result.err and f"{tmp_path / 'full'}" in result.err


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_untied"])
def test_half_the_memory_gives_the_same_logits_of_a_bfloat16_computation(name, stored, tmp_path):
    config = dataclasses.replace(CONFIGS[name], dtype="bfloat16")
    huggingface.save_folder(config, random_params(config, 0), tmp_path, stored)
    whole, half = (huggingface.load_folder(tmp_path, dtype)[1] for dtype in ("float32", "bfloat16"))
    rows = random_tokens(config, seed=1, length=64)
    np.testing.assert_array_equal(logits(half, config, rows), logits(whole, config, rows))
    assert sum(x.nbytes for x in jax.tree.leaves(half)) < 0.52 * sum(x.nbytes for x in jax.tree.leaves(whole))


def test_matrices_are_transposed_under_their_published_names(saved):
    tensors, params = safetensors.numpy.load_file(saved / "model.safetensors"), random_params(CONFIG, 0)
    assert len(tensors) == 3 + 9 * CONFIG.num_layers
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embed"])
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["head"].T)
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.down_proj.weight"], params["layers"]["down"][1].T)
    np.testing.assert_array_equal(tensors["model.layers.0.post_attention_layernorm.weight"],
                                  params["layers"]["mlp_norm"][0])


MEASURE = """
import re, sys, pathlib, jax
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained import huggingface
huggingface.empty_params({small!r})  # compiles what every model needs
def memory(field):  # of this process, bytes
    return 1024 * int(re.search(field + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = memory("VmRSS")
config, params = huggingface.load_folder(sys.argv[1], {dtype!r})
loaded, size = memory("VmHWM"), sum(x.nbytes for x in jax.tree.leaves(params))
huggingface.save_folder(config, params, sys.argv[2], {dtype!r})
print((loaded - before) / size, (memory("VmHWM") - before) / size, size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process as Linux has it")
@pytest.mark.parametrize("stored, dtype", [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")])
def test_reading_and_writing_never_hold_two_copies_of_a_model(stored, dtype, tmp_path):
    config = ModelConfig(vocab_size=8192, num_layers=16, d_model=512, num_heads=8, num_kv_heads=8, head_dim=64,
                         d_ff=1344, max_seq_len=64)
    huggingface.save_folder(config, jax.tree.map(np.ones_like, huggingface.empty_params(config)), tmp_path / "a",
                        stored)
    code = MEASURE.format(small=CONFIG, dtype=dtype)
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"], cwd=ROOT,
                            capture_output=True, text=True, timeout=120)
    reading, writing, size = map(float, result.stdout.split())
    assert size > {"float32": 2e8, "bfloat16": 1e8}[dtype] and 0.9 < reading < 1.3 and writing < 1.3


def test_saving_over_a_sharded_folder_leaves_none_of_the_old_weights(tmp_path):
    old, new = random_params(CONFIG, 0), random_params(CONFIG, 1)
    for first, second in ((2**14, 2**31), (2**31, 2**14), (2**14, 2**15)):
        huggingface.save_folder(CONFIG, old, tmp_path, shard_bytes=first)
        huggingface.save_folder(CONFIG, new, tmp_path, shard_bytes=second)
        assert_same_params(huggingface.load_folder(tmp_path)[1], new)
        listed = {path.name for path in huggingface.weight_files(tmp_path)}
        assert {path.name for path in tmp_path.glob("*.safetensors")} == listed


# ----- logits

@pytest.mark.parametrize("name", CONFIGS)
def test_small_models_agree_with_transformers(name, tmp_path):
    golden = json.loads((GOLDEN / "small.json").read_text())["models"][name]
    huggingface.save_folder(CONFIGS[name], random_params(CONFIGS[name], 0), tmp_path)
    config, params = huggingface.load_folder(tmp_path)
    tokens = random_tokens(config, seed=1, length=64)
    np.testing.assert_allclose(logits(params, config, tokens)[:, -1], golden["last_logits"], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(greedy(params, config, tokens, 32), golden["greedy"])


# ----- dialects of config.json

def test_the_spelling_of_transformers_5_means_the_same_and_both_names_of_a_stretch_may_be_there(saved):
    """Configurations that several versions wrote have both."""
    stretch = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
    edit_config(saved, rope_scaling=stretch | {"type": "llama3"})
    assert huggingface.load_folder(saved)[0] == dataclasses.replace(CONFIG, rope_scaling=STRETCH)
    edit_config(saved, rope_theta=None, rope_scaling=None, torch_dtype=None, dtype="float32",
                rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta})
    assert huggingface.load_folder(saved)[0] == CONFIG
    edit_config(saved, rope_parameters=stretch | {"rope_theta": CONFIG.rope_theta})
    assert huggingface.load_folder(saved)[0] == dataclasses.replace(CONFIG, rope_scaling=STRETCH)


def test_absent_fields_have_the_architecture_s_defaults(saved):
    edit_config(saved, head_dim=None, num_key_value_heads=None, tie_word_embeddings=None, rope_scaling=None,
                rope_theta=None, rms_norm_eps=None, hidden_act=None)
    assert huggingface.load_folder(saved)[0] == dataclasses.replace(CONFIG, rope_theta=10_000.0, norm_eps=1e-6)
    written = huggingface.config_to_hugging_face(CONFIGS["qwen3_tied"], "float32")  # 4 heads, 32 numbers
    assert written.pop("head_dim") == 16 and huggingface.config_from_hugging_face(written, saved).head_dim == 128


# name -> millions of parameters according to the model card, and sizes in which the models differ
PUBLISHED = {
    "Qwen2.5-Math-1.5B": (1543.7, dict(num_kv_heads=2, head_dim=128, rope_theta=1e4, max_seq_len=4096, qkv_bias=True)),
    "Qwen2.5-Math-7B": (7615.6, dict(num_kv_heads=4, head_dim=128, tie_embeddings=False, qkv_bias=True)),
    "Qwen2.5-1.5B": (1543.7, dict(rope_theta=1e6, max_seq_len=131072, qkv_bias=True, tie_embeddings=True)),
    "Llama-3.2-3B-Instruct": (3212.7, dict(rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), norm_eps=1e-5)),
    "SmolLM2-135M": (134.5, dict(num_heads=9, num_kv_heads=3, head_dim=64, rope_theta=1e5, qkv_bias=False)),
    "SmolLM2-135M-Instruct": (134.5, dict(num_layers=30, d_model=576, tie_embeddings=True)),
    "Qwen3-1.7B": (1720.6, dict(qk_norm=True, qkv_bias=False, head_dim=128, rope_scaling=None, norm_eps=1e-6))}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configurations_are_read(name):
    published = json.loads((GOLDEN / "published_configs.json").read_text())[name]
    config = huggingface.config_from_hugging_face(published, name)
    millions, fields = PUBLISHED[name]
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.05)
    assert {key: getattr(config, key) for key in fields} == fields


@pytest.mark.parametrize("fields", [
    {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1},  # as Qwen2.5 writes it
    {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 3},
    {"layer_types": ["full_attention"] * 3, "sliding_window": 16, "use_sliding_window": False}])
def test_a_sliding_window_that_no_layer_uses_is_fine(fields, tmp_path):
    config = CONFIGS["qwen2_untied"]
    huggingface.save_folder(config, random_params(config, 0), tmp_path)
    edit_config(tmp_path, **fields)
    assert huggingface.load_folder(tmp_path)[0] == config


@pytest.mark.parametrize("fields, message", [
    ({"model_type": "mistral"}, "model_type 'mistral'"), ({"model_type": None}, "model_type None"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling type 'linear'"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_scaling type 'dynamic'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor is None, not a number"),
    ({"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24]}}, "unknown setting 'mrope_section'"),
    ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "unknown setting 'factor'"),
    ({"rope_theta": "1e4"}, "rope_theta is '1e4', not a number"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ({"logit_scale": 0.1}, "unknown setting 'logit_scale'"), ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config {'quant_method': 'fp8'}"),
    ({"architectures": ["LlamaForSequenceClassification"]}, r"architectures \['LlamaForSequenceClassification'\]"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "layer type"),
    ({"num_key_value_heads": 3}, "4 attention heads on 3"),
    ({"hidden_size": 32.0}, "hidden_size is 32.0, not a number"),
    ({"intermediate_size": 0}, "intermediate_size is 0, not a number above 0"),
    ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding attention window"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding attention window"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"), ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"), ({"num_hidden_layers": None}, "num_hidden_layers is None, not a number"),
    ({"num_hidden_layers": 3}, "model.layers.2.* is missing"),
    ({"num_hidden_layers": 1}, "unexpected tensor model.layers.1"),
    ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "_norm.weight is missing"),
    ({"num_hidden_layers": 10**9}, "numbers, and the files of its weights hold .* of different models"),
    ({"vocab_size": 10**9}, "numbers, and the files of its weights hold .* of different models"),
    ({"vocab_size": 10**12}, "vocab_size is 1000000000000, not a number above 0 and up to 2,147,483,647"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000, not a number above 0 and up to"),
    ({"vocab_size": 98}, r"model.embed_tokens.weight has shape \[97, 32\].* \[98, 32\]|lm_head.weight has shape"),
    ({"num_key_value_heads": 2}, r"[kv]_proj.weight has shape \[32, 32\]")])
def test_configurations_refused_by_name(fields, message, saved):
    edit_config(saved, **fields)
    with pytest.raises(UserError, match=message) as error:
        huggingface.load_folder(saved)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("edit, message", [
    (lambda t: {k: v for k, v in t.items() if "1.mlp.up" not in k}, "model.layers.1.mlp.up_proj.weight is missing"),
    (lambda t: t | {"model.layers.0.mlp.up_proj.bias": np.zeros(48, np.float32)}, "model.layers.0.mlp.up_proj.bias"),
    (lambda t: t | {"model.norm.weight": np.ones(31, np.float32)}, r"model.norm.weight has shape \[31\]"),
    (lambda t: t | {"lm_head.weight": np.zeros((97, 32), np.int8)}, "lm_head.weight is of type I8"),
    *((lambda t, x=x: t | {"model.norm.weight": np.full(32, [1] * 31 + [x], np.float32)},
       "model.safetensors: tensor model.norm.weight holds numbers that are not finite") for x in (np.nan, -np.inf))])
def test_tensors_refused_by_name(edit, message, saved):
    edit_tensors(saved, edit)
    with pytest.raises(UserError, match=message):
        huggingface.load_folder(saved)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_half_written_file_is_refused_by_name(keep, saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors is not a complete safetensors file"):
        huggingface.load_folder(saved)


def test_missing_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="config.json cannot be read"):
        huggingface.load_folder(tmp_path)
    huggingface.save_folder(CONFIG, random_params(CONFIG, 0), tmp_path, shard_bytes=2**14)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        huggingface.load_folder(tmp_path)
    shard.write_bytes(content)
    for index, message in (("{}", "has no 'weight_map'"), ("[]", "holds a list"), ("{", "cannot be read as JSON")):
        (tmp_path / "model.safetensors.index.json").write_text(index)
        with pytest.raises(UserError, match=f"index.json {message}"):
            huggingface.load_folder(tmp_path)
    for name in ("../a.safetensors", "/tmp/a.safetensors", "..", "sub/a.safetensors", 3):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(UserError, match="index.json names the file .*, which is not in its folder"):
            huggingface.load_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    huggingface.load_folder(tmp_path)  # shards without an index are still a whole model
    (tmp_path / "copy.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="occurs twice"):
        huggingface.load_folder(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"no \*.safetensors"):
        huggingface.load_folder(tmp_path)


def test_a_head_beside_tied_embeddings_must_be_the_embedding(tmp_path):
    config = CONFIGS["llama_tied"]
    huggingface.save_folder(config, random_params(config, 0), tmp_path)
    edit_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"],
                                          "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})
    assert_same_params(huggingface.load_folder(tmp_path)[1], random_params(config, 0))
    edit_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(UserError, match="tie_word_embeddings"):
        huggingface.load_folder(tmp_path)


def test_a_shape_without_a_published_architecture_is_not_written(tmp_path):
    config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match="qkv_bias and qk_norm"):
        huggingface.save_folder(config, random_params(config, 0), tmp_path)


def test_a_tokenizer_fits_its_embedding_up_to_padding_and_has_its_end_tokens():
    def words(known, *eos_ids):
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": known - 1}, unk_token="a"))
        return tokenizer_lib.Tokenizer(backend, (0, *eos_ids), 0, None, {})

    for known, size in [(6, 6), (6, 99), (151_665, 151_936), (151_665, 152_064), (100_015, 102_400)]:  # Qwen, DeepSeek
        tokenizer_lib.check_tokenizer(words(known), size, "m")
    for known, size in [(6, 5), (300, 2_000), (49_152, 128_256), (128_256, 151_936)]:
        with pytest.raises(UserError, match=f"^m: the tokenizer has ids up to {known - 1}, .* {size} embeddings: take"):
            tokenizer_lib.check_tokenizer(words(known), size, "m")
    for end in (7, 3, -1, "a"):  # 3 has an embedding but no word
        with pytest.raises(UserError, match=f"^m: the end token {end!r} is not an id of the tokenizer: correct eos"):
            tokenizer_lib.check_tokenizer(words(6, end), 6, "m")


# ----- the hub

def test_a_name_of_the_hub_is_answered_with_the_line_that_downloads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        loading.load_model("Qwen/Qwen2.5-0.5B-Instruct")
    assert str(error.value).splitlines() == [
        "--model=Qwen/Qwen2.5-0.5B-Instruct: no such directory or .gguf file; if it is a model of the Hugging Face "
        "hub: hf download Qwen/Qwen2.5-0.5B-Instruct --local-dir Qwen/Qwen2.5-0.5B-Instruct, or "
        "--model=hf:Qwen/Qwen2.5-0.5B-Instruct"]
    with pytest.raises(UserError, match="no such directory or .gguf file$"):
        loading.load_model("nowhere")


def test_a_name_of_the_hub_is_downloaded_and_a_broken_download_is_no_model(tmp_path, monkeypatch):
    """A fake library returns a folder, or fails before the weights have arrived."""
    config, asked = dataclasses.replace(CONFIG, vocab_size=600), []
    whole, half, here = (tmp_path / name for name in ("whole", "half", "here"))
    huggingface.save_folder(config, random_params(config, 0), whole)
    write_qwen2_tokenizer(whole, LINES)
    half.mkdir()
    here.mkdir()

    def download(name, allow_patterns):
        asked.append(name)
        if len(asked) == 1:
            (half / "config.json").write_text((whole / "config.json").read_text())
            raise OSError("connection reset\nby the other side")
        if len(asked) == 2:
            raise TimeoutError
        return str(whole)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download))
    monkeypatch.chdir(here)
    with pytest.raises(UserError) as error:
        loading.load_model("hf:me/tiny")
    assert str(error.value) == ("--model=hf:me/tiny: the download failed (connection reset); run the same command "
                                "again to continue, or name a folder that has the model")
    assert not list(here.iterdir())
    with pytest.raises(UserError, match=r"the download failed \(TimeoutError\)"):
        loading.load_model("hf:me/tiny")
    assert_same_params(loading.load_model("hf:me/tiny").params, random_params(config, 0))
    assert asked == ["me/tiny"] * 3
