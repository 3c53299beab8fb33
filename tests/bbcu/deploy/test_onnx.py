"""Export to ONNX, and ONNX Runtime: the models compute what torch does."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from bbcu.deploy.onnx import OPSET, colours_of, onnx_runner, runner_of, to_onnx, unpack
from bbcu.deploy.packed import PackedUnit, pack
from tests.harness.builders import dncnn, drawn, perturbed, srresnet, unit
from tests.harness.deployed import newer_networks
from tests.harness.paths import REPOSITORY


def restored(network: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = network(x)
    return output


@pytest.fixture(scope="module")
def binary() -> nn.Module:
    network: nn.Module = perturbed(srresnet(2, 8, binarize=("head", "body"), align=16.0))
    return network


@pytest.fixture(scope="module")
def model(binary: nn.Module) -> bytes:
    """Its export for any height and width."""
    return to_onnx(binary, 12, 16, dynamic=True)


def test_a_binary_network_is_as_in_torch_at_every_size(binary: nn.Module, model: bytes) -> None:
    run = runner_of(model)
    for size in ((12, 16), (9, 7)):
        x = drawn(1, 3, *size)
        torch.testing.assert_close(run(x), restored(binary, x), rtol=1e-4, atol=1e-4)


def test_the_channels_of_a_picture_are_those_of_the_spec_or_of_the_first_convolution() -> None:
    networks = {**newer_networks(), "gray": dncnn(colours=1)}
    assert {name: colours_of(network) for name, network in networks.items()} == {
        name: 1 if name == "gray" else 3 for name in networks
    }
    assert colours_of(nn.Sequential(nn.ReLU(), nn.Conv2d(5, 3, 3))) == 5


def test_its_model_needs_the_stated_opset_and_names_no_file_of_this_computer(model: bytes) -> None:
    parsed = onnx.load_from_string(model)
    assert [(needed.domain, needed.version) for needed in parsed.opset_import] == [("", OPSET)]
    assert [value.name for value in (*parsed.graph.input, *parsed.graph.output)] == ["input", "output"]
    assert str(REPOSITORY).encode() not in model
    assert Path(torch.__file__).parent.as_posix().encode() not in model


def test_its_binary_weights_are_signs(model: bytes) -> None:
    graph = onnx.load_from_string(model).graph
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    kernels = [weights[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    head_and_body, up_and_tail = kernels[:3], kernels[3:]
    assert [set(kernel.ravel()) for kernel in head_and_body] == [{-1.0, 1.0}] * 3
    assert all(len(set(kernel.ravel())) > 2 for kernel in up_and_tail)


def test_a_full_precision_twin_runs_in_onnx_runtime_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    network, x = perturbed(dncnn(binarize=(), colours=1)), drawn(1, 1, 10, 13)
    torch.testing.assert_close(onnx_runner(network, 10, 13)(x), restored(network, x), rtol=1e-4, atol=1e-4)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(srresnet(accumulate=True), id="with a memory of bits"),
        pytest.param(dncnn(colours=1), id="with a bias"),
        pytest.param(srresnet(unit=unit(1, 1, weight="plain").spec), id="without a scale"),
    ],
)
def test_a_float_and_a_packed_network_are_unpacked_to_the_same_that_computes_as_before(network: Any) -> None:
    perturbed(network)
    x = drawn(1, network.spec.colours, 8, 9)
    for form in (network, pack(network)):
        found = unpack(form)
        assert not any(type(module) is PackedUnit for module in found.modules())
        assert torch.equal(restored(found, x), restored(network, x))
