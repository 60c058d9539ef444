r"""Grades completions that were kept, without sampling again.

  python -m scripts.grade --completions=runs/eval/completions.jsonl --out=graded.jsonl
  python -m scripts.grade --completions=runs/eval/completions.jsonl --out=reward.jsonl --grader=original

Rows need a completion and an answer; OUT has the same rows with correct, extracted, graded_by and timed_out. The
defaults grade as an evaluation does: leniently about where the answer is, as mathematics about what it says. The
released training reward is --grader=original: the last \boxed{} alone, and its own idea of equality. Where the two
differ: results/graders.md. LaTeX takes pip install 'rlvr_jax[real]'.
"""

from rlvr_jax.config import GradeConfig
from scripts import cli


def main(config: GradeConfig) -> None:
    from rlvr_jax.evaluation.regrade import regrade

    found = regrade(config)
    print(f"{config.completions}: {found['correct'] / found['n']:.3f} correct ({found['correct']} of {found['n']}), "
          f"graded by {found['graded_by']}")
    print(f"{found['timed_out']} timed out; {found['seconds']:.1f} s, {found['n'] / found['seconds']:.0f} answers/s")


if __name__ == "__main__":
    cli.run(main, GradeConfig)
