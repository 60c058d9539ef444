"""The bank of bases, bases and examples and seeds that are crossed, and commands that run side by side."""

import json
import os
import pathlib
import shlex
import signal
import threading
import time

import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import bank, commands, statistics, study
from rlvr_jax.lab.studies.study import StudyConfig

from fixtures import ROOT, wait_for

STUDY = '''
title = "A coin"
question = "Is it fair?"
known = "Nothing."
seeds = {seeds}
{more}
[commands]
base = "pretrain --seed={{base}} --num_steps=2 --num_layers=1 --d_model=16 --d_ff=16 --eval_size=8 --run_dir={{bank}}"
rl = "evaluate --model={{bank}} --max_problems=4 --out={{work}}/{{arm}}{{base}}_{{example}}_{{seed}}"
[arms.plain]
[arms.bent]
rl = ["--temperature=1"]
[measures]
end = "{{arm}}{{base}}_{{example}}_{{seed}}/summary.json: accuracy"
[[rules]]
says = "high"
arm = "bent"
measure = "end"
above = 0.5
'''


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`write(name, seeds, more) -> StudyConfig`; every study has the bank tmp_path/bank."""
    monkeypatch.chdir(ROOT)

    def write(name, seeds="[0]", more=""):
        (tmp_path / f"{name}.toml").write_text(STUDY.format(seeds=seeds, more=more))
        return StudyConfig(study=str(tmp_path / f"{name}.toml"), work_dir=str(tmp_path / name),
                           bank=str(tmp_path / "bank"))

    return write


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Commands that ran, with their shares; a base takes a while, and an evaluation gives a number by its name."""
    ran = []

    def script(line, share=None, quiet=None, holding=None):
        ran.append((line, share))
        time.sleep(0.1)
        for word in shlex.split(line):
            if word.startswith("--run_dir="):
                pathlib.Path(word[10:]).mkdir(exist_ok=True)
            if word.startswith("--out="):
                folder = pathlib.Path(word[6:])
                folder.mkdir(parents=True)
                base, example = map(int, folder.name[5 if "plain" in folder.name else 4 :].split("_")[:2])
                (folder / "summary.json").write_text(json.dumps({"accuracy": 0.1 * base + 0.01 * example}))

    monkeypatch.setattr(commands, "script", script)
    monkeypatch.setattr(bank, "digest", lambda base: "f00d")
    return ran


# ----- its names

def test_a_base_is_named_by_its_flags_and_the_code_it_depends_on(tmp_path, monkeypatch):
    root = tmp_path / "copy"
    for path, text in {"scripts/make.py": "def main():\n    from rlvr_jax.tasks import one\n",
                       "rlvr_jax/other.py": "a = 1\n", "rlvr_jax/two.py": "y = 2\n",
                       "rlvr_jax/tasks/one.py": "from rlvr_jax import two\n\nx = 1\n"}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "flags").write_text("# a remark\n--num_steps=3\n")
    monkeypatch.setattr(bank, "ROOT", root)

    def name(command=f"make --flagfile={root}/flags --seed=0 --run_dir={{bank}}"):
        bank.code.cache_clear()
        return bank.place("bank", command).name

    first = name()
    assert first.startswith("make-") and name() == first
    for path, text in (("rlvr_jax/other.py", "a = 2\n"), ("flags", "# another remark\n\n--num_steps=3\n"),
                       ("rlvr_jax/two.py", '"""A docstring."""\n\ny = 2  # and a comment\n')):
        (root / path).write_text(text)
        assert name() == first
    names = [first]
    for path, text in (("rlvr_jax/two.py", "y = 3\n"), ("flags", "--num_steps=4\n"),
                       ("scripts/make.py", "def main():\n    from rlvr_jax import other\n"),
                       ("scripts/make.py", 'main = page("rlvr_jax.other.f")\n'), ("rlvr_jax/other.py", "a = 3\n")):
        (root / path).write_text(text)
        names.append(name())
    names.append(name(f"make --flagfile={root}/flags --seed=1 --run_dir={{bank}}"))
    assert len(set(names)) == len(names)
    monkeypatch.setattr(bank.jax, "__version__", "0.0")
    assert name() not in names
    with pytest.raises(UserError, match="--flagfile=none.flags: No such file"):
        name("make --flagfile=none.flags --run_dir={bank}")
    bank.code.cache_clear()


def test_the_code_of_a_base_is_what_the_script_can_reach():
    seen, unread = set(), {ROOT / "scripts" / "pretrain.py"}
    while unread:
        seen |= unread
        unread = {found for path in unread for found in bank.imported(path)} - seen
    names = {path.relative_to(ROOT).as_posix() for path in seen}
    assert {"rlvr_jax/model.py", "rlvr_jax/tasks/arithmetic.py", "rlvr_jax/training/pretrain.py"} <= names
    assert not {name for name in names if name.startswith(("rlvr_jax/lab/", "rlvr_jax/rewards/"))}


# ----- one base for all

def test_arms_and_studies_share_a_base_and_the_record_has_its_digest(written, fake, tmp_path):
    study.run(written("one"))
    study.run(written("two", "[0, 1]"))
    made = [line for line, _ in fake if line.startswith("pretrain")]
    assert len(made) == 2 and len(fake) == 2 + 2 + 4
    record = json.loads((tmp_path / "two" / "results" / "two.json").read_text())
    names = sorted(path.name for path in (tmp_path / "bank").iterdir() if path.suffix != ".lock")
    assert names == sorted(record["bank"])
    assert [base["digest"] for base in record["bank"].values()] == ["f00d"] * 2
    assert all(base["command"].endswith("--run_dir={bank}") for base in record["bank"].values())


def test_a_base_that_is_lost_is_made_again_though_the_study_had_finished(written, fake, tmp_path):
    config = written("one")
    study.run(config)
    for note in (tmp_path / "bank").rglob(bank.NOTE):
        note.unlink()
    study.run(config)
    assert [line.split()[0] for line, _ in fake] == ["pretrain", "evaluate", "evaluate", "pretrain"]


def test_two_studies_side_by_side_make_the_base_once(written, fake, tmp_path, capfd):
    configs = [written("one"), written("two")]
    threads = [threading.Thread(target=study.run, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(line.startswith("pretrain") for line, _ in fake) == 1 and len(fake) == 5
    assert "waiting for it" in capfd.readouterr().err
    assert all((tmp_path / name / "results" / f"{name}.json").is_file() for name in ("one", "two"))


def test_the_base_of_a_study_that_was_killed_is_waited_for_and_taken(written, tmp_path, launch, capfd):
    """The command of the killed study lives on and holds the lock; then the other study finishes the base."""
    config, other = written("one"), written("two")
    process = launch("study", f"--study={config.study}", f"--work_dir={config.work_dir}", f"--bank={config.bank}")
    bases = tmp_path / "bank"
    wait_for(lambda: [path for path in bases.glob("*/lock.txt") if path.parent.suffix != ".lock"], process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study.run(other)
    told = capfd.readouterr().err
    assert "waiting for it" in told
    base, = [path for path in bases.iterdir() if path.suffix != ".lock"]
    record = json.loads((tmp_path / "two" / "results" / "two.json").read_text())
    assert record["bank"][base.name]["digest"] == bank.digest(base) and len(bank.digest(base)) == 16
    rows = (base / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows][-1] == 2 and len(rows) == len(set(rows))


def test_the_digest_is_of_the_parameters(tmp_path, monkeypatch):
    trees = {"a": {"w": np.zeros(2), "v": np.ones(2)}, "b": {"v": np.ones(2), "w": np.zeros(2)},
             "c": {"w": np.ones(2), "v": np.zeros(2)}, "d": {"x": np.zeros(2), "v": np.ones(2)}}
    monkeypatch.setattr(bank.checkpoint, "restore_model", lambda name: (None, trees[pathlib.Path(name).name], {}))
    a, b, c, d = (bank.digest(tmp_path / name) for name in trees)
    assert a == b and len({a, c, d}) == 3  # under other names the same numbers are another model


def test_a_study_that_uses_the_bank_before_it_makes_a_base_is_refused(written, tmp_path):
    config = written("one")
    path = pathlib.Path(config.study)
    path.write_text(path.read_text().replace("--run_dir={bank}", "--run_dir={work}/base"))
    with pytest.raises(UserError, match="the first one with {bank} makes the base model: it needs --run_dir={bank}"):
        study.load(config.study)


# ----- bases, examples and seeds

def test_crossed_bases_are_what_is_independent(written, fake, tmp_path, capsys):
    config = written("one", "[7]", "bases = [1, 2, 3]\nexamples = [0, 4]\ncrossed = true\ncontrol = 'plain'")
    text = study.run(config).read_text()
    assert sum(line.startswith("pretrain") for line, _ in fake) == 3 and len(fake) == 3 + 12
    record = json.loads((tmp_path / "one" / "results" / "one.json").read_text())
    end = record["measures"]["bent"]["end"]
    assert record["seeds"] == [f"base {base}, example {example}" for base in (1, 2, 3) for example in (0, 4)]
    np.testing.assert_allclose(end["seeds"], [.1, .14, .2, .24, .3, .34])
    np.testing.assert_allclose(end["of_bases"], [.12, .22, .32])
    large = written("two", "[7, 8]", "bases = [1, 2, 3, 4]\nexamples = [0, 4, 5, 6]\ncrossed = true")
    study.run(StudyConfig(**vars(large) | {"quick": True, "dry_run": True}))
    assert "\n21 commands, 3 finished" in capsys.readouterr().out  # 3 bases, with 3 examples each for two arms
    np.testing.assert_allclose(end["interval"], statistics.interval([.12, .22, .32], (0, 1)))  # not of six values
    assert record["units"][1] == {"base": 1, "example": 4, "seed": 7} and "3 base models" in text
    rule, = record["rules"]
    np.testing.assert_allclose(rule["interval"], end["interval"])


def test_variances_of_crossed_bases_and_examples_are_measures(written, fake, tmp_path):
    """The fake accuracy is .1 a base and .01 an example: all of its variance is theirs."""
    config = written("one", "[7]", "bases = [1, 2, 3, 4]\nexamples = [0, 4, 6]\ncrossed = true")
    path = pathlib.Path(config.study)
    path.write_text(path.read_text().replace("[[rules]]", '''"of base" = ["variance of the base", "end"]
"of example" = ["variance of the example", "end"]
"of the rest" = ["variance of the rest", "end"]
"base less example" = ["-", "of base", "of example"]
[[rules]]'''))
    study.run(config)
    measures = json.loads((tmp_path / "one" / "results" / "one.json").read_text())["measures"]["plain"]
    np.testing.assert_allclose(measures["of base"]["mean"], np.var([.1, .2, .3, .4], ddof=1))
    np.testing.assert_allclose(measures["of example"]["mean"], np.var([0, .04, .06], ddof=1))
    np.testing.assert_allclose(measures["of the rest"]["mean"], 0, atol=1e-12)
    np.testing.assert_allclose(measures["base less example"]["mean"],
                               np.var([.1, .2, .3, .4], ddof=1) - np.var([0, .04, .06], ddof=1))
    assert len(measures["base less example"]["of_bases"]) == 4
    path.write_text(path.read_text().replace("examples = [0, 4, 6]", "examples = [0, 4]"))
    with pytest.raises(UserError, match="measure of base: variances need crossed = true, and three bases and examples"):
        study.load(config.study)


def test_a_base_may_be_that_of_several_seeds(written, fake, tmp_path):
    study.run(written("one", "[0, 1, 2]", "bases = [5, 5, 6]"))
    record = json.loads((tmp_path / "one" / "results" / "one.json").read_text())
    assert sum(line.startswith("pretrain") for line, _ in fake) == 2 and record["seeds"] == [0, 1, 2]
    np.testing.assert_allclose(record["measures"]["bent"]["end"]["of_bases"], [(.5 + .51) / 2, .62])


@pytest.mark.parametrize("more, wrong", [
    ("examples = [0]", "examples: write a list with one number for each of `seeds`, in their order"),
    ('crossed = true\nsuccess = {measure = "end", above = 0.5}', "success: leave it out")])
def test_a_design_that_cannot_be_is_refused(written, more, wrong):
    with pytest.raises(UserError, match=wrong):
        study.load(written("one", "[0, 1]", more).study)


# ----- side by side

def test_jobs_run_side_by_side_each_after_its_base(written, fake, monkeypatch):
    order, script = [], commands.script

    def noted(line, *more, **options):
        order.append((1, line))
        script(line, *more, **options)
        order.append((-1, line))

    monkeypatch.setattr(commands, "script", noted)
    monkeypatch.setattr(commands, "shares", lambda jobs: [{"cores": [core]} for core in range(jobs)])
    study.run(StudyConfig(**vars(written("one", "[0, 1, 2]")) | {"jobs": 2}))
    assert np.cumsum([change for change, _ in order]).max() == 2 and len(order) == 2 * 9
    for number, (change, line) in enumerate(order):
        if change == 1 and line.startswith("evaluate"):
            base = shlex.split(line)[1].split("=")[1]
            assert any(kind == -1 and f"--run_dir={base}" in made for kind, made in order[:number])


def test_a_failure_waits_for_what_runs_and_starts_nothing(capsys):
    ended = []

    def run(line, place):
        if line == "b":
            raise UserError("b failed")
        time.sleep(0.3)
        ended.append(line)

    with pytest.raises(UserError, match="b failed"):
        commands.side_by_side(["evaluate --out=a", "b", "c", "d"], dict.fromkeys(("evaluate --out=a", *"bcd"), set()),
                              [{"cores": [0]}, {"cores": [1]}], run, 0)
    assert ended == ["evaluate --out=a"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a process choose its cores")
def test_commands_side_by_side_have_cores_of_their_own_and_print_to_a_log(tmp_path, monkeypatch):
    """Their threads stay on these cores; the thread of the test itself keeps all."""
    mine = os.sched_getaffinity(0)
    monkeypatch.setattr(commands.sys, "executable", "echo")
    thread = threading.Thread(target=commands.script, args=(
        "train --run_dir=w/one", {"cores": [min(mine)]}, tmp_path / "logs"))
    thread.start()
    thread.join()
    assert os.sched_getaffinity(0) == mine
    assert (tmp_path / "logs" / "train_one.log").read_text() == "-m scripts.train --run_dir=w/one\n"
    monkeypatch.setattr(commands.sys, "executable", "false")
    with pytest.raises(UserError, match="its message is at the end of .*train_one.log"):
        commands.script("train --run_dir=w/one", {}, tmp_path / "logs")


def test_every_job_has_a_share_of_the_cores_or_a_gpu(monkeypatch):
    monkeypatch.setattr(commands.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(commands.pathlib.Path, "glob", lambda *_: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert commands.shares(1) == [{}]
    assert commands.shares(2) == [{"cores": [0, 2, 4]}, {"cores": [1, 3]}]
    with pytest.raises(UserError, match="--jobs=6: .*one of the cores .*this machine has 5; give --jobs=5"):
        commands.shares(6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert [share["gpu"] for share in commands.shares(2)] == ["2", "3"]
    with pytest.raises(UserError, match="GPUs to itself, and this machine has 2"):
        commands.shares(3)
