"""Sample pictures show the place where the baseline errs most, the same for every cell."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablations.samples import CROP, crop_place, save_samples
from bbcu.datasets import Picture, Pictures, prepare
from bbcu.images import Pixels
from bbcu.tasks import SuperResolution


def gray(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 128, dtype=np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_crop_covers_the_largest_error(scale: int) -> None:
    truth = gray(300, 240)
    truth[200:210, 150:160] = 255
    rows, columns = crop_place(truth, gray(300, 240), scale)
    assert rows.start <= 200 < 210 <= rows.stop
    assert columns.start <= 150 < 160 <= columns.stop


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_crop_lies_on_the_grid_of_the_input(scale: int) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 256, (12 * 20, 12 * 25, 3)).astype(np.uint8)
    for cut in crop_place(truth, gray(*truth.shape[:2]), scale):
        assert cut.start % scale == 0
        assert cut.stop - cut.start == CROP // scale * scale


def test_a_picture_smaller_than_the_crop_is_shown_whole() -> None:
    assert crop_place(gray(40, 50), gray(40, 50), 2) == (slice(0, 40), slice(0, 50))


def test_the_four_pictures_show_one_place(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (160, 200, 3)).astype(np.uint8)
    task = SuperResolution(2)
    data = prepare(Pictures((), {"A": (Picture("x", pixels, "memory"),)}), task, 8)
    (pair,) = data.test["A"]
    save_samples(tmp_path, data, {("A", "x"): pair.truth}, task)
    shown = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "A" / "x").iterdir()}
    assert {name: crop.shape for name, crop in shown.items()} == {
        "input": (48, 48, 3),
        "baseline": (96, 96, 3),
        "output": (96, 96, 3),
        "truth": (96, 96, 3),
    }
    rows, columns = crop_place(pair.truth, task.baseline(pair.input), 2)
    assert np.array_equal(shown["truth"], pair.truth[rows, columns])
    assert np.array_equal(shown["output"], shown["truth"])
    small = pair.input[rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2]
    assert np.array_equal(shown["input"], small)
