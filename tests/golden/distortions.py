r"""Answers as models write them: each reference, rewritten without changing what it says, and changed.

A rule gives None, or the text as it was, where it does not apply.
"""

import re
from typing import Iterator

NUMBER, INTEGER, PAIR = r"-?\d+(?:\.\d+)?", r"-?\d+", r"\(([^()\[\],]+),([^()\[\],]+)\)"


def where(pattern: str, new: str):
    """Rewrites a reference that is all of the pattern."""
    return lambda text: re.sub(rf"\A(?:{pattern})\Z", new, text)


def first(pattern: str, new):
    """Rewrites the first place that fits."""
    return lambda text: re.sub(pattern, new, text, count=1)


def mixed(text: str):
    match = re.fullmatch(r"\\frac\{(\d+)\}\{(\d+)\}", text)
    whole, rest = divmod(int(match[1]), int(match[2])) if match else (0, 0)
    return rf"{whole}\frac{{{rest}}}{{{match[2]}}}" if whole and rest else None


def rounded(text: str):
    """A decimal for a fraction whose digits do not end, or for a root."""
    if match := re.fullmatch(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", text):
        return f"{int(match[1]) / int(match[2]):.4f}" if 10**4 * int(match[1]) % int(match[2]) else None
    match = re.fullmatch(r"(\d*)\\sqrt\{(\d+)\}", text)
    return f"{int(match[1] or 1) * int(match[2]) ** 0.5:.3f}" if match else None


def thousands(comma: str):
    return lambda text: f"{int(text):,}".replace(",", comma) if re.fullmatch(INTEGER, text) else None


SAME = {
    "formula": lambda text: f"${text}$", "full stop": lambda text: text + ".", "box": lambda text: rf"\boxed{{{text}}}",
    "bold": where(NUMBER, r"**\g<0>**"), "left, right": where(r"([(\[])([^()\[\]]+)([)\]])", r"\\left\1\2\\right\3"),
    "spaces": lambda text: re.sub(r"(?<![\\a-zA-Z{,])([+=<,-])", r" \1 ", text) if text[:1] != "-" else None,
    "dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    "slash": where(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1\2/\3"),
    "no braces": first(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"), "no braces of a root": first(r"t\{(\d)\}", r"t\1"),
    "name": where(r"[^=<>,]*[\d})]", r"x = \g<0>"), "decimal": where(INTEGER, r"\g<0>.0"), "commas": thousands(","),
    "thin spaces": thousands(r"\,"), "unit": where(NUMBER, r"\g<0>\\text{ cm}"),
    "unit in words": where(NUMBER, r"\g<0> square units"), "power of ten": where(INTEGER, r"\g<0>0 \\times 10^{-1}"),
    "text": where(NUMBER + "|[a-z]{3,}", r"\\text{\g<0>}"), "mixed number": mixed,
    "Unicode": lambda text: text.replace(r"\pi", "π").replace(r"\sqrt", "√").replace("-", "−"),
    "other order": where(r"(-?\d+), ?(-?\d{1,2}|\d{4,})", r"\2, \1")}
OTHER = {
    "digits swapped": first(r"(\d)(?!\1)(\d)", r"\2\1"), "times ten": where(r"-?[1-9]\d*", r"\g<0>0"),
    "one more": first(r"(?<![\d_^{])\d(?![\d_])", lambda match: str((int(match[0]) + 1) % 10)),
    "other sign": where(r"[\d.]*[1-9][\d.]*|\\frac\{\d+\}\{\d+\}|\d*\\sqrt\{\d+\}", r"-\g<0>"),
    "no sign": where(r"-([^+-]+)", r"\1"), "upside down": where(r"\\frac\{(\d+)\}\{(?!\1\})(\d+)\}", r"\\frac{\2}{\1}"),
    "rounded": rounded, "other bracket": where(r"\(([^()\[\]]+,[^()\[\]]+[)\]])", r"[\1"),
    "no bracket": where(PAIR, r"\1,\2"), "turned": where(PAIR.replace("),(", r"),(?!\1\))("), r"(\2,\1)"),
    "one more element": where(r"(?!.*\\t)[\w\\{}+ ,-]+", r"\g<0>, 77"),
    "two answers": where(NUMBER, r"\g<0>\\text{ or }77"),
    "other unit": first(r"\\text\{ *(?:inches|cents|miles|days|degrees|minutes|hours)\}", r"\\text{ kg}"),
    "capital": lambda text: None if "=" in text or r"\in" in text else re.sub(
        r"(?<![\\a-zA-Z])[a-z](?![a-zA-Z])", lambda match: match[0].upper(), text, count=1)}


def distorted(answers: list[str]) -> Iterator[tuple[str, str, bool, str]]:
    """(distorted answer, reference, whether they still say the same, rule), for every rule that applies."""
    for answer in dict.fromkeys(answers):
        for rules, same in ((SAME, True), (OTHER, False)):
            for name, rule in rules.items():
                if (given := rule(answer)) not in (None, answer):
                    yield given, answer, same, name
