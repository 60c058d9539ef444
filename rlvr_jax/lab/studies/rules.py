"""The rules of a study: they are its prediction. Which ones are refused, and how they are judged.

A rule has its sentence (`says`), an arm, a measure, and one side: the mean is `above` or `below` a number, or `within`
two, or most seeds are above it (`most_above`) or below it (`most_below`), by the exact sign test. It is of the measure
itself, or, with `difference = true`, of the paired difference to the control. What was `known` before the rule was
written stands in its row: words, or a list of seeds, and then the others are judged alone beside all of them. A rule
that was `turned` after a pilot, or is so `easy` that it could hardly fail, does not count.
"""

import math
import re

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import statistics

SIDES = ("above", "below", "within", "most_above", "most_below")
KEYS = {"says": str, "arm": str, "measure": str, "difference": bool} | dict.fromkeys(SIDES, object) | {
    "primary": bool, "base": object, "added": str, "known": (str, list), "turned": bool, "easy": bool}
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
    whole, source = span(study, rule["measure"]), study["measures"][rule["measure"]]
    if rule.get("difference"):
        return less(whole, 2 * (rule["base"],) if "base" in rule else whole)
    return less(span(study, source[1]), 2 * (rule["base"],)) if "base" in rule else whole


# ----- which rules are refused


def fault(study: dict) -> str:
    """What is wrong with the first rule that cannot be judged, and what would mend it; empty if none is."""
    for number, rule in enumerate(study["rules"], 1):
        if wrong := shape_fault(study, rule) or range_fault(study, rule):
            says = rule.get("says", "without says") if isinstance(rule, dict) else rule
            return f"rule {number} ({says}): {wrong}"
    if sum(bool(rule.get("primary")) for rule in study["rules"]) > 1:
        return "two rules have primary = true; one rule gives the study its verdict: leave it to that one"
    if primary(study["rules"]) is None or not counts(primary(study["rules"])):
        return "a rule that is turned or easy cannot give the verdict: add primary = true to one that is neither"
    return ""


def shape_fault(study: dict, rule: dict) -> str:
    """What is wrong with the keys of a rule."""
    if not isinstance(rule, dict) or not (rule.get("arm") in study["arms"] and rule.get("measure") in study["measures"]
                                          and isinstance(rule.get("says"), str)):
        return "a rule needs says, arm (of the arms) and measure (of the measures)"
    unknown, sides = [key for key in rule if key not in KEYS], [side for side in SIDES if side in rule]
    wrong = [key for key, value in rule.items() if not isinstance(value, KEYS.get(key, object))]
    if unknown:
        return f"{unknown[0]} is no key of a rule; there are {', '.join(KEYS)}"
    if wrong:
        return f"{wrong[0]} is not as it should be; write {'true' if KEYS[wrong[0]] is bool else 'text'}"
    if len(sides) != 1:
        return f"it has {' and '.join(sides) or 'no side'}; give it one of {', '.join(SIDES)}"
    if isinstance(rule.get("known"), list) and any(seed not in study["seeds"] for seed in rule["known"]):
        return f"known: write words, or some of the study's seeds, as in known = {study['seeds'][:2]}"
    if rule.get("difference") and rule["arm"] == study.get("control", rule["arm"]):
        return "a difference is to the control: name another arm, and a control in the file"
    bounds = rule["within"] if "within" in rule else [threshold(rule)]
    if not isinstance(bounds, list) or not all(type(x) in (int, float) and math.isfinite(x) for x in bounds) or (
            "within" in rule and (len(bounds) != 2 or bounds[0] >= bounds[1])):
        return f"{sides[0]} is not as it should be; write {sides[0]} = {'[-0.1, 0.1]' if 'within' in rule else 0.1}"
    if "base" in rule and not (rule.get("difference") or study["measures"][rule["measure"]][0] == "-"):
        return "base is the known value of what is taken away; leave it out, for this is no difference"
    return ""


def bounds_of(rule: dict) -> tuple:
    """(lowest, highest) value that the rule asks for."""
    return tuple(rule.get("within") or (rule.get("above", rule.get("most_above", -math.inf)),
                                        rule.get("below", rule.get("most_below", math.inf))))


def range_fault(study: dict, rule: dict) -> str:
    """Why no value in the range of what is measured could fail the rule, or could meet it."""
    (low, high), bounds = rule_span(study, rule), bounds_of(rule)
    never_fails = bounds[0] <= low and bounds[1] >= high
    if never_fails or bounds[0] >= high or bounds[1] <= low:
        return (f"no value of {rule['measure']}, which is from {low:g} to {high:g}, could "
                f"{'fail' if never_fails else 'meet'} it; take a number that can go either way, or leave the rule out")
    return ""


# ----- the verdict


def judged(study: dict, measured: dict, repeated: list[dict]) -> list[dict]:
    """The rules with what was measured, its 95 % interval, p-value, level and verdict: `agree`, `disagree` or
    `undecided`.

    The primary rule is judged at the study's level, the others by Holm's method over them. `open` says why a rule is
    undecided, and how many seeds would decide it. `new` is a rule on the seeds that were not known before it was
    written, at the same level. `repeated` has the base model and seed of each value.
    """
    named = study["rules"].index(primary(study["rules"]))
    rules = [rule | {"primary": i == named, "measured": of_rule(rule, measured), "span": rule_span(study, rule)}
             for i, rule in enumerate(study["rules"])]
    number, looks = len({unit["base"] for unit in repeated}), study.get("looks")
    error = statistics.ALPHA_OF_A_LOOK if looks else statistics.ALPHA
    early = bool(looks) and number not in looks
    chances = [1.0 if early else chance(rule) for rule in rules]
    others = [i for i, rule in enumerate(rules) if not rule["primary"]]
    levels = dict(zip(others, statistics.holm([chances[i] for i in others], error)))
    found = [verdict(rule, chances[i], levels.get(i, error), early) for i, rule in enumerate(rules)]
    for rule, one in zip(rules, found):
        if isinstance(rule.get("known"), list) and not early:
            seeds = [value for unit, value in zip(repeated, rule["measured"].get("seeds", ()))
                     if unit["seed"] not in rule["known"] and value is not None]
            new = rule | {"measured": {"seeds": seeds, "mean": float(np.mean(seeds)) if seeds else None}}
            one["new"] = {key: value for key, value in verdict(new, chance(new), one["level"], False).items()
                          if key not in rule}
    return found


def counts(rule: dict) -> bool:
    """Whether a rule counts as a prediction: it was not turned after a pilot, and could fail."""
    return not (rule.get("turned") or rule.get("easy"))


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


def threshold(rule: dict) -> float:
    return next(rule[side] for side in SIDES if side in rule)


def above(rule: dict, seeds: list[float]) -> int:
    """How many of the values lie on the side that the rule says most do; one that is the number itself does not."""
    return sum(value > rule["most_above"] if "most_above" in rule else value < rule["most_below"] for value in seeds)


def is_of_most(rule: dict) -> bool:
    return "most_above" in rule or "most_below" in rule


def chance(rule: dict) -> float:
    """The p-value of the side on which the rule would be decided; 1 where nothing can decide it."""
    seeds = values(rule)
    if len(seeds) < 2:
        return 1.0
    if is_of_most(rule):
        return statistics.sign_test(above(rule, seeds), len(seeds))
    if statistics.equal(seeds):
        return 1.0 if len(seeds) < statistics.FEWEST_EQUAL or side(rule, seeds[0]) == "undecided" else 0.0
    if "within" in rule:
        return min(statistics.inside(seeds, *rule["within"], rule["span"]), statistics.outside(seeds, *rule["within"]))
    return statistics.t_test(seeds, threshold(rule))


def side(rule: dict, mean: float) -> str:
    """The verdict if the mean, or the share of the seeds, were known to be this number."""
    if "within" in rule:
        low, high = rule["within"]
        return "agree" if low <= mean <= high else "disagree"
    past = mean - (0.5 if is_of_most(rule) else threshold(rule))
    return "undecided" if past == 0 else "disagree" if (past > 0) == ("below" in rule) else "agree"


def verdict(rule: dict, p_value: float, level: float, early: bool) -> dict:
    """A rule with its verdict, and the 95 % interval of what was measured: of the mean, or, where it says what most
    seeds do, of their share, with the count and the median beside it."""
    seeds, measure = values(rule), rule["measured"]
    found = {"mean": measure.get("mean"), "interval": statistics.interval(seeds, rule["span"])}
    if is_of_most(rule) and seeds:
        count = above(rule, seeds)
        found = {"count": count, "of": len(seeds), "mean": count / len(seeds), "median": float(np.median(seeds)),
                 "interval": statistics.exact_binomial(count, len(seeds)) if len(seeds) > 1 else None}
    elif statistics.equal(seeds):
        found["equal"] = True
    elif "of_problems" in measure or len(measure.get("seeds", ())) == 1 and measure.get("interval"):
        found |= {"interval": measure["interval"], "over": "problems"}
    whole = {key: value for key, value in rule.items() if key not in ("measured", "span")} | found | {
        "p_value": p_value, "level": level,
        "verdict": side(rule, found["mean"]) if p_value <= level else "undecided"}
    return whole | ({} if p_value <= level else {"open": why(rule, seeds, level, early)})


def why(rule: dict, seeds: list[float], level: float, early: bool) -> str:
    """Why a rule is undecided; how many seeds would decide it at its level, with the effect and the spread seen."""
    if not seeds:
        return "not measured"
    if early:
        return "between two planned analyses"
    many = "problems" if "of_problems" in rule["measured"] else "seeds"
    if len(seeds) == 1:
        return "one seed"
    if statistics.equal(seeds) and not is_of_most(rule):
        return (f"needs {statistics.FEWEST_EQUAL} {many}, as all are equal" if side(rule, seeds[0]) != "undecided"
                else "equal to the number of the rule")
    needed = statistics.seeds_needed(lambda number: decided(rule, seeds, number, level))
    return f"needs about {needed} {many}" if needed else f"needs more than {statistics.MOST_SEEDS} {many}"


def decided(rule: dict, seeds: list[float], number: np.ndarray, level: float) -> np.ndarray:
    """The chance that so many seeds decide the rule, with the effect and the spread of these."""
    mean, spread = np.mean(seeds), np.std(seeds, ddof=1)
    if is_of_most(rule):
        return statistics.sign_power(above(rule, seeds) / len(seeds), number, level)
    if "within" not in rule:
        return statistics.power(mean - threshold(rule), spread, number, level)
    low, high = rule["within"]  # by one-sided tests, so at twice the level; inside by both (Phillips, 1990)
    if low <= mean <= high:
        return sum(statistics.power(room, spread, number, 2 * level) for room in (mean - low, high - mean)) - 1
    return statistics.power(max(low - mean, mean - high), spread, number, 2 * level)


def primary(rules: list[dict]) -> dict:
    """The rule that gives the study its verdict: the one that says so, or the first that counts."""
    return next((rule for rule in rules if rule.get("primary")), next(filter(counts, rules), None))


def tally(rules: list[dict]) -> str:
    """How many of the other rules held, failed and are undecided; those that do not count are left out."""
    others = [rule["verdict"] for rule in rules if rule is not primary(rules) and counts(rule)]
    words = {"agree": "held", "disagree": "failed", "undecided": "undecided"}
    return ", ".join(f"{others.count(key)} {word}" for key, word in words.items()) if others else "no other rule"


def required(rule: dict) -> str:
    """What has to be measured for the rule to hold: "one: pass@1, less base's, above 0.1"."""
    name = next(key for key in SIDES if key in rule)
    bound = "{} to {}".format(*(f"{x:g}" for x in rule[name])) if name == "within" else f"{rule[name]:g}"
    return (f"{rule['arm']}: {rule['measure']}{', less the control' if rule.get('difference') else ''}, "
            + (f"in most seeds {name[5:]}" if is_of_most(rule) else name) + f" {bound}")


# ----- arms that are one


def refuse_twins(path, arms: dict[str, list[str]]) -> None:
    """Raises UserError where the commands of two arms differ in nothing but the names after --run_dir= and --out=, for
    which numbers are taken wherever they stand."""
    seen = {}
    for arm, lines in arms.items():
        text = "\n".join(lines)
        made = dict.fromkeys(re.findall(r"(?<!\S)--(?:run_dir|out)=(\S+)", text))
        for number, name in sorted(enumerate(made), key=lambda pair: -len(pair[1])):
            text = text.replace(name, f"<{number}>")
        if seen.setdefault(text, arm) != arm:
            raise UserError(f"{path}: the arms {seen[text]} and {arm} have the same commands; give one of them other "
                            "flags, or take it out")
