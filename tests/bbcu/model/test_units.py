"""The binary unit: its sign, its weights, and what each level of each factor does to it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bbcu.errors import ConfigError
from bbcu.model.activations import ACTIVATIONS, ClampWithin, RPReLU, ShiftedPReLU
from bbcu.model.binarisers import BINARISERS, Binariser
from bbcu.model.surrogates import SURROGATES, Surrogate, sign
from bbcu.model.units import BinaryUnit, Shift
from tests.harness.builders import drawn, unit


def shaken(built: BinaryUnit) -> BinaryUnit:
    """The unit with every parameter away from the zeros and ones that it starts with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return built


# --- the sign ---------------------------------------------------------------------------------------------------------


def test_the_sign_of_zero_is_a_bit_as_well() -> None:
    assert sign(torch.tensor([-2.0, -0.0, 0.0, 3.0])).tolist() == [-1, 1, 1, 1]


@pytest.mark.parametrize("name", list(SURROGATES))
def test_every_surrogate_gives_the_sign(name: str) -> None:
    u = drawn(100)
    assert torch.equal(SURROGATES[name]()(u), sign(u))


POINTS = (-1.5, -1.0, -0.25, 0.0, 0.25, 1.0, 1.5)


@pytest.mark.parametrize(
    ("name", "slopes"),
    [pytest.param("quadratic", [max(0.0, 2 - 2 * abs(u)) for u in POINTS], id="quadratic")],
)
def test_the_gradient_of_a_sign_is_its_surrogates(name: str, slopes: list[float]) -> None:
    u = torch.tensor(POINTS, requires_grad=True)
    upstream = drawn(len(POINTS))
    SURROGATES[name]()(u).backward(upstream)
    assert u.grad is not None
    torch.testing.assert_close(u.grad, upstream * torch.tensor(slopes))


def test_no_gradient_is_lost_to_overflow_in_half_precision() -> None:
    u = torch.tensor([-300.0, 0.5, 300.0], dtype=torch.float16, requires_grad=True)
    SURROGATES["quadratic"]()(u).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == [0, 1, 0]


# --- the weights ------------------------------------------------------------------------------------------------------


def test_l1_weights_are_signs_times_the_mean_magnitude_of_their_filter() -> None:
    weight = drawn(4, 3, 3, 3)
    for channel, binary in enumerate(BINARISERS["l1"]()(weight)):
        expected = weight[channel].abs().sum() / (3 * 3 * 3)
        torch.testing.assert_close(binary, expected * sign(weight[channel]))


def test_l1_weights_hand_the_gradient_on_inside_plus_minus_one_without_the_scale() -> None:
    weight = (2 * drawn(4, 3, 3, 3)).requires_grad_()
    upstream = drawn(4, 3, 3, 3, seed=1)
    BINARISERS["l1"]()(weight).backward(upstream)
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream * (weight.abs() <= 1))


# --- the unit ---------------------------------------------------------------------------------------------------------


def test_the_reference_unit_is_its_formula() -> None:
    built, x = shaken(unit(4, 4)), drawn(2, 4, 6, 5)
    scale = built.weight.abs().mean((1, 2, 3), keepdim=True)
    z = F.conv2d(torch.sign(x + built.threshold), scale * torch.sign(built.weight), padding=1)
    activation = built.activation
    assert isinstance(activation, RPReLU)
    shifted = z + activation.shift_in
    slope = activation.slope[:, None, None]
    expected = x + torch.where(shifted > 0, shifted, slope * shifted) + activation.shift_out
    torch.testing.assert_close(built(x, x), expected)


def test_padding_counts_nothing() -> None:
    built, x = unit(2, 1, act="none"), torch.ones(1, 2, 4, 4)
    with torch.no_grad():
        built.weight.fill_(0.5)
    corner, edge, interior = (2 * taps * 0.5 for taps in (4, 6, 9))
    y = built(x)[0, 0]
    assert (y[0, 0].item(), y[0, 1].item(), y[1, 1].item()) == (corner, edge, interior)


def test_an_activation_after_the_add_sees_the_residual() -> None:
    x = drawn(1, 3, 5, 5)
    built = unit(3, 3, act="after", act_fn="relu")
    torch.testing.assert_close(built(x, x), F.relu(x + built.branch(x)))


def test_an_activation_inside_does_not() -> None:
    x = drawn(1, 3, 5, 5)
    built = unit(3, 3, act="inside", act_fn="relu")
    torch.testing.assert_close(built(x, x), x + F.relu(built.branch(x)))


def test_without_an_activation_the_branch_is_added_as_it_is() -> None:
    x = drawn(1, 3, 5, 5)
    built = unit(3, 3, act="none")
    torch.testing.assert_close(built(x, x), x + built.branch(x))


@pytest.mark.parametrize(
    ("bn", "place"),
    [
        pytest.param("pre", "bn_pre", id="pre"),
        pytest.param("post", "bn_post", id="post"),
        pytest.param("out", "bn_out", id="out"),
    ],
)
def test_batchnorm_stands_in_its_place_alone(bn: str, place: str) -> None:
    built = unit(3, 3, bn=bn)
    kinds = {name for name, module in built.named_children() if isinstance(module, torch.nn.BatchNorm2d)}
    assert kinds == {place}


def test_batchnorm_before_the_sign_moves_the_bits() -> None:
    x = drawn(2, 3, 5, 5) + 5
    with_bn, without = unit(3, 3, bn="pre"), unit(3, 3)
    assert not torch.equal(with_bn(x), without(x))


def test_batchnorm_after_the_convolution_normalises_the_branch() -> None:
    z = unit(3, 3, bn="post").branch(drawn(4, 3, 8, 8))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-3, rtol=0)


def test_batchnorm_at_the_output_normalises_the_sum() -> None:
    x = drawn(4, 3, 8, 8) + 2
    y = unit(3, 3, bn="out")(x, x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("act_fn", "expected"),
    [
        pytest.param("relu", [0.0, 0.0, 2.0], id="relu"),
        pytest.param("hardtanh", [-1.0, -0.5, 1.0], id="hardtanh"),
        pytest.param("prelu", [-0.5, -0.125, 2.0], id="prelu starts at a slope of a quarter"),
        pytest.param("rprelu", [-0.5, -0.125, 2.0], id="rprelu starts as prelu"),
    ],
)
def test_activations(act_fn: str, expected: list[float]) -> None:
    x = torch.tensor([-2.0, -0.5, 2.0]).reshape(1, 1, 3, 1)
    assert ACTIVATIONS[act_fn](1)(x).flatten().tolist() == expected


def test_rprelu_shifts_before_and_after() -> None:
    activation = RPReLU(1)
    with torch.no_grad():
        activation.shift_in.fill_(1.0)
        activation.shift_out.fill_(10.0)
    x = torch.tensor([-3.0, 0.0]).reshape(1, 1, 2, 1)
    assert activation(x).flatten().tolist() == [0.25 * (-3 + 1) + 10, (0 + 1) + 10]


# --- parts of the user's own ------------------------------------------------------------------------------------------


class Steep(Surrogate):
    def derivative(self, u: Tensor) -> Tensor:
        return torch.full_like(u, 7.0)


class Ternary(Binariser):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.round()


def test_a_surrogate_of_ones_own_is_found_by_its_dotted_path() -> None:
    built = unit(2, 2, surrogate=f"{__name__}.Steep", act="none")
    assert isinstance(built.surrogate, Steep)


def test_a_binariser_of_ones_own_is_found_by_its_dotted_path() -> None:
    assert isinstance(unit(2, 2, weight=f"{__name__}.Ternary").binariser, Ternary)


@pytest.mark.parametrize("name", ["quadratik", "tests.test_units.Missing", "no_such_module.Part"])
def test_a_part_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        unit(2, 2, surrogate=name)


# --- gradients that the compiler is given -----------------------------------------------------------------------------


def in_double(*shape: int, seed: int) -> Tensor:
    return drawn(*shape, seed=seed).double().requires_grad_()


def test_the_gradients_of_a_shift_are_those_of_a_sum() -> None:
    assert torch.autograd.gradcheck(Shift.apply, (in_double(2, 3, 4, 5, seed=0), in_double(1, 3, 1, 1, seed=1)))


def test_the_gradients_of_a_shifted_prelu_are_those_of_its_parts() -> None:
    x, slope = in_double(2, 3, 4, 5, seed=0), in_double(3, seed=1)
    shift_in, shift_out = in_double(1, 3, 1, 1, seed=2), in_double(1, 3, 1, 1, seed=3)
    arguments = (x, shift_in, slope, shift_out)
    assert torch.autograd.gradcheck(ShiftedPReLU.apply, arguments)
    fused, parts = ShiftedPReLU.apply(*arguments), F.prelu(x + shift_in, slope) + shift_out
    torch.testing.assert_close(fused, parts)
    weight = drawn(2, 3, 4, 5, seed=4).double()
    found, expected = (torch.autograd.grad((y * weight).sum(), arguments) for y in (fused, parts))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_at_its_kink_a_shifted_prelu_has_the_slope_of_a_prelu() -> None:
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    zero, slope = torch.zeros(1, 1, 1, 1), torch.tensor([0.25])
    ShiftedPReLU.apply(x, zero, slope, zero).sum().backward()
    assert x.grad is not None
    assert float(x.grad) == 0.25


@pytest.mark.parametrize(("name", "low", "high"), [("relu", 0.0, float("inf")), ("hardtanh", -1.0, 1.0)])
def test_a_clamp_for_the_compiler_is_the_activation_at_its_bounds_too(name: str, low: float, high: float) -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    clamped, activated = ClampWithin.apply(x, low, high), ACTIVATIONS[name](1)(x)
    assert torch.equal(clamped, activated)
    (found,), (expected,) = (torch.autograd.grad(y.sum(), x) for y in (clamped, activated))
    assert torch.equal(found, expected)
