"""What a sweep prints while it runs without a terminal."""

from pathlib import Path

import pytest

from ablations.storage.attempts import State, end_attempt
from ablations.storage.lease import trial_lock
from ablations.watching.tracker import TrialTracker
from tests.ablations.watching.sweeps import SESSION, STUDY, Sweep, finish, worker

# --- lines: how a trial ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "line"),
    [(50, "2/3 one seed 0: 33.91 dB in 50 s, 50 s left"), (0, "2/3 one seed 0: 33.91 dB")],
    ids=["finished", "its clock was set back"],
)
def test_a_trial_that_finishes_is_a_line_with_its_score_and_its_time(sweep: Sweep, seconds: float, line: str) -> None:
    with sweep.view("three") as view:
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"], psnr_db=33.91, seconds=seconds)
        view.update()
        assert sweep.lines == [line]


@pytest.mark.parametrize(
    ("state", "reason", "line"),
    [
        (State.FAILED, "no room for [bold]\nand a long story", "failed: one seed 0: no room for [bold]; see LOG"),
        (State.INTERRUPTED, "there is a reason", "interrupted: one seed 0: there is a reason"),
        (State.PRUNED, "there is a reason", "pruned: one seed 0: there is a reason"),
    ],
)
def test_a_trial_that_ends_without_a_result_is_a_line_with_its_reason(
    sweep: Sweep, state: State, reason: str, line: str
) -> None:
    folder = sweep.folders["one"]
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            end_attempt(folder, state, reason)
        view.update()
    log = f"{sweep.outputs / STUDY}/{folder.cell[:12]}*/seed0/trial.log"
    assert sweep.lines == [line.replace("LOG", log)]


def test_a_worker_that_is_killed_leaves_an_interrupted_trial(sweep: Sweep) -> None:
    with sweep.view() as view, worker(sweep.folders["one"], "one") as process:
        view.update()
        assert sweep.lines == []
        process.kill()
        process.join()
        view.update()
    assert sweep.lines == ["interrupted: one seed 0: the process ended without recording a reason"]


def test_each_attempt_at_a_trial_is_a_line(sweep: Sweep) -> None:
    folder = sweep.folders["one"]
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            end_attempt(folder, State.FAILED, "the first time")
        # The next attempt begins before the next look.
        with sweep.at_work("one"):
            view.update()
            assert [line.partition(";")[0] for line in sweep.lines] == ["failed: one seed 0: the first time"]
            finish(folder)
        view.update()
    assert sweep.lines[1:] == ["1/3 one seed 0: 33.91 dB in 50 s, 2 min left"]


@pytest.mark.parametrize("done", [(), ("one",)], ids=["not done", "done"])
def test_a_trial_that_is_retrained_and_fails_does_not_count_by_its_old_result(
    sweep: Sweep, done: tuple[str, ...]
) -> None:
    sweep.run("one")
    with sweep.view(*done) as view:
        with sweep.at_work("one"):
            sweep.clock.now += 60
            view.update()
            end_attempt(sweep.folders["one"], State.FAILED, "diverged")
        view.update()
    running, failed = sweep.lines
    assert running.startswith("0/3 trials done, 1 running: one seed 0")
    assert failed.startswith("failed: one seed 0: diverged")


def test_a_trial_whose_result_is_damaged_has_not_finished(sweep: Sweep) -> None:
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"])
            sweep.folders["one"].result_path.write_text("[]")
        view.update()
    assert sweep.lines == ["interrupted: one seed 0: its result.json is damaged: it holds no JSON object"]


def test_a_lease_that_a_listing_misses_does_not_end_its_trial(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with sweep.view("two", "three") as view:
        with sweep.at_work("one"):
            view.update()
            with monkeypatch.context() as file_system:
                file_system.setattr(Path, "glob", lambda path, pattern: iter(()))
                view.update()
            finish(sweep.folders["one"])
        view.update()
        assert sweep.lines == ["3/3 one seed 0: 33.91 dB in 50 s"]


def test_results_of_earlier_sweeps_are_not_reported(sweep: Sweep) -> None:
    sweep.run("one")
    with sweep.at_work("two"):
        end_attempt(sweep.folders["two"], State.FAILED, "long ago")
    with sweep.view("one") as view:
        view.update()
        sweep.clock.now += 60
        view.update()
    assert sweep.lines == []


# --- lines: trials that are added, as those of a search ---------------------------------------------------------------


def test_trials_can_be_added(sweep: Sweep) -> None:
    growing = {identity: trial for identity, trial in sweep.trials.items() if trial.name == "one"}
    with sweep.view(trials=growing) as view:
        with sweep.at_work("two"):
            view.update()
            growing |= sweep.trials
            view.update()
            finish(sweep.folders["two"])
        view.update()
        assert sweep.lines == ["1/3 two seed 0: 33.91 dB in 50 s, 2 min left"]


def test_earlier_results_of_an_added_trial_are_not_reported(sweep: Sweep) -> None:
    with sweep.at_work("two"):
        end_attempt(sweep.folders["two"], State.FAILED, "long ago")
    growing = {identity: trial for identity, trial in sweep.trials.items() if trial.name == "one"}
    with sweep.view(trials=growing) as view:
        growing |= sweep.trials
        view.update()
    assert sweep.lines == []


# --- lines: trials that were never seen running -----------------------------------------------------------------------


def test_trials_that_ran_between_two_looks_are_found_every_half_minute(sweep: Sweep) -> None:
    with sweep.view() as view:
        for name in ("one", "two"):
            view.update()
            before = len(sweep.lines)
            sweep.run(name)
            sweep.clock.now += 29
            view.update()
            assert len(sweep.lines) == before
            sweep.clock.now += 1
            view.update()
            assert sweep.lines[before].partition(",")[0] == f"{before + 1}/3 {name} seed 0: 33.91 dB in 50 s"


def test_a_trial_that_begins_during_a_look_has_not_ended(sweep: Sweep) -> None:
    with sweep.at_work("one"):
        end_attempt(sweep.folders["one"], State.FAILED, "long ago")
    tracker = TrialTracker(sweep.outputs, STUDY, sweep.trials, ())
    assert tracker.poll() == []
    with sweep.at_work("one"):
        assert tracker.poll_all() == []


def test_at_the_end_everything_is_reported_once(sweep: Sweep) -> None:
    with sweep.view() as view:
        sweep.run("one")
        with sweep.at_work("two"):
            end_attempt(sweep.folders["two"], State.FAILED, "out of memory")
        view.update()
        assert sweep.lines == []
    assert [line.split()[:2] for line in sweep.lines] == [["1/3", "one"], ["failed:", "two"]]


def test_a_trial_that_another_sweep_has_finished_counts_once(sweep: Sweep) -> None:
    with sweep.view() as view:
        view.update()
        with sweep.at_work("one", session="theirs"):
            finish(sweep.folders["one"])
        sweep.clock.now += 30
        view.update()
        # This sweep launches it too, and its worker finds that it is done.
        with trial_lock(sweep.folders["one"], "one", session=SESSION):
            view.update()
        view.update()
    assert len(sweep.lines) == 1


def test_a_trial_that_proves_to_be_finished_when_it_is_launched_counts(sweep: Sweep) -> None:
    sweep.run("one")
    with sweep.view() as view:
        with trial_lock(sweep.folders["one"], "one", session=SESSION):
            view.update()
        view.update()
    assert [line.split(":")[0] for line in sweep.lines] == ["1/3 one seed 0"]


# --- lines: what runs -------------------------------------------------------------------------------------------------


def test_a_line_a_minute_shows_what_runs(sweep: Sweep) -> None:
    with sweep.at_work("one") as hold, sweep.at_work("two", session="theirs"), sweep.view() as view:
        hold.heartbeat(now=True, step=40, scored_at=25, psnr_db=31.5)
        for _ in range(120):
            sweep.clock.now += 1
            view.update()
    running = "one seed 0 step 40/100 31.50 dB, two seed 0 step 0/100"
    assert sweep.lines == [f"0/3 trials done, 2 running (1 elsewhere): {running}"] * 2


def test_a_line_about_an_ending_delays_the_next_one(sweep: Sweep) -> None:
    with sweep.view() as view, sweep.at_work("two"):
        sweep.clock.now += 59
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"])
        view.update()
        sweep.clock.now += 59
        view.update()
        assert len(sweep.lines) == 1
        sweep.clock.now += 1
        view.update()
        assert len(sweep.lines) == 2


def test_a_line_names_a_few_of_many(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, tuple("abcdef"))
    with sweep.all_at_work(), sweep.view() as view:
        sweep.clock.now += 60
        view.update()
    assert sweep.lines[0].count("step 0/100") == 4
    assert sweep.lines[0].endswith(", 2 more")


def test_nothing_is_said_while_nothing_runs(sweep: Sweep) -> None:
    with sweep.view() as view:
        for _ in range(10):
            sweep.clock.now += 60
            view.update()
    assert sweep.lines == []


def test_a_view_that_shows_nothing_says_nothing(sweep: Sweep) -> None:
    with sweep.view(show=False) as view:
        sweep.run("one")
        sweep.clock.now += 60
        view.update()
    assert sweep.lines == []
