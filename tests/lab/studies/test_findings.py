"""The findings: the page and the table of the README say what the records say, and are those of the repository."""

import json
import pathlib
import re

import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import findings, findings_figure, records, rules, study
from rlvr_jax.report.report import ReportConfig
from scripts import report as command

from fixtures import ROOT, Page, write_record

pytest.importorskip("matplotlib", reason="pip install -e '.[plot]'")

MEND = "python -m scripts.report --all"
TWO = {"plain": {"end": [.1, .12, .11], "size": [1234., 1234., 1234.]},
       "bent": {"end": [.5, .6, .7], "size": [5., None, 5.]}}


def page_of(folder) -> Page:
    findings.write(str(folder))
    return Page((folder / "index.html").read_text("utf-8"))


def rows_of(page: Page) -> list:
    return [[" ".join(cell.split()) for cell in row] for row in page.rows]


def test_the_page_has_question_rules_means_and_every_seed(tmp_path):
    write_record(tmp_path, "coin", TWO, short="So?", note="A **note**.", construction="It knows **two** styles.")
    page = page_of(tmp_path)
    rows = rows_of(page)
    # .6 +- 4.302653 * .1 / sqrt(3); of the difference .49, .48 * 1.0, .59: by hand
    assert re.search(r"So\? Predicted: more than .2 .*held 0.600 \[0.352, 0.848\] Decided by construction. 3 seeds. "
                     r"Other rules: 0 held, 1 failed, 0 undecided. coin.md", page.text)
    assert ["more than .2 (primary)", "0.600 [0.352, 0.848]", "held"] in rows
    assert ["not above .9", "0.600 [0.352, 0.848]", "failed"] in rows
    cells, = (row for row in rows if row[:2] == ["bent", "end"])
    assert cells[2] == "0.600 [0.352, 0.848]" and cells[3].startswith("+0.490 [") and cells[4] == "0.500, 0.600, 0.700"
    assert ["bent", "size", "5 (all equal)", "-1,229 (all equal)", "5, -, 5"] in rows
    for words in ("About coin: held", "Question. Is <it> so?", "Known before. Nothing.",
                  "Prediction, in words. It | is.",
                  "study --study=coin, commit abc1234.", "A note.", "difference to plain", "It knows two styles."):
        assert words in page.text
    assert ("class", "verdict agree") in page.attributes and page.tags.count("img") == page.tags.count("svg") == 1


# ----- the figure

def strip(tmp_path, seeds: list, **rule):
    """(axes of a strip, record) of a rule on these seeds, from a record as it is written."""
    from matplotlib import figure
    record = write_record(tmp_path, "coin", {"plain": {"end": [.5, .5, .5]}, "bent": {"end": seeds}}, figure=False)
    one = {"says": "it", "arm": "bent", "measure": "end", "primary": True} | rule
    content = {"arms": record["measures"], "measures": {"end": "end.json: x"}, "control": "plain", "rules": [one]}
    judged = rules.judged(content, record["measures"], [{"base": seed, "seed": seed} for seed in range(3)])
    axes = figure.Figure().add_subplot()
    findings_figure.strip(axes, record | {"rules": judged, "verdict": judged[0]["verdict"]})
    return axes


def test_how_often_a_base_model_of_a_matched_world_solves_more_is_what_the_note_says():
    """Within a level, of 100 pairs; a tie is half a pair."""
    record = records.read(ROOT / "results" / "worlds_matched.json")

    def share(measure, first, others, seeds):
        of = {arm: record["measures"][arm][measure]["seeds"][:seeds] for arm in record["measures"]}
        pairs = [(a, b) for other in others for i, a in enumerate(of[first]) for b in of[other][i % 3::3]]
        return round(100 * sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))

    matched = "base, T=1"
    numbers = [share(matched, "t", ["s1", "s2"], 15), *(share(matched, "t", [arm], 15) for arm in ("s1", "s2")),
               share(matched, "s2", ["s1"], 15), share(matched, "t", ["s1", "s2"], 12),
               share("base, greedy", "t", ["s1", "s2"], 15)]
    note = " ".join(record["note"].split())
    assert ("in {} ({} and {}; s2 than s1 in {}); at twelve seeds it was {}. Greedily it does in {},"
            .format(*numbers)) in note


def dots(axes, size: int) -> list:
    return [tuple(map(float, line.get_xydata()[0])) for line in axes.lines if line.get_marker() == "o"
            and line.get_markersize() == size]


def test_a_row_has_the_predicted_side_the_mean_the_interval_and_each_seed(tmp_path):
    axes = strip(tmp_path, [.7, .5, .6], above=.2)
    side, = axes.patches
    assert [side.get_x(), side.get_x() + side.get_width()] == pytest.approx([.2, axes.get_xlim()[1]])
    assert axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > .848 and dots(axes, 6) == [(pytest.approx(.6), .45)]
    interval, = (line for line in axes.lines if line.get_marker() == "|")
    assert list(interval.get_xdata()) == pytest.approx([.6 - .2484138, .6 + .2484138])  # 4.302653 * .1 / sqrt(3)
    assert [x for x, _ in dots(axes, 3)] == pytest.approx([.5, .6, .7])


def test_a_difference_has_zero_on_its_axis_and_seeds_that_coincide_are_all_seen(tmp_path):
    axes = strip(tmp_path, [.4, .4, None], difference=True, below=-.02)  # -.1, -.1 and none
    assert axes.get_xlim()[0] < -.1 and axes.get_xlim()[1] > 0
    assert len(set(dots(axes, 3))) == 2 and not [line for line in axes.lines if line.get_marker() == "|"]
    side, = strip(tmp_path, [.52, .5, .51], difference=True, within=[-.1, .1]).patches
    assert [side.get_x(), side.get_x() + side.get_width()] == pytest.approx([-.1, .1])


def test_a_rule_on_most_seeds_has_the_median_and_nothing_measured_no_dot(tmp_path):
    axes = strip(tmp_path, [.7, .5, .55], most_above=.2)
    assert dots(axes, 6) == [(.55, .45)] and not [line for line in axes.lines if line.get_marker() == "|"]
    assert not dots(strip(tmp_path, [None, None, None], above=.2), 6)


# ----- the rest of the page

def test_studies_stand_in_their_order_and_searches_last(tmp_path):
    for name in ("zeta", "boolean", "switch_dev", "alpha", "one_shot", "long_run"):
        story = {"long_run": "one_shot"}.get(name, "")
        write_record(tmp_path, name, TWO, verdict="disagree" if name == "zeta" else "agree", story=story)
    (tmp_path / "graders.json").write_text('{"now": {}}')  # of something else
    (tmp_path / "smollm2.md").write_text("# A page")
    page = page_of(tmp_path)
    rows = [value for name, value in page.attributes if name == "href" and value[0] == "#" and value != "#"]
    assert rows == ["#one_shot", "#long_run", "#boolean", "#alpha", "#zeta"]
    assert "all 5 held 4 failed 1 undecided 0" in page.text  # a search is no finding
    sections = [value for name, value in page.attributes if name == "id" and "-" not in value]  # not of a drawing
    assert sections == ["one_shot", "long_run", "boolean", "alpha", "zeta", "switch_dev"]
    assert page.text.index("About zeta: failed") < page.text.index("Searches") < page.text.index("About switch_dev")


def test_a_story_is_one_page_and_what_joins_nothing_has_its_own(tmp_path):
    """However the page came about: first of a study that is later another's, and above some by hand."""
    (tmp_path / "hand.md").write_text("# By hand\n\nText.\n")
    for name, story in zip(("late", "early", "alone", "x", "y", "coin"), ("coin", "coin", "no", "hand", "hand", "")):
        write_record(tmp_path, name, TWO, story=story, short=f"{name}?")
    coin, hand = (tmp_path / "coin.md").read_text(), (tmp_path / "hand.md").read_text()
    assert re.findall(r"^#.*|Further.*", coin, re.M) == [
        "# About coin", "Further down: [early?](#early) [late?](#late)", "## About early", "## About late"]
    assert coin.count("](README.md#how-to-read), by") == coin.count("| bent | 0.600 [0.352, 0.848]") == 3
    assert re.findall("^#.*|Text.", hand, re.M) == ["# By hand", "Text.", "## About x", "## About y"]
    links = {value for name, value in page_of(tmp_path).attributes if name == "href" and ".md" in value}
    assert links == {"coin.md", "coin.md#early", "coin.md#late", "hand.md#x", "hand.md#y", "alone.md"}
    assert {path.name for path in tmp_path.glob("*.md")} == {link.split("#")[0] for link in links}
    assert (coin, hand) == ((tmp_path / "coin.md").read_text(), (tmp_path / "hand.md").read_text())


def test_pages_of_probes_are_linked_by_their_titles(tmp_path):
    write_record(tmp_path, "coin", TWO, figure=False)
    assert "Probes" not in page_of(tmp_path).text
    for name, head in (("b/x", "<title>x of a &lt; b</title>"), ("a", "")):
        (tmp_path / "probes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "probes" / f"{name}.html").write_text(f"<!doctype html>{head}\n")
    page = page_of(tmp_path)
    links = [value for name, value in page.attributes if name == "href" and "probes" in value]
    assert links == ["probes/a.html", "probes/b/x.html"] and "x of a < b" in page.text


@pytest.mark.parametrize("content, message", [
    ("{", "coin.json cannot be read as JSON"), ('{"study": "coin"}', "coin.json: title, known, question, pred"),
    (("rules", [dict.fromkeys(records.RULE, "")]), "rule 1 is"),
    (("verdict", "perhaps"), "coin.json: verdict is missing or not"), (("rules", [{}]), "coin.json: rule 1 is"),
    (("rules", []), "coin.json: rules is"), (("seeds", [0]), "coin.json: measures of plain, measures of bent is")])
def test_a_damaged_record_is_named(tmp_path, content, message):
    record = write_record(tmp_path, "coin", TWO, figure=False)
    if isinstance(content, tuple):
        content = json.dumps(record | dict([content]))
    (tmp_path / "coin.json").write_text(content)
    with pytest.raises(UserError, match=message):
        findings.write(str(tmp_path))


def test_the_page_loads_nothing_and_does_no_harm(tmp_path):
    write_record(tmp_path, "coin", TWO, title="</h2><script src=http://a.b/c.js></script>", note="{{ 1 }} <img src=x>")
    page = page_of(tmp_path)
    assert page.tags.count("script") == page.tags.count("img") == 1 and "<img src=x>" in page.text
    assert all(re.match(r"#|data:|coin\.(md|json)$", x) for name, x in page.attributes if name in ("src", "href"))


# ----- the command, and the table of the README

BEGIN, END = "<!-- findings, by `python -m scripts.report --all` -->\n", "<!-- end of findings -->"
README = f"# A\n\n{BEGIN}old\n{END}\n\n## B\n"


def test_the_table_stands_between_its_marks_and_a_second_time_changes_nothing(tmp_path, capsys):
    write_record(tmp_path, "coin", TWO, short="a | b?", abstract="It is [[bent | end]] at T = 1. No seed failed. More.")
    write_record(tmp_path, "plain", TWO, short="c?")
    write_record(tmp_path, "coin_dev", TWO)
    (tmp_path / "README.md").write_text(README)
    seen = []
    for _ in range(2):
        command.main(ReportConfig(all=True, results=str(tmp_path)))
        seen.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    before, inside, after = re.split(f"{re.escape(BEGIN)}|{re.escape(END)}", (tmp_path / "README.md").read_text())
    assert (before, after) == ("# A\n\n", "\n\n## B\n")
    assert inside.strip().splitlines()[2:] == [
        r"| [coin](coin.md) | a \| b? | It is 0.600 [0.352, 0.848] at T = 1. | 3 seeds | held |",
        "| [plain](plain.md) | c? | Held: more than .2, 0.600 [0.352, 0.848]. | 3 seeds | held |"]
    assert seen[0] == seen[1] and {"coin.png", "coin.md", "findings.png", "index.html"} < seen[0].keys()
    assert str(tmp_path / "index.html") in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("text", ["# A\n", README.replace(END, ""), END + BEGIN, README * 2])
def test_a_readme_without_the_marks_is_left_alone(tmp_path, text):
    write_record(tmp_path, "coin", TWO, figure=False)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match="README.md: the table of findings goes between"):
        findings.write(str(tmp_path))
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize("flags, message", [
    ({"run_dir": "runs/a", "all": True}, "give one of the two"), ({}, "give one of the two"),
    ({"all": True, "results": "nowhere"}, "--results=nowhere: there is no record")])
def test_flags_that_do_not_fit_are_named(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main(ReportConfig(**flags))


def test_the_levels_that_separate_the_worlds_are_those_of_the_record():
    """Of the base models at T = 1, where RL gains .1 or more."""
    record = records.read(ROOT / "results" / "worlds.json")
    levels = {arm: [base for base, gain in zip(of["base, T=1"]["seeds"], of["gain"]["seeds"]) if (gain or 0) >= .1]
              for arm, of in record["measures"].items()}
    taught, switched = max(levels["c"] + levels["t"]), min(levels["s1"] + levels["s2"] + levels["s3"])
    said = f"at most {taught:.3f} where taught, at least {switched:.3f} where switched on".replace(" 0.", " .")
    assert said in " ".join(record["abstract"].split())


def test_readme_and_pages_are_those_of_the_records_in_the_repository(monkeypatch):
    """But for the drawings, which another version of matplotlib may make otherwise."""
    monkeypatch.chdir(ROOT)
    folder = pathlib.Path("results")
    found, drawing = records.read_all(folder), re.compile("<svg.*?</svg>", re.S)
    for record in found:
        assert study.again(record) == record, f"{record['study']}: mend it: {MEND}"
        answer = records.first_sentence(re.sub(r"\[\[.+?\]\]", "0.5", record.get("abstract", "")) or "None.")
        assert len(answer.split()) <= 25, answer
    for name, together in records.by_page(found, folder).items():
        page = (folder / f"{name}.md").read_text("utf-8")
        assert records.markdown(name, together, folder) == page, f"mend it: {MEND}"
        most = 200 if together[-1].get("story") else 80
        assert len(page.splitlines()) <= most, f"{name}: shorten the words of its file"
    assert findings.with_table(folder / "README.md", found) == (folder / "README.md").read_text("utf-8"), MEND
    page = (folder / "index.html").read_text("utf-8")
    assert drawing.sub("", findings.format_page(found, folder)) == drawing.sub("", page), f"results/index.html is not that of results/*.json and *.png; mend it: {MEND}"
