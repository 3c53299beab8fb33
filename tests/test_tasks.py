"""Super-resolution: how the input is made, what the baseline does and what is scored."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bbcu.errors import ConfigError
from bbcu.images import Pixels, crop_to_multiple, downscale, luma, read_rgb, upscale
from bbcu.metrics import psnr, ssim
from bbcu.tasks import SuperResolution, Task, task_from_name

SHARED = Path(__file__).parents[2] / "shared"
PROTOCOL = SHARED / "golden" / "protocol.csv"
SET5 = SHARED / "data" / "Set5"
NAMES = ["sr_x2", "sr_x3", "sr_x4"]
SCALES = pytest.mark.parametrize("scale", [2, 3, 4])


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("name", "scale"), [("sr_x2", 2), ("sr_x3", 3), ("sr_x4", 4)])
def test_a_task_is_found_by_its_name(name: str, scale: int) -> None:
    task = task_from_name(name)
    assert task == SuperResolution(scale)
    assert (task.name, task.scale) == (name, scale)


@pytest.mark.parametrize("name", ["sr_x5", "sr_x02", "SR_X2", "", "denoise"])
def test_an_unknown_task_is_refused_with_the_valid_names(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown task '{name}'.*; valid: sr_x2, sr_x3, sr_x4"):
        task_from_name(name)


@SCALES
def test_the_truth_is_cut_to_a_multiple_of_the_scale_and_the_input_is_its_bicubic(scale: int) -> None:
    picture = noise(13 * scale - 1, 15 * scale + 1)
    input, truth = SuperResolution(scale).pair(picture)
    assert truth.shape == (12 * scale, 15 * scale, 3)
    np.testing.assert_array_equal(truth, crop_to_multiple(picture, scale))
    np.testing.assert_array_equal(input, downscale(truth, scale))


@SCALES
def test_the_baseline_is_bicubic_with_a_of_minus_three_quarters(scale: int) -> None:
    input = noise(7, 9)
    np.testing.assert_array_equal(SuperResolution(scale).baseline(input), upscale(input, scale))


@SCALES
def test_the_score_is_that_of_the_luma_inside_the_border(scale: int) -> None:
    output, truth = noise(24, 32, seed=1), noise(24, 32, seed=2)
    score = SuperResolution(scale).score(output, truth)
    output_luma, truth_luma = (luma(image)[scale : 24 - scale, scale : 32 - scale] for image in (output, truth))
    assert score.psnr_db == psnr(output_luma, truth_luma)
    assert score.ssim == ssim(output_luma, truth_luma)


def border(image: Pixels, width: int) -> Pixels:
    changed = image.copy()
    changed[:width] = changed[-width:] = 0
    changed[:, :width] = changed[:, -width:] = 0
    return changed


@SCALES
def test_a_border_as_wide_as_the_scale_does_not_count_and_the_next_pixel_does(scale: int) -> None:
    task, output, truth = SuperResolution(scale), noise(24, 32, seed=1), noise(24, 32, seed=2)
    assert task.score(border(output, scale), truth) == task.score(output, truth)
    assert task.score(border(output, scale + 1), truth) != task.score(output, truth)


def turned(image: Pixels) -> Pixels:
    return image.transpose(1, 0, 2)


@pytest.mark.parametrize("change", [turned, lambda image: image[:, ::-1]], ids=["transposed", "mirrored"])
@SCALES
def test_a_turned_picture_scores_the_same(scale: int, change: Callable[[Pixels], Pixels]) -> None:
    task, output, truth = SuperResolution(scale), noise(24, 32, seed=1), noise(24, 32, seed=2)
    plain, changed = task.score(output, truth), task.score(change(output), change(truth))
    assert (changed.psnr_db, changed.ssim) == pytest.approx((plain.psnr_db, plain.ssim), abs=1e-12)


def published(task_name: str) -> tuple[float, float]:
    with open(PROTOCOL, newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["task"] == task_name and row["dataset"] == "Set5"]
    (row,) = [row for row in rows if row["input"] == "bicubic a=-0.75"]
    return float(row["psnr_db"]), float(row["ssim"])


def baseline_of_set5(task: Task) -> tuple[float, float]:
    pairs = [task.pair(read_rgb(path)) for path in sorted(SET5.iterdir())]
    scores = [task.score(task.baseline(input), truth) for input, truth in pairs]
    return float(np.mean([score.psnr_db for score in scores])), float(np.mean([score.ssim for score in scores]))


@pytest.mark.skipif(not (PROTOCOL.exists() and SET5.exists()), reason="the pictures of Set5 are not here")
@pytest.mark.parametrize("name", NAMES)
def test_the_baseline_of_set5_is_the_measured_one(name: str) -> None:
    psnr_db, similarity = baseline_of_set5(task_from_name(name))
    assert psnr_db == pytest.approx(published(name)[0], abs=0.001)
    assert similarity == pytest.approx(published(name)[1], abs=0.0002)
