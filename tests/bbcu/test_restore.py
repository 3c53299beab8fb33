"""``python -m bbcu.restore``: what it writes, prints and refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bbcu.data.images import Pixels, crop_to_multiple, downscale, read_upright
from bbcu.data.tasks import SuperResolution
from bbcu.deploy.file import save as save_packed
from bbcu.deploy.packed import pack
from bbcu.deploy.restoring import Restorer
from bbcu.model.checkpoints import from_released_state, to_released_state
from bbcu.model.networks import build
from bbcu.model.parts import NetworkSpec
from bbcu.restore import main
from bbcu.training.evaluation import mean_score
from tests.harness.builders import dncnn, noise, perturbed, save, soft_blobs, srresnet
from tests.harness.deployed import facts_of, trial_folder

X2 = perturbed(srresnet())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a trained cell and two pictures of odd sizes beside their truths."""
    trial_folder(tmp_path / "cell" / "seed0", X2, facts_of(X2.spec))
    for seed, name in enumerate(("one", "two")):
        truth = soft_blobs(seed, 31 + seed, 27)
        save(truth, tmp_path / "truths" / f"{name}.png")
        save(downscale(crop_to_multiple(truth, 2), 2), tmp_path / "low" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """The status, the lines and the error of a command."""
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def pixels_of(path: Path) -> Pixels:
    return np.asarray(Image.open(path))


def released(path: Path, network: nn.Module) -> Path:
    torch.save(to_released_state(network), path)
    return path


def test_a_folder_is_restored_by_a_cell(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, error = outcome(capsys, "low", "--from", "cel")
    assert (status, error) == (0, "")
    assert lines == [
        "low/one.png -> restored/one.png: 26 x 30 pixels",
        "low/two.png -> restored/two.png: 26 x 32 pixels",
    ]
    for name in ("one", "two"):
        np.testing.assert_array_equal(
            pixels_of(place / "restored" / f"{name}.png"), Restorer(X2)(pixels_of(place / "low" / f"{name}.png"))
        )


def test_each_source_restores_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_packed(pack(X2), place / "net.packed")
    torch.save({"params": to_released_state(X2)}, place / "net.pth")
    cell, align = place / "cell", str(X2.spec.align)
    expected = Restorer(X2)(pixels_of(place / "low" / "one.png"))
    sources = [[str(cell / "seed0")], [str(cell / "seed0" / "checkpoint.pt")], ["net.packed"]]
    for source in [*sources, ["net.pth", "--align", align]]:
        status, _, error = outcome(capsys, "low/one.png", "--from", *source, "--overwrite", "--tile", "7")
        assert (status, error) == (0, "")
        np.testing.assert_array_equal(pixels_of(place / "restored" / "one.png"), expected)


def test_the_alignment_of_a_released_checkpoint_matters(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released(place / "net.pth", X2)
    for align in ("2", "130"):
        outcome(capsys, "low/one.png", "--from", "net.pth", "--align", align, "--out", align)
        network = from_released_state(to_released_state(X2), float(align))
        expected = Restorer(network)(pixels_of(place / "low" / "one.png"))
        np.testing.assert_array_equal(pixels_of(place / align / "one.png"), expected)
    outcome(capsys, "low/one.png", "--from", "net.pth")
    np.testing.assert_array_equal(pixels_of(place / "restored" / "one.png"), pixels_of(place / "130" / "one.png"))
    assert not np.array_equal(pixels_of(place / "2" / "one.png"), pixels_of(place / "130" / "one.png"))
    status, _, error = outcome(capsys, "low/one.png", "--from", "cell", "--align", "2")
    assert status == 2
    recorded = "cell/seed0 has its alignment recorded; only a released checkpoint has not"
    assert error == f"bbcu.restore: align=2.0: {recorded}\n"


def test_scores_are_those_of_the_task_beside_the_baseline(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, error = outcome(capsys, "low", "--from", "cell", "--truth", "truths")
    assert (status, error) == (0, "")
    task, scores, simple = SuperResolution(2), {}, {}
    for name in ("one", "two"):
        low, truth = (pixels_of(place / folder / f"{name}.png") for folder in ("low", "truths"))
        truth = crop_to_multiple(truth, 2)
        scores[name], simple[name] = task.score(Restorer(X2)(low), truth), task.score(task.baseline(low), truth)
    for line, ours, baseline in zip(
        lines,
        [*scores.values(), mean_score(scores)],
        [*simple.values(), mean_score(simple)],
        strict=True,
    ):
        assert line.partition("PSNR")[2] == (
            f" {ours.psnr_db:.2f} dB, SSIM {ours.ssim:.4f}; bicubic {baseline.psnr_db:.2f} dB, {baseline.ssim:.4f}; "
            f"gain {ours.psnr_db - baseline.psnr_db:+.2f} dB"
        )
    assert lines[-1].startswith("mean of 2: PSNR")


@pytest.mark.parametrize("colours", [3, 1], ids=["denoiser", "gray"])
def test_a_network_of_the_same_size_is_scored_beside_its_input(
    colours: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released(place / "net.pth", perturbed(dncnn(colours=colours)))
    truth = pixels_of(place / "truths" / "one.png")
    save((truth // 2 + 40).astype(np.uint8), place / "noisy.png")
    _, lines, _ = outcome(capsys, "noisy.png", "--from", "net.pth", "--truth", "truths/one.png")
    assert "; identity " in lines[0]
    _, lines, _ = outcome(capsys, "truths/one.png", "--from", "net.pth", "--truth", "truths/one.png")
    assert "identity inf dB, 1.0000; gain -inf dB" in lines[0]


def test_a_camera_s_picture_comes_out_upright_with_alpha_and_profile(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, exif, profile = noise(9, 14), Image.Exif(), bytes(16) + b"RGB " + bytes(9)
    exif[0x0112] = 6
    with_alpha = np.concatenate([stored, noise(9, 14, seed=1)[..., :1]], axis=2)
    Image.fromarray(with_alpha).save(place / "camera.png", exif=exif, icc_profile=profile)
    outcome(capsys, "camera.png", "--from", "cell")
    found = read_upright(place / "restored" / "camera.png")
    upright = np.ascontiguousarray(np.rot90(with_alpha, -1))
    assert found.alpha is not None
    np.testing.assert_array_equal(np.concatenate([found.colours, found.alpha], axis=2), Restorer(X2)(upright))
    assert found.profile == profile


def test_a_result_has_nothing_of_what_the_camera_noted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.fromarray(noise(9, 14)).save(place / "camera.jpg", exif=exif, comment=b"a comment", icc_profile=b"no profile")
    outcome(capsys, "camera.jpg", "--from", "cell")
    with Image.open(place / "restored" / "camera.png") as image:
        image.load()
        assert not image.info
        assert not image.getexif()


def test_nothing_is_written_if_one_picture_cannot_be_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "low" / "zero.png").touch()
    status, lines, error = outcome(capsys, "low", "--from", "cell")
    assert (status, lines, error) == (1, [], "bbcu.restore: low/zero.png: is an empty file\n")
    assert not (place / "restored").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["missing.png", "--from", "cell"], 1, "missing.png: does not exist"),
        (["low", "--from", "nothing"], 1, "nothing: there is no such file or folder; it must be the folder of a cell"),
        (["low", "--from", "bbcu"], 1, "bbcu: there is no such file or folder"),
        (["low", "--from", "low/one.png"], 1, "low/one.png: "),
        (["low", "--from", "cell", "--device", "tpu"], 1, "device=tpu: must be auto, cpu, cuda"),
        (["low", "--from", "cell", "--truth", "low"], 1, "low/one.png: the picture is 13 x 15 pixels; "),
        (["low", "--from", "cell", "--out", "low/one.png"], 1, "low/one.png: cannot be made: File exists"),
        (["low", "low/one.png", "--from", "cell"], 1, "restored/one.png: 2 pictures would be written to it"),
        (["loop.png", "--from", "cell"], 1, "loop.png: cannot be read: Too many levels of symbolic links"),
        (["low/one.png", "--from", "cell", "--truth", "loop.png"], 1, "loop.png: cannot be read: Too many levels"),
    ],
    ids=["picture", "source", "method", "no network", "device", "truth", "out", "twice", "loop", "loop as truth"],
)
def test_a_mistake_is_one_line(
    arguments: list[str], status: int, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "loop.png").symlink_to("loop.png")
    found, lines, error = outcome(capsys, *arguments)
    assert (found, lines) == (status, [])
    assert error.startswith(f"bbcu.restore: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "text", "limits"),
    [
        ("--tile", "-1", "0 to 134217728"),
        ("--tile", "wide", "0 to 134217728"),
        ("--tile", "9" * 5000, "0 to 134217728"),
        ("--threads", "0", "1 to 1024"),
        ("--threads", "99999999999", "1 to 1024"),
    ],
    ids=["tile", "no number", "digits", "threads", "too many"],
)
def test_a_number_out_of_range_is_one_line(
    option: str, text: str, limits: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["low", "--from", "cell", option, text])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"must be a whole number from {limits}; " in error
    assert len(error) < 400


def test_a_network_without_tiles_is_named_for_a_large_picture(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bbcu.deploy.restoring.LARGEST_OUTPUT", 16)
    network = build("rcan", NetworkSpec(2, 8, 1, align=16.25, groups=1), 0)
    trial_folder(place / "attention", network, facts_of(network.spec, "rcan"))
    status, lines, _ = outcome(capsys, "low/one.png", "--from", "attention")
    assert status == 0
    assert lines[0].startswith("low/one.png: restored in one piece, since the network has no finite radius")


def test_threads_are_those_that_are_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        outcome(capsys, "low/one.png", "--from", "cell", "--threads", "2")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
