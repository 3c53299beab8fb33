"""``python -m bbcu.deploy``: what its commands print, write and refuse."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bbcu.deploy.__main__ import COMMANDS, main
from bbcu.deploy.backends import runner
from bbcu.deploy.file import load, save
from bbcu.deploy.packed import DeployError, PackedUnit, check_input, pack
from bbcu.deploy.sources import as_trained
from bbcu.deploy.verify import compared, described, distinct_values
from bbcu.model.networks import SRResNet
from bbcu.model.parts import NetworkSpec
from bbcu.model.units import BinaryUnit
from tests.harness.builders import drawn, noise, perturbed, srresnet, unit
from tests.harness.builders import save as save_picture
from tests.harness.deployed import facts_of, trial_folder
from tests.harness.paths import REPOSITORY

SMALL = ("channels=8", "blocks=1")


class OwnUnit(BinaryUnit):
    pass


CALLS = itertools.count()


class Unsteady(SRResNet):
    """Its output is another one each time."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + next(CALLS)


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """The status, the lines and the error of a command."""
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    network = perturbed(srresnet(binarize=("body", "up")))
    return trial_folder(tmp_path / "seed0", network, facts_of(network.spec))


@pytest.fixture
def speck(tmp_path: Path) -> str:
    """A small picture."""
    save_picture(noise(12, 10), tmp_path / "speck.png")
    return str(tmp_path / "speck.png")


# --- pack -------------------------------------------------------------------------------------------------------------


def test_pack_writes_the_file_and_prints_its_size_beside_the_checkpoint(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "net.safetensors"
    status, lines, _ = outcome(capsys, "pack", str(trial), "--out", str(out))
    before, after = (trial / "checkpoint.pt").stat().st_size, out.stat().st_size
    weights = 2 * 8 * 8 * 9 + 8 * 32 * 9 + 8 * 8 * 9
    assert status == 0
    assert lines == [
        f"{trial}: {weights:,} binary weights",
        f"checkpoint: {before:,} bytes; packed: {after:,} bytes, {before / after:.1f} times smaller",
        f"written to {out}",
    ]
    x = drawn(1, 3, 6, 5)
    expected = as_trained(perturbed(srresnet(binarize=("body", "up"))))
    assert torch.equal(as_trained(load(out))(x), expected(x))
    status, lines, _ = outcome(capsys, "pack", str(out))
    assert lines == [f"{out}: {weights:,} binary weights", f"packed: {after:,} bytes"]


def test_pack_names_what_is_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = f"network.unit={__name__}.OwnUnit"
    status, lines, message = outcome(capsys, "pack", "bbcu", *SMALL, own, "--out", str(tmp_path / "net"))
    reason = f"{__name__}.OwnUnit may compute something else than a BinaryUnit"
    assert status == 1
    assert lines[1:] == [f"not packed: body.units.{index}: {reason}" for index in (0, 1)]
    assert message == f"bbcu.deploy: the network cannot be saved: body.units.0: {reason}\n"
    assert not (tmp_path / "net").exists()


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_finds_that_torch_computes_the_same(trial: Path, speck: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = outcome(capsys, "verify", str(trial), "--picture", speck, "--backend", "torch")
    assert status == 0
    assert lines[0] == f"{trial}: {speck}, 10 x 12 pixels"
    assert lines[1] == "binary weights: 4,032 in 56 filters, at most 2 values in each"
    assert lines[2].startswith("file: ")
    assert lines[2].endswith("; loaded again it computes the same, byte for byte")
    assert lines[3:] == ["torch: equal to the float network, byte for byte, in 1,440 values"]


def test_verify_takes_a_packed_file_and_a_network_of_gray_pictures(
    tmp_path: Path, speck: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(pack(srresnet()), tmp_path / "net")
    for source in (str(tmp_path / "net"), "bam"):
        gray = ("task=jpeg", *SMALL) if source == "bam" else ()
        status, lines, _ = outcome(capsys, "verify", source, "--picture", speck, "--backend", "torch", *gray)
        assert status == 0
        size = 10 * 12 if gray else 3 * 20 * 24
        assert lines[-1] == f"torch: equal to the float network, byte for byte, in {size:,} values"


def test_verify_without_a_picture_takes_a_photograph(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = outcome(capsys, "verify", "full_precision", "channels=4", "blocks=1", "--backend", "torch")
    assert status == 0
    assert lines[0].endswith("skimage/data/astronaut.png, 128 x 128 pixels")
    assert lines[1] == "binary weights: none"


def test_verify_leaves_out_a_backend_that_cannot_run_a_unit_of_the_users_own(
    speck: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"network.unit={__name__}.OwnUnit"
    status, lines, _ = outcome(capsys, "verify", "bbcu", *SMALL, own, "--picture", speck)
    assert status == 0
    assert lines[-1].startswith("openvino: not run: ")


def test_verify_fails_for_a_backend_that_must_be_exact_and_is_not(
    tmp_path: Path, speck: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Unsteady(NetworkSpec(2, 4, 1, binarize=()))
    folder = trial_folder(tmp_path / "seed0", network, facts_of(network.spec, f"{__name__}.Unsteady"))
    status, lines, message = outcome(capsys, "verify", str(folder), "--picture", speck, "--backend", "torch")
    assert status == 1
    assert lines[2].startswith(f"file: none: the network cannot be saved: {__name__}.Unsteady is a network of your own")
    assert lines[3].startswith("torch: differs from the float network in 1,440 of 1,440 values, ")
    assert message.startswith("bbcu.deploy: ")
    assert message.endswith("torch differs from the float network in 1,440 of 1,440 values\n")


def test_a_comparison_counts_values_levels_and_the_largest_difference() -> None:
    expected = torch.full((1, 3, 2, 2), 0.5)
    output = expected.clone()
    output[0, 0, 0, 0] += 1e-6
    output[0, 1, 0, 0] -= 0.25
    found = compared(output, expected)
    assert (found.is_equal, found.values, found.levels, found.size, found.largest) == (False, 2, 1, 12, 0.25)
    assert described(found).endswith("in 2 of 12 values, 1 of them after rounding to 8 bits, by at most 0.25")
    assert compared(expected, expected.contiguous(memory_format=torch.channels_last)).is_equal
    assert not compared(torch.zeros(1, 1, 1, 1), -torch.zeros(1, 1, 1, 1)).is_equal


@pytest.mark.parametrize(
    ("output", "message"), [(torch.zeros(1, 3, 2, 3), "the output is"), (torch.full((1, 3, 2, 2), torch.nan), "NaN")]
)
def test_outputs_that_cannot_be_compared_are_an_error(output: Tensor, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        compared(output, torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("weight", ["l1", "plain"])
def test_the_distinct_weights_of_each_filter_are_counted(weight: str) -> None:
    one = unit(4, 3, weight=weight)
    with torch.no_grad():
        one.weight[1] = 0.5
    assert distinct_values(one) == distinct_values(PackedUnit.of(one)) == [2, 1, 2]


# --- pictures, and use ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 1, 4, 4), "the network restores pictures of 3 channels, and this one has 1"),
        (torch.zeros(3, 4, 4), r"a picture must be \(batch, .*\) of float32, not \(3, 4, 4\) of float32"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"not \(1, 3, 4, 4\) of uint8"),
    ],
)
def test_a_picture_that_the_network_cannot_take_is_refused(x: Tensor, message: str) -> None:
    run = runner(pack(srresnet()), "torch")
    for check in (run, lambda x: check_input(srresnet(), x)):
        with pytest.raises(DeployError, match=message):
            check(x)
    assert run(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("pack", "nowhere"), 1, "bbcu.deploy: nowhere: there is no such file or folder"),
        (("pack", "bbcu", "bn=before"), 2, "bbcu.deploy: bn: unknown level 'before'"),
        (("verify", "bbcu", "--picture", "nowhere.png", *SMALL), 1, "bbcu.deploy: nowhere.png"),
    ],
)
def test_a_wrong_use_gets_one_line(
    arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, lines, error = outcome(capsys, *arguments)
    assert (found, lines) == (status, [])
    assert error.startswith(message)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("pack",), "required: CELL"),
        (("pack", "bbcu", "--fast", "bn=pre"), "arguments: --fast"),
    ],
)
def test_a_wrong_option_gets_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_help_lists_every_command_and_imports_no_torch() -> None:
    probe = "import sys, runpy, atexit; atexit.register(lambda: print('torch' in sys.modules)); sys.argv = ['', '-h']\n"
    probe += "runpy.run_module('bbcu.deploy', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(f"    {command} " in done.stdout for command in COMMANDS)
