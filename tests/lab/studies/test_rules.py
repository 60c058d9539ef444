"""The rules of a study: which are refused and why, how they are judged, and what the page says of them."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import commands, records, rules, statistics, study

from fixtures import ROOT

HEAD = '''
title = "A coin"
question = "Is it fair?"
known = "Nothing."
seeds = [0, 1, 2, 3, 4]
control = "plain"
commands.rl = "train --seed={seed} --run_dir={work}/{arm}{seed}"
arms.plain = {}
arms.bent.rl = ["--reward=random"]
[measures]
end = "{arm}{seed}/summary.json: final.greedy"
start = "{arm}{seed}/summary.json: base.greedy"
gain = ["-", "end", "start"]
length = "{arm}{seed}/summary.json: length"
'''
RULE = {"says": "so", "arm": "bent", "measure": "end"}


def units(seeds):
    return commands.units({"seeds": seeds}, seeds)


def load(tmp_path, *given, head=HEAD):
    """The study of HEAD with these rules, as it is loaded from a file."""
    def written(value):
        return str(value).lower() if isinstance(value, bool) else json.dumps(value)

    text = head + "".join("\n[[rules]]\n" + "".join(f"{key} = {written(value)}\n" for key, value in rule.items())
                          for rule in given)
    (tmp_path / "coin.toml").write_text(text)
    return study.load(str(tmp_path / "coin.toml"))[1]


@pytest.mark.parametrize("rule, message", [
    ({}, "it has no side; give it one of above, below, within, most_above, most_below"),
    ({"above": .1, "below": .9}, "it has above and below; give it one of"),
    ({"within": [.1]}, r"within is not as it should be; write within = \[-0.1, 0.1\]"),
    ({"within": [.3, .1]}, "within is not as it should be"), ({"above": "high"}, "above is not as it should be"),
    ({"above": .1, "over": 3}, "over is no key of a rule; there are says, arm, measure, difference, above"),
    ({"above": -.1}, "no value of end, which is from 0 to 1, could fail it; take a number that can go either way"),
    ({"above": 0}, "could fail it"), ({"above": 1}, "could meet it"), ({"below": 1.05}, "could fail it"),
    ({"below": 0}, "could meet it"), ({"within": [0, 1]}, "could fail it"), ({"within": [1, 2]}, "could meet it"),
    ({"difference": True, "below": 1}, "from -1 to 1, could fail it"),
    ({"difference": True, "below": .02, "base": 1.0}, "from -1 to 0, could fail it"),
    ({"measure": "gain", "below": .02, "base": 1.0}, "from -1 to 0, could fail it"),
    ({"measure": "gain", "below": 1}, "from -1 to 1, could fail it"),
    ({"above": .1, "base": .5}, "base is the known value that a difference subtracts; leave it out"),
    ({"arm": "plain", "difference": True, "above": .1}, "a difference is to the control: name another arm"),
    ({"most_above": 1}, "could meet it"), ({"above": .1, "easy": "yes"}, "easy is not as it should be; write true"),
    ({"above": .1, "known": [9]}, r"known: write words, or some of the study's seeds, as in known = \[0, 1\]"),
    ({"above": .1, "known": 3}, "known is not as it should be; write text"),
    ({"measure": "ned", "above": .1}, "a rule needs says, arm")])
def test_a_rule_that_cannot_be_judged_is_refused_by_file_number_and_fix(tmp_path, rule, message):
    with pytest.raises(UserError, match=rf"coin.toml: rule 2 \(so\): .*{message}") as error:
        load(tmp_path, RULE | {"above": .5}, RULE | rule)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", [
    {"above": .99}, {"below": .01}, {"within": [.9, 1.0]}, {"difference": True, "within": [-.1, .1]},
    {"measure": "gain", "above": .3, "base": .4}, {"measure": "length", "above": 300}, {"above": .5, "primary": True},
    {"measure": "gain", "most_above": .3, "known": "seeds 0 to 2"}, {"most_below": .5}])
def test_a_rule_that_can_go_either_way_is_taken(tmp_path, rule):
    assert load(tmp_path, RULE | rule)["rules"] == [RULE | rule]


def test_one_rule_that_counts_gives_the_verdict(tmp_path):
    for marks in ({"easy": True, "primary": True}, {"turned": True}):
        with pytest.raises(UserError, match="coin.toml: a rule that is turned or easy cannot give"):
            load(tmp_path, RULE | {"above": .5} | marks)
    with pytest.raises(UserError, match="coin.toml: two rules have primary = true"):
        load(tmp_path, RULE | {"above": .5, "primary": True}, RULE | {"below": .5, "primary": True})


@pytest.mark.parametrize("old, new, message", [
    ('arms.bent.rl = ["--reward=random"]', "arms.bent = {}", "the arms plain and bent have the same commands"),
    ("control", "looks = [5, 10]\ncontrol", r"looks: write three rising numbers of seeds, as in looks = \[5, 10, 20\]"),
    ("control", 'success = {measure = "ned", above = 1}\ncontrol', "success: write success = {measure"),
    ("control", "bases = [0, 1]\ncontrol", "bases: write a list with one number for each"),
    ('length = "{arm}{seed}/summary.json: length"', 'length = {range = [0, 1]}', "measure length: write {source ="),
    ('length = "{arm}{seed}/summary.json: length"', 'length = {source = "a: b", range = [1, 0]}', "measure length:")])
def test_a_design_that_is_amiss_is_refused(tmp_path, old, new, message):
    with pytest.raises(UserError, match=f"coin.toml: {message}"):
        load(tmp_path, RULE | {"above": .5}, head=HEAD.replace(old, new, 1))


def test_arms_with_the_same_flags_on_other_models_are_not_the_same(tmp_path):
    head = HEAD
    for old, new in (("train --seed", "train --model={model} --seed"), ("arms.plain = {}", 'arms.plain.model = "a"'),
                     ('arms.bent.rl = ["--reward=random"]', 'arms.bent.model = "b"')):
        head = head.replace(old, new)
    load(tmp_path, RULE | {"above": .5}, head=head)


@pytest.mark.parametrize("source, span", [
    ("c.jsonl: gsm8k", (0, 1)), ("c.jsonl: gsm8k: truncated", (0, 1)), ("c.jsonl: all: num_tokens", (0, math.inf)),
    ("s.json: pass@k.256", (0, 1)), ("s.json: benchmarks.times_0.accuracy", (0, 1)),
    ("s.json: files.a@4.60%.against.times_0.auroc.rouge_l", (0, 1)), ("s.json: arms.hybrid.recovered", statistics.ANY),
    ("s.json: forward_tokens", (0, math.inf)), ("r.json: layers.2.cosine_beside.0", (-1, 1)),
    ("{tokens}", statistics.ANY),
    (["-", "x", "x"], (-1, 1)), (["/", "x", "x"], statistics.ANY)])
def test_the_range_of_a_measure_follows_from_its_source(source, span):
    assert rules.span({"measures": {"m": source, "x": "c.jsonl: a"}}, "m") == span
    assert rules.span({"measures": {"m": source}, "ranges": {"m": [2, 3]}}, "m") == (2, 3)


# ----- the verdict

def judged(given, values, **more):
    """Rules judged on `{arm: values of the seeds}` of the measure "end", an accuracy; the control is "plain"."""
    content = {"measures": {"end": "s.json: accuracy"}, "arms": dict.fromkeys(values), "rules": given, "seeds":
               list(range(len(next(iter(values.values()))))), "control": "plain"} | more
    measured = study.measure(content, {arm: {"end": [None if x is None else np.array(x) for x in seeds]}
                                       for arm, seeds in values.items()}, units(content["seeds"]))
    return rules.judged(content, measured, units(content["seeds"]))


def verdict(side, seeds, **more):
    return judged([RULE | side], {"bent": seeds, "plain": [.5] * len(seeds)}, **more)[0]


FOUR = [.30, .32, .28, .31]  # mean .3025, 95 %: .275 to .330, 90 %: .282 to .323


@pytest.mark.parametrize("side, wanted", [
    ({"above": .27}, "agree"), ({"above": .28}, "undecided"), ({"above": .34}, "disagree"),
    ({"below": .34}, "agree"), ({"below": .32}, "undecided"), ({"below": .27}, "disagree"),
    ({"within": [.28, .33]}, "agree"), ({"within": [.29, .33]}, "undecided"), ({"within": [.325, .4]}, "disagree"),
    ({"within": [.1, .278]}, "disagree"), ({"within": [0, .33]}, "agree"),
    ({"difference": True, "above": -.23}, "agree"), ({"difference": True, "within": [-.22, -.17]}, "agree")])
def test_a_rule_is_decided_by_its_test_and_shown_with_95_percent(side, wanted):
    found = verdict(side, FOUR)
    assert (found["verdict"], found["p_value"] <= found["level"] == .05) == (wanted, wanted != "undecided")
    shift = .5 * ("difference" in side)
    assert found["interval"] == pytest.approx((.2753 - shift, .3297 - shift), abs=1e-4)


def test_most_seeds_are_judged_by_the_exact_sign_test():
    """Nine of ten: p = 22 / 1,024, which is below the level of three planned analyses; the failure does not matter."""
    seeds = [.99, .98, .2, .97, .99, 1., .96, .95, .99, .98]
    found = verdict({"most_above": .8}, seeds, looks=[5, 10, 20])
    assert (found["count"], found["of"], found["verdict"]) == (9, 10, "agree")
    assert found["p_value"] == pytest.approx(22 / 1024) and found["median"] == pytest.approx(.98)
    assert records.shown(found) == "9 of 10: 0.900 [0.555, 0.997], median 0.980"
    assert verdict({"most_below": .8}, seeds)["verdict"] == "disagree"
    assert verdict({"above": .8}, seeds)["verdict"] == "undecided"  # the mean, of which one failure takes a tenth
    few = verdict({"most_above": .8}, seeds[:5])  # with four of five, 20 of 28 decide, and happen in 91 %
    assert (few["verdict"], few["open"]) == ("undecided", "needs about 28 seeds")
    assert verdict({"most_above": .5}, [.5] * 6)["count"] == 0  # the number itself is not above it
    assert rules.required(found) == "bent: end, in most seeds above 0.8"


def test_what_was_turned_or_easy_is_judged_and_not_counted():
    seeds = {"plain": [.5] * 5, "bent": [.9, .91, .92, .9, .93]}
    easy, turned = (RULE | {"says": key, "above": .1, key: True} for key in ("easy", "turned"))
    found = judged([easy, RULE | {"above": .5, "known": "seed 0"}, turned, RULE | {"above": .99}], seeds)
    assert [rule["verdict"] for rule in found] == ["agree", "agree", "agree", "disagree"]
    assert rules.primary(found) is found[1] and rules.tally(found) == "0 held, 1 failed, 0 undecided"
    assert [row[0] for row in records.rules({"rules": found})] == [
        "easy (almost sure to hold: not counted)", "so (**primary**; known before: seed 0)",
        "turned (reversed after a pilot: not counted)", "so"]


@pytest.mark.parametrize("seeds, side, wanted, why", [
    ([.9] * 3, {"above": .5}, "undecided", "needs 5 seeds, as all are equal"), ([.9] * 5, {"above": .5}, "agree", None),
    ([.9] * 5, {"below": .5}, "disagree", None), ([.9] * 5, {"within": [.8, .95]}, "agree", None),
    ([.9] * 5, {"above": .9}, "undecided", "equal to the number of the rule"),
    ([.9], {"above": .5}, "undecided", "one seed"), ([None, None], {"above": .5}, "undecided", "not measured"),
    ([.9, None, .9, .9, .9], {"above": .5}, "undecided", "needs 5 seeds, as all are equal"),
    ([.9, .5, .8], {"above": .6}, "undecided", "needs about 28 seeds"),
    ([.61, .5, .7], {"above": .6}, "undecided", "needs more than 100 seeds")])
def test_what_is_undecided_says_why_and_how_many_seeds_it_needs(seeds, side, wanted, why):
    found = verdict(side, seeds)
    assert (found["verdict"], found.get("open")) == (wanted, why)
    if len(set(seeds) - {None}) == 1:
        assert found["interval"] is None and found.get("equal", False) == (len(seeds) > 1)


def test_seeds_that_were_known_are_left_out_beside_the_verdict():
    seeds = [.9, .95] + FOUR
    found = verdict({"above": .27, "known": [0, 1]}, seeds)
    assert found["verdict"] == "undecided" and found["new"]["verdict"] == "agree"
    assert records.rules({"rules": [found]})[0][0] == (
        "so (**primary**; known before: seeds 0, 1; the others alone: 0.302 [0.275, 0.330], held)")
    most = verdict({"most_above": .35, "known": [0, 1]}, seeds)["new"]
    assert (most["count"], most["of"], most["verdict"]) == (0, 4, "undecided")


def test_a_rule_of_a_difference_that_was_not_measured_is_undecided_whatever_the_arm_has():
    content = {"measures": {"end": "s.json: accuracy"}, "arms": {"bent": {}}, "seeds": list(range(4)),
               "rules": [RULE | {"difference": True, "above": .1}]}
    measured = study.measure(content, {"bent": {"end": [np.array(x) for x in FOUR]}}, units(content["seeds"]))
    found, = rules.judged(content, measured, units(content["seeds"]))
    assert (found["verdict"], found["open"], found["mean"]) == ("undecided", "not measured", None)


def test_one_seed_over_problems_shows_its_interval_and_decides_nothing():
    found = verdict({"above": .5}, [np.ones(64)])
    assert (found["verdict"], found["over"], found["interval"]) == (
        "undecided", "problems", pytest.approx((64 / (64 + 1.96**2), 1), abs=1e-5))  # Wilson's, for 64 of 64


def test_the_others_are_judged_by_holm_and_the_primary_is_not():
    """By hand: p-values in order against .05 / 3, .05 / 2 and .05; the first that is above its level ends it."""
    seeds = {"plain": [.5] * 4, "near": [.52, .6, .58, .6], "mid": [.52, .62, .6, .6], "far": [.9, .91, .92, .9]}
    near, mid, far = ({"says": arm, "arm": arm, "measure": "end", "above": .5} for arm in ("near", "mid", "far"))
    p_values = {arm: stats.ttest_1samp(seeds[arm], .5).pvalue for arm in ("near", "mid", "far")}
    assert .025 < p_values["near"] < p_values["mid"] < .05 and p_values["far"] < .05 / 3
    found = judged([near, mid], seeds)  # alone, and one other
    assert [(rule["verdict"], rule["level"], rule["primary"]) for rule in found] == [
        ("agree", .05, True), ("agree", .05, False)]
    found = judged([far | {"primary": True}, near, mid, far], seeds)
    assert [(rule["says"], rule["verdict"], rule["level"]) for rule in found] == [
        ("far", "agree", .05), ("near", "undecided", .05 / 2), ("mid", "undecided", .05 / 2), ("far", "agree", .05 / 3)]
    assert [rule["p_value"] for rule in found[1:3]] == pytest.approx([p_values["near"], p_values["mid"]])
    assert rules.tally(found) == "1 held, 0 failed, 2 undecided"
    assert rules.primary(judged([near, far | {"primary": True, "above": .99}], seeds))["verdict"] == "disagree"


def test_looks_have_their_level_and_decide_at_a_look_alone():
    looks = {"looks": [5, 10, 20]}
    assert verdict({"above": .5}, [.9, .91, .92, .9, .93], **looks)["level"] == .0221
    assert verdict({"above": .5}, [.9, .91, .92, .9, .93], **looks)["verdict"] == "agree"
    early = verdict({"above": .5}, [.9, .91, .92, .9, .93, .9], **looks)
    assert (early["verdict"], early["open"]) == ("undecided", "between two planned analyses")


def test_no_interval_leaves_the_range_of_its_measure():
    found = verdict({"above": .5}, [.986, .41, 1.0])
    assert found["interval"] == (0, 1)
    both = judged([RULE | {"difference": True, "above": .5}], {"plain": [.1, .9, .0], "bent": [.986, .41, 1.0]})[0]
    assert both["interval"] == (-1, 1)


def test_a_record_is_judged_again_from_its_seeds_alone(tmp_path, monkeypatch):
    """A measure that it lacks is made of others, or taken from the arm that has the same file and path. Words are those
    of the file; the first rules stay."""
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    rule = RULE | {"above": .5}
    content = load(tmp_path, rule)
    found = {arm: {name: [np.array(x + shift) for x in (.5, .6, .55)] for name in content["measures"]}
             for arm, shift in (("plain", 0), ("bent", .2))}
    content["seeds"] = [0, 1, 2]
    record = {"study": "coin", "origin": "here"} | study.written(
        content, study.measure(content, found, units([0, 1, 2])), units([0, 1, 2]))
    record = json.loads(json.dumps(record))
    assert study.again(record) == record  # nothing changed
    head = HEAD.replace("length =", 'of_plain = "plain{seed}/summary.json: final.greedy"\n'
                        'ahead = ["-", "end", "of_plain"]\nlength =').replace("Is it fair?", "Fair?")
    load(tmp_path, rule, RULE | {"measure": "ahead", "above": .1}, head=head)
    again = study.again(record)
    np.testing.assert_allclose(again["measures"]["bent"]["ahead"]["seeds"], [.2] * 3)
    assert again["rules"][1]["open"] == "needs 5 seeds, as all are equal" and again["question"] == "Fair?"
    assert again["rules_before"] == record["rules"] and study.again(again) == again
    content = load(tmp_path, rule, head=HEAD.replace("control =", 'over = "problems"\ncontrol ='))
    of_problems = {arm: {name: [np.tile([0, 1, shift], 9) + i / 8 for i in range(3)] for name in content["measures"]}
                   for arm, shift in (("plain", 0), ("bent", .2))}
    whole = {"study": "coin"} | study.written(content, study.measure(content, of_problems, units([0, 1, 2])),
                                              units([0, 1, 2]))
    assert whole["rules"][0]["over"] == "problems" and whole["measures"]["bent"]["end"]["of_problems"][0][:2] == [0, 1]
    assert study.again(whole) == json.loads(json.dumps(whole))  # it has each problem's value in each seed
    load(tmp_path, rule)
    more = HEAD.replace("[measures]", 'arms.later.rl = ["--reward=format"]\n[measures]').replace("fair?", "fair now?")
    later = RULE | {"arm": "later", "above": .6}
    load(tmp_path, rule, later, head=more)  # an arm that was not run yet is left out, with its rule
    assert study.again(record) == record | {"question": "Is it fair now?"}
    for given, head in (((rule, later | {"primary": True}), more), ((rule,), HEAD.replace("plain", "other")),
                        ((rule,), more.replace("[measures]", 'shown.arms = ["later"]\n[measures]')),
                        ((rule,), 'abstract = "[[later | end]]"\n' + more)):
        load(tmp_path, *given, head=head)
        assert study.again(record) == record  # what is asked first is to be run
    load(tmp_path, rule, head=HEAD.replace("control =", "looks = [5, 10, 20]\ncontrol ="))
    assert study.again(record) == record  # the rules of runs to come, with other looks


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_rules_that_came_after_the_runs_say_so(path):
    text = path.read_text("utf-8")
    blocks = [block for block in text.split("\n\n") if "[[rules]]" in block]
    for block in blocks:
        assert "AFTER the runs" not in block or "added = " in block, block
        assert all("after the runs" in said for said in re.findall('added = "(.*)"', block)), block
