"""Separates the confidence that a completion states from the rest of the completion, which is graded."""

from typing import Optional

TENTHS = tuple(f"{i / 10:.1f}" for i in range(11))  # how the synthetic families write a confidence
OPEN, CLOSE = "<confidence>", "</confidence>"


def split_confidence(text: str) -> tuple[str, Optional[float]]:
    """Returns (text without its stated confidence, confidence from 0 to 1 or None). The text states it at its end, as
    `answer 17 sure 0.9` (synthetic families), or in the last <confidence>...</confidence> (RLCR, arXiv 2507.16806). A
    tag whose content is not a number from 0 to 1 ("90%") is removed too, and the confidence is None."""
    if tenth := _tenth_at_end(text):
        return text.rsplit(None, 2)[0], float(tenth)
    end = text.rfind(CLOSE)
    start = text.rfind(OPEN, 0, max(end, 0))
    if start < 0:
        return text, None
    rest, content = text[:start] + text[end + len(CLOSE) :], text[start + len(OPEN) : end]
    try:
        number = float(content)
    except ValueError:
        return rest, None
    return rest, number if 0 <= number <= 1 else None


def _tenth_at_end(text: str) -> Optional[str]:
    """The last word, one of TENTHS, of a text that ends as `answer 17 sure 0.9` does; else None."""
    words = text[-200:].split()
    is_stated = len(words) >= 4 and words[-4] == "answer" and words[-2] == "sure" and words[-1] in TENTHS
    return words[-1] if is_stated else None


def stated_confidence(text: str) -> Optional[float]:
    """The last confidence that a completion states; None if the completion states none."""
    return split_confidence(text)[1]


def final_confidence(text: str) -> Optional[float]:
    """The stated confidence if the completion ends with it; else None."""
    return stated_confidence(text) if text.rstrip().endswith(CLOSE) or _tenth_at_end(text) else None
