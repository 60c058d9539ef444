r"""Whether two answers, as people and models write them, are equal as mathematics.

Both answers are brought to one notation (`normalise`), stripped of a name (V = 12.8) and a unit, and parsed as exact
numbers or as sets and tuples of numbers. Other answers, such as 8\sqrt[3]{4}, go to Math-Verify (`equal`) in a child
process. Parsing takes time linear in the length of the text, and quadratic in the number of a set's elements."""

import itertools
import re
from fractions import Fraction
from typing import Callable, Optional

PACKAGE = "math-verify"
NEEDS = ("math-verify", "sympy", "pylatexenc")
MISSING = ("answers that are not from the synthetic task are compared by Math-Verify and pylatexenc, and one of them "
           "is not installed: pip install -e '.[real]'")
MAX_REFERENCE = 1000  # characters; nothing equals a longer reference
MAX_DIGITS = 80  # characters of a number; a longer text is not parsed as a number
MAX_ELEMENTS = 20  # of a set; the elements of a larger set have to be in the order of the reference
MAX_DEPTH = 5  # of nested sets and tuples, and of boxes around an answer

_CHARACTERS = str.maketrans({
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
    "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\{\}",
    "≈": r"\approx ", "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac12 ", "¼": r"\frac14 ", "¾": r"\frac34 "})
_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Rewrites, applied in this order, remove decoration and unify spellings. In a pattern, END means: no letter follows.
_REWRITES = [(re.compile(pattern.replace("END", "(?![a-zA-Z])")), replacement) for pattern, replacement in (
    (r"\\(?:left|right|[bB]igg?[lr]?)END\.?|\\(?:displaystyle|textstyle|limits)END", ""),
    (r"(?<=\d)(?:,\\!\s*|\{,\})(?=\d{3}(?!\d))", ""),  # thousands separators ,\! and {,} of LaTeX
    (r"^\s*\*\*|\*\*\.?\s*$", ""), (r"\\?\$|\\[()]|(?<!\\)\\[\[\]]", ""),  # bold, dollar signs, delimiters of a formula
    (r"(?<!\\)\\(?:[!,;: ]|q?quadEND)|~", " "),
    (r"\\(?:text(?:bf|it|rm|sf|tt|up)?|mbox|hbox|math(?:rm|bf|it|sf)|operatorname|boldsymbol)\s*(?=\{)", r"\\text"),
    (r"\\text\{\s*(?:and|or|AND|OR)\s*\}|(?<![a-zA-Z\\])(?:and|or|AND|OR)END", ","), (r",\s*,", ","),
    (r"\\text\{\s*(thousand|million|billion|trillion)\s*\}|(?<=[\d.} ])(thousand|million|billion|trillion)END",
     lambda match: rf"\times 10^{{{_POWERS[match[1] or match[2]]}}}"),
    (r"\\(?:emptyset|varnothing)END", r"\\{\\}"), (r"\\lbraceEND", r"\\{"), (r"\\rbraceEND", r"\\}"),
    (r"(?<![a-zA-Z\\])piEND", r"\\pi "), (r"\\[dtc]fracEND", r"\\frac"),
    (r"\\frac\s*(\w|\\pi)\s*(?=[\w{\\])", r"\\frac{\1}"),  # \frac43, \frac{270}7
    (r"(\\frac\s*\{[^{}]*\})\s*(\w|\\pi)", r"\1{\2}"), (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
    (rf"(?<![\d.^_/])({_DECIMAL}) ?/ ?({_DECIMAL})(?![\d./])", r"\\frac{\1}{\2}"),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degreeEND", r"^\\circ "),
    (r"\s+(?!\w)|(?<!\w)\s+", ""),  # spaces matter only between words and between digits
)]
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_NUMBERS = [(re.compile(pattern), read) for pattern, read in (
    (rf"({_DECIMAL})", Fraction),
    (rf"({_DECIMAL})(?:e|E|(?:\\times|\\cdot|\*) ?10\^)\{{?([+-]?\d{{1,2}})\}}?",
     lambda digits, power: Fraction(digits) * Fraction(10) ** int(power)),
    (rf"(\d*) ?\\frac\{{([+-]?{_DECIMAL})\}}\{{([+-]?{_DECIMAL})\}}",
     lambda whole, above, below: int(whole or 0) + Fraction(above) / Fraction(below)),
    (r"(\d*)\.(\d*)\\overline\{?(\d+)\}?", lambda whole, digits, period: Fraction(f"{whole or 0}.{digits or 0}")
     + Fraction(int(period), 10 ** len(digits) * (10 ** len(period) - 1))),
    (r"(\d{1,3}(?: \d{3})+)", lambda digits: Fraction(digits.replace(" ", ""))),
    (r"(\d+)_\{?([2-9]|[12]\d|3[0-6])\}?", lambda digits, base: Fraction(int(digits, int(base)))),
)]
# spelling -> name of the unit. Only units in this table are compared; any other unit is assumed to be the right one.
_UNITS = {spelling: names.split()[0] for names in (
    "m meter metre", "cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre", "in inch inche",
    "ft foot feet", "yd yard", "mi mile", "s sec second", "min minute", "h hr hour", "day", "week", "month", "year yr",
    "g gram", "kg kilogram", "mg milligram", "lb pound", "oz ounce", "l liter litre", "ml milliliter", "rad radian",
    "deg degree circ", "% percent", "dollar", "cent", "mi/h mph", "km/h kmh kph", "sq square ^2", "cubic cu ^3",
    "/ per") for spelling in names.split()}
_SHORT = "|".join(f"{unit}s?" for unit in _UNITS if unit.isalpha() and len(unit) in (2, 3))
_UNIT = re.compile(r"(.*?[\d.})]|.*?\\pi)((?:\^\\circ|\\?%|\\text\{[^{}]*\}(?:\^\d)?|[ -]?(?!theta|alpha|beta|gamma|"
                   rf"lambda)(?:[a-zA-Z]{{4,}}+|(?i:{_SHORT})(?![a-zA-Z]))(?:\^\d)?(?:[/.][a-zA-Z]+)?\.?)++)")
_MAGNITUDE = re.compile(r"(?:[^a-zA-Z\\=<>]|\\(?:frac|sqrt|pi|cdot|times)(?![a-zA-Z]))+")
_NAME = re.compile(r"(?![\d\s])[\w\\(),{}' ]+")

Leaf = Callable[[str, str], bool]


def normalise(answer: str) -> str:
    r"""The answer in one notation: no decoration ($, \left, \text or \boxed around everything, a full stop), braces
    after \frac and \sqrt, \text for any font, no thousands separators, spaces only between words or between digits."""
    text = answer.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    for _ in range(MAX_DEPTH):
        text = _unwrap(text)
    # 3,120 is a number and (3,120) a pair; but if a space follows other commas, as in (1, 3,120), 3,120 is a number.
    has_thousands = text[:1] not in ("(", "[", "\\") or re.search(r"\d, ", answer)
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text) if has_thousands else text


def _unwrap(text: str) -> str:
    r"""Removes one layer of \boxed{}, \text{}, {} or (), and full stops and colons at the ends."""
    text = text.rstrip(" .:").lstrip(" :")
    match = re.match(r"(?:\\boxed|\\text)?(\{)|\(", text)  # match[1] is None for (); (1,2) is a pair and stays
    removable = match and _is_enclosed(text[match.end() - 1 :]) and (match[1] or len(split_commas(text[1:-1])) == 1)
    return text[match.end() : -1] if removable else text


def _depths(text: str) -> list[int]:
    """The number of brackets that are open after each character."""
    return list(itertools.accumulate((character in "([{") - (character in ")]}") for character in text))


def _is_enclosed(text: str) -> bool:
    """Whether the first and last characters are brackets that enclose all the text between them."""
    depths = _depths(text)
    return len(text) > 1 and depths[-1] <= 0 < min(depths[:-1])


def split_commas(text: str) -> list[str]:
    """The parts of the text between commas that are outside all brackets."""
    cuts = [i for i, depth in enumerate(_depths(text)) if depth == 0 and text[i] == ","]
    return [text[start + 1 : end] for start, end in itertools.pairwise([-1, *cuts, len(text)])]


def read_number(text: str) -> Optional[Fraction]:
    r"""The exact value of 12.8, 64/5, \frac{64}{5}, 12\frac{4}{5}, 12 4/5, 1.28e1, 1.28\times10^1, 10 000,
    0.\overline{3} or 2516_8, signed or not; None for anything else."""
    sign, unsigned = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    for pattern, read in _NUMBERS:
        if len(text) <= MAX_DIGITS and (match := pattern.fullmatch(unsigned)):
            try:
                return -read(*match.groups()) if sign == "-" else read(*match.groups())
            except (ValueError, ZeroDivisionError):  # 9_8, 1/0
                return None
    return None


def split_unit(text: str) -> tuple[str, str]:
    r"""Returns (magnitude, unit): ("12.8", "mi/h") for 12.8\text{ miles per hour}. The unit is "" if there is none and
    "?" if `_UNITS` lacks it. A single letter is a unit only within \text."""
    if not (match := _UNIT.fullmatch(text)):
        return text, ""
    words = (part.lower() for part in re.findall(r"[a-zA-Z]+|%|/|\^\d", match[2]) if part != "text")
    parts = [_UNITS.get(word) or _UNITS.get(word.removesuffix("s"), "?") for word in words]
    unit = "".join(parts if "/" in parts else sorted(parts))  # sorted, so that square cm is the same unit as cm^2
    return match[1], "?" if "?" in parts else unit


def split_name(text: str) -> tuple[Optional[str], str]:
    r"""Returns (name, value): ("V", "12.8") for V=12.8, ("x", "[1,2]") for x\in[1,2]. The name is "" if there
    is no left side, or if it is arithmetic without letters (2+3=5), and None if it is anything else that is no name
    (2x+1=5). The value of a=b=c is c, and of 1/3\approx 0.33 is 1/3."""
    exact, _, approximate = text.partition(r"\approx")
    if approximate and _NAME.fullmatch(exact):
        return exact, approximate
    left, *rest = re.split(r"(?<![<>!:])=|\\in(?![a-zA-Z])", exact)
    if not rest or sum("=" in part for part in split_commas(exact)) > 1:  # x=1,y=2 is a list
        return "", exact
    if _NAME.fullmatch(left):
        return left, rest[-1]
    return ("" if _MAGNITUDE.fullmatch(left) else None), rest[-1]


def split_elements(text: str) -> tuple[str, list[str]]:
    r"""Returns (kind, elements). The kind is "set" for a set in braces or a list without brackets; the two brackets, as
    "(]", for a tuple or an interval; "()" for a column vector; and "" for other text, which is its only element."""
    if match := re.fullmatch(r"\\begin\{([pb]matrix)\}([^&]*)\\end\{\1\}", text):
        return "()", [row for row in match[2].split("\\\\") if row.strip()]
    if text[:1] in ("(", "[") and _is_enclosed(text) and len(parts := split_commas(text[1:-1])) > 1:
        return text[0] + text[-1], parts
    braces = text.startswith(r"\{") and text.endswith(r"\}") and _is_enclosed(text[1:])
    parts = split_commas(text[2:-2] if braces else text)
    return ("set", parts) if braces or len(parts) > 1 else ("", parts)


def same(given: str, answer: str, leaf: Leaf, depth: int = MAX_DEPTH) -> bool:
    """Whether `given` equals the reference. `leaf` decides what takes algebra; `depth` is how deep sets may nest."""
    texts = normalise(given), normalise(answer)
    if depth == 0 or "" in texts:
        return False
    if texts[0] == texts[1]:
        return True
    (name_a, a), (name_b, b) = map(split_name, texts)
    if None in (name_a, name_b) or (name_a and name_b and name_a != name_b):
        return "" not in (name_a, name_b) and _same_by_algebra(*texts, leaf)  # an equation does not equal a value
    (a, unit_a), (b, unit_b) = split_unit(a), split_unit(b)
    if unit_a != unit_b and not {unit_a, unit_b} & {"", "?"}:  # an answer without a known unit fits any unit
        return False
    x, y = read_number(a), read_number(b)
    if a == b:
        return True
    if x is not None and y is not None:  # 50% equals 0.5
        return x == y or (unit_a == "%" != unit_b and x == 100 * y) or (unit_b == "%" != unit_a and y == 100 * x)
    words = [re.sub(r"\\text\{([^{}]*)\}", r"\1", text).casefold() for text in (a, b)]
    if all(re.fullmatch(r"[a-z][a-z' -]{3,}", text) for text in words):  # two answers in plain words
        return words[0] == words[1]
    (kind_a, elements_a), (kind_b, elements_b) = split_elements(a), split_elements(b)
    if kind_a and kind_b and not re.search(r"\\(pm|mp|cup)(?![a-zA-Z])", a + b):  # \pm and \cup take algebra
        return kind_a == kind_b and len(elements_a) == len(elements_b) and _same_elements(
            elements_a, elements_b, lambda *pair: same(*pair, leaf, depth - 1), unordered=kind_a == "set")
    return _same_by_algebra(a, b, leaf)


def _same_by_algebra(a: str, b: str, leaf: Leaf) -> bool:
    """Returns `leaf(a, b)`, or False where Math-Verify is too lenient: if letters differ only in case (R is not r), or
    if an answer has adjacent numbers (1 2.5 is not a product)."""
    letters_a, letters_b = (set(re.sub(r"\\[a-zA-Z]+", "", text)) for text in (a, b))
    case_differs = letters_a != letters_b and set(map(str.casefold, letters_a)) == set(map(str.casefold, letters_b))
    has_adjacent_numbers = re.search(r"(?<![_^\d.])\d[\d.]* \d", f"{a};{b}")
    return not case_differs and not has_adjacent_numbers and leaf(a, b)


def _same_elements(given: list[str], answers: list[str], alike: Leaf, unordered: bool) -> bool:
    """Whether two lists of the same length have equal elements, by `alike(element, answer)`: at each index or, if
    `unordered`, after each element is paired with the first equal answer that is still free."""
    names = [{split_name(element)[0] for element in elements} for elements in (given, answers)]  # "": without a name
    # If one list has no names and the other several, the order counts: x=1,y=2 equals 1,2 but not 2,1.
    by_position = {""} in names and max(map(len, names)) > 1
    if not unordered or by_position or len(given) > MAX_ELEMENTS:
        return all(map(alike, given, answers))
    left = list(answers)
    for element in given:
        match = next((i for i, answer in enumerate(left) if alike(element, answer)), None)
        if match is None:
            return False
        del left[match]
    return True


# ----- called only in a child process


def load() -> None:
    import math_verify  # noqa: F401
    import pylatexenc  # noqa: F401


def equal(given: str, answer: str) -> bool:
    """Whether Math-Verify finds two normalised answers without units equal. Decimals are exact: 0.333 is not 1/3.
    Math-Verify's time limits are off, because the child process has its own."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    config = [math_verify.LatexExtractionConfig(normalization_config=NormalizationConfig(
        units=False, malformed_operators=True, nits=True, boxed="none"))]

    def parse(text: str) -> list:
        exact = re.sub(r"\d*\.\d+|\d+\.(?!\d)", _fraction, text)
        return math_verify.parse(f"${exact}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    return math_verify.verify(parse(answer), parse(given), allow_set_relation_comp=True, timeout_seconds=None,
                              raise_on_error=True)


def _fraction(match: re.Match) -> str:
    r"""The decimal that was matched as an exact fraction: {\frac{25}{100}} for .25."""
    whole, _, digits = match[0].partition(".")
    return rf"{{\frac{{{int(whole + digits)}}}{{{10 ** len(digits)}}}}}"
