r"""The released training reward of One-Shot-RLVR, by behaviour: which answers it takes for equal, quirks included.

Two normalisers one after the other (Wang et al., arXiv 2504.20571, verl's deepscaler reward; the first is known from
the MATH data set, the second from PRM800K). Answers are equal if the first makes them the same text; or if the second
does; or if, part by part of a tuple, the second leaves them with a difference that SymPy simplifies to 0. Of the last
there are exceptions: two fractions have to be the same text, an integer equals nothing but an integer, and texts of
more than two letters, or with a long or bracketed exponent, are not given to SymPy at all.
"""

import re
import unicodedata
from typing import Callable, Optional

_ERASED = [("\n", ""), (r"\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), (r"\left", ""),
           (r"\right", ""), (r"^{\circ}", ""), (r"^\circ", ""), (r"\$", "")]
_UNITS = ("degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week", "month", "year",
          "foot", "feet", "inch", "yard")
_REFUSED = re.compile(r"\^[{(]|\^[0-9]+\^|\^[0-9][0-9]")
_FRACTION = re.compile(r"-?[0-9]+.?/0*[1-9][0-9]*.?")
_WHOLE_TEXT = re.compile(r"\\text\{(.+?)\}\n?")

# What the LaTeX reader of the original (pylatexenc) makes of a macro: of its arguments, and of a bare symbol. A macro
# that is in neither table vanishes, and what is in braces after it stays.
_WITH_ARGUMENTS = {"frac": (2, "{0}/{1}"), "sqrt": (1, "sqrt({0})"), "mbox": (1, ""), "label": (1, ""), "ref": (1, "")}
_SYMBOLS = {
    "pi": "pi", "infty": "inf", "cup": "U", "cdot": "*", "times": "*", "quad": "  ", "qquad": "    ", "{": "{",
    "}": "}", "%": "%", "$": "$", "&": "&", "_": "_", "#": "#", ",": " ", ";": " ", ":": " ", " ": " ", "\\": "\n",
    "pm": "±", "mp": "∓", "div": "÷", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "neq": "≠", "in": "∈", "cap": "∩",
    "circ": "∘", "equiv": "≡", "approx": "≈", "sim": "∼", "to": "→", "rightarrow": "→", "ldots": "…", "dots": "…",
    "cdots": "⋯", "emptyset": "∅", "varnothing": "∅", "angle": "∠", "perp": "⊥", "mid": "|", "setminus": "∖",
    "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "sum": "∑", "prod": "∏",
    "int": "∫", "prime": "'"}
_SYMBOLS |= {name: name for name in (
    "sin cos tan arcsin arccos arctan sinh cosh tanh log ln exp max min sup inf lim").split()}
_SYMBOLS |= {name: unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda').upper()}") for name in (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi "
    "omega").split()}
_MATRIX = re.compile(r"\\begin\{([pb]matrix|[pb]?smallmatrix|array)\}(?:\{[clr|]*\})?(.*?)\\end\{\1\}", re.DOTALL)
_TOKEN = re.compile(r"\\(?:[a-zA-Z]+)\s*|\\.|.", re.DOTALL)

Leaf = Callable[[str, str], Optional[bool]]


def same(given: str, answer: str, leaf: Leaf = lambda given, answer: None) -> Optional[bool]:
    """Whether the released reward is 1; None if that depends on a question to which `leaf` says None."""
    if first_normal_form(given) == first_normal_form(answer):
        return True
    given, answer = second_normal_form(given), second_normal_form(answer)
    if given == answer or not given:
        return given == answer
    parts, expected = _parts(given), _parts(answer)
    if len(parts) != len(expected) or (len(expected) > 1 and (answer[0], answer[-1]) != (given[0], given[-1])):
        return False
    unsure = False
    for pair in zip(parts, expected):
        verdict = _same_part(*pair, leaf)
        if verdict is False:
            return False
        unsure |= verdict is None
    return None if unsure else True


def _same_part(given: str, answer: str, leaf: Leaf) -> Optional[bool]:
    if _FRACTION.fullmatch(given) and _FRACTION.fullmatch(answer):
        return given == answer
    if _is_integer(given) != _is_integer(answer):
        return False
    letters = {character for character in re.sub("sqrt|frac", "", given + answer) if character.isalpha()}
    return False if len(letters) > 2 or _REFUSED.search(f"({answer})-({given})") else leaf(given, answer)


def first_normal_form(answer: str) -> str:
    """As the MATH data set's own comparison; an answer that it cannot read stays as it is."""
    text = answer.strip()
    if match := re.match(_WHOLE_TEXT.pattern + r"\Z", text):
        text = match[1].strip()
    try:
        return _first_normal_form(text)
    except (ValueError, IndexError):
        return text


def _first_normal_form(text: str) -> str:
    for old, new in _ERASED:
        text = text.replace(old, new)
    if r"\text{ " in text:  # a unit
        text, _ = text.split(r"\text{ ")
    text = text.replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # V = 12.8, but not velocity = 12.8
        text = sides[1]
    head, *rest = text.split(r"\sqrt")
    text = head + "".join(r"\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)
    text = _braced_fractions(text.replace(" ", ""))
    text = r"\frac{1}{2}" if text == "0.5" else text
    if text.count("/") == 1 and re.fullmatch("(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)", text):
        text = r"\frac{{{}}}{{{}}}".format(*text.split("/"))
    return text


def _braced_fractions(text: str) -> str:
    """12 after a frac becomes {1}{2}, and 1{2} becomes {1}{2}."""
    head, *rest = text.split(r"\frac")
    for part in rest:
        if part[0] != "{" and len(part) < 2:
            return text
        if part[0] != "{":
            part = f"{{{part[0]}}}" + (part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}")
        head += r"\frac" + part
    return head


def second_normal_form(text: str) -> str:
    """As PRM800K's comparison: what SymPy may be able to read."""
    if match := re.search(rf"^{_WHOLE_TEXT.pattern}\Z", text):
        text = match[1]
    for old, new in ((r"\%", "%"), (r"\$", "$"), ("$", ""), ("%", ""), (" or ", " , "), (" and ", " , "),
                     ("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12")):
        text = text.replace(old, new)
    for unit in _UNITS:
        text = re.sub(rf"{unit}(es)?(s)? *(\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    text = text[1:-1] if text[:1] == "{" and text[-1] == "}" else text
    text = re.sub(r",\\! *", "", text)
    if (number := _float(text)) is not None and _near_integer(number):
        text = str(round(number))
    if "\\" in text:
        text = read_latex(text.replace(r"\tfrac", r"\frac").replace(r"\dfrac", r"\frac").replace(r"\frac", r" \frac"))
    text = re.sub("- *", "-", text)
    text = re.sub("([0-9]) +([0-9])", r"\1+\2", text)  # 12 4/5
    text = re.sub("[ {}]", "", text).lower()
    return str(int(float(text.replace(",", "")))) if _is_integer(text) else text


def read_latex(text: str) -> str:
    """Plain text for SymPy. The index of a root is lost, as in the original."""
    def matrix(match: re.Match) -> str:
        return "[ " + match[2].replace("&", " ").replace("\\\\", ";") + " ]"

    tokens = [match[0] for match in _TOKEN.finditer(_MATRIX.sub(matrix, text.replace("--", "–")))][::-1]
    try:
        return "".join(_node(tokens) for _ in iter(lambda: bool(tokens), False)).strip()
    except (IndexError, RecursionError):  # a macro without its argument
        return text


def _node(tokens: list[str]) -> str:
    """The text of the next character, group or macro, taken from the end of `tokens`."""
    token = tokens.pop()
    if token == "{":
        inner = []
        while tokens and tokens[-1] != "}":
            inner.append(_node(tokens))
        tokens[-1:] = []
        return "".join(inner)
    name = token[1:].strip() or token[1:]
    if token[0] != "\\" or name not in _WITH_ARGUMENTS:
        return {"~": "\xa0", "}": ""}.get(token, token) if token[0] != "\\" else _SYMBOLS.get(name, "")
    if name == "sqrt":
        _skip_index(tokens)
    count, pattern = _WITH_ARGUMENTS[name]
    arguments = []
    for _ in range(count):
        while tokens[-1].isspace():
            tokens.pop()
        if tokens[-1].strip("\\ ") in _WITH_ARGUMENTS:  # \frac\sqrt36: it is an argument without its own
            raise IndexError
        arguments.append(_node(tokens))
    return pattern.format(*arguments)


def _skip_index(tokens: list[str]) -> None:
    if tokens[-1:] == ["["] and "]" in tokens:
        while tokens.pop() != "]":
            pass


def _parts(text: str) -> list[str]:
    """The parts of a tuple or an interval without brackets within; of anything else, itself."""
    text = _without_thousands(text)
    if len(text) > 2 and text[0] in "()[]" and text[-1] in "()[]" and not re.search(r"[()\[\]]", text[1:-1]):
        return [part.strip() for part in text[1:-1].split(",")]
    return [text] if text else []


def _without_thousands(text: str) -> str:
    while (fewer := re.sub(r"(\d),(\d\d\d)($|\D)", r"\1\2\3", text)) != text:
        text = fewer
    return text


def _float(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None


def _near_integer(number: float) -> bool:
    return abs(number) < float("inf") and abs(number - round(number)) <= 1e-7


def _is_integer(text: str) -> bool:
    number = _float(_without_thousands(text))
    return number is not None and _near_integer(number)


def released_reward(given: str, answer: str) -> bool:
    """Whether SymPy simplifies the difference to 0, as the released one-shot reward asks it."""
    import sympy
    from sympy.parsing import sympy_parser

    rules = sympy_parser.standard_transformations + (sympy_parser.implicit_multiplication_application,)
    difference = f"({answer})-({given})".replace("^", "**")
    return bool(sympy.simplify(sympy_parser.parse_expr(difference, transformations=rules)) == 0)
