"""What every command does before its own work: numbers within bounds, compiled programs kept, styles of a terminal."""

import dataclasses
import importlib
import pathlib
import re
import subprocess
import sys
import typing

import jax
import pytest

import rlvr_jax.config
from rlvr_jax.runs import log
from scripts import cli
from scripts import sample

CONFIGS = [value for name, value in vars(rlvr_jax.config).items()
           if name.endswith("Config") and name not in ("ModelConfig", "Config")]
ROOT = pathlib.Path(__file__).parents[1]
NUMBERS = [(config, field) for config in CONFIGS for field in dataclasses.fields(config)
           if any(kind in (int, float) for kind in (typing.get_type_hints(config)[field.name],
                                                    *typing.get_args(typing.get_type_hints(config)[field.name])))]


def parser(kind, many=False, **bounds) -> cli.Number:
    return cli.Number(kind, many, bounds)


@pytest.mark.parametrize("config, field", NUMBERS, ids=lambda x: getattr(x, "__name__", getattr(x, "name", None)))
def test_every_number_has_a_least_value_and_its_default_is_within_bounds(config, field):
    bounds = field.metadata["bounds"]
    assert bounds.keys() & {"minimum", "above"} and bounds.keys() <= cli.BOUNDS.keys()
    if field.default is not None:
        assert parser(float, isinstance(field.default, tuple), **bounds).parse(field.default) == field.default


@pytest.mark.parametrize("bounds, right, wrong", [
    ({"minimum": 0, "below": 1}, ["0", "0.999"], ["-1e-9", "1", "nan", "inf", "-inf", "x", "", "0,0"]),
    ({"above": 0, "maximum": 1}, ["1e-9", "1"], ["0", "1.001", "nan"]),
    ({"minimum": 0}, ["0", "1e9"], ["-1", "inf"])])
def test_bounds_are_what_their_names_say(bounds, right, wrong):
    assert [parser(float, **bounds).parse(text) for text in right] == [float(text) for text in right]
    for text in wrong:
        with pytest.raises(ValueError, match="not a finite number >"):
            parser(float, **bounds).parse(text)


def test_every_number_of_a_list_is_held_to_the_bounds():
    assert parser(int, True, minimum=0).parse("3,0") == (3, 0)
    for text in ("", "1,", "1,-1", "1.5", "a"):
        with pytest.raises(ValueError, match="not whole numbers >= 0, joined by commas"):
            parser(int, True, minimum=0).parse(text)


@pytest.mark.parametrize("flag, allowed", [
    ("learning_rate=-1", ">= 0"), ("max_grad_norm=0", "> 0"), ("adam_b1=2", ">= 0 and < 1"), ("clip_low=-3", ">= 0"),
    ("weight_decay=-1", ">= 0"), ("kl_coef=-1", ">= 0"), ("temperature=0", "> 0"), ("learning_rate=nan", ">= 0"),
    ("example_pass_rate=1.1", ">= 0 and <= 1"), ("seed=-1", ">= 0 and <= 2147483647")])
def test_training_refuses_a_number_out_of_bounds(flag, allowed):
    name, value = flag.split("=")
    field = {field.name: field for field in dataclasses.fields(rlvr_jax.config.TrainConfig)}[name]
    kind = int if isinstance(field.default, int) else float
    with pytest.raises(ValueError, match=f"number {allowed}$"):
        parser(kind, **field.metadata["bounds"]).parse(value)


# ----- choices


TABLES = sorted({field.metadata["table"] for config in CONFIGS for field in dataclasses.fields(config)} - {""})


@pytest.mark.parametrize("table", TABLES)
def test_a_flag_offers_the_rows_of_its_table_and_says_what_they_mean(table):
    module, _, name = table.rpartition(".")
    rows = getattr(importlib.import_module(f"rlvr_jax.{module}"), name)
    known = cli.table_rows(table)
    assert list(known) == list(rows)
    for row, means in known.items():
        assert not callable(rows[row]) or means and " ".join(rows[row].__doc__.split()).startswith(means)


def test_config_types_no_name_that_a_table_holds_among_the_choices():
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            if field.metadata["table"]:
                assert not set(field.metadata["choices"]) & cli.table_rows(field.metadata["table"]).keys(), field.name


def test_help_explains_a_choice_and_a_value_that_is_none_is_refused_with_the_rows():
    def train(flag):
        return subprocess.run([sys.executable, "-m", "scripts.train", flag], cwd=ROOT, capture_output=True, text=True)
    help = " ".join(train("--help").stdout.split())
    assert "<constant|linear|cosine>" in help and "cosine: Half a cosine from the peak" in help
    assert "format: 1 if there is an answer to extract" in help
    assert "value should be one of <one_shot|grpo|" in train("--objective=ppo").stderr


# ----- compiled programs


@pytest.fixture
def settings():
    """What JAX is told, put back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_enable_compilation_cache",
             "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda: jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache_folder_and_take_a_bounded_room(tmp_path, monkeypatch, settings):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.keep_programs("auto")
    assert settings() == str(tmp_path / "rlvr_jax" / "jax") and (tmp_path / "rlvr_jax" / "jax").is_dir()
    assert 0 < jax.config.jax_compilation_cache_max_size < 10**9
    cli.keep_programs(str(tmp_path / "mine"))
    assert settings() == str(tmp_path / "mine")
    cli.keep_programs("none")
    assert settings() is None


def test_a_folder_named_in_the_environment_is_left_as_it_is(tmp_path, monkeypatch, settings):
    before = settings()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))  # which JAX itself has read
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "usual"))
    cli.keep_programs("auto")
    assert settings() == before and not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_made_is_done_without_unless_it_was_asked_for(tmp_path, monkeypatch, settings):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = settings()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cli.keep_programs("auto")
    assert settings() == before
    with pytest.raises(OSError):
        cli.keep_programs(str(tmp_path / "file" / "mine"))


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    """Bounded, as the command line has it; JAX would refuse the bound without filelock."""
    code = ("import jax, sys; from scripts import cli; cli.keep_programs(sys.argv[1])\n"
            "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
            "print(jax.jit(lambda x: x * 3)(jax.numpy.arange(4.0)).sum())")
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=pathlib.Path(__file__).parents[1],
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
    assert sample.styled() == styled


def test_expected_tokens_keep_the_terminals_own_colour_and_no_style_sets_a_shade():
    """No colour but red of the palette: a shade that is right on black is invisible on white."""
    marked = sample.marked({"pieces": ["a", " b", "c", "\n"], "sampler_logprobs": [-0.01, -2.0, -9.0, -9.0]})
    assert marked == "a \x1b[4mb\x1b[0m\x1b[1;31mc\x1b[0m\n"  # space is no part of what is marked


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_the_first_step_is_shown_as_compiling_and_left_out_of_the_rate(monkeypatch, capsys):
    """A first step of 100 s and others of 2: at step 3 of 13 there are 20 s left, not minutes."""
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
    assert re.search(r"train: 3/13 <00:20.* \|█+[^|]? +\|$", str(bar))  # a bar that shows its end
    bar.close()


def test_a_line_of_metrics_fits_80_columns():
    shown = "accuracy 1.00 entropy 1.23 greedy .95 sampled .91"  # as runs.Run writes them
    bar = log.progress(2000, 1200, "train")
    bar.set_postfix_str(shown, refresh=False)
    bar.update()
    text = log.tqdm.tqdm.format_meter(**bar.format_dict | {"ncols": 80, "rate": 0.2})
    bar.close()
    assert len(text) <= 80 and shown in text and "<1:06:35," in text
