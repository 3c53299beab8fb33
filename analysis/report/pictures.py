"""Choose the sample pictures that a report shows side by side: input, baseline, the cells' outputs and the truth.

Each comes with the window in which the cells disagree most, and that window's error.
"""

import dataclasses
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray
from PIL import Image

from ablations.space.study_cells import UNTRAINED
from analysis.effects.cells import CellSummary
from analysis.statistics.rounding import rounded
from analysis.study.loading import SAMPLES
from analysis.study.tasks import TaskResults, natural
from bbcu.errors import first_line
from bbcu.files import read_bytes

SHOWN_PER_SET = 2  # how many pictures of a test set are shown; the report counts the others

MOST_CELLS = 6
"""How many cells a strip shows: reference, best, worst, and others at even distances in the ranking by PSNR."""

LONGEST_FILE_NAME = 100
"""The most bytes in the name of a test set or picture; both are in the name of a file that the report writes."""

ZOOM = 3  # the window is one part in so many of the picture's height and width

KINDS = ("input", "baseline", "output", "truth")
"""The files of a test picture, without ``.png``."""

LARGEST_PICTURE, MOST_PIXELS = 4 * 2**20, 2**20
"""The most bytes and pixels of a sample picture; trials save windows of 96 x 96 pixels."""

Pixels = NDArray[np.float64]


Folders = dict[str, tuple[Path, int]]
"""The folder of samples that a cell is shown by, and its seed."""


class DamagedPicture(ValueError):
    """A picture that cannot be read or shown; the message says why."""


Damaged = list[tuple[str, int, str]]
"""Files that cannot be read: the cell and seed of their trial, and their name in its folder."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One picture (height x width, perhaps x channels, 0 to 1), the trial's seed, and the test set's PSNR in dB.

    ``kind`` is one of ``KINDS``, ``zoom`` its window, ``error`` the mean absolute difference to the truth there over
    the channels, and ``crop_psnr_db`` the PSNR of the window over all channels; None or NaN if there is none.
    """

    title: str
    seed: int | None
    psnr_db: float
    pixels: Pixels
    zoom: Pixels | None = None
    error: Pixels | None = None
    crop_psnr_db: float = math.nan
    kind: str = "output"


@dataclasses.dataclass(frozen=True)
class Strip:
    """One test picture as cells restore it; ``place`` is top, left, height and width of the window."""

    test_set: str
    picture: str
    tiles: tuple[Tile, ...]
    place: tuple[int, int, int, int]


def strips(results: TaskResults, cells: Sequence[CellSummary], baseline: str) -> tuple[list[Strip], int, Damaged]:
    """Return the strips to show, how many test pictures have samples in total, and the files that cannot be read.

    A cell is shown under the first of its seeds that left samples; ``baseline`` is the name of the baseline.
    """
    folders = sample_folders(results, shown_cells(drawable(results, cells)))
    found = {name for folder, _ in folders.values() for name in sample_folders_in(folder)}
    names = in_order(name for name in found if name.partition("/")[0] in results.sets)
    chosen: list[str] = []
    for name in names:
        if sum(other.split("/")[0] == name.split("/")[0] for other in chosen) < SHOWN_PER_SET:
            chosen.append(name)
    damaged: Damaged = []
    shown = [strip(results, folders, name, baseline, damaged) for name in chosen]
    return [each for each in shown if each.tiles], len(names), damaged


def sample_folders_in(folder: Path) -> list[str]:
    """Return the test pictures in a trial's folder of samples, such as ``Set5/baby``, Set5 before Set14."""
    paths = (path.relative_to(folder) for path in folder.glob("*/*/"))
    return in_order(path.as_posix() for path in paths if all(map(is_shown_name, path.parts)))


def in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: [natural(part) for part in name.split("/")])


def is_shown_name(name: str) -> bool:
    """Whether a report shows a test set or picture of this name, which must be that of a file in an archive too."""
    try:
        return name not in (".", "..") and "\0" not in name and len(name.encode()) <= LONGEST_FILE_NAME
    except UnicodeEncodeError:
        return False


def drawable(results: TaskResults, cells: Sequence[CellSummary]) -> list[CellSummary]:
    """Return the cells with an output of their own: an untrained one has the baseline's, which every strip shows."""
    trained = [cell for cell in cells if results.cells.loc[cell.cell, "method"] not in UNTRAINED]
    return trained or list(cells)


def shown_cells(cells: Sequence[CellSummary]) -> list[CellSummary]:
    """Return some of the ranked cells at even distances, one of them moved to the reference if that is in between."""
    if len(cells) <= MOST_CELLS:
        return list(cells)
    places = [round(index * (len(cells) - 1) / (MOST_CELLS - 1)) for index in range(MOST_CELLS)]
    for reference in (place for place, cell in enumerate(cells) if cell.is_reference and place not in places):
        places[min(range(1, MOST_CELLS - 1), key=lambda index: abs(places[index] - reference))] = reference
    return [cells[place] for place in sorted(places)]


def sample_folders(results: TaskResults, cells: Sequence[CellSummary]) -> Folders:
    found: Folders = {}
    for cell in cells:
        folders = ((results.study.files[cell.cell, seed](SAMPLES), seed) for seed in cell.seeds)
        if first := next(((folder, seed) for folder, seed in folders if folder is not None), None):
            found[cell.cell] = first
    return found


def strip(results: TaskResults, folders: Folders, name: str, baseline: str, damaged: Damaged) -> Strip:
    """Return the tiles of one test picture, without those that no trial left; none at all without an output.

    Files that cannot be read are added to ``damaged``.
    """
    test_set, picture = name.split("/")
    scores = results.metric(f"{test_set}/psnr_db")
    reader = _Reader(folders, name, damaged)
    truth = reader.common("truth", np.nan)
    restored = [
        Tile(results.labels[cell], seed, float(scores[cell, seed]), pixels)
        for cell, (_, seed) in folders.items()
        if (pixels := reader.pixels(cell, "output")) is not None
    ]
    reached = rounded(results.finished[f"metric/baseline/{test_set}/psnr_db"].mean())
    before = reader.common("input", np.nan), reader.common("baseline", reached, baseline)
    tiles = [tile for tile in (*before, *restored, truth) if tile is not None]
    place = disagreement([tile.pixels for tile in restored])
    return Strip(test_set, picture, tuple(zoomed(tile, place, truth) for tile in tiles) if restored else (), place)


@dataclasses.dataclass
class _Reader:
    """Reads the files of one test picture; the first one that is read decides the size of the others."""

    folders: Folders
    name: str
    damaged: Damaged
    size: tuple[int, int] | None = None

    def pixels(self, cell: str, kind: str) -> Pixels | None:
        """Return a picture; None if a trial left none, or one that cannot be read or has another size."""
        folder, seed = self.folders[cell]
        try:
            pixels = pixels_of(folder / self.name / f"{kind}.png")
            if pixels is not None:
                self._check_size(pixels, kind)
        except DamagedPicture:
            self.damaged.append((cell, seed, f"{SAMPLES}/{self.name}/{kind}.png"))
            return None
        return pixels

    def _check_size(self, pixels: Pixels, kind: str) -> None:
        height, width = pixels.shape[:2]
        if self.size is None:
            self.size = height, width
        scale = self.size[0] // height if kind == "input" else 1
        if (scale * height, scale * width) != self.size:
            raise DamagedPicture(f"has {width} x {height} pixels")

    def common(self, kind: str, psnr_db: float, title: str = "") -> Tile | None:
        for cell in self.folders:
            pixels = self.pixels(cell, kind)
            if pixels is not None:
                return Tile(title or kind, None, psnr_db, pixels, kind=kind)
        return None


def disagreement(outputs: Sequence[Pixels]) -> tuple[int, int, int, int]:
    """Return the window in which the outputs differ most: that with the largest sum of their variance over cells.

    The rule does not look at the truth. If all outputs are alike, the window is in the middle. The sums are rounded, so
    that equal ones are equal on every processor, and the first of them is taken.
    """
    height, width = outputs[0].shape[:2] if outputs else (0, 0)
    rows, columns = max(1, height // ZOOM), max(1, width // ZOOM)
    alike = [output for output in outputs if output.shape == outputs[0].shape]
    spread = np.var(alike, axis=0) if len(alike) > 1 else np.zeros((height, width))
    if not spread.any():
        return (height - rows) // 2, (width - columns) // 2, rows, columns
    spread = spread.reshape(height, width, -1).sum(axis=2)
    sums = np.pad(spread.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    window = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    top, left = np.unravel_index(int(window.round(9).argmax()), window.shape)
    return int(top), int(left), rows, columns


def zoomed(tile: Tile, place: tuple[int, int, int, int], truth: Tile | None) -> Tile:
    """Add its window to a tile; the input of super-resolution is smaller, and so is its window."""
    top, left, rows, columns = place
    whole = truth.pixels if truth else tile.pixels
    down, across = (whole.shape[axis] // tile.pixels.shape[axis] for axis in (0, 1))
    cut = tile.pixels[
        top // down : max(top // down + 1, (top + rows) // down),
        left // across : max(left // across + 1, (left + columns) // across),
    ]
    if truth is None or tile is truth or cut.shape != (target := whole[top : top + rows, left : left + columns]).shape:
        return dataclasses.replace(tile, zoom=cut)
    error = np.abs(cut - target)
    square = float(np.mean(error**2))
    psnr = -10 * math.log10(square) if square > 0 else math.inf
    flat = error.reshape(*error.shape[:2], -1).mean(axis=2)
    return dataclasses.replace(tile, zoom=cut, error=flat, crop_psnr_db=rounded(psnr))


def pixels_of(path: Path) -> Pixels | None:
    """Read a PNG file, 0 to 1 and without transparency; None if it does not exist.

    Raises DamagedPicture for anything else.
    """
    try:
        pixels = decoded(read_bytes(path, LARGEST_PICTURE), MOST_PIXELS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedPicture(str(error.strerror)) from error
    if pixels.ndim == 3 and pixels.shape[2] < 3:
        raise DamagedPicture("neither grey nor in colour")
    return pixels if pixels.ndim == 2 else pixels[..., :3]


def decoded(content: bytes, most_pixels: int) -> Pixels:
    """Decode a PNG file from 0 to 1; raises DamagedPicture if it is none, or has more than so many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                width, height = image.size
        if width * height <= most_pixels:
            return np.asarray(imread(io.BytesIO(content), format="png"), dtype=np.float64)
    # Pillow raises nearly anything for a damaged file: OSError, SyntaxError, ValueError, zlib.error, struct.error.
    except Exception as error:
        raise DamagedPicture(first_line(error)) from error
    raise DamagedPicture(f"{width} x {height} pixels are too many")
