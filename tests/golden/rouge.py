"""Writes rouge.json: ROUGE-L of 500 pairs by the package rouge-score, which the tests do not need.

    pip install rouge-score==0.1.2 && PYTHONPATH=.:tests python tests/golden/rouge.py
"""

import json
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parent / "rouge.json"
WORDS = "the area of sail and Cube wind velocity 3 3.5 x_1 times, it's (42) running runs a-b é $7 =".split()


def pairs() -> list[tuple[str, str]]:
    """(reference, text): the second is the first with words left out, put in, changed, or another text."""
    rng, made = np.random.default_rng(0), []
    for i in range(500):
        reference = list(rng.choice(WORDS, rng.integers(0, 25)))
        kept = [word for word in reference if rng.random() < (i % 5) / 4]
        for place in rng.integers(0, len(kept) + 1, rng.integers(0, 6)):
            kept.insert(int(place), str(rng.choice(WORDS)))
        made.append((" ".join(reference), " ".join(kept)))
    return made


if __name__ == "__main__":
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    scores = [round(scorer.score(*pair)["rougeL"].fmeasure, 9) for pair in pairs()]
    PATH.write_text(json.dumps({"by": "rouge-score 0.1.2", "f1": scores}) + "\n")
