"""Compare every committed report with what its committed results give.

Text is compared byte by byte, and so are figures; if a figure's bytes differ, its pixels may still be up to
:data:`MOST_PIXEL_DIFFERENCE` apart, because another build of matplotlib or FreeType rounds the edge of a letter
differently.
"""

import csv
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from analysis.report.archive import ARCHIVE, opened
from analysis.report.forms import PAGE, forms
from analysis.report.gallery import EXAMPLES, README, groups, readme
from analysis.report.page import report_of
from analysis.report.pictures import DamagedPicture, decoded
from bbcu.errors import BbcuError, ConfigError, printable
from bbcu.files import read_bytes

log = logging.getLogger(__name__)

MOST_PIXEL_DIFFERENCE = 2  # how far a pixel may be off, of 255 levels
MOST_FIGURE_PIXELS = 2**24
MOST_SHOWN = 200
"""The most characters of either text in a message."""

WORDS_SHOWN = 5  # how many words a message shows from the first one that differs


class StaleReport(BbcuError):
    """Reports that differ from what their results give; the message has one line for each."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(*reasons)

    def __str__(self) -> str:
        return "\n".join(map(printable, self.args))


def check(reports: Path) -> Iterator[tuple[str, str]]:
    """Regenerate every report below ``reports``; yield its name and how it differs, empty if it does not.

    The last one is the index that lists them, as the summaries on disk give it: that of the examples is above their
    folder; a folder of others need not have one. Raises ConfigError if there is no report.
    """
    folders = sorted(page.parent for page in reports.glob(f"*/{PAGE}"))
    if not folders:
        raise ConfigError(f"no report below {reports}: a report is a folder with a {PAGE}")
    for number, folder in enumerate(folders, start=1):
        log.info("%d of %d: %s", number, len(folders), folder.name)
        yield printable(folder.name), first_difference(folder)
    is_examples = reports.name == EXAMPLES
    index = (reports.parent if is_examples else reports) / README
    if is_examples or index.exists():
        reason = difference(index, readme(groups(index.parent)))
        yield README, f"{index}: {reason}; python -m analysis index writes it" if reason else ""


def first_difference(folder: Path) -> str:
    """Name the first file of a report that its results do not give and say how it differs; empty if there is none."""
    if not (folder / ARCHIVE).exists():
        return f"{folder / ARCHIVE}: missing, so the report cannot be regenerated"
    try:
        with opened(folder / ARCHIVE) as archive:
            report = report_of(archive.results, archive.margin)
    except BbcuError as error:
        return str(error)
    # The other forms follow from the page and are large, so git does not hold them everywhere.
    others = {
        name: content for name, content in forms(report.files, report.details).items() if (folder / name).is_file()
    }
    for name, content in sorted({**report.files, **others}.items(), key=lambda item: (item[0] != PAGE, item[0])):
        if reason := difference(folder / name, content):
            return f"{folder / name}: {reason}"
    return ""


def difference(path: Path, wanted: bytes) -> str:
    """Say how a committed file differs from what the results give; empty if it does not."""
    try:
        found = read_bytes(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found == wanted:
        return ""
    if path.suffix == ".png":
        return picture_difference(found, wanted)
    ours, theirs = (content.decode(errors="replace").split("\n") for content in (found, wanted))
    return table_difference(ours, theirs) if path.suffix == ".csv" else text_difference(ours, theirs)


def first_unequal(ours: list[str], theirs: list[str]) -> tuple[int, str | None, str | None]:
    """Return the first position at which two lists differ, and what each has there; None beyond its end."""
    pairs = enumerate(itertools.zip_longest(ours, theirs))
    return next(((place, one, other) for place, (one, other) in pairs if one != other), (len(ours), None, None))


def both(place: str, *values: str | None) -> str:
    found, wanted = ("nothing" if text is None else repr(text) for text in values)
    return f"{place} is {found}, but the results give {wanted}"


def text_difference(ours: list[str], theirs: list[str]) -> str:
    """Show the words from the first that differs on, with their line and column."""
    number, *lines = first_unequal(ours, theirs)
    if lines[0] is None or lines[1] is None:
        return both(f"line {number + 1}", *lines)
    unequal = first_unequal(list(lines[0]), list(lines[1]))[0]
    # A word may be a whole embedded file, so it is shown from shortly before the difference.
    start = max(lines[0].rfind(" ", 0, unequal) + 1, unequal - MOST_SHOWN // 2)
    words = [" ".join(str(text)[start:].split(" ")[:WORDS_SHOWN])[:MOST_SHOWN] for text in lines]
    return both(f"line {number + 1}, column {start + 1}", *words)


def table_difference(ours: list[str], theirs: list[str]) -> str:
    """Show the first cell of a CSV file that differs, with the name of its column."""
    number, *lines = first_unequal(ours, theirs)
    header, *cells = (next(csv.reader([text or ""]), []) for text in (theirs[0], *lines))
    column, *values = first_unequal(*cells)
    name = header[column] if column < len(header) else "beyond the header"
    return both(f"line {number + 1}, column {column + 1} ({name})", *values)


def picture_difference(found: bytes, wanted: bytes) -> str:
    """Say how far the pixels of two PNG files are apart; empty if that is within the tolerance."""
    try:
        ours, theirs = (decoded(content, MOST_FIGURE_PIXELS) for content in (found, wanted))
    except DamagedPicture as error:
        return f"not a readable picture: {error}"
    if ours.shape != theirs.shape:
        sizes = [f"{shape[1]} x {shape[0]} pixels" for shape in (ours.shape, theirs.shape)]
        return f"has {sizes[0]}, but the results give {sizes[1]}"
    most = 255 * float(np.abs(ours - theirs).max())
    return "" if most <= MOST_PIXEL_DIFFERENCE + 1e-6 else f"a pixel is off by {most:.0f} of 255 levels"
