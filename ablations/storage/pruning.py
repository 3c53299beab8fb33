"""Let a search prune its trials: after each evaluation a trial sends a request, and the search's process answers it.

Requests and answers are small files next to the trial's lease, so they work with every launcher. A damaged one is
ignored: the trial continues, as it does without an answer.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ablations.storage.files import read_intact, write_sealed
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import lease_path

log = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""How long a trial waits for an answer; a running search answers within a fraction of a second."""

POLL_SECONDS = 0.02


class TrialPruned(Exception):
    """The search ended the trial after ``step`` steps, when its mean PSNR was ``psnr_db``."""

    def __init__(self, step: int, psnr_db: float) -> None:
        super().__init__(step, psnr_db)
        self.step, self.psnr_db = step, psnr_db

    def __str__(self) -> str:
        return f"pruned at step {self.step} with {self.psnr_db:.2f} dB"


class PruningClient:
    """The trial's side: asks the search whether to continue, if the trial belongs to one."""

    def __init__(self, folder: TrialFolder, session: str) -> None:
        self._request, self._answer = request_path(folder), answer_path(folder)
        self._asks = bool(session) and search_marker(folder, session).exists()

    def check(self, step: int, psnr_db: float) -> None:
        """Raise TrialPruned if the search prunes the trial; without an answer the trial continues."""
        from ablations.storage.formats import PruningAnswer

        if not self._asks:
            return
        try:
            # A late answer to an earlier attempt must not apply to this one.
            self._answer.unlink(missing_ok=True)
            write_sealed(self._request, {"step": step, "psnr_db": psnr_db}, durable=False)
        except OSError as error:
            log.warning("the search cannot be asked at step %d: %s; training continues", step, error.strerror)
            return
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            answer = read_intact(self._answer, PruningAnswer)
            if answer is not None and answer["step"] == step:
                self._answer.unlink(missing_ok=True)
                if answer["prune"]:
                    raise TrialPruned(step, psnr_db)
                return
            time.sleep(POLL_SECONDS)
        self._request.unlink(missing_ok=True)


@dataclass(frozen=True)
class PruningRequest:
    """The search's side: a trial with ``psnr_db`` after ``step`` steps waits for the answer."""

    folder: TrialFolder
    step: int
    psnr_db: float

    def answer(self, *, prune: bool) -> None:
        """Answer the trial, which ends if ``prune`` is set."""
        request_path(self.folder).unlink(missing_ok=True)
        write_sealed(answer_path(self.folder), {"step": self.step, "prune": prune}, durable=False)


def open_request(folder: TrialFolder) -> PruningRequest | None:
    """Return the unanswered request of the trial in ``folder``, or None."""
    from ablations.storage import formats

    content = read_intact(request_path(folder), formats.PruningRequest)
    return None if content is None else PruningRequest(folder, content["step"], content["psnr_db"])


def request_path(folder: TrialFolder) -> Path:
    return lease_path(folder).with_suffix(".request")


def answer_path(folder: TrialFolder) -> Path:
    return lease_path(folder).with_suffix(".answer")


def search_marker(folder: TrialFolder, session: str) -> Path:
    """Return the file that marks the sweep ``session`` as a search, which answers requests."""
    return lease_path(folder).parent / f"{session}.search"
