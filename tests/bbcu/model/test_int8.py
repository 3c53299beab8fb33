"""Convolutions of signs in int8: equal to those in floating point, forward, backward and in whole trainings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbcu.data.patches import PatchSampler
from bbcu.model import int8
from bbcu.model.int8 import sign_conv2d
from bbcu.model.methods import METHODS
from bbcu.model.networks import SRResNet, binary_units
from bbcu.model.specs import UnitSpec
from bbcu.training.acceleration import cpp_compiler, enable_int8, plan_for, resolve_int8
from bbcu.training.evaluation import restore
from bbcu.training.loop import Training
from bbcu.training.settings import TrainSettings
from tests.harness.builders import blobs, dncnn, drawn, noise, of_method, srresnet

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HAS_VNNI = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))
SETTINGS = TrainSettings(steps=6, batch=2, patch=8, lr=2e-3, schedule="cosine", precision="fp32", compile=False)

needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason="this cpu has no VNNI")


def signs(*shape: int, seed: int = 0) -> Tensor:
    """Ones and minus ones."""
    return drawn(*shape, seed=seed).sign()


@needs_vnni
def test_a_machine_with_vnni_convolves_in_int8() -> None:
    assert int8.missing_for_int8(CPU) is None


# --- one convolution --------------------------------------------------------------------------------------------------


@needs_vnni
@pytest.mark.parametrize("lowered", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "height", "width", "side"),
    [(2, 64, 64, 9, 7, 3), (1, 3, 12, 6, 6, 3), (3, 20, 33, 1, 5, 3), (2, 130, 8, 4, 4, 5), (1, 1, 1, 1, 1, 1)],
)
def test_the_convolution_and_its_gradients_equal_those_in_floating_point(
    batch: int, channels: int, outputs: int, height: int, width: int, side: int, lowered: bool
) -> None:
    results: list[list[Tensor]] = []
    for convolve in (sign_conv2d, functools.partial(F.conv2d, padding=side // 2)):
        x = signs(batch, channels, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = signs(outputs, channels, side, side, seed=1).requires_grad_()
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
    "dtype", [pytest.param(torch.float32, marks=needs_vnni), pytest.param(torch.float64, id="left to F.conv2d")]
)
def test_a_zero_among_the_signs_adds_nothing(dtype: torch.dtype) -> None:
    """As in a filter with latent weights of zero."""
    x, weight = signs(1, 4, 5, 5).to(dtype), signs(2, 4, 3, 3, seed=1).to(dtype)
    x[:, 1], weight[0] = 0, 0
    assert torch.equal(sign_conv2d(x, weight), F.conv2d(x, weight, padding=1))


@needs_vnni
def test_the_operator_is_what_it_declares_to_the_compiler() -> None:
    """opcheck raises if not."""
    inputs = (signs(2, 16, 6, 5) + int8.ZERO_POINT).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = signs(8, 16, 3, 3).to(torch.int8)
    torch.library.opcheck(int8.int8_conv2d, (inputs, weight, torch.bfloat16))


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


@needs_vnni
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CELLS)
def test_a_training_in_int8_equals_the_one_in_floating_point(name: str, precision: str) -> None:
    plain, fast = CELLS[name](), CELLS[name]()
    settings = dataclasses.replace(SETTINGS, precision=precision)
    assert not trained(plain, dataclasses.replace(settings, int8=False)).plan.in_bytes
    assert trained(fast, dataclasses.replace(settings, int8=True)).plan.in_bytes
    assert any(unit.use_int8 for unit in binary_units(fast))
    assert_same_state(fast, plain)
    picture = noise(10, 9, seed=3)
    assert np.array_equal(restore(fast, picture, CPU), restore(plain, picture, CPU))


@needs_vnni
@pytest.mark.slow
@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_so_does_a_compiled_one() -> None:
    settings = dataclasses.replace(SETTINGS, precision="bf16", compile=True)
    plain, fast = (srresnet() for _ in range(2))
    trained(plain, dataclasses.replace(settings, int8=False))
    trained(fast, dataclasses.replace(settings, int8=True))
    assert_same_state(fast, plain)


@needs_vnni
def test_a_unit_in_int8_calls_no_other_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    network = srresnet(blocks=2).eval()
    enable_int8(network)
    calls: list[int] = []
    monkeypatch.setattr("bbcu.model.units.F.conv2d", lambda *args, **kwargs: calls.append(1))
    unit = binary_units(network)[0]
    assert unit(drawn(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    assert not calls


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "precision", "units", "own_parts", "missing", "amx", "decided", "reason"),
    [
        ("auto", "fp32", 32, [], None, False, True, "exact"),
        ("auto", "bf16", 32, [], None, False, True, "exact"),
        ("auto", "bf16", 32, [], None, True, False, "AMX"),
        ("auto", "fp32", 32, [], None, True, True, "exact"),
        (True, "bf16", 32, [], None, True, True, "as requested"),
        ("auto", "fp32", 32, ["Ternary"], None, False, False, "Ternary may return other signs"),
        (True, "fp32", 32, ["Ternary"], None, False, True, "as requested"),
        (True, "fp32", 32, [], "this cpu has no VNNI", False, False, "no VNNI"),
        (True, "fp32", 0, [], None, False, False, "no binary units"),
        (False, "fp32", 32, [], None, False, False, "as requested"),
    ],
)
def test_int8_is_used_if_the_result_is_the_same_and_known_to_be_faster(
    wanted: bool | str,
    precision: str,
    units: int,
    own_parts: list[str],
    missing: str | None,
    amx: bool,
    decided: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    found, why = resolve_int8(wanted, precision, units, own_parts, missing)
    assert found == decided
    assert reason in why


def test_another_device_than_a_cpu_convolves_in_floating_point(monkeypatch: pytest.MonkeyPatch) -> None:
    assert int8.missing_for_int8(GPU) == "int8 convolutions need a CPU"
    assert not plan_for(srresnet(), GPU, dataclasses.replace(SETTINGS, int8=True)).in_bytes
    monkeypatch.delattr(int8, "int8_conv2d")
    network = srresnet().to("meta")
    enable_int8(network)
    assert network(torch.empty(1, 3, 4, 4, device="meta")).shape == (1, 3, 8, 8)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Allow a test to imitate another machine, and restore what is cached about this one."""
    int8.missing_for_int8.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    int8.missing_for_int8.cache_clear()


def test_a_machine_without_vnni_convolves_in_floating_point(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert int8.missing_for_int8(CPU) == "this cpu has no VNNI"
    plan = plan_for(srresnet(), CPU, dataclasses.replace(SETTINGS, int8=True))
    assert not plan.in_bytes
    assert plan.reasons[-1] == "binary convolutions in floating point: this cpu has no VNNI"


def unsupported(signs: Tensor, weight: Tensor) -> Tensor:
    raise NotImplementedError("no such engine\nwith a long explanation")


@pytest.mark.parametrize(
    ("convolution", "reason"),
    [
        pytest.param(unsupported, "torch has no int8 convolution for it: no such engine", id="unsupported"),
        pytest.param(
            lambda x, weight: F.conv2d(x, weight, padding=1) + 1,
            "torch's int8 convolution returns wrong numbers",
            id="wrong",
        ),
    ],
)
def test_a_torch_that_cannot_or_is_wrong_is_not_used(
    convolution: Any, reason: str, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    machine.setattr(int8, "sign_conv2d", convolution)
    assert int8.missing_for_int8(CPU) == reason
