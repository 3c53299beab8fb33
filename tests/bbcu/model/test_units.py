"""The binary unit against its formula for each level of each factor; the bit memory of BAM, standardisation of BTM."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bbcu.model.activations import RPReLU
from bbcu.model.networks import SRResNet
from bbcu.model.parts import Body, NetworkSpec, Standardisation, binary_units
from bbcu.model.specs import UnitSpec
from bbcu.model.surrogates import sign
from bbcu.model.units import AddPerChannel, BinaryUnit, BitMemory
from tests.harness.builders import drawn, perturbed, srresnet, unit

# --- the unit ---------------------------------------------------------------------------------------------------------


def test_the_reference_unit_is_its_formula() -> None:
    built, x = perturbed(unit(4, 4)), drawn(2, 4, 6, 5)
    scale = built.weight.abs().mean((1, 2, 3), keepdim=True)
    z = F.conv2d(torch.sign(x + built.threshold), scale * torch.sign(built.weight), padding=1)
    activation = built.activation
    assert isinstance(activation, RPReLU)
    v, slope = z + activation.shift_in, activation.slope[:, None, None]
    torch.testing.assert_close(built(x, x), x + torch.where(v > 0, v, slope * v) + activation.shift_out)


def test_a_padded_pixel_adds_nothing() -> None:
    built = unit(2, 1, act="none")
    with torch.no_grad():
        built.weight.fill_(0.5)
    y = built(torch.ones(1, 2, 4, 4))[0, 0]
    corner, edge, interior = (2 * taps * 0.5 for taps in (4, 6, 9))
    assert (y[0, 0].item(), y[0, 1].item(), y[1, 1].item()) == (corner, edge, interior)


def test_the_activation_is_before_or_after_the_add_or_absent() -> None:
    x = drawn(1, 3, 5, 5)
    inside, after, none = (unit(3, 3, act=act, act_fn="relu") for act in ("inside", "after", "none"))
    torch.testing.assert_close(inside(x, x), x + F.relu(inside.branch(x)))
    torch.testing.assert_close(after(x, x), F.relu(x + after.branch(x)))
    torch.testing.assert_close(none(x, x), x + none.branch(x))


def assert_normalised(values: Tensor) -> None:
    channels = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.var(1, unbiased=False), torch.ones(len(channels)), atol=1e-3, rtol=0)


def test_a_batchnorm_normalises_what_the_sign_sees_the_branch_or_the_sum() -> None:
    x = drawn(4, 3, 8, 8) + 5
    pre, post, out = (unit(3, 3, bn=bn) for bn in ("pre", "post", "out"))
    assert unit(3, 3).bits(x).min() == 1
    assert pre.bits(x).mean().abs() < 0.1
    assert_normalised(post.branch(x))
    assert_normalised(out(x, x))


def test_the_gradients_of_a_sum_per_channel() -> None:
    x, shift = (drawn(*shape).double().requires_grad_() for shape in ((2, 3, 4, 5), (1, 3, 1, 1)))
    assert torch.autograd.gradcheck(AddPerChannel.apply, (x, shift))


# --- the bit memory of BAM --------------------------------------------------------------------------------------------


def body_with_memory(**levels: Any) -> Body:
    body: Body = perturbed(Body(NetworkSpec(2, 4, 2, UnitSpec(**{"threshold": False, **levels}), accumulate=True)))
    return body


def memory_of(body: Body) -> BitMemory:
    assert body.memory is not None
    return body.memory


@pytest.mark.parametrize("residual", [True, False, "block"])
def test_a_unit_sees_the_weighted_signs_of_all_earlier_units(residual: bool | str) -> None:
    body, x = body_with_memory(residual=residual, act="none"), drawn(1, 4, 6, 6)
    features, before, signs_so_far = x, x, torch.zeros_like(x)
    for index, built in enumerate(body.units):
        signs = sign(features + memory_of(body).share[index] * signs_so_far)
        signs_so_far = signs_so_far + signs
        scale = built.weight.abs().mean((1, 2, 3)).reshape(1, -1, 1, 1)
        branch = scale * F.conv2d(signs, sign(built.weight), padding=1)
        if residual == "block":
            features = branch if index % 2 == 0 else branch + before
            before = features if index % 2 == 1 else before
        else:
            features = branch + features if residual else branch
    torch.testing.assert_close(body(x), features)


def test_a_forward_pass_does_not_see_the_one_before() -> None:
    body, x = body_with_memory(), drawn(1, 4, 6, 6)
    first = body(x)
    body(drawn(2, 4, 5, 7, seed=1))
    assert torch.equal(body(x), first)


def test_the_memory_is_trained_in_each_of_two_passes() -> None:
    """No graph of a pass reaches into the next one, where a backward pass through it would fail."""
    body = body_with_memory()
    for _ in range(2):
        body.zero_grad()
        body(drawn(1, 4, 6, 6)).square().sum().backward()
        gradient = memory_of(body).share.grad
        assert gradient is not None
        # The first unit has no earlier ones.
        assert [bool(value) for value in gradient] == [False, True, True, True]


def test_the_memory_is_the_bodys_and_once_in_the_state() -> None:
    network = srresnet(channels=4, blocks=2, accumulate=True, binarize=("head", "body", "up", "tail"))
    assert [name for name in network.state_dict() if "memory" in name] == ["body.memory.share"]
    assert network.state_dict()["body.memory.share"].tolist() == [1 / 16] * 4
    assert len({id(parameter) for parameter in network.parameters()}) == len(list(network.parameters()))
    with_memory = [built for built in binary_units(network) if built.memory is not None]
    assert with_memory == list(network.body.units)


def test_the_units_of_a_copied_network_use_the_copied_memory() -> None:
    network = srresnet(channels=4, accumulate=True)
    copied = copy.deepcopy(network)
    for built in copied.body.units:
        assert isinstance(built, BinaryUnit)
        assert built.memory is copied.body.memory
        assert built.memory is not network.body.memory


# --- the standardisation of BTM ---------------------------------------------------------------------------------------

MEAN, DEVIATION = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])


def images() -> Tensor:
    return torch.rand(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))


def standardising() -> SRResNet:
    network = srresnet(channels=4, standardise=True)
    assert network.standardisation is not None
    network.standardisation.set(MEAN, DEVIATION)
    return network


def test_a_standardisation_is_the_identity_until_it_is_set_and_is_not_trained() -> None:
    standardisation, x = Standardisation(3), images()
    assert torch.equal(standardisation(x), x)
    assert torch.equal(standardisation.inverse(x), x)
    assert not list(standardisation.parameters())


def test_a_network_standardises_its_input_and_inverts_that_at_the_output() -> None:
    mean, deviation = MEAN[:, None, None], DEVIATION[:, None, None]
    plain = srresnet(channels=4)
    expected = plain((images() - mean) / deviation) * deviation + mean
    torch.testing.assert_close(standardising()(images()), expected)
