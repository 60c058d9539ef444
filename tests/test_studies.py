"""What a study writes from the records of its runs."""

import dataclasses
import json
import pathlib

import pytest

from rlvr_jax import arithmetic, studies
from rlvr_jax.config import PretrainConfig, StudyConfig, TrainConfig, UserError


def summary(greedy, sampled, solved=True):
    """Of a run whose held-out accuracies are (base, at saturation, peak, end)."""
    keys = ("at_saturation", "peak", "end")
    return {"base": {"greedy": greedy[0], "sampled": sampled[0], "n": 512},
            "final": {"greedy": greedy[3], "sampled": sampled[3], "n": 512},
            "after_saturation": {"greedy": dict(zip(keys, greedy[1:])), "sampled": dict(zip(keys, sampled[1:]))}
            if solved else {}, "saturation_step": 7 if solved else None, "train_accuracy": 0.99}


SUMMARIES = {"0": summary((0.25, 0.5, 0.75, 0.7), (0.2, 0.4, 0.6, 0.6)),
             "3": summary((0.35, 0, 0, 0.3), (0.25, 0, 0, 0.2), solved=False)}


def test_the_table_has_a_row_a_seed_and_the_mean():
    lines = studies.one_shot_table(SUMMARIES, "where from")
    assert lines[2] == "where from"
    assert lines[-4:] == [
        "| 0 | 512 | 0.250 / 0.200 | 7 | 0.500 / 0.400 | 0.750 / 0.600 | 0.700 / 0.600 | +0.200 / +0.200 | 0.990 |",
        "| 3 | 512 | 0.350 / 0.250 | None | - | - | - | - | 0.990 |", "",
        "Mean at the end: greedy 0.500, T=1 0.400, over 2 seeds."]
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}


@pytest.fixture
def commands(monkeypatch):
    """The scripts that a study runs, as (name, *flags), in place of running them; each run leaves its directory."""
    pytest.importorskip("matplotlib", reason="pip install 'rlvr_jax[plot]'")
    found = []

    def script(name, *flags):
        found.append((name, *flags))
        run_dir, = (pathlib.Path(flag.removeprefix("--run_dir=")) for flag in flags if flag.startswith("--run_dir="))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "flags.txt").touch()
        if name == "train":
            rows = [{"step": step, "train/accuracy": 0.5, "eval/greedy": 0.4, "eval/sampled": 0.3} for step in (1, 2)]
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (run_dir / "summary.json").write_text(json.dumps(SUMMARIES[run_dir.name[2:]]))

    monkeypatch.setattr(studies, "script", script)
    return found


def test_a_study_runs_the_commands_of_a_user_and_writes_three_files(tmp_path, commands):
    out = studies.run(StudyConfig(seeds=(0, 3), work_dir=str(tmp_path / "work"), out=str(tmp_path / "results")))
    assert [(name, flags[0], flags[1]) for name, *flags in commands] == [
        (name, f"--flagfile=configs/{file}.flags", f"--seed={seed}")
        for seed in (0, 3) for name, file in (("pretrain", "tiny_base"), ("train", "tiny"))]
    assert json.loads((tmp_path / "results" / "one_shot.json").read_text()) == SUMMARIES
    text = out.read_text()
    assert "`python -m scripts.study --study=one_shot --seeds=0,3`" in text and text.endswith("![curves](one_shot.png)\n")
    assert (tmp_path / "results" / "one_shot.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_results_are_overwritten_only_where_out_names_them(tmp_path, monkeypatch, commands):
    monkeypatch.chdir(tmp_path)
    published = tmp_path / "results" / "one_shot.md"
    published.parent.mkdir()
    published.write_text("as published")
    assert studies.run(StudyConfig(seeds=(0,))) == pathlib.Path("runs/one_shot/results/one_shot.md")
    assert published.read_text() == "as published"
    assert studies.run(StudyConfig(seeds=(0,), out="results")).resolve() == published
    assert "--seeds=0`" in published.read_text()


def test_a_quick_study_is_one_seed_with_fewer_steps_and_says_so_in_what_it_writes(tmp_path, monkeypatch, commands):
    monkeypatch.chdir(tmp_path)
    out = studies.run(StudyConfig(quick=True, seeds=(3, 0), out="results"))
    assert [(name, flags[1]) for name, *flags in commands] == [("pretrain", "--seed=3"), ("train", "--seed=3")]
    assert "--num_steps=700" in commands[0] and "--num_steps=60" in commands[1]
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "one_shot_quick.json", "one_shot_quick.md", "one_shot_quick.png"]
    assert "--study=one_shot --seeds=3 --quick`" in out.read_text() and "Not a result." in out.read_text()
    assert (tmp_path / "runs" / "one_shot_quick" / "rl3").is_dir()
    with pytest.raises(UserError, match="--quick is for --study=one_shot"):
        studies.run(StudyConfig(study="smollm2", quick=True, data="DIR"))


def test_a_page_names_the_runs_that_were_there_before(tmp_path, commands):
    config = StudyConfig(seeds=(0,), work_dir=str(tmp_path))
    assert "before" not in studies.run(config).read_text()
    more = studies.run(dataclasses.replace(config, seeds=(0, 3))).read_text()
    assert "Begun or finished before, perhaps at another commit: base0, rl0." in more


def test_the_runs_of_a_quick_study_fit_each_other():
    base, trained = ({name.removeprefix("--"): int(value) for name, value in (flag.split("=") for flag in flags)}
                     for flags in (studies.QUICK["pretrain"], studies.QUICK["train"]))
    PretrainConfig(**base), TrainConfig(**trained)  # they are flags of the two scripts
    assert base["num_ops"] == trained["num_ops"]
    assert trained["max_new_tokens"] == arithmetic.solution_length(base["num_ops"])


def measured(accuracy, gain):
    one = {"n": 200, "accuracy": accuracy, "interval": (accuracy - 0.02, accuracy + 0.03), "truncated": 0.25,
           "graded_by": "lenient / math", "gain": gain, "gain_interval": (gain - 0.01, gain + 0.01)}
    return {name: one for name in studies.BENCHMARKS}


def test_the_language_model_is_held_against_its_base_and_a_control():
    rows = [{"step": 0}] + [{"step": step, "train/reward_mean": step / 10, "train/accuracy": 0.5, "train/entropy": 1.0,
                             "train/completion_length": 40 + step} for step in range(1, 11)]
    ends = studies.training_ends(rows)
    assert ends == {"steps": 10, "reward_mean": pytest.approx([0.3, 0.8]), "accuracy": [0.5, 0.5],
                    "entropy": [1.0, 1.0], "completion_length": [43.0, 48.0]}
    lines = studies.smollm2_table({"base": {"benchmarks": measured(0.05, 0.0), "training": {"steps": 0}},
                                   "correct": {"benchmarks": measured(0.11, 0.06), "training": ends},
                                   "format": {"benchmarks": measured(0.04, -0.01), "training": ends}}, "where from")
    cells = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert cells[1][:2] == ["| base", "0.050 [0.030, 0.080]"]
    assert cells[2][:2] == ["| correct", "0.110 [0.090, 0.140], +0.060 [+0.050, +0.070]"] and cells[2][-1] == "25.0% |"
    assert cells[3][2] == "0.040 [0.020, 0.070], -0.010 [-0.020, +0.000]"
    assert cells[-1][1:] == ["10", "0.3 -> 0.8", "0.5 -> 0.5", "43 -> 48", "1 -> 1 |"]
    assert "200 problems each, graded by lenient / math." in lines


def test_the_study_of_a_language_model_needs_its_data():
    with pytest.raises(UserError, match="--data is required: the directory with gsm8k.jsonl"):
        studies.run(StudyConfig(study="smollm2"))
