"""The energy of a training, if the machine counts it: the counters of its processors in Linux's powercap.

A counter belongs to a whole processor, so it includes whatever else ran at the time, other trials too.
Source: the kernel's documentation of the power capping framework; on processors of Intel and AMD it is called RAPL.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
PROCESSOR = re.compile(r"intel-rapl:\d+")
"""Names of the counters of whole processors; those of their parts have one more number."""

SECONDS_BETWEEN_LOOKS = 10.0
"""Seconds between two readings. A counter wraps around after a quarter of an hour at the earliest."""


@dataclass(frozen=True)
class Counter:
    """A processor's count of microjoules, which wraps around to 0 after ``most``."""

    path: Path
    most: int

    def read(self) -> int:
        return int(self.path.read_text())


def counters(root: Path = POWERCAP) -> list[Counter]:
    """The counters of this machine's processors; none if it has none or this user may not read them."""
    found = []
    for folder in sorted(root.glob("*")):
        if PROCESSOR.fullmatch(folder.name):
            try:
                counter = Counter(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
                counter.read()
            except (OSError, ValueError):
                return []
            found.append(counter)
    return found


class EnergyMeter:
    """Adds up what the counters count from now on; :meth:`look` must be called often.

    If a counter can no longer be read, the measurement ends and the training goes on.
    """

    def __init__(self, counters: list[Counter], clock: Callable[[], float] = time.monotonic) -> None:
        self._last = {counter: counter.read() for counter in counters}
        self._clock, self._looked, self._microjoules = clock, clock(), 0

    def look(self) -> None:
        """Read the counters unless they were read a moment ago."""
        if self._last and self._clock() - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._add()

    def joules(self) -> float | None:
        """The energy so far; None without counters, or if one of them has failed."""
        self._add()
        return self._microjoules / 1e6 if self._last else None

    def _add(self) -> None:
        try:
            counts = [(counter, last, counter.read()) for counter, last in self._last.items()]
        except (OSError, ValueError):
            self._last = {}
            return
        for counter, last, now in counts:
            self._microjoules += now - last if now >= last else now + counter.most - last
            self._last[counter] = now
        self._looked = self._clock()
