"""The search over cells: each trained once by however many processes, and nothing lost with any of them."""

import dataclasses
import functools
import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ablations.planning.outline import split
from ablations.search.options import SearchOptions
from ablations.search.records import Failed, Finished, IdentifiedRow, Proposal, Pruned, Record, RowState
from ablations.search.search import Search
from ablations.space.cells import Cell, canonical_levels
from ablations.space.conditions import value_of
from ablations.space.factors import REFERENCE
from ablations.space.rows import Row, Sweep, full
from ablations.space.rules import Frame, ImpossibleCell
from bbcu.errors import BbcuError, ConfigError
from tests.harness.paths import REPOSITORY

if TYPE_CHECKING:
    from tests.harness.servers import PostgreSQL

pytestmark = pytest.mark.filterwarnings("error")

SPAWN = multiprocessing.get_context("spawn")
FRAME = Frame("srresnet", 64)
LEVELS: Sweep = {
    "residual": ["true", "false"],
    "act": ["inside", "after"],
    "act_fn": ["rprelu", "hardtanh"],
    "align": ["auto", "130", "1"],
}
"""24 rows; auto is 130, without a residual both places of an activation are one, hardtanh cuts an aligned stream."""
BATCHED: Sweep = {"bn": ["none", "pre", "post", "out"], "threshold": ["true", "false"], "weight": ["l1", "plain"]}
"""16 rows and as many cells."""
COSTS = ("psnr_db", "ops_g")


def identified(row: Row, setting: str = "laptop") -> IdentifiedRow:
    """What a row is by the rules of the space."""
    try:
        levels = canonical_levels({**REFERENCE, **{key: value_of(text) for key, text in map(split, row)}}, FRAME)
    except ImpossibleCell as error:
        return IdentifiedRow(None, f"impossible: {error}")
    return IdentifiedRow(Cell(levels.factors, {"budget": setting}).key)


def worth(cell: str) -> dict[str, float]:
    """Values that nothing but the cell decides, without any order in them."""
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
    """Tell what these are worth; their cells."""
    for proposal in proposals:
        search.tell(proposal, Finished(worth(proposal.cell)))
    return [proposal.cell for proposal in proposals]


def train_all(search: Search) -> list[str]:
    """Train until nothing new comes; the cells in their order."""
    trained = []
    while proposals := search.ask(1):
        trained += finish(search, proposals)
    return trained


def records_in(search: Search, state: RowState) -> list[Record]:
    return [record for record in search.history() if record.state == state]


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "search.log")


@pytest.fixture(scope="module")
def server() -> Iterator["PostgreSQL"]:
    # Processes that are started import this file too, and what runs servers brings MLflow along.
    from tests.harness.servers import postgresql

    with postgresql() as running:
        yield running


@pytest.fixture(params=["journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of each kind, with nothing in it."""
    if request.param == "postgresql":
        database: str = request.getfixturevalue("server").create()
        return database
    return {"journal": str(tmp_path / "search.log"), "sqlite": f"sqlite:///{tmp_path}/search.db"}[request.param]


Start = Callable[..., tuple["BaseProcess", "Connection[Any, Any]"]]


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts a function in a process of its own, with a wire to it; what is left of them is killed in the end."""
    processes = []

    def start(function: Callable[..., None], *arguments: object) -> tuple[BaseProcess, "Connection[Any, Any]"]:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=function, args=(*arguments, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        return process, ours

    yield start
    for process in processes:
        process.kill()
        process.join()


# --- every cell once --------------------------------------------------------------------------------------------------


def test_a_whole_space_is_trained_with_each_cell_once(storage: str) -> None:
    trained = train_all(searched(storage))
    assert sorted(trained) == sorted(cells_of(LEVELS))
    assert len(trained) < len(full(LEVELS))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_no_sampler_trains_a_cell_twice_or_leaves_one_out(journal: str, sampler: str) -> None:
    assert sorted(train_all(searched(journal, BATCHED, sampler=sampler))) == sorted(cells_of(BATCHED))


@pytest.mark.parametrize("objectives", [("psnr_db",), COSTS])
def test_a_batch_has_each_cell_once_and_no_row_that_is_not_one(journal: str, objectives: tuple[str, ...]) -> None:
    batch = searched(journal, objectives=objectives).ask(100)
    assert sorted(proposal.cell for proposal in batch) == sorted(cells_of(LEVELS))
    for proposal in batch:
        assert proposal.row in full(LEVELS)
        assert identified(proposal.row).cell == proposal.cell


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_draws_from_a_wide_space_are_new(journal: str, sampler: str) -> None:
    levels = {f"key{number}": ["a", "b", "c"] for number in range(9)}
    search = Search(options_of(journal, sampler=sampler), levels, lambda row: IdentifiedRow(" ".join(row)))
    for _ in range(25):
        finish_alike(search, search.ask(1))
    assert len(records_in(search, RowState.REPEATED)) < 10
    values = [{row[place] for row in (record.row for record in search.history())} for place in range(9)]
    assert all(len(texts) > 1 for texts in values)


def finish_alike(search: Search, proposals: Sequence[Proposal]) -> None:
    """Tell that these are all worth the same."""
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
    """Ask for a cell whenever it is said to, say which it is, and tell its values before the next."""
    search = searched(storage, BATCHED)
    proposals: list[Proposal] = []
    wire.send([])
    while wire.recv():
        finish(search, proposals)
        proposals = search.ask(1)
        wire.send([proposal.cell for proposal in proposals])


@pytest.mark.slow
def test_four_processes_that_ask_at_once_share_the_cells(storage: str, started: Start) -> None:
    wires = [started(train_in_step, storage)[1] for _ in range(4)]
    shares = [[wire.recv()] for wire in wires]
    for _ in range(len(cells_of(BATCHED)) // 4 + 1):
        for wire in wires:
            wire.send(True)
        for wire, share in zip(wires, shares, strict=True):
            share.append(wire.recv())
    trained = [cell for share in shares for cells in share for cell in cells]
    assert sorted(trained) == sorted(cells_of(BATCHED))
    assert all(share[0] == share[-1] == [] and all(share[1:-1]) for share in shares)


def test_four_threads_share_one_search(storage: str) -> None:
    search = searched(storage, BATCHED)
    trained: list[str] = []
    threads = [threading.Thread(target=lambda: trained.extend(train_all(search))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == sorted(cells_of(BATCHED))


def test_what_another_process_trains_is_not_proposed(storage: str) -> None:
    first, second = searched(storage), searched(storage)
    theirs = {proposal.cell for proposal in first.ask(4)}
    assert len(theirs) == 4
    assert {proposal.cell for proposal in second.ask(100)} == cells_of(LEVELS) - theirs


# --- rows that cost nothing -------------------------------------------------------------------------------------------


def test_another_row_of_a_finished_cell_is_told_its_values(journal: str) -> None:
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


def test_what_is_known_costs_nothing_of_the_trials(journal: str) -> None:
    search = searched(journal, BATCHED, sorted(cells_of(BATCHED))[:8], trials=5)
    assert len(train_all(search)) == 5


def test_a_row_that_is_no_cell_is_left_out_with_its_reason(journal: str) -> None:
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


def test_trials_of_earlier_sessions_count(storage: str) -> None:
    first = train_all(searched(storage, trials=4))
    assert searched(storage, trials=4).ask(9) == []
    more = train_all(searched(storage, trials=6))
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


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_cells_that_are_given_out_again_change_no_draw_after_them(tmp_path: Path, sampler: str) -> None:
    undisturbed = searched(str(tmp_path / "undisturbed.log"), trials=10, sampler=sampler)
    expected = train_all(undisturbed)
    storage, trained = str(tmp_path / "disturbed.log"), []
    while True:
        # Each cell is lost with its process at first, and fails when it is given out again.
        lost = searched(storage, trials=10, sampler=sampler)
        proposals = lost.ask(1)
        lost.close()
        if not proposals:
            break
        search = searched(storage, trials=10, sampler=sampler)
        (proposal,) = search.ask(1)
        assert proposal.cell == proposals[0].cell
        search.tell(proposal, Failed("out of memory"))
        assert search.retry_failed() == 1
        trained += finish(search, search.ask(1))
        search.close()
    assert trained == expected
    assert len(set(trained)) == 10


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"objectives": COSTS}, "laptop"), ({"name": "other"}, "laptop"), ({}, "gpu")],
    ids=["objectives", "name", "setting"],
)
def test_another_question_is_another_search(journal: str, changes: dict[str, Any], setting: str) -> None:
    train_all(searched(journal))
    search = Search(options_of(journal, **changes), LEVELS, functools.partial(identified, setting=setting))
    assert search.history() == []
    assert len(search.ask(3)) == 3


def test_another_level_is_another_search(journal: str) -> None:
    train_all(searched(journal, {"bn": ["none", "pre"]}))
    assert len(searched(journal, {"bn": ["none", "pre", "post"]}).ask(9)) == 3


@pytest.mark.parametrize("changes", [{"sampler": "random"}, {"seed": 7}, {"pruner": "median"}, {"trials": 50}])
def test_another_way_to_search_goes_on_with_the_same_search(journal: str, changes: dict[str, Any]) -> None:
    train_all(searched(journal))
    search = searched(journal, **changes)
    assert search.ask(1) == []
    assert search.front()


# --- failures, and processes that end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_failed_cell_keeps_its_reason_and_is_not_proposed_again(journal: str, seed: int) -> None:
    search = searched(journal, {"bn": ["none", "pre"]}, seed=seed)
    [proposal] = search.ask(1)
    search.tell(proposal, Failed("out of memory"))
    assert set(train_all(search)) == cells_of({"bn": ["none", "pre"]}) - {proposal.cell}
    [record] = records_in(search, RowState.FAILED)
    assert (record.cell, record.reason) == (proposal.cell, "out of memory")


def test_a_failed_cell_is_tried_again_once_where_that_is_asked_for(storage: str) -> None:
    search = searched(storage, trials=3)
    proposals = search.ask(3)
    search.tell(proposals[1], Failed("out of memory"))
    finish(search, [proposals[0], proposals[2]])
    assert search.retry_failed() == 1
    again = search.ask(9)
    assert [proposal.row for proposal in again] == [proposals[1].row]
    finish(search, again)
    assert search.retry_failed() == 0
    assert search.ask(9) == []


def test_two_processes_try_a_failed_cell_again_once(journal: str) -> None:
    first, second = searched(journal, trials=1), searched(journal, trials=1)
    first.tell(first.ask(1)[0], Failed("out of memory"))
    assert (first.retry_failed(), second.retry_failed()) == (1, 0)
    assert (len(second.ask(9)), len(first.ask(9))) == (1, 0)


def test_a_failed_cell_that_has_a_result_by_now_is_told_it(journal: str) -> None:
    search = searched(journal, trials=1)
    [proposal] = search.ask(1)
    search.tell(proposal, Failed("the server was away"))
    search.close()
    again = searched(journal, known=[proposal.cell], trials=1)
    again.retry_failed()
    assert again.ask(1) == []
    [best] = again.front()
    assert (best.cell, best.state) == (proposal.cell, RowState.KNOWN)


# --- scores of other code ---------------------------------------------------------------------------------------------


def scored_by(storage: str, code: str, cells: int) -> list[str]:
    """Search for so many cells with this code; which were trained."""
    search = searched(storage, code=code, trials=cells)
    trained = train_all(search)
    search.close()
    return trained


def test_scores_of_other_code_are_named_and_the_user_chooses(storage: str) -> None:
    scored_by(storage, "old", 2)
    with pytest.raises(ConfigError, match="it was made by code old, and this is new; on_change=keep takes it as it is"):
        searched(storage, code="new")


def test_scores_of_other_code_that_are_kept_are_learned_from(storage: str) -> None:
    scored_by(storage, "old", 2)
    search = searched(storage, code="new", on_change="keep", trials=3)
    assert len(train_all(search)) == 1
    assert len(records_in(search, RowState.FINISHED)) == 3
    search.close()
    with pytest.raises(ConfigError, match="code old"):
        searched(storage, code="new")


def test_a_search_that_is_begun_anew_for_other_code_has_none_of_the_scores_and_goes_on(storage: str) -> None:
    old = scored_by(storage, "old", 2)
    search = searched(storage, code="new", on_change="retrain", trials=2)
    assert search.history() == []
    assert train_all(search) == old
    search.close()
    again = searched(storage, code="new", trials=2)
    assert len(records_in(again, RowState.FINISHED)) == 2
    assert train_all(again) == []
    again.close()
    assert searched(storage, code="newest", on_change="retrain").history() == []


def test_a_search_without_a_score_belongs_to_whoever_comes_next(storage: str) -> None:
    search = searched(storage, code="old")
    search.ask(1)
    search.close()
    assert len(scored_by(storage, "new", 1)) == 1
    with pytest.raises(ConfigError, match="made by code new, and this is old"):
        searched(storage, code="old")


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_value_that_is_no_number_is_a_failure(journal: str) -> None:
    search = searched(journal)
    [proposal] = search.ask(1)
    search.tell(proposal, Finished({"psnr_db": float("nan")}))
    assert [record.reason for record in records_in(search, RowState.FAILED)] == ["psnr_db is nan"]
    assert search.front() == []


def test_a_missing_objective_is_an_error(journal: str) -> None:
    search = searched(journal, objectives=COSTS)
    with pytest.raises(ValueError, match="no value for ops_g among psnr_db"):
        search.tell(search.ask(1)[0], Finished({"psnr_db": 30.0}))


def ask_and_wait(storage: str, count: int, wire: "Connection[list[Proposal], object]") -> None:
    """Ask, say what was proposed, and stay."""
    search = searched(storage)
    wire.send(search.ask(count))
    wire.recv()


def train_and_say(storage: str, wire: "Connection[str, object]") -> None:
    """Train cell by cell, and say each that is told."""
    search = searched(storage)
    while proposals := search.ask(1):
        wire.send(finish(search, proposals)[0])


def test_cells_of_a_killed_process_are_proposed_again_first_and_once(storage: str, started: Start) -> None:
    process, wire = started(ask_and_wait, storage, 3)
    theirs = wire.recv()
    search, other = searched(storage), searched(storage)
    [before] = search.ask(1)
    assert before.cell not in {proposal.cell for proposal in theirs}
    process.kill()
    process.join()
    assert [proposal.row for proposal in search.ask(3)] == [proposal.row for proposal in theirs]
    rest = {proposal.cell for proposal in other.ask(100)}
    assert rest == cells_of(LEVELS) - {before.cell} - {proposal.cell for proposal in theirs}


def test_a_search_that_is_killed_in_the_middle_goes_on(storage: str, started: Start) -> None:
    process, wire = started(train_and_say, storage)
    told = {wire.recv() for _ in range(4)}
    process.kill()
    process.join()
    while wire.poll():
        try:
            told.add(wire.recv())
        except EOFError:
            break
    resumed = train_all(searched(storage))
    assert len(resumed) == len(set(resumed))
    assert not told & set(resumed)
    # A cell may have been told and not said any more.
    assert cells_of(LEVELS) - set(resumed) - told <= {
        record.cell for record in records_in(searched(storage), RowState.FINISHED)
    }


def test_cells_that_are_taken_up_again_cost_nothing_of_the_trials(journal: str) -> None:
    first = searched(journal, trials=3)
    finish(first, first.ask(3)[:1])
    first.close()
    assert len(searched(journal, trials=3).ask(9)) == 2


def test_an_abandoned_cell_with_a_result_is_told_it(journal: str) -> None:
    first = searched(journal, trials=1)
    [proposal] = first.ask(1)
    first.close()
    second = searched(journal, known=[proposal.cell], trials=1)
    assert second.ask(9) == []
    assert [record.cell for record in records_in(second, RowState.FINISHED)] == [proposal.cell]


@pytest.mark.postgres
def test_a_search_goes_on_when_its_server_was_restarted(server: "PostgreSQL") -> None:
    storage = server.create()
    first, second = searched(storage, trials=3), searched(storage, trials=3)
    before = first.ask(1)
    server.stop()
    server.start()
    after = first.ask(1)
    assert len(second.ask(9)) == 1
    assert finish(first, [*before, *after]) == [proposal.cell for proposal in (*before, *after)]


def test_a_search_that_failed_to_look_at_a_row_can_be_asked_again(journal: str) -> None:
    broken = True

    def fragile(row: Row) -> IdentifiedRow:
        if broken and "bn=pre" in row:
            raise OSError("the folder was away")
        return identified(row)

    search = Search(options_of(journal), {"bn": ["none", "pre"]}, fragile)
    with pytest.raises(OSError, match="the folder was away"):
        search.ask(9)
    broken = False
    trained = train_all(search) + [record.cell for record in records_in(search, RowState.RUNNING)]
    assert sorted(map(str, trained)) == sorted(cells_of({"bn": ["none", "pre"]}))


def test_values_of_a_cell_that_was_given_to_another_are_kept(tmp_path: Path) -> None:
    storage = str(tmp_path / "search.log")
    late = searched(storage, trials=1)
    [proposal] = late.ask(1)
    for sign in (tmp_path / ".search.log.workers").iterdir():
        sign.unlink()
    other = searched(storage, trials=1)
    [again] = other.ask(1)
    assert again.cell == proposal.cell
    late.tell(proposal, Finished(worth(proposal.cell)))
    other.tell(again, Failed("out of memory"))
    late.retry_failed()
    assert late.ask(1) == []
    assert [record.cell for record in records_in(late, RowState.KNOWN)] == [proposal.cell]


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "told"])
def test_a_proposal_is_told_once_and_not_after_it_was_given_up(journal: str, closes: bool) -> None:
    search = searched(journal)
    proposals = search.ask(1)
    if closes:
        search.close()
    else:
        finish(search, proposals)
    with pytest.raises(ValueError, match="proposal 0 is not this search's, or is told already"):
        finish(search, proposals)


def test_a_partial_last_line_of_a_journal_is_truncated(journal: str) -> None:
    first = searched(journal)
    told = finish(first, first.ask(2))
    with Path(journal).open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert set(train_all(searched(journal))) == cells_of(LEVELS) - set(told)
    assert all(json.loads(line) for line in Path(journal).read_text().splitlines())


# --- what is best -----------------------------------------------------------------------------------------------------


def test_the_best_is_the_cell_with_the_highest_psnr(journal: str) -> None:
    search = searched(journal)
    assert search.front() == []
    trained = train_all(search)
    [best] = search.front()
    assert best.cell == max(trained, key=lambda cell: worth(cell)["psnr_db"])
    assert best.values == {"psnr_db": worth(best.cell)["psnr_db"]}
    assert search.front() == [best]


def test_the_front_has_what_no_other_cell_beats(journal: str) -> None:
    search = searched(journal, objectives=COSTS)
    trained = train_all(search)

    def beats(one: str, other: str) -> bool:
        better, costlier = worth(one), worth(other)
        return better["psnr_db"] > costlier["psnr_db"] and better["ops_g"] < costlier["ops_g"]

    expected = {cell for cell in trained if not any(beats(other, cell) for other in trained)}
    front = search.front()
    assert 1 < len(expected) < len(trained)
    assert {record.cell for record in front} == expected
    assert len(front) == len(expected)
    assert [record.values["psnr_db"] for record in front] == sorted(
        (worth(cell)["psnr_db"] for cell in expected), reverse=True
    )


def test_the_history_is_json_and_the_same_in_the_next_session(journal: str) -> None:
    search = searched(journal)
    proposals = search.ask(3)
    search.tell(proposals[0], Pruned(120))
    search.tell(proposals[1], Failed("out of memory"))
    train_all(search)
    finish(search, proposals[2:])
    rows = json.loads(json.dumps([dataclasses.asdict(record) for record in search.history()]))
    assert rows == json.loads(json.dumps([dataclasses.asdict(record) for record in searched(journal).history()]))
    pruned = next(row for row in rows if row["state"] == "pruned")
    assert (pruned["step"], pruned["cell"], pruned["row"]) == (120, proposals[0].cell, list(proposals[0].row))


# --- pruning ----------------------------------------------------------------------------------------------------------


def with_curves(search: Search, count: int) -> None:
    """Train this many cells whose curves rise from 30 to 32 dB in three points."""
    for proposal in search.ask(count):
        for step, value in ((100, 30.0), (200, 31.0), (300, 32.0)):
            search.report(proposal, step, value)
        search.tell(proposal, Finished({"psnr_db": 32.0}))


@pytest.mark.parametrize(("pruner", "prunes"), [("median", True), ("halving", True), ("none", False)])
def test_a_hopeless_curve_is_pruned(storage: str, pruner: str, prunes: bool) -> None:
    search = searched(storage, BATCHED, pruner=pruner)
    with_curves(search, 6)
    [proposal] = search.ask(1)
    assert search.report(proposal, 100, 20.0) is prunes


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_curve_above_the_others_is_not_pruned(journal: str, pruner: str) -> None:
    search = searched(journal, BATCHED, pruner=pruner)
    with_curves(search, 6)
    [proposal] = search.ask(1)
    assert not any(search.report(proposal, step, 33.0) for step in (100, 200, 300))


def test_a_pruned_cell_is_never_proposed_again_and_never_the_best(journal: str) -> None:
    search = searched(journal, pruner="median")
    [proposal] = search.ask(1)
    search.report(proposal, 100, 99.0)
    search.tell(proposal, Pruned(100))
    assert search.retry_failed() == 0
    trained = train_all(search)
    assert proposal.cell not in trained
    [best] = search.front()
    assert best.cell != proposal.cell


def test_a_curve_of_a_cell_that_is_told_already_prunes_nothing(journal: str) -> None:
    search = searched(journal, BATCHED, pruner="median")
    with_curves(search, 6)
    [proposal] = search.ask(1)
    finish(search, [proposal])
    assert search.report(proposal, 100, 20.0) is False


def test_an_evaluation_that_a_resumed_trial_repeats_is_reported_once(journal: str) -> None:
    search = searched(journal, BATCHED, pruner="median")
    with_curves(search, 6)
    [proposal] = search.ask(1)
    assert [search.report(proposal, 100, value) for value in (20.0, 40.0)] == [True, True]


def test_a_search_for_several_objectives_never_prunes(journal: str) -> None:
    search = searched(journal, objectives=COSTS)
    assert search.report(search.ask(1)[0], 100, 20.0) is False


# --- what a user types wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "hydra.sweeper.trials=0: must be at least 1"),
        ({"seed": -1}, "hydra.sweeper.seed=-1: must be at least 0"),
        (
            {"sampler": "tpa"},
            "hydra.sweeper.sampler: unknown sampler 'tpa' (did you mean tpe?); valid: tpe, nsga2, random",
        ),
        ({"pruner": "hyperband"}, "hydra.sweeper.pruner: unknown pruner 'hyperband'; valid: none, median, halving"),
        (
            {"objectives": ("psnr",)},
            "hydra.sweeper.objectives: unknown objective 'psnr' (did you mean psnr_db?); "
            "valid: psnr_db, ops_g, params_k",
        ),
        (
            {"objectives": ("psnr_db", "psnr_db")},
            "hydra.sweeper.objectives=[psnr_db,psnr_db]: psnr_db is there twice",
        ),
        (
            {"objectives": ("ops_g",)},
            "hydra.sweeper.objectives=[ops_g]: psnr_db must be among them; "
            "hydra.sweeper.dry_run=true lists costs untrained",
        ),
        (
            {"objectives": ()},
            "hydra.sweeper.objectives=[]: psnr_db must be among them; hydra.sweeper.dry_run=true lists costs untrained",
        ),
        (
            {"objectives": COSTS, "pruner": "median"},
            "hydra.sweeper.pruner=median: needs one objective, and hydra.sweeper.objectives=[psnr_db,ops_g] has 2",
        ),
        (
            {"storage": "mysql://me:secret@host/base"},
            "hydra.sweeper.storage: unknown storage 'mysql://me@host/base'; valid: FILE.log, sqlite:///FILE.db, "
            "postgresql+psycopg2://USER@HOST/DATABASE",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_option_is_told_in_one_line(journal: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_of(**{"storage": journal, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize("storage", ["", "search.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "/folder"])
def test_a_storage_that_would_be_forgotten_or_is_none_is_refused(storage: str) -> None:
    with pytest.raises(ConfigError, match="unknown storage"):
        options_of(storage)


def test_the_sampler_follows_from_the_number_of_objectives(journal: str) -> None:
    assert options_of(journal).chosen_sampler == "tpe"
    assert options_of(journal, objectives=COSTS).chosen_sampler == "nsga2"
    assert options_of(journal, objectives=COSTS, sampler="tpe").chosen_sampler == "tpe"


@pytest.mark.parametrize("name", ["search.log", "search.db"])
def test_a_file_that_is_no_storage_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("something else\n" * 100)
    storage = str(path) if name.endswith(".log") else f"sqlite:///{path}"
    with pytest.raises(BbcuError) as caught:
        searched(storage)
    assert str(caught.value).startswith(f"hydra.sweeper.storage={storage}: cannot be used: ")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_away_is_told_in_one_line_without_its_password() -> None:
    with pytest.raises(BbcuError) as caught:
        searched("postgresql+psycopg2://me:secret@127.0.0.1:1/base")
    assert str(caught.value).startswith("hydra.sweeper.storage=postgresql+psycopg2://me@127.0.0.1:1/base: cannot be")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_for_the_storage_is_made(tmp_path: Path) -> None:
    assert searched(str(tmp_path / "outputs" / "study" / "search.log")).ask(1)


# --- what others notice of it -----------------------------------------------------------------------------------------


def test_a_search_prints_nothing(journal: str, capfd: pytest.CaptureFixture[str]) -> None:
    train_all(searched(journal))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_optuna_is_imported_only_when_a_search_begins() -> None:
    probe = "import sys, ablations.search.search; print({'optuna', 'sqlalchemy', 'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "set()\n"
