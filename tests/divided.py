"""Six updates of a model of two layers, in a process with as many devices as asked for:
`divided.py DEVICES FILE VARIANTS`. A model of 16 bits has one update.

FILE.npz gets every array of the state in the end, by variant, way and name, and the metrics of the last update; printed
are the bytes of a state on one device, by variant and way.
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from rlvr_jax import batches, grpo, learner, parallel, sampler
from rlvr_jax.model import ModelConfig
from rlvr_jax.sampler import Decoding, Request
from rlvr_jax.training import driver

from fixtures import make_batch, random_params

MODEL = ModelConfig(vocab_size=128, num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=128,
                    max_seq_len=64, tie_embeddings=False)
PLAIN = grpo.GRPOConfig.from_flags(learning_rate=1e-4, kl_coef=0.05, temperature=0.8, remat=True, max_grad_norm=0.5)
VARIANTS = {  # moments that start anew would make much of a last bit, so that it is the reference that is reset
    "all": {"num_minibatches": 2, "grad_accumulation": 2, "reset_every": 5, "reset": "reference"},
    "kept": {"remat": False}, "lora": {"trainable": "lora", "adapter_rank": 2},
    "bfloat16": {"grad_accumulation": 4, "remat": False}}


def updates(config, divide: bool, model: ModelConfig, steps: int) -> tuple:
    """(the state after the updates, as numpy; its last metrics; bytes of it on one device; completions it samples)."""
    batch, policy = make_batch(), grpo.Policy(model, random_params(model), (0,))
    state = parallel.place_state(grpo.initial_state(policy, config), divide)
    held = sum(x.nbytes for x in jax.tree.leaves(state)) // parallel.device_count()
    programs, reset = grpo.compile_programs(policy, config), driver.map_reset(config.resets)
    for step in range(1, steps + 1):
        part = batch.replace(ref_logprobs=programs.logprobs(learner.reference(state), batch))
        state, metrics = programs.update(state, part, step)
        if config.resets.reset_every and step % config.resets.reset_every == 0:
            state = reset(state)
    drawn = [sampler.make_sampler(model, Decoding((0,), 6, slots, by_layer=by_layer))(
        state.params, batch.prompts, batch.prompt_index, Request(0, 1, temperature=1.0))
             for slots, by_layer in ((0, False), (2, True))[: 1 + divide]]
    return parallel.fetch_state(state), metrics, held, drawn


def main(devices: int, file: str, names: str) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    batches.LONG = 8  # micro-batches of these short completions are cut, with the gathering of weights inside
    arrays, held = {}, {}
    for name in names.split(","):
        changes, short = VARIANTS[name], name == "bfloat16"  # whose roundings come apart in later updates
        model = dataclasses.replace(MODEL, dtype="bfloat16" if short else "float32")
        for way in ("whole", "divided"):
            state, metrics, held[f"{name} {way}"], drawn = updates(
                PLAIN.with_flags(**changes), way == "divided", model, 1 if short else 6)
            found = {"state": state, "metrics": metrics} | dict(zip(("drawn", "drawn by layer"), drawn))
            arrays |= {f"{name} {way} {jax.tree_util.keystr(path)}": x
                       for path, x in jax.tree_util.tree_leaves_with_path(found)}
    np.savez(file, **arrays)
    print(json.dumps(held))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
