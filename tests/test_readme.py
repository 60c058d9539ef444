"""README.md and BUILD.md: every command is run as it is written, on a tiny model, or named here with what it lacks; so
are the recipes; figures are those of `results/`, and the map has every file."""

import contextlib
import dataclasses
import importlib
import json
import pathlib
import re
import shlex
import shutil
from unittest import mock

import pytest
from absl import flags

from rlvr_jax import adapters, grpo, objectives, pretrain, rewards
from rlvr_jax.studies import study
from rlvr_jax.tasks import families
from scripts import cli

from helpers import ROOT
from test_problems import released, write, write_parquet

# What the commands need and the test cannot have: (pattern of the command, reason). Their flags are read all the same.
NOT_HERE = [
    (r"\bpip install\b|^make (demo|test|parity|small)|python[\d.]* -m venv", "installs packages from the network"),
    (r"git clone|^%cd|^(from|import) |^HTML\(", "cells of a notebook on another machine"),
    (r"activate", "the suite runs in an environment already"),
    (r"--run_dir=runs/gpu", "needs a GPU"), (r"--run_dir=runs/tpu", "needs a TPU"),
    (r"--coordinator_address=", "needs several hosts; tests/test_distributed.py has two processes"),
    (r"(--run_dir|--model)=runs/pi1\b", "needs published weights; tests/test_paper_command.py trains on random ones"),
    (r"scripts\.hybrid|--method=steer", "needs a base that opens some problems carefully; tests/test_hybrid.py has one"),
    (r"scripts\.study", "trains three bases from scratch, which takes an hour"),
]
TINY = ["--num_layers=1", "--d_model=16", "--num_heads=2", "--d_ff=32", "--batch_size=16"]
STEP = ["--num_steps=1", "--eval_size=8", "--noremat"]
# (pattern of the command, flags that make it small enough to run here); the first pattern found holds.
HERE = [
    (r"scripts\.plant", ["--times=1", "--num_problems=2"]),
    (r"scripts\.pretrain", [*TINY, *STEP]),
    (r"configs/tiny\.flags", [*STEP, "--example=0", "--heldout=none"]),  # auto needs a base that solves something
    (r"smollm2\.flags", [*STEP, "--model=runs/demo_base", "--prompt_style=plain", "--max_new_tokens=8",
                         "--group_size=4"]),
    (r"--num_samples=64", ["--max_problems=2"]),
    (r"scripts\.(elicit|when)", ["--max_problems=2"]),
    (r"scripts\.critique", ["--num_attempts=4"]),
    (r"scripts\.finetune", [*STEP, "--batch_size=4"]),
    (r"--probe=memory", ["--example='coins 7 + 5 * 2 - 4 * 1 + 3 - 3 ='", "--max_problems=2"]),  # 0 was not chosen
    (r"--probe=contamination", ["--max_new_tokens=8"]),
    (r"scripts\.(report|evaluate|sample|export|select_example|grade|memory|readout|probe)", []),
]


def commands(name: str) -> list[str]:
    """The lines of a document's code blocks without a language, continued lines joined; comments and ! are left out."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text("utf-8"), re.M | re.S)
    lines = "".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+# .*", "", line).strip().lstrip("!") for line in lines) if line]


COMMANDS = list(dict.fromkeys(commands("README.md") + commands("BUILD.md")))


def reason(command: str) -> str:
    """Why a command cannot run here; empty if it can."""
    return next((why for pattern, why in NOT_HERE if re.search(pattern, command)), "")


def prepared(command: str) -> tuple:
    """(main, configuration record) of `python -m scripts.X ...`, its flags read as the script reads them."""
    module, given = re.search(r"python -m (scripts\.\w+)(.*)", command).groups()
    main = importlib.import_module(module).main
    config_class = main.__annotations__["config"]
    cli.define_flags(config_class)
    try:
        assert not flags.FLAGS([module, *shlex.split(given)])[1:]
        return main, cli.parse_config(config_class)
    finally:
        for name in [field.name for field in dataclasses.fields(config_class)] + ["traceback"]:
            delattr(flags.FLAGS, name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with the flag files, and tiny files under the names that the commands give."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "DIR").symlink_to("runs/demo_base")
    for name in ("FILE", "math500", "aime24"):
        write(tmp_path / f"{name}.jsonl", {"question": "coins 7 + 5 - 3 =", "answer": 9})
    (tmp_path / "acc_step_500.json").write_text('{"3": [0, 1], "8": [1, 1]}')
    return tmp_path


def test_every_command_is_run_or_has_a_reason_not_to_be():
    assert len(COMMANDS) > 20
    unknown = [command for command in COMMANDS if not reason(command)
               and not any(re.search(pattern, command) for pattern, _ in HERE)]
    assert not unknown, "add these to HERE, or to NOT_HERE with a reason"
    assert all(any(re.search(pattern, command) for command in COMMANDS) for pattern, _ in HERE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "-m scripts." in command and reason(command)])
def test_a_command_that_cannot_run_here_has_flags_that_exist(command, folder):
    prepared(command.replace("--flagfile=... ", ""))


def test_the_commands_run_in_their_order(folder, capsys):
    for package in ("matplotlib", "math_verify", "pyarrow"):
        pytest.importorskip(package, reason="pip install 'rlvr_jax[plot,real]'")
    write_parquet(folder / "dsr_sub.parquet", released("a", "1", index=3), released("b", "2", index=8))
    done = set()
    for command in COMMANDS:
        general = re.sub(r"runs/\w+", "runs/NAME", re.sub(" +", " ", command))  # BUILD repeats some with other names
        if not reason(command) and general not in done:
            print(command)  # a failure shows which it was
            done.add(general)
            small = next(small for pattern, small in HERE if re.search(pattern, command))
            main, config = prepared(" ".join([command, *small]))
            main(config)
    printed = capsys.readouterr().out
    assert pathlib.Path("runs/demo/report.html").is_file() and "runs/demo/summary.json" in printed
    assert json.loads(pathlib.Path("runs/demo/passk/summary.json").read_text())["num_samples"] == 64
    assert len(re.findall(r"^--- \d of 4", printed, re.M)) == 4 and "3   0.25000" in printed and pathlib.Path("exported/config.json").is_file()
    assert "of 9), graded by" in printed and "one H100: " in printed  # one sample of math500's problem, 8 of aime24's


# ----- the recipes of "Add your own", the figures, the map


README = (ROOT / "README.md").read_text("utf-8")
SMALL = {"num_steps": 1, "eval_size": 8, "remat": False}


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)^## ", README, re.M | re.S)[1]


def test_the_recipes_run_as_shown_and_are_short(folder, monkeypatch):
    recipes = re.findall(r"^```python\n(.*?)^```$", section("Add your own"), re.M | re.S)
    bases = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 32, "batch_size": 16} | SMALL
    trains = SMALL | {"example": "0", "heldout": "none"}
    for module, name, small in ((grpo, "train", trains), (pretrain, "pretrain", bases)):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda config, whole=whole, small=small: whole(
            dataclasses.replace(config, **small)))
    pretrain.pretrain(pretrain.PretrainConfig(run_dir="runs/demo_base"))
    tables = rewards.REWARDS, objectives.OBJECTIVES, families.FAMILIES, adapters.ADAPTERS
    names = {}
    with contextlib.ExitStack() as restored:
        sizes = [len(restored.enter_context(mock.patch.dict(table))) for table in tables]
        for recipe in recipes:
            assert len(recipe.splitlines()) <= 15
            exec(recipe, names)
        assert [len(table) for table in tables] == [size + 1 for size in sizes]
    for run in ("novelty", "above_mean", "mod7", "attention"):
        assert json.loads((folder / "runs" / run / "summary.json").read_text())["steps"] == 1


def test_the_study_of_the_recipes_is_one(folder):
    text, = re.findall(r"^```toml\n(.*?)^```$", section("Add your own"), re.M | re.S)
    assert len(text.splitlines()) <= 15
    (folder / "random.toml").write_text(text)
    _, found = study.load("random.toml")
    for arm, reward in (("correct", "correct"), ("random", "random")):
        lines = study.commands(found, {"arm": arm, "seed": "0", "work": "runs/random"}, quick=False)
        base, rl = (prepared(f"python -m scripts.{line}")[1] for line in lines)
        assert rl.reward == reward and rl.model == base.run_dir


# (study, measure, arms) of which the README has every seed
SHOWN = [("boolean", "base, greedy", ["correct"]), ("boolean", "end, greedy", ["correct", "format"]),
         ("examples", "end, greedy", ["one", "two", "sixteen", "easy", "hard", "sums alone"]),
         ("label_free", "end, greedy", ["correct", "entropy, reward", "ttrl", "self-certainty"]),
         ("calibration", "ECE, T=1", ["correct", "calibrated"]),
         ("elicitation", "accuracy", ["base", "forced opening", "difference of means", "SAE latent", "random latent",
                                      "own correct solutions", "one-shot RL", "self-consistency", "power sampling"]),
         ("elicitation_boolean", "accuracy", ["base", "forced opening", "difference of means", "SAE latent", "one-shot RL",
                                              "own correct solutions", "power sampling"]),
         ("elicitation_smollm2", "mawps, one operation", ["greedy", "CoT-decoding of 8", "difference of means",
                                                          "forced opening"]),
         ("contamination", "AUROC, seen 3", ["leak"]), ("contamination", "AUROC, seen 10", ["leak"]),
         ("contamination", "AUROC, seen 30", ["leak"]),
         ("contamination", "right, never seen", ["leak", "leak, format"]),
         ("contamination", "right, seen 100", ["leak", "leak, random", "leak, format"]),
         ("hybrid", "hybrid", ["RL, means"]), ("hybrid", "first token", ["RL, means"]),
         ("when", "likeliest token differs, base's text", ["one example"]), ("hybrid", "random places", ["RL, means"]),
         ("long_after", "end, greedy", ["recipe", "early floor"]),
         ("boundary", "pass@1", ["base", "one", "prolonged"]),
         ("boundary", "8 operations, pass@1", ["base", "prolonged"]),
         ("boundary", "8 operations, pass@256", ["base", "prolonged"])]


def test_the_figures_are_those_of_the_results():
    record = json.loads((ROOT / "results" / "one_shot.json").read_text())
    for seed, run in (record["summaries"]["rl"] if "summaries" in record else record).items():
        pairs = [(run[end]["greedy"], run[end]["sampled"]) for end in ("base", "final")]
        then = tuple(run["after_saturation"][name]["at_saturation"] for name in ("greedy", "sampled"))
        shown = ["{:.3f} / {:.3f}".format(*pair) for pair in (pairs[0], then, pairs[1])]
        row = f"| {seed} | {shown[0]} | {run['saturation_step']} | {shown[1]} | {shown[2]} |"
        assert row in README.splitlines()[:10]
    long = json.loads((ROOT / "results" / "long_run.json").read_text())["measures"]["rl"]
    assert "peaks at {:.3f} and ends at {:.3f}".format(
        *(long[name]["seeds"][0] for name in ("peak, greedy", "end, greedy"))) in README
    read = " ".join(README.split())
    for study, measure, arms in SHOWN:
        measures = json.loads((ROOT / "results" / f"{study}.json").read_text())["measures"]
        for arm in arms:
            assert ", ".join(f"{value:.3f}" for value in measures[arm][measure]["seeds"]) in read, (study, arm)


def test_none_of_smollm2s_continuations_is_exact_as_it_says():
    page = (ROOT / "results" / "contamination_smollm2.md").read_text("utf-8")
    exact = dict(re.findall(r"^\| smollm2 \| (\w+) \| 60% \| (.* of \d+) \| .*%", page, re.M))
    exact = {name: cell.split(" | ")[0] for name, cell in exact.items()}
    assert exact == dict.fromkeys(("gsm8k", "math500", "svamp"), "0.000 [0.000, 0.037] of 100")


def test_the_map_names_every_module():
    shown = set(re.findall(r"`(\w+)/?`", section("Map of the code").split("what it knows")[1]))
    there = {path.parent.name if path.stem == "__init__" else path.stem for path in (ROOT / "rlvr_jax").rglob("*.py")}
    assert shown - {"train", "cli"} == there - {"rlvr_jax"}
