"""The base, steered exactly where the trained model differs, which takes running that model: a ceiling of a hybrid.

B completions, T tokens.
"""

from typing import Callable

import jax
import jax.numpy as jnp

from rlvr_jax import model, sampler
from rlvr_jax.lab.elicit.activations import likeliest
from rlvr_jax.lab.elicit.steering import adding, read_again


def trained_gate_draw(layer: int) -> Callable:
    """The `draw` (`sampler.make_sampler`) of the base, steered wherever the trained model's likeliest token on this
    very text is not the base's. For params it takes {"model", "trained", "steering"}.

    Where that is depends on the text before, so the base is decoded again until nothing changes: each pass has at least
    one more token right. `noted` has how many of a completion's tokens were `steered`.
    """
    def draw(params, config, prompts, rows, decoding):
        prefixes = {name: model.prefill(params[name], config, prompts) for name in ("model", "trained")}

        def decode(edit_at=None):
            return sampler.decode(params["model"], config, prefixes["model"], rows, decoding,
                                  sampler.Hooks(edit_at=edit_at))

        def differ(out):
            base_BxT, trained_BxT = (likeliest(params[name], read_again(params[name], config, prefix, out)[0])
                                     for name, prefix in prefixes.items())
            return (base_BxT != trained_BxT) & out.completion_mask

        def again(state):
            acts_BxT, _, _ = state
            out = decode(lambda rows_N, steps_N: adding(params["steering"], layer,
                                                        lambda x: acts_BxT[rows_N, steps_N][:, None]))
            new_BxT = differ(out)
            return new_BxT, out, jnp.any(new_BxT != acts_BxT)

        plain = decode()
        start_BxT = differ(plain)
        acts_BxT, out, _ = jax.lax.while_loop(lambda state: state[2], again, (start_BxT, plain, jnp.any(start_BxT)))
        return out.replace(noted={"steered": jnp.sum(acts_BxT, -1)})
    return draw
