"""Run a trained network on whole pictures, and score its outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bbcu.data.images import Pixels, to_image, to_tensor
from bbcu.data.pairs import Pair
from bbcu.data.tasks import Input, Score, Task
from bbcu.errors import ConfigError
from bbcu.training.acceleration import deterministic_fp32
from bbcu.training.loop import TrainingDiverged


@dataclass(frozen=True)
class Evaluation:
    """How a network is run on whole pictures.

    ``self_ensemble`` averages the outputs for the 8 symmetries of the input, each turned back, before rounding: some
    tenths of a dB for 8 times the work (Timofte et al., Seven Ways to Improve Example-Based Single Image Super
    Resolution, CVPR 2016). ``tile`` is the largest side in input pixels that is run at once, 0 for the whole picture.
    Tiles overlap by the receptive field, so they change only the order in which numbers are added. That can flip the
    sign of a value exactly at a threshold, which is common without learnt thresholds, so tiles are off by default.
    """

    self_ensemble: bool = False
    tile: int = 0


def restore(network: nn.Module, picture: Input, device: torch.device, how: Evaluation | None = None) -> Pixels:
    """Run ``network`` in evaluation mode and fp32 on one picture, and round its output.

    Takes (height, width, channels) on the scale of 0 to 255, returns uint8 of ``scale`` times that size. Raises
    TrainingDiverged if the output is not finite.
    """
    how = how or Evaluation()
    network.eval()
    with torch.inference_mode(), deterministic_fp32():
        batch = to_tensor(picture).unsqueeze(0).to(device)
        symmetries = range(8) if how.self_ensemble else range(1)
        outputs = (_turned_back(_run(network, _turned(batch, turn), how.tile), turn) for turn in symmetries)
        # A generator, so that only the sum and one output are in memory.
        output = sum(outputs, next(outputs)) / len(symmetries)
        if not torch.isfinite(output).all():
            raise TrainingDiverged("the network's output holds nan or inf")
        return to_image(output[0])


def _turned(batch: Tensor, turn: int) -> Tensor:
    """Show (batch, channels, height, width) in one of the 8 symmetries: quarter turns, then a flip."""
    turned = torch.rot90(batch, turn % 4, (2, 3))
    return turned.flip(3) if turn >= 4 else turned


def _turned_back(batch: Tensor, turn: int) -> Tensor:
    upright = batch.flip(3) if turn >= 4 else batch
    return torch.rot90(upright, -(turn % 4), (2, 3))


def _run(network: nn.Module, batch: Tensor, tile: int) -> Tensor:
    """Run (1, channels, height, width), in tiles if it is larger than ``tile``."""
    height, width = batch.shape[2:]
    if not tile or max(height, width) <= tile:
        output: Tensor = network(batch.contiguous(memory_format=torch.channels_last))
        return output
    radius = radius_of(network)
    rows = []
    for top, bottom, first_row, last_row in _spans(height, tile, radius):
        tiles = []
        for left, right, first_column, last_column in _spans(width, tile, radius):
            part = batch[:, :, top:bottom, left:right]
            restored = network(part.contiguous(memory_format=torch.channels_last))
            scale = restored.shape[2] // part.shape[2]
            tiles.append(
                restored[
                    :,
                    :,
                    (first_row - top) * scale : (last_row - top) * scale,
                    (first_column - left) * scale : (last_column - left) * scale,
                ]
            )
        rows.append(torch.cat(tiles, dim=3))
    return torch.cat(rows, dim=2)


def radius_of(network: nn.Module) -> int:
    """Return the radius of the receptive field in input pixels.

    Raises ConfigError for a network without the property ``radius``, and for one whose radius is None, since a part of
    it averages over the picture.
    """
    radius = getattr(network, "radius", 0)
    if radius is None:
        raise ConfigError("evaluation.tile: a part of this network averages over the whole picture, so it has no tiles")
    if not isinstance(radius, int) or not hasattr(network, "radius"):
        raise ConfigError(
            f"evaluation.tile: {type(network).__name__} must have a property radius, "
            "the radius of its receptive field in input pixels"
        )
    return radius


def _spans(size: int, tile: int, radius: int) -> Iterator[tuple[int, int, int, int]]:
    """Divide an axis into tiles: yield (start, end) of the input of each, and (first, last) of the output to use."""
    for first in range(0, size, tile):
        last = min(first + tile, size)
        yield max(0, first - radius), min(size, last + radius), first, last


def evaluate(
    network: nn.Module,
    sets: Mapping[str, Sequence[Pair]],
    task: Task,
    device: torch.device,
    how: Evaluation | None = None,
    on_picture: Callable[[str, Pair, Pixels], None] | None = None,
) -> dict[str, dict[str, Score]]:
    """Score ``network`` on every picture of every set, in the task's metrics: set name -> picture name -> score.

    ``on_picture(set name, pair, output)`` is called for every output.
    """
    scores: dict[str, dict[str, Score]] = {}
    for set_name, pairs in sets.items():
        scores[set_name] = {}
        for pair in pairs:
            output = restore(network, pair.input, device, how)
            scores[set_name][pair.name] = task.score(output, pair.truth)
            if on_picture is not None:
                on_picture(set_name, pair, output)
    return scores


def mean_score(scores: Mapping[str, Score]) -> Score:
    """Return the mean over the pictures of a set, as the field computes it: of the dB, not of the errors."""
    return Score(
        psnr_db=float(np.mean([score.psnr_db for score in scores.values()])),
        ssim=float(np.mean([score.ssim for score in scores.values()])),
    )
