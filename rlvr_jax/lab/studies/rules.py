"""The rules of a study: they are its prediction. Which ones are refused, and how they are judged.

A rule has its sentence (`says`), an arm, a measure, and one side: `above` or `below` a number, or `within` two. It is
of the measure itself, or, with `difference = true`, of the paired difference to the control.
"""

import math
from typing import Optional

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import design, statistics

SIDES = ("above", "below", "within")
KEYS = ("says", "arm", "measure", "difference", *SIDES, "primary", "base", "added")
SHARE = (0.0, 1.0)
# words in the path of a number, "FILE.json: path", by which it is known to be a share, an accuracy, an AUROC or so
SHARES = {"accuracy", "greedy", "sampled", "right", "pass@k", "maj@k", "auroc", "ece", "brier", "mean_confidence",
          "stated", "value", "truncated", "changed", "moved", "steered", "differ", "first_of_differ",
          "first_of_changed", "greedy_careful_share", "train_accuracy", "regimes"}
COUNTS = {"forward_tokens", "train/tokens", "num_tokens", "count", "kl", "stable_rank", "strength", "saturation_step",
          "wrong_steps_per_100"}  # and by these that it is at least 0


# ----- the range of a measure


def span(study: dict, name: str) -> tuple:
    """(lowest, highest) value that a measure can have: as the file states it, or as its source tells."""
    if name in study.get("ranges", {}):
        return tuple(study["ranges"][name])
    source = study["measures"][name]
    if isinstance(source, list):
        if source[0].startswith("overlap"):
            return SHARE
        return less(span(study, source[1]), span(study, source[2])) if source[0] == "-" else statistics.ANY
    file, _, path = source.partition(": ")
    words = path.split(".")
    if file.endswith(".jsonl") and not file.endswith("metrics.jsonl"):
        return (0.0, math.inf) if path.partition(": ")[2] in COUNTS else SHARE
    if COUNTS & set(words[-2:]):
        return 0.0, math.inf
    return SHARE if SHARES & set(words[-2:]) else (-1.0, 1.0) if ".cosine_" in path else statistics.ANY


def less(one: tuple, other: tuple) -> tuple:
    """The range of the difference of two measures."""
    return one[0] - other[1], one[1] - other[0]


def rule_span(study: dict, rule: dict) -> tuple:
    """The range of what a rule is of; `base` is the known value of what is taken away in a difference."""
    if rule["arm"] in design.contrasts(study):
        return SHARE
    whole, source = span(study, rule["measure"]), study["measures"][rule["measure"]]
    if rule.get("difference"):
        return less(whole, 2 * (rule["base"],) if "base" in rule else whole)
    return less(span(study, source[1]), 2 * (rule["base"],)) if "base" in rule else whole


# ----- which rules are refused


def fault(study: dict) -> str:
    """What is wrong with the first rule that cannot be judged, and what would mend it; empty if none is."""
    for number, rule in enumerate(study["rules"], 1):
        wrong = shape_fault(study, rule) or range_fault(study, rule)
        if wrong:
            says = rule.get("says", "without says") if isinstance(rule, dict) else rule
            return f"rule {number} ({says}): {wrong}"
    if sum(bool(rule.get("primary")) for rule in study["rules"]) > 1:
        return "two rules have primary = true; one rule gives the study its verdict: leave it to that one"
    return ""


def shape_fault(study: dict, rule: dict) -> str:
    """What is wrong with the keys of a rule."""
    if not isinstance(rule, dict) or not (rule.get("arm") in study["arms"] and rule.get("measure") in study["measures"]
                                          and isinstance(rule.get("says"), str)):
        return "a rule needs says, arm (of the arms) and measure (of the measures)"
    unknown, sides = [key for key in rule if key not in KEYS], [side for side in SIDES if side in rule]
    if unknown:
        return f"{unknown[0]} is no key of a rule; there are {', '.join(KEYS)}"
    if len(sides) != 1:
        return f"it has {' and '.join(sides) or 'no side'}; give it one of above, below, within"
    if rule.get("difference") and rule["arm"] == study.get("control", rule["arm"]):
        return "a difference is to the control: name another arm, and a control in the file"
    bounds = rule["within"] if "within" in rule else [rule[sides[0]]]
    if not isinstance(bounds, list) or not all(type(x) in (int, float) and math.isfinite(x) for x in bounds) or (
            "within" in rule and (len(bounds) != 2 or bounds[0] >= bounds[1])):
        return f"{sides[0]} is not as it should be; write above = 0.1, below = 0.1 or within = [-0.1, 0.1]"
    if "base" in rule and not (rule.get("difference") or study["measures"][rule["measure"]][0] == "-"):
        return "base is the known value of what is taken away; leave it out, for this is no difference"
    return ""


def range_fault(study: dict, rule: dict) -> str:
    """Why no value in the range of what is measured could fail the rule, or could meet it."""
    low, high = rule_span(study, rule)
    bounds = rule.get("within") or [rule.get("above", -math.inf), rule.get("below", math.inf)]
    never_fails = bounds[0] <= low and bounds[1] >= high
    if never_fails or bounds[0] >= high or bounds[1] <= low:
        return (f"no value of {rule['measure']}, which is from {low:g} to {high:g}, could "
                f"{'fail' if never_fails else 'meet'} it; take a number that can go either way, or leave the rule out")
    return ""


# ----- the verdict


def judged(study: dict, measured: dict, number: int) -> list[dict]:
    """The rules with what was measured, the level and the verdict: `agree`, `disagree` or `undecided`.

    The primary rule is judged at the study's level, the others by Holm's method over them. `open` says why a rule is
    undecided, and how many seeds would decide it. `number` is how many seeds were asked for.
    """
    rules, error = marked(study["rules"]), statistics.alpha(study.get("looks"))
    judging = [rule | {"measured": of_rule(rule, measured), "span": rule_span(study, rule)} for rule in rules]
    early = bool(study.get("looks")) and number not in study["looks"]
    chances = [1.0 if early else chance(rule) for rule in judging]
    others = [i for i, rule in enumerate(judging) if not rule["primary"]]
    levels = dict(zip(others, statistics.holm([chances[i] for i in others], error)))
    return [verdict(rule, chances[i] <= levels.get(i, error), levels.get(i, error), early)
            for i, rule in enumerate(judging)]


def marked(rules: list[dict]) -> list[dict]:
    """The rules, each with `primary`; without any that is named so, the first is."""
    named = next((i for i, rule in enumerate(rules) if rule.get("primary")), 0)
    return [rule | {"primary": i == named} for i, rule in enumerate(rules)]


def of_rule(rule: dict, measured: dict) -> dict:
    """What was measured of the rule: its arm's measure, or the difference to the control."""
    measure = measured[rule["arm"]][rule["measure"]]
    return measure.get("difference", {}) if rule.get("difference") else measure


def values(rule: dict) -> list[float]:
    """What the seeds have, of those that have it; where they share bases, the means of these; where intervals are over
    problems, what each problem has."""
    measured = rule["measured"]
    return measured.get("of_problems") or measured.get("of_bases") or [
        value for value in measured.get("seeds", ()) if value is not None]


def chance(rule: dict) -> float:
    """The p-value of the side on which the rule would be decided; 1 where nothing can decide it."""
    seeds = values(rule)
    if len(seeds) < 2:
        return 1.0
    if statistics.equal(seeds):
        return 1.0 if len(seeds) < statistics.FEWEST_EQUAL or side(rule, seeds[0]) == "undecided" else 0.0
    if "within" in rule:
        return min(statistics.inside(seeds, *rule["within"], rule["span"]), statistics.outside(seeds, *rule["within"]))
    return statistics.two_sided(seeds, rule.get("above", rule.get("below")))


def side(rule: dict, mean: float) -> str:
    """The verdict if the mean were known to be this number."""
    if "within" in rule:
        low, high = rule["within"]
        return "agree" if low <= mean <= high else "disagree"
    past = mean - rule.get("above", rule.get("below"))
    return "undecided" if past == 0 else "agree" if (past > 0) == ("above" in rule) else "disagree"


def verdict(rule: dict, decided: bool, level: float, early: bool) -> dict:
    """A rule with its verdict, and the interval at its level: of two one-sided tests for `within`."""
    seeds, measure = values(rule), rule["measured"]
    error = 2 * level if "within" in rule else level
    whole = {key: value for key, value in rule.items() if key not in ("measured", "span")} | {
        "mean": measure.get("mean"), "level": 1 - error, "verdict": side(rule, measure["mean"]) if decided else
        "undecided", "interval": statistics.interval(seeds, error, rule["span"])}
    if statistics.equal(seeds):
        whole["equal"] = True
    if "of_problems" in measure:
        whole["over"] = "problems"
    elif len(measure.get("seeds", ())) == 1 and measure.get("interval"):
        whole |= {"interval": measure["interval"], "level": 1 - statistics.ALPHA, "over": "problems"}
    return whole | ({} if decided else {"open": why(rule, seeds, level, early)})


def why(rule: dict, seeds: list[float], level: float, early: bool) -> str:
    """Why a rule is undecided; how many seeds would decide it at its level, with the effect and the spread seen."""
    if not seeds:
        return "not measured"
    if early:
        return "between two looks"
    many = "problems" if "of_problems" in rule["measured"] else "seeds"
    if len(seeds) == 1:
        return "one seed"
    if statistics.equal(seeds):
        return (f"needs {statistics.FEWEST_EQUAL} {many}, as all are equal" if side(rule, seeds[0]) != "undecided"
                else "equal to the number of the rule")
    needed = seeds_needed(rule, seeds, level)
    return f"needs about {needed} {many}" if needed else f"needs more than {statistics.MOST_SEEDS} {many}"


def seeds_needed(rule: dict, seeds: list[float], level: float) -> Optional[int]:
    mean, spread = sum(seeds) / len(seeds), statistics.standard_error(seeds) * len(seeds) ** 0.5
    if "within" not in rule:
        effect = mean - rule.get("above", rule.get("below"))
        return statistics.seeds_needed(lambda number: statistics.power(effect, spread, number, level))
    low, high = rule["within"]
    if low <= mean <= high:
        return statistics.seeds_needed(lambda number: statistics.power_inside(mean - low, high - mean, spread, number,
                                                                              level))
    effect = max(low - mean, mean - high)  # one-sided, so at twice the level
    return statistics.seeds_needed(lambda number: statistics.power(effect, spread, number, 2 * level))


def headline(rules: list[dict]) -> str:
    """The verdict of a study: that of its primary rule, or of its first."""
    return primary(rules)["verdict"] if rules else "undecided"


def primary(rules: list[dict]) -> dict:
    return next((rule for rule in rules if rule.get("primary")), rules[0])


def tally(rules: list[dict]) -> str:
    """How many of the other rules held, were refuted, and are open."""
    if len(rules) < 2:
        return "no other rule"
    others = [rule["verdict"] for rule in rules if rule is not primary(rules)]
    return ", ".join(f"{others.count(verdict)} {word}" for verdict, word in
                     (("agree", "held"), ("disagree", "refuted"), ("undecided", "open")))


def required(rule: dict) -> str:
    """What has to be measured for the rule to hold: "one: pass@1, less base's, above 0.1"."""
    bound = next((f"{key} {rule[key][0]:g} to {rule[key][1]:g}" if key == "within" else f"{key} {rule[key]:g}"
                  for key in SIDES if key in rule), "")
    return f"{rule['arm']}: {rule['measure']}{', less the control' if rule.get('difference') else ''}, {bound}"


# ----- what an arm says, and arms that are one


def refuse_twins(path, arms: dict[str, list[str]]) -> None:
    """Raises UserError where the commands of two arms differ in nothing but the names of what they write."""
    seen = {}
    for arm, lines in arms.items():
        text = unnamed(lines)
        if text in seen:
            raise UserError(f"{path}: the arms {seen[text]} and {arm} have the same commands; give one of them other "
                            "flags, or take it out")
        seen[text] = arm


def unnamed(lines: list[str]) -> str:
    """Commands with numbers in place of the names after --run_dir= and --out=, wherever these stand."""
    text = "\n".join(lines)
    made = [word.split("=", 1)[1] for word in text.split() if word.startswith(("--run_dir=", "--out="))]
    for number, name in sorted(enumerate(dict.fromkeys(made)), key=lambda pair: -len(pair[1])):
        text = text.replace(name, f"<{number}>")
    return text
