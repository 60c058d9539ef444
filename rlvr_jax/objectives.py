"""Advantages and policy losses as small pure functions, and the table of published combinations.

N groups, each normalised separately even if all share a problem, have G completions each, B = N*G in all, of T tokens.
Log-probabilities are f32 nats at the sampling temperature. Advantages are per completion, [B], or per token, [B,T].
"""

from typing import Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
from jax import lax


def group_advantages(rewards_NxG: jax.Array) -> jax.Array:
    """(r - mean) / (std + 1e-6) with the Bessel-corrected std (GRPO, arXiv 2402.03300). Equal rewards give exactly 0. A
    group of one keeps its raw reward, as in the released code of One-Shot-RLVR."""
    if rewards_NxG.shape[1] == 1:
        return rewards_NxG
    centred = centred_advantages(rewards_NxG)
    return centred / (jnp.std(rewards_NxG, -1, ddof=1, keepdims=True) + 1e-6)


def centred_advantages(rewards_NxG: jax.Array) -> jax.Array:
    """r - mean (Dr. GRPO, arXiv 2503.20783)."""
    equal = jnp.all(rewards_NxG == rewards_NxG[:, :1], -1, keepdims=True)  # then 0: a rounded mean would leave residues
    return jnp.where(equal, 0.0, rewards_NxG - jnp.mean(rewards_NxG, -1, keepdims=True))


def leave_one_out_advantages(rewards_NxG: jax.Array) -> jax.Array:
    """r minus the mean of the group's other rewards (RLOO, arXiv 2402.14740)."""
    size = rewards_NxG.shape[1]
    return centred_advantages(rewards_NxG) * size / max(size - 1, 1)


def no_advantages(rewards_NxG: jax.Array) -> jax.Array:
    """Returns 0 everywhere, so that rewards have no effect; used to minimise entropy alone (arXiv 2505.20282)."""
    return rewards_NxG * 0.0


def live_groups(rewards_NxG):
    """Returns bool[N], false for zero-variance groups, whose rewards are all equal; a group of one counts as live."""
    return (rewards_NxG != rewards_NxG[:, :1]).any(-1) | (rewards_NxG.shape[1] == 1)


def per_token(advantages):
    """Reshapes advantages [B] to [B,1], so that they multiply [B,T]; returns advantages [B,T] as they are."""
    return advantages if advantages.ndim == 2 else advantages[:, None]


def sequence_log_ratio(logprobs_BxT, old_logprobs_BxT, mask_BxT):
    """Returns for each token the mean log-ratio of its completion, f32[B,T] (GSPO, arXiv 2507.18071)."""
    log_ratio = jnp.where(mask_BxT, logprobs_BxT - old_logprobs_BxT, 0.0)
    mean_Bx1 = jnp.sum(log_ratio, -1, keepdims=True) / jnp.maximum(jnp.sum(mask_BxT, -1, keepdims=True), 1)
    return jnp.broadcast_to(mean_Bx1, mask_BxT.shape)


def ppo_clip(logprobs_BxT, old_logprobs_BxT, advantages, mask_BxT, low, high):
    """-min(rho A, clip(rho, 1-low, 1+high) A) at each token, rho = policy / old policy (PPO, arXiv 1707.06347)."""
    ratio, advantages = jnp.exp(logprobs_BxT - old_logprobs_BxT), per_token(advantages)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)


def gspo_clip(logprobs_BxT, old_logprobs_BxT, advantages, mask_BxT, low, high):
    """`ppo_clip` with one ratio for each sequence: exp of the mean log-ratio of its tokens (GSPO, arXiv 2507.18071)."""
    return ppo_clip(sequence_log_ratio(logprobs_BxT, old_logprobs_BxT, mask_BxT), 0.0, advantages, mask_BxT, low, high)


def capped_weight(logprobs_BxT, old_logprobs_BxT, advantages, mask_BxT, low, high):
    """-stop_gradient(min(rho, 1+high)) A log pi: all tokens keep gradients (CISPO, arXiv 2506.13585). Ignores `low`."""
    ratio = jnp.minimum(jnp.exp(logprobs_BxT - old_logprobs_BxT), 1 + high)
    return -lax.stop_gradient(ratio) * per_token(advantages) * logprobs_BxT


def score_function(logprobs_BxT, old_logprobs_BxT, advantages, mask_BxT, low, high):
    """-A log pi (REINFORCE); with every advantage 1 this is the cross-entropy of supervised training."""
    return -per_token(advantages) * logprobs_BxT


def k3_kl(logprobs_BxT, ref_logprobs_BxT):
    """exp(d) - d - 1, clipped at 10, for d = ref - policy: Schulman's low-variance estimate of KL(policy || reference)."""
    difference = jnp.clip(ref_logprobs_BxT - logprobs_BxT, -20, 20)  # an overflow would make the gradient 0 * inf
    return jnp.clip(jnp.exp(difference) - difference - 1, -10, 10)


# A normaliser returns the weight of each token, [B,T], and each row's share of the divisor, [B]: the loss is
# sum(weights * terms) / sum(shares), over all rows of all devices and micro-batches. Rows without tokens do not count.
def token_mean(mask_BxT):
    return mask_BxT, jnp.sum(mask_BxT, -1)


def sequence_mean(mask_BxT):
    return mask_BxT / jnp.maximum(jnp.sum(mask_BxT, -1, keepdims=True), 1), jnp.max(mask_BxT, -1)


def constant_length(mask_BxT):
    return mask_BxT / mask_BxT.shape[1], jnp.max(mask_BxT, -1)


def sequence_sum(mask_BxT):
    return mask_BxT, jnp.max(mask_BxT, -1)


class Objective(NamedTuple):
    """A row of `OBJECTIVES`: three functions, and the clip range and entropy bonus of its paper."""

    advantages: Callable  # rewards_NxG -> advantages_NxG
    token_loss: Callable  # (logprobs_BxT, old_logprobs_BxT, advantages, mask_BxT, clip_low, clip_high) -> terms_BxT
    normalise: Callable  # mask_BxT -> (weights_BxT, shares_B)
    clip_low: float = 0.2
    clip_high: float = 0.2
    entropy_coef: float = 0.0
    log_ratio: Optional[Callable] = None  # (logprobs, old_logprobs, mask) -> log of ratios to clip; None: each token's


OBJECTIVES = {
    "one_shot": Objective(group_advantages, ppo_clip, token_mean),  # the released One-Shot-RLVR code
    "grpo": Objective(group_advantages, ppo_clip, sequence_mean),
    "dr_grpo": Objective(centred_advantages, ppo_clip, constant_length),
    "dapo": Objective(group_advantages, ppo_clip, token_mean, 0.2, 0.28),
    "gspo": Objective(group_advantages, gspo_clip, sequence_mean, 3e-4, 4e-4, log_ratio=sequence_log_ratio),
    "cispo": Objective(group_advantages, capped_weight, token_mean, 1.0, 4.0),
    "reinforce": Objective(centred_advantages, score_function, token_mean),
    "rloo": Objective(leave_one_out_advantages, score_function, sequence_sum),
    "entropy": Objective(no_advantages, score_function, token_mean, entropy_coef=-1.0),
}
