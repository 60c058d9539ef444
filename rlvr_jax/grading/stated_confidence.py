"""How sure a completion says it is: where that stands, and the completion without it, which is what is graded."""

from typing import Optional

TENTHS = tuple(f"{i / 10:.1f}" for i in range(11))  # the words of the synthetic families
OPEN, CLOSE = "<confidence>", "</confidence>"


def split(text: str) -> tuple[str, Optional[float]]:
    """(the text without its stated confidence, the confidence from 0 to 1; None where it states none).

    It is the end of `answer 17 sure 0.9`, as synthetic families write it, or what is in the last
    <confidence>...</confidence>. A tag that holds no number from 0 to 1 ("90%", "high") is taken out and states
    nothing. This is how RLCR reads it (arXiv 2507.16806).
    """
    words = text[-200:].split()
    if len(words) >= 4 and words[-4] == "answer" and words[-2] == "sure" and words[-1] in TENTHS:
        return text.rsplit(None, 2)[0], float(words[-1])
    end = text.rfind(CLOSE)
    start = text.rfind(OPEN, 0, max(end, 0))
    if start < 0:
        return text, None
    return text[:start] + text[end + len(CLOSE) :], _share(text[start + len(OPEN) : end])


def confidence(text: str) -> Optional[float]:
    """The confidence that a completion states last; None if it states none."""
    return split(text)[1]


def at_the_end(text: str) -> Optional[float]:
    """The confidence if nothing follows it, else None: what a well-formed completion ends with."""
    return confidence(text) if text.rstrip().endswith((CLOSE, *TENTHS)) else None


def _share(text: str) -> Optional[float]:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None
