"""A study's file is judged whole before its first command: a slip of the pen never runs the control twice."""

import json
import pathlib

import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import commands, study
from rlvr_jax.lab.studies.study import StudyConfig
from scripts import cli, study as door

from fixtures import STUDY


@pytest.fixture
def written(tmp_path):
    """A config of the study of fixtures.py, with some text replaced."""
    def write(old="", new=""):
        assert old in STUDY
        (tmp_path / "coin.toml").write_text(STUDY.replace(old, new, 1))
        return StudyConfig(study=str(tmp_path / "coin.toml"), work_dir=str(tmp_path / "work"))
    return write


@pytest.fixture
def ran(monkeypatch):
    """The commands that would have run; each writes a summary."""
    lines = []
    def script(line, *more):
        lines.append(line)
        for folder in [pathlib.Path(word[10:]) for word in line.split() if word.startswith("--run_dir=")]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps({"final": {"greedy": .5}, "base": {"greedy": None}}))
    monkeypatch.setattr(commands, "script", script)
    return lines


@pytest.mark.parametrize("old, new, said", [
    ('rl = ["--reward=a b"]', 'lr = ["--reward=a"]', "arm bent: nothing reads lr; there are the commands base, rl"),
    ('rl = ["--reward=a b"]', 'rl = "--reward=format"', "arm bent: rl is a command; write its flags"),
    ('[quick]\nrl', '[quick]\nlr', r"\[quick\]: nothing reads lr; there are the commands base, rl"),
    ('end = "{arm}{seed}/summary', 'end = "run{seed}/summary', "measure end: no command writes WORK/run0/summary.json; "
                                                               "they write WORK/base0, WORK/bent0, WORK/plain0"),
    ('end = "{arm}{seed}/summary', 'end = "{arm}}{seed}/summary', "the study's '{arm}}.*': Single '}' encountered"),
    ('end = "{arm}{seed}/summary', 'end = "{arm}{}/summary', "the study's .*: braces hold a name alone, such as {seed}"),
    ('end = "{arm}{seed}/summary', 'end = "{arm}{seed:>9}/summary', "the study's .*: braces hold a name alone")])
def test_a_slip_of_the_pen_is_named_with_what_is_allowed(written, ran, old, new, said):
    config = written(old, new)
    with pytest.raises(UserError, match=f"coin.toml: {said}"):
        study.run(config)
    assert not ran


@pytest.mark.parametrize("old, new, said", [
    ('"train --seed', '"train --sed', "Unknown command line flag 'sed'"),
    ('"--reward=a b"', '"--learning_rate=fast"', "flag --learning_rate=fast"),
    ('"--reward=a b"', '"--objective=grop"', "--objective"),
    ('"train --seed', '"tain --seed', "there is no script tain"),
    ('"train --seed', f'"{"tain" * 99} --seed', "there is no script taintain"),  # no file name is so long
    ('"--reward=a b"', '"reward"', "unexpected argument 'reward'")])
def test_a_command_with_a_wrong_flag_stops_a_study_before_its_first(written, ran, old, new, said):
    with pytest.raises(UserError, match=said):
        study.run(written(old, new), cli.check_command)
    assert not ran


def test_a_number_that_is_in_none_of_the_files_is_named_with_what_is_there(written, ran):
    config = written("final.greedy", "final.gredy")
    with pytest.raises(UserError, match=r"measure end: .*has no 'gredy' of 'final.gredy' there; it has greedy"):
        study.run(config)
    assert study.run(written()).is_file()  # where it is null there is none, and that is known


def test_a_dry_run_prints_the_commands_and_the_time_that_those_left_take(written, ran, tmp_path, capsys):
    config = written()
    dry = StudyConfig(**vars(config) | {"dry_run": True, "jobs": 2})
    door.main(dry)
    first = capsys.readouterr().out.splitlines()
    assert not ran and len(first) == 11 and all("python -m scripts." in line for line in first[:9])
    assert first[9] == "9 commands, 0 finished; to run: 3 pretrain, 6 train"
    assert first[10].startswith("the time of pretrain, train is not known before one has run in ")
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    done = [line.split("scripts.", 1)[1] for line in first if "--run_dir=" + str(work / "base") in line]
    (work / "finished.txt").write_text("\n".join([*done, "# seconds: 40.0 pretrain", "# seconds: 20.0 train",
                                                  "# seconds: 40.0 train"]) + "\n")
    door.main(dry)
    told = capsys.readouterr().out.splitlines()
    assert told[9:] == ["9 commands, 3 finished; to run: 6 train", "about 2 min with --jobs=2"]  # 6 x 30 s by two
    assert sum(line.startswith("finished") for line in told) == 3


def test_the_time_of_each_command_is_noted(written, ran, tmp_path):
    study.run(written())
    notes = (tmp_path / "work" / "finished.txt").read_text().splitlines()
    assert [line.split()[-1] for line in notes if line.startswith("# seconds: ")] == [
        line.split()[0] for line in notes if not line.startswith("#")]


def test_an_arm_may_have_fewer_seeds_than_the_study(written, ran, tmp_path):
    record = json.loads(study.run(written("[arms.bent]", "[arms.bent]\nseeds = [0, 2]")).with_suffix(".json").read_text())
    end = {arm: record["measures"][arm]["end"] for arm in ("plain", "bent")}
    assert end["plain"]["seeds"] == [.5, .5, .5] and end["bent"]["seeds"] == [.5, None, .5]
    assert end["bent"]["difference"]["seeds"] == [0, None, 0]
    assert not [line for line in ran if "bent1" in line] and [line for line in ran if "bent2" in line]
    study.run(StudyConfig(**vars(written()) | {"seeds": (7,)}))  # seeds that the file does not have
    assert [line.split("/")[-1] for line in ran[-3:]] == ["base7", "plain7", "bent7 '--reward=a b'"]


@pytest.mark.parametrize("wrong", ["[0, 7]", "[]", "2"])
def test_seeds_of_an_arm_are_some_of_the_studys(written, wrong):
    with pytest.raises(UserError, match="arm bent: seeds: write some of the study's, as in seeds = "):
        study.run(written("[arms.bent]", f"[arms.bent]\nseeds = {wrong}"))
