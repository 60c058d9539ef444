"""Sampling: what is drawn, what is recorded of it, and that neither depends on how the work is spread."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlvr_jax import logprobs, model, parallel, sampler
from rlvr_jax.sampler import Decoding, Request

from fixtures import (
    PROMPTS, PROMPT_INDEX, TINY, VARIANTS, as_batch, draw_rollouts, full_logits, padded, random_params, tiny_params)

PARAMS = tiny_params()
completion_logprobs = jax.jit(logprobs.completion_logprobs, static_argnums=1)
HOST_PROMPTS = jax.tree.map(np.asarray, padded(PROMPTS))


def assert_same_rollouts(out, reference):
    for array in ("completions", "completion_mask", "ended"):
        np.testing.assert_array_equal(getattr(out, array), getattr(reference, array))
    np.testing.assert_allclose(out.sampler_logprobs, reference.sampler_logprobs, atol=1e-5)


@pytest.mark.parametrize("name, temperature", [("untied", 1.0), ("llama", 0.6)])
def test_sampler_logprobs_are_those_of_the_training_pass(name, temperature):
    """test_model.py compares each architecture's cached and prefixed passes with whole rows."""
    config, params = VARIANTS[name], random_params(VARIANTS[name])
    out = draw_rollouts(params=params, config=config, temperature=temperature, num_slots=3)
    policy, entropy = completion_logprobs(params, config, as_batch(out), temperature)
    np.testing.assert_allclose(policy[out.completion_mask], out.sampler_logprobs[out.completion_mask], atol=2e-5)
    assert len(set(out.completion_mask.sum(-1))) > 1  # ragged, or the comparison shows little
    assert (entropy > 0).all()


@pytest.mark.parametrize("index, seed, slots", [
    (PROMPT_INDEX, 0, (0, 1, 3, 8)),
    ((2, 0, 1), 2, (2, 3)), ((1, 1, 0), 2, (2, 3))])  # in 3 slots prompts are laid out as rows, not looked up again
def test_slots_and_batch_composition_change_no_rollout(index, seed, slots):
    reference, *others = (draw_rollouts(index=np.array(index, np.int32), num_slots=n, seed=seed) for n in slots)
    for out in others:
        assert_same_rollouts(out, reference)


@pytest.mark.parametrize("num_slots, num_prompts", [(33, 2), pytest.param(0, 40, marks=pytest.mark.slow)])
def test_fewer_slots_at_the_end_change_no_rollout(num_slots, num_prompts):
    """40 rows of up to 80 tokens, of which the last go on in fewer slots: 40 or 33, then 20 or 16, then 10 or 8."""
    index = (np.arange(40) % num_prompts).astype(np.int32)
    asked = dict(prompts=[PROMPTS[i % len(PROMPTS)] for i in range(num_prompts)], index=index, eos_ids=(12,),
                 max_new_tokens=80, num_slots=num_slots)
    reference, out = (draw_rollouts(layout=model.LAYOUTS["cpu"]._replace(shrinks=shrinks), **asked)
                      for shrinks in (False, True))
    lengths = np.sort(reference.completion_mask.sum(-1))
    assert lengths[20] < 40 and lengths[-1] == 80
    assert_same_rollouts(out, reference)


def test_what_a_hook_carries_goes_on_with_its_slot():
    rows = sampler.Rows(jnp.zeros(40, jnp.int32), sampler.rollout_keys(0, 3, jnp.arange(40)))
    hooks = sampler.Hooks(carry=jnp.arange(40.0), propose=lambda carry, draw, logits: (
        carry + 100, jnp.full(len(carry), -1), {"carry": carry}))
    out = jax.jit(lambda params: sampler.sample(params, TINY, padded(PROMPTS), rows, Decoding(
        (12,), 80, layout=model.Layout(shrinks=True)), hooks))(PARAMS)
    expected = np.arange(40)[:, None] + 100.0 * np.arange(80)
    np.testing.assert_array_equal(out.noted["carry"], np.where(out.completion_mask, expected, 0))


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_the_layout_of_another_platform_changes_no_rollout(platform):
    """With refilled slots, several prompts, and completions longer than the first window of a cache that grows."""
    asked = dict(temperature=0.0, eos_ids=(12,), max_new_tokens=80, num_slots=3)
    reference, out = (draw_rollouts(layout=model.LAYOUTS[which], **asked) for which in ("cpu", platform))
    assert reference.completion_mask.sum(-1).max() > 64
    assert_same_rollouts(out, reference)


@pytest.mark.parametrize("platform", model.LAYOUTS)
def test_weights_are_cast_before_the_loop_of_an_accelerator(platform):
    """The float32 arrays that are cast in the loop: norms are not, as they are used in float32."""
    config = dataclasses.replace(VARIANTS["untied"], dtype="bfloat16", qkv_bias=True, qk_norm=True)
    params, keys = random_params(config), sampler.rollout_keys(0, 3, jnp.arange(3))
    rows = sampler.Rows(jnp.zeros(3, jnp.int32), keys)
    weights = params["layers"] | {"embed": params["embed"][:1, None], "head": params["head"][None]}

    def casts(jaxpr):
        inner = [found for eqn in jaxpr.eqns for value in eqn.params.values()
                 for x in (value if isinstance(value, tuple) else (value,))
                 if hasattr(found := getattr(x, "jaxpr", x), "eqns")]
        return [eqn.invars[0].aval for eqn in jaxpr.eqns if eqn.primitive.name == "convert_element_type" and (
            eqn.outvars[0].aval.dtype == jnp.bfloat16)] + [aval for found in inner for aval in casts(found)]

    jaxpr = jax.make_jaxpr(sampler.sample, static_argnums=(1, 4))(
        params, config, padded(PROMPTS[:1]), rows, Decoding((1,), 12, layout=model.LAYOUTS[platform])).jaxpr
    loop, = (eqn.params["body_jaxpr"].jaxpr for eqn in jaxpr.eqns if eqn.primitive.name == "while")
    cast = {aval.shape for aval in casts(loop)} & {x.shape[1:] for x in weights.values() if x.ndim > 2}
    assert cast == ({x.shape[1:] for name, x in weights.items() if x.ndim > 2 and name != "embed"} if (
        platform == "cpu") else set())


def test_a_sampler_has_the_layout_of_its_devices_and_no_more_slots_than_they_compile(monkeypatch):
    monkeypatch.setitem(model.LAYOUTS, "cpu", model.LAYOUTS["gpu"])
    monkeypatch.setitem(sampler.MOST_SLOTS, "cpu", 2)
    seen = []

    def sample_fn(params, config, prompts, rows, decoding):
        seen.append(decoding)
        return sampler.sample(params, config, prompts, rows, decoding)

    sampler.make_sampler(TINY, Decoding((1,), 3), sample_fn=sample_fn)(
        parallel.place_state(PARAMS), HOST_PROMPTS, PROMPT_INDEX, Request(0, 0))
    assert seen == [Decoding((1,), 3, num_slots=2, layout=model.LAYOUTS["gpu"])]


def test_devices_padding_rows_and_parts_change_no_rollout():
    """`first_row` numbers the rows of a later part."""
    sample, params = sampler.make_sampler(TINY, Decoding((1, 4, 9), 12)), parallel.place_state(PARAMS)
    reference = draw_rollouts(index=PROMPT_INDEX[:7], seed=5)
    assert parallel.device_count() == 2
    for first, last in ((0, 7), (3, 7)):
        out = sample(params, HOST_PROMPTS, PROMPT_INDEX[first:last], Request(5, 3, first_row=first))
        np.testing.assert_array_equal(out.completions, reference.completions[first:])
        np.testing.assert_array_equal(out.prompt_index, PROMPT_INDEX[first:last])


def test_the_mask_ends_with_the_first_end_token():
    out = draw_rollouts(index=np.repeat(PROMPT_INDEX, 8))
    assert len(set(out.completion_mask.sum(-1))) > 4 and not out.ended.all() and out.ended.any()
    for ids, mask, ended in zip(out.completions, out.completion_mask, out.ended):
        ends = np.flatnonzero(np.isin(ids[mask], (1, 4, 9)))
        assert mask[0] and (np.diff(mask.astype(int)) <= 0).all()  # one run of true, from the start
        if ended:
            assert list(ends) == [mask.sum() - 1]
        else:
            assert len(ends) == 0 and mask.all()
        assert (ids[~mask] == 0).all()


def test_decoding_stops_when_every_rollout_has_ended():
    calls = []

    def count(layer, x, positions):
        if x.shape[1] == 1 and isinstance(layer, int) and layer == 0:
            jax.debug.callback(lambda: calls.append(1))
        return x

    out = draw_rollouts(index=PROMPT_INDEX[:3], eos_ids=tuple(range(20)), max_new_tokens=40, edit=count)
    jax.effects_barrier()
    assert len(calls) == out.completion_mask.sum(-1).max() < 40


def test_same_key_same_words_and_other_keys_other_words():
    same, other_seed, other_step = draw_rollouts(seed=0), draw_rollouts(seed=1), draw_rollouts(step=4)
    np.testing.assert_array_equal(same.completions, draw_rollouts(seed=0).completions)
    assert (same.completions != other_seed.completions).any() and (same.completions != other_step.completions).any()
    streams = [jax.random.key_data(sampler.rollout_keys(0, 3, jnp.arange(2), s)) for s in (0, 1, 2)]
    assert len({x.tobytes() for x in map(np.asarray, streams)}) == 3


def likeliest(logits, tokens):
    return {"likeliest": jnp.max(jax.nn.log_softmax(logits), -1)}


def test_given_tokens_are_kept_and_the_rest_is_drawn_after_them():
    """Given what would have been drawn anyway, nothing changes; given other tokens, they are scored as any others."""
    fn = jax.jit(sampler.sample, static_argnums=(1, 4, 5))
    keys, reference = sampler.rollout_keys(0, 3, jnp.arange(len(PROMPT_INDEX))), draw_rollouts()

    def drawn(note=None, **changes):
        rows = sampler.Rows(jnp.array(PROMPT_INDEX), keys, 0.8, **changes)
        return jax.tree.map(np.asarray, fn(PARAMS, TINY, padded(PROMPTS), rows, Decoding((1, 4, 9), 12, 3),
                                           sampler.Hooks(note=note)))

    free = drawn()
    given = jnp.where(jnp.arange(12)[None, :] < jnp.arange(8)[:, None], free.completions, -1)
    jax.tree.map(np.testing.assert_array_equal, drawn(given=given), free)
    other = np.full((8, 12), -1)
    other[:, :2], other[3, :2] = reference.completions[:, :2], 0  # 0 is a token like any other
    out = drawn(given=other, limit=5, note=likeliest)
    two = np.minimum(out.completion_mask.sum(-1), 2)
    assert [row[:n].tolist() for row, n in zip(out.completions, two)] == [
        row[:n].tolist() for row, n in zip(other, two)]
    assert out.completion_mask.sum(-1).max() == 5 and (out.ended | (out.completion_mask.sum(-1) == 5)).all()
    mask, scored = out.completion_mask, {t: completion_logprobs(PARAMS, TINY, as_batch(out), t)[0] for t in (0.8, 1.0)}
    np.testing.assert_allclose(scored[0.8][mask], out.sampler_logprobs[mask], atol=2e-5)
    assert (scored[1.0][mask] <= out.noted["likeliest"][mask] + 2e-5).all() and (out.noted["likeliest"][mask] < 0).all()


def test_temperature_zero_takes_the_most_likely_token():
    out = draw_rollouts(temperature=0.0, index=PROMPT_INDEX[:1], eos_ids=(30,))
    expected = full_logits(PARAMS, TINY, PROMPTS[0] + out.completions[0][:-1].tolist()).argmax(-1)[len(PROMPTS[0]) - 1:]
    np.testing.assert_array_equal(out.completions[0][out.completion_mask[0]], expected[: out.completion_mask.sum()])


def test_top_p_reaches_the_draw_on_every_device():
    """Of almost no probability only the most likely token is left; a sampler made without it takes no notice."""
    params, prompts = parallel.place_state(PARAMS), HOST_PROMPTS
    narrow, plain = (sampler.make_sampler(TINY, Decoding((30,), 6), use) for use in (True, False))
    greedy = plain(params, prompts, PROMPT_INDEX, Request(0, 0, 0.0)).completions
    np.testing.assert_array_equal(narrow(params, prompts, PROMPT_INDEX, Request(0, 0, top_p=1e-6)).completions, greedy)
    drawn = plain(params, prompts, PROMPT_INDEX, Request(0, 0)).completions
    assert (drawn != greedy).any()
    np.testing.assert_array_equal(narrow(params, prompts, PROMPT_INDEX, Request(0, 0, top_p=1.0)).completions, drawn)


LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12)


@settings(deadline=None, max_examples=20)
@given(LOGITS, st.sampled_from([0.3, 1.0, 2.0]), st.sampled_from([None, 0.2, 0.5, 0.9]))
def test_draws_follow_the_distribution_and_record_it(logits, temperature, top_p):
    gaps = np.diff(np.sort(logits))
    assume(((gaps == 0) | (gaps > 1e-5)).all())  # in float32 a smaller gap may be a tie or none
    n = 2000
    grid = jnp.array((np.arange(n) + 0.5) / n, jnp.float32)  # evenly spread uniforms give frequencies within 1/n
    rows = jnp.tile(jnp.array(logits, jnp.float32)[None], (n, 1))
    tokens, recorded = sampler.draw_tokens(rows, grid, temperature, top_p)
    p = np.exp(np.array(logits, np.float64) / temperature - max(logits) / temperature)
    p /= p.sum()
    if top_p is not None:
        order = np.argsort(-p, kind="stable")
        kept = order[: np.searchsorted(np.cumsum(p[order]), top_p - 1e-6) + 1]
        kept = np.flatnonzero(p >= p[kept].min() - 1e-7)  # equal probabilities are kept together
        p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
        p /= p.sum()
    frequencies = np.bincount(tokens, minlength=len(p)) / n
    np.testing.assert_allclose(frequencies, p, atol=2 / n)
    np.testing.assert_allclose(np.exp(recorded), p[tokens], rtol=1e-3, atol=1e-6)


def test_no_more_tokens_are_kept_than_reach_top_p():
    """The first two are one half and one quarter, both exact: three quarters are reached with them."""
    logprobs = jnp.log(jnp.array([[0.25, 0.125, 0.5, 0.125]]))
    for top_p, kept in ((0.5, [0, 0, 1, 0]), (0.75, [1, 0, 2, 0]), (0.76, [2, 1, 4, 1])):
        kept_V = jnp.exp(sampler.keep_nucleus(logprobs, top_p))[0]
        np.testing.assert_allclose(kept_V, np.array(kept) / sum(kept), rtol=1e-6)


def test_no_token_without_probability_is_drawn():
    """The largest uniform there is, where the sums of blocks and the sum within a block are rounded apart."""
    weights = np.random.default_rng(0).random((4096, 12)).astype(np.float32)
    weights.reshape(-1, 4)[:, 2:] = 0
    weights /= weights.sum(-1, keepdims=True)
    drawn = sampler.invert_cdf(jnp.array(weights), jnp.full(4096, 1 - 2**-24), 4)
    assert drawn.max() < 12 and (np.take_along_axis(weights, np.asarray(drawn)[:, None], 1) > 0).all()


@pytest.mark.parametrize("repeats, size, pieces, width", [
    (4, 7, 2, 3),  # the second piece: the last row of a prompt, a whole one, two rows of a third
    (4, 8, 3, 2), (3, 5, 6, 3), (2, 1, 9, 1), (5, 12, 4, 4), (1, 6, 2, 6)])
def test_a_piece_has_room_for_every_prompt_that_its_rows_can_touch(repeats, size, pieces, width):
    """`width` prompts: no more where groups are not cut, and as many as the cuts can leave where they are."""
    owners = np.arange(size * pieces) // repeats
    prompts = model.Prompts(np.arange(50)[:, None] + 100, np.full(50, 1))
    local, index = model.local_prompts(prompts, owners, pieces, repeats)
    assert local.tokens.shape == (pieces, width, 1)
    found = np.take_along_axis(local.tokens[..., 0], index, axis=1)
    np.testing.assert_array_equal(found.ravel(), owners + 100)
