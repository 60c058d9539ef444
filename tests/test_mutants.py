"""The table of faults fits the code. mutate.py applies each and runs the tests that should notice, which takes long."""

import mutate

ROW = {"name": "n", "file": "rlvr_jax/objectives.py", "old": "rewards_NxG * 0.0", "new": "rewards_NxG",
       "tests": ["tests/test_objectives.py::test_the_update_is_that_of_the_sheet"]}


def test_every_row_fits_the_code_and_names_existing_tests():
    faults = mutate.faults()
    assert {fault["name"]: wrong for fault in faults if (wrong := mutate.misfit(fault))} == {}
    assert len({fault["name"] for fault in faults}) == len(faults) > 75


def test_a_row_that_no_longer_fits_is_reported():
    assert mutate.misfit(ROW) == ""
    for change, said in (({"old": "rewards_NxG * 7"}, "old text is not there: 0 times in place of 1"),
                         ({"count": 2}, "old text is not there: 1 times in place of 2"),
                         ({"file": "rlvr_jax/none.py"}, "there is no rlvr_jax/none.py"),
                         ({"tests": ["tests/test_objectives.py::test_none"]}, "there is no tests/test_objectives.py::"),
                         ({"tests": []}, "a row has"), ({"typo": 1}, "a row has"), ({"new": ROW["old"]}, "the same")):
        assert said in mutate.misfit(ROW | change)


def test_a_fault_is_put_into_a_copy(tmp_path):
    before = (mutate.ROOT / ROW["file"]).read_text()
    mutate.copied(tmp_path, ROW)
    assert (tmp_path / ROW["file"]).read_text() == before.replace("rewards_NxG * 0.0", "rewards_NxG") != before
    assert (mutate.ROOT / ROW["file"]).read_text() == before
