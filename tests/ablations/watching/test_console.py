"""What goes to the console while trials run."""

import io
import logging
from collections.abc import Iterator

import pytest
import rich

from ablations.trial.progress import ConsoleHandler


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture
def full_console() -> Iterator[None]:
    rich.reconfigure(file=Full())
    yield
    rich.reconfigure()


def test_a_console_that_cannot_be_written_to_stops_nothing(full_console: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger = logging.getLogger("a logger of its own")
    logger.addHandler(ConsoleHandler())
    logger.warning("the training goes on")
    with pytest.raises(OSError, match="No space left"):
        rich.get_console().print("so the console is the full one")
