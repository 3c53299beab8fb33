"""Sample pictures: the same crop of a test picture for every cell, beside its input, its baseline and the truth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from bbcu.data.images import Pixels, rounded
from bbcu.data.pairs import PreparedData

CROP = 96
"""Side of a sample picture, in pixels of the truth."""


def crop_place(truth: Pixels, baseline: Pixels, scale: int) -> tuple[slice, slice]:
    """The window of CROP x CROP pixels of the truth where the baseline's error is largest, aligned to the input's grid.

    It depends on the data alone, so every cell shows the same place.
    """
    error = np.abs(truth.astype(np.float64) - baseline).mean(axis=2)
    sums = np.pad(error.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    height, width = (min(CROP, size) // scale * scale for size in error.shape)
    window = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    window = window[::scale, ::scale]
    top, left = (int(place) * scale for place in np.unravel_index(window.argmax(), window.shape))
    return slice(top, top + height), slice(left, left + width)


def save_samples(folder: Path, data: PreparedData, outputs: Mapping[tuple[str, str], Pixels]) -> None:
    """Save a crop of each output beside the same place in the input, the baseline and the truth."""
    task = data.task
    for (set_name, picture), output in outputs.items():
        pair = next(pair for pair in data.test[set_name] if pair.name == picture)
        baseline = task.baseline(pair.input)
        rows, columns = crop_place(pair.truth, baseline, task.scale)
        small = tuple(slice(cut.start // task.scale, cut.stop // task.scale) for cut in (rows, columns))
        crops = {
            "input": rounded(pair.input[small]),
            "baseline": baseline[rows, columns],
            "output": output[rows, columns],
            "truth": pair.truth[rows, columns],
        }
        place = folder / set_name / picture
        place.mkdir(parents=True, exist_ok=True)
        for name, crop in crops.items():
            Image.fromarray(crop[..., 0] if task.colours == 1 else crop).save(place / f"{name}.png")
