"""Rules that end a run or trigger a reset. They see only the metrics in the log, so a resumed run decides the same."""

import difflib
import math
import operator
import re
from typing import NamedTuple, Optional

from rlvr_jax.errors import UserError
from rlvr_jax.learner import ResetConfig

RESET = "train/reset"  # 1 in the row of a step after which the reference or the optimiser was reset
# The metrics for rules: METRICS, and a prefix followed by the name of a reward or a family. Times and compilations,
# which a run logs, too, would differ in a resumed run.
METRICS = [*map("train/{}".format, """accuracy clip_fraction completion_length entropy frac_reward_zero_std grad_norm
    grader_timeouts kl length_correct length_wrong live_groups logprob_gap_max logprob_gap_mean loss overflow
    ratio_outside repetition reward_mean reward_std step_accuracy tokens truncated""".split()),
    *map("eval/{}".format, "auroc brier confidence ece greedy n sampled stated".split())]
PREFIXES = ("train/reward/", "eval/greedy_", "eval/sampled_")
RELATIONS = {"<": operator.lt, ">": operator.gt}


class StopRule(NamedTuple):
    """A rule that holds in a log row whose `metric` is below ("<") or above (">") `bound`; not in a row without it."""

    metric: str
    relation: str
    bound: float
    patience: int = 0  # successive rows in which the rule must hold; 0: --stop_patience. Only the rule inert sets it.

    def __str__(self) -> str:
        return "inert" if self.patience else f"{self.metric}{self.relation}{self.bound:g}"

    def holds(self, row: dict) -> bool:
        value = row.get(self.metric)
        return isinstance(value, (int, float)) and RELATIONS[self.relation](value, self.bound)


def parse_rules(text: str, inert_steps: int) -> list[StopRule]:
    """Parses rules joined by commas, such as "train/entropy<0.01,train/kl>10,inert"; "" has no rules. The rule "inert"
    holds after `inert_steps` steps with nothing but zero-variance groups. Raises UserError for any other text."""
    return [_parse_rule(part, inert_steps) for part in text.split(",")] if text.strip() else []


def check_metric(flag: str, name: str) -> None:
    """Raises UserError, naming `flag`, for a metric that no rule can use: a typo is found before the first step."""
    if name.startswith(("seconds", "compilations")) or name.endswith("tokens_per_second"):
        raise UserError(f"{flag}: {name} would differ in a resumed run, so that no rule can use it")
    if name not in METRICS and not name.startswith(PREFIXES):
        near = difflib.get_close_matches(name, METRICS, 1) or ["one such as train/accuracy, train/entropy, eval/greedy"]
        raise UserError(f"{flag}: no run measures {name}; did you mean {near[0]}?")


def _parse_rule(text: str, inert_steps: int) -> StopRule:
    if text.strip() == "inert":
        return StopRule("train/live_groups", "<", 1e-9, inert_steps)
    match = re.fullmatch(r"\s*([^\s<>]+)\s*([<>])\s*([^\s<>]+)\s*", text)
    try:
        bound = float(match[3]) if match else math.nan
    except ValueError:
        bound = math.nan
    if math.isfinite(bound):
        return StopRule(match[1], match[2], bound)
    raise UserError(f"--stop_when: {text.strip()!r} is no rule; rules are METRIC<NUMBER, METRIC>NUMBER or inert, "
                    "joined by commas, as in train/entropy<0.01,train/kl>10")


def reset_due(config: ResetConfig, rows: list[dict]) -> bool:
    """Whether a reset is due after the step of the last row: every `reset_every` steps, and when none of the last
    `reset_patience` evaluations exceeds the best earlier greedy accuracy since the last reset (arXiv 2505.24864)."""
    if config.reset_every and rows[-1]["step"] % config.reset_every == 0:
        return True
    last = max((i for i, row in enumerate(rows) if row.get(RESET)), default=0)  # index of the last reset's row
    greedy = [row["eval/greedy"] for row in rows[last:] if "eval/greedy" in row]
    patience = config.reset_patience
    return bool(patience and "eval/greedy" in rows[-1] and len(greedy) > patience
                and max(greedy[-patience:]) <= max(greedy[:-patience]))


def verdict(rules: list[StopRule], patience: int, rows: list[dict]) -> Optional[dict]:
    """Returns the rule that ends the run: the first that holds in each of the last `patience` rows with its metric, or
    None. A rule's own patience takes precedence; the row of step 0 does not count. The rule is returned as {"rule": its
    text, "patience": the number of rows, "step" and "value": the step and the metric of the last of these rows}."""
    for rule in rules:
        count = rule.patience or patience
        last = [row for row in rows if row["step"] > 0 and rule.metric in row][-count:]
        if len(last) == count and all(map(rule.holds, last)):
            return {"rule": str(rule), "patience": count, "step": last[-1]["step"], "value": last[-1][rule.metric]}
    return None
