"""What the probes say of a network is what numpy says of its activations, and the network is left unchanged."""

import copy
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bbcu.data.images import to_tensor
from bbcu.data.pairs import Pair
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.model.specs import UnitSpec
from bbcu.model.thresholds import Threshold
from bbcu.model.units import KERNEL, BinaryUnit
from bbcu.training.probes import BINS_PER_DECADE, PROBED_SIDE, Fit, Spread, UnitProbe, dead_body, probe, probed_inputs
from tests.harness.builders import dncnn, drawn, noise, srresnet, unit

CPU = torch.device("cpu")
CHANNELS = 4
PERCENTS = {"p1": 1, "p25": 25, "p50": 50, "p75": 75, "p99": 99}
HALF_A_BIN = 10 ** (0.5 / BINS_PER_DECADE) - 1
# What six digits, and sums of float32 activations in another order, leave of a number.
CLOSE = 1e-4


class Alone(nn.Module):
    """A network of one unit, whose residual is the input times ``share``, or none."""

    def __init__(self, built: BinaryUnit, share: float | None = 1.0) -> None:
        super().__init__()
        self.unit, self.share = built, share

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(x, None if self.share is None else self.share * x)
        return out


def shaken(network: nn.Module, size: float = 0.2) -> nn.Module:
    """The network with every parameter and every statistic of a BatchNorm away from where it started."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.add_(size * torch.rand(value.shape, generator=generator) - (0 if "running" in name else size / 2))
    return network


def alone(share: float | None = 1.0, **levels: Any) -> Alone:
    network = shaken(Alone(unit(CHANNELS, CHANNELS, **levels), share))
    assert isinstance(network, Alone)
    return network


def stream(seed: int = 0, pictures: int = 3) -> Tensor:
    """An input of a unit, of another mean and deviation in each channel."""
    spread = torch.tensor([0.3, 1.0, 2.0, 5.0])[:, None, None]
    offset = torch.tensor([0.1, -0.5, 1.0, -2.0])[:, None, None]
    return drawn(pictures, CHANNELS, 9, 7, seed=seed) * spread + offset


def measured(network: nn.Module, *batches: Tensor, name: str = "unit") -> dict[str, Any]:
    found: dict[str, Any] = probe(network, batches, None, CPU)["units"][name]
    return found


def seen_by(module: nn.Module, run: Callable[[], object]) -> NDArray[np.float64]:
    """What ``module`` is given while ``run`` runs, (channels, everything else)."""
    given: list[Tensor] = []
    with torch.no_grad(), module.register_forward_pre_hook(lambda _, args: given.append(args[0])):
        run()
    return by_channel(torch.cat(given))


def by_channel(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.detach().transpose(0, 1).flatten(1).double().numpy()
    return array


def missed(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """What the best a x + b of each channel misses of y, over the spread of y."""
    errors = spread = 0.0
    for one, other in zip(x, y, strict=True):
        design = np.stack([one, np.ones_like(one)], axis=1)
        solution, *_ = np.linalg.lstsq(design, other, rcond=None)
        errors += float(((other - design @ solution) ** 2).sum())
        spread += float(((other - other.mean()) ** 2).sum())
    return float(np.sqrt(errors / spread))


# --- the sign ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [{}, {"threshold": False}, {"bn": "pre"}], ids=str)
def test_sign_loss_and_entropy_are_those_of_what_the_sign_is_given(levels: dict[str, Any]) -> None:
    network, x = alone(**levels), stream()
    u = seen_by(network.unit.surrogate, lambda: network.eval()(x))
    found = measured(network, x)
    assert found["sign_loss"] == pytest.approx(missed(np.where(u >= 0, 1.0, -1.0), u), rel=CLOSE)
    p = (u >= 0).mean(axis=1)
    assert found["entropy"] == pytest.approx(float(np.mean(-p * np.log2(p) - (1 - p) * np.log2(1 - p))), rel=CLOSE)


@pytest.mark.parametrize(
    ("x", "sign_loss", "entropy"),
    [
        pytest.param(torch.tensor([3.0, -1.0]).repeat(32).reshape(1, CHANNELS, 4, 4), 0, 1, id="balanced bits"),
        pytest.param(stream().abs(), 1, 0, id="one sign"),
        pytest.param(torch.full((2, CHANNELS, 5, 5), 0.3), 0, 0, id="a constant"),
    ],
)
def test_the_bounds_of_sign_loss_and_entropy(x: Tensor, sign_loss: float, entropy: float) -> None:
    found = measured(Alone(unit(CHANNELS, CHANNELS)), x)
    assert (found["sign_loss"], found["entropy"]) == (sign_loss, entropy)


@pytest.mark.parametrize("threshold", [0.0, -8.0])
def test_window_and_zeros_are_those_of_the_signs_argument_and_the_window_ends_at_one(threshold: float) -> None:
    network, u = Alone(unit(1, 1)), torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0625, 9.0]).reshape(1, 1, 2, 4)
    nn.init.constant_(network.unit.threshold, threshold)
    found = measured(network, u - threshold)
    assert (found["window"], found["zeros"]) == (5 / 8, 1 / 8)


# --- the output -------------------------------------------------------------------------------------------------------


def without_binarisation(network: Alone, x: Tensor) -> Tensor:
    """The unit's output from real bits and weights, written out."""
    built = network.unit.eval()
    u = built.bn_pre(x)
    threshold = built.threshold
    v = built.sign_input(x)[1] if isinstance(threshold, Threshold) else u if threshold is None else u + threshold
    outcomes = {
        "elastic": lambda s: threshold.width * s,
        "adaptive": lambda s: threshold.width * (s + threshold.centre),
    }.get(str(built.spec.threshold), lambda s: s)
    real = F.conv2d(outcomes(v), built.weight, padding=KERNEL // 2)
    binary = F.conv2d(outcomes(torch.where(v >= 0, 1.0, -1.0)), built.binariser(built.weight), padding=KERNEL // 2)
    real = real - real.mean((2, 3), keepdim=True)
    real = real / real.std((2, 3), correction=0, keepdim=True) * binary.std((2, 3), correction=0, keepdim=True)
    real = real + binary.mean((2, 3), keepdim=True)
    z = built.bn_post(real if built.rescale is None else built.rescale(x, u, v) * real)
    residual = 0 if network.share is None else network.share * x
    if built.residual_scale is not None:
        residual = residual * built.residual_scale.abs()
    inside = built.bn_branch(built.activation(z)) + residual
    out: Tensor = built.bn_out(built.activation(z + residual) if built.spec.act == "after" else inside)
    return out


@pytest.mark.parametrize("share", [1.0, None], ids=["residual", "no residual"])
@pytest.mark.parametrize(
    "levels",
    [
        {},
        {"bn": "pre", "act": "none"},
        {"bn": "post", "act": "after", "weight": "irnet"},
        {"bn": "out", "act_fn": "hardtanh"},
        {"threshold": False, "weight": "plain"},
        {"threshold": "affine", "weight": "srb", "rescale": "both", "bn": "branch", "residual": "scaled"},
        {"threshold": "elastic", "weight": "recu", "rescale": "box", "act": "none"},
        {"threshold": "adaptive", "weight": "adabin", "rescale": "statistics", "act_fn": "maxout"},
    ],
    ids=str,
)
def test_the_output_loses_what_the_unit_without_binarisation_would_have(
    levels: dict[str, Any], share: float | None
) -> None:
    network, x = alone(share, **levels), stream()
    with torch.no_grad():
        expected = missed(by_channel(network.eval()(x)), by_channel(without_binarisation(network, x)))
    assert measured(network, x)["output_loss"] == pytest.approx(expected, rel=CLOSE)


def test_no_binarisation_loses_nothing() -> None:
    """Bits for an input, and weights of one magnitude: the binary unit is the real one."""
    network = Alone(unit(CHANNELS, CHANNELS, act="none"))
    with torch.no_grad():
        network.unit.weight.copy_(0.25 * torch.sign(network.unit.weight))
    x = torch.where(stream() >= 0, 1.0, -1.0)
    assert measured(network, x)["output_loss"] == pytest.approx(0, abs=1e-6)


# --- the range of values ----------------------------------------------------------------------------------------------


def assert_spread(found: dict[str, float], values: Tensor) -> None:
    array = values.detach().double().numpy()
    assert found.keys() == {*PERCENTS, "std"}
    assert found["std"] == pytest.approx(array.std(), rel=CLOSE)
    for name, percent in PERCENTS.items():
        exact = np.percentile(array, percent, method="inverted_cdf")
        assert found[name] == pytest.approx(exact, rel=HALF_A_BIN * 1.01), name


@pytest.mark.parametrize(
    "levels",
    [
        {"act": "inside"},
        {"act": "after"},
        {"act": "none"},
        {"bn": "branch", "residual": "scaled"},
        {"rescale": "box", "act": "after"},
    ],
    ids=str,
)
def test_the_ranges_are_those_of_what_is_added(levels: dict[str, Any]) -> None:
    """The branch with its activation where that stands before the add, and without it where it stands after."""
    network, x = alone(2.0, **levels), stream()
    built = network.unit.eval()
    z = built.branch(x)
    branch = (z if built.act == "after" else built.bn_branch(built.activation(z))).detach()
    added = 2.0 * x if built.residual_scale is None else 2.0 * x * built.residual_scale.detach().abs()
    found = measured(network, x)
    assert_spread(found["branch"], branch)
    assert_spread(found["residual"], added)
    assert_spread(found["input"], x)
    assert found["branch_ratio"] == pytest.approx(float(branch.std() / added.std()), rel=1e-3)


def test_without_a_residual_the_branch_is_measured_against_the_input() -> None:
    network, x = alone(None, act="after"), stream()
    found = measured(network, x)
    assert found["residual"] is None
    assert_spread(found["branch"], network(x))
    assert found["branch_ratio"] == pytest.approx(float(network(x).detach().std() / x.std()), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 1e-2, 1.0, 130.0, 1e5, 1e7])
def test_percentiles_are_as_exact_as_stated_over_twelve_decades(scale: float) -> None:
    values = scale * drawn(1, 3, 50, 50).exp() * drawn(1, 3, 50, 50, seed=1).sign()
    spread = Spread()
    spread.add(values)
    found = spread.measurements()
    assert found is not None
    for name, percent in PERCENTS.items():
        exact = np.percentile(values.numpy(), percent, method="inverted_cdf")
        size = np.clip(abs(exact), 0 if abs(exact) < 1e-6 else 1e-6, 1e6)
        expected = 0.0 if abs(exact) < 1e-6 else np.copysign(size, exact)
        assert found[name] == pytest.approx(expected, rel=0.006), name


def test_percentiles_of_zeros_are_zero() -> None:
    spread = Spread()
    spread.add(torch.zeros(1, 1, 4, 4))
    assert spread.measurements() == {**dict.fromkeys(PERCENTS, 0.0), "std": 0.0}


# --- the flips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["l1", "plain", "irnet"])
def test_flips_are_counted(weight: str) -> None:
    network = Alone(unit(CHANNELS, CHANNELS, weight=weight))
    with torch.no_grad():
        # Every filter balanced, so that the mean of a filter, which irnet takes off first, stays near zero.
        network.unit.weight.copy_(torch.tensor([0.1, -0.1]).repeat(CHANNELS * CHANNELS * 9 // 2).view(4, 4, 3, 3))
    start = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        network.unit.weight[0, 0, 0, :2].neg_()
        network.unit.weight[2, 1, 1, 0].neg_()
        network.unit.weight[3] *= 3
    found = probe(network, [stream()], start, CPU)["units"]["unit"]
    assert found["flipped"] == pytest.approx(3 / (CHANNELS * CHANNELS * 9), rel=1e-5)


def test_flips_are_those_of_the_binary_weights() -> None:
    """A shift of a whole filter changes every latent sign here, and no bit of weights that are centred first."""
    network = Alone(unit(CHANNELS, CHANNELS, weight="irnet"))
    start = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        network.unit.weight.add_(1.0)
    assert probe(network, [stream()], start, CPU)["units"]["unit"]["flipped"] == 0


def test_a_flip_changes_which_of_two_values_a_weight_has() -> None:
    """Both values of AdaBin may be positive; of the four of a second order, the error's bit is no flip of a weight."""
    for weight in ("adabin", "srb"):
        network = Alone(unit(CHANNELS, CHANNELS, weight=weight))
        with torch.no_grad():
            network.unit.weight.copy_(torch.tensor([1.4, 0.6]).repeat(CHANNELS * CHANNELS * 9 // 2).view(4, 4, 3, 3))
        start = copy.deepcopy(network.state_dict())
        with torch.no_grad():
            network.unit.weight[0, 0, 0, :2] = torch.tensor([0.6, 1.4])
        found = probe(network, [stream()], start, CPU)["units"]["unit"]
        assert found["flipped"] == (0 if weight == "srb" else pytest.approx(2 / (CHANNELS * CHANNELS * 9), rel=1e-5))


def test_without_a_start_there_are_no_flips() -> None:
    assert measured(alone(), stream())["flipped"] is None


# --- one pass, bounded memory -----------------------------------------------------------------------------------------


def assert_close(one: object, other: object) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name])
    else:
        assert one == pytest.approx(other, rel=1e-3 if one else None)


@pytest.mark.parametrize("levels", [{}, {"bn": "post", "act": "after"}], ids=str)
def test_pictures_are_measured_one_by_one_as_all_at_once_and_in_any_order(levels: dict[str, Any]) -> None:
    network, x = alone(**levels), stream(pictures=5)
    for batches in (x.split(1), x.flip(0).split(2)):
        assert_close(measured(network, *batches), measured(network, x))


def test_a_fit_does_not_suffer_from_a_mean_far_from_zero() -> None:
    x, y = stream().double() + 1e4, stream(seed=1).double() + stream().double() - 1e4
    fit = Fit()
    for one, other in zip(x.split(1), y.split(1), strict=True):
        fit.add(one, other)
    assert fit.loss() == pytest.approx(missed(by_channel(x), by_channel(y)), rel=1e-5)


def held(watching: UnitProbe) -> int:
    """How many numbers a probe holds."""
    parts = (watching.sign_fit, watching.output_fit, watching.residual, watching.branch, watching.input, watching)
    values = [value for part in parts for value in vars(part).values()]
    return sum(value.numel() for value in values if isinstance(value, Tensor)) + len(watching._seen)


def test_what_is_kept_does_not_grow_with_the_pictures() -> None:
    network, sizes = alone(), []
    for batches in ([stream()], [stream(seed) for seed in range(10)], [drawn(8, CHANNELS, 40, 40)]):
        watching = UnitProbe(network.unit)
        with torch.inference_mode(), watching.attached():
            for batch in batches:
                network(batch)
        sizes.append(held(watching))
    assert sizes[0] == sizes[1] == sizes[2] > 0


# --- whole networks ---------------------------------------------------------------------------------------------------

EVERYWHERE = ("head", "body", "up", "tail")


def layouts() -> Iterable[Any]:
    for residual in (True, False, "block", "scaled"):
        for bn in ("none", "pre", "post", "out"):
            unit_spec = UnitSpec(residual=residual, bn=bn)
            yield pytest.param(lambda u=unit_spec: srresnet(channels=4, unit=u), id=f"{residual} {bn}")
    for act in ("inside", "after", "none"):
        for act_fn in ("rprelu", "prelu", "relu", "hardtanh"):
            unit_spec = UnitSpec(act=act, act_fn=act_fn)
            yield pytest.param(lambda u=unit_spec: srresnet(channels=4, unit=u), id=f"{act} {act_fn}")
    unit_spec = UnitSpec(bn="branch", act="inside", threshold="dynamic", rescale="both", weight="recu")
    yield pytest.param(lambda u=unit_spec: srresnet(channels=4, unit=u), id="branch and dynamic")
    unit_spec = UnitSpec(act="first", act_fn="leaky", threshold="adaptive", rescale="squeeze", weight="reste")
    yield pytest.param(lambda u=unit_spec: srresnet(channels=4, unit=u), id="first and adaptive")
    for weight in ("l1", "l1mag", "plain", "irnet", "sign", "srb", "adabin"):
        unit_spec = UnitSpec(weight=weight, surrogate="ede")
        yield pytest.param(lambda u=unit_spec: srresnet(channels=4, unit=u), id=weight)
    for scale in (2, 3, 4):
        yield pytest.param(lambda s=scale: srresnet(s, 4, binarize=EVERYWHERE, align=8.0), id=f"every part x{scale}")
    gray = {"binarize": ("head", "body", "tail"), "colours": 1}
    yield pytest.param(lambda: dncnn(4), id="dncnn")
    yield pytest.param(lambda: dncnn(4, **gray), id="gray dncnn with biases, every part")
    remembering = UnitSpec(residual="block", bn="pre", threshold=False)
    yield pytest.param(lambda: srresnet(channels=4, blocks=2, unit=remembering, accumulate=True), id="bits accumulated")
    yield pytest.param(lambda: srresnet(channels=4, standardise=True), id="standardised")


def picture(network: nn.Module, seed: int = 0) -> Tensor:
    colours = network.spec.colours
    return torch.rand(1, colours, 8, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", list(layouts()))
def test_every_unit_is_measured_and_the_network_and_its_output_are_left_as_they_were(
    make: Callable[[], nn.Module],
) -> None:
    network = shaken(make()).train()
    next(module for module in network.modules() if isinstance(module, BinaryUnit)).eval()
    modes, state = [module.training for module in network.modules()], copy.deepcopy(network.state_dict())
    untouched, x = copy.deepcopy(network), picture(network)
    outputs: list[Tensor] = []
    with network.register_forward_hook(lambda module, args, output: outputs.append(output)):
        found = probe(network, [x, picture(network, 1)], state, CPU)

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["pictures"] == 2
    assert list(found["units"]) == [name for name, module in network.named_modules() if isinstance(module, BinaryUnit)]
    for name, values in found["units"].items():
        assert {key for key, value in values.items() if value is None} <= {"residual"}, name
        assert 0 <= values["sign_loss"] <= 1, name
        assert 0 <= values["output_loss"] <= 1, name

    assert [module.training for module in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(network(x), copy.deepcopy(untouched)(x))
    assert torch.equal(outputs[0], untouched.eval()(x))


def test_a_probe_is_detached_from_the_unit() -> None:
    network = alone()
    watching = UnitProbe(network.unit)
    with torch.inference_mode(), watching.attached():
        network(stream())
    before = watching.measurements()
    network(stream(seed=1))
    assert watching.measurements() == before


def test_a_pass_that_fails_leaves_the_network_as_it_was_too() -> None:
    network = srresnet(channels=4).train()
    with pytest.raises(RuntimeError):
        probe(network, [torch.rand(1, 5, 8, 8)], None, CPU)
    assert all(module.training for module in network.modules())


def test_a_unit_of_the_body_sees_the_bits_that_the_memory_recalls() -> None:
    network = shaken(srresnet(channels=4, blocks=2, unit=UnitSpec(bn="none", threshold=False), accumulate=True)).eval()
    x = picture(network)
    last = network.body.units[-1]
    u = seen_by(last.surrogate, lambda: network(x))
    found = measured(network, x, name="body.units.3")
    assert found["sign_loss"] == pytest.approx(missed(np.where(u >= 0, 1.0, -1.0), u), rel=CLOSE)


def test_the_pass_without_binarisation_has_the_memory_of_the_pass_that_it_repeats() -> None:
    """The factors of both passes are computed from the same input of the sign."""
    unit_spec = UnitSpec(threshold=False, rescale="statistics", act="none")
    network = shaken(srresnet(channels=4, blocks=2, unit=unit_spec, accumulate=True)).eval()
    last, x = network.body.units[-1], picture(network)
    factors: list[Tensor] = []
    with last.rescale.register_forward_hook(lambda module, args, output: factors.append(output)):
        probe(network, [x], None, CPU)
    binary, real = factors
    assert torch.equal(binary, real)


def test_a_network_without_binary_units_has_no_measurements() -> None:
    assert probe(srresnet(binarize=()), [torch.rand(1, 3, 8, 8)], None, CPU) == {"pictures": 1, "units": {}}


class Unusual(BinaryUnit):
    """A unit that has its own way to the output."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return F.conv2d(self.bits(x), torch.sign(self.weight), padding=KERNEL // 2)


def test_a_unit_of_the_users_own_is_measured_as_far_as_it_has_the_usual_modules() -> None:
    network = build("srresnet", NetworkSpec(2, 4, 1, unit_class=f"{__name__}.Unusual"), 0)
    found = probe(network, [torch.rand(1, 3, 8, 8)], None, CPU)["units"]["body.units.0"]
    assert found["sign_loss"] is not None
    assert (found["output_loss"], found["branch"], found["branch_ratio"]) == (None, None, None)


def test_a_value_that_is_not_finite_is_none() -> None:
    network = alone()
    with torch.no_grad():
        network.unit.activation.shift_out.fill_(float("inf"))
    found = measured(network, stream())
    assert json.dumps(found, allow_nan=False)
    assert found["output_loss"] is None


# --- a body that adds nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [srresnet, dncnn], ids=["srresnet", "dncnn"])
def test_a_network_whose_layers_add_one_number_a_colour_is_dead(make: Callable[..., Any]) -> None:
    network = make()
    with torch.no_grad():
        network.tail.weight.zero_()
        if network.tail.bias is not None:
            network.tail.bias.fill_(0.1)
    reason = dead_body(network, [drawn(1, 3, 24, 24)], CPU)
    assert reason is not None
    assert reason.startswith("its output is the skip connection")


@pytest.mark.parametrize("make", [srresnet, dncnn], ids=["srresnet", "dncnn"])
def test_a_network_whose_layers_add_a_pattern_is_alive_wherever_the_pattern_is(make: Callable[..., Any]) -> None:
    network = shaken(make())
    assert dead_body(network, [torch.zeros(1, 3, 24, 24), drawn(1, 3, 24, 24)], CPU) is None


def test_equal_signs_everywhere_make_a_body_dead_though_its_borders_differ() -> None:
    network = srresnet(unit=UnitSpec(residual=False))
    with torch.no_grad():
        for binary in network.body.units:
            binary.threshold.fill_(-1e9)
    pictures = drawn(1, 3, 48, 48)
    added = network(pictures) - network.skip(pictures)
    assert added.std(dim=(2, 3)).max() > 1e-6
    assert dead_body(network, [pictures], CPU) is not None


def test_a_network_that_has_no_skip_is_never_called_dead() -> None:
    assert dead_body(alone(), [stream()], CPU) is None


# --- the inputs that are probed ---------------------------------------------------------------------------------------


def test_the_middle_of_the_first_pictures_of_each_set_is_probed() -> None:
    large, small = noise(PROBED_SIDE + 10, PROBED_SIDE + 4), noise(20, 30, seed=1)
    pairs = tuple(Pair(name, input, input) for name, input in (("large", large), ("small", small), ("more", small)))
    first, second, third = probed_inputs({"A": pairs, "B": pairs[:1]}, 2)
    assert torch.equal(first[0], to_tensor(large[5:-5, 2:-2]))
    assert torch.equal(second[0], to_tensor(small))
    assert torch.equal(third, first)
