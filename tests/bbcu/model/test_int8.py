"""Convolutions of signs in int8 and in single bits: equal to floating point, forward, backward and in trainings."""

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.compiled import cpp_compiler
from bbcu.data.patches import PatchSampler
from bbcu.deploy import native
from bbcu.model import int8
from bbcu.model.int8 import sign_conv2d
from bbcu.model.methods import METHODS
from bbcu.model.networks import SRResNet
from bbcu.model.parts import binary_units
from bbcu.model.specs import UnitSpec
from bbcu.training.acceleration import NO_SIGNS, convolve_signs, convolves_signs, plan_for
from bbcu.training.evaluation import restore
from bbcu.training.loop import Training
from bbcu.training.settings import TrainSettings
from tests.harness.builders import blobs, dncnn, drawn, noise, of_method, srresnet
from tests.harness.deployed import newer_networks

CPU = torch.device("cpu")
SETTINGS = TrainSettings(steps=6, batch=2, patch=8, lr=2e-3, schedule="cosine", precision="fp32", compile=False)

needs_int8 = pytest.mark.skipif(int8.missing_for_int8(CPU) is not None, reason="torch has no int8 convolution")
needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
WAYS = [pytest.param("int8", marks=needs_int8), pytest.param("native", marks=needs_compiler)]
CONVOLUTIONS = {"int8": sign_conv2d, "native": native.sign_conv2d}


def signs(*shape: int, seed: int = 0) -> Tensor:
    """Ones and minus ones."""
    return drawn(*shape, seed=seed).sign()


# --- one convolution --------------------------------------------------------------------------------------------------


SIZES = [(2, 64, 64, 9, 7), (1, 3, 12, 6, 6), (3, 20, 33, 1, 5), (2, 130, 8, 4, 4), (1, 1, 1, 1, 1)]
SIDES = {"int8": (3, 3, 3, 5, 1), "native": (3, 3, 3, 3, 3)}


@pytest.mark.parametrize("lowered", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("way", "batch", "channels", "outputs", "height", "width", "side"),
    [
        pytest.param(way, *size, side, marks=mark)
        for way, mark in (("int8", needs_int8), ("native", needs_compiler))
        for size, side in zip(SIZES, SIDES[way], strict=True)
    ],
)
def test_the_convolution_and_its_gradients_equal_those_in_floating_point(
    way: str, batch: int, channels: int, outputs: int, height: int, width: int, side: int, lowered: bool
) -> None:
    results: list[list[Tensor]] = []
    for convolve in (CONVOLUTIONS[way], functools.partial(F.conv2d, padding=side // 2)):
        x, weight = (
            tensor.contiguous(memory_format=torch.channels_last).requires_grad_()
            for tensor in (signs(batch, channels, height, width), signs(outputs, channels, side, side, seed=1))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered, cache_enabled=False):
            y = convolve(x, weight)
        (y * drawn(*y.shape, seed=2)).sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        results.append([y.detach(), x.grad, weight.grad])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=needs_int8), pytest.param(torch.float64, id="left to F.conv2d")]
)
def test_a_zero_among_the_signs_adds_nothing(dtype: torch.dtype) -> None:
    x, weight = signs(1, 4, 5, 5).to(dtype), signs(2, 4, 3, 3, seed=1).to(dtype)
    x[:, 1], weight[0] = 0, 0
    assert torch.equal(sign_conv2d(x, weight), F.conv2d(x, weight, padding=1))


@needs_compiler
def test_a_filter_of_zeros_adds_nothing_in_single_bits_either() -> None:
    """One with latent weights of zero, which have no scale."""
    x, weight = signs(1, 4, 5, 5), signs(2, 4, 3, 3, seed=1)
    weight[0] = 0
    assert torch.equal(native.sign_conv2d(x, weight), F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("way", WAYS)
def test_the_operator_is_what_it_declares_to_the_compiler(way: str) -> None:
    """opcheck raises if not."""
    x, weight = signs(2, 16, 6, 5).to(torch.int8), signs(8, 16, 3, 3).to(torch.int8)
    x = x.contiguous(memory_format=torch.channels_last)
    if way == "int8":
        torch.library.opcheck(int8.int8_conv2d, (x, weight, torch.bfloat16))
    else:
        torch.library.opcheck(native.packed_conv2d, (x, weight))


# --- whole networks ---------------------------------------------------------------------------------------------------


CELLS: dict[str, Callable[[], nn.Module]] = {
    "everywhere": lambda: srresnet(binarize=("head", "body", "up", "tail")),
    "double filter": lambda: srresnet(channels=12, unit=UnitSpec(residual=False, act="none", threshold=False)),
    "dncnn": lambda: dncnn(blocks=2),
    **{name: functools.partial(of_method, name) for name, method in METHODS.items() if method.all_levels["binarize"]},
}


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    state = found.state_dict()
    for key, value in expected.state_dict().items():
        assert torch.equal(state[key], value), key


def trained(network: nn.Module, settings: TrainSettings) -> Training:
    scale = 2 if isinstance(network, SRResNet) else 1
    sampler = PatchSampler([blobs(0, scale), blobs(1, scale)], scale, settings.patch, settings.batch, seed=0)
    training = Training(network, sampler, settings, CPU)
    training.run(lambda report: None)
    return training


def settings_of(way: str, **changes: Any) -> TrainSettings:
    return dataclasses.replace(SETTINGS, int8=way == "int8", native=way == "native", **changes)


@functools.cache
def trained_in_floats(name: str, precision: str) -> nn.Module:
    training = trained(CELLS[name](), settings_of("float", precision=precision))
    assert training.plan.signs == "float"
    return training.network


@pytest.mark.parametrize(
    ("precision", "way"),
    [
        pytest.param("fp32", "int8", marks=needs_int8),
        pytest.param("bf16", "int8", marks=needs_int8),
        pytest.param("fp32", "native", marks=needs_compiler),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_a_training_equals_the_one_in_floating_point(name: str, precision: str, way: str) -> None:
    plain, fast = trained_in_floats(name, precision), CELLS[name]()
    gains = any(map(convolves_signs, binary_units(fast)))
    assert trained(fast, settings_of(way, precision=precision)).plan.signs == (way if gains else "float")
    assert_same_state(fast, plain)
    picture = noise(10, 9, seed=3)
    assert np.array_equal(restore(fast, picture, CPU), restore(plain, picture, CPU))


@needs_compiler
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        pytest.param(srresnet(unit=UnitSpec(weight="adabin")), NO_SIGNS, id="weights of two values"),
        pytest.param(srresnet(unit=UnitSpec(weight="srb")), NO_SIGNS, id="weights of two bits"),
        pytest.param(srresnet(unit=UnitSpec(threshold="adaptive")), NO_SIGNS, id="activations of two values"),
        pytest.param(srresnet(unit=UnitSpec(weight="sign")), "as requested", id="signs without a scale"),
        pytest.param(srresnet(unit=UnitSpec(threshold="elastic")), "as requested", id="signs with a factor"),
        pytest.param(newer_networks()["rdn"], "as requested; in 7 of 9 units", id="units of 1x1 too"),
    ],
)
def test_the_log_says_how_many_units_gain(network: nn.Module, reason: str) -> None:
    plan = plan_for(network, CPU, settings_of("native"))
    assert plan.signs == ("float" if reason == NO_SIGNS else "native")
    assert plan.reasons[-1].endswith(f": {reason}")


@needs_int8
@needs_compiler
@pytest.mark.slow
def test_so_does_a_compiled_one() -> None:
    plain, fast = (srresnet() for _ in range(2))
    trained(plain, settings_of("float", precision="bf16", compile=True))
    trained(fast, settings_of("int8", precision="bf16", compile=True))
    assert_same_state(fast, plain)


@pytest.mark.parametrize("way", WAYS)
def test_torchs_compiler_takes_in_a_unit_and_its_gradients_whole(way: str) -> None:
    """Without the last stage, which writes C++: what it is given computes the same."""
    network = srresnet()
    convolve_signs(network, way)
    unit, x = binary_units(network)[0], drawn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    results: list[list[Tensor]] = []
    for forward in (unit, torch.compile(unit, backend="aot_eager", fullgraph=True)):
        unit.zero_grad()
        y = forward(x, x)
        (y * drawn(*y.shape, seed=1)).sum().backward()
        results.append([y.detach(), *(parameter.grad for parameter in unit.parameters() if parameter.grad is not None)])
    assert len(results[0]) == 1 + len(list(unit.parameters()))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_copies_of_a_network_convolve_as_it_does() -> None:
    """A deep copy, and one that went through a file, such as an evaluation in another process gets."""
    network = srresnet()
    convolve_signs(network, "native")
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert {unit.sign_convolution for unit in binary_units(copied)} == {native.sign_conv2d}


@pytest.mark.parametrize("way", WAYS)
def test_a_unit_calls_no_other_convolution(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = srresnet(blocks=2).eval()
    convolve_signs(network, way)
    calls: list[int] = []
    monkeypatch.setattr("bbcu.model.units.F.conv2d", lambda *args, **kwargs: calls.append(1))
    unit = binary_units(network)[0]
    assert unit(drawn(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    assert not calls
