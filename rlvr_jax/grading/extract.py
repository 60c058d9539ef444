"""Where the answer is in a completion."""

import re
from typing import Optional

from rlvr_jax.errors import UserError

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")
_ANNOUNCEMENT = re.compile(r"(?:the|final)\s+answer\s+is", re.IGNORECASE)


def word_after_answer(text: str) -> Optional[str]:
    """The last word, if the word before it is "answer", as in the synthetic tasks; else None."""
    words = text[-200:].split()
    return words[-1] if len(words) >= 2 and words[-2] == "answer" else None


def last_boxed(text: str) -> Optional[str]:
    r"""The content of the last `\boxed{...}` with balanced braces; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    return braced_content(text, start + len("\\boxed")) if start >= 0 else None


def last_number(text: str) -> Optional[str]:
    """The last number in the text, without thousands separators."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def last_tag(text: str) -> Optional[str]:
    """The content of the last <answer>...</answer>; None if there is none or it never closes."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end].strip() if 0 <= start < end else None


def lenient_answer(text: str) -> Optional[str]:
    r"""As the one-shot paper's evaluation finds it (Qwen2.5-Math's harness), but not the training reward: the last box,
    else the rest of the sentence after the last "the answer is", else the last number."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    *announced, rest = _ANNOUNCEMENT.split(text)
    sentence = re.split(r"\.(?=\s|$)|\n", rest.lstrip(" \t\r\n:"), maxsplit=1)[0].strip()
    return announced and sentence or last_number(text)


def original_boxed(text: str) -> Optional[str]:
    r"""The content of the last \boxed; None if it has no braces or they never close, whatever an earlier one holds."""
    start = text.rfind("\\boxed")
    return braced_content(text, start + len("\\boxed")) if text.startswith("\\boxed{", start) else None


def braced_content(text: str, start: int) -> Optional[str]:
    """The text between the brace at `start` and the one that closes it; None if none does."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i]
    return None


EXTRACTORS = {"answer": word_after_answer, "boxed": last_boxed, "last_number": last_number, "tag": last_tag,
              "lenient": lenient_answer}

# How an answer is stated: the text that opens it, and what follows that.
STATED = {"answer": ("answer", " {}"), "boxed": (r"\boxed", "{{{}}}"), "tag": ("<answer", ">{}</answer>"),
          "last_number": ("", "{}"), "lenient": (r"\boxed", "{{{}}}")}


def state_answer(answer_format: str, answer: str) -> str:
    """A completion that consists of the answer alone."""
    return "".join(STATED[answer_format]).format(answer)


def answer_opening(answer_format: str) -> tuple[str, str]:
    """A row of STATED. Raises UserError for a format in which no text opens the answer."""
    opening, rest = STATED[answer_format]
    if not opening:
        raise UserError(f"--answer_format={answer_format}: nothing in a completion says where its answer begins; this "
                        f"reward needs one of {', '.join(name for name, (words, _) in STATED.items() if words)}")
    return opening, rest
