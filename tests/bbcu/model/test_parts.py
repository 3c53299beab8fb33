"""Every surrogate and binariser against its formula, forward and backward; parts of one's own; what BTM and BAM add."""

import copy
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablations.space.factors import FACTORS
from bbcu.errors import ConfigError
from bbcu.model.binarisers import BINARISERS, Binariser
from bbcu.model.initialisation import small_normal
from bbcu.model.networks import Body, NetworkSpec, Standardisation, binary_units, build
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import SURROGATES, ErrorDecay, Surrogate, sign
from bbcu.model.units import BinaryUnit, BitMemory, UnitShape
from tests.harness.builders import drawn, srresnet, unit
from tests.harness.paths import DOCS
from tests.harness.support import Workplace

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")]


def exact(dtype: torch.dtype) -> dict[str, float]:
    """How close two ways to compute one formula come in this type."""
    return {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}


# --- surrogates -------------------------------------------------------------------------------------------------------


def quadratic(u: float) -> float:
    return max(0.0, 2 - 2 * abs(u))


def clip(u: float) -> float:
    return 1.0 if abs(u) <= 1 else 0.0


def identity(u: float) -> float:
    return 1.0


def higher_order(u: float) -> float:
    return 2 - 4 * abs(u) if abs(u) <= 0.4 else 0.4 if abs(u) <= 1 else 0.0


def error_decay_at_start(u: float) -> float:
    return 10 * 0.1 * (1 - math.tanh(0.1 * u) ** 2)


SLOPES = {
    "quadratic": quadratic,
    "clip": clip,
    "identity": identity,
    "ho": higher_order,
    "ede": error_decay_at_start,
}
BREAKPOINTS = [0.0, 0.4, 1.0]
BESIDE = 1e-3


def points(dtype: torch.dtype) -> Tensor:
    """Zero and every breakpoint, both beside and on both sides of zero, then what a stream holds, then far away."""
    around = [sided for point in BREAKPOINTS for sided in (point - BESIDE, point, point + BESIDE)]
    far = [2.0, 130.0, 1e6]
    fixed = torch.tensor([factor * value for value in around + far for factor in (1, -1)], dtype=dtype)
    return torch.cat([fixed, 1.5 * drawn(500).to(dtype)])


def test_every_surrogate_has_its_formula_here() -> None:
    assert set(SLOPES) == set(SURROGATES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(SLOPES))
def test_a_surrogate_is_the_sign_forward(name: str, dtype: torch.dtype) -> None:
    u = points(dtype)
    expected = torch.tensor([1.0 if value >= 0 else -1.0 for value in u.tolist()], dtype=dtype)
    bits = SURROGATES[name]()(u)
    assert torch.equal(bits, expected)
    assert bits.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(SLOPES))
def test_a_surrogate_is_its_formula_backward(name: str, dtype: torch.dtype) -> None:
    u = points(dtype).requires_grad_()
    upstream = drawn(len(u), seed=1).to(dtype)
    SURROGATES[name]()(u).backward(upstream)
    slopes = torch.tensor([SLOPES[name](value) for value in u.tolist()], dtype=dtype)
    assert u.grad is not None
    # The schedule of the error decay is kept in float32, whatever the type of the stream.
    closeness = exact(torch.float32 if name == "ede" else dtype)
    torch.testing.assert_close(u.grad, upstream * slopes, **closeness)


@pytest.mark.parametrize("name", list(SLOPES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_no_surrogate_overflows_where_a_square_would(name: str, dtype: torch.dtype) -> None:
    u = torch.tensor([-300.0, -0.5, 0.0, 0.5, 300.0], dtype=dtype, requires_grad=True)
    SURROGATES[name]()(u).sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    torch.testing.assert_close(
        u.grad.float(), torch.tensor([SLOPES[name](value) for value in u.tolist()]), rtol=0.02, atol=1e-2
    )


@pytest.mark.parametrize(
    ("name", "area"),
    [
        pytest.param("quadratic", 2.0, id="quadratic"),
        pytest.param("clip", 2.0, id="clip"),
        pytest.param("ho", 2 * (2 * 0.4 - 2 * 0.4**2) + 2 * 0.4 * 0.6, id="ho"),
        pytest.param("ede", 2 * 10 * math.tanh(100), id="ede is ten times as large in all at the start"),
    ],
)
def test_the_area_under_a_slope(name: str, area: float) -> None:
    """A step of two is what an exact derivative would add up to."""
    u = torch.linspace(-1000, 1000, 2_000_001, dtype=torch.float64)
    torch.testing.assert_close(torch.trapezoid(SURROGATES[name]().derivative(u), u).item(), area, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("progress", "sharpness", "gain"),
    [
        pytest.param(0.0, 0.1, 10.0, id="start"),
        pytest.param(0.25, 10**-0.5, 10**0.5, id="a quarter"),
        pytest.param(0.5, 1.0, 1.0, id="half"),
        pytest.param(0.75, 10**0.5, 1.0, id="three quarters"),
        pytest.param(1.0, 10.0, 1.0, id="end"),
    ],
)
def test_error_decay_sharpens_by_its_schedule(progress: float, sharpness: float, gain: float) -> None:
    surrogate = ErrorDecay()
    surrogate.set_progress(progress)
    assert surrogate.sharpness.item() == pytest.approx(sharpness, rel=1e-6)
    assert surrogate.gain.item() == pytest.approx(gain, rel=1e-6)
    u = drawn(50).double()
    expected = gain * sharpness * (1 - torch.tanh(sharpness * u) ** 2)
    torch.testing.assert_close(surrogate.derivative(u), expected, rtol=1e-5, atol=1e-7)


def test_error_decay_starts_almost_as_the_identity() -> None:
    slopes = ErrorDecay().derivative(torch.tensor([1.0, 3.0, 10.0])).tolist()
    assert slopes == pytest.approx([0.99, 0.92, 0.42], abs=0.005)


def test_error_decay_leaves_no_trace_in_a_checkpoint() -> None:
    assert not ErrorDecay().state_dict()
    assert set(unit(2, 2, surrogate="ede", weight="irnet").state_dict()) == set(unit(2, 2).state_dict())


@pytest.mark.parametrize("levels", [{"surrogate": "ede"}, {"weight": "irnet"}], ids=str)
def test_a_unit_hands_the_progress_to_its_parts(levels: dict[str, str]) -> None:
    built = unit(2, 2, **levels)
    built.set_progress(0.5)
    found = [module.sharpness.item() for module in built.modules() if isinstance(module, ErrorDecay)]
    assert found == [1.0]


# --- binarisers -------------------------------------------------------------------------------------------------------


def latent(dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Latent weights, some of them outside [-1, 1] and some on its edge, one of them zero; each filter differs."""
    weight = (
        drawn(4, 3, 3, 3, seed=seed).to(dtype) * torch.tensor([0.02, 0.3, 1.0, 3.0], dtype=dtype)[:, None, None, None]
    )
    weight[1, 0, 0, :3] = torch.tensor([1.0, -1.0, 0.0], dtype=dtype)
    return weight


def through(name: str, weight: Tensor, upstream: Tensor, progress: float = 0.0) -> tuple[Tensor, Tensor]:
    """The binary weights, and the gradient of the latent ones."""
    binariser, leaf = BINARISERS[name](), weight.clone().requires_grad_()
    binariser.set_progress(progress)
    binary = binariser(leaf)
    binary.backward(upstream)
    assert leaf.grad is not None
    return binary.detach(), leaf.grad


def upstream_of(weight: Tensor) -> Tensor:
    return drawn(*weight.shape, seed=7).to(weight.dtype)


def mean_magnitude(weight: Tensor) -> Tensor:
    return torch.stack([filter_.abs().sum() / filter_.numel() for filter_ in weight])[:, None, None, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["l1", "l1mag"])
def test_scaled_signs(name: str, dtype: torch.dtype) -> None:
    weight = latent(dtype)
    binary, _ = through(name, weight, upstream_of(weight))
    signs = torch.where(weight >= 0, 1.0, -1.0).to(dtype)
    torch.testing.assert_close(binary, mean_magnitude(weight) * signs, **exact(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_hands_the_gradient_on_in_the_window_without_its_scale(dtype: torch.dtype) -> None:
    weight = latent(dtype)
    _, gradient = through("l1", weight, upstream_of(weight))
    assert torch.equal(gradient, upstream_of(weight) * (weight.abs() <= 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_l1mag_hands_the_gradient_on_in_the_window_times_its_scale(dtype: torch.dtype) -> None:
    weight = latent(dtype)
    _, gradient = through("l1mag", weight, upstream_of(weight))
    expected = mean_magnitude(weight) * upstream_of(weight) * (weight.abs() <= 1)
    torch.testing.assert_close(gradient, expected, **exact(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_signs_hand_the_whole_gradient_on(dtype: torch.dtype) -> None:
    weight = latent(dtype)
    binary, gradient = through("plain", weight, upstream_of(weight))
    assert torch.equal(binary, torch.where(weight >= 0, 1.0, -1.0).to(dtype))
    assert torch.equal(gradient, upstream_of(weight))


@pytest.mark.parametrize("name", list(BINARISERS))
def test_only_plain_signs_cut_the_latent_weights_after_a_step(name: str) -> None:
    built = unit(3, 4, weight=name)
    with torch.no_grad():
        built.weight.copy_(latent(torch.float32))
    before = built.weight.detach().clone()
    built.after_step()
    expected = before.clamp(-1, 1) if name == "plain" else before
    assert torch.equal(built.weight, expected)
    assert before.abs().max() > 1


def standardised(weight: Tensor) -> Tensor:
    """Each filter without its mean and over the root of its summed squares over one less than their number."""
    filters = []
    for filter_ in weight:
        centred = filter_ - filter_.sum() / filter_.numel()
        filters.append(centred / ((centred**2).sum() / (filter_.numel() - 1)).sqrt())
    return torch.stack(filters)


def shift_of(standard: Tensor) -> Tensor:
    return 2 ** mean_magnitude(standard).log2().round()


@pytest.mark.parametrize("dtype", DTYPES)
def test_irnet_weights_are_shifted_signs_of_the_standardised_ones(dtype: torch.dtype) -> None:
    weight = latent(dtype)
    # One filter with long tails, whose shift is not the usual one of zero bits.
    weight[3] = 0.01 * drawn(3, 3, 3, seed=3).to(dtype)
    weight[3, 0, 0, :2] = torch.tensor([50.0, -50.0], dtype=dtype)
    binary, _ = through("irnet", weight, upstream_of(weight))
    standard = standardised(weight)
    assert set(shift_of(standard).flatten().tolist()) > {1.0}
    torch.testing.assert_close(binary, shift_of(standard) * sign(standard), **exact(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9])
def test_the_gradient_of_irnet_is_that_of_its_formula(progress: float, dtype: torch.dtype) -> None:
    """Autograd through mean and deviation, where the sign is replaced by the function that it pretends to be."""
    weight, upstream = latent(dtype), upstream_of(latent(dtype))
    leaf = weight.clone().requires_grad_()
    standard = standardised(leaf)
    sharpness = 10 ** (-1 + 2 * progress)
    pretended = max(1 / sharpness, 1.0) * torch.tanh(sharpness * standard)
    (shift_of(standard.detach()) * pretended).backward(upstream)
    assert leaf.grad is not None
    _, gradient = through("irnet", weight, upstream, progress)
    tolerance = exact(dtype) if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(gradient, leaf.grad, **tolerance)


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_the_gradient_of_an_irnet_filter_sums_to_zero_and_leaves_its_deviation_alone(progress: float) -> None:
    weight = latent(torch.float64)
    _, gradient = through("irnet", weight, upstream_of(weight), progress)
    size = gradient.abs().sum((1, 2, 3))
    assert (size > 0).all()
    assert (gradient.sum((1, 2, 3)).abs() < 1e-12 * size).all()
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    assert ((gradient * centred).sum((1, 2, 3)).abs() < 1e-12 * size * centred.abs().amax((1, 2, 3))).all()


def test_half_of_the_bits_of_an_irnet_filter_are_positive_whatever_its_mean() -> None:
    weight = torch.rand(8, 16, 3, 3, generator=torch.Generator().manual_seed(0)) + 5
    shares = (BINARISERS["irnet"]()(weight) > 0).float().mean((1, 2, 3))
    torch.testing.assert_close(shares, torch.full((8,), 0.5), atol=0.1, rtol=0)


@pytest.mark.parametrize("name", list(BINARISERS))
def test_a_binary_weight_has_two_values_a_filter(name: str) -> None:
    for binary in BINARISERS[name]()(latent(torch.float32)):
        assert len(binary.unique()) == 2
        assert binary.sum() != binary.abs().sum()


# --- parts of one's own -----------------------------------------------------------------------------------------------


class Steep(Surrogate):
    """Twice the slope everywhere."""

    def derivative(self, u: Tensor) -> Tensor:
        return torch.full_like(u, 2.0)


class Halves(Binariser):
    """Every weight half a sign, and whole weights rounded up after a step."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (0.5 * sign(weight) - weight).detach()

    def after_step(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.clamp_(min=0.25)


class DoubledUnit(BinaryUnit):
    """A unit whose branch counts twice."""

    def branch(self, x: Tensor) -> Tensor:
        return 2 * super().branch(x)


class Enlarger(nn.Module):
    """A network of one unit, enlarged by repetition."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.unit = spec.binary_unit(UnitShape(spec.colours, spec.colours, initial_weight=small_normal))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.unit(x, x), scale_factor=float(self.spec.scale), mode="nearest")


def own(name: str) -> str:
    return f"{__name__}.{name}"


def picture() -> Tensor:
    return torch.rand(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))


def gradients(network: nn.Module) -> dict[str, Tensor]:
    network(picture()).square().sum().backward()
    return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


def test_a_network_trains_with_a_surrogate_of_ones_own() -> None:
    network = build("srresnet", NetworkSpec(2, 4, 1, UnitSpec(surrogate=own("Steep"))), 0)
    usual = build("srresnet", NetworkSpec(2, 4, 1, UnitSpec(surrogate="identity")), 0)
    assert torch.equal(network(picture()), usual(picture()))
    first, second = gradients(network), gradients(usual)
    # The last unit of the body hands its threshold's gradient on through one sign, so twice the slope is twice that.
    torch.testing.assert_close(first["body.units.1.threshold"], 2 * second["body.units.1.threshold"])


def test_a_network_trains_with_a_binariser_of_ones_own() -> None:
    network = build("srresnet", NetworkSpec(2, 4, 1, UnitSpec(weight=own("Halves"))), 0)
    (first, _) = units = binary_units(network)
    assert set(first.binariser(first.weight).flatten().tolist()) == {-0.5, 0.5}
    assert gradients(network)["body.units.0.weight"].abs().sum() > 0
    for built in units:
        built.after_step()
    assert first.weight.min() == 0.25


def test_a_network_is_built_of_units_of_ones_own() -> None:
    network = build("srresnet", NetworkSpec(2, 4, 1, unit_class=own("DoubledUnit"), binarize=("body", "up", "tail")), 0)
    assert {type(built) for built in binary_units(network)} == {DoubledUnit}
    usual = build("srresnet", NetworkSpec(2, 4, 1, binarize=("body", "up", "tail")), 0)
    for one, other in zip(network.parameters(), usual.parameters(), strict=True):
        assert torch.equal(one, other)
    x = drawn(1, 4, 6, 6)
    torch.testing.assert_close(binary_units(network)[0].branch(x), 2 * binary_units(usual)[0].branch(x))


def test_a_whole_network_of_ones_own_starts_by_the_seed() -> None:
    spec = NetworkSpec(3, 4, 1)
    network = build(own("Enlarger"), spec, 0)
    assert isinstance(network, Enlarger)
    assert network(picture()).shape == (2, 3, 24, 21)
    assert network.unit.weight.abs().sum() > 0
    assert torch.equal(network.unit.weight, build(own("Enlarger"), spec, 0).unit.weight)
    assert not torch.equal(network.unit.weight, build(own("Enlarger"), spec, 1).unit.weight)
    assert gradients(network)["unit.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        pytest.param("srresnett", NetworkSpec(2, 4, 1), id="network"),
        pytest.param("no_such_module.Network", NetworkSpec(2, 4, 1), id="module of a network"),
        pytest.param("srresnet", NetworkSpec(2, 4, 1, unit_class="binaryy"), id="unit"),
        pytest.param("srresnet", NetworkSpec(2, 4, 1, unit_class="bbcu.model.units.Missing"), id="class of a unit"),
        pytest.param("srresnet", NetworkSpec(2, 4, 1, UnitSpec(surrogate="quad")), id="surrogate"),
        pytest.param("srresnet", NetworkSpec(2, 4, 1, UnitSpec(weight="l2")), id="binariser"),
        pytest.param("srresnet", NetworkSpec(2, 4, 1, UnitSpec(act_fn="gelu")), id="activation"),
    ],
)
def test_a_part_that_does_not_exist_is_refused(name: str, spec: NetworkSpec) -> None:
    with pytest.raises(ConfigError, match=r"valid: |cannot be imported"):
        build(name, spec, 0)


# --- the standardisation of BTM ---------------------------------------------------------------------------------------


def test_a_standardisation_is_neutral_until_it_is_set() -> None:
    x = picture()
    assert torch.equal(Standardisation(3)(x), x)
    assert torch.equal(Standardisation(3).back(x), x)


def test_a_standardisation_undoes_itself_colour_by_colour() -> None:
    standardisation, x = Standardisation(3), picture()
    mean, deviation = x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)
    standardisation.set(mean, deviation)
    inside = standardisation(x)
    torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(inside.std((0, 2, 3), correction=0), torch.ones(3))
    torch.testing.assert_close(standardisation.back(inside), x)


def test_a_checkpoint_brings_the_statistics_back() -> None:
    network, other = srresnet(channels=4, standardise=True), srresnet(channels=4, standardise=True, seed=1)
    assert network.standardisation is not None
    network.standardisation.set(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(picture()), network(picture()))


def test_a_network_standardises_its_input_and_undoes_it_at_the_output() -> None:
    network, plain = srresnet(channels=4, standardise=True), srresnet(channels=4)
    mean, deviation = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    assert network.standardisation is not None
    network.standardisation.set(mean, deviation)
    columns = [value[:, None, None] for value in (mean, deviation)]
    inside = (picture() - columns[0]) / columns[1]
    torch.testing.assert_close(network(picture()), plain(inside) * columns[1] + columns[0])


def test_statistics_are_not_trained() -> None:
    assert not list(Standardisation(3).parameters())


# --- the memory of BAM ------------------------------------------------------------------------------------------------


def remembering(blocks: int = 2, **levels: Any) -> Body:
    body = Body(NetworkSpec(2, 4, blocks, UnitSpec(**{"threshold": False, **levels}), accumulate=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return body


@pytest.mark.parametrize("residual", [True, False, "block"])
def test_a_unit_sees_the_weighed_bits_of_all_units_before(residual: bool | str) -> None:
    """The whole pass written out: what each unit's sign sees is its input and its share of the sum of bits so far."""
    body, x = remembering(residual=residual, act="none"), drawn(1, 4, 6, 6)
    assert body.memory is not None
    stream, before, bits_so_far = x, x, torch.zeros_like(x)
    for index, built in enumerate(body.units):
        bits = sign(stream + body.memory.share[index] * bits_so_far)
        bits_so_far = bits_so_far + bits
        size = built.weight.abs().mean((1, 2, 3)).reshape(1, -1, 1, 1)
        branch = size * F.conv2d(bits, sign(built.weight), padding=1)
        if residual == "block":
            stream = branch if index % 2 == 0 else branch + before
            before = stream if index % 2 == 1 else before
        else:
            stream = branch + stream if residual else branch
    torch.testing.assert_close(body(x), stream)


@pytest.mark.parametrize("weight", list(BINARISERS))
def test_taking_the_scale_out_of_the_convolution_changes_nothing_but_rounding(weight: str) -> None:
    built = unit(4, 6, weight=weight, act="none", threshold=False).double()
    bits, outer = sign(drawn(2, 4, 7, 7)).double().requires_grad_(), drawn(2, 6, 7, 7, seed=1).double()
    inside = F.conv2d(bits, built.binariser(built.weight), padding=1)
    expected = torch.autograd.grad(inside, (bits, built.weight), outer)
    outside = built.convolve(bits)
    torch.testing.assert_close(outside, inside)
    torch.testing.assert_close(torch.autograd.grad(outside, (bits, built.weight), outer), expected)


@pytest.mark.parametrize("weight", ["l1", "l1mag", "irnet", "plain"])
def test_what_a_convolution_adds_is_exact_in_any_precision(weight: str) -> None:
    """Whole numbers times one scale a filter: what divides by the scale is whole, and bf16 makes no other number."""
    built = unit(4, 6, weight=weight)
    bits = sign(drawn(2, 4, 7, 7))
    exact = built.convolve(bits)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = built.convolve(bits)
    assert torch.equal(exact, mixed.float())
    scale = built.binariser.scale(built.weight)
    sums = exact if scale is None else exact / scale.reshape(1, -1, 1, 1)
    torch.testing.assert_close(sums, sums.round(), rtol=0, atol=1e-5)


def test_a_filter_of_zeros_gives_zero_and_not_nan() -> None:
    built = unit(4, 6)
    with torch.no_grad():
        built.weight[2] = 0
    out = built.convolve(sign(drawn(2, 4, 7, 7)))
    out.sum().backward()
    assert (out[:, 2] == 0).all()
    assert built.weight.grad is not None
    assert built.weight.grad.isfinite().all()


def test_bits_accumulate_and_each_reader_has_its_own_share() -> None:
    memory = BitMemory(3)
    with torch.no_grad():
        memory.share.copy_(torch.tensor([5.0, 2.0, 3.0]))
    x, first, second = torch.zeros(2), torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
    assert memory.recall(x).tolist() == [0, 0]
    memory.keep(first)
    assert memory.recall(x).tolist() == [2, -2]
    memory.keep(second)
    assert memory.recall(x).tolist() == [3 * 2, 0]
    memory.forget()
    assert memory.recall(x).tolist() == [0, 0]


def test_the_first_unit_has_nothing_to_recall() -> None:
    body, x = remembering(), drawn(1, 4, 6, 6)
    assert body.memory is not None
    first = body.units[0]
    alone = unit(4, 4, threshold=False)
    alone.load_state_dict(first.state_dict())
    body.memory.forget()
    assert torch.equal(first(x), alone(x))


def test_a_pass_forgets_the_one_before() -> None:
    body = remembering()
    x, other = drawn(1, 4, 6, 6), drawn(2, 4, 5, 7, seed=1)
    first = body(x)
    body(other)
    assert torch.equal(body(x), first)


def test_a_share_of_zero_is_a_body_without_memory() -> None:
    body, x = remembering(), drawn(1, 4, 6, 6)
    plain = Body(NetworkSpec(2, 4, 2, UnitSpec(threshold=False)))
    plain.load_state_dict({name: value for name, value in body.state_dict().items() if name != "memory.share"})
    assert not torch.equal(plain(x), body(x))
    assert body.memory is not None
    with torch.no_grad():
        body.memory.share.zero_()
    assert torch.equal(plain(x), body(x))


def test_the_memory_learns() -> None:
    body = remembering()
    body(drawn(1, 4, 6, 6)).square().sum().backward()
    assert body.memory is not None
    assert body.memory.share.grad is not None
    # The first unit has nothing to weigh.
    assert [bool(value) for value in body.memory.share.grad] == [False, True, True, True]


def test_two_passes_can_be_trained_one_after_the_other() -> None:
    """No graph of a pass reaches into the next one."""
    body = remembering()
    for _ in range(2):
        body(drawn(1, 4, 6, 6)).sum().backward()


def test_the_memory_is_the_bodys_and_in_the_state_once() -> None:
    network = srresnet(channels=4, blocks=2, accumulate=True)
    assert [name for name in network.state_dict() if "share" in name or "memory" in name] == ["body.memory.share"]
    assert len({id(parameter) for parameter in network.parameters()}) == len(list(network.parameters()))
    assert network.state_dict()["body.memory.share"].tolist() == [1 / 16] * 4


def test_units_outside_the_body_have_no_memory() -> None:
    network = srresnet(channels=4, accumulate=True, binarize=("head", "body", "up", "tail"))
    inside = list(network.body.units)
    for built in binary_units(network):
        assert (built.memory is not None) == any(built is unit_ for unit_ in inside)


def test_a_copied_network_remembers_by_itself() -> None:
    """A deep copy has a memory of its own, which its own units use."""
    network = srresnet(channels=4, accumulate=True)
    copied = copy.deepcopy(network)
    for built in copied.body.units:
        assert built.memory is copied.body.memory
        assert built.memory is not network.body.memory


# --- the example in the documentation ---------------------------------------------------------------------------------

PAGE = DOCS / "parts.md"


@pytest.fixture
def my_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of the page, as its reader would write it, where Python finds it."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_parts.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_parts.py"
    sys.modules.pop("my_parts", None)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        pytest.param("srresnet", {"unit": UnitSpec(surrogate="my_parts.Triangle")}, id="surrogate"),
        pytest.param("srresnet", {"unit": UnitSpec(weight="my_parts.Median")}, id="binariser"),
        pytest.param("srresnet", {"unit_class": "my_parts.ScaledUnit"}, id="unit"),
        pytest.param("my_parts.Bare", {}, id="network"),
    ],
)
def test_the_parts_of_the_page_train(name: str, spec: dict[str, Any], my_parts: Path) -> None:
    network = build(name, NetworkSpec(2, 4, 1, **spec), 0)
    found = gradients(network)
    assert network(picture()).shape == (2, 3, 16, 14)
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["body.units.0.weight"].abs().sum() > 0


def test_the_commands_of_the_page_run(workplace: Workplace, my_parts: Path) -> None:
    commands = re.findall(r"^    python run\.py (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for command in commands:
        overrides = command.removeprefix("-m ").split()
        outcome = workplace.sweep(*overrides) if command.startswith("-m ") else workplace.run(*overrides)
        assert outcome.status == 0, outcome.text
    # Four trials and a sweep of four, of which two are done already.
    assert len(commands) == 5
    assert len(workplace.results()) == 6


@pytest.mark.parametrize("factor", ["surrogate", "weight", "act_fn"])
def test_the_page_lists_every_level(factor: str) -> None:
    (section,) = [part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if f"`{factor}=`" in part]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(FACTORS[factor].levels)
