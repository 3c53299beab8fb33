"""Units and pairs of units of other authors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.errors import ConfigError
from bbcu.model.authors.state import Kind, State
from bbcu.model.binarisers import PER_FILTER, AdaBin, LayerScaledPower, RectifiedClamp
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import RectifiedPower, Surrogate
from bbcu.model.units import BinaryUnit, UnitShape

BATCHNORM = ("weight", "bias", "running_mean", "running_var")
RPRELU = {
    "activation.shift_in": "relu.pr_bias0.bias",
    "activation.slope": "relu.pr_prelu.weight",
    "activation.shift_out": "relu.pr_bias1.bias",
}


class InARow(nn.Module):
    """Units one after another, each with its input as its residual."""

    def __init__(self, units: Sequence[nn.Module]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x, x)
        return x


class WithoutResidual(nn.Module):
    """A unit without a residual."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(x)
        return out


def unit_of(latent: Tensor, *, bias: bool = False, first: bool = False, **levels: Any) -> BinaryUnit:
    """Return a unit with a convolution of the shape of these latent weights."""
    filters, channels, kernel, _ = latent.shape
    return BinaryUnit(UnitShape(channels, filters, bias=bias, kernel=kernel, first=first), UnitSpec(**levels))


def prefixed(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return the names with these prefixes."""
    return {ours + name: theirs + other for name, other in names.items()}


def batchnorm(ours: str, theirs: str) -> dict[str, str]:
    """Return the names of a BatchNorm's tensors."""
    return {f"{ours}.{name}": f"{theirs}.{name}" for name in BATCHNORM}


def single(names: Mapping[str, str], **levels: Any) -> Kind:
    """Return the kind of one unit with an identity around it; ``names`` are those of the unit's tensors."""
    return Kind(
        build=lambda state, constants: InARow([unit_of(state[names["weight"]], bias="bias" in names, **levels)]),
        names=lambda state, constants: prefixed("units.0.", "", names),
    )


# --- E2FIF ------------------------------------------------------------------------------------------------------------

E2FIF = {
    "bn": "post",
    "act": "first",
    "act_fn": "leaky",
    "threshold": False,
    "surrogate": "quadratic",
    "weight": "sign",
}


def e2fif_block(state: State, constants: Mapping[str, Any]) -> nn.Module:
    weights = (state["conv1.0.weight"], state["conv2.0.weight"])
    return InARow([unit_of(weight, bias=True, first=place == 0, **E2FIF) for place, weight in enumerate(weights)])


def e2fif_names(state: State, constants: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for place in (0, 1):
        theirs = f"conv{place + 1}"
        unit = {"weight": "0.weight", "bias": "0.bias", **batchnorm("bn_post", "1")}
        names.update(prefixed(f"units.{place}.", f"{theirs}.", unit))
    return names


# --- ReSTE ------------------------------------------------------------------------------------------------------------


def reste_conv(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """A convolution alone, at the power ``o``, with the window's edge ``t`` and the end ``m`` of its flat piece."""
    unit = unit_of(state["conv.weight"], act="none", threshold=False, surrogate="reste", weight="reste")
    assert isinstance(unit.binariser, LayerScaledPower)
    for surrogate in (unit.surrogate, unit.binariser.surrogate):
        assert isinstance(surrogate, RectifiedPower)
        surrogate.power.fill_(constants.get("o", 1.0))
        surrogate.EDGE = constants.get("t", surrogate.EDGE)
        surrogate.FLAT = constants.get("m", surrogate.FLAT)
    return WithoutResidual(unit)


RESTE_CONV = Kind(reste_conv, lambda state, constants: {"unit.weight": "conv.weight"}, ("o", "t", "m"))


# --- AdaBin -----------------------------------------------------------------------------------------------------------


def adabin_block(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """Two units, with the estimator's sharpness ``t`` and gain ``k``."""
    units = []
    for weight in (state["conv1.weight"], state["conv2.weight"]):
        unit = unit_of(weight, bn="post", act="after", act_fn="maxout", threshold="adaptive", weight="adabin")
        assert isinstance(unit.binariser, AdaBin)
        decay = unit.binariser.surrogate
        decay.sharpness.fill_(constants["t"])
        decay.gain.fill_(constants.get("k", max(1 / constants["t"], 1.0)))
        units.append(unit)
    return InARow(units)


def adabin_names(state: State, constants: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for place in (0, 1):
        number = place + 1
        unit = {
            "weight": f"conv{number}.weight",
            "threshold.width": f"conv{number}.binary_a.alpha_a",
            "threshold.centre": f"conv{number}.binary_a.beta_a",
            **batchnorm("bn_post", f"bn{number}"),
            "activation.positive": f"nonlinear{number}.pos_scale",
            "activation.negative": f"nonlinear{number}.neg_scale",
        }
        names.update(prefixed(f"units.{place}.", "", unit))
    return names


# --- ReCU and RBNN ----------------------------------------------------------------------------------------------------

PER_PICTURE = (1, 2, 3)
EPSILON = 1e-5


class DividingUnit(BinaryUnit):
    """A unit that in training divides its input by its deviation over each picture; only the surrogate sees it.

    Source: the released code of ReCU.
    """

    def sign_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            x = x / (x.var(PER_PICTURE, keepdim=True) + EPSILON).sqrt()
        return super().sign_input(x)


def recu_block(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """Two units with the window ``tau``, that of the state if it is not given."""
    units = []
    for number in (1, 2):
        filters, channels, kernel, _ = state[f"conv{number}.weight"].shape
        spec = UnitSpec(bn="post", act="after", act_fn="hardtanh", threshold=False, weight="recu")
        unit = DividingUnit(UnitShape(channels, filters, kernel=kernel), spec)
        assert isinstance(unit.binariser, RectifiedClamp)
        unit.binariser.tau.fill_(constants.get("tau", state.get(f"conv{number}.tau", RectifiedClamp.FIRST_TAU)))
        units.append(unit)
    return InARow(units)


def recu_names(state: State, constants: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for place in (0, 1):
        number = place + 1
        unit = {
            "weight": f"conv{number}.weight",
            "binariser.gain": f"conv{number}.alpha",
            **batchnorm("bn_post", f"bn{number}"),
        }
        names.update(prefixed(f"units.{place}.", "", unit))
    return names


class Triangle(Surrogate):
    r""":math:`\varphi(u) = k \max(0, \sqrt2 t - t^2 |u|)`, of the height :math:`\sqrt2 k t`, narrower with time.

    Source: Lin et al., Rotated Binary Neural Network (RBNN), NeurIPS 2020, and its released code.
    """

    def __init__(self, sharpness: float, gain: float) -> None:
        super().__init__()
        self.sharpness, self.gain = sharpness, gain

    def derivative(self, u: Tensor) -> Tensor:
        return self.gain * (math.sqrt(2) * self.sharpness - self.sharpness**2 * u.abs()).clamp_min(0)


class RotatedConvolution(nn.Module):
    r"""A binary convolution of weights that are rotated before their sign is taken, and of standardised inputs.

    :math:`\hat W = \alpha_c \operatorname{sgn}(Z + |\sin \theta_c| (R_1^T Z R_2 - Z))`, where :math:`R_1^T Z R_2` is a
    constant to the gradient, and :math:`Z` are the standardised weights, seen as matrices. The rotations do not change:
    the authors' code renews them once an epoch, and this class does not.
    Source: Lin et al., Rotated Binary Neural Network (RBNN), NeurIPS 2020, and its released code.
    """

    left: Tensor
    right: Tensor

    def __init__(self, state: State, sharpness: float, gain: float) -> None:
        super().__init__()
        weight = state["conv.weight"]
        self.weight = nn.Parameter(torch.zeros_like(weight))
        self.scale = nn.Parameter(torch.zeros(1, len(weight), 1, 1))
        self.angle = nn.Parameter(torch.zeros(len(weight), 1, 1, 1))
        self.register_buffer("left", torch.zeros_like(state["conv.R1"]))
        self.register_buffer("right", torch.zeros_like(state["conv.R2"]))
        self.of_weights = Triangle(sharpness, gain)
        self.of_inputs = Triangle(max(sharpness, 1.0), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x - x.mean(PER_PICTURE, keepdim=True)
            x = x / (x.var(PER_PICTURE, keepdim=True) + EPSILON).sqrt()
        centred = self.weight - self.weight.mean(PER_FILTER, keepdim=True)
        standardised = centred / centred.std(PER_FILTER, keepdim=True)
        with torch.no_grad():
            matrices = standardised.reshape(-1, len(self.left), len(self.right))
            turned = (self.left.T @ matrices @ self.right).reshape(standardised.shape)
        rotated = standardised + self.angle.sin().abs() * (turned - standardised)
        signs = F.conv2d(self.of_inputs(x), self.of_weights(rotated), padding=self.weight.shape[-1] // 2)
        return self.scale * signs


def rbnn_conv(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """A convolution alone, with the estimator's sharpness ``t`` and gain ``k``."""
    return RotatedConvolution(state, constants["t"], constants.get("k", max(1 / constants["t"], 1.0)))


RBNN_NAMES = {
    "weight": "conv.weight",
    "scale": "conv.alpha",
    "angle": "conv.rotate",
    "left": "conv.R1",
    "right": "conv.R2",
}


# --- BiMaCoSR ---------------------------------------------------------------------------------------------------------


class MatrixResidual(nn.Module):
    r"""``R(x) = S x + B A x`` at each pixel: a sparse matrix with fixed places, and one of a low rank.

    Source: BiMaCoSR (Liu et al., 2025), and its released code.
    """

    places: Tensor

    def __init__(self, places: Tensor, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(places.shape[1]))
        self.down, self.up = nn.Parameter(torch.zeros_like(down)), nn.Parameter(torch.zeros_like(up))
        self.register_buffer("places", torch.zeros_like(places))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.places.round().long()
        sparse = x.new_zeros(len(self.up), x.shape[1]).index_put((rows, columns), self.values, accumulate=True)
        low_rank = F.conv2d(F.conv2d(x, self.down), self.up)
        return F.conv2d(x, sparse[:, :, None, None]) + low_rank


class MatrixUnit(nn.Module):
    """A unit with a :class:`MatrixResidual`, whose signs are multiplied by the mean magnitude of each pixel.

    That number is a constant to the gradient. As it stands before the convolution, it is no convolution of bits.
    """

    def __init__(self, unit: BinaryUnit, residual: MatrixResidual) -> None:
        super().__init__()
        self.unit, self.residual = unit, residual

    def forward(self, x: Tensor) -> Tensor:
        magnitude = x.detach().abs().mean(1, keepdim=True)
        z = self.unit.convolve(magnitude * self.unit.bits(x))
        out: Tensor = self.unit.activation(z) + self.residual(x)
        return out


def bimacosr_conv(state: State, constants: Mapping[str, Any]) -> nn.Module:
    """A unit; the state has the ``rank`` of its residual, and another one is refused."""
    down, up = state["lora.A.weight"], state["lora.B.weight"]
    if constants.get("rank", len(down)) != len(down):
        raise ConfigError(f"bimacosr_conv: the state has the rank {len(down)}, not {constants['rank']:g}")
    unit = unit_of(state["weight"], bias=True, threshold=False)
    return MatrixUnit(unit, MatrixResidual(state["skip_connection.indices_float"], down, up))


BIMACOSR_NAMES = {
    "unit.weight": "weight",
    "unit.bias": "bias",
    **prefixed("unit.", "", RPRELU),
    "residual.values": "skip_connection.values",
    "residual.places": "skip_connection.indices_float",
    "residual.down": "lora.A.weight",
    "residual.up": "lora.B.weight",
}


# --- the steps of ReActNet --------------------------------------------------------------------------------------------


def reactnet(*, binary_weights: bool) -> Kind:
    """Return the kind of a unit whose weights are binary, as in the second step, or not, as in the first."""

    def build(state: State, constants: Mapping[str, Any]) -> nn.Module:
        unit = unit_of(state["binary_conv.weight"], bn="post", act="after", surrogate="quadratic", weight="l1")
        unit.binary_weights = binary_weights
        return InARow([unit])

    names = {
        "weight": "binary_conv.weight",
        "threshold": "move0.bias",
        **batchnorm("bn_post", "bn1"),
        "activation.shift_in": "move1.bias",
        "activation.slope": "prelu.weight",
        "activation.shift_out": "move2.bias",
    }
    return Kind(build, lambda state, constants: prefixed("units.0.", "", names))


KINDS: dict[str, Kind] = {
    "e2fif_block": Kind(e2fif_block, e2fif_names),
    "bisr_unit": single(
        {
            "weight": "binary_conv.weight",
            "threshold.slope": "move0.k",
            "threshold.shift": "move0.b",
            "surrogate.sharpness": "binary_activation.beta",
            **RPRELU,
        },
        threshold="affine",
        surrogate="tanh",
    ),
    "reste_conv_start": RESTE_CONV,
    "reste_conv": RESTE_CONV,
    "adabin_block": Kind(adabin_block, adabin_names, ("t", "k")),
    "recu_block": Kind(recu_block, recu_names, ("tau",), unused=("conv?.tau",)),
    "rbnn_conv": Kind(rbnn_conv, lambda state, constants: RBNN_NAMES, ("t", "k")),
    "dabc_unit": single(
        {
            "weight": "binary_conv.weight",
            "threshold": "move0.bias",
            "rescale.across.weight": "daca.conv.weight",
            **RPRELU,
        },
        rescale="statistics",
    ),
    "bimacosr_conv": Kind(bimacosr_conv, lambda state, constants: BIMACOSR_NAMES, ("rank",), unused=("move0.bias",)),
    "bidm_conv": single(
        {
            "weight": "weight",
            "threshold": "channel_threshold",
            "rescale.weight": "fliter_k.weight",
            "residual_scale": "shortcut_scale",
        },
        act="none",
        residual="scaled",
        rescale="box",
    ),
    "srb_unit": single({"weight": "weight"}, act="none", threshold=False, weight="srb"),
    "ebsr_third_party": single(
        {
            "weight": "conv.weight",
            "bias": "conv.bias",
            "rescale.pixel.weight": "spatial_rescale.0.weight",
            "rescale.pixel.bias": "spatial_rescale.0.bias",
            "threshold.hidden.weight": "channel_wise_shift_and_rescale.1.weight",
            "threshold.hidden.bias": "channel_wise_shift_and_rescale.1.bias",
            "threshold.out.weight": "channel_wise_shift_and_rescale.3.weight",
            "threshold.out.bias": "channel_wise_shift_and_rescale.3.bias",
        },
        act="none",
        threshold="dynamic",
        rescale="both",
        weight="l1mag",
    ),
    "spec_scales_unit": single(
        {
            "weight": "weight",
            "threshold.width": "alpha",
            "threshold.centre": "beta",
            "rescale.spatial.pixel.weight": "spatial.weight",
            "rescale.spatial.pixel.bias": "spatial.bias",
            "rescale.channel.channel.weight": "channel.weight",
        },
        act="none",
        threshold="elastic",
        rescale="both",
    ),
    "reactnet_step1": reactnet(binary_weights=False),
    "reactnet_step2": reactnet(binary_weights=True),
}
