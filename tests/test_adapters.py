"""Adapters: without effect at the start, alone in being trained, and a model like any other to everything else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rlvr_jax import adapters, learner, logprobs, model, parallel
from rlvr_jax.adapters import AdapterConfig
from rlvr_jax.errors import UserError

from fixtures import (
    PROMPTS, TINY, UPDATE, VARIANTS, as_batch, assert_close, draw_rollouts, make_batch, padded, random_params)
from golden.cases import logits

DEEP = dataclasses.replace(TINY, num_layers=4)
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
KINDS = {"all": {}, "lora": {"trainable": "lora", "adapter_rank": 2}, "vector": {"trainable": "vector"},
         "one layer": {"trainable": "vector", "adapter_layers": (1,)}, "first token": {"trainable": "first_vector"},
         "first token, last layer": {"trainable": "first_vector", "adapter_layers": (1,)},
         "few numbers": {"trainable": "lora", "adapter_size": 5},
         "few numbers for the first token": {"trainable": "first_vector", "adapter_size": 4},
         "few numbers in a layer": {"trainable": "vector", "adapter_layers": (1,), "adapter_size": 3}}


def adapted(kind, config=TINY, seed=0, **changes):
    return adapters.add(AdapterConfig(**KINDS[kind] | changes), random_params(config), seed)


def moved(params, seed=7, by=0.2):
    """The same parameters with every trained number moved away from its start."""
    rng, (trained, frozen) = np.random.default_rng(seed), adapters.split(params)
    trained = jax.tree.map(lambda x: x + by * rng.standard_normal(x.shape).astype(np.float32), trained)
    return adapters.join(trained, frozen)


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


# ----- a model with adapters


@pytest.mark.parametrize("kind, name", [
    ("lora", "llama"), ("lora", "qwen2"), ("lora", "qwen3"), ("vector", "untied"), ("one layer", "llama"),
    ("few numbers", "qwen3"), ("few numbers in a layer", "llama")])
def test_an_adapter_changes_no_logit_at_its_start_and_some_once_moved(kind, name):
    config = VARIANTS[name]
    params, plain = adapted(kind, config), logits(random_params(config), config, [TOKENS])
    np.testing.assert_array_equal(logits(params, config, [TOKENS]), plain)
    assert np.abs(logits(moved(params), config, [TOKENS]) - plain).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, adapters.base_params(moved(params)), random_params(config))


def test_lora_is_the_published_product_at_every_linear_map():
    params = moved(adapted("lora", DEEP, adapter_rank=3, adapter_alpha=6.0))
    dense, layers = adapters.base_params(params), params["layers"]
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        a, b = (np.asarray(layers[f"{name}_lora_{which}"], np.float64) for which in "ab")
        assert a.shape == (4, layers[name].shape[1], 3) and b.shape == (4, 3, layers[name].shape[2])
        dense["layers"][name] = jnp.asarray(layers[name] + 2.0 * np.einsum("lir,lro->lio", a, b), jnp.float32)
    np.testing.assert_allclose(logits(params, DEEP, [TOKENS]), logits(dense, DEEP, [TOKENS]), atol=2e-5)
    fresh = {name: np.asarray(x) for name, x in adapted("lora", DEEP, adapter_rank=512)["layers"].items()}
    assert len({fresh[name].tobytes() for name in fresh if name.endswith("_lora_a")}) == 7  # each has draws of its own
    a = fresh["down_lora_a"] * 24**0.5  # 24: d_ff
    assert -1 <= a.min() < -0.99 < 0.99 < a.max() <= 1 and abs(a.std() - 3**-0.5) < 0.01


def test_gradients_of_lora_are_those_of_the_chain_rule():
    """With y = x (W + s A B) and G the gradient of W: s G B' is that of A, s A' G that of B."""
    params = moved(adapted("lora", DEEP, adapter_rank=3, adapter_alpha=6.0))
    trained, frozen = adapters.split(params)

    def loss(params):
        hidden, _ = model.forward(params, DEEP, TOKENS[None])
        return jnp.sum(jnp.sin(model.head(params, hidden)))

    ours = jax.jit(jax.grad(lambda trained: loss(adapters.join(trained, frozen))))(trained)["layers"]
    dense = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, adapters.merge(params)))["layers"]
    assert len(ours) == 14
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        a, b, g = (np.asarray(x, np.float64) for x in (params["layers"][name + "_lora_a"],
                                                       params["layers"][name + "_lora_b"], dense[name]))
        np.testing.assert_allclose(ours[name + "_lora_a"], 2 * g @ b.swapaxes(1, 2), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours[name + "_lora_b"], 2 * a.swapaxes(1, 2) @ g, rtol=1e-3, atol=1e-4)


def test_a_vector_at_one_layer_changes_only_what_comes_after_it():
    params = adapted("one layer", DEEP)
    run_through = jax.jit(lambda params: model.forward(params, DEEP, TOKENS[None],
                                                       how=model.ForwardOptions(keep_kv=True))[1][0])
    before, after = (np.asarray(run_through(p)) for p in (params, moved(params)))
    changed = [bool((x != y).any()) for x, y in zip(before, after)]  # keys depend on the input of their layer
    assert changed == [False, False, True, True]
    assert np.asarray(moved(params)["layers"]["vector"]).any(-1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["lora", "first token"])
def test_sampler_and_training_pass_agree_on_an_adapted_model(kind):
    params = moved(adapted(kind))
    out = draw_rollouts(params=params, num_slots=3)
    policy, _ = jax.jit(logprobs.completion_logprobs, static_argnums=1)(params, TINY, as_batch(out), 1.0)
    np.testing.assert_allclose(policy[out.completion_mask], out.sampler_logprobs[out.completion_mask], atol=5e-5)
    assert (draw_rollouts(num_slots=3).sampler_logprobs != out.sampler_logprobs).any()


def test_a_vector_upon_a_merged_vector_is_the_sum_of_both():
    once = moved(adapted("vector"))
    twice = moved(adapters.add(AdapterConfig(trainable="vector"), adapters.merge(once), 0), seed=8)
    plain = adapters.merge(twice)
    both = np.asarray(once["layers"]["vector"]) + np.asarray(twice["layers"]["vector"])
    np.testing.assert_allclose(plain["layers"]["down_bias"], both, rtol=1e-6)
    np.testing.assert_allclose(logits(plain, TINY, [TOKENS]), logits(twice, TINY, [TOKENS]), atol=2e-5)


@pytest.mark.parametrize("kind, later_too", [("first token", True), ("first token, last layer", False)])
def test_a_vector_at_the_first_token_is_an_edit_of_the_prompts_last_position(kind, later_too):
    """Log-probabilities of whole rows, prompt and completion, with the vectors added at that one position."""
    params, out = moved(adapted(kind)), draw_rollouts()
    plain, vectors_LxD = adapters.base_params(params), params["layers"]["first_vector"]
    assert vectors_LxD.any(-1).tolist() == [later_too, True]
    score = jax.jit(lambda params: logprobs.completion_logprobs(params, TINY, as_batch(out), 1.0)[0])
    with_it, without, mask = np.asarray(score(params)), np.asarray(score(plain)), out.completion_mask
    rows = padded([[*PROMPTS[prompt], *ids] for prompt, ids in zip(out.prompt_index, out.completions)]).tokens
    last_B = np.array([len(PROMPTS[prompt]) - 1 for prompt in out.prompt_index])

    def edit(layer, x, positions):
        return x + (positions == last_B[:, None])[..., None] * vectors_LxD[layer][None, None]

    hidden, _ = jax.jit(lambda: model.forward(plain, TINY, rows, how=model.ForwardOptions(edit_residual=edit)))()
    logprobs_BxTxV = np.asarray(jax.nn.log_softmax(model.head(plain, hidden)))
    for row, said in enumerate(out.completions):
        wanted = logprobs_BxTxV[row, last_B[row] + np.arange(len(said)), said]
        np.testing.assert_allclose(with_it[row][mask[row]], wanted[mask[row]], atol=5e-5)
    changed = (np.abs(with_it - without) > 1e-6) & mask
    assert changed[:, 0].all() and changed[:, 1:].any() == later_too


def test_a_vector_at_the_first_token_is_no_weight():
    with pytest.raises(UserError, match="--trainable=first_vector, which acts at one token"):
        adapters.add(AdapterConfig(), adapted("first token"), 0)


# ----- few numbers


@pytest.mark.parametrize("kind, entries", [("few numbers", None), ("few numbers in a layer", 16)])
def test_numbers_go_through_orthonormal_columns_that_the_seed_decides(kind, entries):
    first, again, other = (adapted(kind, DEEP, seed=seed)["adapter"]["maps"] for seed in (0, 0, 1))
    flat = np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in first.values()])
    np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)
    assert entries is None or flat.any(-1).sum() == entries  # none of another layer
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any((x != y).any() for x, y in zip(first.values(), other.values()))


def test_leaves_are_their_start_and_the_projection_of_the_numbers():
    params = moved(adapted("few numbers", DEEP))
    adapter, numbers = params["adapter"], np.asarray(params["adapter"]["numbers"], np.float64)
    start = adapted("few numbers", DEEP)["layers"]
    assert len(adapter["maps"]) == 14 and numbers.any()
    for name, columns in adapter["maps"].items():
        np.testing.assert_allclose(params["layers"][name], start[name] + np.asarray(columns) @ numbers, atol=1e-6)


@pytest.mark.parametrize("changes, trained", [
    ({"trainable": "vector"}, 4 * 16), ({"trainable": "vector", "adapter_layers": (3, 0)}, 2 * 16),
    ({"trainable": "first_vector", "adapter_layers": (3,)}, 16),
    ({"trainable": "vector", "adapter_size": 64}, 64), ({"trainable": "lora", "adapter_size": 1}, 1),
    # layers x rank x (inputs + outputs): q 16 > 32 and back (o), k and v 16 > 16, gate and up 16 > 24 and back (down)
    ({"trainable": "lora", "adapter_rank": 2}, 4 * 2 * (2 * 48 + 2 * 32 + 3 * 40))])
def test_moments_are_kept_of_what_is_trained_alone(changes, trained):
    params = adapters.add(AdapterConfig(**changes), random_params(DEEP), 0)
    state = learner.init_state(params, learner.make_optimizer(UPDATE), keep_reference=False)
    assert count(adapters.split(params)[0]) == trained and count(state.opt_state) == 2 * trained + 2  # and two counts


# ----- the update


@pytest.mark.parametrize("kind", ["lora", *(pytest.param(kind, marks=pytest.mark.slow)
                                            for kind in ("one layer", "first token", "few numbers"))])
def test_an_update_moves_what_is_trained_and_no_bit_of_the_rest(kind):
    config, params = UPDATE.with_flags(weight_decay=0.1), adapted(kind)
    optimizer = learner.make_optimizer(config)
    state = learner.init_state(jax.tree.map(jnp.array, params), optimizer, keep_reference=False)
    update = learner.map_update(TINY, config.update, config.loss, optimizer, config.loop.seed)
    after = parallel.fetch_state(update(parallel.place_state(state), make_batch(), 1)[0].params)
    jax.tree.map(np.testing.assert_array_equal, adapters.base_params(after), random_params(TINY))
    for name in ("start", "maps") if "adapter" in params else ():
        jax.tree.map(np.testing.assert_array_equal, after["adapter"][name], params["adapter"][name])
    change = traverse_util.flatten_dict(jax.tree.map(lambda x, y: np.abs(x - y).max(), after, params))
    leaves = set(adapters.split(params)[0].get("layers", {})) or set(params["adapter"]["maps"]) | {"numbers"}
    assert {path[-1] for path, by in change.items() if by > 0} == leaves
    assert_close(adapters.join(*adapters.split(after)), after, atol=1e-6)  # leaves are computed from these numbers


@pytest.mark.parametrize("kind", ["few numbers", *(pytest.param(kind, marks=pytest.mark.slow)
                                                   for kind in KINDS if kind != "few numbers")])
def test_a_divided_state_is_updated_as_a_whole_one(kind):
    """Two updates; the second starts from the result of the first."""
    params, batch, after, optimizer = adapted(kind), make_batch(), [], learner.make_optimizer(UPDATE)
    update = learner.map_update(TINY, UPDATE.update, UPDATE.loss, optimizer, UPDATE.loop.seed)
    for divide in (False, True):
        fresh = learner.init_state(jax.tree.map(jnp.array, params), optimizer, keep_reference=True)
        state = parallel.place_state(fresh, divide)
        layout = jax.tree.structure(state)
        assert (layout != jax.tree.structure(fresh)) == divide
        for step in (1, 2):
            state, _ = update(state, batch, step)
        assert jax.tree.structure(state) == layout  # another layout would cost another trace
        after.append(parallel.fetch_state(state))
    assert_close(after[1], after[0])


@pytest.mark.parametrize("changes, says", [
    ({"adapter_size": 4}, "--adapter_size needs an adapter: --trainable"),
    ({"adapter_layers": (0,)}, "--adapter_layers needs an adapter"), ({"adapter_rank": 4}, "--adapter_rank needs an"),
    ({"trainable": "lora", "adapter_layers": (0,)}, "needs --trainable=vector"),
    ({"trainable": "vector", "adapter_layers": (1, 4)}, "--adapter_layers=1,4: the layers of the model are 0 to 3"),
    ({"trainable": "vector", "adapter_size": 65}, "--adapter_size=65: the adapter has 64 numbers")])
def test_flags_that_do_not_fit_are_named(changes, says):
    with pytest.raises(UserError, match=says):
        adapters.add(AdapterConfig(**changes), random_params(DEEP), 0)


@pytest.mark.parametrize("leaves", [{}, {"q_scale": jnp.ones(4)}])
def test_an_adapter_that_makes_nothing_trainable_is_an_error_and_does_not_train_everything(monkeypatch, leaves):
    monkeypatch.setitem(adapters.ADAPTERS, "typo", lambda config, layers, key: leaves)
    with pytest.raises(UserError, match="--trainable=typo makes nothing that is trained .*names of trained leaves"):
        adapters.add(AdapterConfig(trainable="typo"), random_params(DEEP), 0)
