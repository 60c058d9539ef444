"""Adapters: a few trainable leaves added to the frozen parameters of a model.

A row of `ADAPTERS` makes the leaves of one kind, initially without effect. `model.layer` applies them; the rest of the
program does not know whether a model has an adapter. The parameters without it are the model that the run started from,
so they serve as the reference of the KL, and no copy is kept.

`--adapter_layers` and `--adapter_size` train fewer `numbers` than the leaves have: `params["adapter"]` holds them and
the maps to the leaves, `leaf = start + map . numbers`, which every update recomputes.
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
TRAINED = ("_lora_a", "_lora_b", "vector")  # endings of the names of trained leaves
STREAM = 3  # of random keys; the sampler uses 0 to 2


class AdapterConfig(Config):
    """Which parameters of the model are trained."""

    trainable: str = flag("all", "train all parameters, or an adapter. An adapter that --model already has is "
                          "merged into its weights", lambda: {"all": None} | ADAPTERS)
    adapter_rank: int = flag(1, "rank of lora", minimum=1)
    adapter_alpha: float = flag(32.0, "lora adds alpha / rank times its product", above=0)
    adapter_layers: tuple[int, ...] = flag((), "layers, from 0, after which to add a vector; empty: all", minimum=0)
    params_dtype: str = flag("float32", "type of the frozen parameters under an adapter, except norms: 16 bits halve "
                             "their memory", ["float32", "bfloat16", "float16"])
    adapter_size: int = flag(0, "train this many numbers, which a fixed random orthonormal projection turns into "
                             "the adapter; 0: the adapter itself", minimum=0)


def lora(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """`x W + alpha/r (x A) B` for every linear map W [L,N,M] (Hu et al., arXiv 2106.09685). A [L,N,r] is uniform within
    1/sqrt(N) (He's rule with PEFT's slope sqrt(5)), B [L,r,M] is zero."""
    rank, count = config.adapter_rank, len(layers["q"])
    leaves = {"lora_scale": jnp.full(count, config.adapter_alpha / rank, jnp.float32)}
    for name, key in zip(LINEAR, jax.random.split(key, len(LINEAR))):
        _, inputs, outputs = layers[name].shape
        bound = inputs**-0.5
        leaves[name + "_lora_a"] = jax.random.uniform(key, (count, inputs, rank), jnp.float32, -bound, bound)
        leaves[name + "_lora_b"] = jnp.zeros((count, rank, outputs))
    return leaves


def vector(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """A vector added to the residual after every layer, [L,D], zero (arXiv 2505.18706 adds it to the MLP's output)."""
    return {"vector": jnp.zeros(layers["attn_norm"].shape)}


def first_vector(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """As vector, but added only where the first token of a completion is predicted. If a vector after the last layer
    only selects the first token (arXiv 2509.06608), this one does as well."""
    return {"first_vector": jnp.zeros(layers["attn_norm"].shape)}


# --trainable -> (flags, weights of the layers {name: [L,...]}, random key) -> new leaves {name: f32[L,...]}
ADAPTERS: dict[str, Callable] = {"lora": lora, "vector": vector, "first_vector": first_vector}


def add(config: AdapterConfig, params: dict, seed: int) -> dict:
    """`merge(params)` with a new adapter, a function of flags and seed, which has no effect yet. Raises UserError for
    flags that do not fit each other or the model."""
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
    if not any(name.endswith(TRAINED) for name in leaves):  # else `split` would train all parameters
        raise UserError(f"--trainable={config.trainable} makes nothing that is trained ({', '.join(leaves)}): names "
                        f"of trained leaves end with {' or '.join(TRAINED)}")
    params["layers"] = params["layers"] | leaves
    if config.adapter_size or config.adapter_layers:
        params["adapter"] = fewer_numbers(config, split(params)[0]["layers"], map_key)
    return params


def fewer_numbers(config: AdapterConfig, leaves: dict, key: jax.Array) -> dict:
    """The `numbers` to train, and `start` and `maps` of each leaf [L,...] that is computed from them. `adapter_size`
    numbers f32[k] are multiplied by random orthonormal columns [...,k] over all leaves together. Without that flag,
    numbers f32[n,D] are the vectors of the chosen layers, and a map [L,n] puts each in its place."""
    size, count = config.adapter_size, len(next(iter(leaves.values())))
    layers = np.array(sorted(set(config.adapter_layers)) or range(count))
    (name, *more) = leaves
    if config.adapter_layers and (more or not name.endswith("vector")):
        raise UserError("--adapter_layers says after which layers a vector is added: it needs --trainable=vector or "
                        "first_vector")
    if not (0 <= layers.min() and layers.max() < count):
        raise UserError(f"--adapter_layers={','.join(map(str, layers))}: the layers of the model are 0 to {count - 1}")
    start = jax.tree.map(jnp.copy, leaves)  # donation must not see one buffer twice
    if not size:
        return {"numbers": leaves[name][layers], "start": start, "maps": {name: jnp.eye(count)[:, layers]}}
    entries = [len(layers) * leaf[0].size for leaf in leaves.values()]
    if size > sum(entries):
        raise UserError(f"--adapter_size={size}: the adapter has {sum(entries)} numbers; 0 trains them all")
    columns = jnp.linalg.qr(jax.random.normal(key, (sum(entries), size)))[0]
    maps = {name: jnp.zeros((*leaf.shape, size)).at[layers].set(part.reshape(len(layers), *leaf.shape[1:], size))
            for (name, leaf), part in zip(leaves.items(), jnp.split(columns, np.cumsum(entries)[:-1]))}
    return {"numbers": jnp.zeros(size), "start": start, "maps": maps}


def split(params: dict) -> tuple[dict, dict]:
    """(trained, frozen): the adapter, or its numbers, and the rest. Without an adapter everything is trained."""
    flat = traverse_util.flatten_dict(params)
    trained = [("adapter", "numbers")] if "adapter" in params else [path for path in flat if path[-1].endswith(TRAINED)]
    parts = ({path: flat[path] for path in trained or flat},
             {path: x for path, x in flat.items() if trained and path not in trained})
    return tuple(map(traverse_util.unflatten_dict, parts))


def join(trained: dict, frozen: dict) -> dict:
    """The inverse of `split`; recomputes the leaves that depend on trained numbers."""
    params = traverse_util.unflatten_dict(traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained))
    if "adapter" in params:
        numbers, start, maps = (params["adapter"][name] for name in ("numbers", "start", "maps"))
        params["layers"] |= {name: start[name] + jnp.tensordot(maps[name], numbers, 1, precision="highest")
                             for name in start}
    return params


def base_params(params: dict) -> dict:
    """The parameters without the adapter: the model that the run started from."""
    layers = {name: x for name, x in params["layers"].items() if not name.endswith((*TRAINED, "lora_scale"))}
    return {name: x for name, x in params.items() if name != "adapter"} | {"layers": layers}


def merge(params: dict) -> dict:
    """The adapted model as plain weights, for further training or export: LoRA is added to the weights, and a vector
    becomes `down_bias`, which acts at the end of the layer too. Leaves that change become numpy arrays. UserError for
    `first_vector`, which no weight can express."""
    adapted, plain = params["layers"], base_params(params)
    if "first_vector" in adapted:
        raise UserError("--model was trained with --trainable=first_vector, which acts at one token and cannot become "
                        "part of the weights: name the model that its run started from")
    layers = plain["layers"]
    for name in LINEAR:
        if name + "_lora_a" in adapted:
            layers[name] = np.array(layers[name], np.float32)
            parts = (adapted["lora_scale"], adapted[name + "_lora_a"], adapted[name + "_lora_b"])
            for weight, scale, a, b in zip(layers[name], *map(np.asarray, parts)):  # layer by layer, to save memory
                weight += scale * (a @ b)
    if "vector" in adapted:
        layers["down_bias"] = np.asarray(adapted["vector"]) + np.asarray(layers.get("down_bias", np.float32(0)))
    return plain
