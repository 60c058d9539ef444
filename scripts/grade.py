r"""Grades the completions in a file, without sampling again.

  python -m scripts.grade --completions=runs/eval/completions.jsonl --out=graded.jsonl
  python -m scripts.grade --completions=runs/eval/completions.jsonl --out=reward.jsonl --grader=original

Rows need a completion and an answer; OUT has the same rows with correct, extracted, graded_by and timed_out. By
default, completions are graded as scripts.evaluate grades those of files: an answer may have one of several formats,
and values are compared mathematically; for problems that are drawn, give the --answer_format that their "graded_by"
names. --grader=original grades by the released training reward, which looks only into the last \boxed{} and has its
own rules of equality. results/graders.md shows where the two differ. Grading LaTeX needs pip install -e '.[real]'.
"""

from scripts import cli


def describe(config, counts) -> str:
    n, seconds = counts["n"], counts["seconds"]
    return (f"{config.completions}: {counts['correct'] / n:.3f} correct ({counts['correct']} of {n}), graded by "
            f"{counts['graded_by']}\n{counts['timed_out']} timed out; {seconds:.1f} s, {n / seconds:.0f} answers/s")


main = cli.print_result("rlvr_jax.evaluation.regrade.regrade", describe)

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.evaluation.regrade.GradeConfig")
