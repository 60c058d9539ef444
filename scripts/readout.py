"""Interprets trained vectors: which tokens each makes likelier, and which directions of the base model it resembles.

  python -m scripts.readout --model=runs/vector --out=runs/vector/readout
  python -m scripts.readout --model=runs/vector --beside=runs/vector1,runs/vector2 --out=runs/vector/readout

The model is a run of scripts.train with --trainable=vector. Writes OUT/readout.json and OUT/readout.md. The
module rlvr_jax/lab/elicit/readout.py defines the numbers.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.lab.elicit.readout.readout", "readout.md", "readout.json")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.elicit.readout.ReadoutConfig")
