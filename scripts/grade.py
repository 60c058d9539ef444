r"""Grades completions that were kept, without sampling again.

  python -m scripts.grade --completions=runs/eval/completions.jsonl --out=graded.jsonl
  python -m scripts.grade --completions=runs/eval/completions.jsonl --out=reward.jsonl --grader=original

Rows need a completion and an answer; OUT has the same rows with correct, extracted, graded_by and timed_out. The
defaults grade as an evaluation does: leniently about where the answer is, as mathematics about what it says. The
released training reward is --grader=original: the last \boxed{} alone, and its own idea of equality. Where the two
differ: results/graders.md. LaTeX takes pip install 'rlvr_jax[real]'.
"""

from scripts import cli


def main(config) -> None:
    from rlvr_jax.evaluation.regrade import regrade

    counts = regrade(config)
    print(f"{config.completions}: {counts['correct'] / counts['n']:.3f} correct ({counts['correct']} of "
          f"{counts['n']}), graded by {counts['graded_by']}")
    print(f"{counts['timed_out']} timed out; {counts['seconds']:.1f} s, "
          f"{counts['n'] / counts['seconds']:.0f} answers/s")


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.evaluation.regrade.GradeConfig")
