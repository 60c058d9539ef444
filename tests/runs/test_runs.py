"""What a run directory does for a loop: stop rules, the best checkpoint, mirrors of the log, flags that may not change.

The loop of these tests trains nothing: its metrics are constants, and the state of step s is full of s.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from rlvr_jax import grpo, parallel
from rlvr_jax.adapters import ADAPTERS
from rlvr_jax.config import flags_of
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.objectives import OBJECTIVES
from rlvr_jax.pretrained import loading
from rlvr_jax.records import LearnerState, Problem
from rlvr_jax.report import report
from rlvr_jax.rewards.rows import REWARDS
from rlvr_jax.runs import checkpoint, flags, log, origin, processes, run, sources, stopping, summary
from rlvr_jax.runs.run import Run
from rlvr_jax.sampler import CHOOSE, Request
from rlvr_jax.tasks import families
from rlvr_jax.tasks.problems import merge
from rlvr_jax.training import train
from rlvr_jax.training.pretrain import PretrainConfig
from rlvr_jax.training.train import TrainConfig

from fixtures import ROOT, read_jsonl, write_jsonl

CONFIG = TrainConfig.from_flags(save_every=2, eval_every=2, keep_last=1)
ENTROPY = [9, 8, 0.5, 0.4, 2, 0.3, 0.2, 0.1, 7, 7]  # at steps 1 to 10
GREEDY = {2: 0.25, 4: 0.75, 6: 0.75, 8: 0.5, 10: 0.5}


def state_of(step: int) -> LearnerState:
    return LearnerState(np.int32(step), {"w": np.full(3, step, np.float32)}, {"m": np.full(2, step, np.float32)}, None)


class Crash(Exception):
    pass


@pytest.fixture
def go(tmp_path):
    """`go(**flags)` starts or continues the run and returns its summary, or None if it crashes: before it logs the
    step `crash_at`."""
    def loop(crash_at=None, **flags):
        config = CONFIG.with_flags(run_dir=str(tmp_path / "run"), **{"num_steps": 10} | flags)
        meta = {"flags": config.as_flags()}
        with contextlib.suppress(Crash), Run(config.run, config, config.grpo.loop.num_steps, "train", first=1) as run:
            state = parallel.place_state(run.restore(state_of(0)))
            for step in run.steps():
                state = parallel.place_state(state_of(step))
                if step == crash_at:
                    raise Crash
                row = {"step": step, "train/loss": 0.0, "train/entropy": ENTROPY[step - 1], "train/name": "text"}
                evaluated = run.due(step, config.run.eval_every, row)
                run.log(row | ({"eval/greedy": GREEDY.get(step, 0.1)} if evaluated else {}))
                if run.save_due(step):
                    run.save(state, meta)
            return run.finish(state, meta)
    return loop


def logged(tmp_path) -> list[int]:
    return [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]


# ----- stop rules

@pytest.mark.parametrize("crash_at", [None, 3, 5, 8])
def test_a_stop_rule_ends_a_run_at_the_same_step_whatever_happens_before(go, tmp_path, capsys, crash_at):
    """Below 1 at steps 3 and 4, then 6, 7 and 8: three in succession are complete at step 8."""
    flags = {"stop_when": "train/loss>5, train/entropy<1", "stop_patience": 3}
    if crash_at:
        assert go(crash_at=crash_at, **flags) is None
    summary = go(**flags)
    assert summary["stopped_by"] == {"rule": "train/entropy<1", "patience": 3, "step": 8, "value": 0.1}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert logged(tmp_path) == list(range(1, 9)) and checkpoint.steps(tmp_path / "run") == [8]
    printed = capsys.readouterr().out
    assert "--stop_when at step 8: train/entropy<1 in 3 successive rows, last with 0.1" in printed


def test_a_stopped_run_goes_on_only_under_another_rule_and_a_finished_one_says_so(go, tmp_path, capsys):
    flags = {"stop_when": "train/entropy<1", "stop_patience": 3}
    assert go(**flags) == go(**flags) and logged(tmp_path)[-1] == 8
    assert go(**flags, num_steps=9)["steps"] == 8
    longer = go(**flags | {"stop_patience": 4})
    assert "stopped_by" not in longer and logged(tmp_path)[-1] == 10
    assert "already" not in capsys.readouterr().out
    assert go(**flags | {"stop_patience": 4}) == longer and "run is already at step 10" in capsys.readouterr().out


rows_of = st.lists(st.sampled_from([{}, {"m": None}, {"m": 0.0}, {"m": 1.0}, {"m": 2.0}]), max_size=12)


@given(rows_of, st.integers(1, 4))
def test_a_rule_has_to_hold_in_all_of_the_last_rows_that_have_its_metric(values, patience):
    rows = [{"step": step} | row for step, row in enumerate(values, 1)]
    seen = ["y" if (row["m"] or 0) > 1.5 else "n" for row in values if "m" in row]
    held = "".join(seen).endswith("y" * patience)
    assert (stopping.verdict(stopping.parse_rules("m>1.5", 20), patience, rows) is not None) == held


def test_the_base_does_not_count_and_the_first_rule_that_holds_is_named():
    rows = [{"step": 0, "a": 0.0}, {"step": 1, "a": 0.0, "b": 9.0}]
    rules = stopping.parse_rules(" c<1,a < 1e-3,b>2", 20)
    assert stopping.verdict(rules, 2, rows) is None
    assert stopping.verdict(rules, 1, rows) == {"rule": "a<0.001", "patience": 1, "step": 1, "value": 0.0}
    assert stopping.verdict(stopping.parse_rules("", 20), 1, rows) is None


@pytest.mark.parametrize("text", ["entropy", "entropy<", "<1", "a=1", "a<=1", "a<b", "a<1<2", "a<nan", "a<1,,b>2",
                                  "a<1,"])
def test_a_rule_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="--stop_when: .* is no rule; rules are METRIC<NUMBER, METRIC>NUMBER or inert"):
        stopping.parse_rules(text, 20)


def test_a_run_without_different_rewards_is_inert_after_its_own_number_of_steps():
    rows = [{"step": step, "train/live_groups": live} for step, live in enumerate([0.0, 0.0, 0.5, 0.0, 0.0, 0.0])]
    rules = stopping.parse_rules("train/kl>9, inert", 3)
    assert [stopping.verdict(rules, 1, rows[:count]) is None for count in range(7)] == [True] * 6 + [False]
    assert stopping.verdict(rules, 1, rows) == {"rule": "inert", "patience": 3, "step": 5, "value": 0.0}


@pytest.mark.parametrize("flags, says, rows", [
    ({"stop_when": "train/loss>9,train/acc>2"}, "no run measures train/acc; did you mean train/accuracy?", None),
    ({"keep_best": "eval/gready"}, "no run measures eval/gready; did you mean eval/greedy?", None),
    ({"stop_when": "7>2"}, "no run measures 7; did you mean one such as train/accuracy, ", None),
    ({"stop_when": "train/kl<1"}, "this run does not measure train/kl; step 1 has train/e", 0),
    ({"keep_best": "eval/sampled"}, "this run does not measure eval/sampled; step 2 has eval/greedy,", 1),
    ({"stop_when": "eval/greedy_wager>1"}, "this run does not measure eval/greedy_wager; step 2 has", 1)])
def test_a_metric_that_is_not_measured_is_refused_at_the_first_row_that_should_have_it(go, tmp_path, flags, says, rows):
    """Before the first step, if no command measures it."""
    with pytest.raises(UserError, match=re.escape(f"--{next(iter(flags))}: {says}")):
        go(**flags)
    assert (len(logged(tmp_path)) if (tmp_path / "run").exists() else None) == rows


# ----- the best checkpoint

def test_the_best_checkpoint_stays_whatever_came_after_and_has_a_name(go, tmp_path):
    """Steps 4 and 6 are equally good, and the newer counts; the run continues from step 8."""
    go(keep_best="eval/greedy", crash_at=9)
    assert checkpoint.steps(tmp_path / "run") == [6, 8]
    go(keep_best="eval/greedy")
    assert checkpoint.steps(tmp_path / "run") == [6, 10]
    assert checkpoint.best_step(str(tmp_path / "run")) == 6
    assert [loading.pin_step(f"{tmp_path}/run{which}")[-3:] for which in ("@best", "", "@6")] == ["n@6", "@10", "n@6"]
    (tmp_path / "run" / "config.json").write_text("{}")  # of an export into this directory
    with pytest.raises(UserError, match="has no checkpoint of step 7"):
        loading.load_model(f"{tmp_path}/run@7")
    with pytest.raises(UserError, match="@ names a checkpoint of a run, and checkpoints/tiny_base is a Hugging Face"):
        loading.load_model("checkpoints/tiny_base@7")


@pytest.mark.parametrize("patience, step", [(1, 3), (2, 4)])
def test_a_run_that_a_rule_ends_is_evaluated_at_its_end_and_has_a_best(go, tmp_path, patience, step):
    """Entropy is below 1 at steps 3 and 4; only the end is evaluated and saved."""
    summary = go(stop_when="train/entropy<1", stop_patience=patience, keep_best="eval/greedy", eval_every=0,
                 save_every=0)
    assert summary["stopped_by"]["step"] == step and summary["final"] == {"greedy": GREEDY.get(step, 0.1)}
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "eval/greedy" in row] == [step]
    assert checkpoint.best_step(str(tmp_path / "run")) == step


def test_without_keep_best_the_newest_stay_and_no_step_is_best(go, tmp_path):
    """Also with --keep_every; and with --keep_best, a checkpoint without an evaluation is never the best."""
    go()
    assert checkpoint.steps(tmp_path / "run") == [10]
    with pytest.raises(UserError, match="run@best: it was made without --keep_best; name a step: 10$"):
        checkpoint.restore_model(str(tmp_path / "run"), "best")
    go(keep_every=4, resume="never")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="would rename this directory, which is not of a run"):
        flags.claim(tmp_path / "thesis", "--run_dir", "never")
    with pytest.raises(UserError, match="--run_dir=. with --resume=never would rename this directory"):
        flags.claim(pathlib.Path("."), "--run_dir", "never")
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "mine"
    assert checkpoint.steps(tmp_path / "run") == [4, 8, 10]
    go(keep_best="eval/greedy", save_every=3, keep_last=2, resume="never")  # 3 and 9 are not evaluated
    assert checkpoint.steps(tmp_path / "run") == [6, 9, 10] and checkpoint.best_step(str(tmp_path / "run")) == 6


def test_keep_best_may_change_and_judges_old_checkpoints_too(go, tmp_path):
    go(keep_last=9, keep_best="eval/greedy", num_steps=8)
    assert checkpoint.steps(tmp_path / "run") == [2, 4, 6, 8] and checkpoint.best_step(str(tmp_path / "run")) == 6
    go(keep_best="train/entropy")
    assert checkpoint.steps(tmp_path / "run") == [2, 10] and checkpoint.best_step(str(tmp_path / "run")) == 2


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_it(go, tmp_path, monkeypatch):
    """Deletes only a part of the old checkpoint, as if the process had been killed at that moment."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, *args, **kwargs: [
            part.unlink() for part in pathlib.Path(path).rglob("metrics") if part.is_file()])
        assert go(crash_at=7) is None
    assert checkpoint.steps(tmp_path / "run") == [6]
    go()
    assert logged(tmp_path) == list(range(1, 11))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]


@pytest.mark.parametrize("content", ["{", "[]", '{"eval/greedy": "high"}', "null"])
def test_metrics_of_a_checkpoint_that_are_none_are_named_at_once(go, tmp_path, content):
    go(keep_best="eval/greedy", num_steps=8)
    assert checkpoint.steps(tmp_path / "run") == [6, 8]
    (tmp_path / "run" / "checkpoints" / "6" / "metrics" / "metrics").write_text(content)
    for do in (lambda: checkpoint.best_step(str(tmp_path / "run")), lambda: go(keep_best="eval/greedy")):
        with pytest.raises(UserError, match="cannot read checkpoint .*/6: .*remove that directory to go back to step 8"):
            do()
    assert logged(tmp_path) == list(range(1, 9))


# ----- what is not finite

@pytest.fixture
def spoil(monkeypatch):
    """`spoil(field, value, step)`: from that step on, the field of the state is full of the value."""
    def install(field, value, first):
        monkeypatch.setattr(sys.modules[__name__], "state_of", lambda step: sound(step) if step < first else sound(
            step).replace(**{field: jax.tree.map(lambda x: np.full_like(x, value), getattr(sound(step), field))}))
    sound = state_of
    return install


@pytest.mark.parametrize("field, value", [("params", np.nan), ("opt_state", np.inf)])
@pytest.mark.parametrize("num_steps, first, step, good", [(10, 5, 6, [4]), (6, 6, 6, [4]), (2, 2, 2, [])])
def test_a_state_that_is_not_finite_is_not_saved(go, tmp_path, spoil, field, value, num_steps, first, step, good):
    """Neither during the run nor at its end, where no later loss would show it."""
    spoil(field, value, first)
    kept = "good checkpoints of steps 4" if good else "no good checkpoint"
    with pytest.raises(UserError, match=f"not finite after step {step}, which is not saved; .*run has {kept};"):
        go(num_steps=num_steps)
    assert checkpoint.steps(tmp_path / "run") == good and not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("field", ["params", "opt_state"])
def test_a_checkpoint_that_is_not_finite_is_not_loaded(go, tmp_path, spoil, monkeypatch, field):
    with monkeypatch.context() as patch:  # as an earlier version, which did not check, has saved it
        patch.setattr(checkpoint, "is_finite", lambda tree: True)
        spoil(field, np.nan, 9)
        go(keep_last=2)
    says = "checkpoint .*10 holds numbers that are not finite .*run@8, or remove that directory to go back to step 8"
    with pytest.raises(UserError, match=says):
        go(num_steps=12)
    if field == "params":
        with pytest.raises(UserError, match=says):
            checkpoint.restore_model(str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["train/loss", "train/grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run(go, tmp_path, monkeypatch, name, value):
    log = Run.log
    monkeypatch.setattr(Run, "log", lambda run, row: log(run, row | ({name: value} if row["step"] == 5 else {})))
    with pytest.raises(UserError, match="the loss or its gradient is not finite at step 5"):
        go()
    assert logged(tmp_path)[-1] == 5 and checkpoint.steps(tmp_path / "run") == [4]
    # The loss of step 5 belongs to the state after step 4.
    with pytest.raises(UserError, match="not finite at step 5; .*run has good checkpoints of steps 1, 2, 3;"):
        go(save_every=1, keep_last=9, resume="never")


# ----- what is not as it was saved

def test_any_flipped_bit_of_a_checkpoint_is_noticed(go, tmp_path, monkeypatch):
    """In a leaf of the parameters, in one of the optimiser, or in meta."""
    go(keep_last=2, num_steps=8)
    restore = checkpoint._read

    def flipped(item, change):
        def damaged(*args, **items):
            whole = restore(*args, **items)
            return whole if item not in whole else whole | {item: change(whole[item])}
        monkeypatch.setattr(checkpoint, "_read", damaged)

    def bit(x, place):
        x = np.array(x)
        x.reshape(-1).view(np.uint8)[place // 8] ^= 1 << place % 8
        return x

    for place in (0, 22, 31, 64, 95):
        flipped("params", lambda tree: {"w": bit(tree["w"], place)})
        with pytest.raises(UserError, match="8 is damaged: params/w is not as it was saved; use .*run@6, or remove "):
            checkpoint.restore_model(str(tmp_path / "run"))
        flipped("training", lambda tree: tree | {"opt_state": {"m": bit(tree["opt_state"]["m"], place % 64)}})
        with pytest.raises(UserError, match="checkpoint .*8 is damaged: training/opt_state/m is not as it was saved"):
            go(num_steps=10)
    flipped("params", lambda tree: {"w": np.asarray(tree["w"]).view(np.int32)})  # a flip in its description
    with pytest.raises(UserError, match="params/w is not as it was saved"):
        checkpoint.restore_model(str(tmp_path / "run"))
    flipped("meta", lambda meta: meta | {"flags": meta["flags"] | {"seed": 1}})
    with pytest.raises(UserError, match="checkpoint .*8 is damaged: meta is not as it was saved"):
        checkpoint.read_meta(str(tmp_path / "run"), 8)
    for other in ([], None, "text", 3):
        flipped("meta", lambda meta: other)
        with pytest.raises(UserError, match="checkpoint .*8 is damaged: its meta is no record, but a "):
            checkpoint.restore_model(str(tmp_path / "run"))
    flipped("meta", lambda meta: {"flags": meta["flags"], "model": 3})
    with pytest.raises(UserError, match="cannot read checkpoint .*8: "):
        checkpoint.restore_model(str(tmp_path / "run"))
    flipped("meta", lambda meta: {name: meta[name] for name in meta if name != "digests"})
    assert checkpoint.read_meta(str(tmp_path / "run"), 8)  # saved before there were digests
    go(num_steps=10)


# ----- flags that may not change

def changed(tmp_path, before, after) -> str:
    """Why scripts.train with the configuration `after` cannot continue a directory started with `before`."""
    flags.write_flags(tmp_path / "flags.txt", before)
    return flags.changed_flags(tmp_path, after, "--run_dir", "train")


@pytest.mark.parametrize("before, after, says", [
    ({"schedule": "cosine"}, {"num_steps": 90}, "--num_steps=90 moves the end of its schedule: add --decay_steps=360"),
    ({"schedule": "linear"}, {"num_steps": 30}, "--num_steps=30 moves the end of its schedule: add --decay_steps=360"),
    ({"schedule": "linear", "decay_steps": 360}, {"decay_steps": 0, "num_steps": 90}, "add --decay_steps=360,"),
    ({"schedule": "linear", "decay_steps": 7}, {"decay_steps": 9}, "--decay_steps (was 7); restore them,"),
    ({"schedule": "linear"}, {"num_steps": 90, "seed": 1}, "add --decay_steps=360, and restore the others,"),
    ({"schedule": "cosine"}, {"num_steps": 90, "decay_steps": 360}, ""),
    ({"schedule": "cosine"}, {"decay_steps": 360}, ""), ({"schedule": "constant"}, {"num_steps": 90}, "")])
def test_a_schedule_that_ends_with_the_run_keeps_its_end(tmp_path, before, after, says):
    first = CONFIG.with_flags(num_steps=60, num_passes=2, num_minibatches=3, **before)
    found = changed(tmp_path, first, first.with_flags(**after))
    assert says in found and bool(found) == bool(says)


@pytest.mark.parametrize("cut", [lambda text: "", lambda text: text[:-1], lambda text: text[: len(text) // 2],
                                 lambda text: text.replace("=", ":"), lambda text: text + "\n",
                                 lambda text: text.replace("--num_steps=10", "--num_steps="),
                                 lambda text: text.replace("--seed=0", "--seed=\udcff")])
def test_flags_that_are_cut_are_damaged_not_other_flags(go, tmp_path, cut):
    go(num_steps=2, schedule="linear")
    path = tmp_path / "run" / "flags.txt"
    path.write_text(cut(path.read_text().replace("--num_steps=2", "--num_steps=10")), errors="surrogateescape")
    before = path.read_bytes()
    with pytest.raises(UserError, match="flags.txt is damaged: it needs a complete line --name=value for each flag"):
        go(num_steps=4, schedule="linear")
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(UserError, match="flags.txt is gone: .* take it from a copy, .*--resume=never"):
        go(num_steps=4, schedule="linear")


@pytest.mark.parametrize("before, after, same", [
    ("base/", "base", True), ("./base", "base//", True), ("base/@20", "base@20", True), ("base@20", "base@30", False),
    ("base", "bas", False)])
def test_a_model_is_the_same_however_its_directory_is_written(tmp_path, before, after, same):
    assert ("--model" in changed(tmp_path, CONFIG.with_flags(model=before), CONFIG.with_flags(model=after))) != same


def test_a_directory_of_another_script_gets_one_sentence(tmp_path):
    origin.write(tmp_path, "pretrain")
    assert changed(tmp_path, PretrainConfig(), CONFIG) == (
        f"{tmp_path} was written by scripts.pretrain, and scripts.train needs a directory of its own: choose another "
        "--run_dir")
    lines = [line for line in flags.flag_lines(CONFIG.with_flags(seed=9)) if "adapter_" not in line and
             "trainable" not in line]  # as an earlier version, without these flags
    (tmp_path / "flags.txt").write_text("\n".join([*lines, ""]))
    origin.write(tmp_path, "train")
    for trainable, was in (("all", "--seed (was 9);"), ("lora", "--seed (was 9), --trainable (was all);")):
        assert was in flags.changed_flags(tmp_path, CONFIG.with_flags(trainable=trainable), "--run_dir", "train")
    (tmp_path / "origin.json").unlink()  # as in a run that had nothing to do at its start
    assert "--seed (was 9)" in flags.changed_flags(tmp_path, CONFIG, "--run_dir", "train")


ROWS = '''
import functools
import jax, numpy as np
from jax import numpy as jnp
from rlvr_jax import adapters, objectives
from rlvr_jax.rewards.rows import REWARDS, Reward
from rlvr_jax.tasks import chains, families

RATE = 0.5
TABLE = {"a": RATE}

def near(x):
    return x * TABLE["a"]

@functools.cache
def short(seen):
    rate = near(1) + far(2)
    return np.full(len(seen.texts), rate)

def signs(scale):
    return lambda rewards: jnp.sign(rewards) * scale

class Known:
    def __call__(self, seen):
        return self.paid(seen)
    def paid(self, seen):
        return 1.5

rate = num_steps = 4
REWARDS["short"], REWARDS["known"] = Reward(short), Known()
objectives.OBJECTIVES["signs"] = objectives.Objective(signs(2), jax.jit(lambda x: x + 3), objectives.token_mean)
objectives.OBJECTIVES["wide"] = objectives.OBJECTIVES["dapo"]._replace(clip_high=0.3)
adapters.ADAPTERS["mine"] = functools.partial(adapters.lora, 7)
results = np.arange(6).reshape(3, 1, 2)
families.FAMILIES["mod"] = families.chain_family(chains.Algebra(("red",), ("plus",), ("well",), ("0", "1"), 0, results,
                                                             results))
'''
USED = {"reward": "correct:0.5,short,known:2", "objective": "signs", "trainable": "mine", "problems": "mod"}


@pytest.fixture
def session(tmp_path):
    """`session(text)` executes a file that adds rows, as a new process would."""
    def begin(text, far="x"):
        known = {"__name__": "mine"}
        for name, source in (("helpers.py", f"def far(x): return {far}"), ("mine.py", text)):
            (tmp_path / name).write_text(source)
            exec(compile(source, tmp_path / name, "exec"), known)

    with contextlib.ExitStack() as kept:
        for table in (REWARDS, OBJECTIVES, ADAPTERS, families.FAMILIES):
            kept.enter_context(mock.patch.dict(table))
        yield begin


@pytest.mark.parametrize("old, new, named", [
    ("np.full(", "-np.full(", "reward short"), ("RATE = 0.5", "RATE = 0.6", "reward short"),
    ('x * TABLE["a"]', 'x + TABLE["a"]', "reward short"), ("", "x + 1", "reward short"),
    ("return 1.5", "return 2.5", "reward known"), ("signs(2)", "signs(3)", "objective signs"),
    ("jnp.sign(rewards)", "rewards", "objective signs"), ("x + 3", "x - 3", "objective signs"),
    ("adapters.lora, 7", "adapters.lora, 8", "trainable mine"), ("arange(6)", "arange(1, 7)", "problems mod"),
    ("num_steps = 4", "num_steps = 5", ""), ("\nclass", "\n\nprint()\nclass", "")])
def test_an_edited_row_from_outside_is_refused_by_name(tmp_path, session, old, new, named):
    """Edits elsewhere in the file do not count."""
    session(ROWS)
    config, edited = CONFIG.with_flags(**USED), ROWS.replace(old, new) if old else ROWS
    assert changed(tmp_path, config, config) == ""
    session(edited, *() if old else (new,))
    found = flags.changed_flags(tmp_path, config, "--run_dir", "train")
    assert re.findall(r"source of (\w+ \w+) \(was [0-9a-f]{8}\)", found) == ([named] if named else [])


def test_a_row_of_numbers_alone_counts_and_one_of_the_package_does_not(session, parse, tmp_path):
    session(ROWS)
    for leaf in flags_of(CONFIG.with_flags(**USED)):
        if leaf.name in USED:
            known = [x for x in leaf.meta["choices"]() if sources.source_lines(TrainConfig.from_flags(**{leaf.name: x}))]
            assert set(known) == {"reward": {"short", "known"}, "objective": {"signs", "wide"}, "trainable": {"mine"},
                                  "problems": {"mod"}}[leaf.name]
    flags.write_flags(tmp_path / "flags.txt", CONFIG.with_flags(**USED))
    assert parse(TrainConfig, f"--flagfile={tmp_path / 'flags.txt'}") == CONFIG.with_flags(**USED)


def test_a_finished_run_is_not_taken_for_one_of_an_edited_reward(go, tmp_path, session):
    session(ROWS)
    go(num_steps=2, reward="short")
    session(ROWS.replace("np.full(", "-np.full("))
    with pytest.raises(UserError, match="run was started with other flags: the source of reward short .*; restore them"):
        go(num_steps=2, reward="short")
    path = tmp_path / "run" / "flags.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "source" not in line))
    assert go(num_steps=4, reward="short")["steps"] == 4  # a run of a version without digests
    assert "source of reward short" in path.read_text()


# ----- what is chosen once

def test_a_run_that_goes_on_does_not_choose_again(go, tmp_path, monkeypatch):
    """A run chooses if it starts over, has saved nothing yet, or its file is missing or damaged."""
    asked, restore = [], Run.restore

    def restore_and_choose(run, fresh):
        chosen.append(run.make_once("example", lambda: {"example": asked.append(1) or 42, "rate": 0.5})["example"])
        return restore(run, fresh)

    chosen, kept = [], tmp_path / "run" / "example.json"
    monkeypatch.setattr(Run, "restore", restore_and_choose)
    go(crash_at=1)
    go(num_steps=2)
    assert json.loads(kept.read_text()) == {"example": 42, "rate": 0.5}
    go(num_steps=4)
    go(num_steps=4)  # finished already
    kept.write_text("{")
    go(num_steps=6)
    kept.unlink()
    go(num_steps=8)
    go(num_steps=2, resume="never")
    assert chosen == 7 * [42] and len(asked) == 5


def test_an_example_that_was_edited_by_hand_is_refused(go, tmp_path, monkeypatch):
    """It would train another problem under the name of the first. A run of a version without the check continues."""
    restore, save, kept = Run.restore, checkpoint.save, tmp_path / "run" / "example.json"
    monkeypatch.setattr(Run, "restore", lambda run, fresh: run.make_once("example", lambda: {"example": 7}) and restore(
        run, fresh))
    go(num_steps=2)
    kept.write_text(json.dumps({"example": 8}))
    with pytest.raises(UserError, match="example.json is not what this run was started with: take .* or remove it"):
        go(num_steps=4)
    assert checkpoint.steps(tmp_path / "run") == [2]
    kept.unlink()
    go(num_steps=4)
    assert json.loads(kept.read_text()) == {"example": 7}
    monkeypatch.setattr(checkpoint, "save", lambda manager, state, meta, metrics: save(
        manager, state, {name: meta[name] for name in meta if name != "chosen"}, metrics))
    go(num_steps=6)
    kept.write_text(json.dumps({"example": 8}))
    go(num_steps=8)


# ----- a log that is damaged

def logs_of(tmp_path) -> dict:
    return {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")}


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b'{"step": "3"}', b"\0\0", b"[" * 10**6,
                                  b'{"step": 2, "a": "\xff"}'])
@pytest.mark.parametrize("name", ["metrics", "rollouts"])
def test_a_bad_line_that_others_follow_is_an_error_and_nothing_is_cut(go, tmp_path, name, line):
    """Neither to continue nor to draw."""
    go(num_steps=4)
    (tmp_path / "run" / f"{name}.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n{"step": 4}\n')
    before = logs_of(tmp_path)
    for do in (lambda: go(num_steps=6), lambda: report.write_report(str(tmp_path / "run"))):
        with pytest.raises(UserError, match=f"{name}.jsonl, line 2: .*, or take the file from a copy$") as error:
            do()
        assert "\n" not in str(error.value)
    assert logs_of(tmp_path) == before


@pytest.mark.parametrize("lost, gap, says", [
    *((range(1, last), 1, "start over with --resume=never, which moves this run aside$") for last in (2, 7, 8)),
    ((4,), 4, "go back to the checkpoint of step 2 by moving away .*checkpoints/4, .*checkpoints/6$"),
    ((5, 6), 5, "go back to the checkpoint of step 4 by moving away .*checkpoints/6$")])
def test_a_run_whose_log_lacks_a_step_does_not_go_on(go, tmp_path, lost, gap, says):
    """Its summary would take the policy for the base model. In one case the whole log is missing."""
    go(num_steps=6, keep_last=9)
    path = tmp_path / "run" / "metrics.jsonl"
    write_jsonl(path, *(row for row in read_jsonl(path) if row["step"] not in lost))
    if len(lost) == 7:
        path.unlink()
    before = logs_of(tmp_path)
    with pytest.raises(UserError, match=f"metrics.jsonl has no row of step {gap}, .* checkpoint of step 6: .* {says}"):
        go(keep_last=9)
    assert logs_of(tmp_path) == before and checkpoint.steps(tmp_path / "run") == [2, 4, 6]
    for step in [step for step in (2, 4, 6) if step >= gap and gap > 2]:
        (tmp_path / "run" / "checkpoints" / str(step)).rename(tmp_path / str(step))  # as the message says
    if gap > 2:
        assert go(keep_last=9)["steps"] == 10 and logged(tmp_path) == list(range(1, 11))


@pytest.mark.parametrize("order", [[9, 1, 2, 3, 4, 5, 6, 7, 8, 0], [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]])
def test_rows_that_are_swapped_or_doubled_are_no_log(go, tmp_path, order):
    """Neither to continue nor to draw: the summary takes the accuracies of base and end from its ends."""
    go()
    path = tmp_path / "run" / "metrics.jsonl"
    rows = read_jsonl(path)
    write_jsonl(path, *(rows[i] for i in order))
    before = logs_of(tmp_path)
    for do in (go, lambda: report.write_report(str(tmp_path / "run"))):
        with pytest.raises(UserError, match=r"metrics.jsonl, line \d: step \d+ follows step \d+, so rows .* swapped"):
            do()
    assert logs_of(tmp_path) == before


@pytest.mark.parametrize("name", ["rollouts", "heldout"])
@pytest.mark.parametrize("keep", [0, 3])
def test_rows_that_are_lost_of_what_no_result_depends_on_are_said_once(go, tmp_path, monkeypatch, capsys, name, keep):
    log = Run.log
    monkeypatch.setattr(Run, "log", lambda run, row: log(run, row, (), [{"step": row["step"]}]) or run.keep_heldout(
        row["step"], [{"prompt": "a", "answer": "b", "completion": "c", "correct": True}]))
    go(num_steps=4)
    path = tmp_path / "run" / f"{name}.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:keep]))
    capsys.readouterr()
    assert go(num_steps=8)["steps"] == 8
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == [f"warning: {path} has {keep} of the 4 rows that it had at step 4; the run continues, and its pages "
                    "show what is there"]
    go()
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("crash_at, gone", [(None, "checkpoints"), (3, "checkpoints"), (None, "checkpoints/10")])
def test_a_run_that_lost_its_checkpoints_is_not_begun_again_over_its_logs(go, tmp_path, crash_at, gone):
    go(crash_at=crash_at)
    shutil.rmtree(tmp_path / "run" / gone)
    before = logs_of(tmp_path)
    for flags_now in ({}, {"seed": 1}):
        with pytest.raises(UserError, match="run has lost its checkpoints, .*run/checkpoints from a copy, .*=never"):
            go(**flags_now)
    assert logs_of(tmp_path) == before
    go(resume="never", num_steps=2)
    assert logged(tmp_path) == [1, 2] and len(read_jsonl(tmp_path / "run.1" / "metrics.jsonl")) == (crash_at or 11) - 1


def test_a_run_that_died_before_its_first_checkpoint_begins_again(go, tmp_path):
    for flags_now in ({}, {"seed": 1}):
        go(crash_at=8, save_every=9, **flags_now)
        assert logged(tmp_path) == list(range(1, 8))
    assert go(seed=1)["steps"] == 10


@pytest.mark.parametrize("more", [{}, {"digests"}, {"digests", "step"}])
def test_a_checkpoint_under_the_name_of_another_step_is_refused(go, tmp_path, monkeypatch, more):
    """A checkpoint of today, one without digests, and one that has its step only in the optimiser's part."""
    restore, run_dir = checkpoint._read, tmp_path / "run"
    monkeypatch.setattr(checkpoint, "_read", lambda *args, **items: {
        name: {key: x for key, x in item.items() if name != "meta" or key not in more}
        for name, item in restore(*args, **items).items()})
    go(keep_last=2, save_every=3)
    (run_dir / "checkpoints" / "10").rename(tmp_path / "10")
    (run_dir / "checkpoints" / "9").rename(run_dir / "checkpoints" / "8")
    says = "checkpoint .*/8 is that of step 9: rename its directory to 9"
    with pytest.raises(UserError, match=says):
        go()
    if "step" not in more:
        with pytest.raises(UserError, match=says):
            checkpoint.restore_model(str(run_dir))


def test_a_checkpoint_falls_due_by_the_clock_of_the_main_process_too(go, tmp_path, monkeypatch):
    """Steps take ten minutes; a checkpoint is due 19 minutes after the last one, or after the start."""
    now = [0.0]
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Run, "log", lambda run, row, log=Run.log: log(run, row) or now.append(now.pop() + 600))
    go(save_every=5, keep_last=99, save_minutes=19, crash_at=9)
    assert checkpoint.steps(tmp_path / "run") == [2, 4, 5, 7]
    go(save_every=0, keep_last=99, save_minutes=19)
    assert checkpoint.steps(tmp_path / "run") == [2, 4, 5, 7, 9, 10]
    go(save_every=0, save_minutes=0, resume="never")
    assert checkpoint.steps(tmp_path / "run") == [10]
    monkeypatch.setattr(processes, "max_over_processes", lambda number: number + 1)  # another process is the main one
    assert Run.save_due(SimpleNamespace(config=CONFIG.run, saved_at=now[0], due=lambda *_: False), 1)


def test_a_whole_line_without_its_end_is_kept_and_the_next_is_not_glued_to_it(tmp_path):
    """Rows after the step from which the run continues are cut off."""
    path = tmp_path / "log.jsonl"
    for rest, upto, kept in (('{"step": 3}', 9, [2, 3]), ('{"step": 3', 9, [2]), ("", 9, [2]), ("\0\0", 9, [2]),
                             ("[1]\n", 9, [2]), ('{"step": 3}\n{"step": 4}\n', 3, [2, 3])):
        path.write_text('{"step": 2}\n' + rest)
        lines = log.JsonLines(path, upto)
        lines.write({"step": 5})
        lines.close()
        assert [row["step"] for row in lines.rows] == [row["step"] for row in read_jsonl(path)] == [*kept, 5]


def test_rows_are_on_the_disk_before_the_checkpoint_that_needs_them(go, tmp_path, monkeypatch):
    """So that after a power cut no checkpoint is newer than the log."""
    done, save, fsync = [], checkpoint.save, os.fsync
    monkeypatch.setattr(checkpoint, "save", lambda *args: (done.append("checkpoint"), save(*args)))
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))),
                                                 fsync(fd)))
    go(num_steps=2)
    before = done[: done.index("checkpoint")]
    assert {"metrics.jsonl", "rollouts.jsonl", "heldout.jsonl", "flags.txt.part", "origin.json.part"} <= set(before)


def test_the_place_that_is_kept_names_the_chosen_problem(monkeypatch):
    words = families.make_tokenizer(["arithmetic"])
    problems, kept = merge([Problem(str(i), "3", str(i)) for i in (7, 8, 9)]), {}
    start = SimpleNamespace(params={"layers": {}}, tokenizer=words, config=SimpleNamespace(max_seq_len=99))
    rows = [{"problem": p, "correct": i < right, "completion": "think answer 3"}
            for p, right in enumerate([0, 60, 15]) for i in range(64)]
    asked = []
    monkeypatch.setattr(measure, "sample_and_grade", lambda by, benchmark, request, **_: asked.append(
        (benchmark.num_samples, benchmark.temperature, request)) or rows)
    monkeypatch.setattr(train, "load_pool", lambda *_: problems)
    chosen = train.select_problems(TrainConfig.from_flags(example="auto", temperature=0.7, seed=3), start,
                                 grpo.Programs(None, None, None), lambda name, make: kept.setdefault(name, make()))
    assert asked == [(64, 0.7, Request(3, 0, 0.7, stream=CHOOSE))]  # as the run, with its own random stream
    assert chosen == [problems[2]]  # 15 of 64 is nearer to 0.2 than 60
    assert kept == {"example": {"example": 2, "question": "9", "answer": "3", "pass_rate": 15 / 64, "num_samples": 64}}


# ----- mirrors and counts

def events(folder) -> list[tuple]:
    """(tag, step, value) of every scalar in a folder of event files: length, checksum, data, checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in folder.iterdir():
        content, place = path.read_bytes(), 0
        while place < len(content):
            length, = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += length + 16
    return found


def test_tensorboard_mirrors_the_log_and_a_resumed_run_repeats_no_step(go, tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install -e '.[tensorboard]'")
    go(log_to="tensorboard", crash_at=4)  # step 3 is logged, and repeated from the checkpoint of step 2
    for path in list((tmp_path / "run" / "tensorboard").iterdir()):  # the names contain the second of the start
        path.rename(f"{path}.earlier")
    go(log_to="tensorboard")
    wanted = [(key, row["step"], value) for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")
              for key, value in row.items() if key not in ("step", "train/name")]
    found = events(tmp_path / "run" / "tensorboard")
    assert len(found) == 10 * 4 + 5
    assert sorted(found) == [(key, step, pytest.approx(value)) for key, step, value in sorted(wanted)]


def test_a_log_that_cannot_be_mirrored_is_said_before_anything_is_written(go, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"--log_to=tensorboard needs tensorboardX: pip install -e '.\[tensorb"):
        go(log_to="tensorboard")
    with pytest.raises(UserError, match="--log_to=wandb,tensorboard: 'wandb' is none of tensorboard, trackio"):
        go(log_to="wandb,tensorboard")
    assert not (tmp_path / "run" / "flags.txt").exists()


TRACKED = """
import json, pathlib, sys
from rlvr_jax.runs.mirrors import MIRRORS
from trackio.sqlite_storage import SQLiteStorage
rows = [{"step": step, "train/entropy": 1 / step, "train/name": "text"} for step in range(1, 8)]
for first, last in ((0, 4), (2, 7)):  # the second start continues from step 2
    with MIRRORS["trackio"](pathlib.Path(sys.argv[1]), rows[:first]) as write:
        for row in rows[first:last]:
            write(row)
print(json.dumps([{key: row[key] for key in ("step", "train/entropy")} for row in SQLiteStorage.get_logs("folder", "run")]))
"""


def test_trackio_has_each_step_of_a_resumed_run_once(tmp_path):
    """In a process of its own, since Trackio reads the folder of its files on import and keeps threads."""
    pytest.importorskip("trackio", reason="pip install -e '.[trackio]'")
    done = subprocess.run([sys.executable, "-c", TRACKED, tmp_path / "folder" / "run"], capture_output=True, text=True,
                          env=os.environ | {"TRACKIO_DIR": str(tmp_path / "kept"), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{"step": step, "train/entropy": 1 / step}
                                                        for step in range(1, 8)]


def test_the_flag_that_log_to_replaced_still_mirrors_and_its_runs_go_on(go, tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install -e '.[tensorboard]'")
    go(num_steps=2, tensorboard=True)
    path = tmp_path / "run" / "flags.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "log_to" not in line))
    assert go(num_steps=4, tensorboard=True)["steps"] == 4
    assert {step for _, step, _ in events(tmp_path / "run" / "tensorboard")} == {1, 2, 3, 4}


def test_a_start_from_a_changed_checkout_keeps_what_differs(go, tmp_path, monkeypatch):
    said = {"describe": "abc-dirty\n", "diff": "+first\n"}
    monkeypatch.setattr(origin, "run_git", lambda *command: said[command[0]])
    go(num_steps=2)
    said["diff"] = "+second\n"
    go(num_steps=4)
    said["describe"] = "abd\n"
    for _ in range(2):  # the second start has nothing to do
        go(num_steps=6)
    starts = json.loads((tmp_path / "run" / "origin.json").read_text())["starts"]
    assert starts[0]["jax"] == jax.__version__ and starts[0]["devices"] == 2
    assert [(start["step"], start.get("diff")) for start in starts] == [(0, "code.diff"), (2, "code-2.diff"), (4, None)]
    assert [(tmp_path / "run" / start["diff"]).read_text() for start in starts[:2]] == ["+first\n", "+second\n"]


def test_every_program_built_is_counted_once():
    with log.count_compilations() as taken:
        double = jax.jit(lambda x: jax.jit(lambda y: y + 1)(x) * 2)  # two are traced, one is built
        for size in (3, 3, 4, 4):
            double(np.ones(size, np.float32))
        first, then = taken(), taken()
    assert first["compilations"] == 2 and first["seconds_compiling"] > 0
    assert then == {"compilations": 0, "seconds_compiling": 0}
    double(np.ones(6, np.float32))
    assert taken()["compilations"] == 0  # the listener is gone


def test_an_ngram_counts_as_repeated_within_its_own_completion_only():
    ids = np.array([[5, 5, 5, 5, 5, 5], [1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 9, 9], [7, 7, 7, 7, 7, 7]])
    lengths = np.array([6, 6, 5, 3])
    mask = np.arange(6) < lengths[:, None]
    # windows of 4: 3 equal ones (2 repeat); 1212 2121 1212 (1 repeats); 1212 2129 (none); none at all
    assert summary.repetition(ids, mask) == pytest.approx(3 / 8)
    assert summary.repetition(ids[:, :3], mask[:, :3]) == 0


# ----- the log and the summary

def test_an_evaluation_at_the_step_of_saturation_counts_as_after_it():
    rows = [{"step": 0, "eval/greedy": 0.1, "eval/sampled": 0.1},
            {"step": 1, "train/accuracy": 0.5, "eval/greedy": 0.9, "eval/sampled": 0.9},
            {"step": 2, "train/accuracy": 0.99, "eval/greedy": 0.7, "eval/sampled": 0.6},
            {"step": 3, "train/accuracy": 1.0}, {"step": 4, "eval/greedy": 0.8, "eval/sampled": 0.5}]
    found = summary.summarise(rows)
    assert found["saturation_step"] == 2 and found["base"] == {"greedy": 0.1, "sampled": 0.1}
    assert found["after_saturation"] == {"greedy": {"at_saturation": 0.7, "peak": 0.8, "end": 0.8},
                                         "sampled": {"at_saturation": 0.6, "peak": 0.6, "end": 0.5}}
