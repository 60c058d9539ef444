"""Extracts the answer from a completion, by one of several rules."""

import re
from typing import Optional

from rlvr_jax.errors import UserError

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")
_ANNOUNCEMENT = re.compile(r"(?:the|final)\s+answer\s+is", re.IGNORECASE)


def word_after_answer(text: str) -> Optional[str]:
    """The last word, if the second to last is "answer", as in the synthetic tasks; else None."""
    words = text[-200:].split()
    return words[-1] if len(words) >= 2 and words[-2] == "answer" else None


def last_boxed(text: str) -> Optional[str]:
    r"""The content of the last `\boxed{...}`; None if there is no `\boxed{` or the last one never closes."""
    start = text.rfind("\\boxed{")
    return braced_content(text, start + len("\\boxed")) if start >= 0 else None


def last_number(text: str) -> Optional[str]:
    """The last number in the text, without thousands separators; None if there is no number."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def last_tag(text: str) -> Optional[str]:
    """The content of the last <answer>...</answer>; None if there is no <answer> or the last one never closes."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end].strip() if 0 <= start < end else None


def lenient_answer(text: str) -> Optional[str]:
    r"""The content of the last \boxed{...}, else the rest of the sentence after the last "the answer is", else the last
    number, else None. The one-shot paper's evaluation (Qwen2.5-Math's harness) uses this rule, its reward does not."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    *announced, rest = _ANNOUNCEMENT.split(text)  # `announced` is empty if the text has no announcement
    sentence = re.split(r"\.(?=\s|$)|\n", rest.lstrip(" \t\r\n:"), maxsplit=1)[0].strip()
    return sentence if announced and sentence else last_number(text)


def original_boxed(text: str) -> Optional[str]:
    r"""The content of the last \boxed; None if no brace follows that \boxed or the brace never closes. The released
    reward of One-Shot-RLVR uses this rule. `last_boxed` would pass over a \boxed without a brace."""
    start = text.rfind("\\boxed")
    return braced_content(text, start + len("\\boxed")) if text.startswith("\\boxed{", start) else None


def braced_content(text: str, start: int) -> Optional[str]:
    """The text between the opening brace at `start` and its closing brace; None if the brace never closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i]
    return None


EXTRACTORS = {"answer": word_after_answer, "boxed": last_boxed, "last_number": last_number, "tag": last_tag,
              "lenient": lenient_answer}

# answer format -> (text that introduces an answer, template of the text that follows, in which {} is the answer)
STATED = {"answer": ("answer", " {}"), "boxed": (r"\boxed", "{{{}}}"), "tag": ("<answer", ">{}</answer>"),
          "last_number": ("", "{}"), "lenient": (r"\boxed", "{{{}}}")}


def state_answer(answer_format: str, answer: str) -> str:
    """A completion that states `answer` in the format `answer_format`, a key of STATED, and nothing else."""
    return "".join(STATED[answer_format]).format(answer)


def answer_opening(answer_format: str) -> tuple[str, str]:
    """Returns (text that introduces the answer, template of the text that follows), the entry of STATED. Raises
    UserError for a format in which no text introduces the answer."""
    opening, rest = STATED[answer_format]
    if not opening:
        raise UserError(f"--answer_format={answer_format}: no words in a completion introduce its answer; this reward "
                        f"needs one of {', '.join(name for name, (words, _) in STATED.items() if words)}")
    return opening, rest
