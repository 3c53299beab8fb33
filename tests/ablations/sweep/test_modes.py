"""All that a study writes has the modes of the umask, so that it is private, or shared, as its user wants."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.support import Workplace


@pytest.fixture(params=[0o077, 0o002], ids=["private", "shared by a group"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The modes of all files and folders, in octal."""
    return {str(path.relative_to(folder)): oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*")}


def expected(folder: Path, umask: int) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): oct((0o777 if path.is_dir() else 0o666) & ~umask) for path in folder.rglob("*")
    }


@pytest.mark.parametrize("design", ["full", "search"])
def test_whatever_a_study_writes_follows_the_umask(
    umask: int, design: str, new_workplace: Callable[[], Workplace]
) -> None:
    workplace = new_workplace()
    search = ["hydra.sweeper.design=search", "hydra.sweeper.trials=1"] if design == "search" else []
    outcome = workplace.sweep("bn=pre,post", "tracking.snapshot_s=0", "train.compile=false", *search)
    assert outcome.status == 0, outcome.text
    assert modes(workplace.folder) == expected(workplace.folder, umask)
