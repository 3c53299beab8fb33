"""Small networks and units, built in one line."""

from typing import Any

import torch
from torch import Tensor, nn

from bbcu.networks import NetworkSpec, SRResNet, build
from bbcu.units import BinaryUnit, UnitShape, UnitSpec


def unit(in_channels: int, out_channels: int, **levels: Any) -> BinaryUnit:
    """A unit with these levels, the reference's for the rest, and weights drawn from seed 0."""
    built = BinaryUnit(UnitShape(in_channels, out_channels), UnitSpec(**levels))
    built.initial_weight(built.weight, built.weight, torch.Generator().manual_seed(0))
    return built


def srresnet(scale: int = 2, channels: int = 8, blocks: int = 1, seed: int = 0, **spec: Any) -> SRResNet:
    """A super-resolution network; ``spec`` goes to NetworkSpec."""
    network = build("srresnet", NetworkSpec(scale, channels, blocks, **spec), seed)
    assert isinstance(network, SRResNet)
    return network


def dncnn(channels: int = 8, blocks: int = 1, seed: int = 0, **spec: Any) -> nn.Module:
    """A denoising network; ``spec`` goes to NetworkSpec."""
    return build("dncnn", NetworkSpec(1, channels, blocks, **spec), seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
