"""What a network is given before it is trained: the statistics of the training inputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from bbcu.data.pairs import Pair


def standardise(network: "nn.Module", pairs: "Sequence[Pair]") -> None:
    """Give a network that standardises its input the statistics of the training inputs; others are left alone."""
    import torch

    standardisation = getattr(network, "standardisation", None)
    if standardisation is None:
        return
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for pair in pairs:
        pixels = pair.input.reshape(-1, pair.input.shape[-1]) / 255
        count, total, squares = count + len(pixels), total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(squares / count - mean**2)
    standardisation.set(torch.from_numpy(mean), torch.from_numpy(deviation))
