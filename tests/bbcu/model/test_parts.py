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
from ablations.space.factors import FACTORS
from bbcu.errors import ConfigError
from bbcu.model.activations import ACTIVATIONS, Clamp, FusedRPReLU, RPReLU
from bbcu.model.binarisers import BINARISERS, Binariser, binariser_of
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.model.registry import look_up
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import SURROGATES, ErrorDecay, Surrogate, sign, surrogate_of
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
}


def points(dtype: torch.dtype) -> Tensor:
    """Zero and every breakpoint, both neighbours, on both sides of zero; normal and very large values."""
    around = [point + offset for point in (0.0, 0.4, 1.0) for offset in (-1e-3, 0, 1e-3)]
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


def test_the_error_decay_estimator_is_not_in_a_checkpoint() -> None:
    assert set(unit(2, 2, surrogate="ede", weight="irnet").state_dict()) == set(unit(2, 2).state_dict())


@pytest.mark.parametrize("levels", [{"surrogate": "ede"}, {"weight": "irnet"}], ids=str)
def test_a_unit_passes_the_progress_to_its_parts(levels: dict[str, str]) -> None:
    built = unit(2, 2, **levels)
    built.set_progress(0.5)
    assert [module.sharpness.item() for module in built.modules() if isinstance(module, ErrorDecay)] == [1.0]


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
    binariser, leaf = BINARISERS[name](), weight.clone().requires_grad_()
    binariser.set_progress(progress)
    binary = binariser(leaf)
    binary.backward(upstream_of(weight))
    assert leaf.grad is not None
    return binary.detach(), leaf.grad


def mean_magnitude(weight: Tensor) -> Tensor:
    return torch.stack([kernel.abs().sum() / kernel.numel() for kernel in weight])[:, None, None, None]


@DTYPES
@pytest.mark.parametrize("name", ["l1", "l1mag", "plain"])
def test_a_binariser_is_its_formula(name: str, dtype: torch.dtype) -> None:
    weight = latent(dtype)
    binary, gradient = binarised(name, weight)
    scale = 1 if name == "plain" else mean_magnitude(weight)
    torch.testing.assert_close(binary, scale * torch.where(weight >= 0, 1.0, -1.0).to(dtype), **tolerance(dtype))
    clipped = upstream_of(weight) * (weight.abs() <= 1)
    expected = {"l1": clipped, "l1mag": scale * clipped, "plain": upstream_of(weight)}[name]
    torch.testing.assert_close(gradient, expected, **tolerance(dtype))


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


@pytest.mark.parametrize("weight", list(BINARISERS))
def test_the_sums_of_a_convolution_are_integers_in_any_precision(weight: str) -> None:
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
    ],
)
def test_an_activation_is_its_formula_at_the_start(act_fn: str, expected: list[float]) -> None:
    x = torch.tensor([-2.0, -0.5, 2.0]).reshape(1, 1, 3, 1)
    assert ACTIVATIONS[act_fn](1)(x).flatten().tolist() == expected


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
        (lambda: binariser_of(own("Steep")), "must be a subclass of Binariser, and Steep is a Surrogate"),
        (lambda: binariser_of(own("Ternary")), "weight=.*Ternary: .* at most two values for each filter"),
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
        assert isinstance(binariser_of(own("Halves")), Halves)
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


@pytest.mark.parametrize("factor", ["surrogate", "weight", "act_fn"])
def test_the_page_lists_every_level(factor: str) -> None:
    (section,) = [part for part in PAGE.split("\n## ") if f"`{factor}=`" in part]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(FACTORS[factor].levels)
