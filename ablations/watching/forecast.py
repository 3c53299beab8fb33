"""Predict how long a sweep will take from the trials that have finished."""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable

from ablations.storage.attempts import State
from ablations.storage.lease import Lease
from ablations.watching.tracker import Ending, WatchedTrial

AT_ONCE_SECONDS = 30.0
"""How long a drop in the number of running trials is ignored: a worker has no trial between two trials."""


class Forecast:
    """Predicts how long running and waiting trials take; predictions are None until a trial has finished."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()
        self._finished = 0
        self._seconds, self._steps = 0.0, 0
        self._first_seen: dict[str, tuple[float, int]] = {}
        self._at_once: deque[tuple[float, int]] = deque()

    def learn(self, endings: Iterable[Ending]) -> None:
        """Update the mean time of a step by trials that have ended."""
        for ending in endings:
            if ending.state == State.FINISHED:
                self._finished += 1
                if ending.seconds is not None and ending.steps:
                    self._seconds += ending.seconds
                    self._steps += ending.steps

    def observe(self, running: Collection[Lease]) -> None:
        """Update the pace of each running trial and the number of trials at once."""
        now = self._clock()
        self._at_once.append((now, len(running)))
        while now - self._at_once[0][0] > AT_ONCE_SECONDS:
            self._at_once.popleft()
        # The first step may compile, so the pace of a trial is measured from the first step that was observed.
        seen = {lease.token: (now, lease.step) for lease in running if lease.step}
        self._first_seen = {token: self._first_seen.get(token, moment) for token, moment in seen.items()}

    @property
    def trials_per_hour(self) -> float | None:
        seconds = self._clock() - self._began
        return 3600 * self._finished / seconds if self._finished and seconds > 0 else None

    @property
    def seconds_per_step(self) -> float | None:
        """The mean time of a step, including a trial's time outside its steps."""
        return self._seconds / self._steps if self._steps else None

    def left_of(self, lease: Lease) -> float | None:
        """Return the remaining seconds of a running trial, by its own pace if that is known."""
        pace = self.seconds_per_step
        began, step = self._first_seen.get(lease.token, (0.0, lease.step))
        if lease.step > step:
            pace = (self._clock() - began) / (lease.step - step)
        return None if pace is None else pace * (lease.steps - lease.step)

    def left(
        self,
        running: Collection[Lease],
        waiting: Iterable[WatchedTrial],
        later: Iterable[Iterable[WatchedTrial]] = (),
    ) -> float | None:
        """Return the remaining seconds of all trials if as many run at once as recently.

        Each batch of ``later`` trials begins when everything before it has ended.
        """
        pace = self.seconds_per_step
        if pace is None:
            return None
        at_once = max([1, len(running), *(number for _, number in self._at_once)])
        ends = [self.left_of(lease) or 0.0 for lease in running] + [0.0] * (at_once - len(running))
        heapq.heapify(ends)
        for batch in (waiting, *later):
            for trial in batch:
                heapq.heapreplace(ends, ends[0] + pace * trial.steps)
            ends = [max(ends)] * at_once
        return ends[0]


def duration(seconds: float) -> str:
    """Write a duration in its two largest units: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
