r"""Thresholds: what the sign is taken of, and the two values that its outcomes stand for.

A threshold maps the unit's input :math:`u` to :math:`v`, whose sign is taken. Most keep +1 and -1 as the values that
are convolved. The learnable shift of BBCU, ``threshold=true``, is a parameter of the unit itself and no class here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError, unknown
from bbcu.model.initialisation import uniform

LEAST_WIDTH = 1e-3
"""What a learnt width is kept above."""


class Threshold(nn.Module):
    """Base of the thresholds with more than a shift; ``forward(u)`` returns ``v`` in the shape of ``u``.

    ``is_local`` is whether a pixel of ``v`` depends on the same pixel of ``u`` alone. ``is_signed`` is whether the
    values that are convolved are +1 and -1, times :meth:`gain`.
    """

    is_local, is_signed = True, True

    def gain(self) -> Tensor | None:
        """Return a positive number that multiplies the convolution's result, or None."""
        return None

    def values(self, signs: Tensor) -> Tensor:
        """Return the values that are convolved, without :meth:`gain`."""
        return signs

    def after_step(self) -> None:
        """Change the parameters in place after a step of the optimiser; most thresholds do not."""


class Affine(Threshold):
    r""":math:`v = \kappa_c u + m_c`, both learnt, from :math:`\kappa = 1`.

    While :math:`\kappa > 0` it is the network of ``true`` with the threshold :math:`m / \kappa`: the slope only sets
    the width and the height of the surrogate's window. At inference both fold into one comparison.
    Source: Cai et al., BiSR-Conv, NeurIPS 2023, and its released code.
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.full((1, channels, 1, 1), initial))

    def forward(self, u: Tensor) -> Tensor:
        return self.slope * u + self.shift


class Elastic(Threshold):
    r""":math:`v = (u - \beta_c) / \alpha`, and the values :math:`\pm\alpha`: a learnt width for the whole unit, from 1.

    The gradient of :math:`\alpha` is :math:`\sum G (s - v \varphi(v))`. It folds into the scales of the filters, so the
    network is that of ``true`` times :math:`\alpha`; its own effect is the width :math:`|u - \beta| \le \alpha` in
    which gradients flow. It is kept above 0.001.
    Source: Liu et al., BiT, NeurIPS 2022 (elastic binarisation), for SCALES as reconstructed from its abstract.
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.ones(()))
        self.centre = nn.Parameter(torch.full((1, channels, 1, 1), -initial))

    def forward(self, u: Tensor) -> Tensor:
        return (u - self.centre) / self.width

    def gain(self) -> Tensor | None:
        return self.width

    def after_step(self) -> None:
        with torch.no_grad():
            self.width.clamp_min_(LEAST_WIDTH)


class Adaptive(Threshold):
    r""":math:`v = (u - \beta) / a`, and the values :math:`a (\beta \pm 1)`; both learnt, one number for the whole unit.

    The two values are not opposites. The convolution pads with zeros, which is neither of them. The width is kept above
    0.001.
    Source: Tu et al., AdaBin, ECCV 2022, in the form of its released code.
    """

    is_signed = False

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.ones(()))
        self.centre = nn.Parameter(torch.full((), -initial))

    def forward(self, u: Tensor) -> Tensor:
        return (u - self.centre) / self.width

    def values(self, signs: Tensor) -> Tensor:
        return self.width * (signs + self.centre)

    def after_step(self) -> None:
        with torch.no_grad():
            self.width.clamp_min_(LEAST_WIDTH)


class Dynamic(Threshold):
    r""":math:`v = u + d_c(u)`, a threshold for each picture and channel, from the means of the channels.

    The means pass through a perceptron of one hidden layer, twice as wide. With ``rescale`` at ``channel`` or ``both``
    it has twice as many outputs, and the second half are the channel factors. No receptive radius.
    Source: EBSR (arXiv 2303.12270 v1) as built by a third party.
    """

    is_local = False

    def __init__(self, channels: int, initial: float, *, has_factors: bool = False) -> None:
        super().__init__()
        self.channels, self.initial = channels, initial
        self.hidden = PooledLinear(channels, 2 * channels)
        self.out = PooledLinear(2 * channels, (1 + has_factors) * channels)

    def forward(self, u: Tensor) -> Tensor:
        return u + (self.outputs(u)[:, : self.channels] + self.initial)

    def factors(self, u: Tensor) -> Tensor:
        """Return the factor of each channel, (batch, channels, 1, 1)."""
        return torch.sigmoid(self.outputs(u)[:, self.channels :])

    def outputs(self, u: Tensor) -> Tensor:
        """Return all outputs of the perceptron, (batch, outputs, 1, 1)."""
        outputs: Tensor = self.out(F.relu(self.hidden(u.mean((2, 3), keepdim=True))))
        return outputs


class PooledLinear(nn.Conv2d):
    """A 1x1 convolution of a picture's means, with initial values that depend on the seed and the name."""

    initial_weight = initial_bias = staticmethod(uniform)

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)


THRESHOLDS: dict[str, Callable[[int, float], Threshold]] = {
    "affine": Affine,
    "elastic": Elastic,
    "adaptive": Adaptive,
    "dynamic": Dynamic,
}


def threshold_of(name: str, channels: int, initial: float, *, has_factors: bool) -> Threshold:
    """Return a new threshold, where ``true`` would start at ``initial``; raises ConfigError for an unknown name.

    ``has_factors`` is whether a dynamic one also returns the factors of a rescale.
    """
    if name not in THRESHOLDS:
        raise ConfigError(f"threshold: {unknown('level', name, ['true', 'false', *THRESHOLDS])}")
    if name == "dynamic":
        return Dynamic(channels, initial, has_factors=has_factors)
    return THRESHOLDS[name](channels, initial)
