"""A search whose storage was damaged is the same search, or is refused in one line; no untrained cell is the best."""

import contextlib
import dataclasses
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from ablations.search.records import Record
from ablations.search.search import Search
from ablations.space.rows import Sweep
from bbcu.errors import BbcuError
from tests.ablations.search.searches import finish, searched, train_all, worth

SMALL: Sweep = {"bn": ["none", "pre", "post"], "weight": ["l1", "plain"]}
"""6 rows and as many cells."""

TRAINED = 4

ADVICE = "; delete it to search anew: the results on disk are used again, so nothing is trained twice"


def small(storage: str, known: frozenset[str] = frozenset(), trials: int = TRAINED) -> Search:
    return searched(storage, SMALL, known, sampler="random", trials=trials)


@dataclasses.dataclass(frozen=True)
class Past:
    """A search that has ended: its storage, the cells that it trained, and its history."""

    path: Path
    cells: frozenset[str]
    history: list[Record]

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copy(self.path, folder / self.path.name))


def past(folder: Path, name: str) -> Past:
    path = folder / name
    search = small(str(path) if name.endswith(".log") else f"sqlite:///{path}")
    cells = frozenset(train_all(search))
    search.close()
    return Past(path, cells, search.history())


@pytest.fixture(scope="module")
def journal_of_past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    return past(tmp_path_factory.mktemp("journal"), "search.log")


def resumed(storage: str, cells: frozenset[str]) -> Search | None:
    """Resume and end a search whose trained cells are on disk; None if it is refused in one line."""
    refusal = ""
    try:
        search = small(storage, cells)
        search.check()
    except BbcuError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"hydra.sweeper.storage={storage}: cannot be used: ")
        assert refusal.endswith(ADVICE)
        return None
    train_all(search)
    search.close()
    return search


def is_same(search: Search, before: Past) -> bool:
    """Whether the search has found what it had found; every score must be that of a trained cell."""
    for record in search.history():
        if record.values:
            assert record.cell is not None
            assert record.values == {"psnr_db": worth(record.cell)["psnr_db"]}
    scores = {record.cell: record.values for record in search.history() if record.values}
    return scores == {record.cell: record.values for record in before.history if record.values}


# --- journals ---------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


CHANGES: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "lost": lambda lines, at: lines[:at] + lines[at + 1 :],
    "twice": lambda lines, at: lines[: at + 1] + lines[at:],
    "swapped": lambda lines, at: [*lines[:at], *lines[at : at + 2][::-1], *lines[at + 2 :]],
    "damaged": lambda lines, at: [*lines[:at], lines[at].replace(b"e", b"f", 1), *lines[at + 1 :]],
    "empty": lambda lines, at: [*lines[:at], b"\n", *lines[at + 1 :]],
    "garbage": lambda lines, at: [*lines[:at], b"\xff{[\n", *lines[at + 1 :]],
    "deep": lambda lines, at: [*lines[:at], b"[" * 100_000 + b"\n", *lines[at + 1 :]],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_journal_with_any_line_changed_is_refused(
    journal_of_past: Past, tmp_path: Path, change: Callable[[list[bytes], int], list[bytes]]
) -> None:
    path = journal_of_past.copy(tmp_path)
    lines = lines_of(path)
    refused = 0
    for at in range(len(lines)):
        content = b"".join(change(lines, at))
        path.write_bytes(content)
        search = resumed(str(path), journal_of_past.cells)
        # Without its last line the journal is what it was before; a swap has no effect there.
        assert search is None or at == len(lines) - 1
        assert search is None or is_same(search, journal_of_past)
        refused += search is None
    assert refused >= len(lines) - 1 > 10


def test_a_journal_that_is_cut_between_two_lines_is_the_same_search_or_is_refused(
    journal_of_past: Past, tmp_path: Path
) -> None:
    path = journal_of_past.copy(tmp_path)
    lines = lines_of(path)
    for kept in range(len(lines) - 1, 0, -4):
        path.write_bytes(b"".join(lines[:kept]))
        search = resumed(str(path), journal_of_past.cells)
        assert search is None or {record.cell for record in search.history()} >= journal_of_past.cells


@hypothesis.given(data=strategies.data())
def test_a_journal_with_any_bytes_changed_is_the_same_search_or_is_refused(
    journal_of_past: Past, tmp_path_factory: pytest.TempPathFactory, data: strategies.DataObject
) -> None:
    path = journal_of_past.copy(tmp_path_factory.mktemp("changed"))
    content = path.read_bytes()
    start = data.draw(strategies.integers(0, len(content)))
    end = data.draw(strategies.integers(start, min(len(content), start + 300)))
    new = data.draw(strategies.binary(max_size=10))
    path.write_bytes(content[:start] + new + content[end:])
    search = resumed(str(path), journal_of_past.cells)
    if search is not None:
        is_same(search, journal_of_past)


class TestOfAnEarlierVersion:
    """Journals whose lines have no chain."""

    @staticmethod
    def unchained(path: Path) -> list[bytes]:
        lines = [line.rpartition(b',"chain"')[0] + b"}\n" for line in lines_of(path)]
        path.write_bytes(b"".join(lines))
        return lines

    def test_it_continues_and_its_new_lines_are_chained_to_the_old_ones(
        self, journal_of_past: Past, tmp_path: Path
    ) -> None:
        path = journal_of_past.copy(tmp_path)
        old = len(self.unchained(path))
        search = small(str(path), journal_of_past.cells, trials=TRAINED + 1)
        search.check()
        finish(search, search.ask(1))
        search.close()
        lines = lines_of(path)
        assert all(b'"chain"' in line for line in lines[old:])
        path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
        assert resumed(str(path), journal_of_past.cells) is None

    def test_a_lost_line_makes_no_untrained_cell_the_best(self, journal_of_past: Past, tmp_path: Path) -> None:
        path = journal_of_past.copy(tmp_path)
        lines = self.unchained(path)
        for at in range(len(lines)):
            path.write_bytes(b"".join([*lines[:at], *lines[at + 1 :]]))
            with contextlib.suppress(BbcuError):
                search = small(str(path), journal_of_past.cells)
                search.check()
                self.check_best(search, journal_of_past)

    @staticmethod
    def check_best(search: Search, before: Past) -> None:
        for record in search.front():
            assert record.cell in before.cells
            assert record.values == {"psnr_db": worth(record.cell or "")["psnr_db"]}
        search.close()


# --- rows and results -------------------------------------------------------------------------------------------------


def test_a_finished_row_without_a_result_is_refused(file: str, tmp_path: Path) -> None:
    search = small(file)
    cells = frozenset(train_all(search))
    search.close()
    best = search.front()[0]
    again = small(file, cells - {best.cell or ""})
    with pytest.raises(BbcuError) as caught:
        again.check()
    row = f"row {best.number} ({' '.join(best.row)})"
    reason = f"{row} is finished and its cell has no valid result on disk"
    assert str(caught.value) == f"hydra.sweeper.storage={file}: cannot be used: {reason}{ADVICE}"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trial_values SET value = 99.0 WHERE trial_id = 1",
        "UPDATE trial_params SET param_value = 1 - param_value WHERE trial_id = 1 AND param_name = 'weight'",
        "DELETE FROM trial_user_attributes WHERE trial_id = 1",
        "UPDATE trial_user_attributes SET value_json = '{\"verdict\": 1}' WHERE trial_id = 1",
        "UPDATE trial_user_attributes SET value_json = '[' WHERE trial_id = 1",
        "DELETE FROM trial_values WHERE trial_id = 1",
        "UPDATE trials SET state = 'nonsense' WHERE trial_id = 1",
        'INSERT INTO trial_user_attributes (trial_id, "key", value_json) '
        "VALUES (1, 'verdict', '{\"standing\": \"failed\"}')",
    ],
)
def test_a_row_of_a_database_that_was_changed_is_refused(tmp_path: Path, statement: str) -> None:
    before = past(tmp_path, "search.db")
    with sqlite3.connect(before.path) as connection:
        assert connection.execute(statement).rowcount >= 1
    connection.close()
    with pytest.raises(BbcuError) as caught:
        small(f"sqlite:///{before.path}", before.cells).check()
    assert str(caught.value).startswith(f"hydra.sweeper.storage=sqlite:///{before.path}: cannot be used: ")


def test_a_database_whose_pages_are_damaged_is_refused(tmp_path: Path) -> None:
    before = past(tmp_path, "search.db")
    damaged = tmp_path / "damaged.db"
    with contextlib.closing(sqlite3.connect(before.path)) as connection:
        connection.execute("VACUUM INTO ?", [str(damaged)])
    content = bytearray(damaged.read_bytes())
    for page in range(2, len(content) // 4096):
        content[4096 * page : 4096 * page + 16] = b"\xff" * 16
    damaged.write_bytes(content)
    with pytest.raises(BbcuError, match="cannot be used: "):
        small(f"sqlite:///{damaged}", before.cells)
