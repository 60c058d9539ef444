"""Compiles the programs of a training run for a TPU or GPU that you need not have: do they fit, and how fast could
they be?

  python -m scripts.compile --chip=v5e-8 --flagfile=configs/tiny.flags
"""

import os

from scripts import cli

main = cli.print_result("rlvr_jax.chips.compile.run")

if __name__ == "__main__":
    # Leave the accelerator to runs that use it, and time the compiler itself rather than JAX's cache.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    cli.run(main, "rlvr_jax.chips.compile.CompileConfig")
