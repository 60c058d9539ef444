"""Compiles the programs of a training run for a chip that is not here: do they fit, and how fast could they be?

  python -m scripts.compile --chip=v5e-8 --flagfile=configs/tiny.flags
"""

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.tools import compile

    print(compile.run(config))


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.tools.compile.CompileConfig")
