"""Compiles the programs of a training run for a chip that is not here: do they fit, and how fast could they be?

  python -m scripts.compile --chip=v5e-8 --flagfile=configs/tiny.flags
"""

import os

from scripts import cli


def main(config) -> None:
    from rlvr_jax.chips import compile

    print(compile.run(config))


if __name__ == "__main__":
    # A run may be using this machine's accelerator; and what a compiler takes is to be seen.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    cli.run(main, "rlvr_jax.chips.compile.CompileConfig")
