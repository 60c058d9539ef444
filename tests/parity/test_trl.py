"""Losses that TRL has too are TRL's: value and gradient, by its `GRPOTrainer._compute_loss` without a trainer."""

import collections
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need torch and trl")
trl = pytest.importorskip("trl", reason="parity tests need torch and trl")

from rlvr_jax import grpo  # noqa: E402
from rlvr_jax.grpo import GRPOConfig, Scored  # noqa: E402

from fixtures import random_rollouts, table_loss_and_gradient  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # their warnings are not ours to fix

THEIRS = {
    "one_shot": {"loss_type": "bnpo"}, "grpo": {"loss_type": "grpo"}, "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0}}  # there the cap itself, here what it is above 1
TOKEN_MEANS = ("one_shot", "dapo", "cispo")
CONFIG = GRPOConfig.from_flags(num_prompts=2, group_size=4, temperature=0.7, max_new_tokens=4)


def their_trainer(config, **flags):
    """What `_compute_loss` reads of a trainer, as its constructor sets it from GRPOConfig."""
    args = trl.GRPOConfig(output_dir="unused", report_to=[], bf16=False, use_cpu=True, beta=config.loss.kl_coef,
                          entropy_coef=config.loss.entropy_coef or 0.0, max_completion_length=config.sampling.max_new_tokens,
                          use_bias_correction_kl=False, **flags)  # else k3 is weighted with the ratio
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    accelerator = SimpleNamespace(num_processes=1, sync_gradients=True, gather=lambda x: x,
                                  gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x)
    return SimpleNamespace(
        args=args, accelerator=accelerator, model=SimpleNamespace(training=True), loss_type=args.loss_type,
        importance_sampling_level=args.importance_sampling_level, beta=args.beta, epsilon_low=args.epsilon,
        epsilon_high=high, entropy_coef=args.entropy_coef, _entropy_bonus_enabled=args.entropy_coef != 0,
        use_adaptive_entropy=False, top_entropy_quantile=args.top_entropy_quantile, aux_loss_enabled=False,
        off_policy_mask_threshold=None, use_vllm=False, max_completion_length=args.max_completion_length,
        current_gradient_accumulation_steps=1, _metrics={"train": collections.defaultdict(list)})


def their_loss(config, table, batch, **flags):
    """(loss, its gradient by the table), in float64."""
    table = torch.tensor(table, dtype=torch.float64, requires_grad=True)
    words = torch.log_softmax(table / config.update.temperature, -1)
    chosen = words.gather(-1, torch.tensor(batch.completions)[..., None])[..., 0]
    trainer = their_trainer(config, **flags)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (chosen, -(words.exp() * words).sum(-1), None)
    mask, empty = torch.tensor(batch.completion_mask).long(), torch.zeros((len(chosen), 0), dtype=torch.long)
    given = {"old_per_token_logps": batch.old_logprobs, "ref_per_token_logps": batch.ref_logprobs,
             "advantages": batch.advantages}
    loss = trl.GRPOTrainer._compute_loss(trainer, trainer.model, {
        "prompt_ids": empty, "prompt_mask": empty, "completion_ids": torch.tensor(batch.completions),
        "completion_mask": mask, "num_items_in_batch": mask.sum(),
        **{name: torch.tensor(x, dtype=torch.float64) for name, x in given.items() if x is not None}})
    loss.backward()
    return loss.item(), table.grad.numpy()


@pytest.mark.parametrize("name, kl_coef, entropy_coef, on_policy", [
    *((name, kl_coef, None, False) for name in THEIRS for kl_coef in (0.0, 0.3)),
    *((name, 0.3, None, True) for name in THEIRS),
    *((name, 0.3, 0.2, False) for name in TOKEN_MEANS)])  # there the entropy is a mean over tokens in every loss
def test_losses_are_those_of_trl(name, kl_coef, entropy_coef, on_policy):
    config = CONFIG.with_flags(objective=name, kl_coef=kl_coef, entropy_coef=entropy_coef)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rollouts = random_rollouts(rng)
        rewards = np.array([*rng.permutation([0, 0.1, 1, 1.1]), 1, 1, 1, 0], np.float32)
        table, old, reference = 0.4 * rng.standard_normal((3, 8, 4, 3)).astype(np.float32)  # so near that no k3 is 10
        batch = grpo.make_batch(config, None, rollouts, Scored(rewards)).replace(
            old_logprobs=None if on_policy else old[..., 0] - 1, ref_logprobs=reference[..., 0] - 1)
        loss, gradient = table_loss_and_gradient(config, table, batch, num_micro=2)
        their, their_gradient = their_loss(config, table, batch, **THEIRS[name])
        np.testing.assert_allclose(loss, their, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(gradient, their_gradient, rtol=1e-6, atol=1e-6)
        assert np.abs(their_gradient).max() > 1e-3
