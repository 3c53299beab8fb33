"""Say whether a counted saving is real, and what depends on the price of a binary multiply-add.

By count an intervention saves a share of the operations, by the clock a share of the time. The time of a cell is its
ratio to the full-precision twin that was measured in the same run (:mod:`analysis.study.latency`), and its seeds are
repeats of the measurement: the difference of the logarithms of two cells has Welch's interval, and its p is corrected
by Holm for all comparisons of the task.
"""

import dataclasses
import enum
import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from ablations.space.interventions import Pair
from ablations.space.price import MEASURED, PAPER, price_of
from analysis.effects.curves import SAME_TIME, TIME, front
from analysis.statistics.estimates import ALPHA, Estimate, holm
from analysis.statistics.rounding import rounded
from analysis.study.latency import Latency, Place, counts_by_kind
from analysis.study.prices import operations
from analysis.study.tasks import TaskResults

CONFIRMED = 0.5
"""The share of a counted saving that the clock must confirm for it to be real."""

MOST_LOG = 30.0
"""The logarithm of the largest factor between two times that is told apart from a larger one."""

OTHER_PRICE = "1/8"
"""The price of a contest, which a report ranks by beside the paper's."""


class Word(enum.StrEnum):
    """What the clock says of a saving by count.

    - ``REAL``: it surely saves time, at least half the share that is saved by count.
    - ``SMALLER``: it surely saves time, but less than half of that share.
    - ``NONE``: a difference in time is within the noise of the measurement, or below 2 %.
    - ``COSTS``: it surely takes more time.
    - ``UNCOUNTED``: it surely saves time, though it saves nothing by count.
    - ``ONE_SEED``: a cell was measured under one seed only, so the noise is not known.

    Surely is a p below 5 %, corrected for all comparisons of the task, and a difference of at least 2 %.
    """

    REAL = "real"
    SMALLER = "smaller than counted"
    NONE = "none"
    COSTS = "costs time"
    UNCOUNTED = "not counted"
    ONE_SEED = "one seed"


@dataclasses.dataclass(frozen=True)
class Saving:
    """What an intervention saves, as shares of what the cell before it takes; negative if it takes more.

    ``by_count`` is of the operations (NaN if there were none), ``by_clock`` of the time with its 95 % interval from
    ``low`` to ``high``, which is not corrected. ``p`` is corrected by Holm, and ``n`` the smaller number of seeds.
    """

    by_count: float
    by_clock: float
    low: float
    high: float
    p: float
    n: int
    word: Word


def word_of(by_count: float, by_clock: float, p: float) -> Word:
    """Return the word for two savings, as shares, and the corrected p of no difference in time; NaN if not tested."""
    by_count, by_clock, p = rounded((by_count, by_clock, p))
    if math.isnan(p):
        return Word.ONE_SEED
    if p >= ALPHA or abs(by_clock) < SAME_TIME:
        return Word.NONE
    if by_clock < 0:
        return Word.COSTS
    if not by_count > 0:
        return Word.UNCOUNTED
    return Word.REAL if by_clock >= CONFIRMED * by_count else Word.SMALLER


def savings(
    latency: Latency, ops_g: Mapping[str, float], pairs: Sequence[Pair], place: Place | None = None
) -> dict[Pair, Saving]:
    """Return what each pair of cells saves that was measured at a place, by default the main one."""
    found = {pair: each for pair in pairs if (each := latency.change(pair, place)) is not None}
    corrected = rounded(holm([each.p for each in found.values()]).tolist()) if found else []
    return {
        pair: saving(each, ops_g[pair[0]], ops_g[pair[1]], p)
        for (pair, each), p in zip(found.items(), corrected, strict=True)
    }


def saving(change: Estimate, before_g: float, after_g: float, p: float) -> Saving:
    """Return the saving of a change in the logarithm of the time, between cells of these operations."""
    by_count = 0.0 - change_of(before_g, after_g)
    by_clock, low, high = (1 - math.exp(min(each, MOST_LOG)) for each in (change.mean, change.high, change.low))
    return rounded(Saving(by_count, by_clock, low, high, p, change.n, word_of(by_count, by_clock, p)))


# ---- other prices ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Flip:
    """Two cells whose order by cost is not the same everywhere: ``cheaper`` is so at the paper's price.

    ``change`` has the cost of ``cheaper`` over that of ``other``, minus 1, by price and by :data:`TIME`.
    """

    cheaper: str
    other: str
    change: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Prices:
    """The trained cells of a task at several prices of a binary multiply-add.

    ``costs`` has a row for each cell: ``cell``, ``label``, ``mean`` (PSNR in dB on the first test set), a column of
    10^9 operations for each price, and :data:`TIME` if two cells were measured. ``fronts`` are the keys of the cells
    that no other one beats, by column. ``flips`` are pairs of the ``compared`` cells, the largest first.
    """

    costs: pd.DataFrame
    fronts: Mapping[str, frozenset[str]]
    flips: Sequence[Flip]
    compared: int

    @property
    def prices(self) -> list[str]:
        """The columns of operations."""
        return [name for name in self.fronts if name != TIME]

    @property
    def is_timed(self) -> bool:
        return TIME in self.fronts

    @property
    def differing(self) -> bool:
        """Whether other cells are on the front by one column than by another."""
        return len(set(self.fronts.values())) > 1

    @property
    def on_some_front(self) -> pd.DataFrame:
        """The cells on any front, the highest PSNR first."""
        some = frozenset().union(*self.fronts.values())
        return self.costs[self.costs["cell"].isin(some)].sort_values(["mean", "cell"], ascending=[False, True])

    def only_on(self, one: str, other: str) -> list[str]:
        """Return the labels of the cells that are on one front and not on the other, the highest PSNR first.

        A cell that was not measured is left out beside the front by the clock.
        """
        cells = self.on_some_front.dropna(subset=[one, other])
        return cells[cells["cell"].isin(self.fronts[one] - self.fronts[other])]["label"].tolist()


def prices_of(results: TaskResults, latency: Latency, means: Mapping[str, float], most: int) -> Prices | None:
    """Rank the trained cells at each price and by the clock; None if fewer than two record what is counted.

    ``means`` has the PSNR of each cell in dB. Of more than ``most`` cells, only those on some front are compared pair
    by pair.
    """
    counts = counts_by_kind(results.finished)
    cells = [cell for cell in results.trained if cell in counts]
    if len(cells) < 2:
        return None
    price = results.study.price
    prices = list(dict.fromkeys([PAPER, OTHER_PRICE, *([price] if price != MEASURED else [])]))
    prices = [name for place, name in enumerate(prices) if price_of(name) not in map(price_of, prices[:place])]
    costs = pd.DataFrame(
        {
            "cell": cell,
            "label": results.labels[cell],
            "mean": means[cell],
            **{name: operations(*counts[cell], name) for name in prices},
            TIME: latency.relative(cell, results.reference),
        }
        for cell in cells
    )
    columns = [*prices, *([TIME] if costs[TIME].notna().sum() > 1 else [])]
    costs = costs[["cell", "label", "mean", *columns]]
    fronts = {name: frozenset(front(costs.dropna(subset=[name, "mean"]), name)["cell"]) for name in columns}
    on_some = frozenset().union(*fronts.values())
    compared = cells if len(cells) <= most else [cell for cell in cells if cell in on_some][:most]
    return Prices(costs, fronts, flips(costs, columns, compared, latency), len(compared))


def flips(costs: pd.DataFrame, columns: Sequence[str], cells: Sequence[str], latency: Latency) -> list[Flip]:
    """Return the pairs that change their order; by the clock only where their times surely differ."""
    known = {row["cell"]: row for _, row in costs.iterrows()}
    pairs = [pair for pair in itertools.combinations(cells, 2) if known[pair[0]][PAPER] != known[pair[1]][PAPER]]
    timed = savings(latency, {cell: known[cell][PAPER] for cell in cells}, pairs) if TIME in columns else {}
    found = []
    for pair in pairs:
        cheaper, other = sorted(pair, key=lambda cell: known[cell][PAPER])
        change = {name: change_of(known[other][name], known[cheaper][name]) for name in columns}
        sure = pair in timed and timed[pair].word not in (Word.NONE, Word.ONE_SEED)
        if any(value > 0 and (name != TIME or sure) for name, value in change.items()):
            found.append(Flip(cheaper, other, change))
    return sorted(found, key=size_of_flip, reverse=True)


def change_of(before: float, after: float) -> float:
    """Return a change as a share of what was before; NaN if that is 0 or not known."""
    return rounded(float(after / before - 1)) if before > 0 else math.nan


def size_of_flip(flip: Flip) -> float:
    """Return by what factor the cost changes its ratio, at the price where it changes most."""
    ratios = [1 + value for value in flip.change.values() if value > -1]
    return rounded(max(ratios) / min(ratios)) if ratios else 0.0
