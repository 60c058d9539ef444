"""A planted benchmark, and the texts of it that pre-training sees."""

import collections
import json

import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.lab.probes.leaked_benchmark import PlantConfig, plant_benchmark
from rlvr_jax.runs import flags
from rlvr_jax.tasks import families
from rlvr_jax.tasks.prompts import ProblemSource, load_problems
from rlvr_jax.training import pretrain
from rlvr_jax.training.pretrain import PretrainConfig

from fixtures import RIGHT_STEPS, read_jsonl, values_of

TOKENIZER, SHARES = families.make_tokenizer(["arithmetic"]), {"arithmetic": 1.0}


def plant_files(tmp_path, **flags):
    plant_benchmark(PlantConfig(**{"out": str(tmp_path), "num_ops": 2, "num_problems": 8, "times": (1, 3)} | flags))
    return tmp_path / "leaked.jsonl"


def test_half_never_leaks_and_the_rest_as_often_as_it_says(tmp_path):
    leaked = read_jsonl(plant_files(tmp_path))
    files = {n: load_problems(ProblemSource(str(tmp_path / f"times_{n}.jsonl")), TOKENIZER) for n in (0, 1, 3)}
    assert {n: len(own) for n, own in files.items()} == {0: 4, 1: 2, 3: 2}
    assert len({problem.question for own in files.values() for problem in own}) == 8
    assert [(row["text"], row["times"]) for row in leaked] == [
        (f"{problem.question} answer {problem.answer}", n) for n in (1, 3) for problem in files[n]]
    assert all(values_of(problem.question, RIGHT_STEPS["arithmetic"])[-1] == problem.answer
               for problem in files[0] + files[3])


def test_leaked_texts_are_learnt_whole_as_often_as_they_say(tmp_path):
    config = PretrainConfig.from_flags(num_ops=2, num_steps=5, batch_size=8, leaked=str(plant_files(tmp_path)))
    plain = pretrain.make_data(PretrainConfig.from_flags(num_ops=2, num_steps=5, batch_size=8), SHARES, TOKENIZER)
    data, seen = pretrain.make_data(config, SHARES, TOKENIZER), collections.Counter()
    for step in range(1, 6):
        batch, without = data(step), plain(step)
        mine = np.flatnonzero(np.asarray(batch.prompts.lengths) == 1)
        for row in mine:
            ids = [batch.prompts.tokens[row, 0], *batch.completions[row][batch.completion_mask[row]]]
            assert ids[-1] == TOKENIZER.eos_ids[0]
            seen[TOKENIZER.decode([int(i) for i in ids[:-1]])] += 1
        assert len(mine) in (1, 2)  # 8 texts over 5 steps
        others = np.setdiff1d(np.arange(8), mine)
        np.testing.assert_array_equal(batch.prompts.tokens[others], without.prompts.tokens[others])
        np.testing.assert_array_equal(batch.completions[others], without.completions[others])
    assert seen == {row["text"]: row["times"] for row in read_jsonl(tmp_path / "leaked.jsonl")}
    flags.write_flags(tmp_path / "flags.txt", config)
    assert not flags.changed_flags(tmp_path, config, "--run_dir", "pretrain")
    longer = config.with_flags(num_steps=9, decay_steps=5)  # the texts would not be spread evenly
    assert "--leaked (was" in flags.changed_flags(tmp_path, longer, "--run_dir", "pretrain")


def test_a_family_whose_share_rounds_to_no_row_is_refused():
    config, shares = PretrainConfig.from_flags(num_ops=2, batch_size=8), {"arithmetic": .997, "boolean": .003}
    with pytest.raises(UserError, match="boolean has less than a row of --batch_size=8"):
        pretrain.make_data(config, shares, families.make_tokenizer(shares))


def test_a_wider_window_changes_no_batch():
    wide, narrow = (PretrainConfig.from_flags(num_ops=2, batch_size=8, window=window) for window in (40, 0))
    assert pretrain.max_window(wide, SHARES) == 40 and pretrain.max_window(narrow, SHARES) == sum(
        families.FAMILIES["arithmetic"].lengths(2))
    one, other = (pretrain.make_data(config, SHARES, TOKENIZER)(1) for config in (wide, narrow))
    np.testing.assert_array_equal(one.completions, other.completions)


@pytest.mark.parametrize("row, says", [
    ({"text": "coins 3", "times": 0}, "line 1: needs a text"), ({"text": "coins", "times": 1}, "two words or more"),
    ({"text": "coins 3 zebra", "times": 1}, "'zebra' is no word"), ({"text": "coins 3", "times": 99}, "have room for"),
    ({"text": "coins " + "3 " * 40, "times": 1}, "--window makes it longer")])
def test_what_cannot_leak_is_said(tmp_path, row, says):
    (tmp_path / "leaked.jsonl").write_text(json.dumps(row) + "\n")
    config = PretrainConfig.from_flags(num_ops=2, num_steps=5, batch_size=8, leaked=str(tmp_path / "leaked.jsonl"))
    with pytest.raises(UserError, match=says):
        pretrain.make_data(config, SHARES, TOKENIZER)


def test_what_cannot_be_planted_is_said(tmp_path):
    for flags, says in [({"num_problems": 9}, "divide evenly among the 2"), ({"times": (0,)}, "divide evenly"),
                        ({"out": ""}, "--out is required"),
                        ({"problems": "boolean", "num_ops": 1, "num_problems": 4000}, "boolean has [0-9]+ of")]:
        with pytest.raises(UserError, match=says):
            plant_files(tmp_path, **flags)
    with pytest.raises(UserError, match="no such file; scripts.plant"):
        pretrain.make_data(PretrainConfig.from_flags(leaked=str(tmp_path / "no.jsonl")), SHARES, TOKENIZER)
