"""The small random models and the prompts that the golden files, the tests and the parity tests have in common."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import traverse_util
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

from rlvr_jax import sampler
from rlvr_jax.model import ModelConfig, forward, head
from rlvr_jax.ops import RopeScaling
from rlvr_jax.pretrained.huggingface import empty_params
from rlvr_jax.records import Prompts
from rlvr_jax.tasks.prompts import pad_rows

SMALL = dict(vocab_size=97, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48, max_seq_len=256)
# The original window is short enough for positions in the tests to fall in all three regions of the stretch.
STRETCH = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=64)
CONFIGS = {
    "llama_tied": ModelConfig(**SMALL, norm_eps=1e-5),
    "llama_untied": ModelConfig(**SMALL | {"num_kv_heads": 4}, rope_theta=500_000.0, tie_embeddings=False),
    "llama_stretched": ModelConfig(**SMALL | {"head_dim": 16, "num_kv_heads": 1}, rope_scaling=STRETCH),
    "qwen2_tied": ModelConfig(**SMALL, qkv_bias=True, rope_theta=1_000_000.0),
    "qwen2_untied": ModelConfig(**SMALL | {"num_layers": 3}, qkv_bias=True, tie_embeddings=False),
    "qwen3_tied": ModelConfig(**SMALL | {"head_dim": 16}, qk_norm=True, rope_theta=1_000_000.0),
    "qwen3_untied": ModelConfig(**SMALL | {"num_kv_heads": 4}, qk_norm=True, tie_embeddings=False)}
QUESTIONS = (
    "What is the capital of France?", "Compute 123 + 456 and explain each step.",
    "A farmer has 17 sheep and buys 8 more.  How many sheep are there now?", "Write one sentence about the sea.",
    "List the first five prime numbers.")
LINES = (
    "The answer is 1234567, not 12 345.67.", "  indented   by spaces\tand tabs\n\n\nthen  2  newlines 42",
    "def f(x):\n    return x**2 + 3*x - 10\n", r"Let $\frac{a_{12}}{b} = \sqrt{2}$; then \boxed{\frac{1}{2}}.",
    "naïve café, Zürich – 東京 2024年, Привет, 🎉👍🏽 ½ ② ٣", "it's, they'll, I'D, we've; don't 'quote' ''this''",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>x <|not_special|>", "", " ", "x\r\ny\u00a0z\u200b\x00end")

QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
               r"\s+(?!\S)|\s+")
# In the order of their ids, which follow those of the vocabulary: first the special ones, then those that are text.
QWEN2_SPECIAL = [f"<|{name}|>" for name in (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start "
    "vision_end vision_pad image_pad video_pad").split()]
QWEN2_TEXT = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
              "<|repo_name|>", "<|file_sep|>"]


def random_params(config: ModelConfig, seed: int) -> dict:
    """Float32 numpy parameters with every norm, bias and matrix far from its default, so each shows in the logits."""
    rng = np.random.RandomState(seed)  # numpy promises never to change this stream
    flat = traverse_util.flatten_dict(empty_params(config), sep="/")
    return traverse_util.unflatten_dict({name: (0.2 * rng.standard_normal(flat[name].shape) + name.endswith("_norm"))
                                         .astype(np.float32) for name in sorted(flat)}, sep="/")


def random_tokens(config: ModelConfig, seed: int, length: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, config.vocab_size, (2, length)).astype(np.int32)


def logits(params: dict, config: ModelConfig, rows) -> np.ndarray:
    """Float32 logits at every position of equally long rows, [B,T,V]."""
    params = jax.tree.map(jnp.asarray, params)
    hidden, _ = jax.jit(forward, static_argnums=1)(params, config, np.array(rows, np.int32))
    return np.asarray(head(params, hidden))


def assert_same_params(ours: dict, theirs: dict) -> None:
    """Float32, bit for bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == np.float32 and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def greedy(params: dict, config: ModelConfig, prompts: list, num_tokens: int) -> np.ndarray:
    """The most likely token, `num_tokens` times after each prompt, i32[P,num_tokens]; nothing ends it early."""
    tokens, lengths = pad_rows(prompts, 0)
    rows = np.arange(len(prompts), dtype=np.int32)
    drawn = jax.jit(sampler.sample, static_argnums=(1, 4))(
        jax.tree.map(jnp.asarray, params), config, Prompts(tokens, lengths),
        sampler.Rows(rows, sampler.rollout_keys(0, 0, rows), 0.0), sampler.Decoding((-1,), num_tokens))
    return np.asarray(drawn.completions)


def write_gguf(path, config, params, family, *, tensor_edits=None, quantise=None, **metadata):
    """A GGUF as llama.cpp's converter writes it: its names, and for llama its order of query and key rows."""
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    writer = gguf.GGUFWriter(path, family)
    for key, value in {"block_count": config.num_layers, "context_length": config.max_seq_len, "embedding_length":
                       config.d_model, "feed_forward_length": config.d_ff, "attention.head_count": config.num_heads,
                       "attention.head_count_kv": config.num_kv_heads, "attention.key_length": config.head_dim}.items():
        writer.add_uint32(f"{family}.{key}", value)
    writer.add_float32(f"{family}.rope.freq_base", config.rope_theta)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", config.norm_eps)
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{family}.{key.replace('__', '.')}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["t", "1", "2", "t1"] + [f"unused {i}" for i in range(4, config.vocab_size)])
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)
    names = {"attn_norm": "attn_norm.weight", "q": "attn_q.weight", "k": "attn_k.weight", "v": "attn_v.weight",
             "o": "attn_output.weight", "q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias",
             "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight", "mlp_norm": "ffn_norm.weight",
             "gate": "ffn_gate.weight", "up": "ffn_up.weight", "down": "ffn_down.weight"}
    tensors = {"token_embd.weight": params["embed"], "output_norm.weight": params["final_norm"]}
    if "head" in params:
        tensors["output.weight"] = params["head"].T
    half = config.head_dim // 2
    for (name, stacked), i in ((item, i) for item in params["layers"].items() for i in range(config.num_layers)):
        tensor = stacked[i].T
        if family == "llama" and name in "qk":
            rows = [head * 2 * half + j + side * half
                    for head in range(len(tensor) // (2 * half)) for j in range(half) for side in (0, 1)]
            tensor = tensor[rows]
        tensors[f"blk.{i}.{names[name]}"] = tensor
    for name, tensor in (tensors | (tensor_edits or {})).items():
        if tensor is not None and quantise and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType[quantise]
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(tensor), kind), raw_dtype=kind)
        elif tensor is not None:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_qwen2_tokenizer(dir, texts, vocab_size: int = 512, more: list = ()) -> None:
    """The tokenizer files of Qwen2.5-Math, but for their vocabulary, learnt from `texts`, and `more` added tokens."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)])
    backend.post_processor, backend.decoder = processors.ByteLevel(**byte_level), decoders.ByteLevel(**byte_level)
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    added = dict.fromkeys(QWEN2_SPECIAL, True) | dict.fromkeys([*QWEN2_TEXT, *more], False)
    backend.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False)
                        for token, special in added.items()])
    dir = Path(dir)
    dir.mkdir(parents=True, exist_ok=True)
    backend.save(str(dir / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    end, turn_end = backend.token_to_id("<|endoftext|>"), backend.token_to_id("<|im_end|>")
    files = {
        "tokenizer_config": {
            "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": {
                str(backend.token_to_id(token)): {"content": token, **flags, "special": special}
                for token, special in added.items()},
            "additional_special_tokens": QWEN2_SPECIAL[1:], "bos_token": None,
            "chat_template": Path(__file__).with_name("qwen2_math_chat.jinja").read_text(encoding="utf-8"),
            "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "errors": "replace",
            "model_max_length": 131072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer", "unk_token": None},
        "generation_config": {
            "bos_token_id": end, "pad_token_id": end, "do_sample": False, "eos_token_id": [turn_end, end],
            "max_new_tokens": 2048, "transformers_version": "4.44.0"}}
    for name, content in files.items():
        (dir / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
