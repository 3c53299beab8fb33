"""Sample pictures show the place where the baseline errs most, the same for every cell."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablations.trial.samples import CROP, crop_place, save_samples
from bbcu.data.images import Pixels
from bbcu.data.pairs import prepare
from bbcu.data.sources import Pictures
from bbcu.data.tasks import ArtifactReduction, Denoising, SuperResolution
from tests.harness.builders import picture_of, soft_blobs


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
    data = prepare(Pictures((), {"A": (picture_of("x", pixels),)}), task, 8)
    (pair,) = data.test["A"]
    save_samples(tmp_path, data, {("A", "x"): pair.truth})
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


def shown_of(folder: Path) -> dict[str, Pixels]:
    return {path.stem: np.asarray(Image.open(path)) for path in folder.iterdir()}


def test_a_noisy_input_is_shown_rounded_and_clipped(tmp_path: Path) -> None:
    task = Denoising((75.0,), (0.0, 75.0))
    data = prepare(Pictures((), {"A": (picture_of("x", soft_blobs(0, 96, 96)),)}), task, 8)
    (pair,) = data.test["A"]
    save_samples(tmp_path, data, {("A", "x"): pair.truth})
    shown = shown_of(tmp_path / "A" / "x")
    assert np.array_equal(shown["input"], task.baseline(pair.input))
    assert np.array_equal(shown["input"], shown["baseline"])
    assert np.array_equal(shown["truth"], pair.truth)


def test_a_gray_picture_is_shown_gray(tmp_path: Path) -> None:
    task = ArtifactReduction((10,), (1, 50))
    data = prepare(Pictures((), {"A": (picture_of("x", soft_blobs(0, 96, 96)),)}), task, 8)
    (pair,) = data.test["A"]
    save_samples(tmp_path, data, {("A", "x"): pair.truth})
    shown = shown_of(tmp_path / "A" / "x")
    assert {crop.shape for crop in shown.values()} == {(96, 96)}
    assert np.array_equal(shown["input"], pair.input[..., 0])
    assert np.array_equal(shown["truth"], pair.truth[..., 0])


def test_every_level_has_its_samples(tmp_path: Path) -> None:
    task = Denoising((15.0, 50.0), (0.0, 75.0))
    data = prepare(Pictures((), {"A": (picture_of("x", soft_blobs(0, 96, 96)),)}), task, 8)
    save_samples(tmp_path, data, {(name, "x"): pairs[0].truth for name, pairs in data.test.items()})
    weak, strong = (shown_of(tmp_path / f"A-sigma{sigma}" / "x") for sigma in (15, 50))
    assert np.array_equal(weak["truth"], strong["truth"])
    assert not np.array_equal(weak["input"], strong["input"])
