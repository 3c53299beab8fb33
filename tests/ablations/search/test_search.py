"""The search over cells: each is trained once, by however many processes, until the search ends."""

import functools
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ablations.search.records import Failed, Finished, IdentifiedRow, Proposal, RowState
from ablations.search.search import Search
from ablations.space.rows import Row, Sweep, full
from bbcu.errors import ConfigError
from tests.ablations.search.searches import (
    BATCHED,
    COSTS,
    LEVELS,
    SHARED,
    Start,
    cells_of,
    finish,
    identified,
    options_of,
    records_in,
    searched,
    train_all,
    worth,
)

pytestmark = pytest.mark.filterwarnings("error")
SAMPLERS = pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])

# --- every cell once --------------------------------------------------------------------------------------------------


def test_a_whole_space_is_trained_with_each_cell_once(storage: str) -> None:
    levels = {**LEVELS, "align": ["auto", "130"]}
    trained = train_all(searched(storage, levels))
    assert sorted(trained) == sorted(cells_of(levels))
    assert len(trained) < len(full(levels))


@SAMPLERS
def test_no_sampler_trains_a_cell_twice_or_leaves_one_out(journal: str, sampler: str) -> None:
    assert sorted(train_all(searched(journal, BATCHED, sampler=sampler))) == sorted(cells_of(BATCHED))


@pytest.mark.parametrize("objectives", [("psnr_db",), COSTS])
def test_a_batch_has_each_cell_once_and_no_row_that_is_not_one(journal: str, objectives: tuple[str, ...]) -> None:
    batch = searched(journal, objectives=objectives).ask(100)
    assert sorted(proposal.cell for proposal in batch) == sorted(cells_of(LEVELS))
    for proposal in batch:
        assert proposal.row in full(LEVELS)
        assert identified(proposal.row).cell == proposal.cell


@SAMPLERS
def test_draws_from_a_wide_space_are_new(journal: str, sampler: str) -> None:
    levels = {f"key{number}": ["a", "b", "c"] for number in range(9)}
    search = Search(options_of(journal, sampler=sampler), levels, lambda row: IdentifiedRow(" ".join(row)))
    for _ in range(25):
        finish_alike(search, search.ask(1))
    assert len(records_in(search, RowState.REPEATED)) < 10
    values = [{row[place] for row in (record.row for record in search.history())} for place in range(9)]
    assert all(len(texts) > 1 for texts in values)


def finish_alike(search: Search, proposals: Sequence[Proposal]) -> None:
    """Tell the same value for each of these."""
    for proposal in proposals:
        search.tell(proposal, Finished({"psnr_db": 30.0}))


def test_the_sampler_learns_where_there_are_no_cells(journal: str) -> None:
    levels = {"bn": ["none", "pre"], **{f"key{number}": ["a", "b", "c"] for number in range(5)}}

    def half_a_space(row: Row) -> IdentifiedRow:
        return IdentifiedRow(None, "no such network") if "bn=pre" in row else IdentifiedRow(" ".join(row))

    search = Search(options_of(journal), levels, half_a_space)
    for _ in range(40):
        finish_alike(search, search.ask(1))
    draws = [record.state for record in search.history()][20:]
    assert draws.count(RowState.LEFT_OUT) < len(draws) / 10


@pytest.mark.parametrize(
    ("levels", "rows"),
    [
        ({"bn": ["none"]}, {("bn=none",)}),
        ({"channels": ["64"], "bn": ["none", "pre"]}, {("channels=64", "bn=none"), ("channels=64", "bn=pre")}),
        ({"bn": ["none", "pre", "none"]}, {("bn=none",), ("bn=pre",)}),
    ],
    ids=["one row", "a key with one value", "a value twice"],
)
def test_a_small_space_is_searched_whole(journal: str, levels: Sweep, rows: set[Row]) -> None:
    proposals = searched(journal, levels).ask(5)
    assert {proposal.row for proposal in proposals} == rows
    assert len(proposals) == len(rows)


def train_in_step(storage: str, wire: "Connection[list[str], bool]") -> None:
    """Ask for a cell on each message, send its key, and tell its values before the next."""
    search = searched(storage, SHARED)
    proposals: list[Proposal] = []
    wire.send([])
    while wire.recv():
        finish(search, proposals)
        proposals = search.ask(1)
        wire.send([proposal.cell for proposal in proposals])


def test_four_processes_that_ask_at_once_share_the_cells(storage: str, started: Start) -> None:
    wires = [started(train_in_step, storage)[1] for _ in range(4)]
    shares = [[wire.recv()] for wire in wires]
    for _ in range(len(cells_of(SHARED)) // 4 + 1):
        for wire in wires:
            wire.send(True)
        for wire, share in zip(wires, shares, strict=True):
            share.append(wire.recv())
    trained = [cell for share in shares for cells in share for cell in cells]
    assert sorted(trained) == sorted(cells_of(SHARED))
    assert all(share[0] == share[-1] == [] and all(share[1:-1]) for share in shares)


def test_four_threads_share_one_search(storage: str) -> None:
    search = searched(storage, SHARED)
    trained: list[str] = []
    threads = [threading.Thread(target=lambda: trained.extend(train_all(search))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == sorted(cells_of(SHARED))


def test_what_another_process_trains_is_not_proposed(storage: str) -> None:
    first, second = searched(storage), searched(storage)
    theirs = {proposal.cell for proposal in first.ask(4)}
    assert len(theirs) == 4
    assert {proposal.cell for proposal in second.ask(100)} == cells_of(LEVELS) - theirs


# --- rows that cost nothing -------------------------------------------------------------------------------------------


def test_another_row_of_a_finished_cell_gets_its_values(journal: str) -> None:
    search = searched(journal)
    train_all(search)
    known = records_in(search, RowState.KNOWN)
    assert known
    rows = {record.cell: record.row for record in records_in(search, RowState.FINISHED)}
    for record in known:
        assert record.values == {"psnr_db": worth(str(record.cell))["psnr_db"]}
        assert record.row != rows[record.cell]


def test_a_cell_that_was_trained_elsewhere_is_not_trained_again(journal: str) -> None:
    results = sorted(cells_of(LEVELS))[:6]
    search = searched(journal, known=results)
    assert set(train_all(search)) == cells_of(LEVELS) - set(results)
    assert {record.cell for record in records_in(search, RowState.KNOWN)} >= set(results)


def test_a_cell_that_was_trained_elsewhere_can_be_the_best(journal: str) -> None:
    best = max(cells_of(LEVELS), key=lambda cell: worth(cell)["psnr_db"])
    search = searched(journal, known=[best])
    train_all(search)
    [found] = search.front()
    assert (found.cell, found.state) == (best, RowState.KNOWN)


def test_known_cells_do_not_count_as_trials(journal: str) -> None:
    search = searched(journal, BATCHED, sorted(cells_of(BATCHED))[:8], trials=5)
    assert len(train_all(search)) == 5


def test_a_row_that_is_not_a_cell_is_left_out_with_its_reason(journal: str) -> None:
    search = searched(journal, trials=3, sampler="random", seed=1)
    while not records_in(search, RowState.LEFT_OUT):
        search = searched(journal, trials=search.options.trials + 1, sampler="random", seed=1)
        finish(search, search.ask(1))
    impossible = {row for row in full(LEVELS) if identified(row).cell is None}
    for record in records_in(search, RowState.LEFT_OUT):
        assert record.row in impossible
        assert record.reason.startswith("impossible: hardtanh after the add")
        assert record.cell is None


def test_a_space_without_a_cell_is_refused_with_the_reason(journal: str) -> None:
    levels = {"act": ["after"], "act_fn": ["hardtanh"], "align": ["auto", "2"]}
    with pytest.raises(ConfigError, match=r"no row of this search is a cell: act=after .* cuts the stream"):
        searched(journal, levels)


# --- how long it goes on ----------------------------------------------------------------------------------------------


def test_a_search_ends_with_its_trials(journal: str) -> None:
    search = searched(journal, trials=5)
    assert len(search.ask(3)) == 3
    # Cells that run count too.
    assert len(search.ask(8)) == 2
    assert search.ask(1) == []


def test_trials_of_earlier_sessions_count(file: str) -> None:
    first = train_all(searched(file, trials=4))
    assert searched(file, trials=4).ask(9) == []
    more = train_all(searched(file, trials=6))
    assert len(more) == 2
    assert not set(first) & set(more)


def order_of(search: Search) -> list[Row]:
    rows = []
    while proposals := search.ask(1):
        rows.append(proposals[0].row)
        finish(search, proposals)
    return rows


def test_proposals_depend_on_the_sampler_and_the_seed_alone(tmp_path: Path) -> None:
    orders = {
        (sampler, seed, copy): tuple(
            order_of(searched(str(tmp_path / f"{sampler}{seed}{copy}.log"), BATCHED, sampler=sampler, seed=seed))
        )
        for sampler in ("tpe", "nsga2", "random")
        for seed, copy in ((3, "a"), (3, "b"), (4, "a"))
    }
    assert all(orders[sampler, 3, "a"] == orders[sampler, 3, "b"] for sampler in ("tpe", "nsga2", "random"))
    assert len(set(orders.values())) == 6


def test_a_search_in_many_sessions_proposes_what_one_session_does(tmp_path: Path) -> None:
    at_once = order_of(searched(str(tmp_path / "once.log"), BATCHED))
    piecemeal = []
    while True:
        search = searched(str(tmp_path / "piecemeal.log"), BATCHED)
        proposals = search.ask(1)
        if not proposals:
            break
        piecemeal.append(proposals[0].row)
        finish(search, proposals)
        search.close()
    assert piecemeal == at_once


# --- what compares with what ------------------------------------------------------------------------------------------


@SAMPLERS
def test_cells_that_are_proposed_again_change_no_later_draw(tmp_path: Path, sampler: str) -> None:
    undisturbed = searched(str(tmp_path / "undisturbed.log"), trials=6, sampler=sampler)
    expected = train_all(undisturbed)
    storage, trained = str(tmp_path / "disturbed.log"), []
    while True:
        # Each cell is lost with its process at first, and fails when it is proposed again.
        lost = searched(storage, trials=6, sampler=sampler)
        proposals = lost.ask(1)
        lost.close()
        if not proposals:
            break
        search = searched(storage, trials=6, sampler=sampler)
        (proposal,) = search.ask(1)
        assert proposal.cell == proposals[0].cell
        search.tell(proposal, Failed("out of memory"))
        assert search.retry_failed() == 1
        trained += finish(search, search.ask(1))
        search.close()
    assert trained == expected
    assert len(set(trained)) == 6


@pytest.mark.parametrize(
    ("changes", "levels", "setting"),
    [
        ({"objectives": COSTS}, {}, "laptop"),
        ({"name": "other"}, {}, "laptop"),
        ({}, {}, "gpu"),
        ({}, {"bn": ["none", "pre"]}, "laptop"),
    ],
    ids=["objectives", "name", "setting", "levels"],
)
def test_another_question_is_another_search(journal: str, changes: dict[str, Any], levels: Sweep, setting: str) -> None:
    train_all(searched(journal))
    search = Search(
        options_of(journal, **changes), {**LEVELS, **levels}, functools.partial(identified, setting=setting)
    )
    assert search.history() == []
    assert len(search.ask(3)) == 3


@pytest.mark.parametrize(
    ("price", "is_another"), [("1/8", True), ("0.015625", False)], ids=["another price", "the same price"]
)
def test_operations_at_another_price_are_another_search(journal: str, price: str, is_another: bool) -> None:
    train_all(searched(journal, objectives=COSTS))
    search = searched(journal, objectives=COSTS, binary_price=price)
    assert (search.history() == []) == is_another


def test_a_price_is_no_matter_to_a_search_that_counts_nothing(journal: str) -> None:
    train_all(searched(journal))
    assert searched(journal, binary_price="measured").ask(1) == []


@pytest.mark.parametrize("changes", [{"sampler": "random"}, {"seed": 7}, {"pruner": "median"}, {"trials": 50}])
def test_another_way_to_search_continues_the_same_search(journal: str, changes: dict[str, Any]) -> None:
    train_all(searched(journal))
    search = searched(journal, **changes)
    assert search.ask(1) == []
    assert search.front()
