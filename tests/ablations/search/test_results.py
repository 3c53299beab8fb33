"""What a search finds, what it prunes, and which options it refuses."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ablations.search.records import Failed, Finished, IdentifiedRow, Proposal, Pruned
from ablations.search.search import Search
from ablations.search.storages import opened
from ablations.space.rows import Row
from bbcu.errors import BbcuError, ConfigError
from tests.ablations.search.searches import (
    BATCHED,
    COSTS,
    LEVELS,
    finish,
    identified,
    options_of,
    searched,
    train_all,
    worth,
)
from tests.harness.paths import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

# --- what is best -----------------------------------------------------------------------------------------------------


def test_the_best_is_the_cell_with_the_highest_psnr(journal: str) -> None:
    search = searched(journal)
    assert search.front() == []
    trained = train_all(search)
    [best] = search.front()
    assert best.cell == max(trained, key=lambda cell: worth(cell)["psnr_db"])
    assert best.values == {"psnr_db": worth(best.cell)["psnr_db"]}
    assert search.front() == [best]


def test_the_front_has_what_no_other_cell_beats(journal: str) -> None:
    search = searched(journal, objectives=COSTS)
    trained = train_all(search)

    def beats(one: str, other: str) -> bool:
        better, costlier = worth(one), worth(other)
        return better["psnr_db"] > costlier["psnr_db"] and better["ops_g"] < costlier["ops_g"]

    expected = {cell for cell in trained if not any(beats(other, cell) for other in trained)}
    front = search.front()
    assert 1 < len(expected) < len(trained)
    assert {record.cell for record in front} == expected
    assert len(front) == len(expected)
    assert [record.values["psnr_db"] for record in front] == sorted(
        (worth(cell)["psnr_db"] for cell in expected), reverse=True
    )


@pytest.mark.parametrize("objectives", [("psnr_db",), COSTS])
def test_other_programs_see_names_and_what_each_row_is(file: str, objectives: tuple[str, ...]) -> None:
    def identify(row: Row) -> IdentifiedRow:
        found = identified(row)
        return dataclasses.replace(found, notes={"folder": f"outputs/{found.cell}"} if found.cell else {})

    search = Search(options_of(file, objectives=objectives), LEVELS, identify)
    failed, *others = search.ask(3)
    search.tell(failed, Failed("out of memory"))
    finish(search, others)
    (study,) = stored_studies(file)
    assert study.metric_names == list(objectives)
    assert study.user_attrs["levels"] == " ".join(f"{key}={','.join(texts)}" for key, texts in LEVELS.items())
    trials = study.get_trials()
    assert {trial.user_attrs["folder"] for trial in trials if trial.values} == {f"outputs/{p.cell}" for p in others}
    assert trials[failed.number].user_attrs["reason"] == "out of memory"
    assert all(trial.params.keys() == LEVELS.keys() for trial in trials)


def test_a_search_that_an_earlier_version_stored_gets_its_names_when_it_is_resumed(file: str) -> None:
    searched(file)
    with opened(file) as (_, storage):
        (name,) = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=name, storage=storage)
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            study.set_metric_names(["0"])
    searched(file)
    (study,) = stored_studies(file)
    assert study.metric_names == ["psnr_db"]


def stored_studies(storage: str) -> list[optuna.Study]:
    """The studies of a storage, as another program of Optuna reads them."""
    is_journal = storage.endswith(".log")
    there = JournalStorage(JournalFileBackend(storage)) if is_journal else optuna.storages.RDBStorage(storage)
    return [optuna.load_study(study_name=name, storage=there) for name in optuna.get_all_study_names(there)]


def test_the_history_is_json_and_the_same_in_the_next_session(journal: str) -> None:
    search = searched(journal)
    proposals = search.ask(3)
    search.tell(proposals[0], Pruned(120))
    search.tell(proposals[1], Failed("out of memory"))
    train_all(search)
    finish(search, proposals[2:])
    rows = json.loads(json.dumps([dataclasses.asdict(record) for record in search.history()]))
    assert rows == json.loads(json.dumps([dataclasses.asdict(record) for record in searched(journal).history()]))
    pruned = next(row for row in rows if row["state"] == "pruned")
    assert (pruned["step"], pruned["cell"], pruned["row"]) == (120, proposals[0].cell, list(proposals[0].row))


# --- pruning ----------------------------------------------------------------------------------------------------------


def after_six_curves(storage: str, pruner: str) -> tuple[Search, Proposal]:
    """A search with six cells whose curves rise from 30 to 32 dB in three points, and its next proposal."""
    search = searched(storage, BATCHED, pruner=pruner)
    for proposal in search.ask(6):
        for step, value in ((100, 30.0), (200, 31.0), (300, 32.0)):
            search.report(proposal, step, value)
        search.tell(proposal, Finished({"psnr_db": 32.0}))
    [proposal] = search.ask(1)
    return search, proposal


@pytest.mark.parametrize(("pruner", "prunes"), [("median", True), ("halving", True), ("none", False)])
def test_a_hopeless_curve_is_pruned(file: str, pruner: str, prunes: bool) -> None:
    search, proposal = after_six_curves(file, pruner)
    assert search.report(proposal, 100, 20.0) is prunes


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_curve_above_the_others_is_not_pruned(journal: str, pruner: str) -> None:
    search, proposal = after_six_curves(journal, pruner)
    assert not any(search.report(proposal, step, 33.0) for step in (100, 200, 300))


def test_a_pruned_cell_is_never_proposed_again_and_never_the_best(journal: str) -> None:
    search = searched(journal, pruner="median")
    [proposal] = search.ask(1)
    search.report(proposal, 100, 99.0)
    search.tell(proposal, Pruned(100))
    assert search.retry_failed() == 0
    trained = train_all(search)
    assert proposal.cell not in trained
    [best] = search.front()
    assert best.cell != proposal.cell


def test_a_curve_of_a_finished_cell_prunes_nothing(journal: str) -> None:
    search, proposal = after_six_curves(journal, "median")
    finish(search, [proposal])
    assert search.report(proposal, 100, 20.0) is False


def test_an_evaluation_that_a_resumed_trial_repeats_is_reported_once(journal: str) -> None:
    search, proposal = after_six_curves(journal, "median")
    assert [search.report(proposal, 100, value) for value in (20.0, 40.0)] == [True, True]


def test_a_search_for_several_objectives_never_prunes(journal: str) -> None:
    search = searched(journal, objectives=COSTS)
    assert search.report(search.ask(1)[0], 100, 20.0) is False


# --- what a user types wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "hydra.sweeper.trials=0: must be at least 1"),
        ({"seed": -1}, "hydra.sweeper.seed=-1: must be at least 0"),
        (
            {"sampler": "tpa"},
            "hydra.sweeper.sampler: unknown sampler 'tpa' (did you mean tpe?); valid: tpe, nsga2, random",
        ),
        ({"pruner": "hyperband"}, "hydra.sweeper.pruner: unknown pruner 'hyperband'; valid: none, median, halving"),
        (
            {"objectives": ("psnr",)},
            "hydra.sweeper.objectives: unknown objective 'psnr' (did you mean psnr_db?); "
            "valid: psnr_db, ops_g, params_k, latency_ratio",
        ),
        (
            {"objectives": ("psnr_db", "latency_ratio")},
            "hydra.sweeper.objectives=[psnr_db,latency_ratio]: latency_ratio needs measure.latency=true",
        ),
        (
            {"objectives": COSTS, "binary_price": "measured", "measures_latency": True},
            "hydra.sweeper.objectives=[psnr_db,ops_g]: ops_g is counted, and cost.binary=measured is no price; search "
            "for latency_ratio instead, or set cost.binary=1/64",
        ),
        ({"objectives": ("psnr_db", "psnr_db")}, "hydra.sweeper.objectives=[psnr_db,psnr_db]: psnr_db is named twice"),
        (
            {"objectives": ("ops_g",)},
            "hydra.sweeper.objectives=[ops_g]: psnr_db must be among them; "
            "hydra.sweeper.dry_run=true lists costs untrained",
        ),
        (
            {"objectives": ()},
            "hydra.sweeper.objectives=[]: psnr_db must be among them; hydra.sweeper.dry_run=true lists costs untrained",
        ),
        (
            {"objectives": COSTS, "pruner": "median"},
            "hydra.sweeper.pruner=median: needs one objective, and hydra.sweeper.objectives=[psnr_db,ops_g] has 2",
        ),
        (
            {"storage": "mysql://me:secret@host/base"},
            "hydra.sweeper.storage: unknown storage 'mysql://me:***@host/base'; valid: FILE.log, sqlite:///FILE.db, "
            "postgresql+psycopg2://USER@HOST/DATABASE",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_option_is_refused_in_one_line(journal: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_of(**{"storage": journal, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize("storage", ["", "search.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "/folder"])
def test_a_storage_in_memory_or_of_an_unknown_kind_is_refused(storage: str) -> None:
    with pytest.raises(ConfigError, match="unknown storage"):
        options_of(storage)


def test_the_sampler_follows_from_the_number_of_objectives(journal: str) -> None:
    assert options_of(journal).chosen_sampler == "tpe"
    assert options_of(journal, objectives=COSTS).chosen_sampler == "nsga2"
    assert options_of(journal, objectives=COSTS, sampler="tpe").chosen_sampler == "tpe"


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("FOLDER/search.log", "FOLDER/search.log"),
        ("sqlite:///FOLDER/search.log", "sqlite:///FOLDER/search.log"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:1/base", "postgresql+psycopg2://me:***@127.0.0.1:1/base"),
    ],
    ids=["a file that is not a journal", "a file that is not a database", "a server that is away"],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_its_password(
    tmp_path: Path, storage: str, shown: str
) -> None:
    (tmp_path / "search.log").write_text("something else\n" * 100)
    storage, shown = (text.replace("FOLDER", str(tmp_path)) for text in (storage, shown))
    with pytest.raises(BbcuError) as caught:
        searched(storage)
    assert str(caught.value).startswith(f"hydra.sweeper.storage={shown}: cannot be used: ")
    assert "\n" not in str(caught.value)


def test_the_folder_of_the_storage_is_created(tmp_path: Path) -> None:
    assert searched(str(tmp_path / "outputs" / "study" / "search.log")).ask(1)


# --- what it prints and imports ---------------------------------------------------------------------------------------


def test_a_search_prints_nothing(journal: str, capfd: pytest.CaptureFixture[str]) -> None:
    train_all(searched(journal))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_optuna_is_imported_only_when_a_search_begins() -> None:
    probe = "import sys, ablations.search.search; print({'optuna', 'sqlalchemy', 'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "set()\n"
