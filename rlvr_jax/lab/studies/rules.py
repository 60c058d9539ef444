"""The rules of a study, which are its prediction: which rules are refused, and how rules are judged.

A rule has a sentence (`says`), an arm, a measure, and one side: the mean is `above` or `below` a number, or `within`
two; or most seeds are above (`most_above`) or below (`most_below`) a number, by the exact sign test. A rule is about
the measure itself or, with `difference = true`, about the paired difference to the control, another arm. `known` says
what was known before the rule was written, in words or as a list of seeds. After a list, the seeds that are not in it
are also judged alone. A rule that was reversed after a pilot (`turned`), or could hardly fail (`easy`), does not count.
"""

import math

import numpy as np

from rlvr_jax.lab.studies import statistics

SIDES = ("above", "below", "within", "most_above", "most_below")
KEYS = {"says": str, "arm": str, "measure": str, "difference": bool} | dict.fromkeys(SIDES, object) | {
    "primary": bool, "base": object, "added": str, "known": (str, list), "turned": bool, "easy": bool}
VERDICTS = {"agree": "held", "disagree": "failed", "undecided": "undecided"}  # verdict in a record -> word on a page
SHARE = (0.0, 1.0)  # the range of SHARES
# The range of a measure "FILE.json: path" by one of the last two words of path: from 0 in COUNTS, 0 to 1 in SHARES.
SHARES = {"accuracy", "greedy", "sampled", "right", "pass@k", "maj@k", "auroc", "ece", "brier", "mean_confidence",
          "stated", "value", "truncated", "changed", "moved", "steered", "differ", "first_of_differ",
          "first_of_changed", "greedy_careful_share", "train_accuracy", "regimes"}
COUNTS = {"forward_tokens", "train/tokens", "num_tokens", "count", "kl", "stable_rank", "strength", "saturation_step",
          "wrong_steps_per_100"}


def span(study: dict, name: str) -> tuple:
    """(lowest, highest) value that a measure can have: as the study's file states, else as its source implies."""
    if name in study.get("ranges", {}):
        return tuple(study["ranges"][name])
    source = study["measures"][name]
    if isinstance(source, list):
        return less(span(study, source[1]), span(study, source[2])) if source[0] == "-" else statistics.ANY
    file, _, path = source.partition(": ")
    words = set(path.split(".")[-2:])
    if file.endswith(".jsonl") and not file.endswith("metrics.jsonl"):
        return (0.0, math.inf) if path.partition(": ")[2] in COUNTS else SHARE
    if COUNTS & words:
        return 0.0, math.inf
    other = (-1.0, 1.0) if ".cosine_" in path else statistics.ANY
    return SHARE if SHARES & words else other


def less(one: tuple, other: tuple) -> tuple:
    """The range of `one` minus `other`, two measures that are given by their ranges."""
    return one[0] - other[1], one[1] - other[0]


def rule_span(study: dict, rule: dict) -> tuple:
    """The range of the value that a rule is about. In a difference the rule may state `base`, the value subtracted."""
    of_measure, source = span(study, rule["measure"]), study["measures"][rule["measure"]]
    base = (rule["base"], rule["base"]) if "base" in rule else None
    if rule.get("difference"):
        return less(of_measure, base or of_measure)
    return less(span(study, source[1]), base) if base else of_measure  # source: ["-", measure, subtracted measure]


def fault(study: dict) -> str:
    """A message on the first rule that cannot be judged, and on how to correct it; "" if all rules can be judged."""
    for number, rule in enumerate(study["rules"], 1):
        if wrong := shape_fault(study, rule) or range_fault(study, rule):
            says = rule.get("says", "without says") if isinstance(rule, dict) else rule
            return f"rule {number} ({says}): {wrong}"
    if sum(bool(rule.get("primary")) for rule in study["rules"]) > 1:
        return "two rules have primary = true; one rule gives the study its verdict: keep it in that rule alone"
    if primary(study["rules"]) is None or not counts(primary(study["rules"])):
        return "a rule that is turned or easy cannot give the verdict: add primary = true to one that is neither"
    return ""


def shape_fault(study: dict, rule: dict) -> str:
    """A message on what is wrong with the keys of a rule; "" if nothing is."""
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
        return "base is the known value that a difference subtracts; leave it out, for this rule is of no difference"
    return ""


def bounds_of(rule: dict) -> tuple:
    """(lowest, highest) value with which the rule holds; infinite on a side without a bound."""
    return tuple(rule.get("within") or (rule.get("above", rule.get("most_above", -math.inf)),
                                        rule.get("below", rule.get("most_below", math.inf))))


def range_fault(study: dict, rule: dict) -> str:
    """A message if the rule would hold for every value in its range, or for none; "" if it can go either way."""
    (low, high), bounds = rule_span(study, rule), bounds_of(rule)
    never_fails = bounds[0] <= low and bounds[1] >= high
    if never_fails or bounds[0] >= high or bounds[1] <= low:
        return (f"no value of {rule['measure']}, which is from {low:g} to {high:g}, could "
                f"{'fail' if never_fails else 'meet'} it; take a number that can go either way, or leave the rule out")
    return ""


def judged(study: dict, measured: dict, repeated: list[dict]) -> list[dict]:
    """The rules, each with the measured "mean", its 95 % "interval", "p_value", "level" and "verdict" ("agree",
    "disagree", "undecided"). "open" says why a rule is undecided, and how many seeds would decide it; "new" judges a
    rule on the seeds that are not in its `known`. The primary rule is judged at the study's level, others by Holm's
    method. `measured` is {arm: {measure: {"seeds": [value], "mean", ...}}}, as `study.measure` returns. `repeated` has
    the unit of each value: {"base", "example", "seed"}."""
    of_study = study["rules"].index(primary(study["rules"]))
    rules = [rule | {"primary": i == of_study, "measured": of_rule(rule, measured), "span": rule_span(study, rule)}
             for i, rule in enumerate(study["rules"])]
    num_bases, looks = len({unit["base"] for unit in repeated}), study.get("looks")
    error = statistics.ALPHA_OF_A_LOOK if looks else statistics.ALPHA
    early = bool(looks) and num_bases not in looks  # between planned analyses no rule is decided
    chances = [1.0 if early else chance(rule) for rule in rules]
    others = [i for i, rule in enumerate(rules) if not rule["primary"]]
    levels = dict(zip(others, statistics.holm([chances[i] for i in others], error)))  # {index of a rule: level}
    results = [verdict(rule, chances[i], levels.get(i, error), early) for i, rule in enumerate(rules)]
    for rule, result in zip(rules, results):
        if isinstance(rule.get("known"), list) and not early:
            seeds = [value for unit, value in zip(repeated, rule["measured"].get("seeds", ()))
                     if unit["seed"] not in rule["known"] and value is not None]
            new = rule | {"measured": {"seeds": seeds, "mean": float(np.mean(seeds)) if seeds else None}}
            result["new"] = {key: value for key, value in verdict(new, chance(new), result["level"], False).items()
                             if key not in rule}
    return results


def counts(rule: dict) -> bool:
    """Whether a rule counts as a prediction: it was not reversed after a pilot, and could fail."""
    return not (rule.get("turned") or rule.get("easy"))


def of_rule(rule: dict, measured: dict) -> dict:
    """The rule's measure in its arm, or the difference to the control; {} if no difference was measured."""
    measure = measured[rule["arm"]][rule["measure"]]
    return measure.get("difference", {}) if rule.get("difference") else measure


def values(rule: dict) -> list[float]:
    """The independent values that decide a rule: one for each problem if intervals are over problems, one for each base
    model if seeds share base models, otherwise one for each seed."""
    measured = rule["measured"]
    if "of_problems" in measured:
        return of_problems(measured["of_problems"]).tolist()
    return measured.get("of_bases") or [value for value in measured.get("seeds", ()) if value is not None]


def of_problems(values: list) -> np.ndarray:
    """f64[P]: the mean over seeds of each problem's value. `values` has for each seed f64[P], or None."""
    return np.mean([value for value in values if value is not None], 0)


def threshold(rule: dict) -> float:
    """The number of the rule's side, or for `within` the list of both numbers."""
    return next(rule[side] for side in SIDES if side in rule)


def above(rule: dict, seeds: list[float]) -> int:
    """How many of the values `seeds` are on the side that the rule predicts for most seeds; ties are not counted."""
    return sum(value > rule["most_above"] if "most_above" in rule else value < rule["most_below"] for value in seeds)


def is_of_most(rule: dict) -> bool:
    """Whether the rule predicts a side for most seeds."""
    return "most_above" in rule or "most_below" in rule


def chance(rule: dict) -> float:
    """The p-value of the rule's test, for or against it, whichever its values favour; 1 if they cannot decide it."""
    seeds = values(rule)
    if len(seeds) < 2:
        return 1.0
    if is_of_most(rule):
        return statistics.sign_test(above(rule, seeds), len(seeds))
    if statistics.equal(seeds):
        decides = len(seeds) >= statistics.FEWEST_EQUAL and side(rule, seeds[0]) != "undecided"
        return 0.0 if decides else 1.0
    if "within" in rule:
        return min(statistics.inside(seeds, *rule["within"], rule["span"]), statistics.outside(seeds, *rule["within"]))
    return statistics.t_test(seeds, threshold(rule))


def side(rule: dict, mean: float) -> str:
    """The verdict if `mean` were the true mean or, for a rule on most seeds, the true share on the predicted side."""
    if "within" in rule:
        low, high = rule["within"]
        return "agree" if low <= mean <= high else "disagree"
    excess = mean - (0.5 if is_of_most(rule) else threshold(rule))
    if excess == 0:
        return "undecided"
    return "disagree" if (excess > 0) == ("below" in rule) else "agree"


def verdict(rule: dict, p_value: float, level: float, early: bool) -> dict:
    """The rule with its "verdict", and the measured "mean" with its 95 % "interval". For a rule on most seeds, "mean"
    is the share on the predicted side, "count" of "of" seeds. `early`: the study is between two planned analyses."""
    seeds, measure = values(rule), rule["measured"]
    estimate = {"mean": measure.get("mean"), "interval": statistics.interval(seeds, rule["span"])}
    if is_of_most(rule) and seeds:
        count = above(rule, seeds)
        estimate = {"count": count, "of": len(seeds), "mean": count / len(seeds), "median": float(np.median(seeds)),
                    "interval": statistics.exact_binomial(count, len(seeds)) if len(seeds) > 1 else None}
    elif statistics.equal(seeds):
        estimate["equal"] = True
    elif "of_problems" in measure or len(measure.get("seeds", ())) == 1 and measure.get("interval"):
        estimate |= {"interval": measure["interval"], "over": "problems"}
    judged_rule = {key: value for key, value in rule.items() if key not in ("measured", "span")} | estimate | {
        "p_value": p_value, "level": level,
        "verdict": side(rule, estimate["mean"]) if p_value <= level else "undecided"}
    return judged_rule | ({} if p_value <= level else {"open": why(rule, seeds, level, early)})


def why(rule: dict, seeds: list[float], level: float, early: bool) -> str:
    """Why a rule is undecided, and how many seeds with the effect and standard deviation of `seeds` would decide it."""
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
    most = max(statistics.MOST_SEEDS, len(seeds))
    return f"needs about {needed} {many}" if needed else f"needs more than {most} {many}"


def decided(rule: dict, seeds: list[float], number: np.ndarray, level: float) -> np.ndarray:
    """f64[N]: the chance that `number`, i[N], values with the mean and spread of the values `seeds` decide the rule."""
    mean, spread = np.mean(seeds), np.std(seeds, ddof=1)
    if is_of_most(rule):
        return statistics.sign_power(above(rule, seeds) / len(seeds), number, level)
    if "within" not in rule:
        return statistics.power(mean - threshold(rule), spread, number, level)
    low, high = rule["within"]
    # `power` takes the level of a two-sided test, and a one-sided test at `level` is like a two-sided one at 2 * level.
    if low <= mean <= high:  # both tests have to be decided (Phillips, 1990)
        return sum(statistics.power(room, spread, number, 2 * level) for room in (mean - low, high - mean)) - 1
    return statistics.power(max(low - mean, mean - high), spread, number, 2 * level)


def primary(rules: list[dict]) -> dict | None:
    """The rule that gives the study its verdict: the rule with `primary`, else the first that counts, else None."""
    candidates = [rule for rule in rules if rule.get("primary")] + [rule for rule in rules if counts(rule)]
    return candidates[0] if candidates else None


def tally(rules: list[dict]) -> str:
    """How many of the rules that count, except the primary one, held, failed and are undecided, in words."""
    others = [rule["verdict"] for rule in rules if rule is not primary(rules) and counts(rule)]
    return ", ".join(f"{others.count(key)} {word}" for key, word in VERDICTS.items()) if others else "no other rule"


def required(rule: dict) -> str:
    """What has to be measured for the rule to hold, such as "ARM: MEASURE, less the control, above 0.1"."""
    name = next(key for key in SIDES if key in rule)
    bound = "{} to {}".format(*(f"{x:g}" for x in rule[name])) if name == "within" else f"{rule[name]:g}"
    return (f"{rule['arm']}: {rule['measure']}{', less the control' if rule.get('difference') else ''}, "
            + (f"in most seeds {name[5:]}" if is_of_most(rule) else name) + f" {bound}")
