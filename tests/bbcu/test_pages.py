"""The pages on using a trained network: their commands and examples run, and print what the pages say."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbcu import evaluate, restore
from bbcu.data.images import Pixels, downscale
from bbcu.deploy.restoring import Restorer
from bbcu.model.checkpoints import to_released_state
from tests.harness.builders import dncnn, perturbed, save, soft_blobs, srresnet
from tests.harness.deployed import facts_of, trial_folder
from tests.harness.paths import DOCS
from tests.test_docs import FENCED

PROGRAMS = {"bbcu.restore": restore.main, "bbcu.evaluate": evaluate.main}
HOLIDAY = soft_blobs(2, 23, 31)
CELL = perturbed(srresnet())


def examples(page: str, language: str) -> str:
    """The code of a language on a page, as one text."""
    found = FENCED.finditer((DOCS / page).read_text(encoding="utf-8"))
    return "".join(block["code"] for block in found if block["language"] == language)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with everything that the pages name, small."""
    facts = facts_of(CELL.spec) | {"metrics": {"embedded": {}}}
    trial_folder(tmp_path / "outputs" / "parts" / "3fa9c8d0" / "seed0", CELL, facts)
    torch.save(to_released_state(dncnn()), tmp_path / "DnCNN.pth")
    save(HOLIDAY, tmp_path / "holiday.jpg")
    for folder, pixels in (("high", HOLIDAY[:22, :30]), ("low", downscale(HOLIDAY[:22, :30], 2))):
        save(pixels, tmp_path / folder / "one.png")
    for name in ("Set5/baby.png", "Set14/baboon.png"):
        save(soft_blobs(3, 24, 24), tmp_path / "pictures" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels_of(path: Path) -> Pixels:
    return np.asarray(Image.open(path))


def test_the_commands_of_the_page_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(to_released_state(srresnet()), place / "BBCU_L_x2.pth")
    threads = torch.get_num_threads()
    commands = examples("restoring.md", "sh").splitlines()
    for command in commands:
        _, _, module, *arguments = shlex.split(command)
        assert PROGRAMS[module](arguments) == 0, capsys.readouterr().err
    torch.set_num_threads(threads)
    assert len(commands) == 6
    restored = pixels_of(place / "restored" / "holiday.png")
    np.testing.assert_array_equal(restored, Restorer(CELL)(pixels_of(place / "holiday.jpg")))
    assert (place / "enlarged" / "one.png").exists()
    assert (place / "released" / "holiday.png").exists()


def test_the_messages_of_the_page_are_those_of_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "restoring.md").read_text(encoding="utf-8")
    Image.new("I;16", (9, 9)).save(place / "deep.png")
    Image.new("CMYK", (9, 9)).save(place / "print.jpg")
    for name in ("deep.png", "print.jpg"):
        assert restore.main([name, "--from", "outputs/parts/3fa9c8"]) == 1
        message = capsys.readouterr().err.removeprefix(f"bbcu.restore: {name}: ").strip()
        assert f"refused: `{message}`" in text


def test_the_examples_of_the_library_run_as_one_script(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(to_released_state(srresnet(channels=64)), place / "BBCU_L_x2.pth")
    code = examples("library.md", "python")
    exec(code, {"__name__": "example"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print.*  # (.*)$", code, re.MULTILINE)
    assert pixels_of(place / "larger.png").shape == (46, 62, 3)
    assert (place / "cell.packed").exists()
