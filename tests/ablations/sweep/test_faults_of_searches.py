"""Searches that are killed, shared or have cells that fail: the cells are those of an undisturbed search, each once."""

import json
import signal
from pathlib import Path

import pytest

from ablations.storage.attempts import State
from tests.harness.faults import (
    BASIC,
    JOBLIB,
    LATER_SNAPSHOT,
    RESULT,
    RUN_ENDS,
    TRIALS,
    Endings,
    Moment,
    attempts,
    check_nothing_lost,
    endings,
    let_go,
    nobody_works,
    started,
)
from tests.harness.support import STUDY, Outcome, Workplace, wait_until

SEARCH = (
    *(override for override in TRIALS if not override.startswith(("bn=", "hydra.sweeper.replicates="))),
    *("hydra.sweeper.design=search", "hydra.sweeper.trials=4", "hydra.sweeper.objectives=[psnr_db,ops_g]"),
    *("residual=true,false", "bn=pre,post", "channels=4,6"),
)
"""Four of eight cells, for quality and for cost."""

WHOLE = (*SEARCH, "hydra.sweeper.trials=8")
"""All eight cells, so that what is trained does not depend on who asks first."""


def front(workplace: Workplace) -> list[dict[str, float]]:
    """What the cells of the front are worth."""
    found = json.loads((workplace.outputs / STUDY / "search.json").read_text())
    return [record["values"] for record in found["front"]]


def finished_search(overrides: tuple[str, ...], workplace: Workplace) -> tuple[Endings, list[dict[str, float]]]:
    outcome = workplace.sweep(*overrides)
    assert outcome.status == 0, outcome.text
    return endings(workplace), front(workplace)


@pytest.fixture(scope="module")
def undisturbed(
    migrated_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Endings, list[dict[str, float]]]:
    """What the search comes to where nothing happens, and its front."""
    return finished_search(SEARCH, Workplace.apart(tmp_path_factory.mktemp("undisturbed"), migrated_database))


@pytest.fixture(scope="module")
def whole(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Endings, list[dict[str, float]]]:
    """The same of the search that takes every cell."""
    return finished_search(WHOLE, Workplace.apart(tmp_path_factory.mktemp("whole"), migrated_database))


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(Moment("os.rename", r"/plan\.json ", 2), id="as-it-plans-its-second-cell"),
        pytest.param(LATER_SNAPSHOT, id="in-its-second-trial"),
        pytest.param(RESULT, id="as-a-result-takes-its-place"),
        pytest.param(RUN_ENDS, id="as-it-closes-a-run"),
        pytest.param(Moment("os.rename", r"/search\.json ", 2), id="as-it-writes-down-what-it-has-found"),
    ],
)
def test_a_search_that_is_killed_finds_what_it_would_have_found(
    workplace: Workplace, undisturbed: tuple[Endings, list[dict[str, float]]], moment: Moment
) -> None:
    with started(workplace, *SEARCH, *BASIC, halt=moment) as command:
        command.halted()
        command.send(signal.SIGKILL)
        assert command.end().status == -signal.SIGKILL
    again = workplace.sweep(*SEARCH)
    assert again.status == 0, again.text
    check_nothing_lost(workplace, undisturbed[0])
    assert front(workplace) == undisturbed[1]


@pytest.mark.slow
def test_a_search_with_workers_trains_every_cell_once(
    workplace: Workplace, whole: tuple[Endings, list[dict[str, float]]]
) -> None:
    with started(workplace, *WHOLE, *JOBLIB) as command:
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    check_nothing_lost(workplace, whole[0])
    assert attempts(workplace) == 8 * [[State.FINISHED]]
    assert front(workplace) == whole[1]


@pytest.mark.slow
def test_two_searches_at_once_share_the_cells(
    workplace: Workplace, whole: tuple[Endings, list[dict[str, float]]]
) -> None:
    with started(workplace, *WHOLE, *BASIC, halt=LATER_SNAPSHOT) as one:
        halted = one.halted()
        with started(workplace, *WHOLE, *BASIC) as other:
            second = other.end()
        let_go(halted)
        first = one.end()
    assert (first.status, second.status) == (0, 0), first.text + second.text
    wait_until(lambda: nobody_works(workplace), "the workers to end")
    check_nothing_lost(workplace, whole[0])
    assert attempts(workplace) == 8 * [[State.FINISHED]]
    assert front(workplace) == whole[1]


def fail_once(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Search with a part that fails as long as a file is not there; how that ends."""
    (workplace.folder / "parts").mkdir()
    (workplace.folder / "parts" / "waiting_part.py").write_text(
        "from pathlib import Path\n\nfrom bbcu.model.surrogates import Surrogate\n\n\nclass Waiting(Surrogate):\n"
        "    def derivative(self, u):\n"
        f"        if not Path({str(workplace.folder / 'ready')!r}).exists():\n"
        '            raise ValueError("not ready")\n'
        "        return u * 0 + 1\n"
    )
    monkeypatch.syspath_prepend(str(workplace.folder / "parts"))
    return workplace.sweep(*FAILING)


FAILING = (
    *("hydra.sweeper.design=search", "hydra.sweeper.trials=2", "hydra.sweeper.retries=0"),
    "surrogate=quadratic,waiting_part.Waiting",
)


def test_a_cell_of_a_search_that_failed_is_tried_again_when_the_command_is_given_again(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fail_once(workplace, monkeypatch)
    assert first.status == 1
    assert len(workplace.results()) == 1
    (workplace.folder / "ready").touch()
    again = workplace.sweep(*FAILING)
    assert again.status == 0, again.text
    assert len(workplace.results()) == 2
    assert sorted(attempts(workplace)) == [[State.FAILED, State.FINISHED], [State.FINISHED]]
    assert workplace.finished() == workplace.results()
