"""Where the answer is in a completion."""

import re
from typing import Optional

from rlvr_jax.errors import UserError

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")
_ANNOUNCED = re.compile(r"(?:the|final)\s+answer\s+is", re.IGNORECASE)


def after_answer(text: str) -> Optional[str]:
    """The one word that follows a final "answer", as the synthetic task ends; None if the text ends otherwise."""
    words = text[-200:].split()
    return words[-1] if len(words) >= 2 and words[-2] == "answer" else None


def last_boxed(text: str) -> Optional[str]:
    r"""The content of the last `\boxed{...}` with balanced braces; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    return braced(text, start + len("\\boxed")) if start >= 0 else None


def last_number(text: str) -> Optional[str]:
    """The last number in the text, thousands separators removed."""
    match = None
    for match in _NUMBER.finditer(text):
        pass
    return match.group().replace(",", "") if match else None


def last_tag(text: str) -> Optional[str]:
    """What is in the last <answer>...</answer>; None if there is none or it never closes."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end].strip() if 0 <= start < end else None


def lenient(text: str) -> Optional[str]:
    r"""As the one-shot paper's evaluation looks for it (Qwen2.5-Math's harness), and the training reward does not: the
    last box, else the rest of the sentence after the last "the answer is", else the last number."""
    boxed, announced = last_boxed(text), None
    for announced in _ANNOUNCED.finditer(text if boxed is None else ""):
        pass
    rest = text[announced.end() :].lstrip(" \t\r\n:") if announced else ""
    sentence = re.split(r"\.(?=\s|$)|\n", rest, maxsplit=1)[0].strip()
    return boxed if boxed is not None else sentence or last_number(text)


def last_box(text: str) -> Optional[str]:
    r"""What is in the last \boxed; None if that has no braces or they never close, whatever was in an earlier one."""
    start = text.rfind("\\boxed")
    return braced(text, start + len("\\boxed")) if text.startswith("\\boxed{", start) else None


def braced(text: str, start: int) -> Optional[str]:
    """What is between the brace at `start` and the one that closes it; None if none does."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i]
    return None


EXTRACTORS = {"answer": after_answer, "boxed": last_boxed, "last_number": last_number, "tag": last_tag,
              "lenient": lenient}

# How an answer is stated: the text that opens it, and what follows that.
STATED = {"answer": ("answer", " {}"), "boxed": (r"\boxed", "{{{}}}"), "tag": ("<answer", ">{}</answer>"),
          "last_number": ("", "{}"), "lenient": (r"\boxed", "{{{}}}")}


def state(answer_format: str, answer: str) -> str:
    """A completion that says nothing but the answer."""
    return "".join(STATED[answer_format]).format(answer)


def stated(answer_format: str) -> tuple[str, str]:
    """A row of STATED. UserError for a format in which nothing says that an answer begins."""
    opening, rest = STATED[answer_format]
    if not opening:
        raise UserError(f"--answer_format={answer_format}: nothing in a completion says where its answer begins; this "
                        f"reward needs one of {', '.join(name for name, (words, _) in STATED.items() if words)}")
    return opening, rest
