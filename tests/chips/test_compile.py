"""Programs lowered from shapes alone: they are those of a real run; their costs; and the verdict on a chip.

The CPU's devices stand for a chip's. tests/targets/ has the compilers of real ones.
"""

import dataclasses
import importlib.metadata
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from rlvr_jax import grpo, model, ops, parallel, sampler
from rlvr_jax.chips import compile, cost, loads, published
from rlvr_jax.chips.compile import CompileConfig
from rlvr_jax.chips.published import CHIPS, GIB, Chip
from rlvr_jax.errors import UserError
from rlvr_jax.grpo import Policy, Problems, Scored
from rlvr_jax.pretrained import huggingface

from fixtures import PROMPTS, ROOT, TINY, padded, tiny_params

FLAGS = CompileConfig.from_flags(num_prompts=4, group_size=4, max_new_tokens=8, prompt_tokens=8, grad_accumulation=2,
                                 num_problems=3, kl_coef=0.01, eval_size=6, num_steps=1)
CPU = Chip("jaxlib", 2, GIB, {"float32": 5e11, "bfloat16": 1e12}, 1e11, {})


@pytest.fixture
def here(monkeypatch):
    """A row of CHIPS that stands for this machine's devices, and TINY as the model, in bfloat16."""
    monkeypatch.setitem(CHIPS, "cpu", CPU)
    monkeypatch.setattr(published, "devices", lambda chip: jax.devices())
    monkeypatch.setattr(compile, "shape_of", lambda config: dataclasses.replace(TINY, dtype="bfloat16"))
    clear = compile.compile_program.cache_clear
    clear()
    yield monkeypatch
    clear()


# ----- what is lowered


def shapes(tree):
    return jax.tree.map(lambda x: (*x.shape, jnp.dtype(x.dtype).name), tree)


def trained(monkeypatch, config, prompts):
    """The shapes that a run passes to its programs: sampling, log-probabilities, the update, evaluation. The programs
    are traced, not compiled: they return zeros."""
    calls, real = [], parallel.map_devices

    def recording(fn, donate_argnums=()):
        mapped, place = real(fn, donate_argnums), len(calls)
        calls.append([])

        def call(*args):
            calls[place].append(shapes(args))
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(mapped, *args))
        return call

    monkeypatch.setattr(parallel, "map_devices", recording)
    policy = Policy(TINY, tiny_params(), (0,))
    programs = grpo.compile_programs(policy, config)
    reward = lambda rollouts, *_: Scored(np.arange(len(rollouts.ended)) % 2.0)
    state = grpo.train(policy, Problems(prompts, np.ones(len(prompts.lengths), int)), reward, config, programs=programs)
    programs.sample(state.params, padded(PROMPTS * 2, 16), np.arange(6), sampler.Request(0, 1))
    (sampling, evaluation), *more = calls
    return [sampling, *(each[0] for each in more if each), evaluation]


@pytest.mark.parametrize("changes", [
    {}, {"trainable": "lora"}, {"divide_state": True}, {"track_kl": False, "kl_coef": 0.0}, {"num_problems": 1},
    {"num_minibatches": 2, "grad_accumulation": 1}, {"update_group_size": 2}], ids=str)
def test_shapes_are_those_that_a_run_hands_its_programs(monkeypatch, changes):
    config = FLAGS.with_flags(**changes)
    programs = compile.programs_of(config, TINY, jax.devices())
    prompts = padded(PROMPTS[: config.num_problems], 16)
    called = trained(monkeypatch, config.train.grpo, jax.tree.map(np.asarray, prompts))
    assert [shapes(program.args) for program in programs.values()] == called
    assert ("log-probabilities" in programs) == config.train.grpo.measure_kl or "num_minibatches" in changes


@pytest.mark.parametrize("attention, wanted", [
    ("auto", 4 * [set()]), ("plain", [{"cache"}, {"rows"}, {"rows"}, {"cache"}])])
def test_all_programs_attend_as_the_flag_says(monkeypatch, attention, wanted):
    monkeypatch.setattr(ops, "SHORT", 4)
    monkeypatch.setitem(ops.ATTENTION, "plain", ops.Attention(
        lambda *given: called.add("rows") or ops.attention(*given),
        lambda q, *_: called.add("cache") or q.reshape(len(q), 1, -1)))
    for program in compile.programs_of(FLAGS.with_flags(attention=attention), TINY, jax.devices()).values():
        called = set()
        jax.make_jaxpr(program.mapped)(*program.args)
        assert called == wanted.pop(0)


@pytest.mark.parametrize("changes", [{}, {"trainable": "vector"}, {"divide_state": True}], ids=str)
def test_what_stays_resident_are_the_bytes_of_a_real_state(changes):
    config = FLAGS.with_flags(**changes).train.grpo
    state = grpo.initial_state(Policy(TINY, tiny_params(), ()), config)
    state = parallel.place_state(state, config.update.divide_state)
    assert compile.state_bytes(config, TINY, 2) == sum(x.nbytes for x in jax.tree.leaves(state)) // 2
    assert shapes(compile.state_of(config, TINY, 2)) == shapes(state)


@pytest.mark.parametrize("kind", ["cpu", "tpu", "gpu"])
def test_the_queue_is_played_as_the_sampler_has_it(kind):
    """40 completions, 60 tokens on average and at most 150, in 16 slots. Each token records its round and the farthest position."""
    lengths, layout = loads.lengths(40, 150, 1.5), model.LAYOUTS[kind]
    assert lengths.mean() == pytest.approx(60, rel=0.05) and lengths.max() == 150 and min(lengths) >= 1
    tokens_BxT = jnp.array(np.arange(150) + 1 != lengths[:, None], int)  # 0 is the end token
    hooks = sampler.Hooks(carry=jnp.zeros(16, int), propose=lambda carry, draw, logits: (
        carry + 1, tokens_BxT[draw.rows, draw.inputs.steps],
        {"round": carry, "farthest": jnp.full_like(carry, jnp.max(draw.inputs.steps))}))
    rows = sampler.Rows(jnp.zeros(40, int), sampler.rollout_keys(0, 0, jnp.arange(40)))
    out = sampler.sample(tiny_params(), TINY, padded(PROMPTS[:1]), rows, sampler.Decoding((0,), 150, 16, layout), hooks)
    numbers, far = (np.asarray(out.noted[name][out.completion_mask]) for name in ("round", "farthest"))
    busy, farthest = np.bincount(numbers), far[np.unique(numbers, return_index=True)[1]]
    ends = {"cpu": np.argmax(busy <= 8), "tpu": len(busy), "gpu": np.argmax(farthest == 64)}
    load = loads.decoding(lengths, 16, 150, layout, None)
    assert load.rounds[0] == ends[kind] and sum(load.rounds) == len(busy)
    shares = np.histogram(farthest, [0, 64, 128, 150])[0] / len(busy)
    assert load.weights == ([1.0] if layout.grows else shares.tolist())


@pytest.mark.parametrize("accumulation, shares", [(2, [0, 0, 0.5, 0.5]), (4, [0.25, 0, 0.25, 0.5])])
def test_loads_are_those_of_a_runs_queue_and_of_sorted_micro_batches(monkeypatch, accumulation, shares):
    """Two turns of 240 tokens, a loop for each window of a cache that grows. At 40 % the longest of the first 4, 8, 12
    and 16 of 16 completions have 30, 85, 156 and 240 tokens; they are cut to 30, 60, 120 or 240."""
    monkeypatch.setitem(model.LAYOUTS, "cpu", model.LAYOUTS["gpu"])
    config = FLAGS.with_flags(max_new_tokens=240, num_slots=4, grad_accumulation=accumulation, num_problems=1)
    programs = sampling, *learning, _ = tuple(compile.programs_of(config, TINY, jax.devices()).values())
    assert [program.tokens for program in programs] == [16 * 240] * 3 + [6 * 240]  # of all devices, rounds of one
    assert sampling.loads[0] == ([64, 416], [1.0]) and sum(sampling.loads[1].rounds) < 480
    assert str(jax.make_jaxpr(sampling.mapped)(*sampling.args)).count("while[") == 2
    assert [program.loads for program in learning] == 2 * [[([], [0, 0, 0, 1]), ([], shares)]]


@pytest.mark.parametrize("changes, words", [
    ({"max_new_tokens": 256}, "--max_new_tokens=256 leave no room for a prompt of 8 tokens in the model's window of"),
    ({"grad_accumulation": 3}, "= 16 rows do not divide into --num_minibatches x --grad_accumulation x .* = 3 x 2")])
def test_what_cannot_be_is_said_in_a_line(changes, words):
    with pytest.raises(UserError, match=words):
        compile.programs_of(FLAGS.with_flags(**changes), TINY, jax.devices())


# ----- costs


ONE = 2 * 64 * 128 * 128  # FLOPs of a product of 64 x 128 by 128 x 128


def products(x_NxD, w_LxDxD):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_NxD, w_LxDxD)[0]


def until(x_NxD, w_LxDxD):
    return jax.lax.while_loop(lambda s: jnp.sum(s[0]) > s[1], lambda s: (s[0] @ w_LxDxD[s[1] % 3], s[1] + 1),
                              (x_NxD, jnp.int32(0)))[0]


@pytest.mark.parametrize("fn, rounds", [(products, 7), (until, 5)])
def test_a_loop_is_counted_as_often_as_it_is_gone_round(fn, rounds):
    """Seven products of 64 x 128 by 128 x 128; as many as `rounds` says if the loop has no trip count."""
    args = jnp.ones((64, 128)), jnp.ones((7, 128, 128))
    assert list(cost.flops(jax.make_jaxpr(fn)(*args).jaxpr, [5], [1.0])) == [rounds * ONE, 0]
    found = cost.parse_cost(jax.jit(fn).lower(*args).compile().as_text())([5], [1.0])
    least = 4 * (128 * 128 + 2 * 64 * 128)  # a round reads a slice of the weights and x, and writes x
    assert least * rounds <= found.bytes < 4 * least * rounds  # the CPU copies the slice and x
    assert (found.step_kernels > 0) == (fn is until) and found.kernels > rounds


def for_inputs(x_NxD, w_LxDxD):
    """The gradient for x of seven recomputed layers, in one of two branches."""
    layer = jax.checkpoint(lambda x, w: (jnp.tanh(ops.linear(x, w)), None))
    return jax.lax.cond(jnp.sum(x_NxD) > 0, jax.grad(lambda x: jnp.sum(jax.lax.scan(layer, x, w_LxDxD)[0])),
                        lambda x: x, x_NxD)


def in_kernel(x_NxD, w_LxDxD):
    """In each of four blocks three products, one in a loop without a trip count and one in a branch; then `until`."""
    def kernel(x_ref, w_ref, out_ref):
        x = jax.lax.fori_loop(0, 3, lambda _, x: x @ w_ref[...], x_ref[...])
        x = jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x @ w_ref[...], x)
        out_ref[...] = jax.lax.cond(pl.program_id(0) < 2, lambda: x @ w_ref[...], lambda: x)

    rows, whole = pl.BlockSpec((16, 128), lambda i: (i, 0)), pl.BlockSpec((128, 128), lambda i: (0, 0))
    blocks = pl.pallas_call(kernel, x_NxD, grid=(4,), in_specs=[rows, whole], out_specs=rows)
    return until(blocks(x_NxD, w_LxDxD[0]), w_LxDxD)


def of_half(x_NxD, w_LxDxD):
    """A product of operands in 16 bits with a result in 32, and a product with an operand in 32."""
    half = w_LxDxD[0].astype(jnp.bfloat16)
    return jax.lax.dot(jax.lax.dot(x_NxD.astype(jnp.bfloat16), half, preferred_element_type=jnp.float32), half,
                       preferred_element_type=jnp.float32)


def cudnn(x_NxD, w_LxDxD):
    """The gradients of attention, 64 queries by 128 keys in 2 heads of 64: two products, and five."""
    q, k = (x.reshape(1, -1, 2, 64).astype(jnp.bfloat16) for x in (x_NxD, w_LxDxD[0]))
    return jax.grad(lambda *qkv: jnp.sum(jax.nn.dot_product_attention(
        *qkv, implementation="cudnn").astype(jnp.float32)), (0, 1, 2))(q, k, k)


@pytest.mark.parametrize("fn, wide, narrow", [
    (for_inputs, 3 * 7 / 2, 0), (in_kernel, 4 * (3 + 1 + 1) / 4 + 5, 0), (of_half, 1, 1), (cudnn, 0, 2 + 5)])
def test_products_that_a_result_needs_are_counted_by_the_type_of_their_operands(monkeypatch, fn, wide, narrow):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000)
    args = jnp.ones((2, 64, 128)), jnp.ones((2, 7, 128, 128))
    found = cost.flops(jax.make_jaxpr(parallel.map_devices(fn))(*args).jaxpr, [5], [0.5, 0.5])
    assert list(found / ONE) == [wide, narrow]


HLO = """
%whole (v.0: f32[28,8,8]) -> f32[28,8,8] {
  %v.0 = f32[28,8,8]{2,1,0} parameter(0)
  ROOT %v.1 = f32[28,8,8]{2,1,0} bitcast(%v.0)
}
%fused (p.0: f32[28,8,8], p.1: s32[]) -> f32[8,8] {
  %p.1 = s32[] parameter(1)
  %p.0 = f32[28,8,8]{2,1,0:T(8,128)} parameter(0)
  %b = f32[28,8,8]{2,1,0} fusion(%p.0), kind=kLoop, calls=%whole
  %cut = f32[1,8,8]{2,1,0} dynamic-slice(%b, %p.1, %p.1, %p.1), dynamic_slice_sizes={1,8,8}
  ROOT %square = f32[8,8]{1,0} bitcast(%cut)
}
%put (q.0: f32[28,8,8], q.1: f32[1,8,8], q.2: s32[]) -> f32[28,8,8] {
  %q.0 = f32[28,8,8]{2,1,0} parameter(0)
  %q.1 = f32[1,8,8]{2,1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  ROOT %there = f32[28,8,8]{2,1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2, %q.2)
}
%near (n: (s32[], f32[8,8])) -> f32[8,8] {
  %n = (s32[], f32[8,8]{1,0}) parameter(0)
  %n.1 = f32[8,8]{1,0} get-tuple-element(%n), index=1
  ROOT %n.2 = f32[8,8]{1,0} negate(%n.1), backend_config={"window_config":{"estimated_cycles":"20"}}
}
%far (m: (s32[], f32[8,8])) -> f32[8,8] {
  %m = (s32[], f32[8,8]{1,0}) parameter(0)
  %m.1 = f32[8,8]{1,0} get-tuple-element(%m), index=1
  %m.2 = f32[8,8]{1,0:T(8,128)S(1)} negate(%m.1), backend_config={"estimated_cycles":"60"}
  %m.3 = (f32[8,8]{1,0:S(1)}, f32[8,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%m.2)
  ROOT %m.4 = f32[8,8]{1,0:S(1)} copy-done(%m.3)
}
%body (s: (s32[], f32[28,8,8])) -> (s32[], f32[28,8,8]) {
  %s = (s32[], f32[28,8,8]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%s), index=0
  %w = f32[28,8,8]{2,1,0} get-tuple-element(%s), index=1
  %x = f32[8,8]{1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %t = (s32[], f32[8,8]{1,0}) tuple(%i, %x)
  %y = f32[8,8]{1,0} conditional(%i, %t, %t), branch_computations={%near, %far}
  %z = f32[1,8,8]{2,1,0} bitcast(%y)
  %v = f32[28,8,8]{2,1,0} fusion(%w, %z, %i), kind=kLoop, calls=%put
  ROOT %r = (s32[], f32[28,8,8]{2,1,0}) tuple(%i, %v)
}
%condition (c: (s32[], f32[28,8,8])) -> pred[] {
  %c = (s32[], f32[28,8,8]{2,1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(28)
  %c.1 = s32[]{:T(128)S(6)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)S(6)} compare(%c.1, %limit), direction=LT
}
ENTRY %main (a: s32[], w: f32[28,8,8]) -> (s32[], f32[28,8,8]) {
  %a = s32[] parameter(0)
  %w = f32[28,8,8]{2,1,0} parameter(1)
  %start = (s32[], f32[28,8,8]{2,1,0}) tuple(%a, %w)
  ROOT %loop = (s32[], f32[28,8,8]{2,1,0}) while(%start), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize("weights, share, kernels, cycles", [
    ([1.0], 512, 2, 60), ([0.75, 0.25], 0.75 * 512 + 0.25 * 256, 1.25, 0.75 * 20 + 0.25 * 60)])
def test_bytes_are_those_of_parts_and_of_the_devices_memory(weights, share, kernels, cycles):
    """Each round reads one of 28 slices, under another shape, and writes one. Arrays in S(1), a TPU's fast memory,
    do not count; of two branches the more expensive counts, or the mean by weights."""
    found = cost.parse_cost(HLO)([], weights)
    assert found.bytes == 28 * (256 + share + 256 + 256 + 4)  # the slice; a branch; reading its result and storing it
    assert found.kernels == 28 * (3 + kernels) and found.step_kernels == 0 and found.cycles == 28 * (100 + cycles)


GATHERING = """
%begin (a.0: bf16[8,64]) -> (bf16[8,64], bf16[64,64], u32[]) {
  %a.0 = bf16[8,64]{1,0} parameter(0)
  %a.1 = bf16[64,64]{1,0} all-gather(%a.0), dimensions={0}
  ROOT %a.2 = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, u32[]{:S(2)}) custom-call(%a.1), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.7 (b.0: bf16[8,64], b.1: bf16[64,64], b.2: f32[16]) -> (f32[16], bf16[8,64], bf16[64,64]) {
  %b.0 = bf16[8,64]{1,0} parameter(0)
  %b.1 = bf16[64,64]{1,0} parameter(1)
  %b.2 = f32[16]{0} parameter(2)
  %b.3 = bf16[64,64]{1,0} all-gather(%b.0), dimensions={0}
  %b.4 = f32[16]{0} negate(%b.2)
  ROOT %b.5 = (f32[16]{0}, bf16[8,64]{1,0}, bf16[64,64]{1,0}) tuple(%b.4, %b.0, %b.3)
}
%end (c.0: bf16[8,64], c.1: bf16[64,64]) -> bf16[64,64] {
  %c.0 = bf16[8,64]{1,0} parameter(0)
  %c.1 = bf16[64,64]{1,0} parameter(1)
  ROOT %c.2 = bf16[64,64]{1,0} custom-call(%c.0, %c.1), custom_call_target="AsyncCollectiveDone"
}
ENTRY %main (w: bf16[8,64], x: f32[16]) -> bf16[64,64] {
  %w = bf16[8,64]{1,0} parameter(0)
  %x = f32[16]{0} parameter(1)
  %async-collective-start = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, u32[]{:S(2)}) fusion(%w), output_to_operand_aliasing={{0}: (0, {})}, calls=%begin
  %g.0 = bf16[8,64]{1,0} get-tuple-element(%async-collective-start), index=0
  %g.1 = bf16[64,64]{1,0} get-tuple-element(%async-collective-start), index=1
  %fusion.7 = (f32[16]{0}, bf16[8,64]{1,0}, bf16[64,64]{1,0}) fusion(%g.0, %g.1, %x), output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%async_collective_fusion.7
  %h.0 = bf16[8,64]{1,0} get-tuple-element(%fusion.7), index=1
  %h.1 = bf16[64,64]{1,0} get-tuple-element(%fusion.7), index=2
  %kernel = (f32[32]{0}, f32[16]{0:S(1)}) custom-call(%x, %w), custom_call_target="tpu_custom_call"
  %slice-start = ((f32[16]{0}), f32[4]{0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:4]}
  %slice-done = f32[4]{0:S(1)} slice-done(%slice-start)
  ROOT %async-collective-done = bf16[64,64]{1,0} fusion(%h.0, %h.1), output_to_operand_aliasing={{}: (1, {})}, calls=%end
}
"""


def test_a_collective_beside_other_work_is_counted_when_it_is_done():
    """The computation beside it reads and writes 16 numbers; the collective reads a shard and writes the whole. A
    kernel moves its operands and results."""
    kernel = 4 * 16 + 2 * 8 * 64 + 4 * 32
    assert cost.parse_cost(GATHERING)([], []).bytes == 2 * 16 * 4 + kernel + 4 * 4 + 2 * (8 * 64 + 64 * 64)


# ----- what is said of a chip


def test_a_chip_gets_a_table_and_a_verdict(here, tmp_path):
    out, made, real = tmp_path / "found.json", [], jax.stages.Lowered.compile
    here.setattr(jax.stages.Lowered, "compile",
                 lambda *args, **options: made.append(real(*args, **options)) or made[-1])
    config = FLAGS.with_flags(chip="cpu", num_slots=3, out=str(out))
    said = compile.run(config)
    one, = json.loads(out.read_text())["chips"]
    state, programs = compile.state_bytes(FLAGS.train.grpo, TINY, 2), one["programs"]
    assert list(programs) == ["start", "sampling", "log-probabilities", "update", "evaluation"]
    assert said.splitlines()[-1] == f"cpu: {one['verdict']}" and one["verdict"].startswith("fits: 0.0")
    assert one["verdict"].endswith(" GB")  # the state is small: no bound on the time
    assert said.count("\n| ") == 1 + 1 + 5 and "jaxlib" in one["compiler"] and one["micro_rows"] == 4
    assert programs["start"] == {"peak": 2 * state}
    lowered_programs = compile.programs_of(config, compile.shape_of(config), jax.devices())
    for (which, lowered), compiled in zip(lowered_programs.items(), made, strict=True):
        program, held = programs[which], compile.num_bytes(lowered.args[0]) // 2
        assert program["peak"] == compiled.memory_analysis().peak_memory_in_bytes + state - held, which
        jaxpr = jax.make_jaxpr(lowered.mapped)(*lowered.args).jaxpr
        for column, load in zip(("at_40", "best"), reversed(lowered.loads)):
            wide, half = cost.flops(jaxpr, *load)
            moved = cost.parse_cost(compiled.as_text())(*load).bytes
            assert program[column] == max(wide / 5e11 + half / 1e12, moved / 1e11)  # float32, bfloat16
        assert program["flops"] == wide + half and program["bytes"] == moved
        assert program["tokens"] == lowered.tokens / program["best"]
    assert programs["sampling"]["at_40"] < programs["sampling"]["best"]
    assert programs["sampling"]["step_kernels"] * 8 < programs["sampling"]["kernels"]  # 8 tokens of each row


def test_what_does_not_fit_is_named_with_its_size(here):
    state = compile.state_bytes(FLAGS.train.grpo, TINY, 2)
    here.setitem(CHIPS, "cpu", CPU._replace(usable=state + 1))
    here.setattr(compile, "compile_program", lambda config, name, which: {
        "sampling": {"peak": 2.0e9}, "update": {"peak": None, "refused": "for a reason"}}.get(which, {"peak": 1}))
    one = compile.compile_for_chip(FLAGS, "cpu")
    assert one["verdict"] == ("does not fit in 0.0 GB: start, 0.0 GB; sampling, 2.0 GB; update, which the compiler "
                              "gives up; could fit with --divide_state over 4 such devices (0.0 GB each), or what --fit "
                              "finds")
    assert compile.compile_for_chip(FLAGS.with_flags(divide_state=True), "cpu")["programs"]["start"]["peak"] < state
    assert "| sampling | 2.00, does not fit | |" in (said := compile.format_chip(one).replace("  ", " "))
    assert "| update | | | | | | | | for a reason |" in said


@pytest.mark.parametrize("changes, seconds", [
    ({}, 111), ({"num_minibatches": 2, "grad_accumulation": 1}, 221), ({"track_kl": False, "kl_coef": 0.0}, 101)])
def test_a_step_takes_what_its_calls_do(here, changes, seconds):
    """A call takes 1 s for sampling, 10 for log-probabilities, of reference or policy, and 100 for the update."""
    takes = {"sampling": 1, "log-probabilities": 10, "update": 100, "evaluation": 1000}
    here.setattr(compile, "compile_program", lambda config, name, which: {"peak": 1, "best": takes[which],
                                                                   "at_40": takes[which] / 2})
    one = compile.compile_for_chip(FLAGS.with_flags(**changes), "cpu")
    assert (one["step"], one["step_at_40"]) == (seconds, seconds / 2)


def test_a_compiler_that_refuses_says_how_much_it_would_take(here):
    """With the message of libtpu 0.0.42.1."""
    words = ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (41.89G) "
             "exceeds available HBM (15.75G).\n\nmore")

    def lower(*args):
        raise jax.errors.JaxRuntimeError(words)

    programs = compile.programs_of(FLAGS, TINY, jax.devices())
    here.setattr(compile, "programs_of", lambda *_: {
        "update": programs["update"]._replace(mapped=types.SimpleNamespace(lower=lower))})
    refused = compile.compile_program(FLAGS, "cpu", "update")
    assert refused["peak"] == 41.89 * GIB and refused["refused"] == words.splitlines()[0]
    words = "INTERNAL: no"
    compile.compile_program.cache_clear()
    assert compile.compile_program(FLAGS, "cpu", "update")["peak"] is None


@pytest.mark.parametrize("usable, accumulation, slots", [(10_000, 2, 4), (4_000, 2, 4), (3_999, 4, 2), (1, 8, 1)])
def test_fit_takes_the_largest_micro_batch_and_the_most_slots_that_fit(here, usable, accumulation, slots):
    def measured(config, name, which):
        flags = config.train.grpo
        rows = grpo.check(flags) if which == "update" else flags.sampling.num_slots
        return {"peak": None if rows > 7 else 1000 * rows}  # None: the compiler gives up

    here.setattr(compile, "compile_program", measured)
    here.setitem(CHIPS, "cpu", CPU._replace(usable=usable))
    flags = compile.fit_flags(FLAGS, "cpu").train.grpo
    assert (flags.update.grad_accumulation, flags.sampling.num_slots) == (accumulation, slots)


def test_fit_proposes_lora_where_nothing_fits(here):
    of = {"all": 3e9, "lora": 1e9}
    here.setattr(compile, "state_bytes", lambda config, *_: of[config.adapter.trainable])
    here.setattr(compile, "compile_program", lambda config, *_: {"peak": of[config.train.grpo.adapter.trainable] + 1e9,
                                                          "best": 1, "at_40": 0.5})
    here.setitem(CHIPS, "cpu", CPU._replace(usable=3e9))
    one = compile.compile_for_chip(FLAGS.with_flags(fit=True, heldout="none"), "cpu")
    assert one["verdict"] == (
        "does not fit in 3.0 GB: start, 6.0 GB; sampling, 4.0 GB; log-probabilities, 4.0 GB; update, 4.0 GB; with "
        "--trainable=lora --adapter_rank=16 --params_dtype=bfloat16 --divide_state=False --grad_accumulation=1 "
        "--num_slots=8 it fits: 2.00 of 3.0 GB, at best 3 s a step, 1.5 at 40 % of the longest")
    assert "--trainable=lora" in compile.format_chip(one)


def test_what_could_fit_are_states_of_half_the_memory():
    """7B on an H100: LoRA in float32 with two moments, beside weights of 2 bytes; or 16 bytes a parameter over 4."""
    config = CompileConfig.from_flags(shape="qwen2.5-math-7b", kl_coef=0.001)
    count, lora = 7_615_616_512, 28 * 16 * (2 * (2 * 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    said = compile.remedies(config, CHIPS["H100"], compile.shape_of(config))
    assert said == (f"; could fit with --trainable=lora --adapter_rank=16 --params_dtype=bfloat16 (a state of "
                    f"{(2 * count + 12 * lora) / 1e9:.1f} GB), or --divide_state over 4 such devices "
                    f"({16 * count / 4 / 1e9:.1f} GB each), or what --fit finds")


def test_without_a_chip_the_state_on_all_of_them_is_said_at_once():
    config = CompileConfig.from_flags(shape="qwen2.5-math-1.5b", kl_coef=0.001)
    lines = {line.split(" | ")[0].strip("| "): line for line in compile.run(config).splitlines()}
    count = 1_543_714_304  # parameters, two moments and a reference of 4 bytes each
    assert list(lines)[2:] == list(CHIPS)
    assert f"| {count * 16 / 1e9:.2f} | {count * 32 / 1e9:.2f} |" in lines["v5e-8"]
    assert lines["v6e-8"].endswith("| --divide_state |")  # 33.55 GB hold one state, but not the two of a run's start
    assert lines["v5e-8"].endswith("| --divide_state |") and lines["v5e-1"].endswith("| does not fit |")
    assert lines["H100"].endswith("| fits |") and "| 3.09 |" in lines["v5e-8"]


def test_the_table_has_the_chips_that_colab_and_the_papers_use():
    assert list(CHIPS) == ["v4-8", "v5e-1", "v5e-8", "v5p-8", "v6e-1", "v6e-8", "T4", "L4", "A100-40", "H100",
                           "RTX-PRO-6000", "H100-8"]
    for name, chip in CHIPS.items():
        cores = 2 if name.startswith(("v4", "v5p")) else 1  # these TPUs are named by their number of cores
        assert chip.devices == (int(name[-1]) // cores if chip.compiler == "libtpu" or name == "H100-8" else 1)
        assert chip.peak["float16"] >= chip.peak["bfloat16"] >= chip.peak["float32"] > 8e12
        assert 1e9 < chip.usable < 110e9 and chip.bandwidth >= 3e11
        same = CHIPS[next(other for other in CHIPS if other.split("-")[0] == name.split("-")[0])]  # as old
        assert (chip.peak, chip.bandwidth, chip.usable) == (same.peak, same.bandwidth, same.usable)
    assert CHIPS["T4"].usable == pytest.approx(0.95 * 14.56 * GIB)  # where CUDA has 14.56 GiB


@pytest.mark.parametrize("chip, words", [
    ("H10", "--chip=H10: no such chip; known are v4-8, v5e-1, "),
    ("v5e-8", r"its compiler is not installed; `make chips` makes .* or pip install -e '.\[tpu-compiler\]'"),
    ("H100", r"its compiler is not installed; `make chips` makes .* or pip install -e '.\[gpu-compiler\]'")])
def test_an_unknown_chip_or_a_compiler_that_is_not_there_is_said_in_a_line(monkeypatch, chip, words):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=words):
        compile.run(FLAGS.with_flags(chip=chip))


# ----- models


@pytest.mark.parametrize("name, published, count", [
    ("qwen2.5-math-1.5b", "Qwen2.5-Math-1.5B", 1_543_714_304), ("qwen2.5-math-7b", "Qwen2.5-Math-7B", 7_615_616_512),
    ("llama-3.2-3b-instruct", "Llama-3.2-3B-Instruct", 3_212_749_824)])
def test_published_shapes_are_those_of_the_published_configurations(name, published, count):
    golden = json.loads((ROOT / "tests" / "golden" / "published_configs.json").read_text())
    shape = compile.SHAPES[name]
    assert shape == huggingface.config_from_hugging_face(golden[published], published)
    assert sum(x.size for x in jax.tree.leaves(compile.state_of(FLAGS.train.grpo, shape, 1).params)) == count


def test_a_model_is_a_folder_a_shape_or_the_tiny_base(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(huggingface.config_to_hugging_face(TINY, "float32")))
    folder = compile.shape_of(FLAGS.with_flags(model=str(tmp_path), dtype="bfloat16"))  # the folder has no weights
    assert folder == dataclasses.replace(TINY, dtype="bfloat16")
    assert compile.shape_of(FLAGS).num_layers == 3 and compile.shape_of(FLAGS).d_model == 64
    with pytest.raises(UserError, match="--shape=qwen: no such shape; known are qwen2.5-math-1.5b, "):
        compile.shape_of(FLAGS.with_flags(shape="qwen"))


def test_a_chip_gets_no_more_slots_than_its_devices_would(here):
    """A target has no device's name, by which the sampler of a run would know."""
    here.setitem(compile.MOST_SLOTS, "cpu", 2)
    here.setattr(compile, "compile_program", lambda config, *_: compiled.append(
        config.train.grpo.sampling.num_slots) or {"peak": 1})
    for config, slots in (FLAGS, 2), (FLAGS.with_flags(num_slots=3), 3):
        compiled = []
        assert compile.compile_for_chip(config, "cpu")["flags"]["num_slots"] == slots and set(compiled) == {slots}
