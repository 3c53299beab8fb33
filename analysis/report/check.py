"""Whether every committed report is what its committed results give.

Text is compared byte by byte. So are figures; where a figure's bytes differ, its pixels may differ by at most
:data:`MOST_PIXEL_DIFFERENCE`, because another build of matplotlib or FreeType rounds the edge of a letter otherwise.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from analysis.report.archive import ARCHIVE, opened
from analysis.report.forms import forms
from analysis.report.page import PAGE, compose
from bbcu.errors import BbcuError, ConfigError

MOST_PIXEL_DIFFERENCE = 2
"""How far a pixel may be off, of 255 levels."""


class StaleReport(BbcuError):
    """A committed report that its results do not give; each line of the message names a file and what differs."""


def check(reports: Path) -> list[Path]:
    """Make every report below ``reports`` again and give their folders.

    Raises StaleReport where one differs or has no results to be made from, ConfigError where there is no report.
    """
    folders = sorted(page.parent for page in reports.glob(f"*/{PAGE}"))
    if not folders:
        raise ConfigError(f"no report below {reports}: a report is a folder with a {PAGE}")
    found = [reason for folder in folders if (reason := first_difference(folder))]
    if found:
        raise StaleReport("\n".join(found))
    return folders


def first_difference(folder: Path) -> str:
    """The first file of a report that is not what its results give, and how it differs; empty where there is none."""
    if not (folder / ARCHIVE).is_file():
        again = f"`python -m analysis {folder.name}` writes it"
        return f"{folder / ARCHIVE}: not there, so the report cannot be made again; {again}"
    try:
        with opened(folder / ARCHIVE) as kept:
            files = compose(kept.results, kept.margin)
    except BbcuError as error:
        return str(error)
    # The other forms follow from the page, so they are compared only where they were kept.
    others = {name: content for name, content in forms(files).items() if (folder / name).is_file()}
    for name, content in sorted({**files, **others}.items(), key=lambda item: (item[0] != PAGE, item[0])):
        if reason := difference(folder / name, content):
            return f"{folder / name}: {reason}"
    return ""


def difference(path: Path, wanted: bytes) -> str:
    """How a committed file differs from what the results give; empty where it does not."""
    if not path.is_file():
        return "not there"
    found = path.read_bytes()
    if found == wanted:
        return ""
    if path.suffix == ".png":
        return picture_difference(found, wanted)
    return text_difference(found, wanted)


def text_difference(found: bytes, wanted: bytes) -> str:
    """The first line that differs."""
    ours, theirs = (content.decode(errors="replace").split("\n") for content in (found, wanted))
    number = next(
        (n for n, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    one, other = (repr(lines[number][:200]) if number < len(lines) else "nothing" for lines in (ours, theirs))
    return f"line {number + 1} is {one}, and the results give {other}"


def picture_difference(found: bytes, wanted: bytes) -> str:
    """How far the pixels of two PNG files are apart; empty where that is within the tolerance."""
    try:
        ours, theirs = (np.asarray(imread(io.BytesIO(content)), dtype=np.float64) for content in (found, wanted))
    except (SyntaxError, ValueError, OSError) as error:
        return f"cannot be read as a picture: {error}"
    if ours.shape != theirs.shape:
        return f"{ours.shape[1]} x {ours.shape[0]} pixels, and the results give {theirs.shape[1]} x {theirs.shape[0]}"
    most = 255 * float(np.abs(ours - theirs).max())
    return "" if most <= MOST_PIXEL_DIFFERENCE + 1e-6 else f"a pixel is {most:.0f} of 255 levels off"
