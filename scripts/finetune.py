"""Fine-tunes a model on a file of prompts and completions; only the completions count in the loss.

  python -m scripts.finetune --model=checkpoints/tiny_base --examples=FILE.jsonl --heldout=arithmetic \\
    --run_dir=runs/finetuned

Writes a run directory, as scripts.train does; the same command continues an interrupted run.
"""

from scripts import cli


def describe(config, summary) -> str:
    lines = [f"{name}: accuracy {summary[name]['greedy']:.3f} greedy, {summary[name]['sampled']:.3f} at T=1 "
             f"(n={summary[name]['n']})" for name in ("base", "final") if summary.get(name)]
    return "\n".join([*lines, f"{config.run.run_dir}/summary.json"]) if summary else ""


main = cli.print_result("rlvr_jax.training.finetune.finetune", describe)

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.training.finetune.FinetuneConfig")
