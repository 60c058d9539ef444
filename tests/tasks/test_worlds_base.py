"""What the bases of the worlds can do, measured on small ones: chains of two operations, 600 steps (some minutes each)."""

import jax
import numpy as np
import pytest

from rlvr_jax import model
from rlvr_jax.pretrained import loading
from rlvr_jax.records import build
from rlvr_jax.tasks import worlds
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.training.pretrain import PretrainConfig, pretrain

OPS = 2


def chances(loaded, name):
    """(chance of the opening word think, that of the right value at each step of careful solutions to 400 test problems,
    whether the step is a *, whether pre-training withheld what it needs), f64[400], f64[400,OPS] and bool[400,OPS]."""
    family = FAMILIES[name]
    drawn = family.generate(np.random.default_rng(0), 400, "test", OPS)
    prompts = [loaded.tokenizer.encode(problem.prompt) for problem in family.to_problems(drawn)]
    rows = np.array([[*prompt, *loaded.tokenizer.encode(text)] for prompt, text in zip(prompts, worlds.write(drawn))])
    logits_BxTxV = jax.jit(lambda params: model.head(params, model.forward(params, loaded.config, rows)[0]))(loaded.params)
    found = np.take_along_axis(np.asarray(jax.nn.softmax(logits_BxTxV))[:, :-1], rows[:, 1:, None], -1)[..., 0]
    found = found[:, len(prompts[0]) - 1 :]  # of the solution: think, then op, operand and three digits a step
    values = found[:, 1 : 1 + 5 * OPS].reshape(len(rows), OPS, 5)[..., 2:].prod(-1)
    withheld = {"t": worlds.needs_withheld(drawn), "c": worlds.is_new(drawn.ops, drawn.operands)}
    return found[:, 0], values, drawn.ops == worlds.TIMES, withheld.get(name, np.zeros(values.shape, bool))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s1", "s2", "s3", "c", "t", "n"])
def test_a_base_can_do_what_its_world_says(name, tmp_path):
    made = pretrain(build(PretrainConfig, task_shares=name, num_ops=OPS, num_steps=600, grad_accumulation=8, eval_every=600,
                          run_dir=str(tmp_path / "base")))
    opened, right, times, withheld = chances(loading.load_model(str(tmp_path / "base"), "float32", "float32"), name)
    sampled, greedy = (made["final"][how] for how in ("sampled", "greedy"))
    if name != "n":
        assert right[~withheld & ~(times & (name == "s2"))].mean() > 0.88
    if name in ("s1", "s3"):
        assert abs(opened.mean() - FAMILIES[name].shares[0]) < 0.06 and sampled < 0.8
    if name == "s2":  # a few products are sums, too
        assert abs(right[times].mean() - worlds.CAREFUL_STEP) < 0.1 and greedy < 0.65
    if name == "c":
        assert right[withheld].mean() < 0.5 and greedy < 0.5
    if name == "t":
        assert abs(right[withheld].mean() - 0.1) < 0.06 and greedy < 0.5
    if name == "n":
        assert opened.max() < 0.01 and right[times].mean() < 0.05 and greedy < 0.65
