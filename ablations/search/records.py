"""The data that goes into and out of a search: rows, proposals, outcomes, and a record of every row that was drawn."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from ablations.space.rows import Row


@dataclass(frozen=True)
class IdentifiedRow:
    """The cell of a row: its key, or None and the reason why the row is not a cell.

    The key must cover everything that the cell's values depend on, including seeds: of the rows with the same key only
    one is trained, and only values under the same key are compared. ``values`` has the objectives of a cell that is
    already trained, or None. ``notes`` is what programs that show the storage say of the cell, by name.
    """

    cell: str | None
    reason: str = ""
    values: Mapping[str, float] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """A cell to train and its row; ``number`` is the row's number in the history."""

    number: int
    row: Row
    cell: str


@dataclass(frozen=True)
class Finished:
    """A cell was trained; ``values`` has at least the objectives."""

    values: Mapping[str, float]


@dataclass(frozen=True)
class Failed:
    """A cell has no result; it is not proposed again unless :meth:`Search.retry_failed` is called."""

    reason: str


@dataclass(frozen=True)
class Pruned:
    """A cell was pruned at a step because its score was too low; it is never proposed again."""

    step: int


CellOutcome = Finished | Failed | Pruned


class RowState(enum.StrEnum):
    """The state of a row that was drawn.

    Only rows in the first five states are or were proposed. The cell of a known row had values before it was drawn, the
    cell of a repeated row was drawn before, and an abandoned row, whose process died, is proposed again under a new
    number.
    """

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"
    KNOWN = "known"
    REPEATED = "repeated"
    LEFT_OUT = "left out"
    ABANDONED = "abandoned"


WITH_VALUES = (RowState.FINISHED, RowState.KNOWN)
UNDECIDED = (RowState.FAILED, RowState.ABANDONED, RowState.QUEUED)
"""The states in which a queued cell may be proposed again."""


@dataclass(frozen=True)
class Record:
    """One row of the history; ``dataclasses.asdict`` makes it JSON.

    ``cell`` is None if the row is not a cell. ``values`` is empty without a result. ``reason`` is why a row failed, was
    left out or was not proposed, and ``step`` is where it was pruned.
    """

    number: int
    row: Row
    cell: str | None
    state: RowState
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    step: int | None = None
