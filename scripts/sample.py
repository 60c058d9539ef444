"""Shows completions of a prompt.

  python -m scripts.sample --model=runs/demo --prompt="coins 7 + 5 * 2 - 4 * 1 + 9 - 3 =" --num_samples=4
  python -m scripts.sample --model=smollm2 --prompt="What is 7 times 8?"

On a terminal, tokens to which the model gave a low probability are underlined (below 1/e) or bold red (below 1/20),
unless NO_COLOR is set.
"""

import json
import os
import sys

from scripts import cli


def main(config) -> None:
    from rlvr_jax.runs.files import name_in_errors
    from rlvr_jax.evaluation.generate import generate

    rows = generate(config)
    for i, row in enumerate(rows):
        print(f"--- {i + 1} of {len(rows)} ({row['stop_reason']}, {len(row['completion_ids'])} tokens)")
        print(mark_unexpected(row) if shows_styles() else row["completion"])
    if config.out:
        with name_in_errors(config.out), open(config.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({k: v for k, v in row.items() if k != "pieces"}) + "\n" for row in rows)


def shows_styles() -> bool:
    """Whether standard output is a terminal that shows styles, and NO_COLOR is not set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def mark_unexpected(row: dict) -> str:
    """Returns the completion with terminal styles for tokens of low probability: bold red below e^-3, underlined below
    1/e. A space before a word stays without a style, to show where a token starts."""
    def mark_piece(piece, logprob):
        word = piece.lstrip()
        code = "\x1b[1;31m" if logprob < -3 else "\x1b[4m" if logprob < -1 else ""
        return piece.removesuffix(word) + f"{code}{word}\x1b[0m" if word and code else piece
    return "".join(map(mark_piece, row["pieces"], row["sampler_logprobs"]))


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.evaluation.generate.SampleConfig")
