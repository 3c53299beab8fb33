"""What ``python -m bbcu.data check`` prints of a folder."""

from pathlib import Path

import pytest

from bbcu.data.__main__ import main
from bbcu.data.sources import fingerprint, folder
from tests.harness.builders import noise, save


def check(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str], str]:
    """The exit status, the lines printed, and the message."""
    status = main(["check", str(path), *options])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err


def test_both_roles_are_printed_with_the_fingerprint_of_the_pictures_as_a_training_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(noise(60, 50), tmp_path / "a.png")
    status, lines, _ = check(tmp_path, capsys, "--task", "sr_x2")
    details = ["  1 of 50 x 60", f"  fingerprint {fingerprint(folder(tmp_path, {}))}"]
    assert lines == [
        line
        for purpose in ("train", "test")
        for line in (f"sr_x2, to {purpose} on: 1 pictures can be used, 0 are refused", *details)
    ]
    assert status == 0


def test_every_picture_is_looked_at_even_behind_one_that_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(noise(40, 50), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    save(noise(20, 90), tmp_path / "c.png")
    save(noise(60, 50, seed=1), tmp_path / "d.png")
    status, lines, message = check(tmp_path, capsys, "--role", "train", "--patch", "16")
    assert lines[0] == "sr_x2, to train on: 2 pictures can be used, 2 are refused"
    assert lines[-2] == f"  refused: {tmp_path / 'b.png'}: is an empty file"
    assert lines[-1].startswith(f"  refused: {tmp_path / 'c.png'}: ")
    assert "at least 32 x 32" in lines[-1]
    assert status == 1
    assert "a trial of sr_x2 would stop" in message


def test_a_picture_too_small_to_train_on_may_be_tested_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(noise(20, 90), tmp_path / "a.png")
    assert [check(tmp_path, capsys, "--patch", "16", "--role", role)[0] for role in ("train", "test")] == [1, 0]


def test_sizes_are_counted_and_repeated_pictures_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save(noise(40, 50, seed), tmp_path / f"{name}.png")
    _, lines, _ = check(tmp_path, capsys, "--role", "train", "--patch", "16")
    assert lines[1:3] == ["  3 of 50 x 40", "  the same pixels: a, b"]


def test_beyond_eight_sizes_the_others_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        save(noise(30 + number, 40 - number), tmp_path / f"{number}.png")
    _, lines, _ = check(tmp_path, capsys, "--role", "test")
    assert lines[9] == "  2 of 2 other sizes; all within 31 x 30 and 40 x 39"


def test_given_inputs_of_another_size_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(noise(40, 50), tmp_path / "HR" / "a.png")
    save(noise(20, 26), tmp_path / "LR_bicubic" / "X2" / "ax2.png")
    status, lines, _ = check(tmp_path, capsys, "--inputs", "given", "--role", "test")
    assert "ax2.png: the input is 26 x 20 pixels" in lines[-1]
    assert status == 1


@pytest.mark.parametrize("task", ["denoise", "jpeg"])
def test_given_inputs_are_of_super_resolution_alone(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, message = check(tmp_path, capsys, "--task", task, "--inputs", "given")
    assert status == 2
    assert "makes its inputs" in message


def test_the_name_of_a_picture_cannot_change_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("\x1b[31ma\nb.png", "c.png"):
        save(noise(60, 60), tmp_path / name)
    status, lines, _ = check(tmp_path, capsys)
    assert status == 0
    assert r"  the same pixels: \x1b[31ma\nb, c" in lines
    assert all(line.isprintable() for line in lines)
