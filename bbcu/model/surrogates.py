r"""The sign of the activations, and what stands in for its derivative.

Every surrogate has the same forward pass, :math:`s = +1` where :math:`u \ge 0` and :math:`-1` elsewhere, and a backward
pass of its own, :math:`dL/du = dL/ds \cdot \varphi(u)`. A zero counts as positive, so that every output is one bit.

To add one, derive from :class:`Surrogate`, define ``derivative`` and name it by its dotted path in the config.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.registry import look_up


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
    r""":math:`\varphi(u) = \max(0, 2 - 2|u|)`, the slope of a piecewise quadratic.

    The reference. Its window is :math:`|u| < 1`: a unit gets no gradient through inputs outside it, so a stream that
    alignment has made large trains through few of them.
    Source: Liu et al., Bi-Real Net, ECCV 2018.
    """

    def derivative(self, u: Tensor) -> Tensor:
        return (2 - 2 * u.abs()).clamp_min(0)


class Clip(Surrogate):
    r""":math:`\varphi(u) = 1[|u| \le 1]`, the straight-through estimator cut off where hardtanh is flat.

    The oldest choice; every input in the window counts alike, however far from the step.
    Source: Hubara et al., Binarized Neural Networks, NeurIPS 2016.
    """

    def derivative(self, u: Tensor) -> Tensor:
        # Without a comparison: the compiler would keep its bytes for the gradient, and those make slow code.
        return 1 - (u.abs() - 1).clamp_min(0).sign()


class Identity(Surrogate):
    r""":math:`\varphi(u) = 1`, the straight-through estimator without a cut-off.

    No unit ever stops training, but the gradient is wrong by as much as the stream is large.
    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013.
    """

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


class HigherOrder(Surrogate):
    r""":math:`\varphi(u) = 2 - 4|u|` up to 0.4, 0.4 from there to 1, and 0 beyond: a narrow peak on a long tail.

    Closer to the step than the quadratic near zero, and still alive at the window's edge.
    Source: Xu and Cheung, Accurate and Compact Convolutional Neural Networks with Trained Binarization, 2019; the
    breakpoints as BTM cites them.
    """

    PEAK, TAIL, EDGE = 0.4, 0.4, 1.0

    def derivative(self, u: Tensor) -> Tensor:
        size = u.abs()
        tail = self.TAIL * (size <= self.EDGE).to(u.dtype)
        return torch.where(size <= self.PEAK, 2 - 4 * size, tail)


class ErrorDecay(Surrogate):
    r""":math:`\varphi(u) = k t (1 - \tanh^2(t u))`, which sharpens from almost the identity to the step in training.

    At progress p, :math:`t = 10^{-1 + 2p}` and :math:`k = \max(1/t, 1)`: early every input gets a gradient, late only
    those near the step. It has no cut-off, so it keeps units alive on an aligned stream that the quadratic would not.
    Source: Qin et al., IR-Net, CVPR 2020 (error decay estimator); progress per step instead of per epoch.
    """

    FIRST_EXPONENT, LAST_EXPONENT = -1.0, 1.0

    sharpness: Tensor
    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Not persistent: a checkpoint of this unit then has the keys of any other's.
        self.register_buffer("sharpness", torch.zeros(()), persistent=False)
        self.register_buffer("gain", torch.zeros(()), persistent=False)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        sharpness = 10 ** (self.FIRST_EXPONENT + (self.LAST_EXPONENT - self.FIRST_EXPONENT) * progress)
        self.sharpness.fill_(sharpness)
        self.gain.fill_(max(1 / sharpness, 1.0))

    def derivative(self, u: Tensor) -> Tensor:
        return self.gain * self.sharpness * (1 - torch.tanh(self.sharpness * u) ** 2)


SURROGATES: dict[str, type[Surrogate]] = {
    "quadratic": Quadratic,
    "clip": Clip,
    "identity": Identity,
    "ede": ErrorDecay,
    "ho": HigherOrder,
}


def surrogate_of(name: str) -> Surrogate:
    """Return the surrogate called ``name``, or that of the class at this dotted path.

    Raises ConfigError for a name that does not exist, and for a class whose forward pass is not a sign: a network of
    such units would not be binary.
    """
    surrogate: Surrogate = look_up("surrogate", name, SURROGATES, Surrogate)()
    if name not in SURROGATES:
        u = torch.linspace(-2, 2, 41, device="cpu")
        with torch.no_grad(), torch.device("cpu"):
            found = look_up("surrogate", name, SURROGATES, Surrogate)()(u)
        if not torch.equal(found, sign(u)):
            raise ConfigError(f"surrogate={name}: its forward pass must be the sign, -1 below zero and +1 from zero on")
    return surrogate
