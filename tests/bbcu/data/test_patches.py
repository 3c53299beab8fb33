"""The patches that a training sees: drawn evenly, turned with their truth, spoilt, and given by seed and step."""

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from bbcu.data.images import Pixels, compress
from bbcu.data.pairs import Pair, prepare
from bbcu.data.patches import PatchSampler
from bbcu.data.sources import Pictures
from bbcu.data.tasks import ArtifactReduction, Denoising, Input, SuperResolution
from tests.harness.builders import noise, picture_of, some_pictures
from tests.harness.paths import REPOSITORY

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


@pytest.mark.parametrize(("level", "expected"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_a_batch_holds_levels_as_fractions_of_white(level: int, expected: float) -> None:
    flat = np.full((8, 8, 3), level, dtype=np.uint8)
    sampler = PatchSampler([Pair("flat", flat, flat)], scale=1, patch=4, batch=2, seed=0)
    for values in sampler.batch_at(0):
        torch.testing.assert_close(values, torch.full((2, 3, 4, 4), expected))


def sampler_of_noise(seed: int) -> PatchSampler:
    return PatchSampler(prepare(some_pictures(), X2, patch=6).train, scale=2, patch=6, batch=4, seed=seed)


def same_batches(first: PatchSampler, second: PatchSampler, step: int, other_step: int) -> bool:
    pairs = zip(first.batch_at(step), second.batch_at(other_step), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_a_step_draws_the_same_batch_whatever_was_drawn_before() -> None:
    resumed, continued = sampler_of_noise(seed=3), sampler_of_noise(seed=3)
    for step in range(5):
        continued.batch_at(step)
    assert same_batches(resumed, continued, 5, 5)


def test_another_step_draws_another_batch() -> None:
    assert not same_batches(sampler_of_noise(seed=3), sampler_of_noise(seed=3), 5, 6)


def test_another_seed_draws_other_batches() -> None:
    assert not same_batches(sampler_of_noise(seed=3), sampler_of_noise(seed=4), 5, 5)


def test_seed_and_step_are_not_interchangeable() -> None:
    assert not same_batches(sampler_of_noise(seed=3), sampler_of_noise(seed=4), 4, 3)


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


# ---- patches that are spoilt as they are drawn -----------------------------------------------------------------------


def negative(patches: Pixels, generator: np.random.Generator) -> Input:
    """Spoil patches so that each says which it was."""
    return 255 - patches


def square(side: int = 40) -> list[Pair]:
    pixels = noise(side, side)
    return [Pair("noise", pixels, pixels)]


def test_what_is_spoilt_is_the_patch_as_it_was_turned() -> None:
    inputs, truths = PatchSampler(maps(1), 1, PATCH, batch=64, seed=0, degradation=negative).batch_at(0)
    torch.testing.assert_close(inputs, 1 - truths)
    spoilt, clean = (
        PatchSampler(maps(1), 1, PATCH, batch=64, seed=0, degradation=degradation).batch_at(0)[1]
        for degradation in (negative, None)
    )
    assert torch.equal(spoilt, clean)


def test_what_is_spoilt_may_lie_between_and_beyond_the_levels() -> None:
    def beyond(patches: Pixels, generator: np.random.Generator) -> Input:
        return patches.astype(np.float32) * 2 - 127.75

    inputs, truths = PatchSampler(square(), 1, 8, batch=4, seed=0, degradation=beyond).batch_at(0)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous()
    assert float(inputs.min()) < 0
    assert float(inputs.max()) > 1
    torch.testing.assert_close(inputs, truths * 2 - 127.75 / 255)


def spoilt(task: Denoising | ArtifactReduction, seed: int = 3, side: int = 8) -> PatchSampler:
    pairs = prepare(some_pictures(), task, patch=side).train
    return PatchSampler(pairs, 1, side, batch=4, seed=seed, degradation=task.degradation)


BOTH = pytest.mark.parametrize("task", [DENOISE, JPEG], ids=["denoise", "jpeg"])


@BOTH
def test_a_step_is_spoilt_the_same_whatever_was_drawn_before(task: Denoising | ArtifactReduction) -> None:
    resumed, continued = spoilt(task), spoilt(task)
    for step in range(5):
        continued.batch_at(step)
    assert same_batches(resumed, continued, 5, 5)


@BOTH
def test_a_step_is_spoilt_the_same_whatever_else_draws_random_numbers(task: Denoising | ArtifactReduction) -> None:
    first = spoilt(task).batch_at(5)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(spoilt(task).batch_at(5)[0], first[0])


DIGEST = """
from tests.bbcu.data.test_patches import DENOISE, JPEG, digest, spoilt
print(*(digest(spoilt(task)) for task in (DENOISE, JPEG)))
"""


def digest(sampler: PatchSampler) -> str:
    inputs, truths = sampler.batch_at(5)
    return hashlib.sha256(inputs.numpy().tobytes() + truths.numpy().tobytes()).hexdigest()


def test_a_step_is_spoilt_the_same_in_another_process() -> None:
    command = [sys.executable, "-c", DIGEST]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert answer.stdout.split() == [digest(spoilt(task)) for task in (DENOISE, JPEG)]


@pytest.mark.parametrize(("seed", "step"), [(3, 6), (4, 5)], ids=["step", "seed"])
def test_another_step_or_seed_is_spoilt_otherwise(seed: int, step: int) -> None:
    flat = np.full((8, 8, 3), 128, dtype=np.uint8)
    one, other = (
        PatchSampler([Pair("flat", flat, flat)], 1, 8, batch=4, seed=seeded, degradation=DENOISE.degradation)
        for seeded in (3, seed)
    )
    first, second = one.batch_at(5)[0], other.batch_at(step)[0]
    assert not any(torch.equal(patch, another) for patch in first for another in second)


def test_the_patches_of_a_batch_have_noise_of_their_own() -> None:
    flat = np.full((8, 8, 3), 128, dtype=np.uint8)
    task = Denoising((25.0,), (25.0, 25.0))
    sampler = PatchSampler([Pair("flat", flat, flat)], 1, 8, batch=6, seed=0, degradation=task.degradation)
    inputs, _ = sampler.batch_at(0)
    assert not any(torch.equal(one, other) for one, other in combinations(inputs, 2))


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


# ---- pictures that are mapped from a file ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", [X2, DENOISE, JPEG], ids=["sr_x2", "denoise", "jpeg"])
def test_patches_of_mapped_pictures_are_those_of_pictures_in_memory(
    tmp_path: Path, task: SuperResolution | Denoising | ArtifactReduction
) -> None:
    in_memory, mapped = prepare(some_pictures(), task, 6), prepare(some_pictures(), task, 6, tmp_path)
    one, other = (
        PatchSampler(data.train, task.scale, 6, 4, 3, degradation=task.degradation, release=data.release)
        for data in (in_memory, mapped)
    )
    for step in range(4):
        assert same_batches(one, other, step, step)


def released_at(batch: int, patch: int, steps: int) -> list[int]:
    """The steps that let go of the pictures, from the first on."""
    step, found = 0, []
    sampler = PatchSampler(square(64), 1, patch, batch, seed=0, release=lambda: found.append(step))
    for step in range(steps):
        sampler.batch_at(step)
    return found


def test_mapped_pictures_are_let_go_of_before_patches_hold_a_quarter_of_a_gigabyte() -> None:
    # Each row of a patch may hold two pages of 4096 bytes, in the input and in the truth.
    held_by_a_batch = 64 * 64 * 2 * 2 * 4096
    steps = 2**28 // held_by_a_batch
    assert steps == 4
    assert released_at(batch=64, patch=64, steps=9) == [0, 4, 8]


def test_small_batches_seldom_let_go() -> None:
    assert released_at(batch=2, patch=8, steps=20) == [0]


def test_a_batch_that_is_larger_than_that_lets_go_at_every_step() -> None:
    assert released_at(batch=300, patch=64, steps=3) == [0, 1, 2]
