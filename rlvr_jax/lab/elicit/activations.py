"""What a model computes over given texts: residuals after chosen layers, streamed to files that are mapped into memory.

N tokens of all texts together, B texts of a batch, T positions, L chosen layers, D width.
"""

import functools
import hashlib
import pathlib
import sys
import time
from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import model
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.locks import lock
from rlvr_jax.runs.log import progress


class Activations(NamedTuple):
    """Every token of every text in order: place n is the same token in all arrays."""

    folder: pathlib.Path
    row: np.ndarray  # i32[N], the text of the token
    positions: np.ndarray  # i32[N], its place in the text, from 0
    likeliest: np.ndarray  # i32[N], the likeliest next token

    def at(self, layer: int) -> np.ndarray:
        """f32[N,D], the residual after this layer, mapped read-only. Raises UserError for a layer not streamed."""
        if not _path(self.folder, layer).is_file():
            raise UserError(f"{self.folder} holds no activations after layer {layer}")
        return np.load(_path(self.folder, layer), mmap_mode="r")


@functools.partial(jax.jit, static_argnums=(1, 3))
def _read(params: model.Params, config: model.ModelConfig, tokens_BxT: jax.Array, layers: tuple) -> tuple:
    """(f32[B,T,D] of each layer..., likeliest next tokens i32[B,T])."""
    how = model.ForwardOptions(read_residual=(lambda x: x) if layers else None)
    hidden_BxTxD, residuals = model.forward(params, config, tokens_BxT, how=how)
    return *(residuals[i].astype(jnp.float32) for i in layers), likeliest(params, hidden_BxTxD)


def likeliest(params: model.Params, hidden_BxTxD: jax.Array) -> jax.Array:
    """i32[B,T], the likeliest next token of each state; logits are held of one text at a time."""
    return jax.lax.map(lambda x_TxD: jnp.argmax(model.head(params, x_TxD), -1), hidden_BxTxD).astype(jnp.int32)


def stream(loaded: LanguageModel, rows: Sequence[Sequence[int]], layers: Sequence[int], folder: str | pathlib.Path, *,
           batch: int = 64) -> Activations:
    """Runs texts, each a row of token ids such as prompt and completion, through the model into files of `folder`.

    There is one file a layer, layer_I.npy f32[N,D]; said.npy with the likeliest next tokens; and complete.json with the
    number of texts that are done, and the seconds they took. After an interruption the same call goes on after the last
    whole batch, bit for bit; where all is there, nothing is run. Without layers: the likeliest next tokens alone.

    Raises UserError for layers or texts that the model does not have room for, for `first_vector`, and for a folder
    with activations of another model, other texts, layers or batches.
    """
    config, layers, folder = loaded.config, tuple(layers), pathlib.Path(folder)
    if "first_vector" in loaded.params["layers"]:
        raise UserError("a model of --trainable=first_vector acts where a completion begins, which plain texts do not "
                        "show: take one of --trainable=vector")
    lengths_R = np.array([len(row) for row in rows])
    if not all(0 <= layer < config.num_layers for layer in layers):
        raise UserError(f"layers {layers}: the layers of the model are 0 to {config.num_layers - 1}")
    if not len(rows) or not 0 < lengths_R.min() <= lengths_R.max() <= config.max_seq_len:
        raise UserError(f"activations need texts of 1 to {config.max_seq_len} tokens, the model's window")
    mask_RxT = np.arange(-(-lengths_R.max() // 16) * 16)[None, :] < lengths_R[:, None]
    tokens_RxT = np.zeros(mask_RxT.shape, np.int32)
    tokens_RxT[mask_RxT] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    row, positions = (x.astype(np.int32) for x in np.nonzero(mask_RxT))

    with lock(folder, "folder"):
        done = _state(folder, _fingerprint(loaded, tokens_RxT, lengths_R, layers, batch))
        shapes = {_path(folder, i): ((len(row), config.d_model), np.float32) for i in layers}
        shapes[folder / "said.npy"] = ((len(row),), np.int32)
        shards = [_shard(path, *shape, fresh=done["texts"] == 0) for path, shape in shapes.items()]
        params = jax.device_put(loaded.params)  # once, not with every batch
        with progress(len(rows), done["texts"], "activations", unit="text") as bar:
            for start in range(done["texts"], len(rows), batch):
                begun, texts = time.perf_counter(), np.arange(start, start + batch)
                made = _read(params, config, tokens_RxT[np.minimum(texts, len(rows) - 1)], layers)  # of one shape
                texts = texts[texts < len(rows)]
                first, end = int(lengths_R[:start].sum()), int(lengths_R[: texts[-1] + 1].sum())
                for shard, values_BxT in zip(shards, made):
                    shard[first:end] = np.asarray(values_BxT)[: len(texts)][mask_RxT[texts]]
                    shard.flush()
                done |= {"texts": start + len(texts), "tokens": end, "bytes": sum(shard.nbytes for shard in shards),
                         "seconds": done["seconds"] + time.perf_counter() - begun}
                files.write_json(folder / "complete.json", done)
                bar.update(len(texts))
    print(f"{folder}: {done['tokens']} tokens after layers {list(layers)}, {done['bytes']} bytes, "
          f"{done['seconds']:.1f} s", file=sys.stderr)
    return Activations(folder, row, positions, np.load(folder / "said.npy", mmap_mode="r"))


def _path(folder: pathlib.Path, layer: int) -> pathlib.Path:
    return folder / f"layer_{layer}.npy"


def _shard(path: pathlib.Path, shape: tuple, dtype: type, fresh: bool) -> np.memmap:
    with files.name_in_errors(path):
        return np.lib.format.open_memmap(path, "w+" if fresh else "r+", dtype, shape)


def _state(folder: pathlib.Path, key: str) -> dict:
    """complete.json, or its content before the first text. Raises UserError for other activations than asked for."""
    done = files.read_json(folder / "complete.json", missing={"key": key, "texts": 0, "seconds": 0.0})
    if done["key"] != key:
        raise UserError(f"{folder} holds activations of another model, or of other texts, layers or batches: remove "
                        "it, or choose another folder")
    return done


def _fingerprint(loaded: LanguageModel, tokens_RxT: np.ndarray, lengths_R: np.ndarray, layers: tuple,
                 batch: int) -> str:
    """A digest of all that the numbers depend on."""
    leaves = jax.tree_util.tree_leaves_with_path(loaded.params)
    shapes = [(jax.tree_util.keystr(path), x.shape, x.dtype) for path, x in leaves]
    digest = hashlib.blake2b(repr((loaded.config, layers, batch, shapes)).encode(), digest_size=16)
    for array in (tokens_RxT, lengths_R, *(leaf for _, leaf in leaves)):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
