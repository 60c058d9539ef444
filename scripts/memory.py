"""Prints what a training run with the given flags needs on each device, for several machines, and whether it fits.

  python -m scripts.memory --flagfile=configs/pi1_qwen2.5_math_1.5b.flags --shape=qwen2.5-math-1.5b

--model=M works too. Nothing is computed: see rlvr_jax/lab/tools/device_memory.py for what is counted.
"""

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.tools import device_memory

    print(device_memory.run(config))


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.tools.device_memory.MemoryConfig")
