"""What has been decided so far, as those who watch a study read it from its folder."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ablations.decide.progress import ComparisonReader, comparisons_of
from ablations.planning.plan import plan_record
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import write_plan
from tests.harness.deciding import STUDY, MadeUpSweep, drawn_score, leave_result, made_up_plan


@pytest.fixture(autouse=True)
def never_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


def test_a_study_without_a_rule_has_no_comparisons(tmp_path: Path) -> None:
    assert comparisons_of(tmp_path, STUDY) == []
    write_plan(tmp_path, STUDY, plan_record(dataclasses.replace(made_up_plan(tmp_path), rule=None)))
    assert comparisons_of(tmp_path, STUDY) == []


def test_before_the_first_result_all_are_open(tmp_path: Path) -> None:
    write_plan(tmp_path, STUDY, plan_record(made_up_plan(tmp_path)))
    found = comparisons_of(tmp_path, STUDY)
    assert [each.label for each in found] == [
        "The clip surrogate in place of the quadratic one",
        "The identity surrogate in place of the quadratic one",
        "The EDE surrogate in place of the quadratic one",
    ]
    assert {(each.task, each.seeds, each.is_open, each.conclusion("Tiny")) for each in found} == {
        ("sr_x2", 0, True, "")
    }


def test_the_comparisons_of_a_sweep_are_what_it_has_printed(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path))
    sweep.run()
    found = comparisons_of(tmp_path, STUDY)
    assert found == sweep.loop.decided().comparisons
    assert [(each.seeds, each.is_open) for each in found] == [(3, False), (6, False), (8, False)]


def test_a_failed_trial_has_ended_until_it_is_retried(tmp_path: Path) -> None:
    sweep = MadeUpSweep(made_up_plan(tmp_path), lambda name, seed: None if name == "clip" else drawn_score(name, seed))
    sweep.run()
    assert comparisons_of(tmp_path, STUDY)[0].conclusion("Tiny") == "no result"


def test_a_reader_sees_results_that_are_added(tmp_path: Path) -> None:
    plan = made_up_plan(tmp_path)
    write_plan(tmp_path, STUDY, plan_record(plan))
    reader = ComparisonReader(tmp_path, STUDY)
    assert all(each.is_open for each in reader.read())
    for entry in plan.trials[:12]:
        leave_result(entry, drawn_score(entry.overrides[0], entry.trial.seed))
    assert [each.conclusion("Tiny") for each in reader.read()] == ["worse at 3", "open", "open"]


def test_a_reader_reads_a_result_again_only_if_it_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made_up_plan(tmp_path)
    write_plan(tmp_path, STUDY, plan_record(plan))
    for entry in plan.trials[:12]:
        leave_result(entry, drawn_score(entry.overrides[0], entry.trial.seed))
    reader, parsed = ComparisonReader(tmp_path, STUDY), []
    result = TrialFolder.result

    def counted(folder: TrialFolder) -> dict[str, Any] | None:
        parsed.append((folder.cell, folder.seed))
        return result(folder)

    monkeypatch.setattr(TrialFolder, "result", counted)
    reader.read()
    assert len(parsed) == 12
    reader.read()
    assert len(parsed) == 12
    leave_result(plan.trials[0], 40.0)
    reader.read()
    assert parsed[12:] == [plan.trials[0].identity]
