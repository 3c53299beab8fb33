"""The first seed of a stopping rule: results that were known before it count in no verdict."""

from pathlib import Path

import pytest

from ablations.planning.stopping import first_seed_of
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import begin_attempt
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import write_plan
from bbcu.errors import ConfigError
from tests.ablations.storage.helpers import CELL, result

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


def test_cells_with_several_seeds_of_their_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chooses the seeds of each cell"):
        first_seed_of({(CELL, 2), (OTHER, 3)}, tmp_path, "tiny")
