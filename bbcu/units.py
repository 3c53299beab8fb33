"""The binary convolution unit: one binary convolution with its threshold, BatchNorm, activation and residual.

One class for every combination of factors; what varies is a small named object in one of its places.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.binarisers import BINARISERS
from bbcu.initialisation import Initialiser, uniform
from bbcu.registry import look_up
from bbcu.surrogates import SURROGATES

KERNEL = 3


@dataclass(frozen=True)
class UnitSpec:
    """The factors of a unit; the defaults are the reference, BBCU.

    ``residual`` is True (an identity around every unit), False, or "block" (one around each pair of units).
    ``bn`` is "none", "pre" (before the sign), "post" (after the convolution) or "out" (after the add).
    ``act`` is "inside" (before the add), "after" it, or "none".
    """

    residual: bool | str = True
    bn: str = "none"
    act: str = "inside"
    act_fn: str = "rprelu"
    surrogate: str = "quadratic"
    weight: str = "l1"


class RPReLU(nn.Module):
    """A PReLU whose input and output are shifted, three learnable numbers per channel.

    Source: Liu et al., ReActNet, ECCV 2020, eq. 7, with the signs of the released BBCU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x + self.shift_in, self.slope) + self.shift_out


def prelu(channels: int) -> nn.Module:
    return nn.PReLU(channels)


def relu(channels: int) -> nn.Module:
    return nn.ReLU()


def hardtanh(channels: int) -> nn.Module:
    return nn.Hardtanh()


ACTIVATIONS = {"rprelu": RPReLU, "prelu": prelu, "relu": relu, "hardtanh": hardtanh}


class BinaryUnit(nn.Module):
    """``u = bn_pre(x) + threshold``, ``z = bn_post(conv(sign(u), binarised weight))``, then by ``act``

        inside:  bn_out(activation(z) + residual)
        after:   bn_out(activation(z + residual))

    Input (batch, in_channels, height, width), output (batch, out_channels, height, width). Zeros are padded after the
    sign, so a padded pixel counts nothing.
    """

    def __init__(
        self, in_channels: int, out_channels: int, spec: UnitSpec, initial_weight: Initialiser = uniform
    ) -> None:
        super().__init__()
        self.spec = spec
        self.initial_weight = initial_weight
        self.threshold = nn.Parameter(torch.zeros(1, in_channels, 1, 1))
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, KERNEL, KERNEL))
        self.surrogate = look_up("surrogate", spec.surrogate, SURROGATES)()
        self.binariser = look_up("weight", spec.weight, BINARISERS)()
        self.bn_pre = nn.BatchNorm2d(in_channels) if spec.bn == "pre" else nn.Identity()
        self.bn_post = nn.BatchNorm2d(out_channels) if spec.bn == "post" else nn.Identity()
        self.bn_out = nn.BatchNorm2d(out_channels) if spec.bn == "out" else nn.Identity()
        has_activation = spec.act != "none"
        self.activation = look_up("act_fn", spec.act_fn, ACTIVATIONS)(out_channels) if has_activation else nn.Identity()
        uniform(self.weight, torch.Generator().manual_seed(0))

    def branch(self, x: Tensor) -> Tensor:
        """The binary convolution with what stands before it and its BatchNorm; no activation, no residual."""
        bits = self.surrogate(self.bn_pre(x) + self.threshold)
        z: Tensor = self.bn_post(F.conv2d(bits, self.binariser(self.weight), padding=KERNEL // 2))
        return z

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self.branch(x)
        if residual is None:
            y = self.activation(z)
        elif self.spec.act == "after":
            y = self.activation(z + residual)
        else:
            y = self.activation(z) + residual
        out: Tensor = self.bn_out(y)
        return out
