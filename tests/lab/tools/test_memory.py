"""The calculator against what XLA's compiler says of the same programs, and against arithmetic by hand."""

import dataclasses
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from rlvr_jax import adapters, grpo, learner, model, sampler
from rlvr_jax.adapters import AdapterConfig
from rlvr_jax.errors import UserError
from rlvr_jax.grpo import GRPOConfig
from rlvr_jax.lab.tools import device_memory as memory
from rlvr_jax.lab.tools.device_memory import MemoryConfig
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained import huggingface
from rlvr_jax.records import Batch, Prompts, build, flat, replace

from fixtures import ROOT

TINY = ModelConfig(vocab_size=512, num_layers=4, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=192,
                   max_seq_len=4096)
FLAGS = build(MemoryConfig, num_prompts=4, group_size=2, max_new_tokens=128, prompt_tokens=32, grad_accumulation=2,
              kl_coef=0.001, entropy_coef=0.001, temperature=0.6, max_logits=2**14)
FAST = {"xla_backend_optimization_level": 0}  # the same buffers, and less work on code that never runs


def compiled_update(config, shape):
    """`memory_analysis` of the update that one device runs, lowered from shapes alone."""
    work = memory.work_of(config, shape, 1)
    config = config.train.grpo
    params = jax.eval_shape(lambda: adapters.add(config.adapter, model.init_params(jax.random.key(0), shape), 0))
    optimizer, copied = grpo.make_optimizer(config), config.track_kl and config.adapter.trainable == "all"
    state = jax.eval_shape(lambda p: learner.init_state(p, optimizer, copied), params)
    lead = (config.update.grad_accumulation, work.micro_rows)

    def array(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(lead[:1] + dims, dtype)

    tokens = (work.micro_rows, work.new_tokens)
    prompts = Prompts(array(work.micro_prompts, work.prompt_tokens, dtype=jnp.int32),
                      array(work.micro_prompts, dtype=jnp.int32))
    batch = Batch(prompts, array(lead[1], dtype=jnp.int32), array(*tokens, dtype=jnp.int32),
                  array(*tokens, dtype=jnp.bool_), array(lead[1]), array(*tokens), None,
                  array(*tokens) if config.track_kl else None)
    update = jax.jit(learner.make_update(shape, config.update, config.loss, optimizer), donate_argnums=0)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return update.lower(state, batch, step).compile(compiler_options=FAST).memory_analysis()


def compiled_sampler(config, shape):
    work = memory.work_of(config, shape, 1)

    def draw(params, prompts, index, rows, seed, step, stream, temperature):
        keys, given = sampler.rollout_keys(seed, step, rows, stream), config.train.grpo.sampling
        return sampler.sample(params, shape, prompts, sampler.Rows(index, keys, temperature),
                              sampler.Decoding((0,), given.max_new_tokens, given.num_slots))

    def array(*dims, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(dims, dtype)

    params = jax.eval_shape(lambda: model.init_params(jax.random.key(0), shape))
    prompts = Prompts(array(work.prompts, work.prompt_tokens), array(work.prompts))
    scalars = [array(), array(), array(), array(dtype=jnp.float32)]
    lowered = jax.jit(draw).lower(params, prompts, array(work.rows), array(work.rows), *scalars)
    return lowered.compile(compiler_options=FAST).memory_analysis()


UPDATES = {
    "as it is": ({}, {}),
    "long, one row at a time": ({}, {"max_new_tokens": 512, "grad_accumulation": 8}),
    "wide and deep": ({"d_model": 256, "head_dim": 64, "d_ff": 512, "num_layers": 8}, {}),
    "large vocabulary, untied": ({"vocab_size": 4096, "tie_embeddings": False}, {"max_logits": 2**17}),
    "without remat": ({}, {"remat": False}),
    "bfloat16, biases, no reference": ({"dtype": "bfloat16", "qkv_bias": True}, {"track_kl": False, "kl_coef": 0.0}),
    "several wide prompts": ({}, {"num_problems": 4, "prompt_tokens": 128}),
    "lora": ({"d_model": 256, "head_dim": 64, "d_ff": 512, "num_layers": 8}, {"trainable": "lora", "adapter_rank": 4}),
    "a vector": ({"d_model": 256, "head_dim": 64, "d_ff": 512, "num_layers": 8}, {"trainable": "vector"}),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_needs_what_the_compiler_says(name):
    shape, config = dataclasses.replace(TINY, **UPDATES[name][0]), replace(FLAGS, **UPDATES[name][1])
    compiled = compiled_update(config, shape)
    work, config = memory.work_of(config, shape, 1), config.train.grpo
    state, items = memory.resident(config, shape), memory.update(config, shape, work)
    assert compiled.argument_size_in_bytes == sum(state.values()) + items["batch"]
    ratio = (sum(items.values()) - items["batch"]) / compiled.temp_size_in_bytes
    assert 0.75 < ratio < 1.5, ratio


SAMPLERS = {  # in float32: for bfloat16 the CPU keeps weights and cache in float32 as well
    "as it is": ({}, {}),
    "few slots": ({}, {"num_slots": 2, "max_new_tokens": 256}),
    "several wide prompts": ({"d_model": 128, "head_dim": 32}, {"num_problems": 4, "prompt_tokens": 128}),
    "one very wide prompt": ({}, {"prompt_tokens": 256, "max_new_tokens": 64}),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_needs_what_the_compiler_says(name):
    shape = dataclasses.replace(TINY, num_layers=2, **SAMPLERS[name][0])
    config = replace(FLAGS, **SAMPLERS[name][1])
    compiled, work = compiled_sampler(config, shape), memory.work_of(config, shape, 1)
    items = memory.sampling(config.train.grpo.adapter, shape, work)
    given = items.pop("prompts and row numbers")
    assert compiled.argument_size_in_bytes == memory.resident(config.train.grpo, shape)["parameters"] + given
    ratio = (sum(items.values()) - items["completions"]) / compiled.temp_size_in_bytes
    assert 0.5 < ratio < 1.5, ratio


@pytest.mark.parametrize("name, count", [("qwen2.5-math-1.5b", 1_543_714_304), ("qwen2.5-math-7b", 7_615_616_512),
                                         ("llama-3.2-3b-instruct", 3_212_749_824)])
def test_published_shapes_have_the_published_numbers_of_parameters(name, count):
    state = memory.resident(build(GRPOConfig, kl_coef=0.001), memory.SHAPES[name])
    assert state == {"parameters": 4 * count, "Adam's two moments": 8 * count + 4 * 2, "reference": 4 * count}


@pytest.mark.parametrize("name, published", [("qwen2.5-math-1.5b", "Qwen2.5-Math-1.5B"),
                                             ("qwen2.5-math-7b", "Qwen2.5-Math-7B"),
                                             ("llama-3.2-3b-instruct", "Llama-3.2-3B-Instruct")])
def test_published_shapes_are_those_of_the_published_configurations(name, published):
    golden = json.loads((ROOT / "tests" / "golden" / "published_configs.json").read_text())
    assert memory.SHAPES[name] == huggingface.config_from_hugging_face(golden[published], published)


def test_work_is_spread_over_devices_and_micro_batches():
    shape = memory.SHAPES["qwen2.5-math-1.5b"]
    config = build(MemoryConfig, num_prompts=128, group_size=8, num_problems=1209, max_prompt_tokens=1000,
                   max_new_tokens=3072, grad_accumulation=32, num_slots=96)
    assert memory.work_of(config, shape, 1) == memory.Work(1024, 96, 32, 128, 32, 1008, 3072)
    assert memory.work_of(config, shape, 8) == memory.Work(128, 96, 4, 16, 4, 1008, 3072)
    one = replace(config, num_problems=1, max_prompt_tokens=0, num_slots=0)
    assert memory.work_of(one, shape, 8) == memory.Work(128, 128, 4, 1, 1, 1024, 3072)
    voted = replace(config, group_size=16, update_group_size=8)  # twice as many to sample, as many to learn from
    assert memory.work_of(voted, shape, 8) == memory.Work(256, 96, 4, 16, 4, 1008, 3072)
    assert memory.largest_that_fit(voted, shape, memory.Machine(1, 10**15)).train.grpo.sampling.num_slots == 2048
    with pytest.raises(UserError, match="--grad_accumulation"):
        memory.work_of(replace(config, grad_accumulation=256), shape, 8)


def test_the_cache_is_counted_for_each_slot_and_token():
    """Qwen2.5-Math-1.5B: 28 layers x (2 key + 2 value heads) x 128 numbers of 2 bytes are 28,672 bytes a token."""
    shape = dataclasses.replace(memory.SHAPES["qwen2.5-math-1.5b"], dtype="bfloat16")
    work = memory.Work(1024, 64, 4, 1, 1, 1024, 3072)
    items = memory.sampling(AdapterConfig(), shape, work)
    assert items["key-value cache of the slots"] == 64 * 3072 * 28_672
    assert items["prompts' keys and values"] == 1024 * 28_672
    assert memory.update(build(GRPOConfig, grad_accumulation=256), shape, work)["kept for the backward pass"] == \
        28 * (4 * 3072 + 1024) * 1536 * 2


def test_log_probabilities_of_the_old_policy_take_memory_where_the_update_keeps_them():
    work = memory.Work(64, 64, 8, 1, 1, 32, 128)
    once, twice = (memory.update(build(GRPOConfig, grad_accumulation=8, num_passes=n), TINY, work)["batch"]
                   for n in (1, 2))
    assert twice - once == 64 * 128 * 4


def test_one_prompt_is_shared_by_the_slots_and_several_are_copied():
    one, two = (memory.sampling(AdapterConfig(), TINY, memory.Work(64, 16, 8, prompts, 1, 32, 128))["one layer at work"]
                for prompts in (1, 2))
    assert two - one == 16 * 32 * (2 * 2 * 16 * 4)  # slots x tokens x a key and a value of two heads of 16 floats


@pytest.mark.parametrize("phase, flag, value, larger, least", [("update", "grad_accumulation", 8, 4, 64),
                                                               ("sampling", "num_slots", 8, 16, 1)])
def test_the_largest_that_fits_fits_and_the_next_larger_does_not(phase, flag, value, larger, least):
    config = replace(FLAGS, num_prompts=16, group_size=4)

    def peak(number):
        return memory.peaks(replace(config, **{flag: number}), TINY, 1)[phase]

    for usable, expected in ((peak(value), value), (peak(larger) - 1, value), (peak(larger), larger), (0, least)):
        assert flat(memory.largest_that_fit(config, TINY, memory.Machine(1, usable)))[flag] == expected


def test_held_out_problems_are_prefilled_together():
    config = replace(FLAGS, prompt_tokens=512)
    assert "evaluation" not in memory.phases(config, TINY, 1)
    few, many = (memory.phases(replace(config, heldout="problems.jsonl", eval_size=size), TINY, 1)[
        "evaluation"]["prompts' keys and values"] for size in (8, 64))
    assert many == 8 * few == 64 * 512 * 4 * (2 * 2 * 16) * 4  # tokens x layers x numbers of keys and values x bytes


def test_the_table_adds_up_and_says_what_does_not_fit():
    text = memory.run(replace(FLAGS, shape="qwen2.5-math-7b", num_prompts=128, group_size=8))
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    rows = [(name, [float(cell) for cell in cells]) for name, *cells in rows[2:]]
    starts = [i for i, (name, _) in enumerate(rows) if name in ("start", "sampling", "update")] + [len(rows)]
    always = [cells for name, cells in rows if name in ("parameters", "Adam's two moments", "reference")]
    assert len(starts) == 4 and len(always) == 3
    for start, end in zip(starts, starts[1:]):
        for column, total in enumerate(rows[start][1]):
            parts = [cells[column] for cells in always + [cells for _, cells in rows[start + 1 : end]]]
            assert math.isclose(total, sum(parts), abs_tol=0.005 * (len(parts) + 1))  # each is rounded
    verdicts = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line[2:].split(":")[0] for line in verdicts] == [*memory.MACHINES, "this machine"]
    for line in verdicts[:-1]:  # how much this machine has is not known here
        assert "does not fit" in line and "would have to be divided" in line


@pytest.mark.parametrize("usable, accumulation, slots", [(10**9, "2", "0"), (35_000_000, "4", "4")])
def test_the_table_and_the_verdict_are_of_the_same_flags(monkeypatch, tmp_path, usable, accumulation, slots):
    """As they are given where they fit, else the largest that do."""
    (tmp_path / "config.json").write_text(json.dumps(huggingface.config_to_hugging_face(TINY, "float32")))
    config = replace(FLAGS, model=str(tmp_path), num_prompts=2, group_size=2, max_new_tokens=512)
    monkeypatch.setattr(memory, "MACHINES", {"one": memory.Machine(1, usable)})
    lines = memory.run(config).splitlines()
    table = {line.split("|")[1].strip(" *"): line.split("|")[2].strip(" *") for line in lines if line.startswith("|")}
    used = memory.peaks(replace(config, grad_accumulation=int(accumulation), num_slots=int(slots)), TINY, 1)
    assert (table["--grad_accumulation"], table["--num_slots"]) == (accumulation, slots)
    assert {phase: table[phase] for phase in used} == {phase: f"{total / 1e9:.2f}" for phase, total in used.items()}
    assert f"- one: {max(used.values()) / 1e9:.1f} of {usable / 1e9:.1f} GB with --grad_accumulation={accumulation} " \
           f"--num_slots={slots}" in lines


def test_a_machine_whose_devices_do_not_divide_the_completions_is_named_and_the_others_are_counted():
    config = replace(FLAGS, shape="qwen2.5-math-1.5b", num_prompts=3, group_size=4)
    lines = memory.run(config).splitlines()
    assert "- TPU v5e-8: 12 completions do not divide into 8 devices x --num_minibatches=1" in lines
    assert lines[0].startswith("| GB on each device | T4, 16 GB | L4, 24 GB | A100, 40 GB | TPU v4-8 | one H100 | this")
    with pytest.raises(UserError, match="= 12 rows do not divide into --num_minibatches x .* = 5 x 1 equal parts"):
        memory.run(replace(config, num_minibatches=5))


def test_this_machine_is_the_devices_that_jax_has_here():
    """Two host devices (conftest.py), which share the memory that Linux tells of."""
    total = 1024 * int(re.search(r"MemTotal: *(\d+) kB", pathlib.Path("/proc/meminfo").read_text())[1])
    machine = memory.this_machine()
    assert machine.devices == 2 and 2**20 < machine.usable <= 0.45 * total * 1.001
    assert f"| {machine.usable / 1e9:.2f} |" in memory.run(replace(FLAGS, shape="qwen2.5-math-1.5b"))


@pytest.mark.parametrize("names", [{}, {"shape": "qwen"}, {"shape": "qwen2.5-math-7b", "model": "runs/base"}])
def test_one_model_has_to_be_named(names):
    with pytest.raises(UserError, match="--model=M, or --shape= one of qwen2.5-math-1.5b, "):
        memory.run(replace(FLAGS, **names))


def test_a_folder_is_read_for_its_shape_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(huggingface.config_to_hugging_face(TINY, "float32")))
    assert memory.shape_of(replace(FLAGS, model=str(tmp_path), dtype="bfloat16")) == \
        dataclasses.replace(TINY, dtype="bfloat16")
