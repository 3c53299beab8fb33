"""A search continues after failures, killed processes and changes of the code."""

import json
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ablations.search.records import Failed, Finished, IdentifiedRow, Proposal, RowState
from ablations.search.search import Search
from ablations.space.rows import Row
from bbcu.errors import ConfigError
from tests.ablations.search.searches import (
    COSTS,
    LEVELS,
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
from tests.harness.servers import PostgreSQL

pytestmark = pytest.mark.filterwarnings("error")

# --- failures, and processes that end ---------------------------------------------------------------------------------


def test_a_failed_cell_keeps_its_reason_and_is_not_proposed_again(journal: str) -> None:
    search = searched(journal, {"bn": ["none", "pre"]})
    [proposal] = search.ask(1)
    search.tell(proposal, Failed("out of memory"))
    assert set(train_all(search)) == cells_of({"bn": ["none", "pre"]}) - {proposal.cell}
    [record] = records_in(search, RowState.FAILED)
    assert (record.cell, record.reason) == (proposal.cell, "out of memory")


def test_a_failed_cell_is_proposed_again_once_if_asked_for(file: str) -> None:
    search = searched(file, trials=3)
    proposals = search.ask(3)
    search.tell(proposals[1], Failed("out of memory"))
    finish(search, [proposals[0], proposals[2]])
    assert search.retry_failed() == 1
    again = search.ask(9)
    assert [proposal.row for proposal in again] == [proposals[1].row]
    finish(search, again)
    assert search.retry_failed() == 0
    assert search.ask(9) == []


def test_two_searches_propose_a_failed_cell_again_once(journal: str) -> None:
    first, second = searched(journal, trials=1), searched(journal, trials=1)
    first.tell(first.ask(1)[0], Failed("out of memory"))
    assert (first.retry_failed(), second.retry_failed()) == (1, 0)
    assert (len(second.ask(9)), len(first.ask(9))) == (1, 0)


def test_a_failed_cell_that_has_a_result_since_gets_its_values(journal: str) -> None:
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
    """Search for this many cells with this code; return those trained."""
    search = searched(storage, code=code, trials=cells)
    trained = train_all(search)
    search.close()
    return trained


def test_scores_of_other_code_are_refused_by_its_name(file: str) -> None:
    scored_by(file, "old", 2)
    with pytest.raises(
        ConfigError, match="it was made by code old, and the present code is new; on_change=keep reuses it"
    ):
        searched(file, code="new")


def test_scores_of_other_code_can_be_kept(file: str) -> None:
    scored_by(file, "old", 2)
    search = searched(file, code="new", on_change="keep", trials=3)
    assert len(train_all(search)) == 1
    assert len(records_in(search, RowState.FINISHED)) == 3
    search.close()
    with pytest.raises(ConfigError, match="code old"):
        searched(file, code="new")


def test_a_search_can_start_again_for_other_code_without_the_old_scores(file: str) -> None:
    old = scored_by(file, "old", 2)
    search = searched(file, code="new", on_change="retrain", trials=2)
    assert search.history() == []
    assert train_all(search) == old
    search.close()
    again = searched(file, code="new", trials=2)
    assert len(records_in(again, RowState.FINISHED)) == 2
    assert train_all(again) == []
    again.close()
    assert searched(file, code="newest", on_change="retrain").history() == []


def test_a_search_without_a_score_belongs_to_the_code_that_scores_first(file: str) -> None:
    search = searched(file, code="old")
    search.ask(1)
    search.close()
    assert len(scored_by(file, "new", 1)) == 1
    with pytest.raises(ConfigError, match="made by code new, and the present code is old"):
        searched(file, code="old")


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_value_that_is_not_finite_is_a_failure(journal: str) -> None:
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
    """Ask, send what was proposed, and wait."""
    search = searched(storage)
    wire.send(search.ask(count))
    wire.recv()


def train_and_say(storage: str, wire: "Connection[str, object]") -> None:
    """Train cell by cell, and send each that is told."""
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


def test_a_search_that_is_killed_continues(storage: str, started: Start) -> None:
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
    # A cell may have been told and not sent any more.
    assert cells_of(LEVELS) - set(resumed) - told <= {
        record.cell for record in records_in(searched(storage), RowState.FINISHED)
    }


def test_cells_that_are_proposed_again_do_not_count_as_trials(journal: str) -> None:
    first = searched(journal, trials=3)
    finish(first, first.ask(3)[:1])
    first.close()
    assert len(searched(journal, trials=3).ask(9)) == 2


def test_an_abandoned_cell_with_a_result_gets_its_values(journal: str) -> None:
    first = searched(journal, trials=1)
    [proposal] = first.ask(1)
    first.close()
    second = searched(journal, known=[proposal.cell], trials=1)
    assert second.ask(9) == []
    assert [record.cell for record in records_in(second, RowState.FINISHED)] == [proposal.cell]


@pytest.mark.postgres
def test_a_search_continues_after_its_server_was_restarted(server: PostgreSQL) -> None:
    storage = server.create()
    first, second = searched(storage, trials=3), searched(storage, trials=3)
    before = first.ask(1)
    server.stop()
    server.start()
    after = first.ask(1)
    assert len(second.ask(9)) == 1
    assert finish(first, [*before, *after]) == [proposal.cell for proposal in (*before, *after)]


def test_a_search_that_failed_to_identify_a_row_can_be_asked_again(journal: str) -> None:
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


def test_values_of_a_cell_that_another_process_has_taken_over_are_kept(tmp_path: Path) -> None:
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
def test_a_proposal_cannot_be_told_twice_or_after_it_was_given_up(journal: str, closes: bool) -> None:
    search = searched(journal)
    proposals = search.ask(1)
    if closes:
        search.close()
    else:
        finish(search, proposals)
    with pytest.raises(ValueError, match="proposal 0 is not this search's, or already has an outcome"):
        finish(search, proposals)


def test_a_partial_last_line_of_a_journal_is_truncated(journal: str) -> None:
    first = searched(journal)
    told = finish(first, first.ask(2))
    with Path(journal).open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert set(train_all(searched(journal))) == cells_of(LEVELS) - set(told)
    assert all(json.loads(line) for line in Path(journal).read_text().splitlines())
