r"""Weight binarisers: from latent full-precision weights to weights of one bit each, times a scale.

Weights :math:`W` have the shape (out, in, height, width). :math:`G` is the gradient with respect to the binary weights,
and a scale :math:`\alpha_c` is one number for each filter (output channel).

To add one, derive from :class:`Binariser`, define ``forward`` and set ``weight=`` to its dotted path.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.registry import create, errors_of_own, probe
from bbcu.model.surrogates import ErrorDecay, RectifiedPower, sign

PER_FILTER = (1, 2, 3)
"""The dimensions of a filter in weights of shape (out, in, height, width)."""


class Binariser(nn.Module):
    """Maps latent weights (out, in, height, width) to binary weights of the same shape, two values for each filter.

    ``bits`` is the number of binary convolutions that the weights take, which the cost model counts: two for a sum of
    two binary tensors, which has four values for each filter.
    """

    bits = 1

    def set_progress(self, progress: float) -> None:
        """Receive the share of the training that is done, 0 to 1, before each step; most binarisers ignore it."""

    def after_step(self, weight: Tensor) -> None:
        """Change the latent weights in place after a step of the optimiser; most binarisers do not."""

    def scale(self, weight: Tensor) -> Tensor | None:
        """Return the magnitude of each filter's binary weights, (out, 1, 1, 1) and positive, or None.

        A unit convolves with the binary weights divided by it and multiplies the result by it. The convolution then
        adds ones and minus ones, which is exact in any order of summation: in fp32, and in bf16 up to sums of 256.
        """
        return None

    def signs(self, weight: Tensor) -> Tensor:
        """Return which of its two values each binary weight has, as +1 or -1: its sign, if the values are opposites.

        Of a sum of two binary tensors, those of the first.
        """
        return sign(self(weight))

    def forward(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


def mean_magnitude(weight: Tensor) -> Tensor:
    """Return the mean absolute value of each filter, (out, 1, 1, 1)."""
    return weight.abs().mean(PER_FILTER, keepdim=True)


def or_one(spread: Tensor) -> Tensor:
    """Return the spread of each filter, and 1 for one whose weights are all equal, to divide by."""
    return torch.where(spread > 0, spread, 1.0)


class ScaledSign(torch.autograd.Function):
    """Forward the sign times the filter's mean magnitude; backward the clipped gradient, scaled or not."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales_gradient: bool) -> Tensor:
        scale = mean_magnitude(weight)
        ctx.save_for_backward(weight, scale)
        ctx.scales_gradient = scales_gradient
        return scale * sign(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, scale = ctx.saved_tensors
        clipped = gradient * (weight.abs() <= 1)
        return (clipped * scale if ctx.scales_gradient else clipped), None


class L1(Binariser):
    r"""Forward :math:`\alpha_c \operatorname{sgn}(W)`, where :math:`\alpha_c` is the mean of :math:`|W_c|`.

    Backward :math:`G \cdot 1[|W| \le 1]`: the scale is treated as a constant and does not multiply the gradient either.
    The reference. Source: the released code of Bi-Real Net (PyTorch), ReActNet and BBCU.
    """

    scales_gradient = False

    def scale(self, weight: Tensor) -> Tensor | None:
        return mean_magnitude(weight.detach()).clamp_min(torch.finfo(weight.dtype).tiny)

    def forward(self, weight: Tensor) -> Tensor:
        binary: Tensor = ScaledSign.apply(weight, self.scales_gradient)  # type: ignore[no-untyped-call]
        return binary


class L1Magnitude(L1):
    r"""Forward as :class:`L1`; backward :math:`\alpha_c G \cdot 1[|W| \le 1]`, the magnitude-aware gradient.

    It differs from L1 by one factor per filter, which Adam almost cancels; with SGD filters of small weights learn
    more slowly. Source: Liu et al., Bi-Real Net, ECCV 2018.
    """

    scales_gradient = True


class SignStraightThrough(torch.autograd.Function):
    """The sign; backward, the gradient unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return sign(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Sign(Binariser):
    r"""Forward :math:`\operatorname{sgn}(W)`, without a scale; backward :math:`G`, without clipping.

    The same network as :class:`Plain`, whose latent weights are clipped. A BatchNorm after the convolution takes the
    place of the scale.
    Source: Song et al., End-to-end Feature Fusion for Binary Super Resolution (E2FIF), TIP 2023, and its released code.
    """

    def forward(self, weight: Tensor) -> Tensor:
        binary: Tensor = SignStraightThrough.apply(weight)  # type: ignore[no-untyped-call]
        return binary


class Plain(Sign):
    r"""Forward :math:`\operatorname{sgn}(W)`, without a scale; backward :math:`G`; each step clips W to [-1, 1].

    The convolution's output grows with the root of the fan-in, so use a BatchNorm after it or a large alignment.
    Clipping keeps a latent weight from moving so far from zero that its sign can never flip back.
    Source: Hubara et al., Binarized Neural Networks, NeurIPS 2016.
    """

    def after_step(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.clamp_(-1, 1)


class InformationRetaining(Binariser):
    r"""Forward :math:`2^{s_c} \operatorname{sgn}(Z)` of the standardised weights :math:`Z = (W - \mu_c) / \sigma_c`.

    :math:`\sigma_c` is the unbiased standard deviation. The exponent :math:`s_c = \operatorname{round}(\log_2
    \operatorname{mean}|Z_c|)` is treated as a constant; the scale is then a bit shift. Backward through the sign by the
    error decay estimator at :math:`Z`, then through mean and deviation: the gradient of a filter sums to zero and is
    orthogonal to :math:`W - \mu`. About half of a filter's signs are positive, which maximises their entropy.
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
        return centred / or_one(centred.std(PER_FILTER, keepdim=True))

    @staticmethod
    def _scale(standardised: Tensor) -> Tensor:
        scale: Tensor = 2 ** or_one(mean_magnitude(standardised)).log2().round()
        return scale


class SecondOrder(Binariser):
    r"""Forward :math:`\alpha_c \operatorname{sgn}(W) + \alpha'_c \operatorname{sgn}(E)`, the error of L1 binarised too.

    :math:`E = W - \alpha_c \operatorname{sgn}(W)`, and the scales are the means of :math:`|W_c|` and :math:`|E_c|`. Two
    bits for each weight, and two binary convolutions of the same signs. Backward as :class:`L1`. Of normal weights it
    loses 13 % of the squares, where L1 loses 36 %.
    Source: the second-order binariser of BiMaCoSR (Liu et al., 2025), of the laboratory of FRB (ICML 2024), whose paper
    describes it in words.
    """

    bits = 2

    def forward(self, weight: Tensor) -> Tensor:
        first: Tensor = ScaledSign.apply(weight, False)  # type: ignore[no-untyped-call]
        error = (weight - first).detach()
        return first + mean_magnitude(error) * sign(error)

    def signs(self, weight: Tensor) -> Tensor:
        return sign(weight)


class LayerScaledPower(Binariser):
    r"""Forward :math:`a \operatorname{sgn}(W)`, where :math:`a` is the mean of :math:`|W|` over the whole layer.

    Backward :math:`a G \varphi(W) + \operatorname{sgn}(W) \cdot \operatorname{mean}(G \operatorname{sgn}(W))` with
    :math:`\varphi` of :class:`bbcu.model.surrogates.RectifiedPower`: through the sign, and through the scale. Nearly
    all weights are in the flat piece around zero, where :math:`\varphi` is one factor that Adam cancels.
    Source: Wu et al., ReSTE, ICCV 2023, and its released code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.surrogate = RectifiedPower()

    def set_progress(self, progress: float) -> None:
        self.surrogate.set_progress(progress)

    def scale(self, weight: Tensor) -> Tensor | None:
        magnitude = weight.detach().abs().mean().clamp_min(torch.finfo(weight.dtype).tiny)
        return magnitude.reshape(1, 1, 1, 1).expand(len(weight), 1, 1, 1)

    def forward(self, weight: Tensor) -> Tensor:
        binary: Tensor = weight.abs().mean() * self.surrogate(weight)
        return binary


class AdaptiveErrorDecay(ErrorDecay):
    """The error decay estimator with the schedule of AdaBin, from 0.001 to 10."""

    FIRST_EXPONENT = -3.0


class AdaBin(Binariser):
    r"""Forward :math:`\sigma_c \operatorname{sgn}(Z) + \mu_c` with :math:`Z = (W - \mu_c) / \sigma_c`.

    :math:`\mu_c` and :math:`\sigma_c` are mean and biased standard deviation of the filter, and the gradient flows
    through both; through the sign it is the error decay estimator's at :math:`Z`, with :math:`t = 10^{-3 + 4p}`. The
    two values of a filter are not opposites: their middle :math:`\mu_c` multiplies the sum of all inputs under the
    kernel.
    Source: Tu et al., AdaBin, ECCV 2022, and its released code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.surrogate = AdaptiveErrorDecay()

    def set_progress(self, progress: float) -> None:
        self.surrogate.set_progress(progress)

    def forward(self, weight: Tensor) -> Tensor:
        mean = weight.mean(PER_FILTER, keepdim=True)
        deviation = weight.std(PER_FILTER, correction=0, keepdim=True)
        binary: Tensor = deviation * self.surrogate((weight - mean) / or_one(deviation)) + mean
        return binary

    def signs(self, weight: Tensor) -> Tensor:
        return sign(weight - weight.mean(PER_FILTER, keepdim=True))


class StraightThroughWithin(torch.autograd.Function):
    """The sign; backward, the gradient where the magnitude is at most ``edge``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, edge: Tensor) -> Tensor:
        ctx.save_for_backward(weight, edge)
        return sign(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, edge = ctx.saved_tensors
        return gradient * (weight.abs() <= edge), None


class RectifiedClamp(Binariser):
    r"""Forward :math:`\alpha_c \operatorname{sgn}(W - \mu_c)` with learnt scales, which start at U(0, 1).

    Backward through the sign where :math:`Z = \sqrt{8} (W - \mu_c) / \sigma_c` is at most :math:`Q =
    -\operatorname{mean}|Z| \ln(2 - 2\tau)`, then through mean and deviation. :math:`\tau` grows from 0.85 to 0.99
    during the training, and the window with it, from about one standard deviation to three: weights far from zero,
    which can hardly change their sign, are held back early.
    Source: Xu et al., ReCU, ICCV 2021, and its released code, without its division of the activations.
    """

    FIRST_TAU, LAST_TAU, EPSILON = 0.85, 0.99, 1e-5
    LEAST = 1e-12
    """Of a scale that is divided by; a learnt one may be zero or negative."""

    tau: Tensor

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(filters, 1, 1, 1))
        self.register_buffer("tau", torch.full((), self.FIRST_TAU), persistent=False)

    @staticmethod
    @torch.no_grad()
    def initial_gain(parameter: Tensor, weight: Tensor, generator: torch.Generator) -> None:
        parameter.uniform_(0, 1, generator=generator)

    def set_progress(self, progress: float) -> None:
        growth = (self.LAST_TAU - self.FIRST_TAU) / (math.e - 1)
        self.tau.fill_(growth * math.exp(progress) + self.FIRST_TAU - growth)

    def scale(self, weight: Tensor) -> Tensor | None:
        return self.gain.detach().abs().clamp_min(self.LEAST)

    def forward(self, weight: Tensor) -> Tensor:
        centred = weight - weight.mean(PER_FILTER, keepdim=True)
        variance = centred.var(PER_FILTER, keepdim=True)
        standardised = centred * (math.sqrt(8) / (variance + self.EPSILON).sqrt())
        edge = -standardised.detach().abs().mean() * (2 - 2 * self.tau).log()
        signs: Tensor = StraightThroughWithin.apply(standardised, edge)  # type: ignore[no-untyped-call]
        return self.gain * signs


BINARISERS: dict[str, Callable[[int], Binariser]] = {
    "l1": lambda filters: L1(),
    "l1mag": lambda filters: L1Magnitude(),
    "plain": lambda filters: Plain(),
    "irnet": lambda filters: InformationRetaining(),
    "sign": lambda filters: Sign(),
    "srb": lambda filters: SecondOrder(),
    "reste": lambda filters: LayerScaledPower(),
    "adabin": lambda filters: AdaBin(),
    "recu": RectifiedClamp,
}


def binariser_of(name: str, filters: int) -> Binariser:
    """Return a new binariser for ``filters`` filters by its name or the dotted path of its class.

    Raises ConfigError for an unknown name, and for a class that returns more than two values for a filter.
    """
    if name in BINARISERS:
        return BINARISERS[name](filters)

    def new() -> Binariser:
        binariser: Binariser = create("weight", name, BINARISERS, Binariser)
        return binariser

    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0), device="cpu")
    with errors_of_own("weight", name):
        is_binary = _is_binary(probe(new, weight), weight.shape)
    if not is_binary:
        raise ConfigError(
            f"weight={name}: its forward pass must return at most two values for each filter, in the weights' shape"
        )
    return new()


def _is_binary(weight: Tensor, shape: torch.Size) -> bool:
    """Return whether ``weight`` has this shape and, up to rounding, at most two values for each filter."""
    if weight.shape != shape:
        return False
    low, high = weight.amin(PER_FILTER, keepdim=True), weight.amax(PER_FILTER, keepdim=True)
    nearest = torch.where(weight > (low + high) / 2, high, low)
    return torch.allclose(weight, nearest, rtol=0, atol=1e-5 * float(weight.abs().max()))
