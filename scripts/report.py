"""Draws a run: report.html (self-contained) and PNGs in the run directory.

  python -m scripts.report --run_dir=runs/tiny
"""

from rlvr_jax.config import ReportConfig
from scripts import cli


def main(config: ReportConfig) -> None:
    from rlvr_jax.studies.report import write_report

    print("\n".join(map(str, write_report(config.run_dir))))


if __name__ == "__main__":
    cli.run(main, ReportConfig)
