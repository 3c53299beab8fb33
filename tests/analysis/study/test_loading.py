"""Reading a study back, from its folder and from MLflow."""

import shutil
from pathlib import Path

import pytest

from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.folder import TrialFolder
from ablations.storage.plans import plan_path, write_plan
from ablations.tracking.client import prepare_tracking
from ablations.tracking.sync import log_states
from analysis.study.loading import load, load_folder, margin_of
from bbcu.errors import ConfigError
from tests.harness.studies import (
    REFERENCE,
    Trial,
    curve_of,
    in_memory,
    loaded,
    plan_of,
    read_back,
    result_of,
    start,
    trial,
    write_folder,
    write_study,
)


def folder_of(outputs: Path, trial: Trial) -> TrialFolder:
    return TrialFolder(outputs, "components", trial.cell, trial.seed)


def test_a_finished_trial_is_read_back_whole(tmp_path: Path) -> None:
    done = trial(psnr_db=31.25, bn="post")
    results = read_back(tmp_path, [done], planned=[trial(1)])
    row = results.trials.iloc[0]
    assert (row["cell"], row["seed"], row["state"], row["reason"]) == (done.cell, 0, "finished", "")
    assert (row["factor/bn"], row["factor/align"], row["level/align"]) == ("post", "1", "auto")
    assert (row["setting/train.steps"], row["setting/task.name"]) == ("20", "sr_x2")
    assert row["metric/Set5/psnr_db"] == 31.25
    assert row["metric/baseline/Set5/psnr_db"] == 28.5
    assert row["metric/cost/ops_g"] == 2.0
    assert results.factors == ("residual", "bn", "align")
    assert results.reference == {"residual": "true", "bn": "none", "align": "auto"}
    assert results.record((trial(1).cell, 1)) == {}


def test_curves_come_back_as_they_were_written(tmp_path: Path) -> None:
    done = trial()
    curves = read_back(tmp_path, [done]).curves
    written = [(point.step, name, value) for point in curve_of(done) for name, value in point.metrics.items()]
    assert list(curves[["step", "metric", "value"]].itertuples(index=False, name=None)) == written


@pytest.mark.parametrize("written", [True, False])
def test_the_folder_of_samples_is_found_if_there_is_one(tmp_path: Path, written: bool) -> None:
    done = trial()
    folder = read_back(tmp_path, [done], samples=written).files[done.cell, 0]("samples")
    assert (folder is not None and (folder / "Set5" / "ring" / "truth.png").is_file()) == written


def test_a_planned_trial_that_never_started_is_missing_and_has_its_setting_and_method(tmp_path: Path) -> None:
    trials = read_back(tmp_path, [trial(seed=0)], planned=[trial(seed=1)]).trials
    assert list(trials["state"]) == ["finished", "missing"]
    assert trials["reason"].iloc[1] == "planned, not started yet"
    assert list(trials["method"]) == ["bbcu", "bbcu"]
    assert trials["setting/train.lr"].nunique() == 1


def test_left_out_cells_keep_their_reason_and_the_cell_that_is_the_same(tmp_path: Path) -> None:
    done = trial()
    row = {"levels": {**REFERENCE, "bn": "out"}, "setting": done.setting, "reason": "no add to stand after"}
    impossible, same = read_back(tmp_path, [done], left_out=[
        row, {**row, "levels": {**REFERENCE, "align": 130}, "same_as": done.cell}
    ]).left_out  # fmt: skip
    assert (impossible.levels["bn"], impossible.levels["residual"]) == ("out", "true")
    assert (impossible.reason, impossible.same_as, same.same_as) == ("no add to stand after", None, done.cell)
    assert impossible.setting["train.steps"] == "20"


def test_text_is_text_and_numbers_are_numbers_whatever_is_missing(tmp_path: Path) -> None:
    trials = read_back(tmp_path, [trial(0)], planned=[trial(1, bn="post")]).trials
    kinds = {name: str(kind) for name, kind in trials.dtypes.items()}
    assert kinds.pop("seed") == "int64"
    assert {kind for name, kind in kinds.items() if name.startswith("metric/")} == {"float64"}
    assert {kind for name, kind in kinds.items() if not name.startswith("metric/")} == {"str"}


@pytest.mark.parametrize("state", [State.FAILED, State.INTERRUPTED, State.PRUNED])
def test_an_unfinished_trial_has_the_state_and_reason_of_its_folder(tmp_path: Path, state: State) -> None:
    write_folder(tmp_path, [trial(0)], planned=[trial(1)])
    begin_attempt(folder_of(tmp_path, trial(1)))
    end_attempt(folder_of(tmp_path, trial(1)), state, "out of memory")
    trials = load_folder(tmp_path / "components").trials
    assert list(trials["state"]) == ["finished", state]
    assert trials["reason"].iloc[1] == "out of memory"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        pytest.param(State.RUNNING, "without recording a reason", id="killed"),
        pytest.param(State.FINISHED, "result.json is missing", id="result lost"),
    ],
)
def test_a_trial_that_neither_runs_nor_has_a_result_was_interrupted(tmp_path: Path, state: State, reason: str) -> None:
    write_folder(tmp_path, [trial(0)], planned=[trial(1)])
    begin_attempt(folder_of(tmp_path, trial(1)))
    end_attempt(folder_of(tmp_path, trial(1)), state)
    row = load_folder(tmp_path / "components").trials.iloc[1]
    assert row["state"] == "interrupted"
    assert reason in row["reason"]


# ---- what a sweep has recorded for its report ------------------------------------------------------------------------


def test_a_single_run_beside_a_sweep_is_not_planned(tmp_path: Path) -> None:
    results = read_back(tmp_path, [trial(0)], planned=[trial(1)], unplanned=[trial(0, bn="post")])
    assert dict(zip(results.trials["factor/bn"], results.trials["planned"], strict=True)) == {
        "none": "true",
        "post": "false",
    }
    assert list(results.trials["planned"]) == ["true", "true", "false"]


def test_a_run_that_a_later_sweep_plans_too_is_planned(tmp_path: Path) -> None:
    write_folder(tmp_path, [], planned=[trial(1)], unplanned=[trial(0)])
    write_plan(tmp_path, "components", plan_of([trial(0)]))
    assert list(load_folder(tmp_path / "components").trials["planned"]) == ["true", "true"]


def test_the_trials_of_every_sweep_of_a_study_are_planned(tmp_path: Path) -> None:
    write_folder(tmp_path, [trial(0)])
    write_plan(tmp_path, "components", plan_of([trial(0, bn="post")]))
    assert list(load_folder(tmp_path / "components").trials["planned"]) == ["true", "true"]


def test_a_teacher_that_no_design_lists_counts_as_not_planned(tmp_path: Path) -> None:
    write_folder(tmp_path, [trial(0)], unplanned=[trial(0, bn="post")])
    teacher = plan_of([trial(0, bn="post")])
    for row in teacher["trials"]:
        row["only_teaches"] = True
    write_plan(tmp_path, "components", teacher)
    assert list(load_folder(tmp_path / "components").trials["planned"]) == ["true", "false"]


def test_in_a_study_without_a_plan_every_trial_counts_as_planned(tmp_path: Path) -> None:
    write_folder(tmp_path, [trial(0), trial(1)])
    plan_path(tmp_path, "components").unlink()
    assert list(load_folder(tmp_path / "components").trials["planned"]) == ["true", "true"]


DESIGN = {"name": "chain", "options": {"steps": [["act=after", "align=1"], ["bn=post"]]}, "exclude": [], "notes": []}


RULE = StoppingRule((2, 3), 0, 0.1, (((trial().cell, trial(bn="post").cell),),))


def test_the_stopping_rule_is_that_of_the_plan(tmp_path: Path) -> None:
    assert read_back(tmp_path / "with", [trial()], rule=RULE.record()).rule == RULE
    assert read_back(tmp_path / "without", [trial()]).rule is None


def test_a_study_is_not_read_without_its_rule_if_that_cannot_be(tmp_path: Path) -> None:
    write_folder(tmp_path, [trial()], rule={**RULE.record(), "looks": [2, 10**6]})
    with pytest.raises(ConfigError, match=r"^study 'components' has a plan whose stopping rule cannot be: looks.1: "):
        load_folder(tmp_path / "components")


def test_the_margin_of_a_rule_is_fixed() -> None:
    ruled, free = in_memory([trial()], rule=RULE), in_memory([trial()])
    assert [margin_of(ruled, None), margin_of(ruled, 0.1), margin_of(free, None), margin_of(free, 0.2)] == [
        *(0.1, 0.1, 0.05, 0.2),
    ]
    with pytest.raises(ConfigError, match=r"^--margin 0.2: .* a margin of 0.1 dB, .* leave --margin out$"):
        margin_of(ruled, 0.2)


def test_pairing_and_design_are_those_of_the_plan(tmp_path: Path) -> None:
    results = read_back(tmp_path, [trial()], pairing=True, design=DESIGN)
    assert (results.pairing, results.design) == (True, DESIGN)


def test_a_plan_of_an_earlier_version_has_neither_pairing_nor_design(tmp_path: Path) -> None:
    results = read_back(tmp_path, [trial()])
    assert (results.pairing, results.design) == (False, {})


@pytest.mark.parametrize(
    "design",
    [
        pytest.param({**DESIGN, "name": 5}, id="a name that is a number"),
        pytest.param({**DESIGN, "notes": ["\x1b[2J"]}, id="control characters"),
        pytest.param({**DESIGN, "options": {"steps": [[[["deep"]]]]}}, id="nested"),
    ],
)
def test_a_design_that_no_sweep_records_is_unknown(tmp_path: Path, design: dict[str, object]) -> None:
    assert read_back(tmp_path, [trial()], design=design).design == {}


def test_of_a_design_of_a_later_version_the_known_keys_are_read(tmp_path: Path) -> None:
    assert read_back(tmp_path, [trial()], design={**DESIGN, "colour": "red"}).design == DESIGN


class TestMLflow:
    def test_a_study_in_both_places_has_everything_from_its_folder_and_the_run_ids(
        self, tracking_uri: str, tmp_path: Path
    ) -> None:
        both = loaded(tracking_uri, tmp_path, [trial(0), trial(1, bn="post")], planned=[trial(2)])
        on_disk = load_folder(tmp_path / "components")
        # MLflow holds the last training loss as a metric too; on disk it is the end of the curve.
        only_mlflow = ["run_id", "metric/train/loss"]
        assert on_disk.trials.drop(columns="run_id").equals(both.trials.drop(columns=only_mlflow))
        assert [bool(run) for run in both.trials["run_id"]] == [True, True, False]
        assert (on_disk.study, on_disk.factors, on_disk.reference) == (both.study, both.factors, both.reference)

    def test_a_study_without_its_folder_is_read_whole_in_the_order_of_its_runs(
        self, tracking_uri: str, tmp_path: Path
    ) -> None:
        done = trial(1, bn="post")
        before = loaded(tracking_uri, tmp_path / "outputs", [trial(0), done], samples=True)
        wanted = before.curves
        shutil.rmtree(tmp_path / "outputs")
        after = load(tracking_uri, "components", tmp_path / "outputs")
        key = ["cell", "seed"]
        for one, other in ((after.trials, before.trials), (after.curves, wanted)):
            assert one.sort_values(key, ignore_index=True, kind="stable").equals(
                other.sort_values(key, ignore_index=True, kind="stable")
            )
        samples = after.files[done.cell, 1]("samples")
        assert samples is not None
        assert (samples / "Set5" / "ring" / "truth.png").is_file()
        assert after.record((done.cell, 1))["metrics"] == result_of(done)["metrics"]

    def test_a_study_without_its_folder_has_the_plan_that_mlflow_has(self, tracking_uri: str, tmp_path: Path) -> None:
        plan = {"pairing": True, "design": DESIGN, "rule": RULE.record()}
        write_study(tracking_uri, tmp_path, [trial(0)], unplanned=[trial(1)], **plan)
        log_states(tmp_path, "components", tracking_uri, prepare_tracking(tracking_uri, "components"))
        shutil.rmtree(tmp_path / "components")
        results = load(tracking_uri, "components", tmp_path)
        assert (results.pairing, results.design, results.rule) == (True, DESIGN, RULE)
        assert dict(zip(results.trials["seed"], results.trials["planned"], strict=True)) == {0: "true", 1: "false"}

    def test_a_plan_on_disk_is_believed_before_mlflow(self, tracking_uri: str, tmp_path: Path) -> None:
        write_study(tracking_uri, tmp_path, [trial(0)], pairing=True)
        log_states(tmp_path, "components", tracking_uri, prepare_tracking(tracking_uri, "components"))
        plan_path(tmp_path, "components").unlink()
        write_plan(tmp_path, "components", plan_of([trial(1)]))
        assert not load(tracking_uri, "components", tmp_path).pairing

    def test_a_database_that_cannot_be_read_costs_the_run_ids_alone(self, tracking_uri: str, tmp_path: Path) -> None:
        write_folder(tmp_path, [trial()])
        trials = load(f"sqlite:///{tmp_path}/absent.db", "components", tmp_path).trials
        assert list(trials[["state", "run_id"]].itertuples(index=False, name=None)) == [("finished", "")]

    def test_a_result_counts_although_mlflow_has_only_the_attempt_that_failed(
        self, tracking_uri: str, tmp_path: Path
    ) -> None:
        run, folder = start(tracking_uri, tmp_path, trial(psnr_db=31.0))
        run.close_without_result(folder, "failed", "out of memory")
        write_folder(tmp_path, [trial(psnr_db=31.0)])
        (row,) = load(tracking_uri, "components", tmp_path).trials.to_dict("records")
        assert (row["state"], row["reason"], row["run_id"], row["metric/Set5/psnr_db"]) == ("finished", "", "", 31.0)

    def test_trials_without_a_folder_have_the_state_and_reason_of_their_run(
        self, tracking_uri: str, tmp_path: Path
    ) -> None:
        for seed, state in enumerate(("failed", "interrupted", "pruned")):
            run, folder = start(tracking_uri, tmp_path, trial(seed))
            run.close_without_result(folder, state, f"why it is {state}")
        start(tracking_uri, tmp_path, trial(3))
        trials = load(tracking_uri, "components", tmp_path).trials
        assert dict(zip(trials["state"], trials["reason"], strict=True)) == {
            "failed": "why it is failed",
            "interrupted": "why it is interrupted",
            "pruned": "why it is pruned",
            "running": "still running",
        }

    def test_the_folder_is_believed_before_mlflow(self, tracking_uri: str, tmp_path: Path) -> None:
        run, folder = start(tracking_uri, tmp_path, trial())
        run.close_without_result(folder, "failed", "by MLflow")
        begin_attempt(folder)
        end_attempt(folder, State.INTERRUPTED, "by the folder")
        (row,) = load(tracking_uri, "components", tmp_path).trials.to_dict("records")
        assert (row["state"], row["reason"]) == ("interrupted", "by the folder")

    def test_the_finished_run_counts_among_several(self, tracking_uri: str, tmp_path: Path) -> None:
        done = trial(psnr_db=31.0)
        first, folder = start(tracking_uri, tmp_path, done)
        first.close_without_result(folder, "failed", "out of memory")
        write_study(tracking_uri, tmp_path, [done])
        last, _ = start(tracking_uri, tmp_path, done)
        last.close_without_result(folder, "interrupted", "a second run of a finished trial")
        trials = load(tracking_uri, "components", tmp_path / "elsewhere").trials
        assert list(trials["state"]) == ["finished"]
        assert list(trials["metric/Set5/psnr_db"]) == [31.0]

    def test_a_missing_database_is_an_error_and_is_not_created(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no tracking database at"):
            load(f"sqlite:///{tmp_path}/absent.db", "components", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_study_without_trials_is_an_error(self, tracking_uri: str, tmp_path: Path) -> None:
        prepare_tracking(tracking_uri, "components")
        folder_of(tmp_path, trial()).path.mkdir(parents=True)
        for read in (lambda: load(tracking_uri, "components", tmp_path), lambda: load_folder(tmp_path / "components")):
            with pytest.raises(ConfigError, match="has no trial yet"):
                read()
