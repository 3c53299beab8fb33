"""``python -m ablations``: errors of ``sync``, the counts of ``space``, and a closed pipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.__main__ import main
from ablations.space.census import census
from ablations.space.rules import Backbone
from tests.ablations.storage.helpers import finished
from tests.harness.paths import REPOSITORY


def test_sync_of_a_study_that_is_not_there_is_one_line(tmp_path: Path, tracking_uri: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["sync", "huge", "--outputs", str(tmp_path), "--tracking-uri", tracking_uri])
    assert left.value.code == f"ablations: no study 'huge' in {tmp_path}"


@pytest.mark.parametrize(
    ("options", "backbone"),
    [
        pytest.param([], Backbone("srresnet", 64), id="the reference"),
        pytest.param(["--network", "dncnn"], Backbone("dncnn", 64), id="another network"),
        pytest.param(
            ["--network", "edsr", "--tail", "light", "--task", "sr_x4"],
            Backbone("edsr", 64, "light", "sr_x4"),
            id="another tail and scale",
        ),
    ],
)
def test_space_prints_the_census(options: list[str], backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    main(["space", *options])
    printed = capsys.readouterr().out
    found = census(backbone)
    for number in (found.combinations, found.impossible, found.duplicates, found.cells):
        assert f"{number} " in printed
    assert found.combinations == found.impossible + found.duplicates + found.cells


def test_space_counts_as_many_combinations_as_there_are() -> None:
    residual, bn, act, act_fn, align, binarize, threshold, surrogate, weight = 4, 5, 4, 6, 2, 2**4, 6, 7, 9
    rescale, start, distil = 8, 3, 3
    of_unit = residual * bn * act * act_fn * threshold * surrogate * weight * rescale
    expected = of_unit * align * binarize * start * distil
    assert census(Backbone("srresnet", 64)).combinations == expected


@pytest.mark.parametrize(
    "command",
    [["-m", "ablations", "space"], ["-m", "ablations", "status", "tiny"], [str(REPOSITORY / "run.py"), "--help"]],
    ids=["space", "status", "help"],
)
def test_a_closed_pipe_ends_a_command_without_an_error(tmp_path: Path, command: list[str]) -> None:
    """As ``python -m ablations space | head`` does."""
    finished(tmp_path / "outputs")
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *command],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
