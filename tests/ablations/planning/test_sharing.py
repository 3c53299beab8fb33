"""How many trainings of a sweep share the code of their compiled units: each trial is told, and decides by it."""

from collections.abc import Sequence
from typing import Any

import pytest

from ablations.config import SweeperConfig
from ablations.planning.plan import Plan, RowPlanner
from tests.harness.support import Workplace, of_hydra


def sharing(plan: Plan) -> list[int]:
    return [entry.config.trainings for entry in plan.trials]


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ([], {}, [1]),
        (["residual=true,false", "bn=none,post"], {"replicates": 3}, [3] * 12),
        (["seed=0,1,2", "bn=none,post"], {}, [3] * 6),
        (["seed=0,1"], {"replicates": 2}, [3] * 3),  # the seeds 0 to 2, each once
        (["align=1,65"], {"replicates": 2}, [4] * 4),
        (["train.lr=1e-3,1e-2", "train.steps=2,3"], {}, [4] * 4),
        (["train.batch=1,2"], {}, [1, 1]),
        (["channels=4,8", "binarize=[body],[up]"], {}, [1] * 4),
        (["method=bicubic,bbcu,bireal"], {"replicates": 2}, [2] * 6),
    ],
    ids=str,
)
def test_the_trainings_of_one_kind_of_unit_share_its_code_under_all_seeds(
    dry_workplace: Workplace, arguments: Sequence[str], options: dict[str, Any], expected: list[int]
) -> None:
    assert sharing(dry_workplace.plan(*arguments, **options)) == expected


def test_a_sweep_until_decided_counts_the_trainings_that_are_certain(dry_workplace: Workplace) -> None:
    rule = {"until": "decided", "replicates": 3, "most_replicates": 5}
    assert sharing(dry_workplace.plan("bn=none,post", **rule)) == [3] * 10


@pytest.mark.parametrize(
    ("trials", "replicates", "expected"),
    [(1, 1, 1), (6, 1, 1), (12, 1, 2), (12, 3, 6), (18, 1, 3), (10**6, 1, 4)],
)
def test_a_search_expects_its_cells_spread_evenly_over_the_kinds_of_units(
    dry_workplace: Workplace, trials: int, replicates: int, expected: int
) -> None:
    """Over 6 kinds of units with 4 cells each."""
    space = ("residual=true,false", "bn=none,pre,post", "train.lr=1e-4,1e-3", "train.steps=2,3")
    options = SweeperConfig(design="search", trials=trials, replicates=replicates)
    planner = RowPlanner(dry_workplace.overrides(*space), options, *of_hydra())
    row = dry_workplace.overrides("residual=false", "bn=post", "train.lr=1e-4", "train.steps=2")
    assert sharing(planner.plan(tuple(row))) == [expected] * replicates


def test_a_trial_is_told_and_its_cell_stays_the_same(dry_workplace: Workplace) -> None:
    (entry, *_) = dry_workplace.plan("bn=post", replicates=3).trials
    given = [text for text in entry.overrides if not text.startswith("hydra.")]
    assert dry_workplace.config(*given).trainings == 3
    assert dry_workplace.trial(*given).identity == dry_workplace.trial("bn=post").identity == entry.identity


@pytest.mark.parametrize("level", ["weight=srb", "rescale=squeeze", "threshold=dynamic", "binarize=[body,up]"])
def test_a_level_that_changes_the_cost_is_a_structure_of_its_own(dry_workplace: Workplace, level: str) -> None:
    """A dry run counts the cost of each structure once."""
    key, _, value = level.partition("=")
    reference = {"weight": "l1", "rescale": "none", "threshold": "true", "binarize": "[body]"}[key]
    plan = dry_workplace.plan(f"{key}={reference},{value}", "act=inside,after")
    assert len({entry.structure for entry in plan.trials}) == 2
