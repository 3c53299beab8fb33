"""Prepare a training: seed torch, build the network, set the statistics of its inputs, and sample patches."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from bbcu.data.pairs import Pair, PreparedData
from bbcu.data.patches import PatchSampler
from bbcu.training.loop import Training
from bbcu.training.settings import TrainSettings


def prepare_training(
    build: Callable[[], nn.Module],
    data: PreparedData,
    settings: TrainSettings,
    seed: int,
    device: torch.device,
    teacher: nn.Module | None = None,
) -> Training:
    """Build a network and set up its training on ``data``; ``seed`` and the arguments decide every bit of it.

    torch is seeded before ``build`` is called, for networks that draw from its global generator. A network that
    standardises its input gets the statistics of the training inputs. ``teacher`` is a trained network for
    ``settings.distil``; raises ConfigError where :class:`bbcu.training.loop.Training` does.
    """
    torch.manual_seed(seed)
    network = build()
    standardise(network, data.train)
    sampler = PatchSampler(
        data.train,
        data.task.scale,
        settings.patch,
        settings.batch,
        seed,
        degradation=data.task.degradation,
        release=data.release,
    )
    return Training(network, sampler, settings, device, teacher)


def standardise(network: nn.Module, pairs: Sequence[Pair]) -> None:
    """Set the input statistics of a network that standardises its input; other networks are not changed.

    The mean and the standard deviation are those of each channel over all pixels of the training inputs, in [0, 1].
    """
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
