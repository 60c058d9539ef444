"""A run on the rank-1 direction of its first checkpoints, against NumPy's SVD of one tensor after the other."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlvr_jax import records
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import decoding, trajectory
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import checkpoint
from rlvr_jax.tasks import families

from fixtures import VARIANTS, random_params, read_jsonl

WORDS = families.make_tokenizer(["arithmetic"])
CONFIG = dataclasses.replace(VARIANTS["untied"], vocab_size=WORDS.backend.get_vocab_size(), max_seq_len=64)
START = jax.tree.map(np.asarray, random_params(CONFIG))
FIRST, LAST = (10, 20, 30), 60


def write_run(path, params_by_step, flags) -> str:
    """A run directory with these checkpoints."""
    manager = checkpoint.open_manager(str(path), keep_every=1)
    meta = {"model": CONFIG.to_json(), "tokenizer": WORDS.to_json(), "flags": flags}
    for step, params in params_by_step.items():
        checkpoint.save(manager, records.LearnerState(np.int32(step), params, {}, None), meta, {})
    checkpoint.wait(manager)
    manager.close()
    return str(path)


def random_like(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), START)


def made_run(tmp_path, noise, vectors=False):
    """(its name, {step: params}): a straight line from START with noise about it; with vectors, they alone move."""
    base, direction, params = write_run(tmp_path / "base", {5: START}, {}), random_like(0), {}
    for step in (*FIRST, LAST):
        change = jax.tree.map(lambda d, e: np.float32(step / 300) * (d + noise * e), direction, random_like(step))
        if vectors:
            params[step] = START | {"layers": START["layers"] | {"vector": change["layers"]["attn_norm"]}}
        else:
            params[step] = jax.tree.map(np.add, START, change)
    return write_run(tmp_path / "run", params, {"model": base} | FALLING), params


def put(name, **flags):
    """(parameters, numbers) of a model on the direction of its run."""
    loaded, numbers = trajectory.project_run(trajectory.TrajectoryConfig(**flags), name, loading.load_model(name))
    return loaded.params, numbers["rank1"]


FALLING = {"learning_rate": 1e-3, "warmup_steps": 4, "schedule": "linear", "final_lr_fraction": 0.1, "num_steps": 100,
           "num_minibatches": 2}


def summed(step):
    """The rates of FALLING up to a step: 4 updates up to 1e-3, then down to 1e-4 at update 200."""
    return 1e-3 * sum(u / 4 if u < 4 else 1 - .9 * (u - 4) / 196 for u in range(min(2 * step, 200))) + (
        1e-4 * max(2 * step - 200, 0))


def by_svd(first, later, at=0, place=float):
    """(the change on the direction, squares: kept, of later, in the direction, of all) of rows [N,K] and [K]."""
    u, s, vt = np.linalg.svd(np.asarray(first, np.float64), full_matrices=False)
    ones = np.stack([np.ones(3), [*map(place, FIRST)]], 1)
    a, b = np.linalg.lstsq(ones, u[:, 0] * s[0], rcond=None)[0]
    return ((a + b * place(at) if at else later @ vt[0]) * vt[0],
            np.array([(later @ vt[0]) ** 2, later @ later, s[0] ** 2, np.sum(s**2)]))


@pytest.mark.parametrize("at, by", [(0, {}), (200, {}), (200, {"rank1_by": "rate"})])
def test_each_tensor_is_projected_on_its_own_first_singular_vector(at, by, tmp_path):
    name, params = made_run(tmp_path, noise=0.5)
    found, numbers = put(f"{name}@{LAST}", rank1_steps=35, rank1_at=at, **by)
    squares = np.zeros(4)

    def check(path, start, new, later, *first):
        for i in range(len(start)) if path[0].key == "layers" else [...]:
            change, more = by_svd([(x[i] - start[i]).ravel() for x in first], (later[i] - start[i]).ravel(), at,
                                  summed if by else float)
            np.testing.assert_allclose((new[i] - start[i]).ravel(), change, atol=1e-5)
            squares[:] += more

    jax.tree_util.tree_map_with_path(check, START, found, params[LAST], *(params[step] for step in FIRST))
    assert numbers["checkpoints"] == list(FIRST)
    assert numbers["kept"] == pytest.approx(squares[0] / squares[1], rel=1e-4) and 0.3 < numbers["kept"] < 0.95
    assert numbers["explained"] == pytest.approx(squares[2] / squares[3], rel=1e-4) and numbers["explained"] < 0.99
    assert 0.8 < numbers["linear"] < 1


def test_a_straight_run_is_its_projection_and_its_line_goes_through_later_steps(tmp_path):
    name, params = made_run(tmp_path, noise=0.0)
    for flags in ({}, {"rank1_at": LAST}):
        found, numbers = put(f"{name}@{LAST}", rank1_steps=30, **flags)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, params[LAST])
        assert all(numbers[key] == pytest.approx(1, abs=1e-4) for key in ("explained", "kept", "linear"))


def test_trained_vectors_are_projected_and_weights_that_did_not_move_stay(tmp_path):
    name, params = made_run(tmp_path, noise=0.5, vectors=True)
    found, _ = put(name, rank1_steps=30)
    for i in range(CONFIG.num_layers):
        rows = [params[step]["layers"]["vector"][i] for step in (*FIRST, LAST)]
        np.testing.assert_allclose(found["layers"]["down_bias"][i], by_svd(rows[:-1], rows[-1])[0], atol=1e-6)
    layers = {key: x for key, x in found["layers"].items() if key != "down_bias"}
    jax.tree.map(np.testing.assert_array_equal, found | {"layers": layers}, START)


def test_a_method_measures_the_model_on_its_direction(tmp_path):
    name, _ = made_run(tmp_path, noise=0.0)

    def elicited(out, **flags):
        config = decoding.ElicitConfig.from_flags(**{
            "num_ops": 2, "max_new_tokens": 4, "max_problems": 6, "method": "low_temperature", "temperature": 1.0,
            "out": str(out)} | flags)
        return decoding.elicit(config), [row["completion"] for row in read_jsonl(out / "completions.jsonl")]

    _, at_30 = elicited(tmp_path / "plain", model=f"{name}@30")
    summary, on_line = elicited(tmp_path / "line", model=name, rank1_steps=20, rank1_at=30)
    assert on_line == at_30 != elicited(tmp_path / "end", model=name)[1]
    assert json.loads((tmp_path / "line" / "summary.json").read_text())["rank1"] == summary["rank1"]


def test_what_a_direction_needs_is_named(tmp_path):
    name, _ = made_run(tmp_path, noise=0.5)
    no_base = write_run(tmp_path / "other", {1: START, 2: START}, {})
    resets = write_run(tmp_path / "resets", {1: START, 2: START}, {"model": no_base, "reset_every": 1} | FALLING)
    for model, flags, says in ((name, {"rank1_steps": 19}, "has 1 checkpoints up to that step"),
                               (name, {"rank1_at": 60}, "needs --rank1_steps"),
                               (name, {"rank1_by": "rate"}, "needs --rank1_steps"),
                               (resets, {"rank1_steps": 2, "rank1_by": "rate"}, "its schedule started again"),
                               (no_base, {"rank1_steps": 2}, "did not start from a model")):
        with pytest.raises(UserError, match=says):
            put(model, **flags)
