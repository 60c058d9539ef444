"""Is this completion right? Extraction of the answer, and equality, in time linear in the text.

Nothing is evaluated: a number is read as an exact fraction if it is short enough to be one, and anything else is
compared as normalised text. A hostile completion is therefore a wrong answer, not a hang (invariant 10).
"""

import re
from fractions import Fraction
from typing import Optional

MAX_DIGITS = 40  # a longer number is compared as text: no arithmetic on attacker-sized integers
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")
_VALUE = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?")


def after_answer(text: str) -> Optional[str]:
    """The one word that follows a final "answer", as the synthetic task ends; None if the text ends otherwise."""
    words = text[-200:].split()
    return words[-1] if len(words) >= 2 and words[-2] == "answer" else None


def last_boxed(text: str) -> Optional[str]:
    r"""The content of the last `\boxed{...}` with balanced braces; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : i]
    return None


def last_number(text: str) -> Optional[str]:
    """The last number in the text, thousands separators removed."""
    found = None
    for found in _NUMBER.finditer(text):
        pass
    return found.group().replace(",", "") if found else None


EXTRACTORS = {"answer": after_answer, "boxed": last_boxed, "last_number": last_number}


def normalise(answer: str) -> str:
    """White space, a surrounding $, a trailing full stop and thousands separators do not matter."""
    text = "".join(answer.split()).rstrip("$.").lstrip("$")
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def value(answer: str) -> Optional[Fraction]:
    """The exact value of an integer, decimal or a/b of at most MAX_DIGITS characters; None for anything else."""
    match = _VALUE.fullmatch(answer) if len(answer) <= MAX_DIGITS else None
    if match is None or (match[3] and int(match[3]) == 0):
        return None
    size = Fraction(match[2]) / (int(match[3]) if match[3] else 1)
    return -size if match[1] == "-" else size


def equal(answer: Optional[str], reference: str) -> bool:
    """True if the two answers are the same text or the same number. No answer equals nothing."""
    if answer is None or len(answer) > 10_000:
        return False
    a, b = normalise(answer), normalise(reference)
    return a != "" and (a == b or (value(a) is not None and value(a) == value(b)))


def correct(completion: str, reference: str, answer_format: str) -> bool:
    """Whether the answer extracted from `completion` by a row of EXTRACTORS equals `reference`."""
    return equal(EXTRACTORS[answer_format](completion), reference)
