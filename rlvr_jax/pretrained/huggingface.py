"""Reads and writes Hugging Face folders, one tensor at a time.

The table `NAMES` has each tensor's name in this program, in a Hugging Face folder, and in a GGUF file (`gguf_file.py`).
Parameter arrays stack the layers. `tensor_views` returns a view of each tensor in them, in torch's [out, in] layout.
Loading copies file tensors into the views and saving writes the views, so memory holds the parameters and one tensor.
"""

import contextlib
import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from rlvr_jax.errors import UserError
from rlvr_jax.model import ModelConfig, Params, init_params
from rlvr_jax.ops import RopeScaling
from rlvr_jax.runs.files import read_json, write_json

# name in `Params` -> (name in a Hugging Face folder, name in a GGUF file); {} stands for the index of the layer
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
HUGGING_FACE, GGUF = range(2)  # columns of NAMES
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
LARGEST = 2**31 - 1  # the largest number in a config.json, because positions and token ids are i32
TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # dtype -> its name in safetensors

# field of ModelConfig -> key of config.json
SIZES = {"vocab_size": "vocab_size", "num_layers": "num_hidden_layers", "d_model": "hidden_size",
         "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim",
         "d_ff": "intermediate_size", "max_seq_len": "max_position_embeddings"}
# type of rotary embedding -> keys of config.json with its numbers, in the order of the fields of RopeScaling
ROPE_SETTINGS = {"default": (), "llama3": ("factor", "low_freq_factor", "high_freq_factor",
                                           "original_max_position_embeddings")}
# keys of config.json for which `model.py` supports a single value -> that value, which is also the default
ONLY = {"hidden_act": "silu", "mlp_bias": False, "attention_dropout": 0, "partial_rotary_factor": 1, "use_mrope": False,
        "rope_interleaved": False, "is_encoder_decoder": False, "quantization_config": None}
# Keys that do not affect what the network computes. A key that is not in a table here and not read below is refused.
HARMLESS = set("""_attn_implementation_autoset _name_or_path bos_token_id chunk_size_feed_forward dtype eos_token_id
    id2label initializer_range is_llama_config label2id output_attentions output_hidden_states pad_token_id
    pretraining_tp problem_type return_dict torch_dtype transformers.js_config transformers_version unsloth_fixed
    unsloth_version use_cache""".split())


def check_size(config: ModelConfig, numbers: int, path) -> None:
    """Raises UserError, naming `path`, if the model has more than `numbers` parameters, the most that its files can
    hold. Called before memory for the parameters is allocated."""
    try:
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(param_shapes(config)))
    except (OverflowError, ValueError, TypeError):  # the configuration has a size that no array can have
        count = math.inf
    if count > numbers:
        raise UserError(f"{path} describes a model of {count:,} numbers, and the files of its weights hold {numbers:,} "
                        "at most: weights and configuration are of different models, or tensors are missing")


def param_shapes(config: ModelConfig) -> Params:
    """The tree of `init_params` with a `jax.ShapeDtypeStruct` for each array."""
    return jax.eval_shape(lambda: init_params(jax.random.key(0), config))


def empty_params(config: ModelConfig, dtype: str = "float32") -> Params:
    """Uninitialised numpy arrays in the layout of `init_params`. Norms are always float32, other arrays are `dtype`."""
    return traverse_util.path_aware_map(
        lambda path, x: np.empty(x.shape, np.float32 if path[-1].endswith("norm") else jnp.dtype(dtype)),
        param_shapes(config))


def tensor_views(params: Params, column: int) -> dict[str, np.ndarray]:
    """{name of a tensor in a file: view of the part of a numpy array in `params` that holds the tensor}. The names are
    in `column` of `NAMES`, HUGGING_FACE or GGUF. Weight matrices are transposed to torch's [out, in]."""
    views = {}
    for name, array in traverse_util.flatten_dict(params, sep="/").items():
        pattern = NAMES[name][column]
        tensors = {pattern.format(i): x for i, x in enumerate(array)} if "{}" in pattern else {pattern: array}
        for key, tensor in tensors.items():
            views[key] = tensor.T if tensor.ndim == 2 and name != "embed" else tensor  # [V,D] is also torch's layout
    return views


def take_view(unread: dict[str, np.ndarray], path, name: str, shape) -> np.ndarray:
    """Pops the view of tensor `name` from `unread`, {name: view}. Raises UserError, naming the file `path`, if there is
    none, or if the view does not have `shape`, that of the tensor in the file."""
    if name not in unread:
        raise UserError(f"{path}: unexpected tensor {name}: the architecture has no such weight, or it occurs twice")
    if unread[name].shape != tuple(shape):
        raise UserError(f"{path}: tensor {name} has shape {list(shape)} where the configuration implies "
                        f"{list(unread[name].shape)}: weights and configuration are of different models")
    return unread.pop(name)


def fill(view: np.ndarray, tensor: np.ndarray, path, name: str) -> None:
    """Copies `tensor` into `view`. UserError, naming `path` and `name`, for a number not finite in the view's dtype."""
    with np.errstate(over="ignore"):
        view[...] = tensor
    if not np.isfinite(view).all():
        raise UserError(f"{path}: tensor {name} holds numbers that are not finite: copy the model again")


def refuse_missing(unread: dict[str, np.ndarray], path) -> None:
    """Raises UserError, naming `path`, if views are left in `unread`, {name: view}: their tensors were in no file."""
    if unread:
        raise UserError(f"{path}: tensor {min(unread)} is missing ({len(unread)} in all): copy the model again")


def config_from_hugging_face(d: dict, path) -> ModelConfig:
    """Converts `d`, a config.json of transformers 4 or 5. UserError, naming `path`, for missing or unsupported keys."""
    left = dict(d)  # the keys that are not read yet; those left at the end are compared with ONLY and HARMLESS

    def refuse(what):
        raise UserError(f"{path}: {what} is not supported: use a Llama, Qwen2 or Qwen3 model without it")

    def number(key, default=None, kinds=(int,), source=left):  # pops a positive number of one of the types `kinds`
        value = source.pop(key, None)
        value = default if value is None else value
        if type(value) not in kinds or not 0 < value <= LARGEST:
            wrong = f"{key} is {value!r}, not a number above 0 and up to {LARGEST:,}"
            raise UserError(f"{path}: {wrong}: copy the model's config.json again")
        return value

    family, classes = left.pop("model_type", None), left.pop("architectures", None)
    if family not in ARCHITECTURES:
        refuse(f"model_type {family!r}")
    if classes not in (None, [ARCHITECTURES[family]]):
        refuse(f"architectures {classes!r}")
    rope = {"rope_theta": left.pop("rope_theta", None)} | (left.pop("rope_scaling", None) or {}) | (
        left.pop("rope_parameters", None) or {})  # transformers 4 writes rope_scaling, 5 writes rope_parameters
    rope_type = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    if rope_type not in ROPE_SETTINGS:
        refuse(f"rope_scaling type {rope_type!r}")
    real = {"kinds": (int, float), "source": rope}
    rope_theta = float(number("rope_theta", 10_000.0, **real))
    scaling = [number(key, **real) for key in ROPE_SETTINGS[rope_type]]
    num_heads, d_model = number("num_attention_heads"), number("hidden_size")
    head_dim = number("head_dim", 128 if family == "qwen3" else d_model // num_heads)
    config = ModelConfig(
        num_heads=num_heads, d_model=d_model, head_dim=head_dim, num_kv_heads=number("num_key_value_heads", num_heads),
        **{name: number(SIZES[name]) for name in ("vocab_size", "num_layers", "d_ff", "max_seq_len")},
        rope_theta=rope_theta, rope_scaling=RopeScaling(*scaling) if scaling else None,
        norm_eps=number("rms_norm_eps", 1e-6, (int, float)), qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
        tie_embeddings=bool(left.pop("tie_word_embeddings", False)))
    if num_heads % config.num_kv_heads or head_dim % 2:
        refuse(f"{num_heads} attention heads on {config.num_kv_heads} key/value heads of {head_dim}")
    use_windows, layer_types = left.pop("use_sliding_window", False), left.pop("layer_types", None)
    width, first = left.pop("sliding_window", 4096), left.pop("max_window_layers", 28)  # transformers' defaults
    windowed = not layer_types and use_windows and width and first < config.num_layers  # layer `first` and later ones
    if windowed or set(layer_types or ()) - {"full_attention"}:
        refuse("a sliding attention window, or another layer type than full_attention,")
    supported = ONLY | {"attention_bias": family == "qwen2"}
    for key, given in [*left.items(), *rope.items()]:
        if key in supported and given not in (None, supported[key]):
            refuse(f"{key} {given!r}")
    for key in sorted(left.keys() - HARMLESS - supported.keys()) + sorted(rope.keys() - {"type"} - supported.keys()):
        refuse(f"the unknown setting {key!r}")
    return config


def config_to_hugging_face(config: ModelConfig, dtype: str) -> dict:
    """The config.json, for transformers 4 and 5, of a model whose tensors are written as `dtype`. Raises UserError for
    qkv_bias together with qk_norm, which no Hugging Face architecture has."""
    if config.qkv_bias and config.qk_norm:
        raise UserError("no Hugging Face architecture has both qkv_bias and qk_norm: turn one off")
    family = {(False, False): "llama", (True, False): "qwen2", (False, True): "qwen3"}[config.qkv_bias, config.qk_norm]
    scaling = config.rope_scaling
    rope_scaling = None if scaling is None else {"rope_type": "llama3"} | dict(
        zip(ROPE_SETTINGS["llama3"], dataclasses.astuple(scaling)))
    return {"architectures": [ARCHITECTURES[family]], "model_type": family,
            **{key: getattr(config, name) for name, key in SIZES.items()}, "hidden_act": "silu",
            "rope_theta": config.rope_theta, "rope_scaling": rope_scaling, "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings, "torch_dtype": dtype,
            # Without these keys transformers would assume Llama's ids. generation_config.json has the right ids.
            "bos_token_id": None, "eos_token_id": None}


def weight_files(dir: Path) -> list[Path]:
    """The safetensors files in `dir` that transformers would load: model.safetensors; without it, the files listed in
    model.safetensors.index.json; without both, all *.safetensors. Raises UserError if there is no such file, or if the
    index is damaged or lists a file that is missing or in another folder."""
    index = dir / "model.safetensors.index.json"
    if (dir / "model.safetensors").is_file():
        paths = [dir / "model.safetensors"]
    elif index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise UserError(f"{index} has no 'weight_map': copy it again")
        for name in names.values():
            if not isinstance(name, str) or name != Path(name).name or name == "..":
                raise UserError(f"{index} names the file {name!r}, which is not in its folder: copy the model again")
        paths = [dir / name for name in sorted(set(names.values()))]
    else:
        paths = sorted(dir.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{dir} has no *.safetensors: re-save the model with transformers' save_pretrained")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing, but the index lists it: copy the model again")
    return paths


@contextlib.contextmanager
def open_tensors(path: Path):
    """A context manager that opens `path` with `safetensors.safe_open`. UserError for a missing or damaged file."""
    try:
        with safetensors.safe_open(path, "np") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}): copy it again") from error


def load_folder(dir, dtype: str = "float32") -> tuple[ModelConfig, Params]:
    """Reads a Llama, Qwen2 or Qwen3 folder (config.json and *.safetensors in float32, bfloat16 or float16), one tensor
    at a time. Returns the configuration and numpy parameters of `dtype` (float32 norms) in the layout of `init_params`.
    Raises UserError for an unreadable file, an unsupported model, and a tensor that is missing or does not fit."""
    dir = Path(dir)
    config = config_from_hugging_face(read_json(dir / "config.json"), dir / "config.json")
    tensor_names = {}  # file -> names of its tensors
    for path in weight_files(dir):
        with open_tensors(path) as file:
            tensor_names[path] = list(file.keys())
    check_size(config, sum(path.stat().st_size for path in tensor_names), dir / "config.json")  # >= 1 byte a parameter
    params, tied_head_file = empty_params(config, dtype), None
    unread = tensor_views(params, HUGGING_FACE)  # {tensor name: view}, emptied as tensors are read
    for path, names in tensor_names.items():
        for name in names:
            with open_tensors(path) as file:  # opened per tensor: mapped pages use memory until the file is closed
                if name.endswith("rotary_emb.inv_freq"):  # a constant that old Llama files contain
                    continue
                if name == "lm_head.weight" and config.tie_embeddings:
                    tied_head_file = path  # the head is compared with the embedding below
                    continue
                header = file.get_slice(name)
                view, kind = take_view(unread, path, name, header.get_shape()), header.get_dtype()
                if kind not in TYPES.values():
                    raise UserError(f"{path}: tensor {name} is of type {kind}: use the model's unquantised weights")
                fill(view, file.get_tensor(name), path, name)
    refuse_missing(unread, dir)
    if tied_head_file is not None:
        with open_tensors(tied_head_file) as file:
            same = np.array_equal(file.get_tensor("lm_head.weight").astype(jnp.dtype(dtype)), params["embed"])
        if not same:
            raise UserError(f"{tied_head_file}: lm_head.weight differs from the embedding: set tie_word_embeddings to "
                            "false in config.json")
    return config, params


def write_tensors(path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """Writes `tensors`, {name: array}, as `dtype` into a safetensors file, one at a time: `safetensors.numpy.save_file`
    would hold two copies of all. The file is the header's length (u64), the header (JSON) and the tensors' bytes."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.size * jnp.dtype(dtype).itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, jnp.dtype(dtype)).view(np.uint8).data)


def save_folder(config: ModelConfig, params: Params, dir, dtype: str = "float32", shard_bytes: int = 2**31) -> None:
    """Writes config.json and model.safetensors into the folder `dir`, for transformers. Tensors of more than
    `shard_bytes` together are divided among several files and an index. Weight files of an earlier save are removed.
    `params` are float32 arrays on host or device in the layout of `model.init_params`; `dtype` is that of the written
    tensors: float32, bfloat16 or float16. Raises UserError, before writing anything, for parameters of adapters."""
    dir, flat = Path(dir), traverse_util.flatten_dict(params, sep="/")
    if foreign := sorted(flat.keys() - NAMES.keys()):
        raise UserError(f"a Hugging Face folder cannot hold {', '.join(foreign)}: only lora adapters can be "
                        "merged into its weights; evaluate and sample from the run directory itself")
    dir.mkdir(parents=True, exist_ok=True)
    write_json(dir / "config.json", config_to_hugging_face(config, dtype))
    views = tensor_views(jax.tree.map(np.asarray, params), HUGGING_FACE)
    sizes = {name: view.size * jnp.dtype(dtype).itemsize for name, view in views.items()}
    shards, bytes_left = [], 0  # the names of the tensors in each file; the space left in the last file
    for name, size in sizes.items():
        if size > bytes_left:
            shards.append([])
            bytes_left = max(shard_bytes, size)
        shards[-1].append(name)
        bytes_left -= size
    files = ([f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
             if len(shards) > 1 else ["model.safetensors"])
    for file, names in zip(files, shards):
        write_tensors(dir / file, {name: views[name] for name in names}, dtype)
    index = {"metadata": {"total_size": sum(sizes.values())},
             "weight_map": {name: file for file, names in zip(files, shards) for name in names}}
    if len(shards) > 1:
        files.append("model.safetensors.index.json")
        write_json(dir / files[-1], index)
    for path in dir.glob("model*.safetensors*"):  # remaining files could be loaded by mistake
        if path.name not in files:
            path.unlink()
