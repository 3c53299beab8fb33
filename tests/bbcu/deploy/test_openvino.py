"""The OpenVINO backend against torch, on values on which both are exact, so that no sign can differ by rounding."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bbcu.deploy import openvino
from bbcu.deploy.backends import runner
from bbcu.deploy.packed import DeployError, pack
from bbcu.deploy.sources import twin_of
from bbcu.model.parts import binary_units
from bbcu.model.specs import UnitSpec
from bbcu.model.units import BinaryUnit, UnitShape
from tests.harness.builders import dncnn, drawn, perturbed, srresnet, unit
from tests.harness.deployed import newer_networks

STEPS = 16
"""Every value is a multiple of 1/16: float32 then adds and multiplies them, a few times, without rounding."""


def exact(network: nn.Module) -> nn.Module:
    """A packed network that no parameter of which is as it starts, and all of which are multiples of 1/16."""
    packed = pack(perturbed(network))
    with torch.no_grad():
        for tensor in (*packed.parameters(), *packed.buffers()):
            if tensor.is_floating_point():
                tensor.copy_((tensor * STEPS).round() / STEPS)
    return packed


def pixels(*shape: int) -> Tensor:
    """Multiples of 1/16 in [-1, 1): many equal a threshold's negative."""
    return torch.randint(-STEPS, STEPS, shape, generator=torch.Generator().manual_seed(0)) / STEPS


def assert_as_torch(packed: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        expected = packed(x)
    torch.testing.assert_close(runner(packed, "openvino")(x), expected, rtol=1e-5, atol=1e-5)


NEWER: list[dict[str, Any]] = [
    *({"threshold": name} for name in ("affine", "elastic", "adaptive", "dynamic")),
    *({"rescale": name} for name in ("both", "squeeze", "statistics", "box")),
    {"threshold": "dynamic", "rescale": "both"},
    *({"weight": name} for name in ("reste", "recu", "srb", "adabin")),
    {"act_fn": "leaky", "residual": "scaled"},
    {"act_fn": "maxout", "bn": "branch"},
]


class Alone(nn.Module):
    """A unit as a network, with an identity around it or without."""

    def __init__(self, built: BinaryUnit, *, residual: bool = True) -> None:
        super().__init__()
        self.unit, self.residual = built, residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.unit(x, x if self.residual else None)
        return out


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param({}, id="reference"),
        pytest.param({"residual": False}, id="no residual"),
        pytest.param({"bn": "pre"}, id="bn=pre"),
        pytest.param({"bn": "post"}, id="bn=post"),
        pytest.param({"bn": "out"}, id="bn=out"),
        pytest.param({"act": "after"}, id="act=after"),
        pytest.param({"act": "none"}, id="act=none"),
        pytest.param({"act_fn": "prelu"}, id="act_fn=prelu"),
        pytest.param({"act_fn": "relu"}, id="act_fn=relu"),
        pytest.param({"act_fn": "hardtanh"}, id="act_fn=hardtanh"),
        pytest.param({"threshold": False}, id="no threshold"),
        pytest.param({"weight": "plain"}, id="no scale"),
        pytest.param({"weight": "irnet"}, id="weight=irnet"),
        *(
            pytest.param(levels, id=",".join(f"{factor}={level}" for factor, level in levels.items()))
            for levels in NEWER
        ),
    ],
)
def test_a_unit_of_each_level_is_as_in_torch(levels: dict[str, Any]) -> None:
    assert_as_torch(exact(Alone(unit(32, 32, **levels), residual=levels.get("residual", True))), pixels(1, 32, 7, 10))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(srresnet(2, 32, binarize=("head", "body", "up", "tail"), align=64.0), id="x2, all parts binary"),
        pytest.param(srresnet(3, 32, binarize=("body", "up"), align=64.0), id="x3, body and upsampler"),
        pytest.param(srresnet(4, 32, binarize=("body", "up")), id="x4, without alignment"),
        pytest.param(srresnet(2, 32, binarize=("body",), standardise=True), id="standardised"),
        pytest.param(srresnet(2, 32, blocks=2, accumulate=True), id="with a memory of bits"),
        pytest.param(srresnet(4, 32, binarize=()), id="x4, full precision"),
        pytest.param(dncnn(32, binarize=("head", "body", "tail")), id="DnCNN, all parts binary"),
        pytest.param(dncnn(32, colours=1), id="DnCNN, gray"),
        pytest.param(dncnn(32, binarize=()), id="DnCNN, full precision"),
        *(pytest.param(network, id=name) for name, network in newer_networks().items()),
        pytest.param(twin_of(newer_networks()["drunet"]), id="DRUNet, full precision"),
    ],
)
def test_a_network_is_as_in_torch(network: Any) -> None:
    assert_as_torch(exact(network), pixels(1, network.spec.colours, 9, 12))


def test_every_binary_convolution_is_one_of_bits() -> None:
    packed = exact(srresnet(2, 32, blocks=2, binarize=("body", "up", "tail")))
    compiled = openvino.compile_for(openvino.translatable(packed), torch.Size([1, 3, 8, 8]), 1)
    names = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    assert names.count("BinaryConvolution") == len(binary_units(packed))


def test_a_runner_takes_inputs_of_any_size_and_keeps_none_of_its_outputs() -> None:
    packed = exact(dncnn(32))
    run, sizes = runner(packed, "openvino"), ((6, 8), (9, 5), (6, 8))
    outputs = [run(pixels(1, 3, *size) * (place + 1)) for place, size in enumerate(sizes)]
    for place, (size, output) in enumerate(zip(sizes, outputs, strict=True)):
        with torch.inference_mode():
            torch.testing.assert_close(output, packed(pixels(1, 3, *size) * (place + 1)))


def test_openvino_is_imported_without_its_telemetry() -> None:
    openvino.library()
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]


class OwnUnit(BinaryUnit):
    """A unit of a user's."""


def test_a_unit_that_is_not_packed_is_refused_by_name() -> None:
    network = srresnet()
    network.tail = OwnUnit(UnitShape(8, 3), UnitSpec())
    wanted = r"^OpenVINO runs packed units only, and tail is not packed: .*OwnUnit may compute"
    with pytest.raises(DeployError, match=wanted):
        runner(pack(network), "openvino")


class Softmax(nn.Module):
    """A network with a function that the package's own do not call."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, 1)


def test_a_function_without_a_translation_is_refused_by_name() -> None:
    with pytest.raises(DeployError, match=r"backend openvino: Softmax is not translated: .*softmax"):
        runner(Softmax(), "openvino")(drawn(1, 3, 4, 4))
