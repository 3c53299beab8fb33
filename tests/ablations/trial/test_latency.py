"""The latency of trained networks: of a trial as it finishes, and of one that has finished without."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from ablations.storage.attempts import history_of
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import read_plan
from ablations.trial.latency import NUMBERS
from tests.harness.support import STUDY, Outcome, Workplace, contents, result_of

CELLS = ("method=bbcu,bicubic",)
LATER = "bn=post"
LATENCY = "measure.latency=true"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A sweep that was run again to measure what it had trained, and a trial that was measured as it finished."""

    workplace: Workplace
    before: dict[str, Any]
    dry: Outcome
    again: Outcome
    plan: dict[str, Any]
    later: Outcome


@pytest.fixture(scope="module")
def measured(new_workplace: Callable[[], Workplace]) -> Measured:
    workplace = new_workplace()
    assert workplace.sweep(*CELLS).status == 0
    before = result_of(workplace)
    dry = workplace.sweep(*CELLS, LATENCY, "hydra.sweeper.dry_run=true")
    again = workplace.sweep(*CELLS, LATENCY, "cost.binary=1/8")
    plan = read_plan(workplace.outputs, STUDY)
    return Measured(workplace, before, dry, again, plan, workplace.run(LATER, LATENCY))


def test_a_finished_trial_is_measured_from_its_checkpoint_and_not_trained_again(measured: Measured) -> None:
    assert measured.again.status == 0, measured.again.text
    folder = measured.workplace.folder_of()
    result = result_of(measured.workplace)
    assert len(history_of(folder).attempts) == 1
    assert not set(NUMBERS) & measured.before["cost"].keys()
    assert set(result["cost"]) == {*measured.before["cost"], *NUMBERS}
    assert result["cost"]["latency_ratio"] == pytest.approx(
        result["cost"]["latency_ms"] / result["cost"]["twin_ms"], rel=0.01
    )
    assert {"backend", "twin", "size", "cpu"} <= set(result["provenance"]["latency"])
    assert without_latency(result) == measured.before
    folder.check_checkpoint()


def without_latency(result: dict[str, Any]) -> dict[str, Any]:
    """A result as it was before its latency was measured."""
    kept = {
        "cost": {name: value for name, value in result["cost"].items() if name not in NUMBERS},
        "timing": {name: value for name, value in result["timing"].items() if name != "measure_s"},
        "provenance": {name: value for name, value in result["provenance"].items() if name != "latency"},
    }
    return {**result, **kept}


def test_a_sweep_says_what_is_to_be_measured(measured: Measured) -> None:
    counts = "2 trials, 2 done already, nothing to train, the latency of 1 to measure"
    assert counts in measured.dry.out
    assert counts in measured.again.out
    assert sum("  to measure  " in line for line in measured.dry.out.splitlines()) == 1


def test_what_is_measured_is_measured_once(measured: Measured) -> None:
    before = contents(measured.workplace.outputs / STUDY)
    again = measured.workplace.sweep(*CELLS, LATENCY)
    assert "nothing to train\n" in again.out
    after = contents(measured.workplace.outputs / STUDY)
    assert {name: file for name, file in after.items() if name != "plan.json"} == {
        name: file for name, file in before.items() if name != "plan.json"
    }


def test_every_measured_trial_has_one_finished_run_with_the_numbers(measured: Measured) -> None:
    workplace = measured.workplace
    assert workplace.finished() == workplace.results()
    for overrides in ((), (LATER,)):
        cell = workplace.trial(*overrides).cell.key
        (run,) = [run for run in workplace.runs("FINISHED") if run.data.tags["cell"] == cell]
        cost = result_of(workplace, *overrides)["cost"]
        assert {name: run.data.metrics[f"cost/{name}"] for name in NUMBERS} == {name: cost[name] for name in NUMBERS}


def test_a_trial_that_is_measured_as_it_finishes_prints_it(measured: Measured) -> None:
    cost = result_of(measured.workplace, LATER)["cost"]
    assert measured.later.status == 0
    (line,) = [line for line in measured.later.out.splitlines() if line.startswith("  cost: ")]
    ratio = f"{cost['latency_ratio']:.2g} of the full-precision twin"
    assert line.endswith(f"; {cost['latency_ms']:.3g} ms, {ratio}, packed {cost['packed_kb']:.0f} kB")
    assert len(history_of(measured.workplace.folder_of(LATER)).attempts) == 1


def test_the_engines_say_nothing_of_their_own(measured: Measured) -> None:
    assert "constant folding" not in measured.later.text
    assert "constant folding" not in measured.workplace.folder_of(LATER).log_path.read_text()


def test_the_plan_has_the_price_of_the_last_sweep(measured: Measured) -> None:
    assert measured.plan["cost"] == {"binary": "1/8"}


def test_a_machine_that_cannot_run_the_kernel_is_refused_before_anything_is_trained(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BBCU_INSTRUCTIONS", "sse")
    line = workplace.run(LATENCY).refusal
    assert line.startswith("run.py: measure.latency=true: this machine cannot run the native kernel: ")
    assert "sse" in line
    assert workplace.is_untouched()


# --- in a copy of the study, in which one trial has no latency --------------------------------------------------------


@pytest.fixture
def copied(measured: Measured, workplace: Workplace) -> tuple[Workplace, TrialFolder]:
    """A copy of the study, and the folder of the trial whose latency was taken out."""
    shutil.copytree(measured.workplace.outputs / STUDY, workplace.outputs / STUDY)
    folder = workplace.folder_of()
    folder.write_result(without_latency(result_of(workplace)))
    return workplace, folder


def test_a_damaged_checkpoint_is_named_and_the_result_stays(copied: tuple[Workplace, TrialFolder]) -> None:
    workplace, folder = copied
    folder.checkpoint_path.write_bytes(b"damaged")
    before = folder.result_path.read_bytes()
    outcome = workplace.run(LATENCY)
    assert outcome.status == 0
    assert "its latency was not measured" in outcome.text
    assert "checkpoint.pt is damaged: its content does not match its checksum" in outcome.text
    assert folder.result_path.read_bytes() == before


def test_a_search_for_the_ratio_measures_what_lacks_it_and_trains_nothing(
    copied: tuple[Workplace, TrialFolder],
) -> None:
    workplace, folder = copied
    how = ("hydra.sweeper.design=search", "hydra.sweeper.trials=2", "hydra.sweeper.objectives=[psnr_db,latency_ratio]")
    outcome = workplace.sweep(*how, "bn=none,post", LATENCY)
    assert outcome.status == 0, outcome.text
    rows = json.loads((workplace.outputs / STUDY / "search.json").read_text())["history"]
    found = {row["cell"].partition("/")[0]: row["values"]["latency_ratio"] for row in rows if row["values"]}
    results = [result_of(workplace), result_of(workplace, LATER)]
    assert found.items() <= {result["cell"]: result["cost"]["latency_ratio"] for result in results}.items()
    assert folder.cell in found
    assert len(history_of(folder).attempts) == 1
