"""What a study writes from the records of its runs."""

import json

import pytest

from rlvr_jax import studies
from rlvr_jax.config import StudyConfig, UserError


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
        "| 3 | 512 | 0.350 / 0.250 | never | - | - | - | - | 0.990 |", "",
        "Mean at the end: greedy 0.500, T=1 0.400, over 2 seeds."]
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}


def test_a_study_runs_the_commands_of_a_user_and_writes_three_files(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pip install 'rlvr_jax[plot]'")
    commands = []

    def script(name, *flags):
        commands.append((name, *flags))
        run_dir = tmp_path / "work" / f"rl{flags[1].removeprefix('--seed=')}"
        if name == "train":
            run_dir.mkdir(parents=True)
            rows = [{"step": step, "train/accuracy": 0.5, "eval/greedy": 0.4, "eval/sampled": 0.3} for step in (1, 2)]
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (run_dir / "summary.json").write_text(json.dumps(SUMMARIES[run_dir.name[2:]]))

    monkeypatch.setattr(studies, "script", script)
    out = studies.run(StudyConfig(seeds=(0, 3), work_dir=str(tmp_path / "work"), out=str(tmp_path / "results")))
    assert [(name, flags[0], flags[1]) for name, *flags in commands] == [
        (name, f"--flagfile=configs/{file}.flags", f"--seed={seed}")
        for seed in (0, 3) for name, file in (("pretrain", "tiny_base"), ("train", "tiny"))]
    assert json.loads((tmp_path / "results" / "one_shot.json").read_text()) == SUMMARIES
    text = out.read_text()
    assert "`python -m scripts.study --study=one_shot --seeds=0,3`" in text and text.endswith("![curves](one_shot.png)\n")
    assert (tmp_path / "results" / "one_shot.png").read_bytes().startswith(b"\x89PNG")


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
