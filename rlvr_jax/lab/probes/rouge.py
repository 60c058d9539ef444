"""Likeness of two texts: equal words, and ROUGE-L."""

import re

_NO_WORD = re.compile(r"[^a-z0-9]+")


def same_words(text: str, other: str) -> bool:
    """Whether their words are the same, in the same order."""
    return text.split() == other.split()


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L as F1: of the longest common subsequence of words (Lin, 2004), as the package rouge-score has it. Words
    are runs of a-z and 0-9, lower-cased and not stemmed. Precision is of `text`, recall of `reference`."""
    mine, theirs = (_NO_WORD.sub(" ", words.lower()).split() for words in (text, reference))
    common = longest_common(mine, theirs)
    if not common:
        return 0.0
    precision, recall = common / len(mine), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def longest_common(a: list, b: list) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)  # of what was read of `a`, with the first j of `b`
    for x in a:
        before = 0  # row[j - 1] as it was for one word less of `a`
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
