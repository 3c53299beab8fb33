"""Small searches, whose cells are worth what their keys say."""

import dataclasses
import multiprocessing
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from ablations.planning.outline import split
from ablations.search.options import SearchOptions
from ablations.search.records import Finished, IdentifiedRow, Proposal, Record, RowState
from ablations.search.search import Search
from ablations.space.cells import Cell, canonical_levels
from ablations.space.conditions import value_of
from ablations.space.factors import REFERENCE
from ablations.space.rows import Row, Sweep, full
from ablations.space.rules import Backbone, ImpossibleCell

FORK = multiprocessing.get_context("fork")
BACKBONE = Backbone("srresnet", 64)
LEVELS: Sweep = {
    "residual": ["true", "false"],
    "act": ["inside", "after"],
    "act_fn": ["rprelu", "hardtanh"],
    "align": ["auto", "130", "1"],
}
"""24 rows; auto is 130, without a residual both places of an activation are one, hardtanh cuts an aligned stream."""
BATCHED: Sweep = {"bn": ["none", "pre", "post", "out"], "threshold": ["true", "false"], "weight": ["l1", "plain"]}
"""16 rows and as many cells."""
SHARED: Sweep = {"bn": ["none", "pre", "post", "out"], "threshold": ["true", "false"]}
"""8 rows and as many cells, two for each of four processes."""
COSTS = ("psnr_db", "ops_g")


def identified(row: Row, setting: str = "laptop") -> IdentifiedRow:
    """Identify a row by the rules of the space."""
    try:
        levels = canonical_levels({**REFERENCE, **{key: value_of(text) for key, text in map(split, row)}}, BACKBONE)
    except ImpossibleCell as error:
        return IdentifiedRow(None, f"impossible: {error}")
    return IdentifiedRow(Cell(levels.levels, {"budget": setting}).key)


def worth(cell: str) -> dict[str, float]:
    """The values of a cell; they depend on its key alone, in no order."""
    return {"psnr_db": 30 + int(cell[:4], 16) / 2**16, "ops_g": float(int(cell[4:8], 16))}


def cells_of(levels: Sweep) -> set[str]:
    return {found.cell for row in full(levels) if (found := identified(row)).cell is not None}


def options_of(storage: str, **changes: Any) -> SearchOptions:
    return SearchOptions(**{"trials": 100, "storage": storage, "name": "study", **changes})


def searched(storage: str, levels: Sweep = LEVELS, known: Collection[str] = (), **changes: Any) -> Search:
    """A search; the cells in ``known`` are trained already."""

    def identify(row: Row) -> IdentifiedRow:
        found = identified(row)
        values = worth(found.cell) if found.cell in known and found.cell is not None else None
        return dataclasses.replace(found, values=values)

    return Search(options_of(storage, **changes), levels, identify)


def finish(search: Search, proposals: Sequence[Proposal]) -> list[str]:
    """Tell the values of these proposals; return their cells."""
    for proposal in proposals:
        search.tell(proposal, Finished(worth(proposal.cell)))
    return [proposal.cell for proposal in proposals]


def train_all(search: Search) -> list[str]:
    """Train until the search ends; return the cells in their order."""
    trained = []
    while proposals := search.ask(1):
        trained += finish(search, proposals)
    return trained


def records_in(search: Search, state: RowState) -> list[Record]:
    return [record for record in search.history() if record.state == state]


Start = Callable[..., tuple["BaseProcess", "Connection[Any, Any]"]]
"""Starts a function in another process; returns the process and a connection to it."""
