"""Pre-trains the tiny base model that one-example GRPO starts from.

  python -m scripts.pretrain --flagfile=configs/tiny_base.flags --run_dir=runs/demo_base

Writes a run directory that --model of the other scripts accepts. The same command continues an interrupted run.
"""

from scripts import cli


def describe(config, summary) -> str:
    if not summary:
        return ""
    final = summary["final"]
    return (f"{config.run.run_dir}: held-out accuracy greedy {final['greedy']:.3f}, T=1 {final['sampled']:.3f} "
            f"(n={final['n']})")


main = cli.print_result("rlvr_jax.training.pretrain.pretrain", describe)

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.training.pretrain.PretrainConfig")
