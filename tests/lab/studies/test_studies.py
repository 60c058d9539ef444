"""Studies: what a file has to say, the commands it becomes, resuming, the verdict, and what is written."""

import dataclasses
import json
import pathlib
import shlex
import shutil

import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.lab.studies import commands, earlier, records, sources, study, study_figure
from rlvr_jax.lab.studies.study import StudyConfig
from rlvr_jax.report import figures

from fixtures import ROOT, STUDY, record_of, write_jsonl

GREEDY = {("plain", 0): (.3, .4), ("plain", 1): (.3, .41), ("plain", 2): (.2, .29), ("bent", 0): (.3, .6),
          ("bent", 1): (.3, .62), ("bent", 2): (.2, .49)}


@pytest.fixture
def coin(tmp_path, monkeypatch):
    """(config of the study, commands run so far); runs write what GREEDY says."""
    lines, path = [], tmp_path / "coin.toml"
    path.write_text(STUDY)

    def script(line, *_):
        lines.append(line)
        name, *flags = shlex.split(line)
        run = pathlib.Path(next(flag for flag in flags if flag.startswith("--run_dir=")).split("=", 1)[1])
        if name == "train":
            run.mkdir(parents=True)
            start, end = GREEDY[run.name[:-1], int(run.name[-1])]
            write_jsonl(run / "metrics.jsonl", {"step": 0, "eval/greedy": start}, {"step": 1, "eval/greedy": end})
            (run / "summary.json").write_text(json.dumps({"base": {"greedy": start}, "final": {"greedy": end}}))

    monkeypatch.setattr(commands, "script", script)
    return StudyConfig(study=str(path), work_dir=str(tmp_path / "work"), out=str(tmp_path / "results")), lines


def test_a_study_runs_the_commands_of_a_user_once_each_and_writes_beside_the_runs(coin, tmp_path):
    work = tmp_path / "work"
    assert study.run(StudyConfig(study=coin[0].study, work_dir=str(work))) == work / "results" / "coin.md"
    assert coin[1][:4] == [f"pretrain --seed=0 --run_dir={work}/base0",
                           f"train --seed=0 --model={work}/base0 --run_dir={work}/plain0",
                           f"train --seed=0 --model={work}/base0 --run_dir={work}/bent0 '--reward=a b'",
                           f"pretrain --seed=1 --run_dir={work}/base1"]
    assert coin[1][-1] == f"train --seed=2 --model={work}/base2 --run_dir={work}/bent2 '--reward=a b'"
    assert len(coin[1]) == 9  # three bases, which both arms share, and six runs


def test_what_has_finished_is_not_run_again_and_what_failed_is(coin, monkeypatch):
    script = commands.script

    def fails(line, *_):
        if "plain2" in line:
            raise UserError("failed")
        script(line)

    monkeypatch.setattr(commands, "script", fails)
    with pytest.raises(UserError, match="failed"):
        study.run(coin[0])
    done = list(coin[1])
    monkeypatch.setattr(commands, "script", script)
    text = study.run(coin[0]).read_text()
    assert len(done) == 7 and len(coin[1]) == len(set(coin[1])) == 9
    assert "7 of its 9 commands were finished by an earlier start" in text


def test_what_an_earlier_record_has_is_not_run_again_though_its_runs_are_lost(coin, tmp_path):
    """In two nights as in one: the same measures, rules, summaries and curves."""
    one = dataclasses.replace(coin[0], work_dir=str(tmp_path / "one"), out=str(tmp_path / "one"))
    study.run(one)
    study.run(dataclasses.replace(coin[0], seeds=(1, 0)))
    shutil.rmtree(coin[0].work_dir)
    coin[1].clear()
    path = str(tmp_path / "results" / "coin.json")
    text = study.run(dataclasses.replace(coin[0], earlier=path)).read_text()
    assert len(coin[1]) == 3 and all("2" in line.split("--run_dir=")[1] for line in coin[1])
    assert "4 of its runs are from an earlier record." in text
    both, whole = (json.loads((tmp_path / name / "coin.json").read_text()) for name in ("results", "one"))
    assert "--seeds=1,0" in both.pop("earlier")[0] and "--seeds=0,1,2" in both["origin"]
    assert both | {"origin": ""} == whole | {"origin": ""}
    # An arm whose commands have changed since is run again, and the other is not.
    pathlib.Path(coin[0].study).write_text(STUDY.replace("a b", "c"))
    shutil.rmtree(coin[0].work_dir)
    coin[1].clear()
    study.run(dataclasses.replace(coin[0], earlier=path))
    assert len(coin[1]) == 6 and all("bent" in line for line in coin[1] if line.startswith("train"))
    quick = str(study.run(dataclasses.replace(one, work_dir=str(tmp_path / "few"), quick=True)).with_suffix(".json"))
    for old, new, file, message in (("a b", "a b", str(tmp_path / "none.json"), "no such file"),
                                    ("a b", "c", quick, "no arm of coin was run and measured there as"),
                                    ("train --", "train --seed=4 --", path, "no arm"),
                                    ("end = ", 'new = "{arm}{seed}/summary.json: a"\nend = ', path, "no arm")):
        pathlib.Path(coin[0].study).write_text(STUDY.replace(old, new, 1))
        with pytest.raises(UserError, match=f"--earlier={file}: {message}"):
            study.run(dataclasses.replace(coin[0], earlier=file))


def test_problems_of_an_earlier_record_are_paired_with_new_ones_and_a_shared_run_is_kept_for_all_seeds():
    cells = {("base", 0): ["measure"], ("base", 1): ["measure"], ("one", 0): ["train 0"], ("one", 1): ["train 1"],
             ("new", 0): ["train 2"]}
    content = {"seeds": [0], "commands": {}, "arms": {"base": {}, "one": {"seeds": [0]}, "new": {}}, "measures": {}}
    record = {"recipes": earlier.recipes(content), "seeds": [0], "measures": {
        "base": {"right": {"seeds": [.5], "of_problems": [[0, 1]]}, "rate": {"seeds": [.25]}},
        "one": {"right": {"seeds": [1.0], "of_problems": [[1, 1]]}, "rate": {"seeds": [None]}},
        "new": {"right": {"seeds": [None], "of_problems": [None]}, "rate": {"seeds": [None]}}}}
    content["arms"]["one"]["seeds"] = [0, 1]  # more seeds are no other commands
    kept = earlier.kept(record, content, cells, lambda arm, unit: cells[arm, unit["seed"]])
    assert kept.keys() == {("base", 0), ("base", 1), ("one", 0)}
    assert kept["base", 1]["right"].tolist() == [0, 1] and kept["base", 1]["rate"] == .25


def test_a_study_of_some_arms_has_their_rules_alone_and_needs_its_control(coin, tmp_path):
    pathlib.Path(coin[0].study).write_text(STUDY + '[[rules]]\nsays = "a"\narm = "new"\nmeasure = "end"\nabove = 0.5\n'
                                           '[arms.new]\nrl = ["--seed=9"]\n')
    some = dataclasses.replace(coin[0], arms="plain; bent")
    assert "--arms='plain; bent'" in study.run(some).read_text()
    record = json.loads((tmp_path / "results" / "coin.json").read_text())
    assert len(coin[1]) == 9 and list(record["measures"]) == ["plain", "bent"] and len(record["rules"]) == 2
    for arms, message in (("bent;new", "plain is needed"), ("plain", "bent is needed"), ("plain;bent;x", "no arm x")):
        with pytest.raises(UserError, match=f"--arms={arms}: {message}; the arms of coin: plain; bent; new"):
            study.run(dataclasses.replace(some, arms=arms))


def test_means_intervals_and_paired_differences(coin, tmp_path):
    study.run(coin[0])
    record = json.loads((tmp_path / "results" / "coin.json").read_text())
    gain = record["measures"]["bent"]["gain"]
    np.testing.assert_allclose(gain["seeds"], [.3, .32, .29])
    np.testing.assert_allclose(gain["difference"]["seeds"], [.2, .21, .2])
    # By the textbook: t(0.975; 2) = 4.302653, standard error = std / sqrt(3)
    half = 4.302653 * np.std([.3, .32, .29], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(gain["interval"], [.30333333 - half, .30333333 + half], rtol=1e-6)
    assert "difference" not in record["measures"]["plain"]["gain"]
    assert record["summaries"]["bent"]["1"] == {"base": {"greedy": .3}, "final": {"greedy": .62}}
    assert [rule["verdict"] for rule in record["rules"]] == ["agree", "agree"] and record["verdict"] == "agree"
    assert [rule["primary"] for rule in record["rules"]] == [True, False]


def values_in(folder, measures):
    """The values of measures whose files lie in a folder."""
    found = sources.values_of({"arms": ["a"], "measures": measures}, lambda _, name: None if isinstance(
        measures[name], list) else [sources.source_values(name, measures[name], {"work": str(folder)})], [{}])
    return {name: values[0] for name, values in found["a"].items()}


def test_the_mean_is_of_bases_and_a_seed_succeeds_above_the_number():
    found = study.gather([np.array(x) for x in (.1, .3, .9)], bases=[0, 0, 1])
    assert found["mean"] == pytest.approx((.2 + .9) / 2) and found["of_bases"] == pytest.approx([.2, .9])
    success = study.succeeded([.8, .81, 0., None], .8)
    assert (success["count"], success["of"]) == (1, 3)


def test_a_measure_is_made_of_two_others_and_there_is_no_share_of_nothing(tmp_path):
    (tmp_path / "s.json").write_text('{"a": 0.2, "b": 0.5, "none": 0}')
    measures = {name: f"s.json: {name}" for name in ("a", "b", "none", "missing")} | {
        f"{a}{sign}{b}": [sign, a, b] for sign in "-/" for a, b in (("a", "b"), ("a", "none"), ("missing", "a"))}
    found = values_in(tmp_path, measures)
    assert (found["a-b"], found["a/b"], found["a-none"]) == (pytest.approx(-.3), pytest.approx(.4), pytest.approx(.2))
    assert found["a/none"] is found["missing/a"] is found["missing-a"] is None


def test_the_page_shows_the_answer_the_rules_its_verdict_and_the_command(coin, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_allow_excess_precision=false")
    text = study.run(coin[0]).read_text()
    for wanted in ("# A coin", "**Question.** Is it fair?", "**Known before.** Nothing.",
                   "**Answer.** Held: the bent one gains more, 0.203 [0.189, 0.218].", "[coin.json](coin.json)",
                   "**[The prediction held](README.md#how-to-read), by the primary rule. Of the other rules: 1 held, "
                   "0 failed, 0 undecided.**",
                   "| the bent one gains more (**primary**) | 0.203 [0.189, 0.218] | held |", "![A coin](coin.png)",
                   "`XLA_FLAGS=--xla_allow_excess_precision=false python -m scripts.study", "--seeds=0,1,2`, commit",
                   "Means over 3 seeds, 95 % intervals over these; after"):
        assert wanted in text
    assert "0.303 [0.265, 0.341]; +0.203 [+0.189, +0.218]" in text
    assert (tmp_path / "results" / "coin.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_keeps_its_curves_and_is_enough_for_page_and_figure(coin, tmp_path, monkeypatch):
    path = study.run(coin[0])
    made = {name: path.with_name(name).read_bytes() for name in ("coin.md", "coin.png", "coin.json")}
    record = records.read(path.with_suffix(".json"))
    assert record["curves"]["bent"]["1"] == {"eval/greedy": [[0, 1], [.3, .62]]}
    assert record["curves"].keys() == {"plain", "bent"}
    (tmp_path / "again").mkdir()
    study.write([record], tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in made} == made


def test_quick_is_one_seed_with_other_flags_under_another_name(coin, tmp_path):
    """Of a flag that is given twice the last counts, which is that of [quick]. It is in no story of results."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "told.md").write_text("# Told")
    pathlib.Path(coin[0].study).write_text('story = "told"\n' + STUDY.replace("--reward=a b", "--num_steps=9"))
    config = StudyConfig(study=coin[0].study, quick=True, work_dir=coin[0].work_dir, out=coin[0].out)
    path = study.run(config)
    text = path.read_text()
    assert path.name == "coin_quick.md" and "Not a result" in text and "**[The prediction is undecided](" in text
    assert "| 0.200 | undecided: one seed |" in text
    assert len(coin[1]) == 3 and all(line.endswith("--num_steps=1") for line in coin[1] if line.startswith("train"))


@pytest.mark.parametrize("more, header, arms", [
    ("", "| arm | end | start | gain |", ["plain", "bent"]), ('table = ["gain", "end"]', "| arm | gain | end |",
                                                              ["plain", "bent"]),
    ('shown = {arms = ["bent"], measures = ["start"]}', "| arm | start |", ["bent"]),
    ('success = {measure = "gain", above = 0.1}', "| arm | end | start | gain | gain above 0.1 |", ["plain", "bent"])])
def test_the_table_shows_what_the_file_names(coin, more, header, arms):
    pathlib.Path(coin[0].study).write_text(STUDY.replace("[commands]", f"{more}\n[commands]"))
    page, record = study.run(coin[0]).read_text(), records.read(pathlib.Path(coin[0].out) / "coin.json")
    assert header in page and [row[0] for row in records.table(record)[1:]] == arms
    assert "start" in record["measures"]["bent"]
    if "success" in more:  # gains of .1, .11 and .09, but for rounding
        assert records.table(record)[2][-1].startswith("3 of 3: 1.000 [0.292, 1.000]")


def test_the_table_has_at_most_twelve_arms_and_four_measures():
    values = {"mean": .5, "interval": None, "seeds": [.5]}
    rows = records.table({"seeds": [0], "measures": {f"a{i}": {f"m{j}": values for j in range(9)} for i in range(20)}})
    assert (len(rows), rows[0], rows[-1][0]) == (13, ["arm", "m0", "m1", "m2", "m3"], "a11")


def test_a_page_answers_with_the_words_of_its_abstract_and_the_numbers_that_it_names(coin, tmp_path):
    path = tmp_path / "coin.toml"
    path.write_text(STUDY.replace("[commands]", 'abstract = """Up to [[bent | end]], [[bent |\ngain | difference]]."""\n'
                                  "[commands]", 1))
    text = study.run(coin[0]).read_text()
    record = json.loads((tmp_path / "results" / "coin.json").read_text())["measures"]["bent"]
    gain = records.shown(record["gain"]["difference"], "+")
    assert f"**Answer.** Up to {records.shown(record['end'])}, {gain}." in text


def test_a_page_shows_the_first_problem_that_changed_with_the_shorter_completions(tmp_path):
    right = {"before": [1, 0, 1, 0, 1], "after": [1, 0, 0, 1, 0]}
    cells = {("base", 0): {"work": str(tmp_path), "of": "before"}, ("one", 0): {"work": str(tmp_path), "of": "after"}}
    for name, rights in right.items():
        write_jsonl(tmp_path / f"{name}.jsonl", *(
            {"benchmark": "b", "problem": i, "answer": "4", "correct": bool(x),
             "completion": f"gone\n\n{name} {i}: $<4>$\n\nend{'!' * (i == 2)}"} for i, x in enumerate(rights)))
    found = sources.changed({"control": "base", "changed": {"arm": "one", "file": "{of}.jsonl"}}, cells)
    assert [pair["problem"] for pair in found.values()] == [3, 2]
    text = records.changed({"changed": found})
    assert "became right: problem 3 of b, answer 4. The ends of both completions:\n\n<table><tr>" in text
    assert "<td valign=\"top\">one, seed 0</td>" in text and "before 3: &#36;&lt;4&gt;&#36;<br><br>end</td>" in text
    assert not [gone for gone in ("gone", "after 2", "before 0") if gone in text]
    assert records.changed({}) == ""


def test_a_measure_over_problems_is_paired_by_problem(tmp_path):
    rows = [("gsm8k", 0, 1), ("gsm8k", 0, 0), ("gsm8k", 1, 1), ("svamp", 0, 0)]
    write_jsonl(tmp_path / "c.jsonl", *(
        {"benchmark": name, "problem": i, "correct": bool(right)} for name, i, right in rows))
    values = sources.source_values("m", "c.jsonl: gsm8k", {"work": str(tmp_path)})
    np.testing.assert_array_equal(values, [.5, 1])
    np.testing.assert_array_equal(sources.source_values("m", "c.jsonl: all", {"work": str(tmp_path)}), [.5, 1, 0])
    one = study.gather([np.array([1.] * 30 + [0.] * 70)])
    assert one["seeds"] == [.3] and one["interval"] == estimators.bootstrap(np.array([1.] * 30 + [0.] * 70))


def test_a_column_is_a_measure_and_text_counts_where_it_is_there(tmp_path):
    write_jsonl(tmp_path / "c.jsonl", *({"benchmark": "b", "problem": i, "correct": True, "extracted": found,
                                         "truncated": i > 1, "num_tokens": 3 + i}
                                        for i, found in enumerate(["4", None, ""])))
    with pytest.raises(UserError, match="measure m: .*c.jsonl has no 'cut'; it has benchmark, problem, correct"):
        sources.source_values("m", "c.jsonl: b: cut", {"work": str(tmp_path)})
    for column, wanted in (("extracted", [1, 0, 1]), ("truncated", [0, 0, 1]), ("num_tokens", [3, 4, 5])):
        np.testing.assert_array_equal(
            sources.source_values("m", f"c.jsonl: b: {column}", {"work": str(tmp_path)}), wanted)


def test_over_problems_intervals_and_verdicts_are_of_what_each_problem_gains():
    """Three seeds differ by far more than the problems' gains, which are paired: 9 of 10 gain."""
    base, gains = np.array([0., 1.] * 5), np.array([.3, 0] + [.3] * 8)
    seeds = [base + gains * part for part in (0, 1, 2)]
    file = {"arms": {"base": {}, "one": {}}, "measures": {"m": "c.jsonl: all"}, "control": "base", "seeds": [0, 1, 2],
            "over": "problems", "rules": [{"says": "", "arm": "one", "measure": "m", "difference": True, "above": 0.1}]}
    units = [{"base": seed, "example": seed, "seed": seed} for seed in range(3)]
    found = {"base": {"m": [base] * 3}, "one": {"m": seeds}}
    measured = study.measure(file, found, units)
    less = measured["one"]["m"]["difference"]
    np.testing.assert_allclose(less["of_problems"], [gains * part for part in (0, 1, 2)])
    assert less["seeds"] == pytest.approx([0, .27, .54])
    assert less["interval"] == pytest.approx(estimators.bootstrap(gains))
    rule, = study.written(file, measured, units)["rules"]
    assert (rule["verdict"], rule["over"]) == ("agree", "problems")
    over_seeds, = study.written(file, study.measure(file | {"over": None}, found, units), units)["rules"]
    assert over_seeds["verdict"] == "undecided"


def test_a_measure_may_be_a_sum_over_steps_or_a_number_of_the_arm(tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", {"step": 0, "eval/greedy": .3}, {"step": 1, "train/tokens": 20},
                {"step": 2, "train/tokens": 5})
    cell = {"work": str(tmp_path)}
    for tokens, total in (("metrics.jsonl: train/tokens", 25), ("0", 0), ("never/metrics.jsonl: train/tokens", None)):
        assert sources.source_values("tokens", "{tokens}", cell | {"tokens": tokens}) == total
    assert sources.source_values("labels", "{labels}", cell | {"labels": "1"}) == 1
    with pytest.raises(UserError, match="measure labels: 'one' is no number"):
        sources.source_values("labels", "{labels}", cell | {"labels": "one"})


@pytest.mark.parametrize("old, new, message", [
    ('question = "Is it fair?"', "", "question is missing"), ("control =", "contrl =", "contrl"),
    ('control = "plain"', 'control = "round"', "control"), ("[commands]", "[commands", "not TOML"),
    ('arm = "bent"', 'arm = "bend"', r"rule 1 \(the bent one gains more\): a rule needs"),
    ("{arm}{seed}/sum", "{arn}/sum", "needs arn"),
    ('rl = "train', 'rl = "train --problems={data}', "--data is required"),
    ("[figure]", '[figure]\nx = ["lenght"]', "x: 'lenght' is none of the measures: end, start, gain"),
    ("[figure]", '[figure]\nlabels = "end"', r"\[figure\] labels is not as it should be"),
    ("[figure]", '[figure]\narrows = ["end"]', r"\[figure\] arrows is not as it should be"),
    ("[figure]", '[figure]\ncurvs = []', r"\[figure\] curvs is not as it should be; docs/studies.md has measures, x"),
    ("[figure]", '[figure]\nlog_x = ["lenght"]', "log_x: 'lenght' is none of the measures"),
    ("[figure]", '[figure]\nmeasures = ["end", "ned"]', "measures: 'ned' is none of the measures"),
    ("[commands]", 'over = "steps"\n[commands]', 'over: write over = "problems"'),
    ("[commands]", 'abstract = "It gains [[bent | gian]]."\n[commands]', "abstract: 'gian' is no arm, or no measure"),
    ("[commands]", 'abstract = "It gains [[bent]]."\n[commands]', "abstract: '' is no arm, or no measure"),
    ("[commands]", 'abstract = "It gains [[bent | gain | less]]."\n[commands]', "abstract: 'less' is no arm, or no meas"),
    ("[commands]", 'changed = {arm = "bend", file = "c.jsonl"}\n[commands]', "changed: write changed = {arm ="),
    ("[commands]", 'shown = {arms = ["ned"]}\n[commands]', "shown: arms: 'ned' is none of the arms"),
    ("[commands]", 'shown = {rows = ["bent"]}\n[commands]', "shown: write shown = {arms ="),
    ("[commands]", 'table = ["ned"]\n[commands]', "table: 'ned' is none of the measures"),
    ("[figure]", '[figure]\ncontrols = ["plane"]', "controls: 'plane' is none of the arms: plain, bent"),
    ('["-", "end", "start"]', '["-", "end", "strat"]', "measure gain: it is made of .*strat.*; write an operation"),
    ('["-", "end", "start"]', '["-", "end"]', "measure gain: .* as many other .*: - takes 2, / takes 2, log"),
    ('["-", "end", "start"]', '["+", "end", "start"]', "measure gain: it is made of"),
    ('["-", "end", "start"]', '["-", "gain", "start"]', "measure gain: it is made of"),
    ('["-", "end", "start"]', "[]", "measure gain: it is made of")])
def test_a_file_that_is_amiss_is_refused_by_name(coin, old, new, message):
    path = pathlib.Path(coin[0].study)
    path.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        study.run(coin[0])


# ----- the figure

def drawn(values, figure, **more):
    """The figure of a record: an arm has the three values `values[arm]` = {measure: [...]} of each measure."""
    matplotlib = pytest.importorskip("matplotlib", reason="pip install -e '.[plot]'")
    measured = {arm: {name: study.gather([None if x is None else np.array(x) for x in of_seeds])
                      for name, of_seeds in measures.items()} for arm, measures in values.items()}
    with matplotlib.rc_context(figures.STYLE):
        return study_figure.draw_figure({"measures": measured, "seeds": [0, 1, 2], "figure": figure} | more)


def points(axes) -> dict:
    """{(color, marker, hollow): (x, y)} of the means in a panel: what has an interval."""
    return {(line.get_color(), line.get_marker(), line.get_fillstyle() == "none"):
            (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line, *_ in axes.containers}


THREE = {"few": {"size": [4., 4., 4.], "score": [.1, .2, .3]}, "many": {"size": [400.] * 3, "score": [.7, .8, .9]},
         "coin": {"size": [4., 4., 4.], "score": [.2, .2, .5]}, "cut": {"size": [None] * 3, "score": [.5, .5, .5]}}


def test_a_measure_is_drawn_against_another_with_every_seed_and_both_intervals():
    sheet = drawn(THREE, {"measures": ["score"], "x": ["size"], "log_x": True}, control="coin")
    *_, axes = sheet.axes
    found = points(axes)
    looks = study_figure.looks(list(THREE), ["coin"])
    assert {arm: found.get((look.color, look.marker, look.fill == "none")) for arm, look in looks.items()} == {
        "few": (4, pytest.approx(.2)), "many": (400, pytest.approx(.8)), "coin": (4, pytest.approx(.3)), "cut": None}
    assert "95 % interval; hollow and dashed: control" in sheet.get_supxlabel()
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "size" and axes.get_title("left") == "score"
    seeds = [list(zip(line.get_xdata(), line.get_ydata())) for line in axes.lines if line.get_marker() == "."]
    assert seeds == [list(zip(arm["size"], arm["score"])) for arm in list(THREE.values())[:3]]
    _, _, (across, up) = axes.containers[0]  # Student's t: 4.302653 standard errors of std .1 over three
    assert np.ptp(across.get_segments()[0][:, 0]) == 0
    assert np.ptp(up.get_segments()[0][:, 1]) == pytest.approx(2 * 4.302653 * .1 / 3**.5)
    dashed = [line.get_xdata()[0] for line in sheet.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed == [pytest.approx(.3)]  # the control


def test_whiskers_reach_from_the_mean_to_both_ends_of_the_interval():
    reach = study_figure.reach({"mean": .4, "interval": [.3, .9]})
    assert [end for part in reach for end in part] == pytest.approx([.1, .5])
    assert study_figure.reach({"mean": .4, "interval": None}) == [[0], [0]]


def test_axes_hide_nothing_and_are_in_words():
    arms = THREE | {"few": {"size": [0.] * 3, "score": [.1, .2, .3]}}
    *_, axes = drawn(arms, {"measures": ["score"], "x": ["size"], "log_x": True}).axes
    assert axes.get_xscale() == "symlog" and min(x for x, _ in points(axes).values()) == 0
    small, shares = drawn({"a": {"gap": [1e-7, 2e-7, 4e-7], "score": [.1, .9, .5]}}, {
        "measures": ["gap", "score"], "labels": {"gap": "difference a token, in nats"}}).axes
    assert small.get_xlim()[1] < 1e-6 and small.get_xlabel() == "difference a token, in nats"
    assert shares.get_xlim()[0] <= -.25 and shares.get_xlim()[1] >= 1.25  # the interval: .5 +- .99


def test_an_arrow_leads_from_before_to_after_and_what_lacks_a_mean_has_none():
    arms = {"a": {"s": [0], "s2": [.3], "r": [1], "r2": [.7]}, "b": {"s": [0], "s2": [.2], "r": [1], "r2": [None]}}
    *_, axes = drawn(arms, {"measures": ["s"], "arrows": ["s", "s2", "r", "r2"], "labels": {"r2": "up\n← no"}}).axes
    assert [(arrow.xyann, arrow.xy) for arrow in axes.texts] == [((0, 1), (.3, .7))] and len(axes.containers) == 1
    assert (axes.get_xlabel(), axes.get_title("left")) == ("s2", "up\n← no")


def test_there_are_at_most_three_panels_and_curves_have_the_mean_of_their_seeds():
    curves = {"few": {"0": {"eval/greedy": [[0, 10, 20], [.1, .5, .6]]}, "1": {"eval/greedy": [[0, 10], [.3, .9]]}}}
    sheet = drawn(THREE, {"measures": ["size", "score", "size", "score"], "curves": ["eval/greedy", "none"]},
                  curves=curves)
    _, _, axes = sheet.axes
    assert axes.get_title("left") == "held-out accuracy, greedy"
    thin, other, mean = (line for line in axes.lines if len(line.get_xdata()))
    assert thin.get_alpha() < .5 and len(other.get_xdata()) == 2
    assert list(mean.get_xdata()) == [0, 10] and list(mean.get_ydata()) == pytest.approx([.2, .7])


def test_25_arms_can_be_told_apart_and_are_named_beside_their_points():
    arms = {f"arm {i}": {"score": [.01 * i, .01 * i + .01, .01 * i + .02], "size": [1. + i] * 3} for i in range(25)}
    looks = study_figure.looks(list(arms), [])
    assert len({(look.color, look.marker) for look in looks.values()}) == 25  # points
    assert len({(look.color, look.line) for look in looks.values()}) == 25  # curves
    sheet = drawn(arms, {"measures": ["score"], "x": ["size"]})
    dots, against = sheet.axes
    assert [label.get_text() for label in dots.get_yticklabels()] == list(arms)
    assert [label.get_color() for label in dots.get_yticklabels()] == [look.color for look in looks.values()]  # the key
    found = points(dots)
    for row, (arm, look) in enumerate(looks.items()):
        assert found[look.color, look.marker, False] == (pytest.approx(.01 * row + .01), row)
    assert dots.get_ylim()[0] > dots.get_ylim()[1]  # the first arm on top
    sheet.draw_without_rendering()
    heights = [label.get_window_extent().height for label in dots.get_yticklabels()]
    places = [dots.transData.transform((0, row))[1] for row in range(25)]
    assert max(heights) <= places[0] - places[1]  # names do not touch
    assert against.get_window_extent().width > 0.2 * sheet.bbox.width
    dots, _ = drawn(arms, {"measures": ["score"], "x": ["size"]}, shown={"arms": ["arm 3", "arm 1"]}).axes
    assert [label.get_text() for label in dots.get_yticklabels()] == ["arm 3", "arm 1"]


def test_an_unknown_study_is_answered_with_those_there_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="--study=two_shot: no file .*one_shot, qwen, sixteen_bits, smollm2"):
        study.load("two_shot")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository_can_be_read_and_their_commands_given(path, monkeypatch, parse):
    """Every command names a script, and flags that it has."""
    monkeypatch.chdir(ROOT)
    _, loaded = study.load(str(path))
    axes = {name for key in ("measures", "x", "curves") for name in loaded["figure"].get(key, [])[:3]}
    assert axes <= (study_figure.LABELS | loaded["figure"].get("labels", {})).keys()
    for arm in loaded["arms"]:
        for quick in (False, True):
            for line in commands.commands(loaded, {"work": "w", "data": "d", "arm": arm, "seed": "0", "base": "0",
                                                     "example": "0"}, quick):
                script, *given = shlex.split(line)
                parse(record_of(script), *given)
