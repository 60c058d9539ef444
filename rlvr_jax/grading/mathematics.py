r"""When two answers, as people and models write them, are the same: all that can be told without computer algebra.

Both are brought to one notation (`normalise`), then read as numbers (`value`), quantities with a unit (`measured`),
named values such as V = 12.8 (`named`), or sets, tuples, intervals, unions and matrices of such (`structure`). What is
left, such as 8\sqrt[3]{4}, is a question for `leaf`. Verdicts have three values: None is "cannot tell".

The cost is linear in the text, and quadratic in the elements of a set; no arithmetic is done on long numbers.
"""

import functools
import re
from fractions import Fraction
from typing import Callable, Iterable, Optional

MAX_DIGITS = 80  # characters of a number; a longer one is no number here
MAX_ELEMENTS = 20  # of a set; a larger one has to be in the reference's order
MAX_DEPTH = 5  # of tuples in sets in tuples

_CHARACTERS = str.maketrans({
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
    "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\{\}",
    "≈": r"\approx ", "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac12 ", "¼": r"\frac14 ", "¾": r"\frac34 "})
_POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# In this order: decoration goes, and what can be written in several ways is written in one.
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?|\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
    (r"(?<=\d)(?:,\\!\s*|\{,\})(?=\d{3}(?!\d))", ""),  # thousands, as LaTeX spaces them
    (r"\\?\$|\\[()]|(?<!\\)\\[\[\]]", ""),  # money, and the delimiters of a formula
    (r"(?<!\\)\\(?:[!,;: ]|q?quad(?![a-zA-Z]))|~", " "),
    (r"\\(?:text(?:bf|it|rm|sf|tt|up)?|mbox|hbox|math(?:rm|bf|it|sf)|operatorname|boldsymbol)\s*(?=\{)", r"\\text"),
    (r"\\text\{\s*(?:and|or|AND|OR)\s*\}|(?<![a-zA-Z\\])(?:and|or|AND|OR)(?![a-zA-Z])", ","),
    (r"\\text\{\s*(thousand|million|billion|trillion)\s*\}|(?<=[\d.} ])(thousand|million|billion|trillion)(?![a-zA-Z])",
     lambda match: rf"\times 10^{{{_POWERS[match[1] or match[2]]}}}"),
    (r"\\text\{\s+", r"\\text{"), (r"\\langle|\\lparen", "("), (r"\\rangle|\\rparen", ")"),
    (r"\\(?:emptyset|varnothing)(?![a-zA-Z])", r"\\{\\}"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "), (r"(?<![a-zA-Z\\])sqrt(?![a-zA-Z])", r"\\sqrt"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\frac\s*(\w|\\pi)\s*(?=[\w{\\])", r"\\frac{\1}"),  # \frac43
    (r"(\\frac\s*\{[^{}]*\})\s*(\w|\\pi)", r"\1{\2}"), (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),  # \frac{270}7, \sqrt2
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\leq(?:slant)?(?![a-zA-Z])", r"\\le"),
    (r"\\geq(?:slant)?(?![a-zA-Z])", r"\\ge"), (r"\\(?:neq|not\s*=)", r"\\ne"), (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", r"^\\circ "), (r",\s*,", ","),
    (r"\s+", " "), (r" (?!\w)|(?<!\w) ", ""),  # a space counts between words and between digits alone
)]
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_WRAPPER = re.compile(r"(\\(?:boxed|text)(?=\{))?([{(]|\*\*|\"|')")
_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"


def _mixed(whole: Optional[str], above: str, below: str) -> Fraction:
    return int(whole or 0) + Fraction(above) / Fraction(below)


def _repeating(whole: str, digits: str, period: str) -> Fraction:
    start = Fraction(f"{whole or 0}.{digits or 0}")
    return start + Fraction(int(period), 10 ** len(digits) * (10 ** len(period) - 1))


_NUMBERS = [(re.compile(pattern), read) for pattern, read in (
    (rf"({_DECIMAL})", Fraction),
    (rf"({_DECIMAL})(?:e|E|(?:\\times|\\cdot|\*) ?10\^)\{{?([+-]?\d{{1,2}})\}}?",
     lambda digits, power: Fraction(digits) * Fraction(10) ** int(power)),
    (rf"(?:(\d+) )?({_DECIMAL})/({_DECIMAL})", _mixed),
    (rf"(\d*)\\frac\{{([+-]?{_DECIMAL})\}}\{{([+-]?{_DECIMAL})\}}", _mixed),
    (r"(\d*)\.(\d*)\\overline\{(\d+)\}", _repeating),
    (r"(\d{1,3}(?: \d{3})+)", lambda digits: Fraction(digits.replace(" ", ""))),
    (r"(\d+)_\{?([2-9]|[12]\d|3[0-6])\}?", lambda digits, base: Fraction(int(digits, int(base)))),
)]
_UNIT = re.compile(r"(.*?[\d.})]|.*?\\pi)((?:\^\\circ|\\?%|\\text\{[^{}]*\}(?:\^\d)?|[ /.-]?[a-zA-Z]++(?:\^\d)?)++)")
_MAGNITUDE = re.compile(r"(?:[^a-zA-Z\\=<>]|\\(?:frac|sqrt|pi|cdot|times)(?![a-zA-Z]))+")
# Spellings. Two units are compared if both are spelt here; any other is taken to be the one that was asked for.
_UNITS = {spelling: names.split()[0] for names in (
    "m meter metre", "cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre", "in inch inche",
    "ft foot feet", "yd yard", "mi mile", "s sec second", "min minute", "h hr hour", "day", "week", "month", "year yr",
    "g gram", "kg kilogram", "mg milligram", "lb pound", "oz ounce", "l liter litre", "ml milliliter", "rad radian",
    "deg degree circ", "% percent", "dollar", "cent", "mi/h mph", "km/h kmh kph", "square sq", "cubic cu", "/ per",
    "^2", "^3") for spelling in names.split()}
_NO_UNITS = {"theta", "alpha", "beta", "gamma", "delta", "lambda", "sigma", "omega", "infinity"}
_NAME = re.compile(r"(?![\d\s])[\w\\(),{}' ]+")
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z' -]{3,}")
_TWO_NUMBERS = re.compile(r"(?<![_^\d.])\d[\d.]* \d")
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}")

Leaf = Callable[[str, str], Optional[bool]]


def normalise(answer: str) -> str:
    r"""One notation of many: no decoration ($, \left, \text or a box around all, a full stop), braces after \frac and
    \sqrt, \text for every font, no thousands separators, spaces only between words and between digits."""
    text = answer.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    for _ in range(MAX_DEPTH):
        text = _unwrapped(text)
    bare = text[:1] not in ("(", "[", "\\") or ", " in answer  # (3,120) is a pair, 3,120 is a number
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text) if bare else text


def _flat(text: str) -> str:
    r"""Without \text{} and the spaces that it makes needless: 5\text{ m} is 5 m."""
    return re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"\\text\{([^{}]*)\}", r"\1", text))


def _unwrapped(text: str) -> str:
    r"""Without one layer of \boxed{}, \text{}, {}, (), ** or quotes, or without a full stop or colon at the end."""
    text = text.rstrip(" .:").lstrip(" :")
    match = _WRAPPER.match(text)
    if not match:
        return text
    inner = text[match.end() : -len(match[2])]
    if match[2] in "({":
        return inner if _enclosed(text[match.start(2) :]) and (match[2] == "{" or len(split(inner, ",")) == 1) else text
    return inner if not match[1] and text.endswith(match[2]) and len(text) >= 2 * len(match[2]) else text


def _enclosed(text: str) -> bool:
    """Whether the bracket that opens the text is closed by the one that ends it."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth <= 0:
            return 0 < i == len(text) - 1
    return False


def split(text: str, separator: str) -> list[str]:
    """The parts between separators that are outside all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{]|[)\]}]|" + re.escape(separator), text):
        if match[0] == separator:
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        else:
            depth += 1 if match[0] in "([{" else -1
    return parts + [text[start:]]


def value(text: str) -> Optional[Fraction]:
    r"""The exact value of 12.8, 64/5, \frac{64}{5}, 12\frac{4}{5}, 12 4/5, 1.28e1, 1.28\times10^1, 10 000,
    0.\overline{3} or 2516_8, signed or not; None for anything else."""
    if len(text) > MAX_DIGITS:
        return None
    sign, size = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    for pattern, read in _NUMBERS:
        if match := pattern.fullmatch(size):
            try:
                return -read(*match.groups()) if sign == "-" else read(*match.groups())
            except (ValueError, ZeroDivisionError):  # 9_8, 1/0
                return None
    return None


def measured(text: str) -> tuple[str, str]:
    r"""(magnitude, unit): 12.8\text{ miles per hour} is ("12.8", "mi/h"). The unit is "" if there is none and "?" if it
    is not in the table; a single letter is a unit within \text alone."""
    match = _UNIT.fullmatch(text)
    if not match or not _MAGNITUDE.fullmatch(match[1]):
        return text, ""
    plain = re.sub(r"\\text\{[^{}]*\}|\\circ", "", match[2])
    words = [_spelling(word) for word in re.findall("[a-zA-Z]+", plain)]
    unlikely = any(word in _NO_UNITS or (len(word) < 4 and word not in _UNITS) for word in words)
    if unlikely or (words and len(words[0]) == 1):
        return text, ""
    parts = [_UNITS.get(_spelling(part), "?") for part in re.findall(r"[a-zA-Z]+|%|/|\^\d", match[2]) if part != "text"]
    for word, power in (("square", "^2"), ("cubic", "^3")):
        parts = parts[1:] + [power] if parts[:1] == [word] else parts
    return match[1], "?" if "?" in parts else "".join(parts)


def _spelling(word: str) -> str:
    """Lower case, singular."""
    singular = word.lower().removesuffix("s")
    return singular if singular in _UNITS or len(word) > 4 else word.lower()


def named(text: str) -> tuple[str, str]:
    r"""(name, value): V=12.8 is ("V", "12.8"), x\in[1,2] is ("x", "[1,2]"). The name is "" if there is none, and "?" if
    the left side is more than a name. Of a chain of equations the end counts; of a\approx b the exact a."""
    parts = re.split(r"(?<![<>!:])=|\\in(?![a-zA-Z])", text)
    if sum("=" in part for part in split(text, ",")) > 1:  # x=1,y=2
        parts = [text]
    if len(parts) == 1 and _NAME.fullmatch(text.split(r"\approx")[0]):
        parts = text.split(r"\approx", 1)
    exact = (parts[-1].split(r"\approx")[0] or parts[-1]).strip()
    if len(parts) == 1:
        return "", exact
    if _NAME.fullmatch(parts[0]):
        return parts[0], exact
    return ("", exact) if _MAGNITUDE.fullmatch(parts[0]) else ("?", text)


def structure(text: str) -> Optional[tuple[str, list[str]]]:
    r"""(kind, elements): the kind is "set" (also a bare list, and a\pm b), "union", the two brackets of a tuple or an
    interval, or the shape of a matrix, of which a column is a tuple. None for anything else."""
    if match := _MATRIX.fullmatch(text):
        rows = [split(row, "&") for row in split(match[2], "\\\\") if row.strip()]
        if len({len(row) for row in rows}) == 1:
            return "()" if len(rows[0]) == 1 else f"{len(rows)} rows", [cell for row in rows for cell in row]
    if text[:1] in ("(", "[") and _enclosed(text) and len(parts := split(text[1:-1], ",")) > 1:
        return text[0] + text[-1], parts
    if len(parts := split(text, r"\cup")) > 1:
        return "union", parts
    braces = text.startswith(r"\{") and text.endswith(r"\}") and _enclosed(text[1:])
    parts = split(text[2:-2] if braces else text.replace(";", ","), ",")
    elements = [element for part in parts for element in _both_signs(part)]
    return ("set", elements) if braces or len(elements) > 1 else None


def _both_signs(text: str) -> Iterable[str]:
    if not re.search(r"\\[pm][pm](?![a-zA-Z])", text):
        return [text]
    return [re.sub(r"\\(pm|mp) ?", lambda match: signs[match[1] == "mp"], text) for signs in ("+-", "-+")]


def same(given: str, answer: str, leaf: Leaf = lambda given, answer: None, depth: int = MAX_DEPTH) -> Optional[bool]:
    """Whether `given` is the reference `answer`; None if that depends on a question to which `leaf` says None."""
    if depth == 0:
        return False
    whole = normalise(given), normalise(answer)
    if "" in whole or _flat(whole[0]) == _flat(whole[1]):
        return "" not in whole
    (name_a, a), (name_b, b) = map(named, whole)
    if "?" in (name_a, name_b) or (name_a and name_b and name_a != name_b):
        return False if "" in (name_a, name_b) else leaf(*whole)  # an equation is no value
    (a, unit_a), (b, unit_b) = measured(a), measured(b)
    if unit_a != unit_b and not {unit_a, unit_b} & {"", "?"}:
        return False
    if a == b:
        return True
    x, y = value(a), value(b)
    if x is not None and y is not None:
        return x == y or unit_a != unit_b and (unit_a == "%" and x == 100 * y or unit_b == "%" and y == 100 * x)
    if _WORDS.fullmatch(a) and _WORDS.fullmatch(b):
        return a.casefold() == b.casefold()
    parts = structure(a), structure(b)
    if any(parts) and all(part is None or part[0] == "set" for part in parts):
        parts = tuple(part or ("set", [text]) for part, text in zip(parts, (a, b)))
    if all(parts):
        (kind_a, elements_a), (kind_b, elements_b) = parts
        if "union" in (kind_a, kind_b):
            alike = kind_a == kind_b and _matched(elements_a, elements_b, leaf, depth - 1)
            return alike or leaf(a, b)  # a union can be cut in other ways
        if kind_a != kind_b or len(elements_a) != len(elements_b):
            return False
        if kind_a == "set" and len(elements_a) <= MAX_ELEMENTS and not _in_order(elements_a, elements_b):
            verdict = _matched(elements_a, elements_b, leaf, depth - 1)
            if verdict is None and _matched(elements_b, elements_a, leaf, depth - 1) is False:
                return False  # one of the answers is like nothing that was given
            return verdict
        return _every(same(*pair, leaf, depth - 1) for pair in zip(elements_a, elements_b))
    if (x, y) != (None, None) and any(part and part[0] != "union" for part in parts):
        return False  # a number is no tuple
    letters = [set(re.sub(r"\\[a-zA-Z]+", "", text)) for text in (a, b)]
    if letters[0] != letters[1] and {x.casefold() for x in letters[0]} == {x.casefold() for x in letters[1]}:
        return False  # R and r are two variables
    if _TWO_NUMBERS.search(a) or _TWO_NUMBERS.search(b):
        return False  # no product, and no sum
    return leaf(a, b)


def _in_order(*sides: list[str]) -> bool:
    """Whether one side names different variables and the other none: x=1,y=2 is 1,2 but not 2,1."""
    names = [{named(element)[0] for element in elements} for elements in sides]
    return {""} in names and any(len(found) > 1 for found in names)


def _every(verdicts: Iterable[Optional[bool]]) -> Optional[bool]:
    unsure = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unsure |= verdict is None
    return None if unsure else True


def _matched(given: list[str], answers: list[str], leaf: Leaf, depth: int) -> Optional[bool]:
    """Whether the elements are the same in some order."""
    left = list(answers)

    def taken(element: str) -> Optional[bool]:
        unsure = False
        for i, answer in enumerate(left):
            verdict = same(element, answer, leaf, depth)
            if verdict:
                del left[i]
                return True
            unsure |= verdict is None
        return None if unsure else False

    return False if len(given) != len(answers) else _every(map(taken, given))


# ----- in the child: computer algebra


@functools.cache
def parser():
    """LaTeX of one answer to SymPy objects, by Math-Verify: units were dealt with before, time limits are ours."""
    import logging

    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    logging.disable(logging.CRITICAL)
    config = [math_verify.LatexExtractionConfig(normalization_config=NormalizationConfig(
        units=False, malformed_operators=True, nits=True, boxed="none"))]
    return lambda text: math_verify.parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)


def equal(given: str, answer: str) -> bool:
    """Whether two normalised answers are equal as mathematics. Decimals are exact: 0.333 is not 1/3."""
    import math_verify

    exact = [re.sub(r"\d*\.\d+|\d+\.(?!\d)", _fraction, text) for text in (answer, given)]
    gold, found = map(parser(), exact)
    return math_verify.verify(gold, found, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)


def _fraction(match: re.Match) -> str:
    whole, _, digits = match[0].partition(".")
    return rf"{{\frac{{{int(whole + digits)}}}{{{10 ** len(digits)}}}}}"
