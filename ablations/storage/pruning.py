"""How a search ends a trial early: the trial asks after each evaluation, and the process of the search answers.

Questions and answers are small files beside the trial's lease, so that they reach workers of any launcher; the search
itself lives in one process.
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ablations.storage.files import read_json, write_atomically
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import lease_path

log = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""How long a trial waits for an answer; the search looks several times a second, or is gone."""

LOOK_SECONDS = 0.02


class Pruned(Exception):
    """The search has ended the trial; the message says at which step and why."""


class Verdicts:
    """What a trial asks the search, if it belongs to one."""

    def __init__(self, folder: TrialFolder, session: str) -> None:
        self._question, self._answer = question_path(folder), answer_path(folder)
        self._asks = bool(session) and searching_path(folder, session).exists()

    def check(self, step: int, psnr_db: float) -> None:
        """Raise Pruned where the search says that the trial is not worth its time; nobody to ask means to go on."""
        if not self._asks:
            return
        try:
            # An answer that came too late, to an attempt before this one, is none to this question.
            self._answer.unlink(missing_ok=True)
            write_atomically(self._question, json.dumps({"step": step, "psnr_db": psnr_db}) + "\n", durable=False)
        except OSError as error:
            log.warning("the search cannot be asked at step %d: %s; the training goes on", step, error.strerror)
            return
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            answer = read_json(self._answer)
            if answer is not None and answer["step"] == step:
                self._answer.unlink(missing_ok=True)
                if answer["prune"]:
                    raise Pruned(f"pruned at step {step} with {psnr_db:.2f} dB")
                return
            time.sleep(LOOK_SECONDS)
        self._question.unlink(missing_ok=True)


@dataclass(frozen=True)
class Question:
    """A running trial has reached ``psnr_db`` after ``step`` steps: is it to go on?"""

    folder: TrialFolder
    step: int
    psnr_db: float

    def answer(self, *, prune: bool) -> None:
        """Tell the trial."""
        question_path(self.folder).unlink(missing_ok=True)
        text = json.dumps({"step": self.step, "prune": prune}) + "\n"
        write_atomically(answer_path(self.folder), text, durable=False)


def open_question(folder: TrialFolder) -> Question | None:
    """What the trial in ``folder`` waits to hear, or None."""
    content = read_json(question_path(folder))
    return None if content is None else Question(folder, content["step"], content["psnr_db"])


def question_path(folder: TrialFolder) -> Path:
    return lease_path(folder).with_suffix(".question")


def answer_path(folder: TrialFolder) -> Path:
    return lease_path(folder).with_suffix(".answer")


def searching_path(folder: TrialFolder, session: str) -> Path:
    """The file that says that the sweep ``session`` is a search, which answers questions."""
    return lease_path(folder).parent / f"{session}.search"
