"""The command for what studies say.

python -m analysis STUDY        writes reports/STUDY: report.md, report.html, figures, tables, results.zip
python -m analysis FOLDER       writes the report in FOLDER again, from its results.zip
python -m analysis compare A B  sets two studies side by side, each a name or a folder
python -m analysis --check      makes every report in reports/ again from its results.zip and compares

``--margin DB`` sets the difference in PSNR that does not matter, for a report and for a comparison.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bbcu.errors import BbcuError, ConfigError


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is asked; leave with one line, or one for each stale report, where that cannot be."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["compare"]:
            print(comparison(given[1:]), end="")
        else:
            print(report_or_check(given))
    except BbcuError as error:
        sys.exit(f"analysis: {error}")


def report_or_check(arguments: Sequence[str]) -> str:
    """Write a study's report, or check all; give the line to print."""
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.check:
        if options.margin is not None:
            raise ConfigError("--margin cannot be given with --check: each report is made again under its own margin")
        return check_reports(options.reports)
    if options.study is None:
        parser.error(f"name a study; {studies_in_words(options.tracking_uri)}")
    if is_report(Path(options.study)):
        return str(write_again(Path(options.study), options.margin))
    return str(write_report(options))


def command_line() -> argparse.ArgumentParser:
    """The command's arguments, but for those of ``compare``."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Write the report of a study.",
        epilog="python -m analysis compare A B  sets two studies side by side",
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help="the study's name, or a report's folder")
    parser.add_argument("--check", action="store_true", help="make every report in --reports again and compare")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="where to write (%(default)s)")
    add_places(parser)
    return parser


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add where studies are read from, and what difference does not matter."""
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="the MLflow store (%(default)s)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the plans are (%(default)s)")
    parser.add_argument(
        "--margin", type=margin_in_db, metavar="DB", help="the difference in PSNR that does not matter (0.05)"
    )


def margin_in_db(text: str) -> float:
    """The margin that a user typed; raises ConfigError for anything but a number above 0."""
    try:
        margin = float(text)
    except ValueError:
        margin = math.nan
    if not 0 < margin < math.inf:
        raise ConfigError(f"--margin {text}: it is a difference in dB, a number above 0 such as 0.05")
    return margin


def margin_of(options: argparse.Namespace) -> float:
    """The margin that was typed, or the usual one."""
    from analysis.statistics.estimates import MARGIN_DB

    return MARGIN_DB if options.margin is None else float(options.margin)


def studies_in_words(tracking_uri: str) -> str:
    """Which studies the store holds, or why it cannot be asked."""
    from ablations.tracking.client import study_names

    try:
        return f"there: {', '.join(study_names(tracking_uri)) or 'none yet'}"
    except BbcuError as error:
        return str(error)


def write_report(options: argparse.Namespace) -> Path:
    """Write the report of one study in all its forms, show it in MLflow, and give its page's path.

    Raises BbcuError where the study cannot be read. A store that does not take the report costs no report: that is one
    line on stderr. The imports are here because they take seconds, which ``--help`` and a wrong argument need not wait
    for.
    """
    from analysis.report.archive import recording, write_archive
    from analysis.report.forms import log_report, write_forms
    from analysis.report.page import compose, write
    from analysis.study.loading import load

    margin = margin_of(options)
    results = load(options.tracking_uri, options.study, options.outputs)
    recorded, asked = recording(results)
    files = compose(recorded, margin)
    page = write(files, options.reports / options.study)
    archive = write_archive(results, asked, margin, page.parent)
    written = [*(page.parent / name for name in files), *write_forms(files, page.parent), archive]
    try:
        paths = {path.relative_to(page.parent).as_posix(): path for path in written}
        log_report(options.tracking_uri, options.study, paths)
    except BbcuError as error:
        print(f"analysis: the report is written, and not shown in MLflow: {error}", file=sys.stderr)
    return page


def is_report(folder: Path) -> bool:
    """Whether a name on the command line is the folder of a report rather than a study."""
    return (folder / "results.zip").is_file()


def write_again(folder: Path, margin: float | None) -> Path:
    """Make a report again from its ``results.zip`` and give its page's path; the other forms where they were kept.

    ``margin`` is the report's own unless one is given, which then becomes its own.
    """
    from analysis.report.archive import ARCHIVE, opened, recording, write_archive
    from analysis.report.forms import HTML, write_forms
    from analysis.report.page import compose, write

    with opened(folder / ARCHIVE) as kept:
        chosen = kept.margin if margin is None else margin
        recorded, asked = recording(kept.results)
        files = compose(recorded, chosen)
        page = write(files, folder)
        if (folder / HTML).is_file():
            write_forms(files, folder)
        if chosen != kept.margin:
            write_archive(kept.results, asked, chosen, folder)
    return page


def check_reports(reports: Path) -> str:
    """Check every report and name them; raises BbcuError where one is stale."""
    from analysis.report.check import check

    return f"as their results give them: {', '.join(map(str, check(reports)))}"


def comparison(arguments: Sequence[str]) -> str:
    """The page that sets two studies side by side."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis compare", description="Set two studies, or two versions of one, side by side."
    )
    for name, which in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=which, help="a study's name, outputs/STUDY, reports/STUDY or a results.zip")
    add_places(parser)
    options = parser.parse_args(arguments)

    from analysis.report.compare import compare, study_at

    place = options.tracking_uri, options.outputs
    with study_at(options.first, *place) as first, study_at(options.second, *place) as second:
        return compare(first, second, (options.first, options.second), margin_of(options))


if __name__ == "__main__":
    main()
