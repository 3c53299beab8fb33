"""What a trial writes to the terminal while it runs."""

import logging
from collections.abc import Iterator

import pytest
import rich

from ablations.trial import progress
from ablations.trial.progress import ConsoleHandler, TrialProgress
from tests.ablations.watching.sweeps import Full


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


def test_lines_say_whose_psnr_they_show_and_follow_an_evaluation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVALUATION_SECONDS", 0.0)
    with TrialProgress("reference", 5, "auto") as shown:
        shown.update(1, 0.25, 30.0)
        for test_set, pictures in (("Set5", 2), ("Set5", 2), ("Set14", 3)):
            shown.evaluated(test_set, pictures)
    step, *evaluations = capsys.readouterr().out.splitlines()
    assert step.startswith("  step 1/5  loss 0.2500  training patches 30.00 dB  ")
    assert evaluations == ["  evaluating Set5 1/2", "  evaluating Set5 2/2", "  evaluating Set14 1/3"]
