"""Trains a model by GRPO on one example and measures it on problems it never saw.

  python -m scripts.train --flagfile=configs/tiny.flags --model=runs/demo_base --run_dir=runs/demo

Writes a run directory (metrics.jsonl, rollouts.jsonl, heldout.jsonl, checkpoints, summary.json, and where it comes from
in origin.json); `scripts.report` draws it. The same command continues an interrupted run.
"""

from scripts import cli


def main(config) -> None:
    from rlvr_jax.training.train import train

    summary = train(config)
    if summary:
        if summary["base"]:
            print(f"{'':12}{'greedy':>8}{'T=1':>8}")
        for name in ("base", "final"):
            if summary[name]:
                print(f"{name:12}{summary[name]['greedy']:8.3f}{summary[name]['sampled']:8.3f}  "
                      f"(n={summary[name]['n']} held-out problems)")
        saturated = summary["saturation_step"]
        print(f"training accuracy {summary['train_accuracy']:.3f}, "
              + ("never saturated" if saturated is None else f"saturated at step {saturated}")
              + f"; {config.run.run_dir}/summary.json")


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.training.train.TrainConfig")
