"""What a search is told and what it tells: rows, proposals, outcomes, and the record of every row that was drawn."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from ablations.space.rows import Row


@dataclass(frozen=True)
class IdentifiedRow:
    """What a row is: the key of its cell, or None and the reason why it is not a cell.

    The key must cover all that the cell's values depend on, seeds included: of two rows with one key only one is
    trained, and values stored under another key are never mixed with these. ``values`` are those of a cell that is
    trained already, which costs nothing when it is drawn; None for others.
    """

    cell: str | None
    reason: str = ""
    values: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Proposal:
    """A cell to train, and the row that asks for it; ``number`` is the row's number in the history."""

    number: int
    row: Row
    cell: str


@dataclass(frozen=True)
class Finished:
    """A cell is trained; ``values`` has each objective, and may have more."""

    values: Mapping[str, float]


@dataclass(frozen=True)
class Failed:
    """A cell has no result; it is not proposed again unless :meth:`Search.retry_failed` is called."""

    reason: str


@dataclass(frozen=True)
class Pruned:
    """A cell was ended early at a step because it scored too low; it is never proposed again."""

    step: int


CellOutcome = Finished | Failed | Pruned


class RowState(enum.StrEnum):
    """The state of a row that was drawn.

    Only the first five were, or will be, proposed. The cell of a known row had its values already, the cell of a
    repeated row was drawn before, and an abandoned row, whose process died, is proposed again under another number.
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

    ``cell`` is None if the row is not a cell. ``values`` is empty without a result. ``reason`` says why a row failed,
    was left out or was not proposed, and ``step`` where it was pruned.
    """

    number: int
    row: Row
    cell: str | None
    state: RowState
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    step: int | None = None
