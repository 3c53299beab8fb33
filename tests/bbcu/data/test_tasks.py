"""The tasks: how the input is made, what the baseline does, what is scored, and what a task is asked for by."""

import io
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bbcu.data.images import Pixels, crop_to_multiple, downscale, luma, upscale
from bbcu.data.metrics import psnr, ssim
from bbcu.data.sources import embedded
from bbcu.data.tasks import ArtifactReduction, Denoising, SuperResolution, Task, make_task
from bbcu.errors import ConfigError
from tests.harness.builders import noise, soft_blobs

SCALES = pytest.mark.parametrize("scale", [2, 3, 4])


# ---- super-resolution ------------------------------------------------------------------------------------------------


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


# ---- denoising -------------------------------------------------------------------------------------------------------


def denoising(*sigma: float, train: tuple[float, float] = (0.0, 75.0)) -> Denoising:
    return Denoising(sigma or (25.0,), train)


@pytest.mark.parametrize("sigma", [0.5, 12.5, 25.0, 75.0])
@pytest.mark.parametrize(("height", "width", "seed"), [(12, 15, 0), (16, 11, 1)])
def test_the_noise_of_a_test_picture_is_that_of_seed_zero(sigma: float, height: int, width: int, seed: int) -> None:
    picture = noise(height, width, seed)
    expected = picture.astype(np.float64) + np.random.RandomState(0).normal(0, sigma, (height, width, 3))
    for _ in range(2):  # not the next numbers of a generator that all pictures share
        input, truth = denoising(sigma).test_pair(picture, "")
        assert input.dtype == np.float32
        np.testing.assert_array_equal(input, expected.astype(np.float32))
        np.testing.assert_array_equal(truth, picture)


def test_the_baseline_of_denoising_is_the_noisy_picture_rounded_and_clipped() -> None:
    input, _ = denoising(50.0).test_pair(noise(12, 15), "")
    expected = np.clip(np.floor(input.astype(np.float64) + 0.5), 0, 255)
    baseline = denoising(50.0).baseline(input)
    assert baseline.dtype == np.uint8
    np.testing.assert_array_equal(baseline, expected)


def test_denoising_is_scored_on_all_three_channels_without_a_border() -> None:
    output, truth = noise(12, 15, seed=1), noise(12, 15, seed=2)
    squared_error = np.mean((output.astype(np.float64) - truth) ** 2)
    score = denoising().score(output, truth)
    assert score.psnr_db == pytest.approx(10 * np.log10(255**2 / squared_error), abs=1e-9)
    channels = [ssim(output[..., channel], truth[..., channel]) for channel in range(3)]
    assert len(set(channels)) == 3
    assert score.ssim == pytest.approx(np.mean(channels), abs=1e-12)


def strengths(task: Denoising, count: int = 2000) -> NDArray[np.float64]:
    """The strength of the noise of each of many training patches, measured."""
    patches = np.full((count, 12, 12, 3), 128, dtype=np.uint8)
    degraded = task.degradation(patches, np.random.default_rng(0))
    assert degraded.dtype == np.float32
    found: NDArray[np.float64] = (degraded - 128.0).std(axis=(1, 2, 3), dtype=np.float64)
    return found


def test_the_strengths_of_a_training_are_drawn_evenly_from_their_range() -> None:
    found = strengths(denoising(train=(0.0, 75.0)))
    shares, _ = np.histogram(found, bins=np.linspace(0, 75, 6))
    assert shares.min() > 0.9 * 400
    assert shares.max() < 1.1 * 400


def test_a_range_that_does_not_begin_at_zero_is_kept() -> None:
    found = strengths(denoising(train=(40.0, 60.0)), count=500)
    assert found.min() > 36
    assert found.max() < 66
    assert found.mean() == pytest.approx(50, abs=1)


def test_a_single_strength_is_every_patchs() -> None:
    np.testing.assert_allclose(strengths(denoising(train=(25.0, 25.0)), count=200), 25, rtol=0.15)


# ---- JPEG artifact reduction -----------------------------------------------------------------------------------------


def restoring(*quality: int, train: tuple[int, int] = (1, 50)) -> ArtifactReduction:
    return ArtifactReduction(quality or (10,), train)


def as_the_codec_does(gray: Pixels, quality: int) -> Pixels:
    """Write a JPEG file of (height, width, 1) into memory, and read it."""
    file = io.BytesIO()
    Image.fromarray(gray[..., 0]).save(file, format="JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())))[..., None]


@pytest.mark.parametrize("quality", [1, 10, 40, 100])
def test_the_quality_is_that_of_the_codec(quality: int) -> None:
    picture = soft_blobs(0, 20, 27)
    input, truth = restoring(quality).test_pair(picture, "")
    assert input.shape == truth.shape == (20, 27, 1)
    assert input.dtype == truth.dtype == np.uint8
    np.testing.assert_array_equal(truth, restoring().pair(picture)[1])
    np.testing.assert_array_equal(input, as_the_codec_does(truth, quality))


def test_several_qualities_are_levels() -> None:
    task = restoring(10, 40)
    assert task.levels == ("-q10", "-q40")
    assert restoring(10).levels == ("",)
    for level, quality in zip(task.levels, task.quality, strict=True):
        input, truth = task.test_pair(soft_blobs(0, 20, 27), level)
        np.testing.assert_array_equal(input, as_the_codec_does(truth, quality))


def test_the_baseline_of_artifact_reduction_is_the_compressed_picture() -> None:
    input, _ = restoring().test_pair(soft_blobs(0, 20, 27), "")
    np.testing.assert_array_equal(restoring().baseline(input), input)


def test_artifact_reduction_is_scored_on_the_whole_gray_picture() -> None:
    output, truth = noise(12, 15, seed=1)[..., :1], noise(12, 15, seed=2)[..., :1]
    score = restoring().score(output, truth)
    squared_error = np.mean((output.astype(np.float64) - truth) ** 2)
    assert score.psnr_db == pytest.approx(10 * np.log10(255**2 / squared_error), abs=1e-9)
    assert score.ssim == ssim(output[..., 0], truth[..., 0])


def qualities(train: tuple[int, int], count: int) -> Counter[int]:
    """How often each quality was drawn for a patch, recognised by what the codec makes of it."""
    patch = soft_blobs(0, 16, 16)[..., :1]
    by_result = {as_the_codec_does(patch, quality).tobytes(): quality for quality in range(5, 40)}
    assert len(by_result) == 35
    degraded = restoring(train=train).degradation(np.stack([patch] * count), np.random.default_rng(0))
    assert degraded.shape == (count, 16, 16, 1)
    return Counter(by_result[result.tobytes()] for result in degraded)


def test_a_training_draws_every_quality_of_its_range_both_ends_among_them() -> None:
    found = qualities((30, 33), count=120)
    assert sorted(found) == [30, 31, 32, 33]
    assert min(found.values()) > 15
    assert qualities((10, 10), count=20) == {10: 20}


# ---- tasks by name ---------------------------------------------------------------------------------------------------

DENOISE = {"name": "denoise", "sigma": 25, "train_sigma": [0, 75]}
JPEG = {"name": "jpeg", "quality": 10, "train_quality": [1, 50]}
BY_NAME = [
    pytest.param({"name": "sr_x2"}, SuperResolution(2), id="sr_x2"),
    pytest.param({"name": "sr_x3"}, SuperResolution(3), id="sr_x3"),
    pytest.param({"name": "sr_x4"}, SuperResolution(4), id="sr_x4"),
    pytest.param({"name": "sr_x2", "sigma": None, "train_quality": None}, SuperResolution(2), id="nothing is absent"),
    pytest.param(DENOISE, Denoising((25.0,), (0.0, 75.0)), id="denoise"),
    pytest.param({**DENOISE, "quality": None}, Denoising((25.0,), (0.0, 75.0)), id="denoise, nothing for jpeg"),
    pytest.param({**DENOISE, "sigma": [50, 15.5]}, Denoising((50.0, 15.5), (0.0, 75.0)), id="several, as ordered"),
    pytest.param({**DENOISE, "train_sigma": 15}, Denoising((25.0,), (15.0, 15.0)), id="one number to train at"),
    pytest.param({**DENOISE, "train_sigma": [15]}, Denoising((25.0,), (15.0, 15.0)), id="a list of one to train at"),
    pytest.param({**DENOISE, "train_sigma": [0, 255]}, Denoising((25.0,), (0.0, 255.0)), id="the widest range"),
    pytest.param({**DENOISE, "sigma": (255, 1e-3)}, Denoising((255.0, 1e-3), (0.0, 75.0)), id="a tuple"),
    pytest.param(JPEG, ArtifactReduction((10,), (1, 50)), id="jpeg"),
    pytest.param({**JPEG, "quality": [1, 100]}, ArtifactReduction((1, 100), (1, 50)), id="the ends of the codec"),
    pytest.param({**JPEG, "quality": 10.0}, ArtifactReduction((10,), (1, 50)), id="a whole number with a point"),
    pytest.param({**JPEG, "train_quality": 7}, ArtifactReduction((10,), (7, 7)), id="one quality to train at"),
]


@pytest.mark.parametrize(("parameters", "task"), BY_NAME)
def test_a_task_is_made_by_its_name_and_its_keys_and_again_by_its_parameters(
    parameters: dict[str, Any], task: Task
) -> None:
    made = make_task(parameters)
    again = make_task(json.loads(json.dumps(made.parameters())))
    assert again == made == task
    assert hash(made) == hash(task)
    assert made.name == parameters["name"]


SPELLINGS = [
    pytest.param([{**DENOISE, "sigma": sigma} for sigma in (25, 25.0, [25], (25.0,))], id="sigma"),
    pytest.param([{**DENOISE, "train_sigma": train} for train in (25, 25.0, [25], [25, 25.0])], id="train_sigma"),
    pytest.param([{**JPEG, "quality": quality} for quality in (10, 10.0, [10])], id="quality"),
    pytest.param([{**JPEG, "train_quality": train} for train in (10, [10.0], [10, 10])], id="train_quality"),
]


@pytest.mark.parametrize("spellings", SPELLINGS)
def test_spellings_of_one_task_have_one_form(spellings: list[dict[str, Any]]) -> None:
    tasks = [make_task(parameters) for parameters in spellings]
    assert len(set(tasks)) == 1
    # As text, in which 25 and 25.0 differ: it is what a cell's key is made of.
    assert len({json.dumps(task.parameters()) for task in tasks}) == 1


VALID = "; valid: sr_x2, sr_x3, sr_x4, denoise, jpeg"
RANGE, WHOLE, NUMBER = (
    "must be a range",
    "must be whole numbers from 1 to 100",
    "must be a number, or a list of numbers",
)
REFUSED_VALUES = [
    *(({**DENOISE, "sigma": sigma}, "sigma", "must be above 0, and at most 255") for sigma in (0, -1, 255.5, [25, 0])),
    *(
        ({**DENOISE, "sigma": sigma}, "sigma", NUMBER)
        for sigma in ("25", True, float("nan"), float("inf"), [[25]], {"a": 1})
    ),
    ({**DENOISE, "sigma": []}, "sigma", "must name at least one number"),
    ({**DENOISE, "sigma": [25, 25.0]}, "sigma", "names a number twice"),
    *(
        ({**DENOISE, "train_sigma": train}, "train_sigma", RANGE)
        for train in ([75, 0], [-1, 5], [0, 256], [0, 10, 20], 300)
    ),
    *(({**JPEG, "quality": quality}, "quality", WHOLE) for quality in (0, 101, 10.5, [10, 0])),
    ({**JPEG, "quality": [10, 10]}, "quality", "names a number twice"),
    *(({**JPEG, "train_quality": train}, "train_quality", WHOLE) for train in ([0, 50], [1, 101], [1, 2.5])),
    *(({**JPEG, "train_quality": train}, "train_quality", RANGE) for train in ([50, 1], [1, 2, 3])),
    ({**JPEG, "train_quality": "low"}, "train_quality", NUMBER),
]
REFUSED = [
    *(({"name": name}, f"unknown task '{name}'") for name in ("sr_x5", "sr_x02", "SR_X2", "", "Denoise", "None", None)),
    ({"name": "sr_x2", "sigma": 25}, "task.sigma=25: the task sr_x2 has no such key"),
    ({**DENOISE, "quality": 10}, "task.quality=10: the task denoise has no such key"),
    ({**JPEG, "train_sigma": 5}, "task.train_sigma=5: the task jpeg has no such key"),
    ({**DENOISE, "noise": 1}, "task.noise=1: the task denoise has no such key"),
    ({**DENOISE, "sigma": None}, "no value for task.sigma: the task denoise needs one"),
    ({"name": "jpeg", "quality": 1}, "no value for task.train_quality: the task jpeg"),
    *((given, f"task.{key}={given[key]}: {rule}") for given, key, rule in REFUSED_VALUES),
]


@pytest.mark.parametrize(("parameters", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_a_task_is_refused_in_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_task(parameters)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not message.startswith("unknown task") or str(error.value).endswith(VALID)


def test_tasks_whose_pairs_differ_have_identities_that_differ() -> None:
    """They differ in the seventh digit, in one strength more, in the order, and in the kind of task."""
    strengths = ((25.0,), (25.00001,), (15.0,), (15.0, 25.0), (25.0, 15.0), (10.0,))
    tasks = [*(denoising(*sigma) for sigma in strengths), restoring(10), restoring(20)]
    assert len({task.identity for task in tasks}) == len(tasks)


# ---- measured scores -------------------------------------------------------------------------------------------------


# Mean PSNR in dB and SSIM over astronaut, chelsea and coffee; docs/data.md has those of the sets of the papers.
MEASURED = [
    ({"name": "sr_x2"}, 32.7182, 0.9195),
    ({"name": "sr_x3"}, 30.1380, 0.8571),
    ({"name": "sr_x4"}, 28.6755, 0.8077),
    ({**JPEG, "quality": 10}, 29.5432, 0.8032),
    ({**JPEG, "quality": 20}, 31.9234, 0.8753),
    ({**JPEG, "quality": 30}, 33.2335, 0.9049),
    ({**JPEG, "quality": 40}, 34.1478, 0.9207),
    ({**DENOISE, "sigma": 15}, 24.9246, 0.4876),
    ({**DENOISE, "sigma": 25}, 20.6329, 0.3091),
    ({**DENOISE, "sigma": 50}, 15.0852, 0.1420),
]


@pytest.mark.parametrize(("parameters", "psnr_db", "similarity"), MEASURED)
def test_the_inputs_of_the_bundled_photographs_score_what_was_measured(
    parameters: dict[str, Any], psnr_db: float, similarity: float
) -> None:
    task, scores = make_task(parameters), []
    for picture in embedded().test["embedded"]:
        input, truth = task.test_pair(picture.truth.read(), "")
        scores.append(task.score(task.baseline(input), truth))
    assert np.mean([score.psnr_db for score in scores]) == pytest.approx(psnr_db, abs=0.0002)
    assert np.mean([score.ssim for score in scores]) == pytest.approx(similarity, abs=0.0002)
