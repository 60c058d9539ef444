"""The findings: the page and the table of the README say what the records say, and are those of the repository."""

import json
import pathlib
import re

import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.lab.studies import findings, findings_figure, records, rejudge, rules, study
from rlvr_jax.lab.studies.report import ReportConfig
from scripts import report as command

from fixtures import ROOT, Page, write_record

pytest.importorskip("matplotlib", reason="pip install 'rlvr_jax[plot]'")

MEND = "python -m scripts.report --all --readme=results/README.md"


TWO = {"plain": {"end": [.1, .12, .11], "size": [1234., 1234., 1234.]},
       "bent": {"end": [.5, .6, .7], "size": [5., None, 5.]}}


def page_of(folder) -> Page:
    findings.write(str(folder))
    return Page((folder / "index.html").read_text("utf-8"))


def rows_of(page: Page) -> list:
    return [[" ".join(cell.split()) for cell in row] for row in page.rows]


def test_the_page_has_question_rules_means_and_every_seed(tmp_path):
    write_record(tmp_path, "coin", TWO, short="So?", note="A **note**.")
    page = page_of(tmp_path)
    rows = rows_of(page)
    # .6 +- 4.302653 * .1 / sqrt(3); of the difference .49, .48 * 1.0, .59: by hand
    assert ("So? Predicted: more than .2 above 0.2 → 0 0.2 0.4 0.6 0.8 1 agree 0.600 [0.352, 0.848] Interval of 95 %. "
            "Other rules: 0 held, 1 refuted, 0 open. coin.md") in page.text
    assert ["more than .2 (primary)", "bent: end, above 0.2", "0.600 [0.352, 0.848]", "95 %", "agree"] in rows
    assert ["not above .9", "bent: end, above 0.9", "0.600 [0.352, 0.848]", "95 %", "disagree"] in rows
    assert ["measure", "plain", "bent"] in rows and ["bent", "1", "0.600", "-"] in rows
    assert ["plain", "2", "0.110", "1,234"] in rows and ["bent", "2", "0.700", "5"] in rows
    end, = (row for row in rows if row[0] == "end" and len(row) == 3)
    assert end[1] == "0.110 [0.085, 0.135]" and end[2].startswith("0.600 [0.352, 0.848]+0.490 [")
    for words in ("About coin: agree", "Question. Is <it> so?", "Known before. Nothing.",
                  "In words, as written with the rules. It | is.",
                  "study --study=coin, commit abc1234.", "A note.", "paired difference to plain"):
        assert words in page.text
    assert ("class", "verdict agree") in page.attributes and page.tags.count("img") == 1


CONSTRUCTED = "The base knows **two** styles."


def test_what_decides_a_result_by_construction_is_said_first(tmp_path):
    record = write_record(tmp_path, "coin", TWO, construction=CONSTRUCTED, short="So?")
    paragraphs = records.markdown(record).split("\n\n")
    assert paragraphs[:2] == ["# About coin", f"**Decided by construction.** {CONSTRUCTED}"]
    text = page_of(tmp_path).text
    assert "About coin: agree Decided by construction. The base knows two styles." in text
    assert "Interval of 95 %. Decided by construction. Other rules" in text  # in its row
    del record["construction"]
    assert "onstruction" not in records.markdown(record)


# ----- the figure: a number x stands at 3 + 94 (x - left) / (right - left) percent

def drawn(tmp_path, seeds: list, **rule) -> dict:
    """A row of seeds that a rule is of, from a record as it is written."""
    record = write_record(tmp_path, "coin", {"plain": {"end": [.5, .5, .5]}, "bent": {"end": seeds}}, figure=False)
    one = {"says": "it", "arm": "bent", "measure": "end", "primary": True} | rule
    content = {"arms": record["measures"], "measures": {"end": "end.json: x"}, "control": "plain", "rules": [one]}
    return findings_figure.row(record | {"rules": rules.judged(content, record["measures"], 3)})


def test_a_row_has_the_predicted_side_the_mean_the_interval_and_each_seed(tmp_path):
    row = drawn(tmp_path, [.7, .5, .6], above=.2)
    assert row["ticks"] == [(3, "0"), (21.8, "0.2"), (40.6, "0.4"), (59.4, "0.6"), (78.2, "0.8"), (97, "1")]
    assert row["predicted"] == [21.8, 100] and row["bounds"] == [21.8]
    assert row["label"] == {"x": 21.8, "anchor": "start", "text": "above 0.2 →"}
    assert row["mean"] == pytest.approx(59.4) and row["interval"] == pytest.approx([
        3 + 94 * (.6 - .2484138), 3 + 94 * (.6 + .2484138)], abs=.01)  # 4.302653 * .1 / sqrt(3)
    assert row["seeds"] == [(50, 42), (59.4, 42), (68.8, 42)] and row["zero"] is None
    assert row["said"] == "Predicted: bent: end, above 0.2. Measured: 0.600 [0.352, 0.848]; seeds: 0.5, 0.6, 0.7"


def test_a_difference_has_zero_on_its_axis_and_seeds_that_coincide_are_all_seen(tmp_path):
    row = drawn(tmp_path, [.4, .4, None], difference=True, below=-.02)  # -.1, -.1 and none
    assert [text for _, text in row["ticks"]] == ["-0.1", "-0.08", "-0.06", "-0.04", "-0.02", "0"]
    assert row["predicted"] == [0, 78.2] and row["label"] == {"x": 78.2, "anchor": "end", "text": "← below -0.02"}
    assert row["seeds"] == [(3, 42), (3, 50)] and row["interval"] is None
    many = findings_figure.stacked([50.0] * 20 + [52.5])
    assert len(set(many)) == 21 and max(y for _, y in many) <= 54 and many[-1] == (52.5, 42)


@pytest.mark.parametrize("within, label", [([-.1, .1], ("middle", 50)), ([.42, .5], ("end", 3 + 94 * .7 / .8))])
def test_within_two_numbers_has_room_on_both_sides(tmp_path, within, label):
    row = drawn(tmp_path, [.52, .5, .51], difference=True, within=within)
    start, end = row["predicted"]
    assert row["bounds"] == [start, end] and 3 < start < end < 97
    assert (row["label"]["anchor"], row["label"]["x"]) == (label[0], pytest.approx(label[1], abs=.01))
    assert row["label"]["text"] == f"between {within[0]} and {within[1]}"


@pytest.mark.parametrize("bounds, measured, ends", [
    ([1200], [1234, 1250], (0, 1500)), ([.005], [.002, .003], (0, .006)), ([0], [0, 0], (-.2, .2)),
    ([.5], [-.3, .2], (-.4, .6)), ([-20000], [-35000], (-40000, 0)), ([.2], [.05, .11], (0, .25))])
def test_an_axis_has_everything_with_zero_and_few_ticks(bounds, measured, ends):
    ticks = findings_figure.axis(bounds, measured)
    assert (ticks[0], ticks[-1]) == pytest.approx(ends) and 3 <= len(ticks) <= 8


def test_nothing_measured_and_no_rule_are_rows_too(tmp_path):
    row = drawn(tmp_path, [None, None, None], above=.2)
    assert (row["mean"], row["interval"], row["seeds"]) == (None, None, [])
    write_record(tmp_path, "coin", TWO, figure=False, rules=[], verdict="undecided")
    assert "No rule to draw. undecided Other rules: no other rule." in page_of(tmp_path).text


# ----- the rest of the page

def test_many_arms_are_rows_and_few_are_columns(tmp_path):
    write_record(tmp_path, "many", {f"arm {i}": TWO["bent"] for i in range(5)})
    assert ["arm", "end", "size"] in rows_of(page_of(tmp_path))


def test_studies_stand_in_their_order_and_searches_last(tmp_path):
    for name in ("zeta", "boolean", "switch_dev", "alpha", "one_shot", "long_run"):
        write_record(tmp_path, name, TWO, figure=False, verdict="disagree" if name == "zeta" else "agree")
    (tmp_path / "graders.json").write_text('{"now": {}}')  # of something else
    (tmp_path / "smollm2.md").write_text("# A page")
    page = page_of(tmp_path)
    rows = [value for name, value in page.attributes if name == "href" and value[0] == "#" and value != "#"]
    assert rows == ["#one_shot", "#long_run", "#boolean", "#alpha", "#zeta", "#switch_dev"]
    assert "all 5 agree 4 disagree 1 undecided 0" in page.text  # a search is no finding
    sections = [value for name, value in page.attributes if name == "id"]
    assert sections == ["one_shot", "long_run", "boolean", "alpha", "zeta", "switch_dev"]
    assert page.text.index("About zeta: disagree") < page.text.index("Searches") < page.text.index("About switch_dev")


def test_pages_of_probes_are_linked_by_their_titles(tmp_path):
    write_record(tmp_path, "coin", TWO, figure=False)
    assert "Probes" not in page_of(tmp_path).text
    for name, head in (("b/x", "<title>x of a &lt; b</title>"), ("a", "")):
        (tmp_path / "probes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "probes" / f"{name}.html").write_text(f"<!doctype html>{head}\n")
    page = page_of(tmp_path)
    links = [value for name, value in page.attributes if name == "href" and "probes" in value]
    assert links == ["probes/a.html", "probes/b/x.html"] and "x of a < b" in page.text


def test_a_record_of_before_has_its_words_from_the_file_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "smollm2.md").write_text("# A page")
    record = {key: value for key, value in write_record(tmp_path, "boolean", TWO).items() if key not in records.WORDS}
    (tmp_path / "boolean.json").write_text(json.dumps(study.plain(record)))
    text = page_of(tmp_path).text
    assert "One example in a second family: chains of boolean operations: agree" in text
    assert "Known before. On arithmetic three seeds" in text and "pages of their own: smollm2." in text
    assert "Question. Is <it> so?" in text  # what was asked is the record's


@pytest.mark.parametrize("verdicts, primary, line, tally", [
    (["agree", "undecided", "disagree"], None, "0: -", "0 held, 1 refuted, 1 open"),
    (["agree", "undecided", "agree"], 1, "1: -", "2 held, 0 refuted, 0 open"), (["agree"], 0, "0: -", "no other rule"),
    ([], None, "-", "no other rule")])
def test_one_line_has_the_primary_rule_and_how_many_others_held(verdicts, primary, line, tally):
    judged = [{"says": str(i), "verdict": verdict} | ({"primary": i == primary} if primary is not None else {})
              for i, verdict in enumerate(verdicts)]
    record = {"rules": judged}
    assert (findings.measured(record), rules.tally(record["rules"])) == (line, tally)
    assert rules.headline(judged) == (verdicts[primary or 0] if verdicts else "undecided")


@pytest.mark.parametrize("content, message", [
    ("{", "coin.json cannot be read as JSON"), ('{"study": "coin"}', "coin.json: question, prediction, seeds"),
    (("rules", [dict.fromkeys(records.RULE, "")]), "rule 1 is"),
    (("verdict", "perhaps"), "coin.json: verdict is missing or not"), (("rules", [{}]), "coin.json: rule 1 is"),
    (("seeds", [0]), "coin.json: measures of plain, measures of bent is")])
def test_a_damaged_record_is_named(tmp_path, content, message):
    record = study.plain(write_record(tmp_path, "coin", TWO, figure=False))
    if isinstance(content, tuple):
        content = json.dumps(record | dict([content]))
    (tmp_path / "coin.json").write_text(content)
    with pytest.raises(UserError, match=message):
        findings.write(str(tmp_path))


def test_a_damaged_figure_is_named_and_a_missing_one_left_out(tmp_path):
    write_record(tmp_path, "coin", TWO)
    (tmp_path / "coin.png").write_bytes((tmp_path / "coin.png").read_bytes()[:-9])
    with pytest.raises(UserError, match="coin.png is no PNG, or not whole"):
        findings.write(str(tmp_path))
    (tmp_path / "coin.png").unlink()
    assert "img" not in page_of(tmp_path).tags


def test_the_page_loads_nothing_and_does_no_harm(tmp_path):
    write_record(tmp_path, "coin", TWO, title="</h2><script src=http://a.b/c.js></script>", note="{{ 1 }} <img src=x>")
    page = page_of(tmp_path)
    assert page.tags.count("script") == page.tags.count("img") == 1 and "<img src=x>" in page.text
    assert all(re.match(r"#|data:|coin\.(md|json)$", x) for name, x in page.attributes if name in ("src", "href"))


@pytest.mark.parametrize("value, interval, text", [
    (None, None, "-"), (0.5, (0.25, 0.75), "0.500 [0.250, 0.750]"), (64.0, (64.0, 64.0), "64 [64, 64]"),
    (46.67, (29.0, 63.0), "46.670 [29.000, 63.000]"), (20480.3, (-1.5, 40962.1), "20,480 [-2, 40,962]"),
    (1.0, None, "1.000")])
def test_counts_have_no_decimals_and_shares_have(value, interval, text):
    assert estimators.shown(value, interval) == text


# ----- the command, and the table of the README

README = f"# A\n\n{findings.BEGIN}\nold\n{findings.END}\n\n## B\n"


def test_the_table_stands_between_its_marks(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    write_record(tmp_path / "results", "coin", TWO, figure=False, short="a | b?")
    write_record(tmp_path / "results", "coin_dev", TWO, figure=False)
    readme = tmp_path / "README.md"
    readme.write_text(README)
    for _ in range(2):  # the second time changes nothing
        command.main(ReportConfig(all=True, results=str(tmp_path / "results"), readme=str(readme)))
        before, inside, after = re.split(f"{re.escape(findings.BEGIN)}|{re.escape(findings.END)}", readme.read_text())
        assert (before, after) == ("# A\n\n", "\n\n## B\n")
        assert inside.strip().splitlines()[2:] == [
            r"| [coin](results/coin.md) | a \| b? | more than .2: 0.600 [0.352, 0.848] | agree | "
            "0 held, 1 refuted, 0 open |"]
    assert capsys.readouterr().out.splitlines()[:2] == [str(tmp_path / "results" / "index.html"), str(readme)]


@pytest.mark.parametrize("text", ["# A\n", README.replace(findings.END, ""), findings.END + findings.BEGIN, README * 2])
def test_a_readme_without_the_marks_is_left_alone(tmp_path, text):
    write_record(tmp_path, "coin", TWO, figure=False)
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(UserError, match="README.md: the table of findings goes between"):
        findings.write(str(tmp_path), str(readme))
    assert readme.read_text() == text


@pytest.mark.parametrize("flags, message", [
    ({"run_dir": "runs/a", "all": True}, "give one of the two"), ({}, "give one of the two"),
    ({"run_dir": "runs/a", "readme": "README.md"}, "--readme .* needs --all"),
    ({"all": True, "results": "nowhere"}, "--results=nowhere: there is no record")])
def test_flags_that_do_not_fit_are_named(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main(ReportConfig(**flags))


def test_readme_and_page_are_those_of_the_records_in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = findings.read(pathlib.Path("results"))
    for record in found:
        assert rejudge.again(record) in (None, records.read(pathlib.Path("results") / f"{record['study']}.json")), MEND
    readme, page = pathlib.Path("results/README.md"), pathlib.Path("results/index.html")
    assert findings.with_table(readme, found, ".") == readme.read_text("utf-8"), f"mend it: {MEND}"
    same = page.is_file() and findings.page(found, page.parent) == page.read_text("utf-8")
    assert same, f"results/index.html is not that of results/*.json and *.png; mend it: {MEND}"
