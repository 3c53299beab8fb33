r"""The sign of the activations, with a surrogate for its derivative.

Every surrogate has the same forward pass, :math:`s = +1` if :math:`u \ge 0` and :math:`-1` otherwise, and its own
backward pass, :math:`dL/du = dL/ds \cdot \varphi(u)`. Zero counts as positive, so that every output is one bit.
Surrogates therefore compute the same network and differ in their gradients alone.

To add one, derive from :class:`Surrogate`, define ``derivative`` and set ``surrogate=`` to its dotted path.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.registry import create, errors_of_own, probe


def sign(u: Tensor) -> Tensor:
    """+1 where ``u`` is at least zero, -1 elsewhere, in the type of ``u``."""
    one = torch.ones((), dtype=u.dtype, device=u.device)
    return torch.where(u >= 0, one, -one)


class SignWithSurrogate(torch.autograd.Function):
    """The sign, with a given function in place of its derivative."""

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
    """The sign of an input of any shape; backward, the gradient of the output times :meth:`derivative`."""

    def derivative(self, u: Tensor) -> Tensor:
        """Return the surrogate derivative at ``u``, in its shape."""
        raise NotImplementedError

    def set_progress(self, progress: float) -> None:
        """Receive the share of the training that is done, 0 to 1, before each step; most surrogates ignore it."""

    def forward(self, u: Tensor) -> Tensor:
        signs: Tensor = SignWithSurrogate.apply(u, self.derivative)  # type: ignore[no-untyped-call]
        return signs


class Quadratic(Surrogate):
    r""":math:`\varphi(u) = \max(0, 2 - 2|u|)`, the derivative of a piecewise quadratic.

    The reference. The gradient is zero for :math:`|u| \ge 1`, so with a large alignment few inputs get one.
    Source: Liu et al., Bi-Real Net, ECCV 2018.
    """

    def derivative(self, u: Tensor) -> Tensor:
        return (2 - 2 * u.abs()).clamp_min(0)


class Clip(Surrogate):
    r""":math:`\varphi(u) = 1[|u| \le 1]`, the clipped straight-through estimator: the derivative of hardtanh.

    The oldest choice; all inputs in the window get the same gradient, near the step or not.
    Source: Hubara et al., Binarized Neural Networks, NeurIPS 2016.
    """

    def derivative(self, u: Tensor) -> Tensor:
        # Not a comparison: the compiler would store its result as bytes for the backward pass, and that is slow.
        return 1 - (u.abs() - 1).clamp_min(0).sign()


class Identity(Surrogate):
    r""":math:`\varphi(u) = 1`, the straight-through estimator without clipping.

    Every input gets a gradient, but it is the more wrong the larger the input.
    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013.
    """

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


class HigherOrder(Surrogate):
    r""":math:`\varphi(u) = 2 - 4|u|` for :math:`|u| \le 0.4`, 0.4 for :math:`0.4 < |u| \le 1`, 0 beyond.

    Closer to the step than the quadratic near zero, and it does not vanish towards the edge of the window.
    Source: Xu and Cheung, Accurate and Compact Convolutional Neural Networks with Trained Binarization, 2019, with the
    breakpoints that BTM cites.
    """

    PEAK, TAIL, EDGE = 0.4, 0.4, 1.0

    def derivative(self, u: Tensor) -> Tensor:
        size = u.abs()
        tail = self.TAIL * (size <= self.EDGE).to(u.dtype)
        return torch.where(size <= self.PEAK, 2 - 4 * size, tail)


class ErrorDecay(Surrogate):
    r""":math:`\varphi(u) = k t (1 - \tanh^2(t u))`, from almost the identity to the step during training.

    At progress p, :math:`t = 10^{-1 + 2p}` and :math:`k = \max(1/t, 1)`: early in training every input gets a gradient,
    late only those near the step. It is not clipped, so it also works with a large alignment.
    Source: Qin et al., IR-Net, CVPR 2020 (error decay estimator); progress per step instead of per epoch.
    """

    FIRST_EXPONENT, LAST_EXPONENT = -1.0, 1.0

    sharpness: Tensor
    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Not persistent, so that a checkpoint has the same keys with every surrogate.
        self.register_buffer("sharpness", torch.zeros(()), persistent=False)
        self.register_buffer("gain", torch.zeros(()), persistent=False)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        sharpness = 10 ** (self.FIRST_EXPONENT + (self.LAST_EXPONENT - self.FIRST_EXPONENT) * progress)
        self.sharpness.fill_(sharpness)
        self.gain.fill_(max(1 / sharpness, 1.0))

    def derivative(self, u: Tensor) -> Tensor:
        return self.gain * self.sharpness * (1 - torch.tanh(self.sharpness * u) ** 2)


class SignWithTanh(torch.autograd.Function):
    """The sign; backward, the gradients of ``tanh(sharpness * u)``, for the sharpness too."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, sharpness: Tensor) -> Tensor:
        ctx.save_for_backward(u, sharpness)
        return sign(u)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        u, sharpness = ctx.saved_tensors
        through = gradient * (1 - torch.tanh(sharpness * u) ** 2)
        return through * sharpness, (through * u).sum().to(sharpness.dtype).reshape(sharpness.shape)


class LearntTanh(Surrogate):
    r""":math:`\varphi(u) = \beta (1 - \tanh^2(\beta u))`, with a learnt sharpness :math:`\beta` for each unit.

    The gradient of :math:`\beta` is :math:`\sum dL/ds \cdot u (1 - \tanh^2(\beta u))`; it starts at 1. The window has
    no edge, but at 1, 2 and 3 times :math:`1/\beta` only 0.42, 0.07 and 0.01 of the peak are left. With a frozen
    :math:`\beta` it is ``ede`` at :math:`t = \beta` and :math:`k = 1`.
    Source: Cai et al., Binarized Spectral Compressive Imaging (BiSR-Conv), NeurIPS 2023, and its released code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.ones(()))

    def derivative(self, u: Tensor) -> Tensor:
        return self.sharpness * (1 - torch.tanh(self.sharpness * u) ** 2)

    def forward(self, u: Tensor) -> Tensor:
        signs: Tensor = SignWithTanh.apply(u, self.sharpness)  # type: ignore[no-untyped-call]
        return signs


class RectifiedPower(Surrogate):
    r"""The derivative of :math:`\operatorname{sgn}(u) |u|^{1/o}`, which grows from the identity to the step.

    :math:`\varphi(u) = |u|^{(1 - o)/o} / o`, but :math:`0.1^{1/o - 1}` for :math:`|u| \le 0.1`, the mean slope there,
    and 0 beyond 1.5. At progress p, :math:`o = 1 + 2 (1 - \cos(\pi p / 2))`, from 1, where it is ``clip`` with the
    window 1.5, to 3.
    Source: Wu et al., Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural
    Networks Training (ReSTE), ICCV 2023, and its released code; progress per step instead of per epoch.
    """

    FLAT, EDGE, LAST_POWER = 0.1, 1.5, 3.0

    power: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("power", torch.ones(()), persistent=False)

    def set_progress(self, progress: float) -> None:
        self.power.fill_(1 + (1 - math.cos(math.pi * progress / 2)) * (self.LAST_POWER - 1))

    def derivative(self, u: Tensor) -> Tensor:
        size = u.abs()
        slope = size.clamp_min(self.FLAT) ** (1 / self.power - 1) / self.power
        flat = self.FLAT ** (1 / self.power - 1)
        inside = 1 - (size - self.EDGE).clamp_min(0).sign()
        return torch.where(size <= self.FLAT, flat, slope) * inside


SURROGATES: dict[str, type[Surrogate]] = {
    "quadratic": Quadratic,
    "clip": Clip,
    "identity": Identity,
    "ede": ErrorDecay,
    "ho": HigherOrder,
    "tanh": LearntTanh,
    "reste": RectifiedPower,
}


def surrogate_of(name: str) -> Surrogate:
    """Return a new surrogate by its name or the dotted path of its class.

    Raises ConfigError for an unknown name, and for a class whose forward pass is not the sign: a network of such units
    would not be binary.
    """

    def new() -> Surrogate:
        surrogate: Surrogate = create("surrogate", name, SURROGATES, Surrogate)
        return surrogate

    if name not in SURROGATES:
        u = torch.linspace(-2, 2, 41, device="cpu")
        with errors_of_own("surrogate", name):
            is_sign = torch.equal(probe(new, u), sign(u))
        if not is_sign:
            raise ConfigError(f"surrogate={name}: its forward pass must be the sign, -1 below zero and +1 from zero on")
    return new()
