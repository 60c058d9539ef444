"""Makes self-contained pages with figures, for one run or for all studies.

  python -m scripts.report --run_dir=runs/demo [--parquet]
  python -m scripts.report --all

The first command writes report.html and PNGs into the run directory. The second rewrites results/ from the records
that scripts.study wrote there and from configs/studies/: the page and figures of each study, index.html with its
figure findings.png, and the table in README.md.
"""

from rlvr_jax.errors import UserError
from scripts import cli


def main(config) -> None:
    if config.all == bool(config.run_dir):
        raise UserError("--run_dir draws one run and --all all studies: give one of the two")
    if config.parquet and config.all:
        raise UserError("--parquet is for the completions of a run: it needs --run_dir")
    from rlvr_jax.report import report
    from rlvr_jax.lab.studies import findings

    written = findings.write(config.results) if config.all else report.write_report(config.run_dir)
    if config.parquet:
        written.append(report.write_parquet(config.run_dir))
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.report.report.ReportConfig")
