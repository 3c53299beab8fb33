r"""The sign of the activations, and what stands in for its derivative.

Every surrogate has the same forward pass, :math:`s = +1` where :math:`u \ge 0` and :math:`-1` elsewhere, and a backward
pass of its own, :math:`dL/du = dL/ds \cdot \varphi(u)`. A zero counts as positive, so that every output is one bit.

To add one, derive from :class:`Surrogate`, define ``derivative`` and name it by its dotted path in the config.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def sign(u: Tensor) -> Tensor:
    """+1 where ``u`` is at least zero, -1 elsewhere, in the type of ``u``."""
    one = torch.ones((), dtype=u.dtype, device=u.device)
    return torch.where(u >= 0, one, -one)


class SignWithSurrogate(torch.autograd.Function):
    """The sign, with a derivative that is given."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.derivative = derivative
        return sign(u)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return gradient * ctx.derivative(u), None


class Surrogate(nn.Module):
    """Maps ``u`` of any shape to its sign; the gradient is that of the result times :meth:`derivative`."""

    def derivative(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def set_progress(self, progress: float) -> None:
        """Be told the share of the training that is done, 0 to 1; most surrogates do not care."""

    def forward(self, u: Tensor) -> Tensor:
        signs: Tensor = SignWithSurrogate.apply(u, self.derivative)  # type: ignore[no-untyped-call]
        return signs


class Quadratic(Surrogate):
    r""":math:`\varphi(u) = \max(0, 2 - 2|u|)`, the slope of the piecewise quadratic of Bi-Real Net.

    The reference. Its window is :math:`|u| < 1`; outside, the unit's input gets no gradient through the sign.
    Source: Liu et al., Bi-Real Net, ECCV 2018.
    """

    def derivative(self, u: Tensor) -> Tensor:
        return (2 - 2 * u.abs()).clamp_min(0)


SURROGATES: dict[str, type[Surrogate]] = {"quadratic": Quadratic}
