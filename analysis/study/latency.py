"""What the trials measured on a clock, beside what is counted of their networks.

A trial may record how long its packed network takes, ``latency_ms``, and how long the full-precision network of the
same layout, its *twin*, took in the same run. Only the ratio of the two is compared, and only between trials that were
measured at one :class:`Place`: another processor, engine or size of the picture has other ratios.
"""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from analysis.statistics.estimates import Estimate, combination
from analysis.statistics.rounding import rounded
from analysis.study.loading import NOT_RECORDED
from analysis.study.schema import COUNTS, MEASURED_COSTS

SAME_LAYOUT = 1e-4
"""Networks whose multiply-adds of both kinds together differ by a smaller share have the same layout, and one twin."""

RATIO, MILLISECONDS, TWIN, PACKED = (f"metric/cost/{name}" for name in MEASURED_COSTS)


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where a trial was measured, on one thread: processor, our backend, the engine of the twin, the picture's size.

    A network without binary units runs in the engine of its twin; see :func:`beside_packed`.
    """

    cpu: str
    backend: str
    twin: str
    size: str


class Run(NamedTuple):
    """One measurement: the time over that of the twin, and both times in milliseconds."""

    ratio: float
    ms: float
    twin_ms: float


@dataclasses.dataclass(frozen=True)
class Middle:
    """The median of ``n`` numbers with the smallest and the largest."""

    median: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Timed:
    """What one cell measured at one place, over its seeds; see :class:`Run`."""

    ratio: Middle
    ms: Middle
    twin_ms: Middle


@dataclasses.dataclass(frozen=True)
class Latency:
    """What the finished trials of some cells measured.

    ``runs`` are by place, cell and seed, the places with most cells first. ``packed_kb`` is the size of the packed file
    of a cell in 10^3 bytes. ``layouts`` numbers the layout of each cell, and ``missing`` says why one has no time.
    """

    runs: Mapping[Place, Mapping[str, Mapping[int, Run]]]
    packed_kb: Mapping[str, float]
    layouts: Mapping[str, int]
    missing: Mapping[str, str]

    @property
    def places(self) -> list[Place]:
        return list(self.runs)

    @property
    def main(self) -> Place | None:
        """The place that everything by the clock is of: where most cells were measured; None if none was."""
        return next(iter(self.runs), None)

    @property
    def measured(self) -> Mapping[str, Mapping[int, Run]]:
        """The runs at the main place by cell and seed."""
        return self.runs[self.main] if self.main else {}

    @functools.cached_property
    def is_of_one_twin(self) -> bool:
        """Whether the cells that were measured at the main place have twins of one layout."""
        return len({self.layouts[cell] for cell in self.measured}) < 2

    def timed(self, cell: str, place: Place | None = None) -> Timed | None:
        """Return what a cell measured at a place, by default the main one; None if nothing."""
        runs = self.runs[place] if place else self.measured
        return (
            Timed(*(middle_of(values) for values in zip(*runs[cell].values(), strict=True))) if cell in runs else None
        )

    def relative(self, cell: str, base: str) -> float:
        """Return the median time of a cell over that of the twin of ``base``, at the main place; NaN if not measured.

        That is its ratio, times the ratio of the two twins if they have other layouts: each twin's is the median over
        all trials with that layout. If ``base`` was not measured, the twin is that of the first cell that was.
        """
        found = self.timed(cell)
        if found is None:
            return math.nan
        own, other = self.layouts[cell], self.layouts[base if base in self.measured else next(iter(self.measured))]
        return rounded(found.ratio.median * (self._twin_ms[own] / self._twin_ms[other] if own != other else 1.0))

    @functools.cached_property
    def _twin_ms(self) -> dict[int, float]:
        """The median time of the twin of each layout at the main place."""
        return {layout: statistics.median(times.values()) for layout, times in self._twins[self.main].items()}

    @functools.cached_property
    def _twins(self) -> dict[Place | None, dict[int, dict[int, float]]]:
        """The times of every run of the twin of each layout, numbered, by place."""
        found: dict[Place | None, dict[int, dict[int, float]]] = {}
        for place, runs in self.runs.items():
            for cell, own in runs.items():
                times = found.setdefault(place, {}).setdefault(self.layouts[cell], {})
                times |= enumerate((run.twin_ms for run in own.values()), start=len(times))
        return found

    def change(self, pair: tuple[str, str], place: Place | None = None) -> Estimate | None:
        """Estimate the logarithm of the second cell's time over the first's at a place; None if one is not measured.

        Welch's interval over the logarithms of the ratios, each cell with its own spread over the seeds. Where the
        twins differ, the logarithms of their times come in, with their spread.
        """
        at = place or self.main
        runs = self.runs[at] if at else {}
        if not all(cell in runs for cell in pair):
            return None
        before, after = (self.layouts[cell] for cell in pair)
        values = {cell: {seed: run.ratio for seed, run in runs[cell].items()} for cell in pair}
        weights = {pair[0]: -1.0, pair[1]: 1.0}
        if before != after:
            values |= {f"twin {layout}": self._twins[at][layout] for layout in (before, after)}
            weights |= {f"twin {before}": -1.0, f"twin {after}": 1.0}
        return combination(
            weights, {name: {key: math.log(value) for key, value in own.items()} for name, own in values.items()}
        )


def middle_of(values: Iterable[float]) -> Middle:
    found = sorted(values)
    return rounded(Middle(statistics.median(found), found[0], found[-1], len(found)))


def latency_of(finished: pd.DataFrame) -> Latency:
    """Gather what these finished trials measured, cells in the order of the study."""
    found: dict[Place, dict[str, dict[int, Run]]] = {}
    missing: dict[str, str] = {}
    names = [RATIO, MILLISECONDS, TWIN]
    numbers = finished.reindex(columns=names).to_numpy().tolist()
    columns = (finished[name].tolist() for name in ("cell", "seed", "provenance"))
    for cell, seed, provenance, row in zip(*columns, numbers, strict=True):
        if not any(map(math.isnan, row)):
            found.setdefault(place_of(provenance), {}).setdefault(cell, {})[seed] = Run(*row)
        elif reason := facts_in(provenance).get("missing"):
            missing.setdefault(cell, str(reason))
    found = beside_packed(found)
    timed = {cell for cells in found.values() for cell in cells}
    sizes = {place: (-len(cells), -sum(map(len, cells.values()))) for place, cells in found.items()}
    packed = finished.reindex(columns=["cell", PACKED]).groupby("cell", sort=False)[PACKED].median().dropna()
    return Latency(
        runs={place: found[place] for place in sorted(found, key=lambda place: (sizes[place], place))},
        packed_kb={str(cell): rounded(float(size)) for cell, size in packed.items()},
        layouts=layouts(finished),
        missing={cell: reason for cell, reason in missing.items() if cell not in timed},
    )


def beside_packed(found: Mapping[Place, dict[str, dict[int, Run]]]) -> dict[Place, dict[str, dict[int, Run]]]:
    """Put the networks without binary units, whose backend is the twin's engine, beside the packed ones they belong to.

    Those are the ones of the same processor, engine of the twin and size, whatever their backend.
    """
    packed = {place: dict(cells) for place, cells in found.items() if place.backend != place.twin}
    alone = {}
    for place, cells in found.items():
        if place.backend == place.twin:
            here = [other for other in packed if dataclasses.replace(other, backend=place.backend) == place]
            for other in here:
                packed[other].update(cells)
            if not here:
                alone[place] = cells
    return packed | alone


@functools.cache
def place_of(provenance: str) -> Place:
    facts = facts_in(provenance)
    return Place(*(str(facts.get(field.name) or NOT_RECORDED) for field in dataclasses.fields(Place)))


def facts_in(provenance: str) -> Mapping[str, object]:
    """Return what a trial's provenance says of its measurement; empty if nothing."""
    recorded = json.loads(provenance).get("latency") if provenance else None
    return recorded if isinstance(recorded, dict) else {}


def layouts(finished: pd.DataFrame) -> dict[str, int]:
    """Number the layout of each cell by its multiply-adds of both kinds together; 0 where they are not recorded."""
    sizes = sorted((full + binary, cell) for cell, (full, binary) in counts_by_kind(finished).items())
    found, number, first = dict.fromkeys(finished["cell"].tolist(), 0), 0, -math.inf
    for size, cell in sizes:
        if size > first * (1 + SAME_LAYOUT) or not number:
            number, first = number + 1, size
        found[cell] = number
    return found


def counts_by_kind(finished: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return the multiply-adds in full precision and in binary of each cell that records them, in 10^9."""
    columns = [f"metric/cost/{name}" for name in COUNTS]
    known = finished.reindex(columns=["cell", *columns]).dropna().drop_duplicates("cell")
    return {cell: (full, binary) for cell, full, binary in known.itertuples(index=False)}
