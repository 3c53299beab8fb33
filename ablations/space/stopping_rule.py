"""The stopping rule of a study: at which numbers of seeds a verdict may fall, about what, and with which error rate.

It is chosen before anything is trained and is part of the study's plan. A rule that could be changed after results are
known could be chosen by them, and the error rate would not hold.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablations.space.interventions import Pair

ERROR_RATE = 0.05
"""How often a family of verdicts may hold a wrong one of a kind: a false difference, or a false equivalence."""

FLOOR, RISE = 0.01, 20.0
"""The shape of the boundary; see :mod:`analysis.statistics.sequential`."""


@dataclass(frozen=True)
class StoppingRule:
    """When the verdicts of a study may fall.

    ``looks`` are numbers of seeds, ascending; look ``n`` is about the seeds ``first_seed`` to ``first_seed + n - 1``.
    Differences below ``margin_db`` do not matter. ``families`` are the comparisons, each a cell before and a cell after
    an intervention, that are corrected together: one family for each task. ``error_rate`` is that of a family, over all
    looks; ``floor`` and ``rise`` say how it is spread over them.
    """

    looks: tuple[int, ...]
    first_seed: int
    margin_db: float
    families: tuple[tuple[Pair, ...], ...]
    error_rate: float = ERROR_RATE
    floor: float = FLOOR
    rise: float = RISE

    @property
    def first_look(self) -> int:
        return self.looks[0]

    @property
    def last_look(self) -> int:
        return self.looks[-1]

    @property
    def looks_at_every_seed(self) -> bool:
        """Whether every number of seeds from the first look to the last is a look."""
        return self.looks == tuple(range(self.first_look, self.last_look + 1))

    @property
    def looks_in_words(self) -> str:
        """The looks as a message shows them: ``3 to 12`` for every number, or ``3, 5, 8, 12``."""
        ends = f"{self.first_look} to {self.last_look}"
        return ends if self.looks_at_every_seed else ", ".join(map(str, self.looks))

    def seeds(self, look: int) -> range:
        """Return the seeds that a look is about."""
        return range(self.first_seed, self.first_seed + look)

    def look_after(self, look: int) -> int | None:
        """Return the look after this one, the first look after 0, and None after the last."""
        return next((later for later in self.looks if later > look), None)

    def record(self) -> dict[str, Any]:
        """Return the rule as ``plan.json`` holds it."""
        record = dataclasses.asdict(self)
        return {**record, "looks": list(self.looks), "families": [[list(pair) for pair in f] for f in self.families]}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "StoppingRule":
        """Return the rule that :meth:`record` has written."""
        known = {field.name: record[field.name] for field in dataclasses.fields(cls)}
        families = tuple(tuple((before, after) for before, after in family) for family in record["families"])
        return cls(**{**known, "looks": tuple(record["looks"]), "families": families})

    def difference(self, other: "StoppingRule") -> str:
        """Return in words what this rule has that the other has not: ``looks=3, 5, 8 and not 3 to 5``, or nothing."""
        found = []
        for name, text in _shown(self).items():
            if text != (others := _shown(other)[name]):
                found.append(f"{name}={text} and not {others}")
        if not found and self.families != other.families:
            found.append("other comparisons")
        return ", ".join(found)


def _shown(rule: StoppingRule) -> dict[str, str]:
    """Return the parts of a rule as a message shows them."""
    numbers = {name: str(getattr(rule, name)) for name in ("margin_db", "first_seed", "error_rate", "floor", "rise")}
    return {"looks": rule.looks_in_words, **numbers, "comparisons": str(sum(map(len, rule.families)))}
