"""Strips of sample pictures, made of random pixels, for tests of how they are shown."""

import math

import numpy as np

from analysis.report.pictures import Strip, Tile, disagreement, zoomed

SIDE = 48
"""The height and width of the pictures, in pixels of the truth."""


def a_strip(
    colours: int = 3, scale: int = 2, errors: tuple[float, float] = (0.05, 0.2), name: str = "", picture: str = "bird"
) -> Strip:
    """Input, baseline, two cells with errors up to those given, and the truth; ``name`` is in every name."""
    draw = np.random.default_rng(colours)
    shape = (SIDE, SIDE, 3)[: 3 if colours == 3 else 2]
    truth = draw.uniform(0.2, 0.8, shape)
    kinds = ["input", "baseline", "output", "output", "truth"]
    pixels = [truth[::scale, ::scale], truth if scale == 1 else truth * 0.7 + 0.15]
    pixels += [truth + error * draw.uniform(-1, 1, shape) for error in errors] + [truth]
    titles = ["input", "bicubic", f"good cell{name}", f"bad cell{name}", "truth"]
    scores = [math.nan, 28.5, 31.0, 29.0, math.nan]
    seeds = [None, None, 0, 0, None]
    tiles = [
        Tile(title, seed, score, np.rint(255 * each) / 255, kind=kind)
        for title, seed, score, each, kind in zip(titles, seeds, scores, pixels, kinds, strict=True)
    ]
    place = disagreement([tile.pixels for tile in tiles if tile.kind == "output"])
    return Strip(f"Set5{name}", f"{picture}{name}", tuple(zoomed(tile, place, tiles[-1]) for tile in tiles), place)
