"""Thresholds, rescales and the places of a unit against their formulas, forward and backward, in every shape."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablations.space.factors import FACTORS
from bbcu.model.initialisation import initialise
from bbcu.model.parts import binary_units
from bbcu.model.rescales import RESCALES, RescaleShape
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import sign
from bbcu.model.thresholds import THRESHOLDS, Elastic, Threshold
from bbcu.model.units import BinaryUnit, UnitShape
from tests.harness.builders import drawn, perturbed, srresnet, unit

CHANNELS = 8


def input_of(channels: int = CHANNELS, height: int = 6, width: int = 5) -> Tensor:
    return 1.5 * drawn(2, channels, height, width).double()


def level(name: str, choice: Any, **levels: Any) -> BinaryUnit:
    """A unit in float64 with this level, and every parameter away from where it started."""
    built: BinaryUnit = perturbed(unit(CHANNELS, CHANNELS, act="none", **{name: choice, **levels})).double()
    return built


def smooth(v: Tensor) -> Tensor:
    """The function whose derivative is the quadratic surrogate."""
    return torch.where(v.abs() <= 1, 2 * v - v * v.abs(), sign(v))


def through(v: Tensor) -> Tensor:
    """The sign, with the gradient of its smooth stand-in."""
    stand_in = smooth(v)
    return sign(v).detach() + stand_in - stand_in.detach()


# --- thresholds -------------------------------------------------------------------------------------------------------


def perceptron(threshold: Any, u: Tensor) -> Tensor:
    hidden, out = ((layer.weight[:, :, 0, 0], layer.bias) for layer in (threshold.hidden, threshold.out))
    pooled = u.mean((2, 3))
    shifts: Tensor = (pooled @ hidden[0].T + hidden[1]).clamp_min(0) @ out[0].T + out[1]
    return shifts[:, :, None, None]


SIGN_INPUTS: dict[str, Any] = {
    "affine": lambda t, u: t.slope * u + t.shift,
    "elastic": lambda t, u: (u - t.centre) / t.width,
    "adaptive": lambda t, u: (u - t.centre) / t.width,
    "dynamic": lambda t, u: u + perceptron(t, u),
}
OUTCOMES: dict[str, Any] = {
    "elastic": lambda t, s: t.width * s,
    "adaptive": lambda t, s: t.width * (s + t.centre),
}


@pytest.mark.parametrize("name", list(THRESHOLDS))
def test_a_threshold_is_its_formula_forward_and_backward(name: str) -> None:
    """The gradients are those of autograd, with a smooth function in place of the sign."""
    built, x, upstream = (
        level("threshold", name),
        input_of().requires_grad_(),
        drawn(2, CHANNELS, 6, 5, seed=1).double(),
    )
    threshold = built.threshold
    assert isinstance(threshold, Threshold)
    wanted = (x, *threshold.parameters())
    values = OUTCOMES.get(name, lambda t, s: s)(threshold, through(SIGN_INPUTS[name](threshold, x)))
    expected = F.conv2d(values, built.binariser(built.weight), padding=1)
    found = built(x)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, wanted, upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, wanted, upstream))
    assert all(gradient.any() for gradient in gradients)


def test_the_width_of_elastic_has_the_gradient_of_its_formula_and_of_finite_differences() -> None:
    threshold, u, upstream = Elastic(CHANNELS, 0.2).double(), input_of(), drawn(2, CHANNELS, 6, 5, seed=1).double()
    width, step = 0.8, 1e-6
    nn.init.constant_(threshold.width, width)
    (threshold.width * through(threshold(u)) * upstream).sum().backward()
    assert threshold.width.grad is not None
    v = (u - threshold.centre.detach()) / width
    slope = (2 - 2 * v.abs()).clamp_min(0)
    torch.testing.assert_close(threshold.width.grad, (upstream * (sign(v) - v * slope)).sum())
    above, below = ((w * smooth(v * width / w) * upstream).sum() for w in (width + step, width - step))
    of_step = (upstream * (sign(v) - smooth(v))).sum()
    torch.testing.assert_close(threshold.width.grad, (above - below) / (2 * step) + of_step, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["elastic", "adaptive"])
def test_a_width_is_kept_positive(name: str) -> None:
    built = unit(2, 2, threshold=name)
    nn.init.constant_(built.threshold.width, -1.0)
    built.after_step()
    assert built.threshold.width.item() == pytest.approx(1e-3)


@pytest.mark.parametrize("name", list(THRESHOLDS))
def test_a_threshold_of_a_binary_head_starts_where_the_references_does(name: str) -> None:
    shape = UnitShape(3, CHANNELS, initial_threshold=-65.0)
    built = BinaryUnit(shape, UnitSpec(threshold=name))
    if name == "dynamic":
        for parameter in built.threshold.out.parameters():
            nn.init.zeros_(parameter)
    _, v = built.sign_input(input_of(3).float())
    torch.testing.assert_close(v, input_of(3).float() - 65, rtol=0, atol=1e-3)


def test_an_affine_and_an_elastic_threshold_are_the_reference_with_a_shift() -> None:
    reference, affine, elastic = (level("threshold", name) for name in (True, "affine", "elastic"))
    for built in (affine, elastic):
        with torch.no_grad():
            built.weight.copy_(reference.weight)
    x = input_of()
    with torch.no_grad():
        reference.threshold.copy_(affine.threshold.shift / affine.threshold.slope)
    torch.testing.assert_close(affine(x), reference(x))
    with torch.no_grad():
        reference.threshold.copy_(-elastic.threshold.centre)
    torch.testing.assert_close(elastic(x), elastic.threshold.width * reference(x))


# --- rescales ---------------------------------------------------------------------------------------------------------


def across(kernel: Tensor, rows: Tensor) -> Tensor:
    """A convolution over the channels, (pictures, rows, channels), written out."""
    half = kernel.shape[2] // 2
    padded = F.pad(rows, (half, half))
    shifted = torch.stack([padded[..., k : k + rows.shape[2]] for k in range(kernel.shape[2])], dim=-1)
    return (kernel[0, None, :, None] * shifted).sum((1, 3))[:, :, None, None]


def pixel_factor(part: Any, x: Tensor) -> Tensor:
    return torch.sigmoid((part.pixel.weight * x).sum(1, keepdim=True) + part.pixel.bias)


def channel_factor(part: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(across(part.channel.weight, x.mean((2, 3))[:, None]))


def squeeze_factor(part: Any, x: Tensor) -> Tensor:
    hidden = (x.mean((2, 3)) @ part.down.weight[:, :, 0, 0].T).clamp_min(0)
    return torch.sigmoid(hidden @ part.up.weight[:, :, 0, 0].T)[:, :, None, None]


def statistics_factor(part: Any, v: Tensor) -> Tensor:
    mean = v.mean((2, 3))
    variance = (v - mean[:, :, None, None]).square().sum((2, 3)) / (v[0, 0].numel() - 1)
    return torch.sigmoid(
        across(part.across.weight, torch.stack([v.abs().mean((2, 3)), mean, (variance + 1e-6).sqrt()], 1))
    )


FACTORS_OF: dict[str, Any] = {
    "spatial": lambda part, x, v: pixel_factor(part, x),
    "channel": lambda part, x, v: channel_factor(part, x),
    "both": lambda part, x, v: pixel_factor(part.spatial, x) * channel_factor(part.channel, x),
    "doubled": lambda part, x, v: 4 * pixel_factor(part.spatial, x) * channel_factor(part.channel, x),
    "squeeze": lambda part, x, v: squeeze_factor(part, x),
    "statistics": lambda part, x, v: statistics_factor(part, v),
    "box": lambda part, x, v: F.conv2d(x.abs().mean(1, keepdim=True), part.weight, padding=1),
}


@pytest.mark.parametrize("name", list(RESCALES))
def test_a_rescale_is_its_formula_forward_and_backward(name: str) -> None:
    built, x, upstream = level("rescale", name), input_of().requires_grad_(), drawn(2, CHANNELS, 6, 5, seed=1).double()
    assert built.rescale is not None
    wanted = (x, built.threshold, *built.rescale.parameters())
    v = x + built.threshold
    z = F.conv2d(through(v), built.binariser(built.weight), padding=1)
    expected, found = FACTORS_OF[name](built.rescale, x, v) * z, built(x)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, wanted, upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, wanted, upstream))
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("spatial", 1 / 2),
        ("channel", 1 / 2),
        ("both", 1 / 4),
        ("doubled", 1),
        ("squeeze", 1 / 2),
        ("statistics", 1 / 2),
    ],
)
def test_a_rescale_of_zeroed_parameters_is_one_share(name: str, share: float) -> None:
    built, x = level("rescale", name), input_of()
    assert built.rescale is not None
    for parameter in built.rescale.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(built(x), share * built.convolve(built.bits(x)))


def test_a_rescale_by_the_box_starts_at_the_mean_magnitude_under_the_kernel() -> None:
    for kernel in (1, 3):
        rescale = RESCALES["box"](RescaleShape(CHANNELS, CHANNELS, kernel=kernel)).double()
        x = input_of()
        expected = F.avg_pool2d(x.abs().mean(1, keepdim=True), kernel, stride=1, padding=kernel // 2)
        torch.testing.assert_close(rescale(x, x, x), expected)


@pytest.mark.parametrize("levels", [{"rescale": "statistics"}, {"rescale": "both", "threshold": "dynamic"}], ids=str)
def test_a_unit_that_widens_repeats_the_factor_of_each_channel_in_a_row(levels: dict[str, str]) -> None:
    built, x = perturbed(unit(CHANNELS, 4 * CHANNELS, act="none", **levels)), input_of().float()
    of_channels = built.factors(x, *built.sign_input(x))[:, :, :1, :1]
    groups = of_channels.reshape(2, CHANNELS, 4)
    assert torch.equal(groups, groups[:, :, :1].expand_as(groups))
    assert len(groups[0, :, 0].unique()) == CHANNELS


def test_the_factors_of_ebsr_are_those_of_the_thresholds_perceptron() -> None:
    built, x = level("threshold", "dynamic", rescale="channel"), input_of()
    shifts, factors = perceptron(built.threshold, x).split(CHANNELS, 1)
    assert built.rescale is None
    torch.testing.assert_close(built.sign_input(x)[1], x + shifts)
    torch.testing.assert_close(built(x), torch.sigmoid(factors) * built.convolve(sign(x + shifts)))


@pytest.mark.parametrize("factor", ["rescale", "threshold"])
def test_only_averages_over_the_picture_have_no_radius(factor: str) -> None:
    """A change far away changes a pixel of the output, unless the unit says that it is local.

    Of a threshold it is what the sign is taken of, since a small change of that flips few signs.
    """
    for choice in FACTORS[factor].levels:
        built, x = level(factor, choice), input_of(height=9, width=9) + 1
        part = built.rescale if factor == "rescale" else built.threshold
        with torch.no_grad():
            for parameter in part.parameters() if isinstance(part, nn.Module) else []:
                # So that no hidden value of a perceptron is cut off.
                parameter.abs_()
        changed = x.clone()
        changed[:, :, 0, 0] += 5
        one, other = (built(each) if factor == "rescale" else built.sign_input(each)[1] for each in (x, changed))
        same = torch.allclose(one[:, :, 4:, 4:], other[:, :, 4:, 4:], rtol=1e-9, atol=0)
        assert same == built.is_local, choice
        assert (srresnet(unit=UnitSpec(**{factor: choice})).radius is None) != built.is_local


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_batchnorm_of_the_branch_is_between_activation_and_add() -> None:
    built, x = perturbed(unit(CHANNELS, CHANNELS, bn="branch", act_fn="relu")).eval(), input_of().float()
    torch.testing.assert_close(built(x, x), built.bn_branch(F.relu(built.convolve(built.bits(x)))) + x)
    assert isinstance(built.bn_branch, nn.BatchNorm2d)


def test_a_scaled_residual_starts_at_three_tenths_and_its_sign_makes_no_difference() -> None:
    built, x = unit(CHANNELS, CHANNELS, residual="scaled", act="none"), input_of().float()
    expected = built.branch(x) + 0.3 * x
    torch.testing.assert_close(built(x, x), expected)
    nn.init.constant_(built.residual_scale, -0.3)
    torch.testing.assert_close(built(x, x), expected)
    torch.testing.assert_close(built(x), built.branch(x))


def test_only_the_first_unit_of_each_pair_has_an_activation_if_act_is_first() -> None:
    network = srresnet(blocks=2, binarize=("head", "body", "up", "tail"), unit=UnitSpec(act="first", act_fn="leaky"))
    acts = {name: module.act for name, module in network.named_modules() if isinstance(module, BinaryUnit)}
    assert {name for name, act in acts.items() if act == "after"} == {"body.units.0", "body.units.2"}
    first, second = binary_units(network.body)[:2]
    x = input_of().float()
    torch.testing.assert_close(first(x, x), F.leaky_relu(x + first.branch(x), 0.1))
    torch.testing.assert_close(second(x, x), x + second.branch(x))


@pytest.mark.parametrize("levels", [{}, {"threshold": "adaptive", "weight": "adabin"}, {"rescale": "box"}], ids=str)
def test_binarising_the_weights_changes_nothing_else(levels: dict[str, str]) -> None:
    """The switch of a training in two steps: thresholds, bits, factors and activations stay bit for bit the same."""
    built, x = perturbed(unit(CHANNELS, CHANNELS, **levels)), input_of().float()
    built.binary_weights = False
    before = (built.bits(x), built.factors(x, *built.sign_input(x)))
    values = built.threshold.values(before[0]) if isinstance(built.threshold, Threshold) else before[0]
    real = before[1] * F.conv2d(values, built.weight, padding=1)
    torch.testing.assert_close(built(x, x), x + built.activation(real))
    built.binary_weights = True
    after = (built.bits(x), built.factors(x, *built.sign_input(x)))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not torch.allclose(built.convolve(before[0]), F.conv2d(values, built.weight, padding=1))


def test_without_signs_a_unit_convolves_what_the_threshold_returns() -> None:
    built, x = level("threshold", "elastic"), input_of()
    built.binary_signs = built.binary_weights = False
    torch.testing.assert_close(built(x), F.conv2d(x - built.threshold.centre, built.weight, padding=1))


# --- every level in every shape and precision -------------------------------------------------------------------------

SHAPES = {
    "head": UnitShape(3, CHANNELS),
    "same": UnitShape(CHANNELS, CHANNELS, bias=True),
    "up": UnitShape(CHANNELS, 4 * CHANNELS),
    "strided": UnitShape(CHANNELS, CHANNELS, stride=2),
    "grouped": UnitShape(CHANNELS, CHANNELS, groups=4),
    "pointwise": UnitShape(CHANNELS, CHANNELS, kernel=1),
    "halving": UnitShape(CHANNELS, 2 * CHANNELS, kernel=2, stride=2),
}
MIXED = (
    {"threshold": "dynamic", "rescale": "both"},
    {"threshold": "adaptive", "weight": "adabin", "bn": "branch"},
    {"threshold": "elastic", "weight": "srb", "rescale": "statistics", "residual": "scaled"},
)


def new_levels() -> Iterator[Any]:
    for name in ("threshold", "surrogate", "weight", "rescale", "act_fn"):
        for choice in FACTORS[name].levels:
            yield pytest.param({name: choice}, id=f"{name}={choice}")
    yield from (pytest.param(levels, id=str(levels)) for levels in MIXED)


def built_as(shape: UnitShape, levels: dict[str, Any]) -> BinaryUnit:
    built = BinaryUnit(shape, UnitSpec(**levels))
    initialise(built, 0)
    return built


@pytest.mark.parametrize("levels", list(new_levels()))
def test_every_level_works_in_every_shape_and_precision(levels: dict[str, Any]) -> None:
    for name, shape in SHAPES.items():
        built, x = built_as(shape, levels), drawn(2, shape.in_channels, 4, 6)
        y = built(x)
        assert y.shape == (2, shape.out_channels, 4 // shape.stride, 6 // shape.stride), name
        y.square().sum().backward()
        for key, parameter in built.named_parameters():
            assert key == "residual_scale" or (parameter.grad is not None and parameter.grad.isfinite().all()), (
                name,
                key,
            )
        if name == "same":
            last = built.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
            torch.testing.assert_close(last, y)
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(built(x).float(), y, rtol=0.05, atol=0.1)
                assert built(x.bfloat16()).isfinite().all()
            copied = built_as(shape, levels)
            copied.load_state_dict(built.state_dict())
            assert torch.equal(copied(x), y)
            assert copy.deepcopy(built).to("meta")(x.to("meta")).shape == y.shape
            assert built.double()(x.double()).dtype == torch.float64
    built = built_as(SHAPES["same"], levels)
    assert built.eval()(drawn(1, CHANNELS, 1, 1)).isfinite().all()


def test_the_parameters_of_a_level_start_from_the_seed_and_their_name() -> None:
    for levels in ({"weight": "recu", "rescale": "both"}, {"threshold": "dynamic", "rescale": "squeeze"}):
        one, again, other = (srresnet(unit=UnitSpec(**levels), seed=seed) for seed in (0, 0, 1))
        first, second = one.body.units
        for name, parameter in first.named_parameters():
            drawn_ones = name in ("weight", "binariser.gain") or name.startswith(("rescale", "threshold."))
            assert torch.equal(parameter, again.body.units[0].get_parameter(name)), name
            for elsewhere in (second, other.body.units[0]):
                assert torch.equal(parameter, elsewhere.get_parameter(name)) != drawn_ones, name


def test_a_unit_is_compiled_as_one_graph() -> None:
    levels = {"threshold": "dynamic", "rescale": "both", "surrogate": "tanh", "weight": "srb", "act_fn": "maxout"}
    built = built_as(SHAPES["same"], {**levels, "residual": "scaled", "bn": "branch"})
    compiled, x = torch.compile(copy.deepcopy(built), fullgraph=True, backend="aot_eager"), drawn(2, CHANNELS, 6, 5)
    outputs = [module(x, x) for module in (built, compiled)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(built.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
