"""A search by the command: it chooses cells, trains each once, prunes hopeless ones and records all of it."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ablations.storage.attempts import State, history_of, present_state
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import lease_path
from ablations.storage.plans import read_plan
from ablations.sweep.search_loop import over_one_twin
from ablations.tracking.client import client_of, experiment_id, search_runs
from bbcu.compiled import NO_COMPILER, cpp_compiler
from bbcu.model.cost import Cost
from tests.harness.support import STUDY, Outcome, Workplace, contents

SPACE = ("residual=true,false", "bn=none,pre,post", "act=inside,none")
"""Twelve rows; without BatchNorm, two of them may be one cell."""


def search(place: Workplace, trials: int, *more: str, space: Sequence[str] = SPACE) -> Outcome:
    """Search for this many cells, drawn at random."""
    how = ("hydra.sweeper.design=search", f"hydra.sweeper.trials={trials}", "hydra.sweeper.sampler=random")
    return place.sweep(*how, *space, *more)


def found(place: Workplace) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place.outputs / STUDY / "search.json").read_text())
    return content


def psnr_of(folder: TrialFolder) -> float:
    result = folder.result()
    assert result is not None
    return float(result["metrics"]["Tiny"]["psnr_db"])


def states_run(place: Workplace) -> dict[str, Any]:
    """The files of the run that records the states of the study's trials."""
    client = client_of(place.uri)
    (run,) = search_runs(place.uri, experiment_id(place.uri, STUDY), "tags.kind = 'states'")
    return {file.path: file for file in client.list_artifacts(run.info.run_id)}


def test_times_of_cells_of_other_widths_are_compared_with_one_twin() -> None:
    """A network of half the width that takes 0.4 of its twin's time takes 0.1 of the wide twin's."""
    wide, narrow = (Cost(ops=size / 64, params=0, binary_macs=size) for size in (4e9, 1e9))
    assert over_one_twin(0.4, narrow, wide) == pytest.approx(0.1)
    assert over_one_twin(0.4, wide, wide) == 0.4
    assert over_one_twin(0.4, wide, narrow) == pytest.approx(1.6)


def test_a_search_trains_the_teacher_of_a_cell_and_counts_it_as_no_cell(workplace: Workplace) -> None:
    outcome = search(workplace, 3, space=("distil=none,output,attention",))
    assert outcome.status == 0, outcome.text
    assert workplace.names() == {"reference", "full_precision", "distil=output", "distil=attention"}
    assert len(workplace.results()) == 4
    rows = {row["name"]: row.get("only_teaches", False) for row in read_plan(workplace.outputs, STUDY)["trials"]}
    assert [name for name, only in rows.items() if only] == ["full_precision"]


# --- one objective ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(new_workplace: Callable[[], Workplace]) -> tuple[Workplace, Outcome]:
    """A search for two cells."""
    place = new_workplace()
    return place, search(place, 2)


def test_a_search_trains_as_many_cells_as_it_may_and_reports_the_best(searched: tuple[Workplace, Outcome]) -> None:
    place, outcome = searched
    assert outcome.status == 0, outcome.text
    assert len(place.results()) == 2
    assert place.finished() == place.results()
    report = found(place)
    best = max(place.trials(), key=psnr_of)
    assert report["best"]["values"]["psnr_db"] == pytest.approx(psnr_of(best))
    assert report["best"]["cell"] == f"{best.cell}/0"
    assert "best cell" in outcome.out
    assert "retrain these cells under new seeds" in outcome.out
    assert "search.json" in states_run(place)


def test_the_same_search_again_trains_nothing_and_a_longer_one_continues(searched: tuple[Workplace, Outcome]) -> None:
    place, _ = searched
    first = results_in(place)
    for trials in (2, 3):
        assert search(place, trials).status == 0
        assert results_in(place).items() >= first.items()
        assert len(place.results()) == trials
    assert place.finished() == place.results()


def results_in(place: Workplace) -> dict[str, tuple[bytes, int]]:
    """The bytes and dates of all results."""
    return {name: file for name, file in contents(place.outputs / STUDY).items() if name.endswith("result.json")}


def test_a_cell_that_a_sweep_has_trained_is_not_retrained(workplace: Workplace) -> None:
    assert workplace.sweep("residual=true,false").status == 0
    before = results_in(workplace)
    assert search(workplace, 1, space=("residual=true,false", "act=inside,none")).status == 0
    assert results_in(workplace).items() >= before.items()
    assert len(workplace.results()) == 3
    values = [record["values"]["psnr_db"] for record in found(workplace)["history"] if record["values"]]
    assert set(values) <= {psnr_of(folder) for folder in workplace.trials()}


def test_a_cell_is_scored_by_its_mean_over_the_seeds(workplace: Workplace) -> None:
    outcome = search(workplace, 2, "hydra.sweeper.replicates=2", space=("residual=true,false",))
    assert outcome.status == 0, outcome.text
    assert len(workplace.results()) == 4
    cells = {folder.cell for folder in workplace.trials()}
    means = [sum(psnr_of(one) for one in workplace.trials() if one.cell == cell) / 2 for cell in cells]
    assert found(workplace)["best"]["values"]["psnr_db"] == pytest.approx(max(means))
    # Each trial has decided about compilation as one of two that share the code.
    decision = "in each of 2 that share the code" if cpp_compiler() else NO_COMPILER
    assert all(decision in folder.log_path.read_text(encoding="utf-8") for folder in workplace.trials())


def test_a_row_that_a_condition_leaves_out_is_not_trained_and_listed_with_the_reason(workplace: Workplace) -> None:
    outcome = search(workplace, 12, 'hydra.sweeper.exclude=["bn != none"]')
    assert outcome.status == 0, outcome.text
    levels = {TrialFolder.result(folder)["factors"]["bn"] for folder in workplace.trials()}  # type: ignore[index]
    assert levels == {"none"}
    why = 'excluded by "bn!=none"'
    assert {record["reason"] for record in found(workplace)["history"] if record["state"] == "left out"} == {why}
    planned = read_plan(workplace.outputs, STUDY)
    assert [entry["reason"] for entry in planned["left_out"]] == [why] * 8
    assert sum(line.startswith("left out: ") and line.endswith(why) for line in outcome.out.splitlines()) == 8


WAITING = """
from pathlib import Path

from bbcu.model.surrogates import Surrogate


class Waiting(Surrogate):
    def derivative(self, u):
        if not (Path(__file__).parent / "ready").exists():
            raise ValueError("not ready")
        return u * 0 + 1
"""


def test_a_failed_cell_is_reported_and_retried_by_the_next_command(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = workplace.folder / "parts"
    parts.mkdir()
    (parts / "waiting_part.py").write_text(WAITING)
    monkeypatch.syspath_prepend(str(parts))
    space = ("surrogate=quadratic,waiting_part.Waiting",)
    outcome = search(workplace, 2, "hydra.sweeper.retries=0", space=space)
    assert outcome.status == 1
    assert "1 of 2 trials have no result; the results of the others are saved" in outcome.message
    (failed,) = [record for record in found(workplace)["history"] if record["state"] == "failed"]
    assert "not ready" in failed["reason"]
    assert "waiting" not in " ".join(found(workplace)["best"]["row"])

    (parts / "ready").touch()
    assert search(workplace, 2, "hydra.sweeper.retries=0", space=space).status == 0
    assert len(workplace.results()) == 2
    histories = [[attempt.state for attempt in history_of(folder).attempts] for folder in workplace.trials()]
    assert sorted(histories) == [[State.FAILED, State.FINISHED], [State.FINISHED]]
    assert workplace.finished() == workplace.results()


# --- several objectives -----------------------------------------------------------------------------------------------


def test_several_objectives_have_a_front_that_no_cell_beats(workplace: Workplace) -> None:
    space = ("binarize=[body],[body,up]", "channels=4,8")
    three = "hydra.sweeper.objectives=[psnr_db,ops_g,params_k]"
    outcome = search(workplace, 4, three, "train.steps=12", "train.lr=2e-3", space=space)
    assert outcome.status == 0, outcome.text
    results = [result for folder in workplace.trials() if (result := folder.result()) is not None]
    assert len(results) == 4
    # More is better in each.
    points = [
        (result["metrics"]["Tiny"]["psnr_db"], -result["cost"]["ops_g"], -result["cost"]["params_k"])
        for result in results
    ]
    best = [
        one
        for one in points
        if not any(other != one and all(a >= b for a, b in zip(other, one, strict=True)) for other in points)
    ]
    front = [
        (record["values"]["psnr_db"], -record["values"]["ops_g"], -record["values"]["params_k"])
        for record in found(workplace)["front"]
    ]
    assert len(front) > 1
    np.testing.assert_allclose(sorted(front), sorted(best))
    (header,) = [number for number, line in enumerate(outcome.out.splitlines()) if line.startswith("front ")]
    shown = outcome.out.splitlines()[header + 1 : header + 1 + len(front)]
    assert all("channels=" in line for line in shown)


# --- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hopeless_cell_is_pruned_and_stays_so(workplace: Workplace) -> None:
    early = ("train.steps=4", "tracking.evaluations=2", "hydra.sweeper.pruner=median")
    outcome = search(workplace, 8, *early)
    assert outcome.status == 0, outcome.text
    pruned = [folder for folder in workplace.trials() if folder.result() is None]
    # The pruner compares with at least five finished trials.
    assert 1 <= len(pruned) <= len(workplace.trials()) - 5
    for folder in pruned:
        state, reason = present_state(folder)
        assert state == State.PRUNED
        (attempt,) = history_of(folder).attempts
        assert (attempt.step, reason) == (2, f"pruned at step 2 with {attempt.psnr_db:.2f} dB")
        assert not lease_path(folder).exists()
    by_cell = {folder.cell for folder in pruned}
    assert {run.data.tags["cell"] for run in workplace.runs("KILLED")} == by_cell
    assert all(run.data.tags["state"] == "pruned" for run in workplace.runs("KILLED"))
    assert sum("  pruned  " in line for line in outcome.out.splitlines()) == len(pruned)
    assert "Error" not in outcome.text
    assert found(workplace)["best"]["cell"].partition("/")[0] not in by_cell
    assert search(workplace, 8, *early).status == 0
    assert len([folder for folder in workplace.trials() if folder.result() is None]) == len(pruned)
    assert all(len(history_of(folder).attempts) == 1 for folder in pruned)


# --- wrong options, and a dry run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("hydra.sweeper.design=search",), "design=search needs hydra.sweeper.trials"),
        (
            ("hydra.sweeper.design=search", "hydra.sweeper.trials=2", "hydra.sweeper.cells=3"),
            "design=search takes trials, objectives",
        ),
        (
            (
                *("hydra.sweeper.design=search", "hydra.sweeper.trials=2"),
                *("hydra.sweeper.pruner=median", "hydra.sweeper.replicates=2"),
            ),
            "ends single trials, so hydra.sweeper.replicates must be 1",
        ),
    ],
    ids=["no number of trials", "another design's option", "pruner beside replicates"],
)
def test_options_that_do_not_fit_a_search_are_refused_in_one_line(
    workplace: Workplace, typed: tuple[str, ...], message: str
) -> None:
    outcome = workplace.sweep(*typed, "residual=true,false")
    assert outcome.status != 0
    assert message in outcome.message
    assert len(outcome.message.strip().splitlines()) <= 2
    assert not workplace.runs()


def test_a_dry_run_says_how_large_the_space_is_and_leaves_nothing(workplace: Workplace) -> None:
    outcome = search(workplace, 3, "hydra.sweeper.dry_run=true")
    assert outcome.status == 0
    assert "search over 12 rows, at most 3 cells" in outcome.out
    assert workplace.is_untouched()
