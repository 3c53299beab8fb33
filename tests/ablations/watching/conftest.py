"""A sweep whose view goes to a file, or to a terminal."""

from pathlib import Path

import pytest

from tests.ablations.watching.sweeps import TOLD_TO_RICH, Sweep


@pytest.fixture(autouse=True)
def terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in TOLD_TO_RICH:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep whose console is a file."""
    return Sweep(tmp_path, ("one", "two", "three"))


@pytest.fixture
def on_terminal(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, ("one", "two", "three"), width=120)
