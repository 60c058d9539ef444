"""Compiles the programs of a training run for a TPU or GPU that you need not have, to see whether they fit into its
memory and how fast they could be.

  python -m scripts.compile --chip=v5e-8 --flagfile=configs/tiny.flags
"""

import os

from scripts import cli

main = cli.print_result("rlvr_jax.chips.compile.run")

if __name__ == "__main__":
    # Compiling needs no accelerator, which other runs may be using. Without JAX's cache, the compiler itself is timed.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    cli.run(main, "rlvr_jax.chips.compile.CompileConfig")
