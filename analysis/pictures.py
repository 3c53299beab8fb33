"""Which sample pictures a report shows side by side: the input, the baseline, every cell's output, the truth."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray

from analysis.contrasts import CellSummary
from analysis.sections import Section, natural

SHOWN_PER_SET = 2
"""How many pictures of a test set are shown; what is left out is said in the report."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One picture (height x width, or height x width x channels, 0 to 1), what it is, and its set's PSNR in dB.

    ``seed`` is that of the trial that made it, and ``psnr_db`` is NaN where the picture has none.
    """

    title: str
    seed: int | None
    psnr_db: float
    pixels: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Strip:
    """The same place of one test picture, as every cell restores it."""

    test_set: str
    picture: str
    tiles: tuple[Tile, ...]


def strips(section: Section, cells: Sequence[CellSummary], baseline: str) -> tuple[list[Strip], int]:
    """The strips to show, and how many test pictures have samples in all.

    A cell is shown under the first of its seeds that left samples; ``baseline`` names what the cells are compared to.
    """
    folders = sample_folders(section, cells)
    names = sorted(
        {path.relative_to(folder).as_posix() for folder, _ in folders.values() for path in folder.glob("*/*/")},
        key=lambda name: [natural(part) for part in name.split("/")],
    )
    chosen: list[str] = []
    for name in names:
        if sum(other.split("/")[0] == name.split("/")[0] for other in chosen) < SHOWN_PER_SET:
            chosen.append(name)
    return [strip(section, folders, name, baseline) for name in chosen], len(names)


def sample_folders(section: Section, cells: Sequence[CellSummary]) -> dict[str, tuple[Path, int]]:
    """The folder and seed to show of every cell that has samples."""
    found: dict[str, tuple[Path, int]] = {}
    for cell in cells:
        for seed in cell.seeds:
            folder = section.results.samples[cell.cell, seed]()
            if folder is not None:
                found[cell.cell] = (folder, seed)
                break
    return found


def strip(section: Section, folders: dict[str, tuple[Path, int]], name: str, baseline: str) -> Strip:
    """The tiles of one test picture; what no trial left is not there."""
    test_set, picture = name.split("/")
    scores = section.scores(f"{test_set}/psnr_db")
    restored = [
        Tile(section.labels[cell], seed, float(scores[cell, seed]), pixels)
        for cell, (folder, seed) in folders.items()
        if (pixels := pixels_of(folder / name / "output.png")) is not None
    ]
    reached = float(section.finished[f"metric/baseline/{test_set}/psnr_db"].mean())
    before = [common("input", folders, name, np.nan), common("baseline", folders, name, reached, baseline)]
    after = [common("truth", folders, name, np.nan)]
    return Strip(test_set, picture, tuple(tile for tile in [*before, *restored, *after] if tile is not None))


def common(kind: str, folders: dict[str, tuple[Path, int]], name: str, psnr_db: float, title: str = "") -> Tile | None:
    """A picture that all cells share, from the first that has it."""
    for folder, _ in folders.values():
        pixels = pixels_of(folder / name / f"{kind}.png")
        if pixels is not None:
            return Tile(title or kind, None, psnr_db, pixels)
    return None


def pixels_of(path: Path) -> NDArray[np.float64] | None:
    """The picture in a PNG file, 0 to 1, or None where there is no such file."""
    return np.asarray(imread(path), dtype=np.float64) if path.is_file() else None
