"""Adapters: a few trainable leaves (arrays) added to the frozen parameters of a model.

Each function in `ADAPTERS` creates the leaves of one adapter, which at first do not change the model's output;
`model.layer` applies them. The parameters without the adapter also serve as the KL reference, without a copy.

With `--adapter_layers` or `--adapter_size` the leaves depend on fewer trained numbers. Every update then recomputes
`leaf = start + map . numbers`; `params["adapter"]` holds the numbers, and the start and the map of each leaf.
"""

from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rlvr_jax import model
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
TRAINED = ("_lora_a", "_lora_b", "vector")  # a leaf is trained if its name ends like this
STREAM = 3  # stream of random keys for new adapters; the sampler uses streams 0 to 2


class AdapterConfig(Config):
    """Which parameters of the model are trained."""

    trainable: str = flag("all", "train all parameters, or an adapter. An adapter that --model already has is "
                          "merged into its weights", lambda: {"all": None} | ADAPTERS)
    adapter_rank: int = flag(1, "rank of LoRA's factors", minimum=1)
    adapter_alpha: float = flag(32.0, "LoRA adds alpha / rank times the product of its factors", above=0)
    adapter_layers: tuple[int, ...] = flag((), "layers, from 0, after which a vector is added; empty: all", minimum=0)
    params_dtype: str = flag("float32", "type of the frozen parameters under an adapter, except norms: 16 bits halve "
                             "their memory", ["float32", "bfloat16", "float16"])
    adapter_size: int = flag(0, "train this many numbers, from which a fixed random orthonormal projection "
                             "computes the adapter; 0: train the adapter itself", minimum=0)


def lora(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """Adds alpha/r (x A) B to the output x W of every linear map (Hu et al., arXiv 2106.09685). Returns alpha/r and
    the factors of each W [L,N,M]: A [L,N,r], uniform in [-1/sqrt(N), 1/sqrt(N)] as in PEFT, and B [L,r,M], zero."""
    rank, num_layers = config.adapter_rank, len(layers["q"])
    leaves = {"lora_scale": jnp.full(num_layers, config.adapter_alpha / rank, jnp.float32)}
    for name, key in zip(LINEAR, jax.random.split(key, len(LINEAR))):
        _, inputs, outputs = layers[name].shape
        bound = inputs**-0.5
        leaves[name + "_lora_a"] = jax.random.uniform(key, (num_layers, inputs, rank), jnp.float32, -bound, bound)
        leaves[name + "_lora_b"] = jnp.zeros((num_layers, rank, outputs))
    return leaves


def vector(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """Adds a trained vector to the residual stream after every layer (arXiv 2505.18706). Returns zeros, [L,D]."""
    return {"vector": jnp.zeros(layers["attn_norm"].shape)}


def first_vector(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """Adds a trained vector only at the position that predicts the first token of a completion. Returns zeros, [L,D].
    If a `vector` after the last layer works only through that token (arXiv 2509.06608), this adapter works as well."""
    return {"first_vector": jnp.zeros(layers["attn_norm"].shape)}


# Values of --trainable. Each is (flags, layer weights {name: [L,...]}, random key) -> new leaves {name: f32[L,...]}.
ADAPTERS: dict[str, Callable] = {"lora": lora, "vector": vector, "first_vector": first_vector}


def add(config: AdapterConfig, params: dict, seed: int) -> dict:
    """Merges an earlier adapter and adds the one of --trainable ("all": none). Its initial values depend on `seed` and do
    not change the model's output. Frozen weights are cast to params_dtype. UserError if flags do not suit the model."""
    params = merge(params)
    if config.trainable == "all":
        unused = [name for name, value in vars(config).items() if value != getattr(AdapterConfig(), name)]
        if unused:
            raise UserError(f"--{unused[0]} needs an adapter: --trainable={' or '.join(ADAPTERS)}")
        return params
    if config.params_dtype != "float32":
        params = model.cast_weights(params, config.params_dtype)
    key, map_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), STREAM))
    leaves = ADAPTERS[config.trainable](config, params["layers"], key)
    if not any(name.endswith(TRAINED) for name in leaves):  # otherwise `split` would train everything
        raise UserError(f"--trainable={config.trainable} makes nothing that is trained ({', '.join(leaves)}): names "
                        f"of trained leaves end with {' or '.join(TRAINED)}")
    params["layers"] = params["layers"] | leaves
    if config.adapter_size or config.adapter_layers:
        trained, _ = split(params)
        params["adapter"] = fewer_numbers(config, trained["layers"], map_key)
    return params


def fewer_numbers(config: AdapterConfig, leaves: dict, key: jax.Array) -> dict:
    """Returns params["adapter"] for the trained leaves {name: f32[L,...]}: {"numbers": array, "start": {name: leaf},
    "maps": {name: array}}, from which `join` computes the leaves. With --adapter_size=k the numbers are f32[k], and the
    maps [L,...,k] are random; stacked to one matrix of k columns, the columns are orthonormal. Otherwise the numbers,
    f32[n,D], are the vectors of the n layers in --adapter_layers, and the map, [L,n], assigns them to the layers."""
    size, depth = config.adapter_size, len(next(iter(leaves.values())))  # depth: how many layers the model has
    layers = np.array(sorted(set(config.adapter_layers)) or range(depth))
    (name, *other_names) = leaves
    if config.adapter_layers and (other_names or not name.endswith("vector")):
        raise UserError("--adapter_layers lists layers that get a vector: it needs --trainable=vector or first_vector")
    if not (0 <= layers.min() and layers.max() < depth):
        raise UserError(f"--adapter_layers={','.join(map(str, layers))}: the layers of the model are 0 to {depth - 1}")
    start = jax.tree.map(jnp.copy, leaves)  # copied, since one buffer cannot be donated twice
    if not size:
        return {"numbers": leaves[name][layers], "start": start, "maps": {name: jnp.eye(depth)[:, layers]}}
    leaf_sizes = [len(layers) * leaf[0].size for leaf in leaves.values()]  # how many numbers each has in `layers`
    if size > sum(leaf_sizes):
        raise UserError(f"--adapter_size={size}: the adapter has {sum(leaf_sizes)} numbers; 0 trains them all")
    columns, _ = jnp.linalg.qr(jax.random.normal(key, (sum(leaf_sizes), size)))
    blocks = jnp.split(columns, np.cumsum(leaf_sizes)[:-1])  # one block of rows for each leaf
    maps = {name: jnp.zeros((*leaf.shape, size)).at[layers].set(block.reshape(len(layers), *leaf.shape[1:], size))
            for (name, leaf), block in zip(leaves.items(), blocks)}
    return {"numbers": jnp.zeros(size), "start": start, "maps": maps}


def split(params: dict) -> tuple[dict, dict]:
    """Splits parameters into two trees, (trained, frozen). Trained are an adapter's "numbers"; without them, an
    adapter's leaves (names end as in TRAINED); without an adapter, all parameters, and `frozen` is {}."""
    flat = traverse_util.flatten_dict(params)
    paths = [("adapter", "numbers")] if "adapter" in params else [path for path in flat if path[-1].endswith(TRAINED)]
    trained = {path: flat[path] for path in paths or flat}
    frozen = {path: x for path, x in flat.items() if path not in trained}
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def join(trained: dict, frozen: dict) -> dict:
    """Joins what `split` returned into parameters, and recomputes the leaves that depend on trained numbers."""
    params = traverse_util.unflatten_dict(traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained))
    if "adapter" in params:
        numbers, start, maps = (params["adapter"][name] for name in ("numbers", "start", "maps"))
        params["layers"] |= {name: start[name] + jnp.tensordot(maps[name], numbers, 1, precision="highest")
                             for name in start}
    return params


def base_params(params: dict) -> dict:
    """Returns the parameters without the adapter: the model that the run started from."""
    layers = {name: x for name, x in params["layers"].items() if not name.endswith((*TRAINED, "lora_scale"))}
    return {name: x for name, x in params.items() if name != "adapter"} | {"layers": layers}


def merge(params: dict) -> dict:
    """Returns parameters of the same model without an adapter, for further training or export. LoRA's products are
    added to the weights. A trained vector becomes the bias "down_bias", which a layer adds at the same point, its end.
    Changed leaves become numpy arrays. Raises UserError for `first_vector`, which no weight can express."""
    adapted, plain = params["layers"], base_params(params)
    if "first_vector" in adapted:
        raise UserError("--model was trained with --trainable=first_vector, which acts at one token and cannot become "
                        "part of the weights: name the model that its run started from")
    layers = plain["layers"]
    for name in LINEAR:
        if name + "_lora_a" in adapted:
            layers[name] = np.array(layers[name], np.float32)
            scale, a, b = (np.asarray(adapted[x]) for x in ("lora_scale", name + "_lora_a", name + "_lora_b"))
            for i in range(len(scale)):  # layer by layer, to save memory
                layers[name][i] += scale[i] * (a[i] @ b[i])
    if "vector" in adapted:
        layers["down_bias"] = np.asarray(adapted["vector"]) + np.asarray(layers.get("down_bias", np.float32(0)))
    return plain
