"""Trains a model by GRPO on one example and measures it on problems it never saw.

  python -m scripts.train --flagfile=configs/tiny.flags --model=checkpoints/tiny_base --run_dir=runs/demo

Writes a run directory (metrics.jsonl, rollouts.jsonl, heldout.jsonl, checkpoints, summary.json, and commit and machine
in origin.json), of which `scripts.report` makes a page. The same command continues an interrupted run.
"""

from scripts import cli


def describe(config, summary) -> str:
    if not summary:
        return ""
    lines = [f"{'':12}{'greedy':>8}{'T=1':>8}"] if summary["base"] else []
    lines += [f"{name:12}{summary[name]['greedy']:8.3f}{summary[name]['sampled']:8.3f}  "
              f"(n={summary[name]['n']} held-out problems)" for name in ("base", "final") if summary[name]]
    step = summary["saturation_step"]
    saturated = "never saturated" if step is None else f"saturated at step {step}"
    return "\n".join([*lines, f"training accuracy {summary['train_accuracy']:.3f}, {saturated}; "
                               f"{config.run.run_dir}/summary.json"])


main = cli.print_result("rlvr_jax.training.train.train", describe)

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.training.train.TrainConfig")
