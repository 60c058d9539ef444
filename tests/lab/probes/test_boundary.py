"""The probe of tries, on rows whose numbers are known by hand."""

import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.lab.probes import boundary


def rows(*counts, of=8):
    """`of` completions of each problem, the first `counts[p]` of which are right."""
    return [{"prompt": f"p{p}", "benchmark": "b", "problem": p, "sample": s, "correct": s < count,
             "completion": str(s), "answer": "1"} for p, count in enumerate(counts) for s in range(of)]


def test_who_solves_what_alone_and_when_the_base_is_level():
    found = boundary.probe_boundary({"base": rows(0, 2, 8, 1), "trained": rows(4, 8, 8, 0)})
    assert (found.record["num_samples"], found.record["n"]) == (8, 4)
    base_curve = {"1": 11 / 32, "2": (13 / 28 + 1 + 1 / 4) / 4, "4": (11 / 14 + 1 + 1 / 2) / 4, "8": 3 / 4}
    assert found.record["files"]["base"]["pass@k"] == pytest.approx(base_curve)
    one = found.record["files"]["trained"]
    assert one["only_trained"] == ["p0"] and one["only_base"] == ["p3"] and one["never"] == 0
    assert one["count"] == {"only_base": 1, "only_trained": 1}
    assert one["base_reaches_pass@1_at"] == 8  # the trained model's pass@1 is 20/32, above the base's pass@4
    assert one["difference"]["1"]["mean"] == pytest.approx((20 - 11) / 32)
    assert one["difference"]["8"]["mean"] == pytest.approx(0)
    assert "1 problems are solved by trained alone, 1 by base alone" in found.page
    sheet = pytest.importorskip("matplotlib.figure", reason="pip install -e '.[plot]'").Figure()
    found.draw(sheet)
    assert [text.get_text() for text in sheet.axes[0].get_legend().texts] == ["base", "trained"]
    assert [item["right"] for item in found.items] == [
        {"base": 0, "trained": 4}, {"base": 2, "trained": 8}, {"base": 8, "trained": 8}, {"base": 1, "trained": 0}]
    assert boundary.probe_boundary({"base": rows(0), "trained": rows(3)}).record["files"]["trained"][
        "base_reaches_pass@1_at"] is None


@pytest.mark.parametrize("counts, expected", [
    (([1] * 20, [6] * 20), "plateau"), (([1] * 20, [4] * 20, [7] * 20), "sustained"),
    (([1] * 20, [7] * 20, [7] * 20), "plateau"), (([2] * 20, [8] * 10 + [0] * 10), "diminish"),
    (([2, 3] * 10, [3, 2] * 10), "none")])
def test_regimes(counts, expected):
    named = {str(i): rows(*own) for i, own in enumerate(counts)}
    record = boundary.probe_boundary(named).record
    assert record["regime"] == expected and sum(record["regimes"].values()) == record["regimes"][expected] == 1


def test_diminished_is_judged_at_128_tries_where_there_are_more():
    ks, level = [1, 128, 256], np.tile([0.1, 0.9, 1.0], (20, 1))
    lower_there, lower_later = level - np.array([0, 0.5, 0]), level - np.array([0, 0, 0.5])
    assert boundary.classify_regime(ks, [level, lower_there]) == "diminish"
    assert boundary.classify_regime(ks, [level, lower_later]) == "none"
    assert boundary.classify_regime(ks[:2], [level[:, :2], lower_there[:, :2]]) == "diminish"


def test_the_base_is_level_where_it_solves_exactly_as_many():
    record = boundary.probe_boundary({"base": rows(4, 4), "trained": rows(8, 0)}).record  # pass@1 is 1/2 for both
    assert record["files"]["trained"]["base_reaches_pass@1_at"] == 1
    record = boundary.probe_boundary({"base": rows(4, 4), "trained": rows(8, 1)}).record  # 9/16; the base 11/14 at 2
    assert record["files"]["trained"]["base_reaches_pass@1_at"] == 2


def test_the_page_shows_the_first_right_completion_or_the_first():
    found = boundary.probe_boundary({"base": rows(3, 0)[::-1]})  # samples 7 to 0 of each, of which 2 is the first right
    assert {item["prompt"]: item["completions"]["base"] for item in found.items} == {"p0": "2", "p1": "7"}
    assert "regime" not in found.record  # of a single file


def test_only_the_same_problems_are_compared():
    with pytest.raises(UserError, match="same problems"):
        boundary.probe_boundary({"base": rows(1, 2), "trained": rows(1)})
    with pytest.raises(UserError, match="as many completions"):
        boundary.probe_boundary({"base": rows(1, of=4), "trained": rows(1, of=8)})
