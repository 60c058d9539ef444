"""Runs a study, a row of the table in rlvr_jax/studies.py, and writes STUDY.{json,md,png}.

  python -m scripts.study --study=one_shot --quick
  python -m scripts.study --study=one_shot --seeds=0,1,2
  python -m scripts.study --study=smollm2 --seeds=0 --data=DIR

The files go to runs/STUDY/results; the published ones were written with --out=results. Runs already finished in
work_dir are not repeated, and the page says which they were.
"""

from rlvr_jax import cli
from rlvr_jax.config import StudyConfig


def main(config: StudyConfig) -> None:
    from rlvr_jax import studies

    print(studies.run(config).read_text())


if __name__ == "__main__":
    cli.run(main, StudyConfig)
