r"""Weight binarisers: from latent full-precision weights to weights of one bit each, times a scale.

Weights :math:`W` are (out, in, height, width), :math:`G` is the gradient with respect to the binary weights, and the
scale :math:`\alpha_c` is one number per output channel.

To add one, derive from :class:`Binariser` and name it by its dotted path in the config.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bbcu.surrogates import sign

PER_FILTER = (1, 2, 3)


class Binariser(nn.Module):
    """Maps latent weights (out, in, height, width) to binary ones of the same shape."""

    def forward(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class ScaledSign(torch.autograd.Function):
    """Forward the scaled sign; backward the gradient as it is, where the latent weight lies in [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.abs().mean(PER_FILTER, keepdim=True) * sign(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        passed: Tensor = gradient * (weight.abs() <= 1)
        return passed


class L1(Binariser):
    r"""Forward :math:`\alpha_c \operatorname{sgn}(W)`, where the scale :math:`\alpha_c` is the mean of :math:`|W_c|`.

    Backward :math:`G \cdot 1[|W| \le 1]`: the scale is a constant to the gradient, which it does not multiply either.

    The reference. Source: the released code of Bi-Real Net (PyTorch), ReActNet and BBCU.
    """

    def forward(self, weight: Tensor) -> Tensor:
        binary: Tensor = ScaledSign.apply(weight)  # type: ignore[no-untyped-call]
        return binary


BINARISERS: dict[str, type[Binariser]] = {"l1": L1}
