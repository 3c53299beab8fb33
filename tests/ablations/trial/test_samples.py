"""Sample pictures show the place where the baseline errs most, the same for every cell."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablations.trial.samples import CROP, crop_place, save_samples
from bbcu.data.images import Pixels
from bbcu.data.pairs import PreparedData, prepare
from bbcu.data.sources import Pictures
from bbcu.data.tasks import ArtifactReduction, Denoising, SuperResolution, Task
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


Shown = dict[str, dict[str, Pixels]]


def shown(folder: Path, task: Task, pixels: Pixels) -> tuple[PreparedData, Shown]:
    """The saved samples of a test set of one picture that was restored perfectly, by test set and kind."""
    data = prepare(Pictures((), {"A": (picture_of("x", pixels),)}), task, 8)
    save_samples(folder, data, {(name, "x"): pairs[0].truth for name, pairs in data.test.items()})
    paths = {name: (folder / name / "x").iterdir() for name in data.test}
    return data, {name: {path.stem: np.asarray(Image.open(path)) for path in found} for name, found in paths.items()}


def test_the_four_pictures_show_one_place(tmp_path: Path) -> None:
    task = SuperResolution(2)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 200, 3)).astype(np.uint8)
    data, found = shown(tmp_path, task, pixels)
    (pair,), samples = data.test["A"], found["A"]
    assert samples.pop("input").shape == (48, 48, 3)
    assert {name: crop.shape for name, crop in samples.items()} == dict.fromkeys(
        ("baseline", "output", "truth"), (96, 96, 3)
    )
    rows, columns = crop_place(pair.truth, task.baseline(pair.input), 2)
    assert np.array_equal(samples["truth"], pair.truth[rows, columns])
    assert np.array_equal(samples["output"], samples["truth"])


def test_the_input_shows_the_same_place_as_the_truth(tmp_path: Path) -> None:
    task = SuperResolution(2)
    data, found = shown(tmp_path, task, soft_blobs(0, 160, 200))
    (pair,) = data.test["A"]
    rows, columns = crop_place(pair.truth, task.baseline(pair.input), 2)
    place = pair.input[rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2]
    assert np.array_equal(found["A"]["input"], place)


def test_a_noisy_input_is_shown_rounded_and_clipped(tmp_path: Path) -> None:
    task = Denoising((75.0,), (0.0, 75.0))
    data, found = shown(tmp_path, task, soft_blobs(0, 96, 96))
    (pair,), samples = data.test["A"], found["A"]
    assert np.array_equal(samples["input"], task.baseline(pair.input))
    assert np.array_equal(samples["input"], samples["baseline"])
    assert np.array_equal(samples["truth"], pair.truth)


def test_a_gray_picture_is_shown_gray(tmp_path: Path) -> None:
    data, found = shown(tmp_path, ArtifactReduction((10,), (1, 50)), soft_blobs(0, 96, 96))
    (pair,), samples = data.test["A"], found["A"]
    assert {crop.shape for crop in samples.values()} == {(96, 96)}
    assert np.array_equal(samples["input"], pair.input[..., 0])
    assert np.array_equal(samples["truth"], pair.truth[..., 0])


def test_every_level_has_its_samples(tmp_path: Path) -> None:
    _, found = shown(tmp_path, Denoising((15.0, 50.0), (0.0, 75.0)), soft_blobs(0, 96, 96))
    weak, strong = found["A-sigma15"], found["A-sigma50"]
    assert np.array_equal(weak["truth"], strong["truth"])
    assert not np.array_equal(weak["input"], strong["input"])
