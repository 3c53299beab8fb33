"""Results that other code or other pictures have made: nothing is mixed in silence, and the user chooses."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ablations.storage.attempts import State, history_of
from ablations.storage.files import write_atomically
from ablations.storage.folder import TrialFolder, trial_folders
from ablations.trial.provenance import code_fingerprint
from tests.harness.builders import save
from tests.harness.support import Outcome, Workplace, contents, photograph

OTHER = "0123456789abcdef"
COMMANDS = pytest.mark.parametrize("command", [Workplace.run, Workplace.sweep], ids=["trial", "sweep"])
Command = Callable[..., Outcome]


def rewrite(folder: TrialFolder, **provenance: Any) -> None:
    """Change what a result says of where it comes from; None takes a key away."""
    result = folder.result()
    assert result is not None
    changed = {**result["provenance"], **provenance}
    result["provenance"] = {name: value for name, value in changed.items() if value is not None}
    write_atomically(folder.result_path, json.dumps(result))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Workplace:
    """A workplace whose trial is finished, for tests to copy."""
    place = Workplace.apart(tmp_path_factory.mktemp("finished"), migrated_database)
    assert place.sweep().status == 0
    return place


@pytest.fixture
def place(finished: Workplace, tmp_path: Path) -> Workplace:
    """A workplace whose trial is finished, which this process has not seen: it reads its pictures once."""
    folder = shutil.copytree(finished.folder, tmp_path / "place")
    return Workplace(folder, f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture
def made_by_other_code(place: Workplace) -> TrialFolder:
    """The result of the workplace's trial, which other code has made."""
    (folder,) = place.trials()
    rewrite(folder, code=OTHER)
    return folder


def code_of(folder: TrialFolder) -> str | None:
    result = folder.result()
    assert result is not None
    code: str | None = result["provenance"].get("code")
    return code


# --- other code -------------------------------------------------------------------------------------------------------


@COMMANDS
def test_a_result_of_other_code_stops_the_command_in_one_line_and_stays(
    place: Workplace, made_by_other_code: TrialFolder, command: Command
) -> None:
    before = contents(made_by_other_code.path)
    outcome = command(place)
    assert outcome.status == 1
    (line,) = outcome.message.splitlines()
    assert f"it was made by code {OTHER}, and this is {code_fingerprint()}" in line
    assert "on_change=keep takes it as it is, on_change=retrain makes it anew, and another study.name" in line
    assert contents(made_by_other_code.path) == before
    assert len(place.runs()) == 1


@COMMANDS
def test_a_result_of_other_code_can_be_kept(
    place: Workplace, made_by_other_code: TrialFolder, command: Command
) -> None:
    before = contents(made_by_other_code.path)
    assert command(place, "on_change=keep").status == 0
    assert contents(made_by_other_code.path) == before
    assert len(place.runs()) == 1


@COMMANDS
def test_a_result_of_other_code_can_be_made_anew(
    place: Workplace, made_by_other_code: TrialFolder, command: Command
) -> None:
    assert command(place, "on_change=retrain").status == 0
    assert code_of(made_by_other_code) == code_fingerprint()
    assert [attempt.state for attempt in history_of(made_by_other_code).attempts] == [State.FINISHED] * 2
    assert place.finished() == place.results()
    assert len(place.runs()) == 2


@COMMANDS
def test_what_was_made_anew_is_not_made_anew_again(
    place: Workplace, made_by_other_code: TrialFolder, command: Command
) -> None:
    command(place, "on_change=retrain")
    before = contents(made_by_other_code.path)
    assert command(place, "on_change=retrain").status == 0
    assert command(place).status == 0
    assert contents(made_by_other_code.path) == before


def test_a_result_from_before_code_had_a_fingerprint_counts_as_one_of_other_code(place: Workplace) -> None:
    (folder,) = place.trials()
    rewrite(folder, code=None)
    assert "it was made before code had a fingerprint" in place.run().message
    assert place.run("on_change=keep").status == 0


@pytest.mark.parametrize("change", [{"git": "another", "dirty": True}, {"cpu": "another", "threads": 64}], ids=str)
def test_where_and_at_which_commit_a_result_was_made_changes_nothing(place: Workplace, change: dict[str, Any]) -> None:
    (folder,) = place.trials()
    rewrite(folder, **change)
    before = contents(folder.path)
    assert place.run().status == 0
    assert contents(folder.path) == before


def test_a_sweep_says_how_many_results_are_of_other_code_and_trains_none_of_the_rest(
    place: Workplace, made_by_other_code: TrialFolder
) -> None:
    outcome = place.sweep("bn=none,post")
    assert "1 of 2 trials have a result of other code, as reference seed 0" in outcome.message
    assert len(place.results()) == 1


def test_a_sweep_makes_anew_what_other_code_made_and_keeps_the_rest(
    place: Workplace, made_by_other_code: TrialFolder
) -> None:
    place.run("bn=post")
    rest = place.folder_of("bn=post")
    before = contents(rest.path)
    outcome = place.sweep("bn=none,post", "on_change=retrain")
    assert "2 trials, 1 done already, 1 to train" in outcome.out
    assert code_of(made_by_other_code) == code_fingerprint()
    assert contents(rest.path) == before


def test_a_dry_run_tells_of_other_code_too(place: Workplace, made_by_other_code: TrialFolder) -> None:
    assert "have a result of other code" in place.sweep("hydra.sweeper.dry_run=true").message
    assert "1 to train" in place.sweep("hydra.sweeper.dry_run=true", "on_change=retrain").out
    assert "nothing to train" in place.sweep("hydra.sweeper.dry_run=true", "on_change=keep").out


# --- other pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(place: Workplace) -> Workplace:
    """A workplace with a result on pictures of which one has changed since."""
    save(photograph(9), place.folder / "train" / "first.png")
    return place


@pytest.mark.parametrize("choice", ["stop", "keep"])
def test_a_sweep_does_not_mix_results_on_two_kinds_of_pictures(changed: Workplace, choice: str) -> None:
    outcome = changed.sweep(f"on_change={choice}")
    assert outcome.status == 1
    (line,) = outcome.message.splitlines()
    assert "study adhoc has reference seed 0 on other pictures: their fingerprint was " in line
    assert "on_change=retrain trains on these beside them, and another study.name leaves them alone" in line
    assert len(changed.results()) == len(changed.runs()) == 1


def test_a_sweep_trains_on_other_pictures_beside_what_is_there_where_that_is_wanted(changed: Workplace) -> None:
    (before,) = changed.trials()
    old = contents(before.path)
    assert changed.sweep("on_change=retrain").status == 0
    assert len(changed.results()) == 2
    assert changed.finished() == changed.results()
    assert contents(before.path) == old
    assert changed.sweep().status == 0


def test_another_study_is_free_to_have_other_pictures(changed: Workplace) -> None:
    assert changed.sweep("study.name=another").status == 0
    assert len(trial_folders(changed.outputs, "another")) == 1


def test_a_cell_that_the_study_has_no_result_of_is_trained_on_other_pictures(changed: Workplace) -> None:
    assert changed.sweep("bn=post").status == 0
    assert len(changed.results()) == 2


def test_a_single_trial_on_other_pictures_is_a_trial_of_its_own(changed: Workplace) -> None:
    (before,) = changed.trials()
    old = contents(before.path)
    assert changed.run().status == 0
    assert len(changed.results()) == 2
    assert contents(before.path) == old


# --- searches ---------------------------------------------------------------------------------------------------------

SEARCH = ("hydra.sweeper.design=search", "hydra.sweeper.trials=2", "bn=none,post")
"""A search over two cells, of which the place has trained one."""


def test_a_search_stops_at_a_result_of_other_code_and_names_it(
    place: Workplace, made_by_other_code: TrialFolder
) -> None:
    outcome = place.sweep(*SEARCH)
    assert outcome.status == 1
    (line,) = outcome.message.splitlines()
    assert f"reference seed 0 has a result, but it was made by code {OTHER}, and this is {code_fingerprint()}" in line
    assert len(place.results()) == 1


def test_a_search_takes_a_result_of_other_code_for_known_where_it_is_to_be_kept(
    place: Workplace, made_by_other_code: TrialFolder
) -> None:
    before = contents(made_by_other_code.path)
    assert place.sweep(*SEARCH, "on_change=keep").status == 0
    assert contents(made_by_other_code.path) == before
    assert len(place.results()) == 2


def test_a_search_makes_a_result_of_other_code_anew(place: Workplace, made_by_other_code: TrialFolder) -> None:
    outcome = place.sweep(*SEARCH, "on_change=retrain")
    assert outcome.status == 0, outcome.text
    assert code_of(made_by_other_code) == code_fingerprint()
    assert place.finished() == place.results()
    assert len(place.results()) == 2


def test_a_search_does_not_mix_results_on_two_kinds_of_pictures(changed: Workplace) -> None:
    outcome = changed.sweep(*SEARCH)
    assert outcome.status == 1
    assert "study adhoc has reference seed 0 on other pictures: their fingerprint was " in outcome.message
    assert len(changed.results()) == 1
    assert changed.sweep(*SEARCH, "on_change=retrain").status == 0
    assert len(changed.results()) == 3


# --- parts of the user's own ------------------------------------------------------------------------------------------

STEEP = """
from bbcu.model.surrogates import Surrogate


class Steep(Surrogate):
    def derivative(self, u):
        return (SLOPE * u).cosh() ** -2
"""
PART = "surrogate=my_changing_parts.Steep"


def write_part(place: Workplace, text: str) -> None:
    """Write the module of the user's own part, for a command that has not imported it yet."""
    parts = place.folder / "parts"
    parts.mkdir(exist_ok=True)
    (parts / "my_changing_parts.py").write_text(text)
    sys.modules.pop("my_changing_parts", None)
    code_fingerprint.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def with_part(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """A workplace with a result of a part of the user's own."""
    # Or a file that is written twice in a second would be read from what was compiled of it before.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(place.folder / "parts"))
    write_part(place, STEEP.replace("SLOPE", "2"))
    assert place.sweep(PART).status == 0
    yield place
    sys.modules.pop("my_changing_parts", None)
    code_fingerprint.cache_clear()


def test_a_part_that_is_not_there_is_told_in_one_line_by_a_search_too(place: Workplace) -> None:
    outcome = place.sweep(*SEARCH, "surrogate=quadratic,no_such_module.Steep")
    assert outcome.status == 1
    (line,) = outcome.message.splitlines()
    assert line.startswith("run.py: surrogate 'no_such_module.Steep' cannot be imported")


@COMMANDS
def test_a_part_of_the_users_own_that_has_changed_since_stops_the_command(
    with_part: Workplace, command: Command
) -> None:
    write_part(with_part, STEEP.replace("SLOPE", "3"))
    outcome = command(with_part, PART)
    assert outcome.status == 1
    assert "it was made by code " in outcome.message
    assert command(with_part).status == 0
    assert command(with_part, PART, "on_change=retrain").status == 0
    assert command(with_part, PART).status == 0


def test_a_better_word_on_a_part_of_the_users_own_changes_nothing(with_part: Workplace) -> None:
    before = contents(with_part.outputs / "adhoc")
    results = {name: kept for name, kept in before.items() if name.endswith("result.json")}
    write_part(with_part, '"""Steep ones."""\n' + STEEP.replace("SLOPE", "2"))
    assert with_part.sweep(PART).status == 0
    assert contents(with_part.outputs / "adhoc").items() >= results.items()
