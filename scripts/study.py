"""Runs a study, a file of configs/studies/, and writes STUDY.{json,md,png}.

  python -m scripts.study --study=one_shot --dry_run
  python -m scripts.study --study=one_shot --quick
  python -m scripts.study --study=one_shot --seeds=0,1,2
  python -m scripts.study --study=smollm2 --data=DIR

Writes the files to runs/STUDY/results; the published files were written with --out=results. The same command continues
an interrupted study, without repeating the runs that had finished.
"""

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.studies import study

    if written := study.run(config, cli.check_command):
        print(written.read_text("utf-8"))


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.studies.study.StudyConfig")
