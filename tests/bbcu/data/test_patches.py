"""The patches that a training sees: drawn evenly, turned with their truth, degraded, and decided by seed and step."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bbcu.data.images import Pixels, compress
from bbcu.data.pairs import Pair, prepare
from bbcu.data.patches import PatchSampler
from bbcu.data.sources import Pictures
from bbcu.data.tasks import ArtifactReduction, Denoising, Input, SuperResolution, Task
from tests.harness.builders import noise, picture_of, some_pictures

X2 = SuperResolution(2)
DENOISE = Denoising((25.0,), (0.0, 75.0))
JPEG = ArtifactReduction((10,), (1, 50))

PATCH = 3


def map_of_places(index: int, height: int, width: int, scale: int) -> Pair:
    """Make a pair whose pixels say where they lie: row and column in the input, and which picture.

    The truth repeats each pixel ``scale`` times, and its last channel counts within such a block.
    """
    rows, columns = np.mgrid[:height, :width]
    input = np.stack([rows, columns, np.full_like(rows, index)], axis=-1).astype(np.uint8)
    truth = input.repeat(scale, axis=0).repeat(scale, axis=1)
    within = np.arange(scale * scale).reshape(scale, scale)
    truth[..., 2] = np.tile(within, (height, width))
    return Pair(f"map {index}", input, truth)


def eight_symmetries(square: Input) -> list[Input]:
    return [np.rot90(side, quarter) for side in (square, square[:, ::-1]) for quarter in range(4)]


def drawn(sampler: PatchSampler, step: int) -> list[tuple[Pixels, Pixels]]:
    """Draw a batch as bytes, channels last."""
    inputs, truths = ((values * 255).round().to(torch.uint8).permute(0, 2, 3, 1) for values in sampler.batch_at(step))
    return list(zip(inputs.numpy(), truths.numpy(), strict=True))


def maps(scale: int) -> list[Pair]:
    return [map_of_places(0, 5, 4, scale), map_of_places(1, 3, 6, scale), map_of_places(2, 9, 9, scale)]


def place_and_symmetry(input: Pixels, truth: Pixels, scale: int) -> tuple[int, int, int, int]:
    """Find (picture, top, left, symmetry) of a patch; fails unless input and truth both show that."""
    index, top, left = int(input[0, 0, 2]), int(input[..., 0].min()), int(input[..., 1].min())
    pair = maps(scale)[index]
    rows, columns = slice(top, top + PATCH), slice(left, left + PATCH)
    large_rows, large_columns = (slice(part.start * scale, part.stop * scale) for part in (rows, columns))
    views = eight_symmetries(pair.input[rows, columns])
    large_views = eight_symmetries(pair.truth[large_rows, large_columns])
    found = [number for number, view in enumerate(views) if np.array_equal(view, input)]
    assert len(found) == 1
    np.testing.assert_array_equal(truth, large_views[found[0]])
    return index, top, left, found[0]


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_input_and_truth_show_the_same_place_in_the_same_symmetry(scale: int) -> None:
    sampler = PatchSampler(maps(scale), scale, PATCH, batch=100, seed=0)
    for input, truth in drawn(sampler, step=0):
        place_and_symmetry(input, truth, scale)


def test_pictures_places_and_symmetries_are_drawn_evenly() -> None:
    sampler = PatchSampler(maps(2), 2, PATCH, batch=4800, seed=0)
    found = [place_and_symmetry(input, truth, 2) for input, truth in drawn(sampler, step=0)]
    pictures = Counter(index for index, *_ in found)
    symmetries = Counter(symmetry for *_, symmetry in found)
    places = Counter((top, left) for index, top, left, _ in found if index == 2)
    assert sorted(pictures) == [0, 1, 2]
    assert min(pictures.values()) > 0.9 * 1600
    assert sorted(symmetries) == list(range(8))
    assert min(symmetries.values()) > 0.8 * 600
    assert sorted(places) == [(top, left) for top in range(7) for left in range(7)]
    assert max(places.values()) < 2.5 * 1600 / 49


@pytest.mark.parametrize("scale", [2, 4])
def test_a_batch_is_float32_with_channels_first(scale: int) -> None:
    pairs = prepare(some_pictures(), SuperResolution(scale), patch=5).train
    inputs, truths = PatchSampler(pairs, scale, patch=5, batch=7, seed=0).batch_at(0)
    assert inputs.shape == (7, 3, 5, 5)
    assert truths.shape == (7, 3, 5 * scale, 5 * scale)
    assert inputs.dtype == truths.dtype == torch.float32
    assert inputs.is_contiguous()
    assert truths.is_contiguous()


def sampler_of(task: Task, seed: int = 3, cache: Path | None = None) -> PatchSampler:
    data = prepare(some_pictures(), task, 6, cache)
    return PatchSampler(data.train, task.scale, 6, 4, seed, degradation=task.degradation, release=data.release)


def same_batches(first: PatchSampler, second: PatchSampler, step: int, other_step: int) -> bool:
    pairs = zip(first.batch_at(step), second.batch_at(other_step), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


EVERY_TASK = pytest.mark.parametrize("task", [X2, DENOISE, JPEG], ids=["sr_x2", "denoise", "jpeg"])


@EVERY_TASK
def test_a_step_draws_the_same_batch_whatever_was_drawn_before_or_elsewhere(task: Task) -> None:
    resumed, continued = sampler_of(task), sampler_of(task)
    for step in range(5):
        continued.batch_at(step)
    np.random.seed(1)
    torch.manual_seed(1)
    assert same_batches(resumed, continued, 5, 5)


@EVERY_TASK
@pytest.mark.parametrize(("seed", "step"), [(3, 6), (4, 5), (5, 3)], ids=["step", "seed", "step and seed exchanged"])
def test_another_step_or_seed_draws_another_batch(task: Task, seed: int, step: int) -> None:
    assert not same_batches(sampler_of(task), sampler_of(task, seed), 5, step)


@EVERY_TASK
def test_patches_of_mapped_pictures_are_those_of_pictures_in_memory(tmp_path: Path, task: Task) -> None:
    in_memory, mapped = sampler_of(task), sampler_of(task, cache=tmp_path)
    assert all(same_batches(in_memory, mapped, step, step) for step in range(4))


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        pytest.param(X2, "9653eea5997d7142", id="sr_x2"),
        pytest.param(DENOISE, "0588eb0e0fa3f948", id="denoise"),
        pytest.param(JPEG, "d8b28757af6b38ad", id="jpeg"),
    ],
)
def test_a_batch_is_the_one_that_earlier_results_were_trained_on(task: Task, digest: str) -> None:
    inputs, truths = sampler_of(task).batch_at(5)
    assert hashlib.sha256(inputs.numpy().tobytes() + truths.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        pytest.param([], "no pairs", id="none"),
        pytest.param([map_of_places(0, 2, 9, 2)], r"smaller than a patch of 3 x 3", id="too low"),
        pytest.param([map_of_places(0, 9, 2, 2)], r"smaller than a patch of 3 x 3", id="too narrow"),
        pytest.param([map_of_places(0, 9, 9, 3)], r"is not 2 times the input", id="another scale"),
    ],
)
def test_a_sampler_refuses_pairs_that_hold_no_patch(pairs: list[Pair], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchSampler(pairs, scale=2, patch=PATCH, batch=4, seed=0)


# ---- patches that are degraded as they are drawn ---------------------------------------------------------------------


def negative(patches: Pixels, generator: np.random.Generator) -> Input:
    """Degrade patches so that each shows which it was."""
    return 255 - patches


def square(side: int = 40) -> list[Pair]:
    pixels = noise(side, side)
    return [Pair("noise", pixels, pixels)]


def test_what_is_degraded_is_the_patch_as_it_was_turned() -> None:
    inputs, truths = PatchSampler(maps(1), 1, PATCH, batch=64, seed=0, degradation=negative).batch_at(0)
    torch.testing.assert_close(inputs, 1 - truths)
    degraded, clean = (
        PatchSampler(maps(1), 1, PATCH, batch=64, seed=0, degradation=degradation).batch_at(0)[1]
        for degradation in (negative, None)
    )
    assert torch.equal(degraded, clean)


def test_what_is_degraded_may_lie_between_and_beyond_the_levels() -> None:
    def beyond(patches: Pixels, generator: np.random.Generator) -> Input:
        return patches.astype(np.float32) * 2 - 127.75

    inputs, truths = PatchSampler(square(), 1, 8, batch=4, seed=0, degradation=beyond).batch_at(0)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous()
    assert float(inputs.min()) < 0
    assert float(inputs.max()) > 1
    torch.testing.assert_close(inputs, truths * 2 - 127.75 / 255)


def test_noise_does_not_choose_the_patches() -> None:
    weak, strong = (
        PatchSampler(square(), 1, 8, batch=4, seed=0, degradation=Denoising((25.0,), (sigma, sigma)).degradation)
        for sigma in (1.0, 75.0)
    )
    assert torch.equal(weak.batch_at(3)[1], strong.batch_at(3)[1])
    assert not torch.equal(weak.batch_at(3)[0], strong.batch_at(3)[0])


def test_a_compressed_patch_has_its_blocks_at_its_own_corner() -> None:
    task = ArtifactReduction((10,), (10, 10))
    blobs = picture_of("blobs", noise(5, 5).repeat(8, axis=0).repeat(8, axis=1))
    pairs = prepare(Pictures((blobs,), {}), task, patch=16).train
    inputs, truths = PatchSampler(pairs, 1, 16, batch=8, seed=0, degradation=task.degradation).batch_at(0)
    assert inputs.shape == (8, 1, 16, 16)
    for input, truth in zip(inputs, truths, strict=True):
        pixels = (truth[0, ..., None] * 255).round().numpy().astype(np.uint8)
        np.testing.assert_array_equal((input[0, ..., None] * 255).round().numpy(), compress(pixels, 10))


@pytest.mark.parametrize(
    ("batch", "patch", "steps", "expected"),
    [
        # Each row of a patch may hold two pages of 4096 bytes, in the input and in the truth: 2**26 bytes a batch.
        pytest.param(64, 64, 9, [0, 4, 8], id="before patches hold a quarter of a gigabyte"),
        pytest.param(2, 8, 20, [0], id="seldom for small batches"),
        pytest.param(300, 64, 3, [0, 1, 2], id="at every step for large ones"),
    ],
)
def test_the_memory_of_mapped_pictures_is_released(batch: int, patch: int, steps: int, expected: list[int]) -> None:
    step, found = 0, []
    sampler = PatchSampler(square(64), 1, patch, batch, seed=0, release=lambda: found.append(step))
    for step in range(steps):
        sampler.batch_at(step)
    assert found == expected
