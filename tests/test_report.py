"""The report says what the run directory says, in a page that loads nothing and that no rollout can break out of."""

import html.parser
import json
import math
import re
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_jax import metrics, report
from rlvr_jax.config import UserError

pytest.importorskip("matplotlib", reason="pip install 'rlvr_jax[plot]'")

CORRECT = {0: 210, 10: 333, 20: 437, 30: 480, 40: 474}  # of 512 held-out problems, greedy
SAMPLED = {0: 0.25, 10: 0.4, 20: 0.55, 30: 0.625, 40: 0.65}

Z = statistics.NormalDist().inv_cdf(0.975)


def eval_row(step):
    return {"eval/greedy": CORRECT[step] / 512, "eval/sampled": SAMPLED[step], "eval/n": 512}


def train_row(step):
    return {"step": step, "train/accuracy": min(1.0, step / 16), "train/reward_mean": 0.5, "train/loss": 1e-3,
            "train/length_wrong": math.nan, "train/kl": None, "seconds/sample": 0.5, "seconds/update": 1.5,
            "sample/tokens_per_second": 1000 * step, "new/metric": "text", "new/table": [1]}


def rollout(step, **fields):
    return {"step": step, "prompt": "14 + 6 =", "completion": f"it is 20 at {step}", "answer": "20", "reward": 1.0,
            "correct": True, "advantage": 0.5, "truncated": False, "num_tokens": 4} | fields


ROWS = [{"step": 0} | eval_row(0)] + [train_row(k) | (eval_row(k) if k in CORRECT else {}) for k in range(1, 41)]
SUMMARY = {"base": {"greedy": 210 / 512, "sampled": 0.25, "n": 512},
           "final": {"greedy": 474 / 512, "sampled": 0.65, "n": 512},
           "train_accuracy": 1.0, "saturation_step": 16, "seconds": {"total": 99.0}}


def write_run(directory, rows=ROWS, rollouts=(), summary=SUMMARY, flags="--num_steps=40\n--seed=7\n"):
    for name, lines in (("metrics", rows), ("rollouts", rollouts)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "flags.txt").write_text(flags)
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


class Page(html.parser.HTMLParser):
    """A page as a browser reads it: its text, the text of each <pre>, the rows of its tables, and every tag."""

    def __init__(self, source):
        super().__init__()
        self.text, self.pres, self.rows, self.tags, self.attributes, self.open = "", [], [], [], [], []
        self.feed(source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.open.append(tag)
        if tag == "pre":
            self.pres.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "pre" in self.open:
            self.pres[-1] += data
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def completions(self):
        """Each <pre>'s text; a browser drops the first line break of one."""
        return [text.removeprefix("\n") for text in self.pres]


def page_of(directory):
    report.write_report(str(directory))
    return Page((directory / "report.html").read_text("utf-8"))


def test_head_line_tells_the_run_in_one_sentence(tmp_path):
    text = page_of(write_run(tmp_path)).text
    assert ("In 40 steps, held-out accuracy (n = 512) went from 41.0% to 92.6% greedy and from 25.0% to 65.0% sampled; "
            "training accuracy saturated at step 16, where held-out greedy accuracy was 85.4% (evaluated at step 20), "
            "against 92.6% at the end.") in text
    assert "No summary.json" not in text


def test_evaluation_table_has_base_saturation_peak_and_final_with_intervals(tmp_path):
    rows = [[cell.strip() for cell in row] for row in page_of(write_run(tmp_path)).rows]
    # intervals: bisection of the score equation (x/n - p)^2 n = 1.96^2 p (1 - p), not the closed form under test
    assert ["base", "0", "41.0%", "36.8% – 45.3%", "25.0%", "512"] in rows
    assert ["saturation", "20", "85.4%", "82.0% – 88.2%", "55.0%", "512"] in rows
    assert ["peak", "30", "93.8%", "91.3% – 95.5%", "62.5%", "512"] in rows
    assert ["final", "40", "92.6%", "90.0% – 94.5%", "65.0%", "512"] in rows


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_interval_holds_the_shares_that_the_score_test_accepts(n, share):
    successes = round(share * n)
    for bound in metrics.wilson(successes / n, n):
        assert 0 <= bound <= 1
        assert abs(successes / n - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_first_figure_shows_training_held_out_base_and_saturation():
    from matplotlib.figure import Figure
    axes = Figure().add_subplot()
    report.draw_accuracy(axes, ROWS, SUMMARY["base"], 16)
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["training"] == (list(range(1, 41)), [min(1.0, k / 16) for k in range(1, 41)])
    assert lines["held-out greedy"] == ([0, 10, 20, 30, 40], [c / 512 for c in CORRECT.values()])
    assert lines["held-out sampled"] == ([0, 10, 20, 30, 40], list(SAMPLED.values()))
    assert lines["base greedy"][1] == [210 / 512] * 2 and lines["base sampled"][1] == [0.25] * 2
    assert lines["saturated, step 16"][0] == [16, 16]


def test_page_is_self_contained_and_the_figures_are_written(tmp_path):
    files = report.write_report(str(write_run(tmp_path, rollouts=[rollout(1)])))
    assert [file.name for file in files] == ["report.html", "curves.png", "diagnostics.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    source = files[0].read_text("utf-8")
    page = Page(source)
    assert not {"link", "img", "iframe", "object", "image"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("src", "href", "xlink:href"))
    assert "://" not in source and "@import" not in source and set(re.findall(r"url\((.)", source)) <= {"#"}
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    report.write_report(str(tmp_path))
    assert files[0].read_text("utf-8") == source  # the same run, the same bytes


def test_figures_follow_the_theme_of_the_page(tmp_path):
    report.write_report(str(write_run(tmp_path)))
    figures = re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text("utf-8"), re.DOTALL)
    assert figures and not any(re.search(r"#[0-9a-f]{6}\b", figure) for figure in figures)


def test_every_metric_is_listed_and_unknown_or_missing_ones_do_no_harm(tmp_path):
    page = page_of(write_run(tmp_path))
    assert ["sample/tokens_per_second", "1,000", "1,000", "40,000", "40,000"] in page.rows
    assert "new/metric" not in page.text and "KL to the reference" not in page.text and "Entropy" not in page.text
    assert ["sample", "20", "25.0%", "0.5"] in page.rows and ["update", "60", "75.0%", "1.5"] in page.rows
    assert "Sample: 20,500 tokens a second" in page.text


def test_steps_that_compiled_are_counted(tmp_path):
    rows = [row | {"compilations": 3 if row["step"] in (0, 1, 17) else 0} for row in ROWS]
    assert "Programs were compiled in 3 of 41 rows, the last at step 17" in page_of(write_run(tmp_path, rows=rows)).text
    assert "Programs were compiled" not in page_of(write_run(tmp_path)).text


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


def test_huge_rollouts_are_cut_in_the_middle_with_a_note(tmp_path):
    completion = "start" + "<" * 10**5 + "end"
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
                                                 rollout(2, correct=False, reward=-0.5, advantage=math.nan)]))
    assert "✓ right reward 1 advantage +0.50 4 tokens" in page.text
    assert "✗ wrong reward 1 advantage +0.50 4 tokens cut off at the token limit" in page.text
    assert "✗ wrong reward -0.5 4 tokens" in page.text and "Step 1: 1 of 2 right" in page.text


def test_one_prompt_is_shown_once_and_several_with_each_rollout(tmp_path):
    one = page_of(write_run(tmp_path, rollouts=[rollout(1), rollout(2)])).completions()
    assert one.count("14 + 6 =") == 1
    two = page_of(write_run(tmp_path, rollouts=[rollout(1), rollout(2), rollout(2, prompt="7 - 5 =")])).completions()
    assert two.count("14 + 6 =") == 2 and two.count("7 - 5 =") == 1


def test_unfinished_run_is_reported_as_such(tmp_path):
    page = page_of(write_run(tmp_path, rows=ROWS[:34], summary=None))
    assert "No summary.json: the run is still going or was interrupted." in page.text
    assert ("So far, in 33 steps, held-out accuracy (n = 512) went from 41.0% to 93.8% greedy and from 25.0% to 62.5% "
            "sampled; training accuracy went from 6.2% to 100.0%.") in page.text
    assert "saturated at" not in page.text and "saturation" not in [row[0] for row in page.rows]


def test_run_that_has_only_evaluated_its_base(tmp_path):
    text = page_of(write_run(tmp_path, rows=ROWS[:1], summary=None)).text
    assert "So far, in 0 steps, held-out accuracy (n = 512) is 41.0% greedy and 25.0% sampled." in text


def test_run_that_never_saturated(tmp_path):
    text = page_of(write_run(tmp_path, rows=ROWS[:9], summary=SUMMARY | {"saturation_step": None})).text
    assert "training accuracy went from 6.2% to 50.0% without saturating." in text


def test_pretraining_run_is_told_by_its_loss(tmp_path):
    rows = [{"step": k, "train/loss": 4.5 / k, "train/grad_norm": 1.0} for k in range(1, 2001)]
    rows[-1] |= {"eval/greedy": 0.25, "eval/n": 512}
    page = page_of(write_run(tmp_path, rows=rows, summary={"steps": 2000}))
    assert "held-out accuracy (n = 512) is 25.0% greedy; the loss went from 4.5 to 0.00225." in page.text
    assert "Cross-entropy" in page.text and "Near 0 and no sign of failure" not in page.text
    assert any("scripts.pretrain --flagfile=" in text for text in page.pres)


def test_reinforcement_run_explains_its_loss_and_how_to_run_it_again(tmp_path):
    directory = tmp_path / "a run"
    directory.mkdir()
    page = page_of(write_run(directory))
    assert "Near 0 and no sign of failure" in page.text
    again = f"python -m scripts.train --flagfile='{directory}/flags.txt' --run_dir='{directory}_again'"
    assert again in page.completions()
    assert "--num_steps=40\n--seed=7\n" in page.completions()


@pytest.mark.parametrize("mode, label", [("", "Careful by step"), ("greedy_", "Careful greedy by step"),
                                         ("sampled_", "Careful sampled by step")])
def test_careful_share_and_accuracy_have_their_own_figure(tmp_path, mode, label):
    assert "Style and skill apart" not in page_of(write_run(tmp_path)).text
    careful = [row | {f"eval/{mode}careful_share": 0.5, f"eval/{mode}careful_accuracy": 0.9} for row in ROWS]
    page = page_of(write_run(tmp_path, rows=careful))
    assert "Style and skill apart" in page.text and ("aria-label", label) in page.attributes


def test_loss_that_is_not_finite_is_pointed_out(tmp_path):
    rows = [row | {"train/loss": math.nan} if row["step"] >= 7 else row for row in ROWS]
    assert "The loss is not a finite number at step 7" in page_of(write_run(tmp_path, rows=rows)).text


@pytest.mark.parametrize("line", [b'{"step": 1, "train/lo', b"[1]", b'{"loss": 1}', b'{"step": "1"}', b"", b"[" * 10**6,
                                  b'{"step": 1, "a": "\xff"}'])
@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl"])
def test_corrupt_line_is_named(tmp_path, name, line):
    write_run(tmp_path)
    (tmp_path / name).write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=rf"{name}, line 2: ") as error:
        report.write_report(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("break_run, message", [
    (lambda d: (d / "metrics.jsonl").write_text(""), "metrics.jsonl is missing or empty"),
    (lambda d: (d / "metrics.jsonl").unlink(), "metrics.jsonl is missing or empty"),
    (lambda d: (d / "summary.json").write_text("{"), "summary.json is not a JSON object"),
    (lambda d: (d / "summary.json").write_text("3"), "summary.json is not a JSON object")])
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
    with pytest.raises(UserError, match=r"pip install 'rlvr_jax\[plot\]'"):
        report.write_report(str(write_run(tmp_path)))
    assert not (tmp_path / "report.html").exists()
