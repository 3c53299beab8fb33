"""Whole networks: their layout, the effect of every level, and their initial values."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablations.space.cells import canonical_levels
from ablations.space.factors import FACTORS, REFERENCE, Level
from ablations.space.rules import Backbone, ImpossibleCell
from bbcu.model.initialisation import initialise
from bbcu.model.networks import SRResNet
from bbcu.model.parts import Body, NetworkSpec
from bbcu.model.records import OF_NETWORK, OF_TRAINING
from bbcu.model.specs import UnitSpec
from tests.harness.builders import dncnn, drawn, srresnet

CHANNELS, BLOCKS = 8, 2


def build(levels: dict[str, Level] | None = None, seed: int = 0) -> SRResNet:
    """A small network with these levels and the reference for the rest."""
    canonical = canonical_levels({**REFERENCE, **(levels or {})}, Backbone("srresnet", CHANNELS))
    factors: dict[str, Any] = dict(canonical.factors)
    layout = {name: factors.pop(name) for name in OF_NETWORK}
    unit = UnitSpec(**{name: level for name, level in factors.items() if name not in OF_TRAINING})
    return srresnet(channels=CHANNELS, blocks=BLOCKS, unit=unit, seed=seed, **layout)


def body_of(**levels: Any) -> Body:
    """A body of one pair of units and 4 channels."""
    body = Body(NetworkSpec(2, 4, 1, UnitSpec(**levels)))
    initialise(body, 0)
    return body


def patches(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(seed))


# --- the layout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_output_is_scale_times_the_input(scale: int) -> None:
    assert srresnet(scale, 4)(torch.rand(1, 3, 7, 9)).shape == (1, 3, 7 * scale, 9 * scale)


def test_a_network_whose_tail_is_zero_is_bilinear_interpolation() -> None:
    network, x = build(), patches()
    with torch.no_grad():
        network.tail.weight.zero_()
    torch.testing.assert_close(network(x), F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))


def test_an_identity_is_around_every_unit_or_each_pair_or_none() -> None:
    x = drawn(1, 4, 5, 5)
    bodies = {residual: body_of(residual=residual, act="none") for residual in (True, "block", False)}
    for residual, body in bodies.items():
        first, second = body.units
        between = x + first(x)
        expected = {True: between + second(between), "block": x + second(first(x)), False: second(first(x))}
        torch.testing.assert_close(body(x), expected[residual])


def test_the_tail_of_a_dncnn_which_has_no_residual_learns_no_number_for_one() -> None:
    network = dncnn(binarize=("head", "body", "tail"), unit=UnitSpec(residual="scaled"))
    network(drawn(1, 3, 8, 8)).sum().backward()
    assert [path for path, parameter in network.named_parameters() if parameter.grad is None] == []


def test_alignment_is_a_scaling_of_the_branches() -> None:
    """Alignment k is the network at k = 1 whose biases, thresholds and branches are divided by k, exactly."""
    k = 130.0
    aligned = srresnet(channels=4, align=k).double()
    with torch.no_grad():
        for name, parameter in aligned.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    plain = srresnet(channels=4).double()
    state = aligned.state_dict()
    scaled = {name: value / k if name.endswith(("bias", "threshold")) else value for name, value in state.items()}
    plain.load_state_dict(scaled)
    for aligned_unit, unit in zip(aligned.body.units, plain.body.units, strict=True):
        unit.activation = Divided(aligned_unit.activation, k)
    x = patches().double()
    torch.testing.assert_close(plain(x), aligned(x), rtol=0, atol=1e-12)


class Divided(nn.Module):
    """A unit's activation with its output divided by k."""

    def __init__(self, inner: nn.Module, k: float) -> None:
        super().__init__()
        self.inner, self.k = inner, k

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.inner(x) / self.k
        return scaled


# --- every level has an effect ----------------------------------------------------------------------------------------


def other_levels() -> Iterator[Any]:
    """Every level but the reference, of the factors that say what the network is."""
    for name, factor in FACTORS.items():
        if name in OF_TRAINING:
            continue
        for level in (*factor.levels, *((7.0,) if factor.numeric else ())):
            if level != factor.reference:
                yield pytest.param({name: level}, id=f"{name}={level}")


STEPS, LATE = 4, {"affine": 12}
"""An affine threshold is the reference's until its slopes have moved so far that a sign differs."""


def outcome(levels: dict[str, Level], steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output of a network before the last of these steps of training, and the gradients of that step.

    Adam normalises gradients, which would hide a level that scales them; with a large epsilon it does not.
    """
    network, x = build(levels), patches()
    optimiser = torch.optim.Adam(network.parameters(), 0.01, eps=1e-5)
    for _ in range(steps):
        optimiser.zero_grad()
        output = network(x)
        F.l1_loss(output, torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(5))).backward()
        optimiser.step()
    gradients = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
    return output.detach(), gradients


@functools.cache
def reference_outcome(steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    return outcome({}, steps)


@pytest.mark.parametrize("levels", list(other_levels()))
def test_a_level_changes_the_output_and_a_gradient_against_the_reference(levels: dict[str, Level]) -> None:
    steps = LATE.get(str(*levels.values()), STEPS)
    output, gradients = outcome(levels, steps)
    reference_output, reference_gradients = reference_outcome(steps)
    assert not torch.allclose(output, reference_output, rtol=1e-5, atol=1e-7)
    shared = gradients.keys() & reference_gradients.keys()
    close = (torch.allclose(gradients[name], reference_gradients[name], rtol=1e-4, atol=1e-9) for name in shared)
    assert not all(close)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"residual": False, "act": "after"}, {"residual": False, "act": "inside"}, id="no add"),
        pytest.param({"act": "none", "act_fn": "relu"}, {"act": "none"}, id="no activation"),
        pytest.param(
            {"residual": False, "act": "none", "bn": "out"}, {"residual": False, "act": "none", "bn": "post"}, id="bn"
        ),
    ],
)
def test_cells_that_are_merged_are_the_same_network(one: dict[str, Level], other: dict[str, Level]) -> None:
    """Built as written, not in canonical form: both have the same output in training and in evaluation."""
    outputs = []
    for levels in (one, other):
        asked: dict[str, Any] = {name: level for name, level in REFERENCE.items() if name not in OF_TRAINING} | levels
        layout = {"binarize": asked.pop("binarize"), "align": float(asked.pop("align").replace("auto", "1"))}
        network = srresnet(channels=CHANNELS, blocks=BLOCKS, unit=UnitSpec(**asked), **layout)
        outputs.append((network.train()(patches()).detach(), network.eval()(patches(1)).detach()))
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first, second)


def test_the_impossible_cell_destroys_what_alignment_is_for() -> None:
    """Hardtanh after the add clips features that alignment has made large."""
    with pytest.raises(ImpossibleCell):
        build({"act": "after", "act_fn": "hardtanh"})
    body = body_of(act="after", act_fn="hardtanh")
    assert body(130 * drawn(1, 4, 8, 8)).abs().max() <= 1


# --- initial values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", list(other_levels()))
def test_parameters_that_two_cells_share_have_the_same_initial_values(levels: dict[str, Level]) -> None:
    reference, other = dict(build().named_parameters()), dict(build(levels).named_parameters())
    shared = reference.keys() & other.keys()
    assert len(shared) >= 3
    for name in shared:
        assert torch.equal(reference[name], other[name]), name


def test_initial_values_depend_on_the_seed_and_the_name_alone() -> None:
    shallow, deep, other = srresnet(blocks=1), srresnet(blocks=3), srresnet(blocks=1, seed=1)
    deeper = dict(deep.named_parameters())
    for name, parameter in shallow.named_parameters():
        assert torch.equal(parameter, deeper[name]), name
    assert not torch.equal(shallow.head.weight, other.head.weight)
    assert not torch.equal(shallow.body.units[0].weight, shallow.body.units[1].weight)


def test_weights_are_drawn_as_in_the_released_code() -> None:
    network = srresnet(channels=64)
    fan_in = 64 * 3 * 3
    torch.testing.assert_close(network.body.units[0].weight.abs().max().item(), fan_in**-0.5, rtol=1e-3, atol=0)
    torch.testing.assert_close(network.up.refine.weight.std().item(), 0.1 * (2 / fan_in) ** 0.5, rtol=0.02, atol=0)
    assert network.up.refine.bias is not None
    assert not network.up.refine.bias.any()
