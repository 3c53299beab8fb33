"""The command: ``python -m analysis STUDY`` writes ``reports/STUDY/report.md``, its figures and their CSV."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bbcu.errors import BbcuError


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a study's report and say where it is; leave with one line where that cannot be."""
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.study is None:
        parser.error(f"name a study; {studies_in_words(options.tracking_uri)}")
    try:
        print(write_report(options.study, options.tracking_uri, options.outputs, options.reports))
    except BbcuError as error:
        sys.exit(f"analysis: {error}")


def command_line() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Write the report of a study.")
    parser.add_argument("study", nargs="?", metavar="STUDY", help="the study's name")
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="the MLflow store (%(default)s)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the plans are (%(default)s)")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="where to write (%(default)s)")
    return parser


def studies_in_words(tracking_uri: str) -> str:
    """Which studies the store holds, or why it cannot be asked."""
    from analysis.results import study_names

    try:
        return f"there: {', '.join(study_names(tracking_uri)) or 'none yet'}"
    except BbcuError as error:
        return str(error)


def write_report(study: str, tracking_uri: str, outputs: Path, reports: Path) -> Path:
    """Write the report of one study and give its page's path; raises BbcuError where the study cannot be read.

    The imports are here because they take seconds, which ``--help`` and a wrong argument need not wait for.
    """
    from analysis.report import compose, write
    from analysis.results import load

    return write(compose(load(tracking_uri, study, outputs)), reports / study)


if __name__ == "__main__":
    main()
