"""``python -m bbcu.deploy export``: what it writes, what it says of it, and which errors it takes for rounding."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bbcu.deploy.__main__ import main
from bbcu.deploy.export import DEFAULT, export, photograph, root_mean_square, tolerance
from bbcu.deploy.onnx import runner_of
from bbcu.deploy.packed import DeployError
from bbcu.deploy.sizes import Size, size_in
from bbcu.deploy.sources import find, twin_of
from bbcu.deploy.verify import output_of
from bbcu.model.networks import SRResNet
from bbcu.model.specs import UnitSpec
from tests.harness.builders import drawn, srresnet

SMALL = ("task=denoise", "channels=8", "blocks=1")


def test_a_method_and_its_twin_are_written_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "net.onnx"
    assert main(("export", "bbcu", *SMALL, "--twin", "--out", str(out))) == 0
    network = find("bbcu", SMALL).network
    files = {out: network, out.with_name("net-twin.onnx"): twin_of(network)}
    assert sorted(out.parent.iterdir()) == sorted(files)
    for path, written in files.items():
        x = drawn(1, 3, 9, 11)
        torch.testing.assert_close(runner_of(path.read_bytes())(x), output_of(written, x), rtol=1e-4, atol=1e-4)
    lines = capsys.readouterr().out.splitlines()
    sizes = [f"{path.stat().st_size:,} bytes, for pictures of any size" for path in files]
    assert lines[0] == f"bbcu task=denoise channels=8 blocks=1: ONNX, opset 20, {sizes[0]}"
    assert lines[1].startswith("ONNX Runtime, 128 x 128 pixels: ")
    assert lines[2] == f"written to {out}"
    assert lines[3] == f"the full-precision twin of bbcu task=denoise channels=8 blocks=1: ONNX, opset 20, {sizes[1]}"


class Treacherous(SRResNet):
    """An export gets a tenth less of what the network adds to its skip connection."""

    def forward(self, x: Tensor) -> Tensor:
        output, skip = super().forward(x), self.skip(x)
        return skip + 0.9 * (output - skip) if torch.compiler.is_compiling() else output


def test_a_network_that_computes_otherwise_in_onnx_is_not_written(tmp_path: Path) -> None:
    network = Treacherous(srresnet().spec)
    network.load_state_dict(srresnet().state_dict())
    with pytest.raises(DeployError, match="net: ONNX Runtime computes something else than torch: "):
        export("net", network, Size(12, 16), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"align": 16.0}, id="align"),
        pytest.param({"unit": UnitSpec(residual=False)}, id="residual"),
        pytest.param({"unit": UnitSpec(act="after")}, id="act"),
        pytest.param({"unit": UnitSpec(act_fn="relu")}, id="act_fn"),
        pytest.param({"unit": UnitSpec(weight="irnet")}, id="weight"),
    ],
)
def test_a_network_with_another_level_is_not_taken_for_rounding(changed: dict[str, Any]) -> None:
    network, other, x = srresnet(blocks=2), srresnet(blocks=2, **changed), photograph(Size(24, 24), 3)
    expected = output_of(network, x)
    assert root_mean_square(output_of(other, x) - expected) > tolerance(network, x, expected)


class OfOneSize(nn.Module):
    """A network that adds a picture of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Parameter(photograph(DEFAULT, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.picture


def test_a_network_of_one_size_is_exported_for_that_size_only(capsys: pytest.CaptureFixture[str]) -> None:
    export("net", OfOneSize(), None, None)
    (first, *_) = capsys.readouterr().out.splitlines()
    reason = "since for any size torch cannot export OfOneSize to ONNX: "
    assert f"for pictures of 128 x 128 pixels only, {reason}" in first


def test_a_photograph_is_repeated_beyond_its_borders() -> None:
    small, large = photograph(Size(4, 6), 3), photograph(Size(516, 518), 1)
    assert (small.shape, large.shape) == ((1, 3, 4, 6), (1, 1, 516, 518))
    assert torch.equal(large[..., :4, :6], large[..., 512:, 512:])
    assert len(set(small.flatten().tolist())) > 20


@pytest.mark.parametrize("text", ["320", "0x4", "4x-1", "4097x4", "4 x 4"])
def test_a_size_is_two_numbers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be WIDTHxHEIGHT, as 320x180, each from 1 to 4096"):
        size_in(text)
    assert size_in("320x180") == Size(height=180, width=320)
