"""The page of `scripts.bench`; no test depends on the times themselves."""

import functools
import re
import types

import jax
import numpy as np
import pytest

from rlvr_jax.bench import bench, bench_work
from rlvr_jax.bench.bench_work import BenchConfig
from rlvr_jax.errors import UserError

from fixtures import TINY

SMALL = BenchConfig.from_flags(num_layers=1, repeats=3, rollouts=4, new_tokens=5, prompt_tokens=3, micro_rows=2,
                               tail_rollouts=16, tail_tokens=32, host_devices=jax.device_count(), out="FILE.md")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench_work, "shape_of", lambda config: TINY)
    monkeypatch.setattr(bench_work, "prompt_of", lambda config: np.arange(1, 4))


def test_the_page_says_shares_and_ratios_and_a_command_with_every_flag_that_they_depend_on(monkeypatch):
    monkeypatch.setattr(bench.bench_peers, "version", "{} 1.2".format)
    seconds = {"peak": 0.1, "bandwidth": 0.25, "sampling": 5.0, "first": 1.0, "update": 2.0, "step": 8.0, "rows": 1.0,
               "shared": 1.0, "tail": 1.0, "tail_update": 1.0}
    theirs = {name: 3 * x for name, x in seconds.items()} | {"step": None}
    timed = {name: {"ours": x, "transformers": theirs[name]} for name, x in seconds.items()}
    text = bench.format_page(SMALL, timed, {"ours": 1.0, "transformers": 2.5}, ["| more |"])
    parameters = 576 * (2 * 576 + 2 * 192) + 3 * 576 * 1536 + 49_152 * 576  # in one layer and the head
    for said in ("Peak: 1000 GFLOP/s", "bandwidth: 4 GB/s", ", transformers 1.2.", "ours 1.0, transformers 2.5."):
        assert said in text
    tables = (line.strip("|").split("|") for line in text.splitlines())
    rows = {cells[0].strip(): cells[1:] for cells in tables if len(cells) > 5}
    whole = [cell.strip() for cell in rows["sampling 4 x 5 tokens after one prompt of 3"]]
    assert whole == ["5.00", "4", f"{20 * 2 * parameters / 5 / 1e12:.0%}", "15.00", "3.00"]
    assert [cell.strip() for cell in rows["of that, decoding after the first token"]][::3] == ["4.00", "12.00"]
    assert [cell.strip() for cell in rows["a whole GRPO step of both"]][-2:] == ["-", "-"]
    assert "| of a step's time, neither sampling nor update | 12% |" in text and "| more |" in text
    command, = re.findall("`(python -m scripts.bench .*)`", text)
    assert set(command.split()[3:]) == {
        "--against=", "--num_layers=1", "--repeats=3", "--rollouts=4", "--new_tokens=5", "--prompt_tokens=3",
        "--micro_rows=2", "--remat=True", "--tail_rollouts=16", "--tail_tokens=32", "--exponents=False",
        f"--host_devices={jax.device_count()}"}


def test_completions_of_the_long_tail_have_the_lengths_that_are_counted(tiny, monkeypatch):
    kept = []
    sample = bench_work.sampler.make_sampler

    def noticing(*args, **changes):
        draw = sample(*args, **changes)
        return lambda *asked: kept.append(draw(*asked)) or kept[-1]
    monkeypatch.setattr(bench_work.sampler, "make_sampler", noticing)
    bench_work.Ours(SMALL).make("tail", SMALL)()
    lengths, wanted = kept[0].completion_mask.sum(-1), bench_work.tail_lengths(SMALL)
    assert (lengths <= wanted).all() and (lengths == wanted).mean() > 0.5  # some end sooner, by chance
    assert bench_work.cases(SMALL)["tail"].sampled == wanted.sum()


def test_a_case_can_be_called_again(tiny, monkeypatch):
    """Updates change the state that all cases share. One program serves both cases that update."""
    monkeypatch.setattr(bench_work, "TOKENS", 8)
    monkeypatch.setattr(bench_work.grpo, "compile_programs", functools.cache(bench_work.grpo.compile_programs))
    ours = bench_work.Ours(SMALL)
    calls = [ours.make(name, SMALL) for name in ("update", "step", "rows")]
    for call in calls * 2:
        call()


def test_waiting_slots_and_padding_are_counted(monkeypatch):
    """32 slots, reduced to 8 when two are busy; 15 pairs of completions of 3 tokens are truncated to 8."""
    lengths = np.array([3] * 30 + [7, 64])
    monkeypatch.setattr(bench, "tail_lengths", lambda config: lengths)
    layout = bench.model.LAYOUTS.get("cpu")
    assert layout.shrinks and bench.slot_rounds(lengths) == 32 * 3 + 8 * 61
    one = BenchConfig.from_flags(num_layers=1, micro_rows=2, tail_rollouts=32)
    shares = bench.overhead_shares(one, {"sampling": 1.0, "update": 1.0, "step": 4.0})
    padding, = [share for name, share in shares.items() if "padding" in name]
    assert padding == 1 - lengths.sum() / (2 * (8 * 15 + 64)) and list(shares.values())[-1] == 0.5


def test_an_operation_of_a_trace_is_named(tmp_path):
    with jax.profiler.trace(str(tmp_path)):
        jax.jit(lambda x: jax.numpy.sort(x @ x))(np.ones((64, 64))).block_until_ready()
    assert re.search(r"^\| sort .* \| \d+% \|$", bench.operations_table(str(tmp_path)), re.M)


def test_a_side_answers_from_its_process_until_that_has_ended():
    ask = bench.start_side("ours", SMALL)
    assert ask("bandwidth", SMALL, 2) > 0 and ask() > 0
    with pytest.raises(UserError, match="the timing failed"):
        ask("bandwidth", SMALL, 2)


def test_the_best_call_after_the_first_counts(monkeypatch):
    """A case whose calls take 0.5, 3, 1 and 2 seconds, and one that the side does not have."""
    clock, durations = [0.0], iter([0.5, 3.0, 1.0, 2.0])
    calls = {"step": lambda: clock.append(clock[-1] + next(durations))}
    monkeypatch.setitem(bench.SIDES, "peer", lambda config: types.SimpleNamespace(make=lambda name, _: calls.get(name)))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[-1])
    requests, sent = iter([("step", SMALL, 3), ("rows", SMALL, 3), ()]), []
    bench.serve("peer", SMALL, types.SimpleNamespace(recv=lambda: next(requests), send=sent.append))
    assert sent[:2] == [1.0, None] and sent[2] > 0


def test_completions_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="--rollouts=10 is not a multiple of --micro_rows x --host_devices = 4 x 1"):
        bench.run(BenchConfig.from_flags(rollouts=10, micro_rows=4))
