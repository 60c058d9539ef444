"""Similarity of two texts: ROUGE-L."""

import re


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L as F1: of the longest common subsequence of words (Lin, 2004), as in the package rouge-score. Words are
    runs of a-z and 0-9, in lower case and not stemmed. Precision is over `text`, recall over `reference`."""
    mine, theirs = (re.findall(r"[a-z0-9]+", words.lower()) for words in (text, reference))
    common = longest_common(mine, theirs)
    if not common:
        return 0.0
    precision, recall = common / len(mine), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def longest_common(a: list, b: list) -> int:
    """Length of the longest common subsequence of `a` and `b`."""
    row = [0] * (len(b) + 1)  # row[j]: the length for the first j items of `b` and the processed part of `a`
    for x in a:
        diagonal = 0  # what row[j - 1] was before this x
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
