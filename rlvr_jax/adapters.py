"""Few trained parameters: leaves added to those of a model, which alone are trained.

A row of `ADAPTERS` makes the leaves of one kind, with values at which they change nothing. `model.layer` reads them
where they act, so that sampler, update, checkpoint and evaluation take a model with or without. The parameters without
them are the model that the run started from, and so the reference of the KL: no copy is kept.

`--adapter_layers` and `--adapter_size` train fewer numbers than the leaves have. `params["adapter"]` then holds these
`numbers` and what makes leaves of them, `leaf = start + map . numbers`; the update writes the leaves anew.
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
TRAINED = ("_lora_a", "_lora_b", "vector")  # how the names of trained leaves end
STREAM = 3  # of random keys: the sampler's are 0 to 2


class AdapterConfig(Config):
    """What is trained of a model."""

    trainable: str = flag("all", "what is trained: all parameters, or an adapter. One that --model has already "
                          "becomes part of its weights", lambda: {"all": None} | ADAPTERS)
    adapter_rank: int = flag(1, "rank of lora", minimum=1)
    adapter_alpha: float = flag(32.0, "lora adds alpha / rank times its product", above=0)
    adapter_layers: tuple[int, ...] = flag((), "layers, from 0, that a vector is added after; empty: all", minimum=0)
    params_dtype: str = flag("float32", "of the frozen parameters under an adapter, but for norms: 16 bits halve "
                             "their memory", ["float32", "bfloat16", "float16"])
    adapter_size: int = flag(0, "train this many numbers, which a fixed random orthonormal projection turns into "
                             "the adapter; 0: the adapter itself", minimum=0)


def lora(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """`x W + alpha/r (x A) B` for every linear map W [L,N,M] (Hu et al., arXiv 2106.09685).

    A [L,N,r] is uniform within 1/sqrt(N) (He's rule with the slope that PEFT gives it, sqrt(5)), B [L,r,M] is zero.
    """
    rank, count = config.adapter_rank, len(layers["q"])
    leaves = {"lora_scale": jnp.full(count, config.adapter_alpha / rank, jnp.float32)}
    for name, key in zip(LINEAR, jax.random.split(key, len(LINEAR))):
        _, inputs, outputs = layers[name].shape
        bound = inputs**-0.5
        leaves[name + "_lora_a"] = jax.random.uniform(key, (count, inputs, rank), jnp.float32, -bound, bound)
        leaves[name + "_lora_b"] = jnp.zeros((count, rank, outputs))
    return leaves


def vector(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """A vector added to the residual after every layer, [L,D], zero (as arXiv 2505.18706 on the MLP's output)."""
    return {"vector": jnp.zeros(layers["attn_norm"].shape)}


def first_vector(config: AdapterConfig, layers: dict, key: jax.Array) -> dict:
    """As vector, but added only where the first token of a completion is predicted.

    If a vector after the last layer does nothing but choose the opening token (arXiv 2509.06608), this does as much.
    """
    return {"first_vector": jnp.zeros(layers["attn_norm"].shape)}


# --trainable -> (flags, weights of the layers {name: [L,...]}, random key) -> new leaves {name: f32[L,...]}
ADAPTERS: dict[str, Callable] = {"lora": lora, "vector": vector, "first_vector": first_vector}


def add(config: AdapterConfig, params: dict, seed: int) -> dict:
    """`merged(params)` with the adapter that the flags ask for: a function of them and the seed, without effect yet.

    Raises UserError for flags that do not fit each other or the model.
    """
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
    if not any(name.endswith(TRAINED) for name in leaves):  # `split` would take it for a model without an adapter
        raise UserError(f"--trainable={config.trainable} makes nothing that is trained ({', '.join(leaves)}): names "
                        f"of trained leaves end with {' or '.join(TRAINED)}")
    params["layers"] = params["layers"] | leaves
    if config.adapter_size or config.adapter_layers:
        params["adapter"] = fewer_numbers(config, split(params)[0]["layers"], map_key)
    return params


def fewer_numbers(config: AdapterConfig, leaves: dict, key: jax.Array) -> dict:
    """`numbers` to train, and the `start` and `maps` of each leaf [L,...] they stand for.

    `adapter_size` numbers f32[k] go through random orthonormal columns [...,k] over all leaves together; without it
    the numbers are the rows of the chosen layers, f32[n,D], and the map [L,n] puts each in its place.
    """
    size, count = config.adapter_size, len(next(iter(leaves.values())))
    chosen = np.array(sorted(set(config.adapter_layers)) or range(count))
    (name, *more) = leaves
    if config.adapter_layers and (more or not name.endswith("vector")):
        raise UserError("--adapter_layers says after which layers a vector is added: it needs --trainable=vector or "
                        "first_vector")
    if not (0 <= chosen.min() and chosen.max() < count):
        raise UserError(f"--adapter_layers={','.join(map(str, chosen))}: the layers of the model are 0 to {count - 1}")
    start = jax.tree.map(jnp.copy, leaves)  # donation must not see one buffer twice
    if not size:
        return {"numbers": leaves[name][chosen], "start": start, "maps": {name: jnp.eye(count)[:, chosen]}}
    entries = [len(chosen) * leaf[0].size for leaf in leaves.values()]
    if size > sum(entries):
        raise UserError(f"--adapter_size={size}: the adapter has {sum(entries)} numbers; 0 trains them all")
    columns = jnp.linalg.qr(jax.random.normal(key, (sum(entries), size)))[0]
    maps = {name: jnp.zeros((*leaf.shape, size)).at[chosen].set(part.reshape(len(chosen), *leaf.shape[1:], size))
            for (name, leaf), part in zip(leaves.items(), jnp.split(columns, np.cumsum(entries)[:-1]))}
    return {"numbers": jnp.zeros(size), "start": start, "maps": maps}


def split(params: dict) -> tuple[dict, dict]:
    """(trained, frozen): the adapter, or its numbers, and all else. Without an adapter everything is trained."""
    flat = traverse_util.flatten_dict(params)
    trained = [("adapter", "numbers")] if "adapter" in params else [path for path in flat if path[-1].endswith(TRAINED)]
    parts = ({path: flat[path] for path in trained or flat},
             {path: x for path, x in flat.items() if trained and path not in trained})
    return tuple(map(traverse_util.unflatten_dict, parts))


def join(trained: dict, frozen: dict) -> dict:
    """The parameters of which `split` made the two, with the leaves that trained numbers stand for."""
    params = traverse_util.unflatten_dict(traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained))
    if "adapter" in params:
        numbers, start, maps = (params["adapter"][name] for name in ("numbers", "start", "maps"))
        params["layers"] |= {name: start[name] + jnp.tensordot(maps[name], numbers, 1, precision="highest")
                             for name in start}
    return params


def base_params(params: dict) -> dict:
    """The parameters with the adapter off: the model that its run started from."""
    layers = {name: x for name, x in params["layers"].items() if not name.endswith((*TRAINED, "lora_scale"))}
    return {name: x for name, x in params.items() if name != "adapter"} | {"layers": layers}


def merge(params: dict) -> dict:
    """The adapted model as weights alone, for the next training or an export; numpy arrays where there is an adapter.

    LoRA is added to the weights, and a vector becomes `down_bias`, which adds it at the end of the layer too. Raises
    UserError for `first_vector`, which no weight can stand for.
    """
    adapted, plain = params["layers"], base_params(params)
    if "first_vector" in adapted:
        raise UserError("--model was trained with --trainable=first_vector, which acts at one token and cannot become "
                        "part of the weights: name the model that its run started from")
    layers = plain["layers"]
    for name in LINEAR:
        if name + "_lora_a" in adapted:
            layers[name] = np.array(layers[name], np.float32)
            parts = (adapted["lora_scale"], adapted[name + "_lora_a"], adapted[name + "_lora_b"])
            for weight, scale, a, b in zip(layers[name], *map(np.asarray, parts)):  # one layer more than once in memory
                weight += scale * (a @ b)
    if "vector" in adapted:
        layers["down_bias"] = np.asarray(adapted["vector"]) + np.asarray(layers.get("down_bias", np.float32(0)))
    return plain
