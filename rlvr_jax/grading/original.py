r"""The released training reward of One-Shot-RLVR, reimplemented by its behaviour, quirks included.

The source is verl's deepscaler reward (Wang et al., arXiv 2504.20571). Answers have a first normal form, from the MATH
data set, and a second, from PRM800K. Two answers are equal if their first forms are the same text, their second forms
are the same text, or SymPy simplifies the difference of the second forms to 0; tuples are compared part by part. SymPy
is not asked in three cases: two fractions are equal only if they are the same text, an integer equals only an integer,
and texts that together have more than two different letters, or a long or bracketed exponent, are not equal."""

import re

from rlvr_jax.grading.mathematics import MAX_REFERENCE, MISSING, NEEDS, Leaf, load  # noqa: F401

PACKAGE = "sympy"
_ERASED = (("\n", ""), (r"\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), (r"\left", ""),
           (r"\right", ""), (r"^{\circ}", ""), (r"^\circ", ""), (r"\$", ""))
_UNITS = "degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard"
_COMMAS = re.compile(r"(?<=\d),(?=\d{3}(?:$|\D))")
_WHOLE_TEXT = re.compile(r"\\text\{(.+?)\}\n?")


def same(given: str, answer: str, leaf: Leaf) -> bool:
    """Whether the released reward is 1. `leaf(given, answer)` is called if the first normal forms differ."""
    return first_normal_form(given) == first_normal_form(answer) or leaf(given, answer)


def first_normal_form(answer: str) -> str:
    """The form in which the MATH data set compares answers; an answer with two units is not rewritten."""
    text = answer.strip()
    if match := _WHOLE_TEXT.fullmatch(text):
        text = match[1].strip()
    plain = text
    for old, new in _ERASED:
        text = text.replace(old, new)
    if text.count(r"\text{ ") > 1:
        return plain
    text = text.split(r"\text{ ")[0].replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text[:1] == "." else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # V = 12.8, but not velocity = 12.8
        text = sides[1]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{\\])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{\\])\{", r"\\frac{\1}{", text)
    text = r"\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"\A(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)\Z", r"\\frac{\1}{\2}", text)


# ----- called only in a child process


def equal(given: str, answer: str) -> bool:
    """Whether the second normal forms are the same text, or SymPy finds them equal, part by part of a tuple."""
    given, answer = second_normal_form(given), second_normal_form(answer)
    if given == answer or not given:
        return given == answer
    parts, expected = _parts(given), _parts(answer)
    same_brackets = len(expected) == 1 or (answer[0], answer[-1]) == (given[0], given[-1])
    return len(parts) == len(expected) and same_brackets and all(map(_same_part, parts, expected))


def second_normal_form(text: str) -> str:
    """The form in which PRM800K compares answers, as text for SymPy. A cube root becomes a square root."""
    from pylatexenc import latex2text

    if match := _WHOLE_TEXT.fullmatch(text):
        text = match[1]
    for old, new in ((r"\%", "%"), (r"\$", "$"), ("$", ""), ("%", ""), (" or ", " , "), (" and ", " , "),
                     ("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12")):
        text = text.replace(old, new)
    for unit in _UNITS.split("|"):
        text = re.sub(rf"{unit}(es)?(s)? *(\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    text = text[1:-1] if text[:1] == "{" and text[-1] == "}" else text
    text = re.sub(r",\\! *", "", text)
    text = str(round(float(text))) if "," not in text and _is_integer(text) else text
    if "\\" in text:
        text = re.sub(r"\\[td]?frac", r" \\frac", text)
        text = latex2text.LatexNodes2Text().latex_to_text(text)
        for old, new in zip("√π∞∪·×", ("sqrt", "pi", "inf", "U", "*", "*")):
            text = text.replace(old, new)
    text = re.sub("- *", "-", text.strip())
    text = re.sub("([0-9]) +([0-9])", r"\1+\2", text)  # a mixed number such as 12 4/5
    text = re.sub("[ {}]", "", text).lower()
    return str(int(float(text.replace(",", "")))) if _is_integer(text) else text


def _parts(text: str) -> list[str]:
    """The parts of a tuple or an interval that contains no other brackets; any other text as its only part."""
    text = _COMMAS.sub("", text)
    if len(text) > 2 and text[0] in "()[]" and text[-1] in "()[]" and not re.search(r"[()\[\]]", text[1:-1]):
        return [part.strip() for part in text[1:-1].split(",")]
    return [text] if text else []


def _same_part(given: str, answer: str) -> bool:
    """Whether two parts are equal by SymPy, or by the rules of the module's docstring where SymPy is not asked."""
    import sympy
    from sympy.parsing import sympy_parser

    if all(re.fullmatch("-?[0-9]+.?/0*[1-9][0-9]*.?", text) for text in (given, answer)):  # two fractions
        return given == answer
    letters = set(filter(str.isalpha, re.sub("sqrt|frac", "", given + answer)))
    difference = f"({answer})-({given})"
    has_long_exponent = re.search(r"\^[{(]|\^[0-9]+\^|\^[0-9][0-9]", difference)
    if _is_integer(given) != _is_integer(answer) or len(letters) > 2 or has_long_exponent:
        return False
    rules = sympy_parser.standard_transformations + (sympy_parser.implicit_multiplication_application,)
    parsed = sympy_parser.parse_expr(difference.replace("^", "**"), transformations=rules)
    return bool(sympy.simplify(parsed) == 0)


def _is_integer(text: str) -> bool:
    """Whether the text is a number within 1e-7 of an integer, the released code's tolerance."""
    try:
        number = float(_COMMAS.sub("", text))
        return abs(number - round(number)) <= 1e-7
    except (ValueError, OverflowError):
        return False
