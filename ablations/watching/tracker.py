"""Track which trials of a sweep are waiting, running and ended, by reading the study's folder."""

import os
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ablations.storage.attempts import Attempt, History, State, history_of, state_without_process
from ablations.storage.folder import Identity, TrialFolder, mean_psnr, study_folder
from ablations.storage.lease import Lease, leases, living_lease
from ablations.storage.status import stamp_of

PREPARING = "preparing"
"""The phase of a lease whose process does not train yet, and may find that the trial is finished."""


@dataclass(frozen=True)
class WatchedTrial:
    """A trial as a view shows it: its name, its number of training steps, its folder, and its teacher if it has one."""

    name: str
    steps: int
    folder: TrialFolder
    teacher: Identity | None = None

    @property
    def title(self) -> str:
        return f"{self.name} seed {self.folder.seed}"


@dataclass(frozen=True)
class Ending:
    """How an attempt at a trial ended.

    ``psnr_db`` is the mean over the test sets, for a finished trial. ``seconds`` is how long the attempt took and
    ``steps`` how many steps it trained; both are None if a time was not recorded.
    """

    trial: WatchedTrial
    state: State
    reason: str = ""
    psnr_db: float | None = None
    seconds: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Stamps:
    """The modification time in ns and the size of a trial's files, None for a missing one."""

    result: tuple[int, int] | None = None
    state: tuple[int, int] | None = None

    @classmethod
    def of(cls, folder: TrialFolder) -> "Stamps":
        return cls(stamp_of(folder.result_path), stamp_of(folder.state_path))


class TrialTracker:
    """Tracks the trials of a sweep; a trial in neither ``running`` nor ``ended`` waits.

    ``trials`` may grow, even in another thread, as those of a search or a stopping rule do. A poll reads the leases,
    which are few, and the folder of a trial only after its lease was removed.
    """

    def __init__(
        self, outputs: Path, study: str, trials: Mapping[Identity, WatchedTrial], done: Container[Identity]
    ) -> None:
        self._outputs, self._study = outputs, study
        self._given, self._done = trials, done
        self.trials: dict[Identity, WatchedTrial] = {}
        self.running: dict[Identity, Lease] = {}
        self.ended: dict[Identity, State] = {}
        self._stamps: dict[Identity, Stamps] = {}
        self._add_new()

    def _add_new(self) -> None:
        """Add the trials that did not exist at the last poll."""
        known, self.trials = self.trials, dict(self._given)
        new = [identity for identity in self.trials if identity not in known]
        self.ended |= {identity: State.FINISHED for identity in new if identity in self._done}
        # Earlier sweeps wrote the present files; only later changes are endings.
        self._stamps |= {identity: Stamps.of(self.trials[identity].folder) for identity in self._started(new)}

    @property
    def waiting(self) -> Iterator[WatchedTrial]:
        """The trials that have not started."""
        return (
            trial
            for identity, trial in self.trials.items()
            if identity not in self.ended and identity not in self.running
        )

    @property
    def counts(self) -> Counter[State]:
        """How many trials are in each state; those that wait are PLANNED."""
        counts = Counter(self.ended.values())
        counts[State.RUNNING] = len(self.running)
        counts[State.PLANNED] = len(self.trials) - len(self.ended) - len(self.running)
        return counts

    @property
    def cells(self) -> tuple[int, int]:
        """How many cells have finished under every seed, and how many there are."""
        unfinished = {identity[0] for identity in self.trials if self.ended.get(identity) != State.FINISHED}
        cells = {identity[0] for identity in self.trials}
        return len(cells) - len(unfinished), len(cells)

    def poll(self) -> list[Ending]:
        """Read the leases; return the endings of the trials that have stopped running."""
        if len(self._given) != len(self.trials):
            self._add_new()
        # Oldest first, so that rows of a view only ever move up.
        by_age = sorted(leases(self._outputs, self._study), key=lambda lease: lease.began)
        found = {(lease.cell, lease.seed): lease for lease in by_age}
        before = self.running
        # A process that is given a finished trial locks it briefly and finds nothing to do.
        self.running = {
            identity: lease
            for identity, lease in found.items()
            if identity in self.trials and (self.ended.get(identity) != State.FINISHED or lease.phase != PREPARING)
        }
        endings = [
            self._after(identity, lease)
            for identity, lease in before.items()
            if identity not in self.running or self.running[identity].token != lease.token
        ]
        for identity in self.running:
            if self.ended.pop(identity, None) == State.FINISHED:
                # It is retrained; its old result is not its ending.
                self._stamps[identity] = Stamps.of(self.trials[identity].folder)
        return [ending for ending in endings if ending is not None]

    def poll_all(self) -> list[Ending]:
        """Return the endings of trials whose lease was never seen; trials without a folder are not read."""
        endings = [self._unseen(identity) for identity in self._started(self.trials) if identity not in self.running]
        return [ending for ending in endings if ending is not None]

    def _started(self, identities: Collection[Identity]) -> list[Identity]:
        """Return those trials that have a folder and have not finished."""
        left = [identity for identity in identities if self.ended.get(identity) != State.FINISHED]
        try:
            begun = set(os.listdir(study_folder(self._outputs, self._study))) if left else set()
        except OSError:
            return []
        return [identity for identity in left if identity[0] in begun]

    def _after(self, identity: Identity, lease: Lease) -> Ending | None:
        """Return how the attempt ended whose lease was removed."""
        now = living_lease(self.trials[identity].folder)
        if now is not None and now.token == lease.token:
            # A directory listing may miss a file that is being replaced.
            self.running[identity] = now
            return None
        return self._ending(identity, now)

    def _unseen(self, identity: Identity) -> Ending | None:
        folder = self.trials[identity].folder
        if Stamps.of(folder) == self._stamps.get(identity, Stamps()) or living_lease(folder) is not None:
            return None
        return self._ending(identity, None)

    def _ending(self, identity: Identity, next_lease: Lease | None) -> Ending | None:
        """Return the latest ending recorded in the folder, or None; ``next_lease`` is that of the next attempt."""
        trial = self.trials[identity]
        before, now = self._stamps.get(identity, Stamps()), Stamps.of(trial.folder)
        self._stamps[identity] = now
        attempts = () if now.state == before.state else history_of(trial.folder).attempts
        if attempts and next_lease is not None and _is_of(attempts[-1], next_lease):
            attempts = attempts[:-1]
        attempt = attempts[-1] if attempts else None
        ending = None
        if now.result != before.result or attempt is None:
            ending = _finish_of(trial, attempt)
        if ending is None and attempt is not None:
            ending = Ending(trial, *state_without_process(trial.folder, History(attempts)))
        if ending is not None:
            self.ended[identity] = ending.state
        return ending


def _is_of(attempt: Attempt, lease: Lease) -> bool:
    """Return whether an attempt belongs to the lease and has not ended."""
    return attempt.state == State.RUNNING and (attempt.host, attempt.pid) == (lease.host.partition("/")[0], lease.pid)


def _finish_of(trial: WatchedTrial, attempt: Attempt | None) -> Ending | None:
    """Return the ending of a trial that has a result, or None."""
    result = trial.folder.result()
    if result is None:
        return None
    if attempt is None or attempt.ended is None:
        return Ending(trial, State.FINISHED, psnr_db=mean_psnr(result))
    # If the clock was set back, the duration is unknown.
    seconds = attempt.ended - attempt.began or None
    return Ending(trial, State.FINISHED, "", mean_psnr(result), seconds, trial.steps - attempt.from_step)
