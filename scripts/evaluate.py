"""Measures a model on a set of problems and keeps every completion.

  python -m scripts.evaluate --model=runs/tiny --out=runs/tiny/eval                                  # greedy
  python -m scripts.evaluate --model=runs/tiny --num_samples=64 --temperature=1 --out=runs/tiny/passk  # pass@k

Writes OUT/summary.json and OUT/completions.jsonl.
"""

from rlvr_jax import cli
from rlvr_jax.config import EvaluateConfig


def main(config: EvaluateConfig) -> None:
    from rlvr_jax.evaluation import evaluate

    summary = evaluate(config)
    low, high = summary["interval"]
    print(f"{config.model} on {config.problems}: {summary['accuracy']:.3f} correct [{low:.3f}, {high:.3f}] "
          f"({summary['n']} problems x {summary['num_samples']} at temperature {config.temperature:g})")
    print("  ".join(f"pass@{k} {value:.3f}" for k, value in summary["pass@k"].items()))
    for style, (share, accuracy) in summary.get("styles", {}).items():
        print(f"  {style:8} {share:6.1%} of completions" + ("" if accuracy is None else f", {accuracy:.3f} correct"))


if __name__ == "__main__":
    cli.run(main, EvaluateConfig)
