"""The looks and the first seed of a stopping rule: results that were known before it count in no verdict."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ablations.config import SweeperConfig
from ablations.planning.stopping import UNTIL, first_seed_of, looks_of, rule_of
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import begin_attempt
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import plan_path, write_plan
from bbcu.errors import ConfigError
from tests.ablations.storage.helpers import CELL, result

# --- looks ------------------------------------------------------------------------------------------------------------

FROM_2_TO_4 = {"until": "decided", "replicates": 2, "most_replicates": 4}


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        ({}, ()),
        ({"replicates": 3}, ()),
        (FROM_2_TO_4, (2, 3, 4)),
        ({**FROM_2_TO_4, "looks": [2, 4]}, (2, 4)),
        ({**FROM_2_TO_4, "design": "random"}, (2, 3, 4)),
    ],
    ids=["a plain sweep", "of several seeds", "every number of seeds", "given ones", "a random design"],
)
def test_the_looks_go_from_the_first_number_of_seeds_to_the_last(
    options: dict[str, Any], looks: tuple[int, ...]
) -> None:
    assert looks_of(SweeperConfig(**options)) == looks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most_replicates": 4}, f"hydra.sweeper.most_replicates: has no effect without {UNTIL}; add it"),
        ({"looks": [2, 3]}, f"hydra.sweeper.looks: has no effect without {UNTIL}; add it"),
        ({"until": "decided", "replicates": 2}, f"{UNTIL} needs hydra.sweeper.most_replicates"),
        ({**FROM_2_TO_4, "replicates": 1}, "hydra.sweeper.replicates=1: must be at least 2"),
        ({**FROM_2_TO_4, "replicates": 4}, "most_replicates=4: must be above hydra.sweeper.replicates=4"),
        ({**FROM_2_TO_4, "design": "search"}, f"{UNTIL}: design=search compares no cells"),
        *(
            ({**FROM_2_TO_4, "looks": looks}, "must ascend from hydra.sweeper.replicates=2 to")
            for looks in ([], [2], [2, 3], [3, 4], [2, 3, 3, 4], [2, 5, 4])
        ),
    ],
    ids=str,
)
def test_looks_that_make_no_rule_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        looks_of(SweeperConfig(**options))
    assert message in str(refused.value)


# --- the first seed ---------------------------------------------------------------------------------------------------

OTHER, STRANGE = "b" * 64, "c" * 64
TRIALS = {(CELL, 2), (OTHER, 2)}


def leave(outputs: Path, cell: str, seed: int) -> TrialFolder:
    folder = TrialFolder(outputs, "tiny", cell, seed)
    folder.path.mkdir(parents=True)
    folder.write_result(result(seed, cell))
    return folder


def first_seed(outputs: Path) -> int:
    return first_seed_of(TRIALS, outputs, "tiny")


def test_without_results_it_is_the_seed_of_the_sweep(tmp_path: Path) -> None:
    assert first_seed(tmp_path) == 2


def test_it_comes_after_every_result_of_these_cells(tmp_path: Path) -> None:
    leave(tmp_path, CELL, 4)
    leave(tmp_path, OTHER, 6)
    leave(tmp_path, STRANGE, 9)
    assert first_seed(tmp_path) == 7


def test_results_before_the_seed_of_the_sweep_do_not_move_it(tmp_path: Path) -> None:
    leave(tmp_path, CELL, 0)
    assert first_seed(tmp_path) == 2


def test_a_damaged_result_may_have_been_known_too(tmp_path: Path) -> None:
    leave(tmp_path, CELL, 4).result_path.write_text("{")
    assert first_seed(tmp_path) == 5


def test_a_trial_without_a_result_has_shown_nothing(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "tiny", CELL, 4)
    folder.path.mkdir(parents=True)
    begin_attempt(folder)
    assert first_seed(tmp_path) == 2


def test_a_rule_that_the_study_has_keeps_its_first_seed(tmp_path: Path) -> None:
    rule = StoppingRule((3, 4), 3, 0.05, (((CELL, OTHER),),))
    write_plan(tmp_path, "tiny", {"rule": rule.record(), "trials": [], "left_out": []})
    leave(tmp_path, CELL, 8)
    assert first_seed(tmp_path) == 3


def test_a_later_seed_makes_another_rule(tmp_path: Path) -> None:
    rule = StoppingRule((3, 4), 1, 0.05, (((CELL, OTHER),),))
    write_plan(tmp_path, "tiny", {"rule": rule.record(), "trials": [], "left_out": []})
    assert first_seed(tmp_path) == 2


def test_cells_with_several_seeds_of_their_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chooses the seeds of each cell"):
        first_seed_of({(CELL, 2), (OTHER, 3)}, tmp_path, "tiny")


def test_a_study_goes_on_with_the_boundary_that_it_began_with(tmp_path: Path) -> None:
    asked = StoppingRule((3, 4), 0, 0.05, (((CELL, OTHER),),))
    began = dataclasses.replace(asked, floor=0.02, rise=8.0)
    assert rule_of(asked, {(CELL, 0)}, tmp_path, "study") == asked
    write_plan(tmp_path, "study", {"trials": [], "left_out": [], "rule": began.record()})
    assert rule_of(asked, {(CELL, 0)}, tmp_path, "study") == began


def test_a_damaged_plan_is_refused_since_its_rule_is_not_known(tmp_path: Path) -> None:
    asked = StoppingRule((3, 4), 0, 0.05, (((CELL, OTHER),),))
    write_plan(tmp_path, "study", {"trials": [], "left_out": [], "rule": asked.record()})
    path = plan_path(tmp_path, "study")
    path.write_text(path.read_text(encoding="utf-8").replace("0.05", "0.06"), encoding="utf-8")
    with pytest.raises(
        ConfigError, match="the stopping rule of study study may be in it, so restore it, or use another"
    ):
        rule_of(asked, {(CELL, 0)}, tmp_path, "study")
