"""Results of other code or other pictures: the user chooses; they are never mixed silently."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ablations.storage.attempts import State, history_of
from ablations.storage.folder import TrialFolder, trial_folders
from ablations.trial.provenance import code_fingerprint
from bbcu.files import write_atomically
from tests.harness.builders import save
from tests.harness.support import STUDY, Outcome, Workplace, contents, photograph

OTHER = "0123456789abcdef"
COMMANDS = pytest.mark.parametrize("command", [Workplace.run, Workplace.sweep], ids=["trial", "sweep"])
Command = Callable[..., Outcome]

SEARCH = ("hydra.sweeper.design=search", "hydra.sweeper.trials=2", "bn=none,post")
"""A search over two cells, one of which the workplace has trained."""


def rewrite(folder: TrialFolder, **provenance: Any) -> None:
    """Change the provenance of a result; None removes a key."""
    result = folder.result()
    assert result is not None
    changed = {**result["provenance"], **provenance}
    result["provenance"] = {name: value for name, value in changed.items() if value is not None}
    write_atomically(folder.result_path, json.dumps(result))


def code_of(folder: TrialFolder) -> str | None:
    result = folder.result()
    assert result is not None
    code: str | None = result["provenance"].get("code")
    return code


@pytest.fixture(scope="module")
def finished(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A workplace with a finished trial, for tests to copy."""
    place = new_workplace()
    assert place.sweep().status == 0
    return place


@pytest.fixture
def place(finished: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the workplace whose pictures this process has not read yet."""
    folder = shutil.copytree(finished.folder, tmp_path / "place")
    return Workplace(folder, f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture
def of_other_code(place: Workplace) -> TrialFolder:
    """The workplace's trial, with a result of other code."""
    (folder,) = place.trials()
    rewrite(folder, code=OTHER)
    return folder


# --- other code -------------------------------------------------------------------------------------------------------


@COMMANDS
def test_a_result_of_other_code_stops_the_command_in_one_line_and_stays(
    place: Workplace, of_other_code: TrialFolder, command: Command
) -> None:
    before = contents(of_other_code.path)
    outcome = command(place)
    line = outcome.refusal
    assert f"it was made by code {OTHER}, and the present code is {code_fingerprint()}" in line
    assert "on_change=keep reuses it, on_change=retrain replaces it, and another study.name" in line
    assert contents(of_other_code.path) == before
    assert len(place.runs()) == 1


@COMMANDS
def test_a_result_of_other_code_can_be_kept(place: Workplace, of_other_code: TrialFolder, command: Command) -> None:
    before = contents(of_other_code.path)
    assert command(place, "on_change=keep").status == 0
    assert contents(of_other_code.path) == before
    assert len(place.runs()) == 1


@COMMANDS
def test_a_result_of_other_code_can_be_retrained_once(
    place: Workplace, of_other_code: TrialFolder, command: Command
) -> None:
    assert command(place, "on_change=retrain").status == 0
    assert code_of(of_other_code) == code_fingerprint()
    assert [attempt.state for attempt in history_of(of_other_code).attempts] == [State.FINISHED] * 2
    assert place.finished() == place.results()
    assert len(place.runs()) == 2
    before = contents(of_other_code.path)
    assert command(place, "on_change=retrain").status == 0
    assert command(place).status == 0
    assert contents(of_other_code.path) == before


def test_a_result_without_a_fingerprint_is_one_of_other_code(place: Workplace) -> None:
    (folder,) = place.trials()
    rewrite(folder, code=None)
    assert "it was made before code had a fingerprint" in place.run().message
    assert place.run("on_change=keep").status == 0


def test_the_commit_and_the_machine_of_a_result_do_not_matter(place: Workplace) -> None:
    (folder,) = place.trials()
    rewrite(folder, git="another", dirty=True, cpu="another", threads=64)
    before = contents(folder.path)
    assert place.run().status == 0
    assert contents(folder.path) == before


def test_a_sweep_with_a_result_of_other_code_trains_nothing_or_retrains_only_that(
    place: Workplace, of_other_code: TrialFolder
) -> None:
    outcome = place.sweep("bn=none,post")
    assert "1 of 2 trials have a result that is out of date, such as reference seed 0" in outcome.message
    assert len(place.results()) == 1
    place.run("bn=post")
    rest = place.folder_of("bn=post")
    before = contents(rest.path)
    outcome = place.sweep("bn=none,post", "on_change=retrain")
    assert "2 trials, 1 done already, 1 to train" in outcome.out
    assert code_of(of_other_code) == code_fingerprint()
    assert contents(rest.path) == before


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("stop", "have a result that is out of date"), ("retrain", "1 to train"), ("keep", "nothing to train")],
)
def test_a_dry_run_reports_other_code(place: Workplace, of_other_code: TrialFolder, choice: str, expected: str) -> None:
    assert expected in place.sweep("hydra.sweeper.dry_run=true", f"on_change={choice}").text


def test_a_search_stops_at_a_result_of_other_code_and_names_it(place: Workplace, of_other_code: TrialFolder) -> None:
    outcome = place.sweep(*SEARCH)
    line = outcome.refusal
    name = f"it was made by code {OTHER}, and the present code is {code_fingerprint()}"
    assert f"reference seed 0 has a result, but {name}" in line
    assert len(place.results()) == 1


@pytest.mark.parametrize("choice", ["keep", "retrain"])
def test_a_search_keeps_or_retrains_a_result_of_other_code(
    place: Workplace, of_other_code: TrialFolder, choice: str
) -> None:
    before = contents(of_other_code.path)
    outcome = place.sweep(*SEARCH, f"on_change={choice}")
    assert outcome.status == 0, outcome.text
    assert code_of(of_other_code) == (OTHER if choice == "keep" else code_fingerprint())
    assert (contents(of_other_code.path) == before) == (choice == "keep")
    assert len(place.results()) == 2


# --- other pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(place: Workplace) -> Workplace:
    """A workplace with a result on pictures of which one has changed since."""
    save(photograph(9), place.folder / "train" / "first.png")
    return place


@pytest.mark.parametrize(
    "overrides", [("on_change=stop",), ("on_change=keep",), SEARCH], ids=["stop", "keep", "search"]
)
def test_results_on_two_sets_of_pictures_are_not_mixed(changed: Workplace, overrides: tuple[str, ...]) -> None:
    outcome = changed.sweep(*overrides)
    line = outcome.refusal
    assert "study adhoc has reference seed 0 on other pictures: their fingerprint was " in line
    assert "on_change=retrain trains on these beside them, and another study.name leaves them alone" in line
    assert len(changed.results()) == len(changed.runs()) == 1


@pytest.mark.parametrize(("overrides", "results"), [((), 2), (SEARCH, 3)], ids=["sweep", "search"])
def test_a_sweep_trains_on_other_pictures_beside_the_old_results_if_asked_to(
    changed: Workplace, overrides: tuple[str, ...], results: int
) -> None:
    (before,) = changed.trials()
    old = contents(before.path)
    assert changed.sweep(*overrides, "on_change=retrain").status == 0
    assert len(changed.results()) == results
    assert contents(before.path) == old
    assert changed.sweep(*overrides).status == 0


@pytest.mark.parametrize(
    ("command", "override", "study"),
    [
        pytest.param(Workplace.sweep, "study.name=another", "another", id="another study"),
        pytest.param(Workplace.sweep, "bn=post", STUDY, id="a cell without a result"),
        pytest.param(Workplace.run, "seed=0", STUDY, id="a single trial"),
    ],
)
def test_other_pictures_do_not_stop(changed: Workplace, command: Command, override: str, study: str) -> None:
    (before,) = changed.trials()
    old = contents(before.path)
    assert command(changed, override).status == 0
    assert len(trial_folders(changed.outputs, study)) == (2 if study == STUDY else 1)
    assert contents(before.path) == old


# --- parts of the user's own ------------------------------------------------------------------------------------------

STEEP = """
from bbcu.model.surrogates import Surrogate


class Steep(Surrogate):
    def derivative(self, u):
        return (SLOPE * u).cosh() ** -2
"""
PART = "surrogate=my_changing_parts.Steep"


def write_part(place: Workplace, text: str) -> None:
    """Write the module of the user's own part, and let this process forget the old one."""
    parts = place.folder / "parts"
    parts.mkdir(exist_ok=True)
    (parts / "my_changing_parts.py").write_text(text)
    sys.modules.pop("my_changing_parts", None)
    code_fingerprint.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def with_part(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """A workplace with a result of a part of the user's own."""
    # A file that is written twice within a second would be read from its stale bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(place.folder / "parts"))
    write_part(place, STEEP.replace("SLOPE", "2"))
    assert place.sweep(PART).status == 0
    yield place
    sys.modules.pop("my_changing_parts", None)
    code_fingerprint.cache_clear()


def test_a_missing_part_stops_a_search_in_one_line(place: Workplace) -> None:
    outcome = place.sweep(*SEARCH, "surrogate=quadratic,no_such_module.Steep")
    line = outcome.refusal
    assert line.startswith("run.py: surrogate 'no_such_module.Steep' cannot be imported")


@COMMANDS
def test_a_changed_part_stops_the_command(with_part: Workplace, command: Command) -> None:
    write_part(with_part, STEEP.replace("SLOPE", "3"))
    outcome = command(with_part, PART)
    assert outcome.status == 1
    assert "it was made by code " in outcome.message
    assert command(with_part).status == 0
    assert command(with_part, PART, "on_change=retrain").status == 0
    assert command(with_part, PART).status == 0


def test_a_better_docstring_of_a_part_changes_nothing(with_part: Workplace) -> None:
    before = contents(with_part.outputs / STUDY)
    results = {name: result for name, result in before.items() if name.endswith("result.json")}
    write_part(with_part, '"""Steep ones."""\n' + STEEP.replace("SLOPE", "2"))
    assert with_part.sweep(PART).status == 0
    assert contents(with_part.outputs / STUDY).items() >= results.items()
