"""Searches that are killed or shared: they train the cells of an undisturbed search, each once."""

import json
from collections.abc import Callable

import pytest

from ablations.storage.attempts import State
from tests.harness.faults import (
    BASIC,
    JOBLIB,
    LATER_SNAPSHOT,
    TRIALS,
    Endings,
    Moment,
    attempts,
    check_nothing_lost,
    endings,
    kill_sweep_at,
    let_go,
    nobody_works,
    rerun,
    started,
)
from tests.harness.support import STUDY, Workplace, wait_until

SEARCH = (
    *(override for override in TRIALS if not override.startswith(("bn=", "hydra.sweeper.replicates="))),
    *("hydra.sweeper.design=search", "hydra.sweeper.trials=3", "hydra.sweeper.objectives=[psnr_db,ops_g]"),
    *("residual=true,false", "bn=pre,post", "channels=4,6"),
)
"""Three of eight cells, for quality and for cost."""

WHOLE = (*SEARCH[:-1], "hydra.sweeper.trials=4")
"""All of four cells, so that what is trained does not depend on which process asks first."""


def front(workplace: Workplace) -> list[dict[str, float]]:
    """The values of the cells of the front."""
    found = json.loads((workplace.outputs / STUDY / "search.json").read_text())
    return [record["values"] for record in found["front"]]


Found = tuple[Endings, list[dict[str, float]]]
"""The trials of a search, and its front."""


def finished_search(overrides: tuple[str, ...], workplace: Workplace) -> Found:
    outcome = workplace.sweep(*overrides)
    assert outcome.status == 0, outcome.text
    return endings(workplace), front(workplace)


@pytest.fixture(scope="module")
def undisturbed(new_workplace: Callable[[], Workplace]) -> Found:
    """The search of three cells without any fault."""
    return finished_search(SEARCH, new_workplace())


@pytest.fixture(scope="module")
def whole(new_workplace: Callable[[], Workplace]) -> Found:
    """The search of all cells without any fault."""
    return finished_search(WHOLE, new_workplace())


KILLS = (Moment("os.rename", r"/plan\.json ", 2), LATER_SNAPSHOT, Moment("os.rename", r"/search\.json "))
"""As it plans its second cell, in the second trial after that, and as it writes what it has found."""


@pytest.mark.slow
def test_a_search_that_is_killed_finds_what_it_would_have_found(workplace: Workplace, undisturbed: Found) -> None:
    """Each kill is in the search that resumes the one before."""
    for moment in KILLS:
        kill_sweep_at(moment, workplace, *SEARCH)
    rerun(workplace, undisturbed[0], SEARCH)
    assert front(workplace) == undisturbed[1]


@pytest.mark.slow
def test_a_search_with_workers_trains_every_cell_once(workplace: Workplace, whole: Found) -> None:
    with started(workplace, *WHOLE, *JOBLIB) as command:
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    check_nothing_lost(workplace, whole[0])
    assert attempts(workplace) == 4 * [[State.FINISHED]]
    assert front(workplace) == whole[1]


@pytest.mark.slow
def test_two_searches_at_once_share_the_cells(workplace: Workplace, whole: Found) -> None:
    with started(workplace, *WHOLE, *BASIC, halt=LATER_SNAPSHOT) as one:
        halted = one.halted()
        with started(workplace, *WHOLE, *BASIC) as other:
            second = other.end()
        let_go(halted)
        first = one.end()
    assert (first.status, second.status) == (0, 0), first.text + second.text
    wait_until(lambda: nobody_works(workplace), "the workers to end")
    check_nothing_lost(workplace, whole[0])
    assert attempts(workplace) == 4 * [[State.FINISHED]]
    assert front(workplace) == whole[1]
