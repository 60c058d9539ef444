"""Equations in running text: every `a op b = c`, and whether it holds."""

import operator
import re
from fractions import Fraction
from typing import NamedTuple

MAX_LENGTH = 20_000  # characters of a text that are searched

_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_SPELLINGS = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", r"\times": "*", r"\cdot": "*", r"\div": "/"}
# The lookarounds of _EQUATION skip a match that is cut out of a longer number, term or equation, such as 2 + 3 = 5 * x.
_NUMBER = r"\$?(-?\d{1,15}(?:,\d{3}){0,4}(?:\.\d{1,15})?)"
_EQUATION = re.compile(rf"(?<![\w.,]){_NUMBER} ?([-+*/]) ?{_NUMBER} ?= ?{_NUMBER}"
                       r"(?![\w%^])(?![.,]\d)(?! ?[-+*/] ?[\w$(])", re.ASCII)
# If the text before a match fits this pattern, the match is skipped, because it only ends a longer equation: in 2 + 3 +
# 4 = 9, 3 + 4 = 9 is not claimed. The second pattern is for a match that starts with a negative number.
_CONTINUED = re.compile(r"[-+*/^] ?$")
_CONTINUED_NEGATIVE = re.compile(r"([-+*/^\d)]|\b[a-z]) ?$", re.ASCII)


class Equation(NamedTuple):
    text: str
    holds: bool  # c is exactly the value of a op b
    rounded: bool  # c is not exact, but is the value rounded to as many decimals as c has


def read_equations(text: str) -> list[Equation]:
    """Finds the equations of a text, in order, and checks each exactly. Equations with units in them are not found."""
    text = re.sub(r"[ \t]+", " ", text[:MAX_LENGTH])
    for spelling, sign in _SPELLINGS.items():
        text = text.replace(spelling, sign)
    return [_check(*match.groups(), match[0]) for match in _EQUATION.finditer(text)
            if not (_CONTINUED_NEGATIVE if match[1][0] == "-" else _CONTINUED).search(
                text[max(match.start() - 3, 0) : match.start()])]


def _check(a: str, sign: str, b: str, c: str, text: str) -> Equation:
    """Checks the equation `a sign b = c`, which is written as `text`. A division by 0 does not hold."""
    left, right, claimed = (Fraction(number.replace(",", "")) for number in (a, b, c))
    if sign == "/" and not right:
        return Equation(text, False, False)
    value, last_place = _SIGNS[sign](left, right), Fraction(1, 10 ** len(c.partition(".")[2]))
    return Equation(text, value == claimed, value != claimed and "." in c and abs(value - claimed) <= last_place / 2)
