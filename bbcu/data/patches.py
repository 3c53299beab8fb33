"""The patches that a training sees: which, where, how turned and how spoilt, from the seed and the step alone."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bbcu.data.pairs import Pair
from bbcu.data.tasks import Corruption, Input

CORRUPTION_STREAM = 1
"""Tells the random numbers that spoil patches from those that choose them: the same patches, however spoilt."""

HELD_BYTES = 1 << 28
"""How much of mapped pictures may be held in memory, by estimate, before it is let go of."""

PAGE = 4096


class PatchSampler:
    """Draws the batches of a training: patches of random pictures, at random places, in one of the 8 symmetries.

    Every picture is as likely as any other, whatever its size, as is usual in the field. A batch depends on the seed
    and the step alone: a resumed training goes on with the batches it would have had, and all cells see the same ones.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        scale: int,
        patch: int,
        batch: int,
        seed: int,
        *,
        corruption: Corruption | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Draw ``batch`` patches a step, ``patch`` pixels square in the input and ``patch * scale`` in the truth.

        With a ``corruption`` the input is what that makes of the patch, after it was turned. ``release`` is called now
        and then, to let go of mapped pictures.
        Raises ValueError when there are no pairs, when a picture is smaller than a patch, or when a truth is not
        ``scale`` times its input.
        """
        if not pairs:
            raise ValueError("there are no pairs to draw patches from")
        for pair in pairs:
            _check_pair(pair, scale, patch)
        self._pairs = tuple(pairs)
        self._scale = scale
        self._patch = patch
        self._batch = batch
        self._seed = seed
        self._corruption = corruption
        self._release = release
        self._batches_held = max(1, HELD_BYTES // (batch * patch * (1 + scale) * 2 * PAGE))
        self._places = np.array([pair.input.shape[:2] for pair in pairs]) - patch + 1

    def batch_at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the batch of a step, counted from 0.

        Returns float32 in [0, 1]: inputs (batch, channels, patch, patch) and truths (batch, channels, patch * scale,
        patch * scale). An input patch and its truth show the same place in the same symmetry.
        """
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, step])))
        chosen = generator.integers(len(self._pairs), size=self._batch)
        places = generator.integers(self._places[chosen])
        symmetries = generator.integers(8, size=self._batch)
        truths = np.empty(self._batch_shape(self._pairs[0].truth, self._scale), dtype=np.uint8)
        inputs = truths if self._corruption else np.empty(self._batch_shape(self._pairs[0].input, 1), dtype=np.uint8)
        for slot in range(self._batch):
            pair, place, symmetry = self._pairs[chosen[slot]], places[slot], int(symmetries[slot])
            truths[slot] = _view(_patch_at(pair.truth, place, self._patch, self._scale), symmetry)
            if self._corruption is None:
                inputs[slot] = _view(_patch_at(pair.input, place, self._patch, 1), symmetry)
        if self._release is not None and step % self._batches_held == 0:
            self._release()
        return _to_batch(self._spoilt(truths, step) if self._corruption else inputs), _to_batch(truths)

    def _spoilt(self, patches: NDArray[np.uint8], step: int) -> Input:
        assert self._corruption is not None
        sequence = np.random.SeedSequence([self._seed, step, CORRUPTION_STREAM])
        return self._corruption(patches, np.random.Generator(np.random.PCG64(sequence)))

    def _batch_shape(self, image: Input, scale: int) -> tuple[int, int, int, int]:
        side = self._patch * scale
        return self._batch, side, side, image.shape[2]


def _check_pair(pair: Pair, scale: int, patch: int) -> None:
    height, width = pair.input.shape[:2]
    if pair.truth.shape[:2] != (height * scale, width * scale):
        raise ValueError(f"{pair.name}: the truth {pair.truth.shape} is not {scale} times the input {pair.input.shape}")
    if min(height, width) < patch:
        raise ValueError(f"{pair.name}: the input {pair.input.shape} is smaller than a patch of {patch} x {patch}")


def _patch_at(image: Input, place: NDArray[np.int64], patch: int, scale: int) -> Input:
    """Cut a patch, given in pixels of the input, out of a picture ``scale`` times as large; (side, side, channels)."""
    top, left = place * scale
    side = patch * scale
    return image[top : top + side, left : left + side]


def _view(patch: Input, symmetry: int) -> Input:
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
