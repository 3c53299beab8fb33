"""Write the report of a study, or check reports.

python -m analysis STUDY        writes reports/STUDY: report.md, report.html, figures, tables, results.zip
python -m analysis FOLDER       regenerates the report in FOLDER from its results.zip
python -m analysis compare A B  compares two studies, each given by name or folder
python -m analysis index        writes reports/README.md and reports/index.html, which show all reports
python -m analysis --check      regenerates every report in reports/examples and compares

``--margin DB`` sets the difference in PSNR that does not matter, for a report and for a comparison.
``--cost-binary PRICE`` sets what a binary multiply-add counts in a report.
"""

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ablations.space.factors import load_declarations
from bbcu.errors import BbcuError, ConfigError, first_line, printable, printable_lines
from bbcu.terminal import ArgumentParser, progress_shown, protect_output, say

log = logging.getLogger("analysis")
"""Its messages are the progress that the commands show; those for debugging are the parts of a step."""

Item = TypeVar("Item")

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
        elif given[:1] == ["index"]:
            index(given[1:])
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
        with progress():
            folder = regenerate(Path(options.study), options)
        print_pages(folder)
    else:
        with progress():
            folder = write_report(options)
        print_pages(folder)


def print_pages(folder: Path) -> None:
    """Print where the pages of a report are, for a reader of text and for a browser."""
    from analysis.report.forms import HTML, PAGE

    for name in (PAGE, HTML):
        say(printable(folder / name))


class Progress(logging.Handler):
    """Shows each step, and on a terminal also which part of it is being worked on."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.DEBUG if sys.stderr.isatty() else logging.INFO)
        self.show, self.step = show, ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.INFO:
            self.step = text
        self.show(text if text == self.step else f"{self.step}: {text}")


@contextlib.contextmanager
def progress() -> Iterator[None]:
    """Show on stderr what ``analysis`` logs: the last message on a terminal, or a line for each step."""
    with progress_shown() as show:
        handler, level, propagate = Progress(show), log.level, log.propagate
        log.addHandler(handler)
        log.setLevel(handler.level)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate


def with_progress(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, and show the progress of making each; none is shown while the caller prints one."""
    while True:
        with progress():
            item = next(items, None)
        if item is None:
            return
        yield item


def command_line() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m analysis",
        description="Write the report of a study.",
        epilog="python -m analysis compare A B  compares two studies; python -m analysis index  lists all reports",
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
    """Write the report of one study in all its forms, log it to MLflow, and return its folder.

    Raises BbcuError if the study cannot be read. If MLflow does not accept the report, the report is still written and
    stderr says so. The imports are here because they take seconds, which ``--help`` and a wrong argument need not wait
    for.
    """
    from analysis.report.forms import PAGE
    from analysis.report.page import write_composed
    from analysis.report.tracked import log_report, said_by
    from analysis.study.loading import load, margin_of
    from analysis.study.prices import at_price

    log.info("reading the trials of %s", options.study)
    results = at_price(load(options.tracking_uri, options.study, options.outputs), options.cost_binary)
    folder: Path = (options.reports or REPORTS) / options.study
    written, report = write_composed(results, margin_of(results, options.margin), folder)
    paths = {path.relative_to(folder).as_posix(): path for path in written}
    log.info("logging the report to MLflow")
    try:
        log_report(options.tracking_uri, options.study, paths, said_by(report.files[PAGE].decode(), report.chapters))
    except BbcuError as error:
        print(f"analysis: the report is written, but could not be logged to MLflow: {error}", file=sys.stderr)
    return folder


def regenerate(folder: Path, options: argparse.Namespace) -> Path:
    """Regenerate a report from its ``results.zip`` in all its forms and return the folder that it is in.

    It stays in its folder unless ``--reports`` is given, and keeps its margin and its price unless others are given.
    """
    from analysis.report.archive import ARCHIVE, opened
    from analysis.report.page import write_all
    from analysis.study.loading import margin_of
    from analysis.study.prices import at_price

    log.info("reading %s", folder / ARCHIVE)
    with opened(folder / ARCHIVE) as archive:
        target: Path = options.reports / folder.resolve().name if options.reports else folder
        margin = margin_of(archive.results, options.margin) if options.margin else archive.margin
        write_all(at_price(archive.results, options.cost_binary), margin, target)
    return target


def check_reports(reports: Path) -> None:
    """Check every report and print a line for each; raises BbcuError if one is stale."""
    from analysis.report.check import StaleReport, check

    stale = []
    for name, reason in with_progress(check(reports)):
        say(f"{printable(name)}: {'stale' if reason else 'up to date'}")
        stale += [reason] if reason else []
    if stale:
        raise StaleReport(stale)


def index(arguments: Sequence[str]) -> None:
    """Write the pages that show all reports, and print their paths."""
    parser = ArgumentParser(prog="python -m analysis index", description="Write the pages that show all reports.")
    parser.add_argument("--reports", type=Path, default=REPORTS, metavar="DIR", help="their folder (%(default)s)")
    options = parser.parse_args(arguments)

    from analysis.report.gallery import write_index

    for path in write_index(options.reports):
        say(printable(path))


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
