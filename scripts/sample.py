"""Shows what a model says to a prompt.

  python -m scripts.sample --model=runs/tiny --prompt="coins 7 + 5 * 2 - 4 * 1 + 9 - 3 =" --num_samples=4
  python -m scripts.sample --model=smollm2 --prompt="What is 7 times 8?"

Colours, on a terminal, show how likely each token was: the redder, the less the model expected it.
"""

import json
import sys

from rlvr_jax import cli
from rlvr_jax.config import SampleConfig


def main(config: SampleConfig) -> None:
    from rlvr_jax.generation import generate
    from rlvr_jax.metrics import naming

    rows = generate(config)
    for i, row in enumerate(rows):
        print(f"--- {i + 1} of {len(rows)} ({row['stop_reason']}, {len(row['completion_ids'])} tokens)")
        print(coloured(row) if sys.stdout.isatty() else row["completion"])
    if config.out:
        with naming(config.out), open(config.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({k: v for k, v in row.items() if k != "pieces"}) + "\n" for row in rows)


def coloured(row: dict) -> str:
    """The tokens on a grey-to-red scale of surprise: 0 nats plain, 3 nats and more fully red."""
    def shade(logprob):
        return int(235 - 155 * min(-logprob / 3.0, 1.0))
    return "".join(f"\x1b[38;2;235;{shade(p)};{shade(p)}m{piece}" for piece, p in
                   zip(row["pieces"], row["sampler_logprobs"])) + "\x1b[0m"


if __name__ == "__main__":
    cli.run(main, SampleConfig)
