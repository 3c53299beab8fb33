"""The patches of a training: which, where, in which symmetry and how degraded, decided by the seed and the step."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bbcu.data.pairs import Pair
from bbcu.data.tasks import Degradation, Input

DEGRADATION_STREAM = 1
"""Separates the random numbers that degrade patches from those that choose them: the same patches, however degraded."""

HELD_BYTES = 1 << 28
"""The estimated memory of mapped pictures after which it is released."""

PAGE = 4096


class PatchSampler:
    """Draws the batches of a training: patches of random pictures, at random places, in one of the 8 symmetries.

    Every picture is equally likely, whatever its size, as is usual in the field. A batch depends on the seed and the
    step alone, so a resumed training continues with the batches it would have had, and all cells see the same ones.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        scale: int,
        patch: int,
        batch: int,
        seed: int,
        *,
        degradation: Degradation | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Draw ``batch`` patches a step, ``patch`` pixels square in the input and ``patch * scale`` in the truth.

        With a ``degradation``, the input is the truth's patch, degraded after it was turned. ``release`` is called now
        and then to free the memory of mapped pictures.
        Raises ValueError if there are no pairs, if a picture is smaller than a patch, or if a truth is not ``scale``
        times its input.
        """
        if not pairs:
            raise ValueError("there are no pairs to draw patches from")
        for pair in pairs:
            _check_pair(pair, scale, patch)
        self._pairs = tuple(pairs)
        self._scale, self._patch, self._batch, self._seed = scale, patch, batch, seed
        self._degradation, self._release = degradation, release
        self._batches_held = max(1, HELD_BYTES // (batch * patch * (1 + scale) * 2 * PAGE))
        self._places = np.array([pair.input.shape[:2] for pair in pairs]) - patch + 1

    def batch_at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the batch of a step, counted from 0.

        Returns float32 in [0, 1]: inputs (batch, channels, patch, patch) and truths (batch, channels, patch * scale,
        patch * scale). An input patch and its truth show the same place in the same symmetry.
        """
        generator = self._generator(step)
        chosen = generator.integers(len(self._pairs), size=self._batch)
        places = generator.integers(self._places[chosen])
        symmetries = generator.integers(8, size=self._batch)
        truths = self._empty_batch(self._pairs[0].truth, self._scale)
        inputs = None if self._degradation else self._empty_batch(self._pairs[0].input, 1)
        for slot in range(self._batch):
            pair, place, symmetry = self._pairs[chosen[slot]], places[slot], int(symmetries[slot])
            truths[slot] = _in_symmetry(_patch_at(pair.truth, place, self._patch, self._scale), symmetry)
            if inputs is not None:
                inputs[slot] = _in_symmetry(_patch_at(pair.input, place, self._patch, 1), symmetry)
        if self._release is not None and step % self._batches_held == 0:
            self._release()
        if self._degradation is not None:
            return _to_batch(self._degradation(truths, self._generator(step, DEGRADATION_STREAM))), _to_batch(truths)
        assert inputs is not None
        return _to_batch(inputs), _to_batch(truths)

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, *stream])))

    def _empty_batch(self, image: Input, scale: int) -> NDArray[np.uint8]:
        side = self._patch * scale
        return np.empty((self._batch, side, side, image.shape[2]), dtype=np.uint8)


def _check_pair(pair: Pair, scale: int, patch: int) -> None:
    height, width = pair.input.shape[:2]
    if pair.truth.shape[:2] != (height * scale, width * scale):
        raise ValueError(f"{pair.name}: the truth {pair.truth.shape} is not {scale} times the input {pair.input.shape}")
    if min(height, width) < patch:
        raise ValueError(f"{pair.name}: the input {pair.input.shape} is smaller than a patch of {patch} x {patch}")


def _patch_at(image: Input, place: NDArray[np.int64], patch: int, scale: int) -> Input:
    """Cut out (side, side, channels) of a picture ``scale`` times the input; place and patch are in input pixels."""
    top, left = place * scale
    side = patch * scale
    return image[top : top + side, left : left + side]


def _in_symmetry(patch: Input, symmetry: int) -> Input:
    """Show (side, side, channels) in one of the 8 symmetries of a square; a transpose and a flip are a quarter turn."""
    if symmetry & 1:
        patch = patch[::-1]
    if symmetry & 2:
        patch = patch[:, ::-1]
    if symmetry & 4:
        patch = patch.transpose(1, 0, 2)
    return patch


def _to_batch(patches: Input) -> torch.Tensor:
    """Turn (batch, side, side, channels) in 0..255 into float32 (batch, channels, side, side) in [0, 1]."""
    return (
        torch.from_numpy(patches.transpose(0, 3, 1, 2))
        .to(torch.float32, memory_format=torch.contiguous_format)
        .div(255)
    )
