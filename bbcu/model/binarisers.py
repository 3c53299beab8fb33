r"""Weight binarisers: from latent full-precision weights to weights of one bit each, times a scale.

Weights :math:`W` are (out, in, height, width), :math:`G` is the gradient with respect to the binary weights, and a
scale :math:`\alpha_c` is one number per output channel.

To add one, derive from :class:`Binariser` and name it by its dotted path in the config.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bbcu.model.surrogates import ErrorDecay, sign

PER_FILTER = (1, 2, 3)


class Binariser(nn.Module):
    """Maps latent weights (out, in, height, width) to binary ones of the same shape."""

    def set_progress(self, progress: float) -> None:
        """Be told the share of the training that is done, 0 to 1; most binarisers do not care."""

    def after_step(self, weight: Tensor) -> None:
        """Be shown the latent weights after each step of the optimiser, to be changed in place; most are left alone."""

    def scale(self, weight: Tensor) -> Tensor | None:
        """The size of each filter's binary weights, (out, 1, 1, 1) and above zero, or None.

        A unit takes it out of its convolution and multiplies the result by it. The convolution then adds ones, which is
        exact in whatever order a machine adds: in fp32 always, and in bf16 up to sums of 256.
        """
        return None

    def forward(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


def scale_of(weight: Tensor) -> Tensor:
    """The mean magnitude of each filter, (out, 1, 1, 1)."""
    return weight.abs().mean(PER_FILTER, keepdim=True)


class ScaledSign(torch.autograd.Function):
    """Forward the scaled sign; backward the gradient where the latent weight lies in [-1, 1], by the scale or not."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales_gradient: bool) -> Tensor:
        scale = scale_of(weight)
        ctx.save_for_backward(weight, scale)
        ctx.scales_gradient = scales_gradient
        return scale * sign(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, scale = ctx.saved_tensors
        passed = gradient * (weight.abs() <= 1)
        return (passed * scale if ctx.scales_gradient else passed), None


class L1(Binariser):
    r"""Forward :math:`\alpha_c \operatorname{sgn}(W)`, where the scale :math:`\alpha_c` is the mean of :math:`|W_c|`.

    Backward :math:`G \cdot 1[|W| \le 1]`: the scale is a constant to the gradient, which it does not multiply either.
    The reference. Source: the released code of Bi-Real Net (PyTorch), ReActNet and BBCU.
    """

    scales_gradient = False

    def scale(self, weight: Tensor) -> Tensor | None:
        return scale_of(weight.detach()).clamp_min(torch.finfo(weight.dtype).tiny)

    def forward(self, weight: Tensor) -> Tensor:
        binary: Tensor = ScaledSign.apply(weight, self.scales_gradient)  # type: ignore[no-untyped-call]
        return binary


class L1Magnitude(L1):
    r"""Forward as :class:`L1`; backward :math:`\alpha_c G \cdot 1[|W| \le 1]`, the gradient that knows the scale.

    It differs by one factor per filter, which Adam all but removes; with SGD it slows small filters down.
    Source: Liu et al., Bi-Real Net, ECCV 2018 (magnitude-aware gradient).
    """

    scales_gradient = True


class PlainSign(torch.autograd.Function):
    """The sign, whose gradient goes through as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return sign(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Plain(Binariser):
    r"""Forward :math:`\operatorname{sgn}(W)` without a scale; backward :math:`G`; a step ends with a cut to [-1, 1].

    The branch comes out as large as the root of the fan-in, so it wants a BatchNorm behind it or a large alignment. The
    cut keeps a latent weight from drifting so far that its sign can never flip back.
    Source: Hubara et al., Binarized Neural Networks, NeurIPS 2016.
    """

    def after_step(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.clamp_(-1, 1)

    def forward(self, weight: Tensor) -> Tensor:
        binary: Tensor = PlainSign.apply(weight)  # type: ignore[no-untyped-call]
        return binary


class InformationRetaining(Binariser):
    r"""Forward :math:`2^{s_c} \operatorname{sgn}(Z)` of the standardised weights :math:`Z = (W - \mu_c) / \sigma_c`.

    The standard deviation is the unbiased one. :math:`s_c = \operatorname{round}(\log_2 \operatorname{mean}|Z_c|)` is a
    constant to the gradient, so that the scale is a shift of bits. Backward through the sign with the error decay
    estimator at :math:`Z`, then through mean and deviation: the gradient of a filter sums to zero and is orthogonal to
    :math:`W - \mu`. Half of a filter's bits are positive, which is as much as they can tell.
    Source: Qin et al., IR-Net, CVPR 2020 (Libra parameter binarisation).
    """

    def __init__(self) -> None:
        super().__init__()
        self.surrogate = ErrorDecay()

    def set_progress(self, progress: float) -> None:
        self.surrogate.set_progress(progress)

    def scale(self, weight: Tensor) -> Tensor | None:
        return self._scale(self._standardised(weight.detach()))

    def forward(self, weight: Tensor) -> Tensor:
        standardised = self._standardised(weight)
        binary: Tensor = self._scale(standardised.detach()) * self.surrogate(standardised)
        return binary

    @staticmethod
    def _standardised(weight: Tensor) -> Tensor:
        centred = weight - weight.mean(PER_FILTER, keepdim=True)
        return centred / centred.std(PER_FILTER, keepdim=True)

    @staticmethod
    def _scale(standardised: Tensor) -> Tensor:
        scale: Tensor = 2 ** scale_of(standardised).log2().round()
        return scale


BINARISERS: dict[str, type[Binariser]] = {
    "l1": L1,
    "l1mag": L1Magnitude,
    "plain": Plain,
    "irnet": InformationRetaining,
}
