"""What every command does before its own work: numbers within bounds, compiled programs kept, styles of a terminal."""

import dataclasses
import inspect
import re
import subprocess
import sys
import typing

import jax
import numpy as np
import pytest
from absl import flags

from rlvr_jax import config
from rlvr_jax.config import flag
from rlvr_jax.errors import UserError
from rlvr_jax.grpo import GRPOConfig
from rlvr_jax.rewards.rows import RewardConfig
from rlvr_jax.runs import log
from rlvr_jax.runs.run import RunConfig
from rlvr_jax.training.train import TrainConfig
from scripts import cli, sample

from fixtures import ROOT, SCRIPTS, defined, record_of


def kinds(leaf) -> tuple:
    """The type of a flag and, for a tuple, those of its entries."""
    return leaf.kind, *typing.get_args(leaf.kind)


def one_setting(kind: type, default, **bounds) -> type:
    """A configuration with one flag, `x`."""
    return type("One", (config.Config,), {"__annotations__": {"x": kind}, "x": flag(default, "what it is", **bounds)})


# ----- numbers

@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_a_least_value_and_its_default_is_within_bounds(script, parse):
    config_class = record_of(script)
    for leaf in config.flags_of(config_class):
        bounds = leaf.meta["bounds"]
        assert bounds.keys() <= config.BOUNDS.keys() and (
            bounds.keys() & {"minimum", "above"} if {int, float} & set(kinds(leaf)) else not bounds), leaf.name
    assert parse(config_class) == config_class()  # absl judges the defaults, too


@pytest.mark.parametrize("bounds, right, wrong, unread", [
    ({"minimum": 0, "below": 1}, ["0", "0.999"], ["-1e-9", "1", "nan", "inf", "-inf"], ["x", "", "0,0"]),
    ({"above": 0, "maximum": 1}, ["1e-9", "1"], ["0", "1.001", "nan"], []),
    ({"minimum": 0}, ["0", "1e9"], ["-1", "inf"], [])])
def test_bounds_are_what_their_names_say(parse, bounds, right, wrong, unread):
    config_class = one_setting(float, 0.5, **bounds)
    assert [parse(config_class, f"--x={text}").x for text in right] == [float(text) for text in right]
    for texts, says in ((wrong, r"flag --x=\S+: not a finite number >"), (unread, r"flag --x=.*: could not convert")):
        for text in texts:
            with pytest.raises(flags.IllegalFlagValueError, match=says):
                parse(config_class, f"--x={text}")


def test_every_number_of_a_list_is_held_to_the_bounds(parse):
    config_class = one_setting(tuple[int, ...], (7, 8), minimum=0)
    assert parse(config_class).x == (7, 8) and parse(config_class, "--x=3,0").x == (3, 0)
    for text in ("", "1,", "1,-1", "1.5", "a"):
        with pytest.raises(flags.IllegalFlagValueError, match=f"--x={text}: not whole numbers >= 0, joined by commas"):
            parse(config_class, f"--x={text}")


def test_a_number_or_a_list_may_be_missing_where_it_is_by_default(parse):
    """A run's flag file has a line for each flag, even for an empty list."""
    assert parse(one_setting(tuple[int, ...], (), minimum=0), "--x=").x == ()
    assert parse(one_setting(typing.Optional[float], None, minimum=0)).x is None
    with pytest.raises(flags.IllegalFlagValueError, match="--x=-1.0: not a finite number >= 0"):
        parse(one_setting(typing.Optional[float], None, minimum=0), "--x=-1")


@pytest.mark.parametrize("flag, allowed", [
    ("learning_rate=nan", ">= 0"), ("max_grad_norm=0", "> 0"), ("adam_b1=2", ">= 0 and < 1"),
    ("clip_low=2", ">= 0 and <= 1"), ("temperature=0", "> 0"), ("seed=-1", ">= 0 and <= 2147483647")])
def test_training_refuses_a_number_out_of_bounds_and_its_help_says_which_are_within(parse, flag, allowed):
    name, _, _ = flag.partition("=")
    with pytest.raises(flags.IllegalFlagValueError, match=f"flag --{name}=.*: not a (finite|whole) number {allowed}$"):
        parse(TrainConfig, f"--{flag}")
    with defined(TrainConfig) as known:
        assert re.search(rf"\(a (finite|whole) number {allowed}\)$", known[name].help)


@pytest.mark.parametrize("values, says", [
    ({"group_size": 0}, "group_size=0: not a whole number >= 1"), ({"num_steps": "2"}, "num_steps='2': not a whole"),
    ({"num_steps": 2.0}, "num_steps=2.0: not a whole number"), ({"num_steps": True}, "num_steps=True"), ({"save_every": True}, "save"),
    ({"learning_rate": float("nan")}, "learning_rate=nan: not a finite number >= 0"), ({"learning_rate": 1}, ""),
    ({"trainable": "typo"}, "trainable='typo': not one of all, lora, "), ({"trainable": "lora"}, ""),
    ({"remat": 0}, "remat=0: not True or False"), ({"run_dir": ROOT}, "not a text"), ({"reward": "a:1,b:2"}, ""),
    ({"adapter_layers": (0, -1)}, r"adapter_layers=\(0, -1\): not whole numbers >= 0"), ({"clip_low": None}, ""),
    ({"adapter_layers": [1]}, r"adapter_layers=\[1\]: not whole numbers"), ({"adapter_layers": (1,)}, ""),
    ({"clip_low": -1}, "clip_low=-1: not a finite number >= 0 and <= 1"), ({"group_size": np.int64(3)}, ""),
    ({"resume": "perhaps"}, "resume='perhaps': not one of never, auto, must")])
def test_a_record_refuses_what_its_flags_refuse(values, says):
    """Whether it is made from flags, directly, or by changing another."""
    (name, value), = values.items()
    inner = next(kind for kind in (GRPOConfig, RunConfig, *(type(getattr(GRPOConfig(), field.name)) for field in
                                                             dataclasses.fields(GRPOConfig)))
                 if name in {field.name for field in dataclasses.fields(kind)}) if name != "reward" else RewardConfig
    for make in (lambda: TrainConfig.from_flags(**values), lambda: inner(**values),
                 lambda: dataclasses.replace(inner(), **values)):
        if says:
            with pytest.raises(UserError, match=says):
                make()
        else:
            assert make().as_flags()[name] == value


# ----- choices

@pytest.mark.parametrize("script", SCRIPTS)
def test_a_flag_offers_the_rows_of_its_table_and_says_what_they_mean(script):
    with defined(record_of(script)) as known:
        for name, kind, default, meta in config.flags_of(record_of(script)):
            choices = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
            if choices and not meta["listed"]:
                assert known[name].parser.enum_values == list(choices) and default in choices
            for row in choices if callable(meta["choices"]) else ():
                means, value = cli.describe_row(choices, row), choices[row]
                function = value if callable(value) else getattr(value, "score", None)
                assert not callable(function) or means and " ".join(inspect.getdoc(function).split()).startswith(means)
                assert f"; {row}: {means}" in known[name].help or not means


@pytest.mark.parametrize("length", [99, 1_000, 4_000])
def test_a_name_too_long_for_a_flag_is_refused_before_memory_is_spent_on_names_like_it(length, tmp_path):
    """absl takes 140 MiB for 1,000 characters, and its whole stack for 4,000."""
    (tmp_path / "a.flags").write_text("--adapte" + "x" * length)
    for line in ("train --adapte" + "x" * length, f"train --noremat '--adaptexxxxxxxxxxxx {'(' * length}'",
                 f"train --flagfile={tmp_path / 'a.flags'}"):
        with pytest.raises(UserError, match="no flag has so long a name as '--adaptexxxxxxxxxxxx'"):
            cli.check_command(line)
    with pytest.raises(UserError, match="noremat"):  # absl raises a ValueError
        cli.check_command("train --noremat=1")
    cli.check_command(f"sample --model=m --prompt=-{'x' * length}")
    cli.check_command(f"sample --model=m --prompt '- {'x' * length}'")


# ----- compiled programs

@pytest.fixture
def settings():
    """JAX's cache folder or None; restores JAX's configuration afterwards."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_enable_compilation_cache",
             "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda: jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache_folder_and_take_a_bounded_room(tmp_path, monkeypatch, settings):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.cache_programs("auto")
    assert settings() == str(tmp_path / "rlvr_jax" / "jax") and (tmp_path / "rlvr_jax" / "jax").is_dir()
    assert 0 < jax.config.jax_compilation_cache_max_size < 10**9
    cli.cache_programs(str(tmp_path / "mine"))
    assert settings() == str(tmp_path / "mine")
    cli.cache_programs("none")
    assert settings() is None


def test_a_folder_of_the_environment_is_left_and_one_that_cannot_be_made_done_without_unless_it_was_asked_for(
        tmp_path, monkeypatch, settings):
    before = settings()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))  # JAX has read it already
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "usual"))
    cli.cache_programs("auto")
    assert settings() == before and not list(tmp_path.iterdir())
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cli.cache_programs("auto")
    assert settings() == before
    with pytest.raises(OSError):
        cli.cache_programs(str(tmp_path / "file" / "mine"))


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    """With the size limit of the command line, for which JAX needs filelock."""
    code = ("import jax, sys; from scripts import cli; cli.cache_programs(sys.argv[1])\n"
            "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
            "print(jax.jit(lambda x: x * 3)(jax.numpy.arange(4.0)).sum())")
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT,
                              capture_output=True, text=True, timeout=300, check=True)
        assert (done.stdout, done.stderr) == ("18.0\n", "")
        found.append({path.name for path in tmp_path.iterdir() if path.name.endswith("-cache")})
    assert found[0] and found[0] == found[1]


# ----- what is shown

@pytest.mark.parametrize("environment, terminal, styled", [
    ({"TERM": "xterm"}, True, True), ({"TERM": "xterm"}, False, False), ({"TERM": "dumb"}, True, False),
    ({"TERM": "xterm", "NO_COLOR": "1"}, True, False), ({"TERM": "xterm", "NO_COLOR": ""}, True, True)])
def test_completions_are_styled_on_a_terminal_that_wants_it(monkeypatch, environment, terminal, styled):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert sample.shows_styles() == styled


def test_expected_tokens_keep_the_terminals_own_colour_and_no_style_sets_a_shade():
    """Only red of the palette: a shade that is legible on black may be invisible on white."""
    marked = sample.mark_unexpected({"pieces": ["a", " b", "c", "\n"], "sampler_logprobs": [-0.01, -2.0, -9.0, -9.0]})
    assert marked == "a \x1b[4mb\x1b[0m\x1b[1;31mc\x1b[0m\n"  # white space is not marked


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_the_first_step_is_shown_as_compiling_and_left_out_of_the_rate(monkeypatch, capsys):
    """The first step takes 100 s and each other one 2, so at step 3 of 13, 20 s are left, not minutes."""
    clock = Clock()
    bar = log.progress(13, what="train")
    bar._time, bar.mininterval, bar.start_t, bar.last_print_t = clock, 0.0, clock.now, clock.now
    assert str(bar).rstrip() == "train: 0/13 compiling…"
    clock.now += 100
    bar.update()
    assert "train: 1/13 <?" in str(bar)
    for _ in range(2):
        clock.now += 2
        bar.update()
    assert re.search(r"train: 3/13 <00:20.* \|█+[^|]? +\|$", str(bar))  # the bar's end is visible
    bar.close()


def test_a_line_of_metrics_fits_80_columns():
    shown = "accuracy 1.00 entropy 1.23 greedy .95 sampled .91"  # in the format of runs.Run
    bar = log.progress(2000, 1200, "train")
    bar.set_postfix_str(shown, refresh=False)
    bar.update()
    text = log.tqdm.tqdm.format_meter(**bar.format_dict | {"ncols": 80, "rate": 0.2})
    bar.close()
    assert len(text) <= 80 and shown in text and "<1:06:35," in text
