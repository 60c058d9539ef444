"""What a base can be made to say when the trained model is asked at every token: ceilings of a hybrid, not hybrids.

B completions, T tokens.
"""

import functools
from typing import Callable

import jax
import jax.numpy as jnp

from rlvr_jax import model, sampler
from rlvr_jax.elicit.activations import likeliest
from rlvr_jax.elicit.steering import Steering, adding, read_again


def token_swap(steering: Steering, layer: int, decode: Callable, differ: Callable) -> tuple:
    """The trained model's token wherever its likeliest is not the base's: greedily, all that the trained model says."""
    out = decode("trained")
    return out, differ(out)


def trained_gate(steering: Steering, layer: int, decode: Callable, differ: Callable) -> tuple:
    """The base, steered wherever the trained model's likeliest token on this very text is not the base's.

    Where that is depends on the text before, so the base is decoded again until nothing changes: each pass has at least
    one more token right.
    """
    def again(state):
        acts_BxT, _, _ = state
        out = decode("model", lambda rows, steps: adding(steering, layer, lambda x: acts_BxT[rows, steps][:, None]))
        new_BxT = differ(out)
        return new_BxT, out, jnp.any(new_BxT != acts_BxT)

    plain = decode("model")
    start = differ(plain), plain, jnp.any(differ(plain))
    acts_BxT, out, _ = jax.lax.while_loop(lambda state: state[2], again, start)
    return out, acts_BxT


# arm of a hybrid -> (steering, layer, decode(name of a model, edit_at), differ(rollouts) -> bool[B,T])
# -> (rollouts, bool[B,T]: tokens at which the trained model had its way)
ORACLES: dict[str, Callable] = {"token_swap": token_swap, "trained_gate": trained_gate}


@functools.cache
def oracle_draw(oracle: str, layer: int) -> Callable:
    """The `draw` (`sampler.make_sampler`) of an oracle; for params it takes {"model", "trained", "steering"}.

    `noted` has how many of a completion's tokens were `steered`.
    """
    def draw(params, config, prompts, prompt_index_B, keys_B, temperature, top_p, *, rows_B, **fixed):
        prefixes = {name: model.prefill(params[name], config, prompts) for name in ("model", "trained")}

        def decode(name, edit_at=None):
            return sampler.decode(params[name], config, prefixes[name], prompt_index_B, keys_B, temperature, top_p,
                                  edit_at=edit_at, **fixed)

        def differ(out):
            base_BxT, trained_BxT = (likeliest(params[name], read_again(params[name], config, prefix, out)[0])
                                     for name, prefix in prefixes.items())
            return (base_BxT != trained_BxT) & out.completion_mask

        out, acts_BxT = ORACLES[oracle](params["steering"], layer, decode, differ)
        return out.replace(noted={"steered": jnp.sum(acts_BxT, -1)})
    return draw
