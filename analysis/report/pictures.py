"""Choose the sample pictures that a report shows side by side: input, baseline, the cells' outputs and the truth.

Each comes with the window in which the cells disagree most, and that window's error.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray

from analysis.effects.contrasts import CellSummary
from analysis.statistics.rounding import rounded
from analysis.study.methods import UNTRAINED
from analysis.study.settings import SettingResults, natural

SHOWN_PER_SET = 2  # how many pictures of a test set are shown; the report counts the others

MOST_CELLS = 6
"""How many cells a strip shows: reference, best, worst, and others at even distances in the ranking by PSNR."""

ZOOM = 3  # the window is one part in so many of the picture's height and width

Pixels = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Tile:
    """One picture (height x width, perhaps x channels, 0 to 1), the trial's seed, and the test set's PSNR in dB.

    ``zoom`` is its window, ``error`` the mean absolute difference to the truth there over the channels, and
    ``crop_psnr_db`` the PSNR of the window over all channels; None or NaN if there is none.
    """

    title: str
    seed: int | None
    psnr_db: float
    pixels: Pixels
    zoom: Pixels | None = None
    error: Pixels | None = None
    crop_psnr_db: float = math.nan


@dataclasses.dataclass(frozen=True)
class Strip:
    """One test picture as cells restore it; ``place`` is top, left, height and width of the window."""

    test_set: str
    picture: str
    tiles: tuple[Tile, ...]
    place: tuple[int, int, int, int]


def strips(results: SettingResults, cells: Sequence[CellSummary], baseline: str) -> tuple[list[Strip], int]:
    """Return the strips to show, and how many test pictures have samples in total.

    A cell is shown under the first of its seeds that left samples; ``baseline`` is the name of the baseline.
    """
    folders = sample_folders(results, shown_cells(drawable(results, cells)))
    names = sorted(
        {path.relative_to(folder).as_posix() for folder, _ in folders.values() for path in folder.glob("*/*/")},
        key=lambda name: [natural(part) for part in name.split("/")],
    )
    chosen: list[str] = []
    for name in names:
        if sum(other.split("/")[0] == name.split("/")[0] for other in chosen) < SHOWN_PER_SET:
            chosen.append(name)
    return [strip(results, folders, name, baseline) for name in chosen], len(names)


def drawable(results: SettingResults, cells: Sequence[CellSummary]) -> list[CellSummary]:
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


def sample_folders(results: SettingResults, cells: Sequence[CellSummary]) -> dict[str, tuple[Path, int]]:
    found: dict[str, tuple[Path, int]] = {}
    for cell in cells:
        folders = ((results.study.files[cell.cell, seed]("samples"), seed) for seed in cell.seeds)
        if first := next(((folder, seed) for folder, seed in folders if folder is not None), None):
            found[cell.cell] = first
    return found


def strip(results: SettingResults, folders: dict[str, tuple[Path, int]], name: str, baseline: str) -> Strip:
    """Return the tiles of one test picture, without those that no trial left."""
    test_set, picture = name.split("/")
    scores = results.scores(f"{test_set}/psnr_db")
    restored = [
        Tile(results.labels[cell], seed, float(scores[cell, seed]), pixels)
        for cell, (folder, seed) in folders.items()
        if (pixels := pixels_of(folder / name / "output.png")) is not None
    ]
    reached = rounded(results.finished[f"metric/baseline/{test_set}/psnr_db"].mean())
    before = common("input", folders, name, np.nan), common("baseline", folders, name, reached, baseline)
    truth = common("truth", folders, name, np.nan)
    tiles = [tile for tile in (*before, *restored, truth) if tile is not None]
    place = disagreement([tile.pixels for tile in restored])
    return Strip(test_set, picture, tuple(zoomed(tile, place, truth) for tile in tiles), place)


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


def common(kind: str, folders: dict[str, tuple[Path, int]], name: str, psnr_db: float, title: str = "") -> Tile | None:
    for folder, _ in folders.values():
        pixels = pixels_of(folder / name / f"{kind}.png")
        if pixels is not None:
            return Tile(title or kind, None, psnr_db, pixels)
    return None


def pixels_of(path: Path) -> Pixels | None:
    """Read a PNG file, 0 to 1 and without transparency; None if it does not exist."""
    if not path.is_file():
        return None
    pixels = np.asarray(imread(path), dtype=np.float64)
    return pixels if pixels.ndim == 2 else pixels[..., :3]
