"""Draws a run, or the findings of all studies, as a page that loads nothing.

  python -m scripts.report --run_dir=runs/demo [--parquet]
  python -m scripts.report --all --readme=results/README.md

The first writes report.html and PNGs in the run directory; the second results/index.html, from the records that
scripts.study has written there, and the table of findings in results/README.md.
"""

from rlvr_jax.errors import UserError
from scripts import cli


def main(config) -> None:
    if config.all == bool(config.run_dir):
        raise UserError("--run_dir draws one run and --all the findings of all studies: give one of the two")
    if config.parquet and config.all:
        raise UserError("--parquet is for the completions of a run: it needs --run_dir")
    if config.readme and not config.all:
        raise UserError("--readme is for the table of findings: it needs --all")
    from rlvr_jax.lab.studies import findings, report

    written = findings.write(config.results, config.readme) if config.all else report.write_report(config.run_dir)
    if config.parquet:
        written.append(report.write_parquet(config.run_dir))
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.studies.report.ReportConfig")
