"""The report says what the run directory says, in a page that loads nothing and that no rollout can break out of."""

import json
import math
import pathlib
import re
import statistics
import sys

import pytest
from hypothesis import given, strategies as st

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.report import report

from fixtures import (HELDOUT_CORRECT, HELDOUT_ROWS, HELDOUT_SAMPLED, RUN_ROWS, RUN_SUMMARY, Page, heldout_row,
                      write_heldout, write_run)

pytest.importorskip("matplotlib", reason="pip install -e '.[plot]'")

Z = statistics.NormalDist().inv_cdf(0.975)


def rollout(step, **fields):
    return {"step": step, "prompt": "14 + 6 =", "completion": f"it is 20 at {step}", "answer": "20", "reward": 1.0,
            "correct": True, "advantage": 0.5, "truncated": False, "num_tokens": 4} | fields


def page_of(directory):
    report.write_report(str(directory))
    return Page((directory / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The directory of a run, with its report."""
    directory = write_run(tmp_path_factory.mktemp("plain"), rollouts=[rollout(1)])
    report.write_report(str(directory))
    return directory


@pytest.fixture(scope="module")
def plain_page(plain):
    return Page((plain / "report.html").read_text("utf-8"))


def test_a_sentence_and_a_table_tell_the_run_at_base_saturation_peak_and_end_with_intervals(plain_page):
    assert ("In 40 steps, held-out accuracy (n = 512) went from 41.0% to 92.6% greedy and from 25.0% to 65.0% sampled; "
            "training accuracy saturated at step 16, where held-out greedy accuracy was 85.4% (evaluated at step 20), "
            "against 92.6% at the end.") in plain_page.text
    assert "No summary.json" not in plain_page.text
    rows = [[cell.strip() for cell in row] for row in plain_page.rows]
    # intervals: bisection of the score equation (x/n - p)^2 n = 1.96^2 p (1 - p), not the closed form under test
    assert ["base", "0", "41.0%", "36.8% – 45.3%", "25.0%", "512"] in rows
    assert ["saturation", "20", "85.4%", "82.0% – 88.2%", "55.0%", "512"] in rows
    assert ["peak", "30", "93.8%", "91.3% – 95.5%", "62.5%", "512"] in rows
    assert ["final", "40", "92.6%", "90.0% – 94.5%", "65.0%", "512"] in rows
    tied = [row | {"eval/greedy": 480 / 512} if row["step"] == 40 else row for row in RUN_ROWS]
    assert [row["eval/greedy"] for row in tied if row["step"] in (30, 40)] == [480 / 512] * 2
    assert report.evaluations(tied, 16)["peak"]["step"] == 30  # the first of the best


def test_an_evaluation_at_the_step_of_saturation_is_that_of_saturation():
    assert [report.evaluations(RUN_ROWS, step)["saturation"]["step"] for step in (16, 20, 21)] == [20, 20, 30]


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_interval_holds_the_shares_that_the_score_test_accepts(n, share):
    successes = round(share * n)
    for bound in estimators.wilson(successes / n, n):
        assert 0 <= bound <= 1
        assert abs(successes / n - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_the_interval_of_a_change_is_that_of_two_shares_or_of_the_problems_one_by_one(tmp_path):
    """Of 512: base 210, at step 20 437, at the end 474. By hand, from Wilson's intervals of the three (the table)."""
    table = report.evaluations(RUN_ROWS, 16)
    base, saturation = report.changes(table, [])
    assert (base["start"], saturation["start"]) == ("base", "saturation") and not saturation["paired"]
    low, high = 37 / 512 - math.hypot(0.9258 - 0.8997, 0.8816 - 0.8535), 37 / 512 + math.hypot(0.9454 - 0.9258,
                                                                                          0.8535 - 0.8202)
    assert (saturation["low"], saturation["high"]) == pytest.approx((low, high), abs=3e-4)
    assert saturation["change"] == 37 / 512 and base["change"] == 264 / 512
    # the same problems, 40 won and 3 lost: mean 37/512, variance of a problem's difference 43/512 - mean^2
    right = {20: [1] * 437 + [0] * 75, 40: [0] * 3 + [1] * 474 + [0] * 35}
    _, paired = report.changes(table, [heldout_row(step, correct) for step, correct in right.items()])
    half = Z * math.sqrt((43 / 512 - (37 / 512) ** 2) / 512)
    assert paired["paired"] and (paired["low"], paired["high"]) == pytest.approx((37 / 512 - half, 37 / 512 + half),
                                                                                 abs=3e-3)


@pytest.mark.parametrize("at_end, says", [(437, True), (447, True), (474, False)])
def test_a_rise_that_may_be_chance_is_called_so(tmp_path, at_end, says):
    rows = [row | {"eval/greedy": at_end / 512} if row["step"] == 40 else row for row in RUN_ROWS]
    text = page_of(write_run(tmp_path, rows=rows)).text
    assert ("at the end (a difference that may be chance: its 95% interval is" in text) == says
    assert ("so the choice of problems may be all of it" in text) == says


def test_captions_speak_only_of_what_is_drawn(tmp_path):
    def captions(rows, summary=RUN_SUMMARY):
        return page_of(write_run(tmp_path, rows=rows, summary=summary)).text
    both = ("Blue: greedy", "its 95% interval shaded", "Green: sampled", "Dotted: the base", "Dashed vertical",
            "against held-out accuracy.")
    text = captions([row | {"train/length_correct": 5.0} for row in RUN_ROWS])
    assert all(phrase in text for phrase in both) and "Thin line" in text and "Reward. What is maximised." in text
    assert "spread (std)" not in text and "drifting apart" not in text
    bare = [{key: x for key, x in row.items() if not key.startswith("eval/")} for row in RUN_ROWS]
    text = captions(bare, {"saturation_step": None})
    assert not [phrase for phrase in both if phrase in text] and "Training accuracy. Thin line" in text
    text = captions([{key: x for key, x in row.items() if key not in ("eval/n", "eval/sampled")}
                     for row in RUN_ROWS[1:]])
    assert "Blue: greedy, on problems never trained on. Dashed" in text
    more = {"train/reward_std": 0.5, "train/ratio_outside": 0.1, "train/length_correct": 5.0, "train/length_wrong": 3.0,
            "train/completion_length": 5.0}
    text = captions([row | more for row in RUN_ROWS])
    assert "Without spread (std) there is nothing to compare" in text and "drifting apart" in text
    assert "Outside: tokens whose probability" in text and "importance ratio" not in text


def test_a_line_without_a_value_is_not_in_the_legend():
    from matplotlib.figure import Figure
    axes = Figure().add_subplot()
    report.draw_lines(axes, RUN_ROWS, {"mean": "train/reward_mean", "std": "train/reward_std"}, None)
    assert [text.get_text() for text in axes.get_legend().texts] == ["mean"]


# ----- one unseen problem through training

def test_one_unseen_problem_is_shown_at_the_base_at_saturation_and_at_the_end(tmp_path):
    """Without a script, too: a problem that the base gets wrong and the end right."""
    page = page_of(write_heldout(tmp_path, HELDOUT_ROWS))
    assert ("Of 5: 2 newly solved, 1 lost, 1 right before and after, 1 wrong before and after") in page.text
    assert page.completions()[:4] == ["ask 2", "wrong 2 at 0", "right 2 at 20", "right 2 at 40"]
    assert "The base, step 0 ✗ wrong" in page.text and "At saturation, step 20 ✓ right" in page.text
    assert "At the end, step 40 ✓ right" in page.text


def test_every_step_of_several_problems_can_be_leafed_through(tmp_path):
    report.write_report(str(write_heldout(tmp_path, HELDOUT_ROWS)))
    source = (tmp_path / "report.html").read_text("utf-8")
    data = json.loads(re.search(r'id="unseen-data">(.*?)</script>', source, re.DOTALL)[1])
    assert data["steps"] == [0, 10, 20, 30, 40]
    assert [problem["number"] for problem in data["problems"]] == [2, 4, 0, 1, 3]  # as many of each kind, solved first
    for problem in data["problems"]:
        number = problem["number"]
        assert problem["prompt"] == f"ask {number}" and problem["answer"] == f"is {number}"
        said = [row["completions"][number] for row in HELDOUT_ROWS]
        assert [problem["texts"][place] for place in problem["said"]] == said
        assert problem["right"] == [row["correct"][number] for row in HELDOUT_ROWS]
    assert re.search(r'<input type="range" min="0" max="4"', source)
    assert re.findall(r"<option value=\"(\d)\">(\d): ask", source) == [*zip("01234", "24013")]  # places and numbers


def test_the_unseen_problems_take_a_bounded_part_of_the_page(tmp_path):
    """100 long answers at each of 60 evaluations: fewer problems and steps, the ends among them, cut in the middle."""
    rows = [heldout_row(step, [int(i + step > 50) for i in range(100)]) for step in range(0, 600, 10)]
    for row in rows:
        row["completions"] = [f"{text}{'<' * 5000} end" for text in row["completions"]]
    rows[0] |= {"prompts": ["p" * 10**5] * 100, "answers": ["1"] * 100}
    page = page_of(write_heldout(tmp_path, rows))
    assert (tmp_path / "report.html").stat().st_size < 4_000_000
    data = json.loads(re.search(r'id="unseen-data">(.*?)</script>', (tmp_path / "report.html").read_text("utf-8"))[1])
    assert {0, 20, 590} <= set(data["steps"]) and len(data["steps"]) <= 40  # 20: at saturation
    assert any("whole in heldout.jsonl …]" in text and text.endswith(" end") for text in page.completions())


def test_a_completion_cannot_break_out_of_the_data(tmp_path):
    evil = "</script><script>alert(1)</script><!-- \u2028"
    page = page_of(write_heldout(tmp_path, [row | {"completions": [evil] * 5} for row in HELDOUT_ROWS]))
    assert page.tags.count("script") == 2 and evil in page.completions()


@pytest.mark.parametrize("rows", [[], HELDOUT_ROWS[:1]])
def test_without_an_evaluation_after_the_first_there_is_no_unseen_problem(tmp_path, rows):
    assert "One unseen problem" not in page_of(write_heldout(tmp_path, rows)).text


@pytest.mark.parametrize("rows", [HELDOUT_ROWS[1:], [HELDOUT_ROWS[0], heldout_row(10, [1])],
                                  [HELDOUT_ROWS[0], {"step": 10}]])
def test_a_broken_row_of_completions_is_named(tmp_path, rows):
    with pytest.raises(UserError, match="heldout.jsonl, step 10: needs a completion and a verdict for each problem"):
        report.write_report(str(write_heldout(tmp_path, rows)))


# ----- where a run comes from

CHOSEN = {"example": 5, "question": "coins 7 + 5 =", "answer": "12", "pass_rate": 0.203125, "num_samples": 64}


@pytest.mark.parametrize("flags, example, rollouts, trained_on", [
    ("--example=auto", CHOSEN, [],
     "coins 7 + 5 = (number 5, chosen because the base model solved it in 20.3% of 64 attempts)"),
    ("--question=What is 7 + 5?\n--example=auto", {}, [], "What is 7 + 5?"),
    ("--example=3", {}, [rollout(1), rollout(2)], "14 + 6 ="), ("--example=3", {}, [], "problem 3 of arithmetic"),
    ("--example=all", {}, [rollout(1)], "all problems of arithmetic")])
def test_the_heading_names_model_example_reward_and_grader(tmp_path, flags, example, rollouts, trained_on):
    write_run(tmp_path, [row | {"train/graded_by": "answer / math"} for row in RUN_ROWS], rollouts,
              flags=f"--model=runs/base\n--problems=arithmetic\n--reward=correct\n--grader=math\n{flags}\n")
    (tmp_path / "example.json").write_text(json.dumps(example))
    assert (f"Model runs/base Trained on {trained_on} Reward correct Grader answer / math In 40 steps"
            ) in page_of(tmp_path).text


def test_the_report_says_what_made_the_run(plain_page, tmp_path):
    start = {"step": 0, "date": "2026-01-02T03:04:05+00:00", "commit": "abc1234", "jax": "0.10.2", "python": "3.11.7",
             "platform": "x86_64", "device": "cpu", "devices": 2, "processes": 1}
    assert "Started at commit" not in plain_page.text
    (write_run(tmp_path) / "origin.json").write_text(json.dumps({"starts": [
        start, start | {"step": 10}, start | {"step": 20, "commit": "def5678", "date": "2026-01-03T00:00:00+00:00"}]}))
    assert ("Started at commit abc1234 by JAX 0.10.2, Python 3.11.7, on 2 × cpu (x86_64) on 2026-01-02 "
            "03:04:05 UTC; went on after step 10 on 2026-01-02 03:04:05 UTC; went on after step 20 at commit def5678 "
            "by JAX") in page_of(tmp_path).text


def test_the_group_of_a_rollout_is_named(plain_page, tmp_path):
    text = page_of(write_run(tmp_path, rollouts=[rollout(1, group=3, group_mean=0.25), rollout(1, group=3)])).text
    assert "advantage +0.50 group 3, mean reward 0.25 4 tokens" in text and "advantage +0.50 group 3 4 tokens" in text
    assert "compares a rollout with its own group" in text
    assert "compares a rollout" not in plain_page.text


@pytest.mark.parametrize("name", ["curves.png", "diagnostics.png", "report.html.part"])
def test_a_full_disk_is_an_error_of_that_file(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        report.write_report(str(tmp_path))
    assert pathlib.Path(error.value.filename).name == name.removesuffix(".part")


def test_first_figure_shows_training_held_out_base_and_saturation():
    from matplotlib.figure import Figure
    axes = Figure().add_subplot()
    report.draw_accuracy(axes, RUN_ROWS, RUN_SUMMARY["base"], 16)
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["training"] == (list(range(1, 41)), [min(1.0, k / 16) for k in range(1, 41)])
    assert lines["held-out greedy"] == ([0, 10, 20, 30, 40], [c / 512 for c in HELDOUT_CORRECT.values()])
    assert lines["held-out sampled"] == ([0, 10, 20, 30, 40], list(HELDOUT_SAMPLED.values()))
    assert lines["base greedy"][1] == [210 / 512] * 2 and lines["base sampled"][1] == [0.25] * 2
    assert lines["saturated, step 16"][0] == [16, 16]


def test_page_is_self_contained_and_the_figures_are_written(plain, plain_page):
    source, page = (plain / "report.html").read_text("utf-8"), plain_page
    assert not {"link", "img", "iframe", "object", "image"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("src", "href", "xlink:href"))
    assert "://" not in source and "@import" not in source and set(re.findall(r"url\((.)", source)) <= {"#"}
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    files = report.write_report(str(plain))
    assert [file.name for file in files] == ["report.html", "curves.png", "diagnostics.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    assert files[0].read_text("utf-8") == source  # the same run, the same bytes


def test_figures_follow_the_theme_of_the_page_which_is_dark_on_the_screen_alone(plain):
    """Browsers print no background: light ink would be lost on paper."""
    source = (plain / "report.html").read_text("utf-8")
    figures = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert figures and not any(re.search(r"#[0-9a-f]{6}\b", figure) for figure in figures)
    assert re.findall(r"@media (.*?)\(prefers-color-scheme: dark\)", source) == ["screen and "]


def test_every_metric_is_listed_and_unknown_or_missing_ones_do_no_harm(plain_page):
    assert ["sample/tokens_per_second", "1,000", "1,000", "40,000", "40,000"] in plain_page.rows
    assert not [name for name in ("new/metric", "KL to the reference", "Entropy") if name in plain_page.text]
    assert ["sample", "20", "25.0%", "0.5"] in plain_page.rows and ["update", "60", "75.0%", "1.5"] in plain_page.rows
    assert "Sample: 20,500 tokens a second" in plain_page.text


def test_steps_that_compiled_are_counted(plain_page, tmp_path):
    rows = [row | {"compilations": 3 if row["step"] in (0, 1, 17) else 0} for row in RUN_ROWS]
    text = "Programs were compiled in 3 of 41 rows, the last at step 17"
    assert f"{text}: where" in page_of(write_run(tmp_path, rows=rows)).text  # a log of an older version
    timed = [row | {"seconds_compiling": 2.0 * row["compilations"]} for row in rows]
    assert f"{text}, which took 18 seconds, 22.5% of these: where" in page_of(write_run(tmp_path, rows=timed)).text
    assert "Programs were compiled" not in plain_page.text


@pytest.mark.parametrize("text", [
    "</script><script>alert(1)</script></pre><img src=x onerror=alert(1)>", "{{ 7 * 7 }} {% raw %}", "&lt;b&gt; &amp;",
    "\n\n  first\n\tsecond   \n", "$\\frac{1}{2}$ ✓ 數學 😀"])
def test_rollouts_are_shown_as_they_are(tmp_path, text):
    page = page_of(write_run(tmp_path, rollouts=[rollout(1, completion=text), rollout(2, prompt=text, answer=text)]))
    assert page.completions().count(text) == 2  # as a completion and as a prompt
    assert page.tags.count("script") == 1 and "img" not in page.tags


def test_characters_that_are_not_seen_are_spelled_out(tmp_path):
    page = page_of(write_run(tmp_path, rollouts=[rollout(1, completion="a\0b\x1b[31m\u202ec\r\n\ud800")]))
    assert "a\\u0000b\\u001b[31m\\u202ec\\u000d\n?" in page.completions()


def test_what_each_reward_of_a_sum_paid_stands_beside_the_rollout_and_as_a_curve(plain_page, tmp_path):
    terms = {"train/reward/correct": 0.5, "train/reward/format": 0.25}
    page = page_of(write_run(tmp_path, [row | terms for row in RUN_ROWS],
                             [rollout(1, **{"reward/correct": 1.0, "reward/format": 0.5})]))
    assert "correct 1 format 0.5" in page.text and "Reward terms." in page.text
    assert "Reward terms." not in plain_page.text


def test_completions_as_parquet_have_the_columns_of_trl(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install -e '.[real]'")
    rows = [rollout(step, **{"reward/correct": step / 2, "reward/format": 1.0}) for step in (1, 2)]
    table = parquet.read_table(report.write_parquet(str(write_run(tmp_path, rollouts=rows))))
    assert table.column_names == ["step", "prompt", "completion", "correct", "format", "advantage", "answer", "reward",
                                  "truncated", "num_tokens"]
    assert table["correct"].to_pylist() == [0.5, 1.0] and table["step"].to_pylist() == [1, 2]
    single = parquet.read_table(report.write_parquet(str(write_run(tmp_path / "one", rollouts=[rollout(1)]))))
    assert single.column_names[:5] == ["step", "prompt", "completion", "reward", "advantage"]
    with pytest.raises(UserError, match="rollouts.jsonl is missing or empty: --parquet needs a run with --log_roll"):
        report.write_parquet(str(tmp_path / "none"))


def test_huge_rollouts_are_cut_in_the_middle_with_a_note(tmp_path):
    completion = "start" + "<" * 2 * 10**4 + "end"
    page = page_of(write_run(tmp_path, rollouts=[rollout(k % 40, prompt=completion + str(k), completion=completion)
                                                 for k in range(500)]))
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    shown = [text for text in page.completions() if text.startswith("start") and text.endswith("end")]
    left, note, right = re.split(r"\n\[… ([\d,]+) characters left out, whole in rollouts.jsonl …\]\n", shown[0])
    assert len(left) + int(note.replace(",", "")) + len(right) == len(completion)


def test_at_most_400_rollouts_spread_over_all_steps(tmp_path):
    rollouts = [rollout(k, correct=i < 3, advantage=i) for k in range(1, 101) for i in range(32)]
    page = page_of(write_run(tmp_path, rollouts=rollouts))
    sections = [int(step) for step in re.findall(r"Step (\d+): 3 of 32 right", page.text)]
    assert page.tags.count("article") == 400 and "400 of the 3,200 recorded" in page.text
    assert sections[0] == 1 and sections[-1] == 100 and max(b - a for a, b in zip(sections, sections[1:])) <= 3
    assert "advantage +0.00" in page.text and "advantage +31.00" in page.text  # the first and the last of a step


def test_reward_and_verdict_are_told_apart_in_words(tmp_path):
    page = page_of(write_run(tmp_path, rollouts=[rollout(1), rollout(1, correct=False, reward=1.0, truncated=True),
                                                 rollout(2, correct=False, reward=-0.5, advantage=None)]))
    assert "✓ right reward 1 advantage +0.50 4 tokens" in page.text
    assert "✗ wrong reward 1 advantage +0.50 4 tokens cut off at the token limit" in page.text
    assert "✗ wrong reward -0.5 4 tokens" in page.text and "Step 1: 1 of 2 right" in page.text


def test_one_prompt_is_shown_once_and_several_with_each_rollout(tmp_path):
    one = page_of(write_run(tmp_path, rollouts=[rollout(1), rollout(2)])).completions()
    assert one.count("14 + 6 =") == 1
    two = page_of(write_run(tmp_path, rollouts=[rollout(1), rollout(2), rollout(2, prompt="7 - 5 =")])).completions()
    assert two.count("14 + 6 =") == 2 and two.count("7 - 5 =") == 1


@pytest.mark.parametrize("rows, summary, says", [
    (RUN_ROWS[:34], None, "So far, in 33 steps, held-out accuracy (n = 512) went from 41.0% to 93.8% greedy and from "
                          "25.0% to 62.5% sampled; training accuracy went from 6.2% to 100.0%."),
    (RUN_ROWS[:1], None, "So far, in 0 steps, held-out accuracy (n = 512) is 41.0% greedy and 25.0% sampled."),
    (RUN_ROWS[:9], RUN_SUMMARY | {"saturation_step": None}, "training accuracy went from 6.2% to 50.0% without satur"),
    ([row | {"train/loss": None} if row["step"] >= 7 else row for row in RUN_ROWS], RUN_SUMMARY,
     "The loss is not a finite number at step 7")])
def test_a_run_that_did_not_get_far_or_went_wrong_is_told_so(tmp_path, rows, summary, says):
    page = page_of(write_run(tmp_path, rows=rows, summary=summary))
    assert says in page.text
    assert ("No summary.json: the run is still going or was interrupted." in page.text) == (summary is None)
    assert ("saturation" in [row[0] for row in page.rows]) == (summary == RUN_SUMMARY)


def test_pretraining_run_is_told_by_its_loss(tmp_path):
    rows = [{"step": k, "train/loss": 4.5 / k, "train/grad_norm": 1.0} for k in range(1, 2001)]
    rows[-1] |= {"eval/greedy": 0.25, "eval/n": 512}
    page = page_of(write_run(tmp_path, rows=rows, summary={"steps": 2000}))
    assert "held-out accuracy (n = 512) is 25.0% greedy; the loss went from 4.5 to 0.00225." in page.text
    assert "Cross-entropy" in page.text and "Near 0 and no sign of failure" not in page.text
    assert any("scripts.pretrain --flagfile=" in text for text in page.pres)


def test_reinforcement_run_explains_its_loss_and_how_to_run_it_again(tmp_path):
    directory = tmp_path / "a run"
    page = page_of(write_run(directory))
    assert "Loss. Says nothing about progress" in page.text
    again = f"python -m scripts.train --flagfile='{directory}/flags.txt' --run_dir='{directory}_again'"
    assert again in page.completions()
    assert "--num_steps=40\n--seed=7\n" in page.completions()


@pytest.mark.parametrize("mode, label", [("", "Careful by step"), ("greedy_", "Careful greedy by step"),
                                         ("sampled_", "Careful sampled by step")])
def test_careful_share_and_accuracy_have_their_own_figure(plain_page, tmp_path, mode, label):
    assert "Style and skill apart" not in plain_page.text
    careful = [row | {f"eval/{mode}careful_share": 0.5, f"eval/{mode}careful_accuracy": 0.9} for row in RUN_ROWS]
    page = page_of(write_run(tmp_path, rows=careful))
    assert "Style and skill apart" in page.text and ("aria-label", label) in page.attributes


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl", "heldout.jsonl"])
def test_half_a_last_line_is_what_a_run_is_writing(tmp_path, name):
    """It counts no more than it does for a run that goes on."""
    write_heldout(tmp_path, HELDOUT_ROWS)
    text = page_of(tmp_path).text
    with open(tmp_path / name, "a") as file:
        file.write('{"step": 41, "train/lo')
    assert page_of(tmp_path).text == text


@pytest.mark.parametrize("break_run, message", [
    (lambda d: (d / "metrics.jsonl").write_text(""), "metrics.jsonl is missing or empty"),
    (lambda d: (d / "metrics.jsonl").unlink(), "metrics.jsonl is missing or empty"),
    (lambda d: (d / "summary.json").write_text("{"), "summary.json cannot be read .* remove it to report"),
    (lambda d: (d / "summary.json").write_text("3"), "summary.json holds a int .* remove it to report")])
def test_missing_or_broken_files_are_named(tmp_path, break_run, message):
    break_run(write_run(tmp_path))
    with pytest.raises(UserError, match=message):
        report.write_report(str(tmp_path))


def test_rollouts_and_flags_may_be_missing(tmp_path):
    write_run(tmp_path)
    (tmp_path / "rollouts.jsonl").unlink()
    (tmp_path / "flags.txt").unlink()
    page = page_of(tmp_path)
    assert "flags.txt is missing." in page.text and "script" not in page.tags


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[plot\]'"):
        report.write_report(str(write_run(tmp_path)))
    assert not (tmp_path / "report.html").exists()
