"""What a trained network is worth: its output on whole pictures, and the scores of that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bbcu.data.images import Pixels, to_image, to_tensor
from bbcu.data.pairs import Pair
from bbcu.data.tasks import Input, Score, Task
from bbcu.errors import ConfigError
from bbcu.training.acceleration import exact_convolutions
from bbcu.training.loop import TrainingDiverged


@dataclass(frozen=True)
class Evaluation:
    """How a network is run on whole pictures.

    ``self_ensemble`` takes the mean of the outputs for the 8 symmetries of the input, each turned back, before it is
    rounded: some tenths of a dB for 8 times the work (Timofte et al., Seven Ways to Improve Example-Based Single Image
    Super Resolution, CVPR 2016). ``tile`` is the largest side in input pixels that is run at once, 0 for the whole
    picture. Tiles overlap by what the network sees around a pixel, so they change nothing but the order in which
    numbers are added. A value right at the threshold of a sign can turn by that, and without learnt thresholds such
    values are common: so no tile is the default.
    """

    self_ensemble: bool = False
    tile: int = 0


def restore(network: nn.Module, picture: Input, device: torch.device, how: Evaluation | None = None) -> Pixels:
    """Run ``network`` in evaluation mode and full precision on one picture, and give its output rounded.

    Takes (height, width, colours) on the scale of 0 to 255, returns uint8 of ``scale`` times that size. Raises
    TrainingDiverged for an output that is no picture.
    """
    how = how or Evaluation()
    network.eval()
    with torch.inference_mode(), exact_convolutions():
        batch = to_tensor(picture).unsqueeze(0).to(device)
        symmetries = range(8) if how.self_ensemble else range(1)
        outputs = (_turned_back(_run(network, _turned(batch, turn), how.tile), turn) for turn in symmetries)
        # One output at a time is held beside their sum.
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
    """Run (1, colours, height, width), in tiles where it is larger than one."""
    height, width = batch.shape[2:]
    if not tile or max(height, width) <= tile:
        output: Tensor = network(batch.contiguous(memory_format=torch.channels_last))
        return output
    radius = radius_of(network)
    rows = []
    for row in _spans(height, tile, radius):
        tiles = []
        for column in _spans(width, tile, radius):
            part = batch[:, :, row.start : row.stop, column.start : column.stop]
            restored = network(part.contiguous(memory_format=torch.channels_last))
            scale = restored.shape[2] // part.shape[2]
            inner_rows, inner_columns = row.inner(scale), column.inner(scale)
            tiles.append(restored[:, :, inner_rows, inner_columns])
        rows.append(torch.cat(tiles, dim=3))
    return torch.cat(rows, dim=2)


def radius_of(network: nn.Module) -> int:
    """How many input pixels around a pixel its output depends on; raises ConfigError where a network does not say."""
    radius = getattr(network, "radius", None)
    if not isinstance(radius, int):
        raise ConfigError(
            f"evaluation.tile: {type(network).__name__} does not say how far it sees; "
            "give it a property radius, in input pixels"
        )
    return radius


@dataclass(frozen=True)
class Span:
    """A piece of an axis that is run, from ``start`` to ``stop``, and the part of it that is kept."""

    start: int
    stop: int
    keep_from: int
    keep_to: int

    def inner(self, scale: int) -> slice:
        """What is kept, in pixels of the output, counted from the piece's beginning."""
        return slice((self.keep_from - self.start) * scale, (self.keep_to - self.start) * scale)


def _spans(size: int, tile: int, radius: int) -> Iterator[Span]:
    """Cut an axis into pieces of ``tile`` that are kept, each run with ``radius`` more on both sides."""
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        yield Span(max(0, start - radius), min(size, stop + radius), start, stop)


def evaluate(
    network: nn.Module,
    sets: Mapping[str, Sequence[Pair]],
    task: Task,
    device: torch.device,
    how: Evaluation | None = None,
    on_picture: Callable[[str, Pair, Pixels], None] | None = None,
) -> dict[str, dict[str, Score]]:
    """Score ``network`` on every picture of every set: set name -> picture name -> score, in the task's metrics.

    ``on_picture(set name, pair, output)`` sees every output as it is made.
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
    """The mean over the pictures of a set, as the field averages: of the dB, not of the errors."""
    return Score(
        psnr_db=float(np.mean([score.psnr_db for score in scores.values()])),
        ssim=float(np.mean([score.ssim for score in scores.values()])),
    )
