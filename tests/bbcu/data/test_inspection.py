"""What ``python -m bbcu.data check`` says of a folder."""

from pathlib import Path

import pytest

from bbcu.data.__main__ import main
from bbcu.data.inspection import inspect
from bbcu.data.sources import fingerprint, folder
from bbcu.data.tasks import SuperResolution
from tests.harness.builders import noise, save

X2 = SuperResolution(2)


def test_every_picture_is_looked_at_even_behind_one_that_is_refused(tmp_path: Path) -> None:
    save(noise(40, 50), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    save(noise(20, 90), tmp_path / "c.png")
    save(noise(60, 50, seed=1), tmp_path / "d.png")
    found = inspect(tmp_path, "train", X2, patch=16)
    assert list(found.usable) == ["a", "d"]
    assert [reason.split(":")[0] for reason in found.refused] == [str(tmp_path / "b.png"), str(tmp_path / "c.png")]
    assert "at least 32 x 32" in found.refused[1]
    assert found.fingerprint is None


def test_a_picture_too_small_to_train_on_may_be_tested_on(tmp_path: Path) -> None:
    save(noise(20, 90), tmp_path / "a.png")
    assert inspect(tmp_path, "train", X2, patch=16).refused
    assert not inspect(tmp_path, "test", X2, patch=16).refused


def test_the_fingerprint_is_that_of_the_pictures_as_a_training_set(tmp_path: Path) -> None:
    save(noise(40, 50), tmp_path / "a.png")
    expected = fingerprint(folder(tmp_path, {}))
    assert inspect(tmp_path, "train", X2, patch=16).fingerprint == expected
    assert inspect(tmp_path, "test", X2, patch=16).fingerprint == expected


def test_sizes_are_counted_and_repeated_pictures_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(noise(40, 50), tmp_path / f"{name}.png")
    save(noise(40, 50, seed=1), tmp_path / "c.png")
    found = inspect(tmp_path, "train", X2, patch=16)
    assert found.sizes == {(50, 40): 3}
    assert found.duplicates == [["a", "b"]]


def test_given_inputs_of_another_size_are_refused_with_both_files(tmp_path: Path) -> None:
    save(noise(40, 50), tmp_path / "HR" / "a.png")
    save(noise(20, 26), tmp_path / "LR_bicubic" / "X2" / "ax2.png")
    (reason,) = inspect(tmp_path, "test", X2, patch=16, scale=2).refused
    assert "ax2.png: the input is 26 x 20 pixels" in reason
    assert f"{tmp_path / 'HR' / 'a.png'} shrunk by 2 is 25 x 20" in reason


def test_the_command_prints_both_roles_and_succeeds_where_all_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(noise(60, 50), tmp_path / "a.png")
    assert main(["check", str(tmp_path), "--task", "sr_x2"]) == 0
    printed = capsys.readouterr().out
    assert "sr_x2, to train on: 1 pictures can be used, 0 are refused" in printed
    assert "sr_x2, to test on: 1 pictures can be used, 0 are refused" in printed
    assert "1 of 50 x 60" in printed
    assert f"fingerprint {fingerprint(folder(tmp_path, {}))}" in printed


def test_the_command_fails_where_a_trial_would_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(noise(60, 50), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    assert main(["check", str(tmp_path), "--role", "test", "--task", "denoise"]) == 1
    printed = capsys.readouterr()
    assert f"refused: {tmp_path / 'b.png'}: is an empty file" in printed.out
    assert "to train on" not in printed.out
    assert "a trial of denoise would stop" in printed.err


@pytest.mark.parametrize("task", ["denoise", "jpeg"])
def test_given_inputs_are_of_super_resolution_alone(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path), "--task", task, "--inputs", "given"]) == 2
    assert "makes its inputs" in capsys.readouterr().err
