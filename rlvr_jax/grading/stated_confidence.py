"""Separates the confidence that a completion states from the rest of the completion, which is graded."""

from typing import Optional

TENTHS = tuple(f"{i / 10:.1f}" for i in range(11))  # how the synthetic families write a confidence
OPEN, CLOSE = "<confidence>", "</confidence>"


def split_confidence(text: str) -> tuple[str, Optional[float]]:
    """(text without its stated confidence, confidence from 0 to 1). The confidence is None if the text states none.

    The confidence is the end of `answer 17 sure 0.9`, as synthetic families write it, or the content of the last
    <confidence>...</confidence>. A tag without a number from 0 to 1 ("90%", "high") is removed, and the confidence is
    None, as in RLCR (arXiv 2507.16806).
    """
    words = text[-200:].split()
    if len(words) >= 4 and words[-4] == "answer" and words[-2] == "sure" and words[-1] in TENTHS:
        return text.rsplit(None, 2)[0], float(words[-1])
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


def stated_confidence(text: str) -> Optional[float]:
    """The last confidence that a completion states; None if the completion states none."""
    return split_confidence(text)[1]


def final_confidence(text: str) -> Optional[float]:
    """The stated confidence if it ends the completion, as in a well-formed one; else None."""
    return stated_confidence(text) if text.rstrip().endswith((CLOSE, *TENTHS)) else None
