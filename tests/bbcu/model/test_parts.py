"""Surrogates, binarisers and activations against their formulas, forward and backward; parts of a user's own."""

import importlib
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

import bbcu
from ablations.space.factors import FACTORS, level_text
from bbcu.errors import ConfigError
from bbcu.model.activations import ACTIVATIONS, Clamp, FusedRPReLU, Maxout, RPReLU
from bbcu.model.binarisers import BINARISERS, Binariser, RectifiedClamp, binariser_of
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.model.registry import look_up
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import (
    SURROGATES,
    ErrorDecay,
    LearntTanh,
    RectifiedPower,
    Surrogate,
    sign,
    surrogate_of,
)
from tests.harness.builders import drawn, unit
from tests.harness.paths import DOCS
from tests.harness.support import Workplace

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """How close two ways to compute one formula are in this type."""
    return {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}


# --- surrogates -------------------------------------------------------------------------------------------------------

DERIVATIVES = {
    "quadratic": lambda u: max(0.0, 2 - 2 * abs(u)),
    "clip": lambda u: 1.0 if abs(u) <= 1 else 0.0,
    "identity": lambda u: 1.0,
    "ho": lambda u: 2 - 4 * abs(u) if abs(u) <= 0.4 else 0.4 if abs(u) <= 1 else 0.0,
    "ede": lambda u: 10 * 0.1 * (1 - math.tanh(0.1 * u) ** 2),  # at the start of the training
    "tanh": lambda u: 1 - math.tanh(u) ** 2,  # with the sharpness that it starts at
    "reste": lambda u: 1.0 if abs(u) <= 1.5 else 0.0,  # at the start of the training
}


def points(dtype: torch.dtype) -> Tensor:
    """Zero and every breakpoint, both neighbours, on both sides of zero; normal and very large values."""
    around = [point + offset for point in (0.0, 0.1, 0.4, 1.0, 1.5) for offset in (-1e-3, 0, 1e-3)]
    fixed = torch.tensor([side * value for value in (*around, 2.0, 130.0, 1e6) for side in (1, -1)], dtype=dtype)
    return torch.cat([fixed, 1.5 * drawn(500).to(dtype)])


def test_every_surrogate_has_its_formula_here() -> None:
    assert set(DERIVATIVES) == set(SURROGATES)


@DTYPES
@pytest.mark.parametrize("name", list(DERIVATIVES))
def test_a_surrogate_is_the_sign_forward_and_its_formula_backward(name: str, dtype: torch.dtype) -> None:
    u = points(dtype).requires_grad_()
    upstream = drawn(len(u), seed=1).to(dtype)
    signs = SURROGATES[name]()(u)
    signs.backward(upstream)
    assert signs.dtype == dtype
    assert signs.tolist() == [1.0 if value >= 0 else -1.0 for value in u.tolist()]
    expected = torch.tensor([DERIVATIVES[name](value) for value in u.tolist()], dtype=dtype)
    assert u.grad is not None
    # The error decay estimator's sharpness is a float32 in any case.
    torch.testing.assert_close(u.grad, upstream * expected, **tolerance(torch.float32 if name == "ede" else dtype))


@pytest.mark.parametrize("name", list(DERIVATIVES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_no_surrogate_overflows_in_half_precision(name: str, dtype: torch.dtype) -> None:
    u = torch.tensor([-300.0, -0.5, 0.0, 0.5, 300.0], dtype=dtype, requires_grad=True)
    SURROGATES[name]()(u).sum().backward()
    assert u.grad is not None
    expected = torch.tensor([DERIVATIVES[name](value) for value in u.tolist()])
    torch.testing.assert_close(u.grad.float(), expected, rtol=0.02, atol=1e-2)


@pytest.mark.parametrize(
    ("progress", "sharpness", "gain"),
    [(0.0, 0.1, 10.0), (0.25, 10**-0.5, 10**0.5), (0.5, 1.0, 1.0), (0.75, 10**0.5, 1.0), (1.0, 10.0, 1.0)],
)
def test_the_error_decay_estimator_follows_its_schedule(progress: float, sharpness: float, gain: float) -> None:
    surrogate = ErrorDecay()
    surrogate.set_progress(progress)
    assert surrogate.sharpness.item() == pytest.approx(sharpness, rel=1e-6)
    assert surrogate.gain.item() == pytest.approx(gain, rel=1e-6)
    u = drawn(50).double()
    expected = gain * sharpness * (1 - torch.tanh(sharpness * u) ** 2)
    torch.testing.assert_close(surrogate.derivative(u), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "levels", [{"surrogate": "ede", "weight": "irnet"}, {"surrogate": "reste", "weight": "adabin"}], ids=str
)
def test_the_place_in_a_schedule_is_not_in_a_checkpoint(levels: dict[str, str]) -> None:
    assert set(unit(2, 2, **levels).state_dict()) == set(unit(2, 2).state_dict())


@pytest.mark.parametrize(
    ("levels", "place", "half"),
    [
        ({"surrogate": "ede"}, lambda built: built.surrogate.sharpness, 1.0),
        ({"surrogate": "reste"}, lambda built: built.surrogate.power, 1.585786),
        ({"weight": "irnet"}, lambda built: built.binariser.surrogate.sharpness, 1.0),
        ({"weight": "reste"}, lambda built: built.binariser.surrogate.power, 1.585786),
        ({"weight": "adabin"}, lambda built: built.binariser.surrogate.sharpness, 0.1),
        ({"weight": "recu"}, lambda built: built.binariser.tau, 0.902856),
    ],
    ids=["ede", "reste surrogate", "irnet", "reste weight", "adabin", "recu"],
)
def test_a_unit_passes_the_progress_to_its_parts(levels: dict[str, str], place: Any, half: float) -> None:
    built = unit(2, 2, **levels)
    built.set_progress(0.5)
    assert place(built).item() == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize(("progress", "power"), [(0.0, 1.0), (0.25, 1.152), (0.5, 1.586), (0.75, 2.235), (1.0, 3.0)])
def test_the_power_of_reste_follows_its_schedule(progress: float, power: float) -> None:
    surrogate = RectifiedPower()
    surrogate.set_progress(progress)
    assert surrogate.power.item() == pytest.approx(power, abs=5e-4)


@pytest.mark.parametrize(
    ("power", "slopes"),
    [
        (1.0, [1, 1, 1, 1, 1, 1, 0]),
        (1.586, [2.341, 1.476, 1.052, 0.815, 0.631, 0.543, 0]),
        (3.0, [4.642, 1.547, 0.840, 0.529, 0.333, 0.254, 0]),
    ],
)
def test_the_derivative_of_reste_is_the_published_table(power: float, slopes: list[float]) -> None:
    surrogate = RectifiedPower()
    surrogate.power.fill_(power)
    u = torch.tensor([0.1, 0.10001, 0.25, 0.5, 1.0, 1.5, 1.50001])
    for side in (u, -u):
        torch.testing.assert_close(surrogate.derivative(side), torch.tensor(slopes).float(), rtol=0, atol=1e-3)


def test_the_sharpness_of_tanh_has_the_gradient_of_its_smooth_stand_in() -> None:
    u, upstream, sharpness, step = 2 * drawn(300).double(), drawn(300, seed=1).double(), 0.8, 1e-5
    surrogate = LearntTanh().double()
    with torch.no_grad():
        surrogate.sharpness.fill_(sharpness)
    u.requires_grad_()
    surrogate(u).backward(upstream)
    assert u.grad is not None
    assert surrogate.sharpness.grad is not None
    above, below = ((upstream * torch.tanh(beta * u)).sum() for beta in (sharpness + step, sharpness - step))
    torch.testing.assert_close(surrogate.sharpness.grad, (above - below).detach() / (2 * step), rtol=1e-7, atol=0)
    torch.testing.assert_close(u.grad, upstream * surrogate.derivative(u).detach())


# --- binarisers -------------------------------------------------------------------------------------------------------


def latent(dtype: torch.dtype) -> Tensor:
    """Latent weights of another magnitude in each filter: some outside [-1, 1], some at its edge, one zero."""
    scales = torch.tensor([0.02, 0.3, 1.0, 3.0], dtype=dtype)
    weight = drawn(4, 3, 3, 3).to(dtype) * scales[:, None, None, None]
    weight[1, 0, 0, :3] = torch.tensor([1.0, -1.0, 0.0], dtype=dtype)
    return weight


def upstream_of(weight: Tensor) -> Tensor:
    return drawn(*weight.shape, seed=7).to(weight.dtype)


def binarised(name: str, weight: Tensor, progress: float = 0.0) -> tuple[Tensor, Tensor]:
    """The binary weights, and the gradient of the latent ones for ``upstream_of(weight)``."""
    binariser, leaf = BINARISERS[name](len(weight)), weight.clone().requires_grad_()
    binariser.set_progress(progress)
    binary = binariser(leaf)
    binary.backward(upstream_of(weight))
    assert leaf.grad is not None
    return binary.detach(), leaf.grad


def mean_magnitude(weight: Tensor) -> Tensor:
    return torch.stack([kernel.abs().sum() / kernel.numel() for kernel in weight])[:, None, None, None]


@DTYPES
@pytest.mark.parametrize("name", ["l1", "l1mag", "plain", "sign"])
def test_a_binariser_is_its_formula(name: str, dtype: torch.dtype) -> None:
    weight = latent(dtype)
    binary, gradient = binarised(name, weight)
    scale = 1 if name in ("plain", "sign") else mean_magnitude(weight)
    torch.testing.assert_close(binary, scale * torch.where(weight >= 0, 1.0, -1.0).to(dtype), **tolerance(dtype))
    clipped = upstream_of(weight) * (weight.abs() <= 1)
    expected = {"l1": clipped, "l1mag": scale * clipped}.get(name, upstream_of(weight))
    torch.testing.assert_close(gradient, expected, **tolerance(dtype))


@DTYPES
def test_second_order_weights_add_the_binarised_error_of_l1(dtype: torch.dtype) -> None:
    weight = latent(dtype)
    binary, gradient = binarised("srb", weight)
    first, of_first = binarised("l1", weight)
    error = weight - first
    second = mean_magnitude(error) * torch.where(error >= 0, 1.0, -1.0).to(dtype)
    torch.testing.assert_close(binary, first + second, **tolerance(dtype))
    torch.testing.assert_close(gradient, of_first, **tolerance(dtype))


@pytest.mark.parametrize(("name", "lost"), [("l1", 0.363), ("srb", 0.131)])
def test_the_share_of_normal_weights_that_their_binary_values_lose(name: str, lost: float) -> None:
    weight = drawn(1, 10, 316, 316)
    error = weight - BINARISERS[name](1)(weight)
    assert float(error.square().sum() / weight.square().sum()) == pytest.approx(lost, abs=1e-3)


@DTYPES
@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_reste_weights_have_one_scale_whose_gradient_counts(progress: float, dtype: torch.dtype) -> None:
    weight = latent(dtype)
    binary, gradient = binarised("reste", weight, progress)
    scale, signs, upstream = weight.abs().mean(), torch.where(weight >= 0, 1.0, -1.0).to(dtype), upstream_of(weight)
    torch.testing.assert_close(binary, scale * signs, **tolerance(dtype))
    surrogate = RectifiedPower()
    surrogate.set_progress(progress)
    through_sign = scale * upstream * surrogate.derivative(weight)
    through_scale = weight.sign() * (upstream * signs).mean()
    torch.testing.assert_close(gradient, through_sign + through_scale, **tolerance(torch.float32))
    assert through_scale.any()


def at_least_float32(dtype: torch.dtype) -> dict[str, float]:
    """How close two ways are whose schedule is a float32 in any case."""
    return tolerance(torch.float32) if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-6}


@DTYPES
@pytest.mark.parametrize("progress", [0.0, 0.8])
def test_adabin_weights_are_signs_around_the_mean(progress: float, dtype: torch.dtype) -> None:
    """The gradient is autograd's through mean and deviation, with a smooth function in place of the sign."""
    leaf = latent(dtype).requires_grad_()
    mean = leaf.mean((1, 2, 3), keepdim=True)
    deviation = (leaf - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
    standard, sharpness = (leaf - mean) / deviation, 10 ** (-3 + 4 * progress)
    signs = torch.where(standard >= 0, 1.0, -1.0).to(dtype)
    smooth = max(1 / sharpness, 1.0) * torch.tanh(sharpness * standard)
    (deviation * (signs + smooth - smooth.detach()) + mean).backward(upstream_of(leaf))
    binary, gradient = binarised("adabin", latent(dtype), progress)
    torch.testing.assert_close(binary, (deviation * signs + mean).detach(), **tolerance(dtype))
    torch.testing.assert_close(gradient, leaf.grad, **at_least_float32(dtype))
    assert all(len(kernel.unique()) == 2 for kernel in binary)


@DTYPES
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_recu_weights_pass_a_gradient_within_the_window(progress: float, dtype: torch.dtype) -> None:
    leaf, gains = latent(dtype).requires_grad_(), torch.tensor([0.4, 1.0, -0.7, 0.2], dtype=dtype).reshape(4, 1, 1, 1)
    centred = leaf - leaf.mean((1, 2, 3), keepdim=True)
    variance = centred.square().sum((1, 2, 3), keepdim=True) / (centred[0].numel() - 1)
    standard = centred * (8 / (variance + 1e-5)).sqrt()
    tau = 0.85 + 0.14 * (math.exp(progress) - 1) / (math.e - 1)
    edge = -standard.detach().abs().mean() * math.log(2 - 2 * tau)
    signs, cut = torch.where(standard >= 0, 1.0, -1.0).to(dtype), standard.clamp(-edge, edge)
    (gains * (signs + cut - cut.detach())).backward(upstream_of(leaf))
    binariser = BINARISERS["recu"](4)
    assert isinstance(binariser, RectifiedClamp)
    binariser.gain = nn.Parameter(gains)
    binariser.set_progress(progress)
    weight = latent(dtype).requires_grad_()
    binary = binariser(weight)
    binary.backward(upstream_of(leaf))
    torch.testing.assert_close(binary, gains * signs, **tolerance(dtype))
    torch.testing.assert_close(weight.grad, leaf.grad, **at_least_float32(dtype))
    expected = (upstream_of(leaf) * signs).sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(binariser.gain.grad, expected, **tolerance(dtype))
    assert 0 < (standard.abs() > edge).sum() < standard.numel()


def test_adabin_on_bits_is_one_convolution_of_bits_and_two_sums() -> None:
    """Offsets of weights and inputs in three sums over the taps inside the picture, at its border too."""
    built = unit(4, 6, threshold="adaptive", weight="adabin", act="none").double()
    a, beta = 0.7, 0.3
    with torch.no_grad():
        built.threshold.width.fill_(a)
        built.threshold.centre.fill_(beta)
    signs = sign(drawn(2, 4, 7, 7)).double()
    weight = built.weight.detach()
    mean, deviation = weight.mean((1, 2, 3)), weight.std((1, 2, 3), correction=0)
    bits, inside = sign(weight - mean.reshape(-1, 1, 1, 1)), torch.ones_like(signs)
    ones = torch.ones_like(bits)
    product, of_bits = F.conv2d(signs, bits, padding=1), F.conv2d(inside, bits, padding=1)
    of_signs, taps = F.conv2d(signs, ones, padding=1), F.conv2d(inside, ones, padding=1)
    scale, offset = a * deviation.reshape(1, -1, 1, 1), a * mean.reshape(1, -1, 1, 1)
    expected = scale * (product + beta * of_bits) + offset * (of_signs + beta * taps)
    torch.testing.assert_close(built.convolve(signs), expected)
    assert set(taps.flatten().tolist()) == {4 * 4.0, 4 * 6.0, 4 * 9.0}


@pytest.mark.parametrize("name", list(BINARISERS))
def test_a_filter_of_equal_weights_and_a_gain_of_zero_leave_numbers_finite(name: str) -> None:
    built = unit(4, 6, weight=name, act="none")
    with torch.no_grad():
        built.weight[2] = 0.5
        if isinstance(built.binariser, RectifiedClamp):
            built.binariser.gain[:2] = torch.tensor([0.0, -0.3]).reshape(2, 1, 1, 1)
    bits = sign(drawn(2, 4, 7, 7))
    out = built.convolve(bits)
    torch.testing.assert_close(out, F.conv2d(bits, built.binariser(built.weight), padding=1))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(
        value.grad is not None and value.grad.isfinite().all()
        for value in built.parameters()
        if value is not built.threshold
    )


def test_a_learnt_gain_of_zero_has_a_gradient() -> None:
    built = unit(4, 1, weight="recu", act="none")
    assert isinstance(built.binariser, RectifiedClamp)
    with torch.no_grad():
        built.binariser.gain.zero_()
    bits = sign(drawn(2, 4, 7, 7))
    built.convolve(bits).sum().backward()
    centred = built.weight.detach() - built.weight.detach().mean()
    torch.testing.assert_close(built.binariser.gain.grad.sum(), F.conv2d(bits, sign(centred), padding=1).sum())


@pytest.mark.parametrize("name", list(BINARISERS))
def test_only_plain_signs_clip_the_latent_weights_after_a_step(name: str) -> None:
    built = unit(3, 4, weight=name)
    with torch.no_grad():
        built.weight.copy_(latent(torch.float32))
    before = built.weight.detach().clone()
    built.after_step()
    assert torch.equal(built.weight, before.clamp(-1, 1) if name == "plain" else before)
    assert before.abs().max() > 1


def standardised(weight: Tensor) -> Tensor:
    """Each filter less its mean and over its unbiased standard deviation."""
    centred = [kernel - kernel.sum() / kernel.numel() for kernel in weight]
    return torch.stack([kernel / ((kernel**2).sum() / (kernel.numel() - 1)).sqrt() for kernel in centred])


def shift_of(standard: Tensor) -> Tensor:
    return 2 ** mean_magnitude(standard).log2().round()


@DTYPES
def test_irnet_weights_are_shifted_signs_of_the_standardised_ones(dtype: torch.dtype) -> None:
    weight = latent(dtype)
    # A filter with outliers, whose shift is not the usual one of zero bits.
    weight[3] = 0.01 * drawn(3, 3, 3, seed=3).to(dtype)
    weight[3, 0, 0, :2] = torch.tensor([50.0, -50.0], dtype=dtype)
    binary, _ = binarised("irnet", weight)
    standard = standardised(weight)
    assert set(shift_of(standard).flatten().tolist()) > {1.0}
    torch.testing.assert_close(binary, shift_of(standard) * sign(standard), **tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9])
def test_the_gradient_of_irnet_is_that_of_its_formula(progress: float, dtype: torch.dtype) -> None:
    """Autograd through mean and deviation, with the sign replaced by the function whose derivative is the surrogate."""
    weight = latent(dtype)
    leaf = weight.clone().requires_grad_()
    standard = standardised(leaf)
    sharpness = 10 ** (-1 + 2 * progress)
    smooth = max(1 / sharpness, 1.0) * torch.tanh(sharpness * standard)
    (shift_of(standard.detach()) * smooth).backward(upstream_of(weight))
    _, gradient = binarised("irnet", weight, progress)
    close = tolerance(dtype) if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(gradient, leaf.grad, **close)


@pytest.mark.parametrize("weight", list(BINARISERS))
def test_taking_the_scale_out_of_the_convolution_only_changes_the_rounding(weight: str) -> None:
    built = unit(4, 6, weight=weight, act="none", threshold=False).double()
    bits, outer = sign(drawn(2, 4, 7, 7)).double().requires_grad_(), drawn(2, 6, 7, 7, seed=1).double()
    inside = F.conv2d(bits, built.binariser(built.weight), padding=1)
    expected = torch.autograd.grad(inside, (bits, built.weight), outer)
    outside = built.convolve(bits)
    torch.testing.assert_close(outside, inside)
    torch.testing.assert_close(torch.autograd.grad(outside, (bits, built.weight), outer), expected)


@pytest.mark.parametrize("weight", [name for name in BINARISERS if name not in ("srb", "adabin")])
def test_the_sums_of_a_convolution_are_integers_in_any_precision(weight: str) -> None:
    """Except with two numbers for each filter, two scales or a scale and an offset."""
    built, bits = unit(4, 6, weight=weight), sign(drawn(2, 4, 7, 7))
    exact = built.convolve(bits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(built.convolve(bits).float(), exact)
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


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act_fn", "expected"),
    [
        ("relu", [0.0, 0.0, 2.0]),
        ("hardtanh", [-1.0, -0.5, 1.0]),
        ("prelu", [-0.5, -0.125, 2.0]),
        ("rprelu", [-0.5, -0.125, 2.0]),
        ("leaky", [-0.2, -0.05, 2.0]),
        ("maxout", [-0.5, -0.125, 2.0]),
    ],
)
def test_an_activation_is_its_formula_at_the_start(act_fn: str, expected: list[float]) -> None:
    x = torch.tensor([-2.0, -0.5, 2.0]).reshape(1, 1, 3, 1)
    assert ACTIVATIONS[act_fn](1)(x).flatten().tolist() == pytest.approx(expected)


def test_every_activation_has_its_formula_here() -> None:
    (mark,) = test_an_activation_is_its_formula_at_the_start.pytestmark
    assert {act_fn for act_fn, _ in mark.args[1]} == set(ACTIVATIONS)


def test_the_gradients_of_leaky_and_maxout_are_the_slopes_of_their_sides() -> None:
    x, upstream = torch.tensor([-2.0, 0.0, 3.0]).reshape(1, 1, 3, 1), torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    leaky, maxout = (x.clone().requires_grad_() for _ in range(2))
    activation = Maxout(1)
    with torch.no_grad():
        activation.positive.fill_(1.5)
        activation.negative.fill_(-0.5)
    ACTIVATIONS["leaky"](1)(leaky).backward(upstream)
    activation(maxout).backward(upstream)
    assert leaky.grad is not None
    assert maxout.grad is not None
    torch.testing.assert_close(leaky.grad.flatten(), torch.tensor([0.1, 0.2, 4.0]))
    torch.testing.assert_close(maxout.grad.flatten(), torch.tensor([-0.5, -0.5 * 2, 1.5 * 4]))
    assert (activation.positive.grad.item(), activation.negative.grad.item()) == (4 * 3.0, 1 * -2.0)


def test_rprelu_shifts_before_and_after() -> None:
    activation = RPReLU(1)
    with torch.no_grad():
        activation.shift_in.fill_(1.0)
        activation.shift_out.fill_(10.0)
    x = torch.tensor([-3.0, 0.0]).reshape(1, 1, 2, 1)
    assert activation(x).flatten().tolist() == [0.25 * (-3 + 1) + 10, (0 + 1) + 10]


def test_the_fused_rprelu_has_the_values_and_gradients_of_its_parts() -> None:
    shapes = ((2, 3, 4, 5), (1, 3, 1, 1), (3,), (1, 3, 1, 1))
    arguments = tuple(drawn(*shape, seed=seed).double().requires_grad_() for seed, shape in enumerate(shapes))
    x, shift_in, slope, shift_out = arguments
    assert torch.autograd.gradcheck(FusedRPReLU.apply, arguments)
    torch.testing.assert_close(FusedRPReLU.apply(*arguments), F.prelu(x + shift_in, slope) + shift_out)


def test_at_its_kink_the_fused_rprelu_has_the_gradient_of_a_prelu() -> None:
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    zero, slope = torch.zeros(1, 1, 1, 1), torch.tensor([0.25])
    FusedRPReLU.apply(x, zero, slope, zero).sum().backward()
    assert x.grad is not None
    assert float(x.grad) == 0.25


@pytest.mark.parametrize(("name", "low", "high"), [("relu", 0.0, float("inf")), ("hardtanh", -1.0, 1.0)])
def test_the_clamp_for_the_compiler_is_the_activation_also_at_its_bounds(name: str, low: float, high: float) -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    clamped, activated = Clamp.apply(x, low, high), ACTIVATIONS[name](1)(x)
    assert torch.equal(clamped, activated)
    (found,), (expected,) = (torch.autograd.grad(y.sum(), x) for y in (clamped, activated))
    assert torch.equal(found, expected)


# --- parts of a user's own --------------------------------------------------------------------------------------------


class Steep(Surrogate):
    """Twice the gradient of the identity."""

    def derivative(self, u: Tensor) -> Tensor:
        return torch.full_like(u, 2.0)


class Soft(Surrogate):
    """Not a sign."""

    def forward(self, u: Tensor) -> Tensor:
        return u.tanh()


class Halves(Binariser):
    """Every weight is plus or minus a half."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (0.5 * sign(weight) - weight).detach()


class Ternary(Binariser):
    """Three values and more."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.round()


def own(name: str) -> str:
    return f"{__name__}.{name}"


def image() -> Tensor:
    return torch.rand(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))


def gradients(network: nn.Module) -> dict[str, Tensor]:
    network(image()).square().sum().backward()
    return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


SMALL = {"scale": 2, "channels": 4, "blocks": 1}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("srresnett", {}, r"network.name 'srresnett' \(did you mean srresnet\?\); valid:"),
        ("no_such_module.Network", {}, "'no_such_module.Network' cannot be imported"),
        ("srresnet", {"unit_class": "bbcu.model.units.No"}, "network.unit .* cannot be imported"),
        ("srresnet", {"unit_class": "binaryy"}, "unknown network.unit .* valid: binary"),
        ("srresnet", {"unit": {"surrogate": "quad"}}, "unknown surrogate 'quad'"),
        ("srresnet", {"unit": {"weight": "l2"}}, "unknown weight 'l2'"),
        ("srresnet", {"unit": {"act_fn": "gelu"}}, "act_fn: unknown activation 'gelu'"),
        ("srresnet", {"binarize": ("tails",)}, "binarize: unknown part 'tails'"),
        ("srresnet", {"initial": "he"}, "network.initial: unknown initialiser 'he'"),
        (
            "srresnet",
            {"unit_class": own("Halves")},
            f"network.unit={own('Halves')}: must be a subclass of BinaryUnit, and Halves is a Binariser",
        ),
    ],
)
def test_a_network_of_unknown_parts_is_an_error_of_one_line(name: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(name, NetworkSpec(**SMALL, **{**options, "unit": UnitSpec(**options.get("unit", {}))}), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: surrogate_of(own("Halves")), "must be a subclass of Surrogate, and Halves is a Binariser"),
        (lambda: surrogate_of(own("sign")), "must be a subclass of .* sign is not a class"),
        (lambda: surrogate_of(own("Soft")), "surrogate=.*Soft: its forward pass must be the sign"),
        (lambda: binariser_of(own("Steep"), 4), "must be a subclass of Binariser, and Steep is a Surrogate"),
        (lambda: binariser_of(own("Ternary"), 4), "weight=.*Ternary: .* at most two values for each filter"),
    ],
)
def test_a_users_part_of_the_wrong_kind_is_an_error_of_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_checking_a_users_parts_leaves_the_random_state_and_works_on_the_meta_device() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert isinstance(surrogate_of(own("Steep")), Steep)
        assert isinstance(binariser_of(own("Halves"), 4), Halves)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_name_of_the_table_is_not_imported() -> None:
    assert look_up("weight", "a.b", {"a.b": Halves}, Binariser) is Halves


def test_levels_that_are_not_fields_of_a_unit_are_extra() -> None:
    spec = UnitSpec.of({"bn": "post", "dropout": 0.5})
    assert spec == UnitSpec(bn="post", extra={"dropout": 0.5})
    assert UnitSpec.of({}) == UnitSpec()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(bbcu.PUBLIC))
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    assert getattr(bbcu, name) is getattr(importlib.import_module(bbcu.PUBLIC[name]), name)
    assert name in dir(bbcu)


def test_another_name_is_not_an_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'bbcu' has no attribute 'Missing'"):
        bbcu.Missing  # noqa: B018


@pytest.mark.parametrize("earlier", list(bbcu.EARLIER_NAMES))
def test_an_earlier_module_name_is_the_same_module(earlier: str) -> None:
    module = importlib.import_module(earlier)
    assert module is importlib.import_module(bbcu.EARLIER_NAMES[earlier])
    assert module.__spec__ is not None
    assert module.__spec__.name == bbcu.EARLIER_NAMES[earlier]


# --- the page of the documentation ------------------------------------------------------------------------------------

PAGE = (DOCS / "parts.md").read_text(encoding="utf-8")


@pytest.fixture
def my_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of the page, in a file that Python can import."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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
    network, again, other = (build(name, NetworkSpec(2, 4, 1, **spec), seed) for seed in (0, 0, 1))
    found, usual = gradients(network), gradients(build("srresnet", NetworkSpec(2, 4, 1), 0))
    assert network(image()).shape == (2, 3, 16, 14)
    assert torch.equal(again(image()), network(image()))
    assert not torch.equal(other(image()), network(image()))
    weight = "body.units.0.weight"
    assert found.keys() != usual.keys() or not torch.equal(found[weight], usual[weight])
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["body.units.0.weight"].abs().sum() > 0


def test_the_commands_of_the_page_run(workplace: Workplace, my_parts: Path) -> None:
    commands = re.findall(r"^    python run\.py (.*)$", PAGE, re.MULTILINE)
    for command in commands:
        overrides = command.removeprefix("-m ").split()
        outcome = workplace.sweep(*overrides) if command.startswith("-m ") else workplace.run(*overrides)
        assert outcome.status == 0, outcome.text
    # Four trials and a sweep of four, two of which are the same.
    assert len(commands) == 5
    assert len(workplace.results()) == 6


@pytest.mark.parametrize("factor", ["surrogate", "weight", "act_fn", "threshold", "rescale"])
def test_the_page_lists_every_level(factor: str) -> None:
    (section,) = [part for part in PAGE.split("\n## ") if f"`{factor}=`" in part]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(map(level_text, FACTORS[factor].levels))
