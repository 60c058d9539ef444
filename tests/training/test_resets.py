"""Resets of the reference and of the optimiser in a long run (ProRL, arXiv 2505.24864)."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from rlvr_jax import learner, parallel
from rlvr_jax.learner import ResetConfig
from rlvr_jax.runs.stopping import RESET, reset_due
from rlvr_jax.training import driver, train

from fixtures import REWARD_RUN, assert_same_run, read_jsonl

CONFIG = REWARD_RUN.with_flags(learning_rate=1e-2, num_steps=6, log_rollouts=0, reward="format", kl_coef=0.01,
                               save_every=1, keep_last=10)


def state_of(config):
    params = {"layers": {"q": np.arange(3, dtype=np.float32)}, "embed": np.ones(2, np.float32)}
    optimizer = learner.make_optimizer(config)
    state = learner.init_state(params, optimizer, keep_reference=config.keep_reference)
    moved = jax.tree.map(lambda x: np.asarray(x) + 5, state.opt_state)
    return state.replace(opt_state=moved, params=jax.tree.map(lambda x: x + 1, params))


@pytest.mark.parametrize("what", ["both", "reference", "optimizer"])
def test_a_reset_touches_what_it_names_and_never_the_policy(what):
    config = CONFIG.grpo.with_flags(reset=what, reset_every=2)
    before = state_of(config)
    after = parallel.fetch_state(driver.map_reset(config.resets)(parallel.place_state(before)))
    np.testing.assert_equal(after.params, before.params)
    np.testing.assert_equal(after.ref_params, before.ref_params if what == "optimizer" else before.params)
    fresh = jax.tree.map(np.asarray, learner.make_optimizer(config).init(after.params))
    np.testing.assert_equal(jax.tree.leaves(after.opt_state),
                            jax.tree.leaves(before.opt_state if what == "reference" else fresh))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Six steps with a reset after the third (and the sixth)."""
    run_dir = tmp_path_factory.mktemp("resets") / "run"
    train.train(CONFIG.with_flags(model=str(base), run_dir=str(run_dir), reset_every=3))
    return run_dir


def test_after_a_reset_the_kl_is_exactly_zero_and_grows_again(run):
    rows = {row["step"]: row for row in read_jsonl(run / "metrics.jsonl") if row["step"]}
    assert {step for step, row in rows.items() if row.get(RESET)} == {3, 6}
    assert rows[1]["train/kl"] == rows[4]["train/kl"] == 0
    assert rows[3]["train/kl"] > 0 and rows[5]["train/kl"] > 0


def test_a_run_that_goes_on_after_a_reset_is_the_same_run(run, base, tmp_path):
    again = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    for step in (4, 5, 6):
        shutil.rmtree(again / "checkpoints" / str(step))
    train.train(CONFIG.with_flags(model=str(base), run_dir=str(again), reset_every=3))
    assert_same_run(again, run, 6)


def test_an_adapter_that_is_reset_is_compared_with_itself(base, tmp_path):
    """Its reference is the model without it, until the first reset makes a copy of both."""
    config = CONFIG.with_flags(model=str(base), run_dir=str(tmp_path / "run"), trainable="vector",
                               reset_every=2, num_steps=4, learning_rate=0.1)
    train.train(config)
    kl = [row["train/kl"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if row["step"]]
    assert kl[0] == kl[2] == 0 and kl[1] > 0 and kl[3] > 0


# ----- when a reset is due


def rows(*greedy, reset=()):
    return [{"step": i} | ({} if x is None else {"eval/greedy": x}) | ({RESET: 1} if i in reset else {})
            for i, x in enumerate(greedy)]


@pytest.mark.parametrize("log, due", [
    (rows(0.1, 0.2, 0.3), False),
    (rows(0.1, 0.5, 0.3, 0.4), True),  # two evaluations without a new best
    (rows(0.1, 0.5, 0.3), False),  # one
    (rows(0.1, 0.5, 0.3, None), False),  # the last step has no evaluation
    (rows(0.1, 0.5, 0.5, 0.5), True),  # equal to the best is not a new best
    (rows(0.1, 0.5, 0.3, 0.4, 0.3, reset=[3]), False),  # patience starts at the reset
    (rows(0.1, 0.5, 0.3, 0.4, 0.3, 0.2, reset=[3]), True)])
def test_a_stall_is_counted_from_the_last_reset(log, due):
    assert reset_due(ResetConfig(reset_patience=2), log) == due


def test_without_the_flags_nothing_is_ever_reset():
    assert not reset_due(ResetConfig(), rows(0.5, 0.1, 0.1, 0.1, 0.1))
    assert [reset_due(ResetConfig(reset_every=3), rows(*[None] * n)) for n in (3, 4, 5)] == [False, True, False]
