"""Write the report of a study, or check reports.

python -m analysis STUDY        writes reports/STUDY: report.md, report.html, figures, tables, results.zip
python -m analysis FOLDER       regenerates the report in FOLDER from its results.zip
python -m analysis compare A B  compares two studies, each given by name or folder
python -m analysis --check      regenerates every report in reports/examples and compares

``--margin DB`` sets the difference in PSNR that does not matter, for a report and for a comparison.
``--cost-binary PRICE`` sets what a binary multiply-add counts in a report.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.space.factors import load_declarations
from bbcu.errors import BbcuError, ConfigError, first_line, printable, printable_lines
from bbcu.terminal import ArgumentParser, protect_output, say

REPORTS, EXAMPLES = Path("reports"), Path("reports/examples")
"""Where a user's reports go, and where the committed ones are."""

MOST_MARGIN_DB = 1000  # as in an archive of results
MOST_SHOWN = 100  # how many characters of an argument a message shows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error exits with one line, or one per stale report."""
    protect_output()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["compare"]:
            print(printable_lines(comparison(given[1:])), end="")
        else:
            report_or_check(given)
        sys.stdout.flush()
    except BbcuError as error:
        sys.exit(f"analysis: {error}")
    # The system refuses something that no step expects, such as a temporary folder on a full disk.
    except OSError as error:
        sys.exit(f"analysis: {first_line(error)}")


def report_or_check(arguments: Sequence[str]) -> None:
    parser = command_line()
    options = parser.parse_args(arguments)
    load_declarations()
    if options.check:
        if options.margin is not None:
            raise ConfigError("--margin cannot be combined with --check: each report is checked under its own margin")
        if options.cost_binary is not None:
            raise ConfigError("--cost-binary cannot be combined with --check: each report is checked at its own price")
        check_reports(options.reports or EXAMPLES)
    elif options.study is None:
        parser.error(f"name a study; {studies_in_words(options.tracking_uri)}")
    elif os.path.lexists(Path(options.study) / "results.zip"):
        say(printable(regenerate(Path(options.study), options)))
    else:
        say(printable(write_report(options)))


def command_line() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m analysis",
        description="Write the report of a study.",
        epilog="python -m analysis compare A B  compares two studies",
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help="the study's name, or a report's folder")
    parser.add_argument("--check", action="store_true", help="regenerate every report in --reports and compare")
    where = f"write DIR/STUDY, not {REPORTS}/STUDY; with --check the reports to check, not {EXAMPLES}"
    parser.add_argument("--reports", type=Path, metavar="DIR", help=where)
    price = "what a binary multiply-add counts: 1/64, 1/8, any fraction, or measured to rank by time (the study's own)"
    parser.add_argument("--cost-binary", metavar="PRICE", help=price)
    add_sources(parser)
    return parser


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add where studies are read from, and which difference does not matter."""
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="the MLflow store (%(default)s)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of studies (%(default)s)")
    parser.add_argument(
        "--margin", type=margin_in_db, metavar="DB", help="the difference in PSNR that does not matter (0.05)"
    )


def margin_in_db(text: str) -> float:
    """Parse the margin; raises ConfigError unless it is above 0 and an archive may hold it."""
    try:
        margin = float(text)
    except ValueError:
        margin = math.nan
    if not 0 < margin <= MOST_MARGIN_DB:
        shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
        raise ConfigError(f"--margin {shown}: give a difference in dB above 0 and up to {MOST_MARGIN_DB}, such as 0.05")
    return margin


def studies_in_words(tracking_uri: str) -> str:
    """List the studies in the store, or say why it cannot be read."""
    from ablations.tracking.client import study_names

    try:
        return f"available: {', '.join(study_names(tracking_uri)) or 'none yet'}"
    except BbcuError as error:
        return str(error)


def write_report(options: argparse.Namespace) -> Path:
    """Write the report of one study in all its forms, log it to MLflow, and return its page's path.

    Raises BbcuError if the study cannot be read. If MLflow does not accept the report, the report is still written and
    stderr says so. The imports are here because they take seconds, which ``--help`` and a wrong argument need not wait
    for.
    """
    from analysis.report.forms import log_report
    from analysis.report.page import write_all
    from analysis.study.loading import load, margin_of
    from analysis.study.prices import at_price

    results = at_price(load(options.tracking_uri, options.study, options.outputs), options.cost_binary)
    folder = (options.reports or REPORTS) / options.study
    written = write_all(results, margin_of(results, options.margin), folder)
    try:
        log_report(options.tracking_uri, options.study, {path.relative_to(folder).as_posix(): path for path in written})
    except BbcuError as error:
        print(f"analysis: the report is written, but could not be logged to MLflow: {error}", file=sys.stderr)
    return written[0]


def regenerate(folder: Path, options: argparse.Namespace) -> Path:
    """Regenerate a report from its ``results.zip`` in all its forms and return its page's path.

    It stays in its folder unless ``--reports`` is given, and keeps its margin and its price unless others are given.
    """
    from analysis.report.archive import ARCHIVE, opened
    from analysis.report.page import write_all
    from analysis.study.loading import margin_of
    from analysis.study.prices import at_price

    with opened(folder / ARCHIVE) as archive:
        target = options.reports / folder.resolve().name if options.reports else folder
        margin = margin_of(archive.results, options.margin) if options.margin else archive.margin
        return write_all(at_price(archive.results, options.cost_binary), margin, target)[0]


def check_reports(reports: Path) -> None:
    """Check every report and print a line for each; raises BbcuError if one is stale."""
    from analysis.report.check import StaleReport, check

    stale = []
    for name, reason in check(reports):
        say(f"{printable(name)}: {'stale' if reason else 'up to date'}")
        stale += [reason] if reason else []
    if stale:
        raise StaleReport(stale)


def comparison(arguments: Sequence[str]) -> str:
    """Return the page that compares two studies."""
    parser = ArgumentParser(
        prog="python -m analysis compare", description="Compare two studies, or two versions of one."
    )
    for name, which in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=which, help="a study's name, outputs/STUDY, reports/STUDY or a results.zip")
    add_sources(parser)
    options = parser.parse_args(arguments)
    load_declarations()

    from analysis.report.compare import compare, study_at
    from analysis.statistics.estimates import MARGIN_DB

    place = options.tracking_uri, options.outputs
    with study_at(options.first, *place) as first, study_at(options.second, *place) as second:
        return compare(first, second, (options.first, options.second), options.margin or MARGIN_DB)


if __name__ == "__main__":
    main()
