"""The energy that a training takes, where the machine counts it: the counters of its processors in Linux's powercap.

A counter is of a whole processor, so whatever else ran meanwhile is in it, a trial beside this one too.
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
"""How long a counter is left alone. It starts anew after a quarter of an hour at the soonest, and must be seen to."""


@dataclass(frozen=True)
class Counter:
    """A processor's count of microjoules, which starts again at 0 behind ``most``."""

    path: Path
    most: int

    def read(self) -> int:
        return int(self.path.read_text())


def counters(root: Path = POWERCAP) -> list[Counter]:
    """The counters of this machine's processors; none where it has none, or does not let this user read them."""
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
    """Adds up what counters count from its making on; to be told often that time has passed.

    A counter that can no longer be read ends the measuring, and not the training.
    """

    def __init__(self, counters: list[Counter], clock: Callable[[], float] = time.monotonic) -> None:
        self._last = {counter: counter.read() for counter in counters}
        self._clock, self._looked, self._microjoules = clock, clock(), 0

    def look(self) -> None:
        """Look at the counters, unless that was done a moment ago."""
        if self._last and self._clock() - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._add()

    def joules(self) -> float | None:
        """The energy so far; None without counters, or where one of them has failed."""
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
