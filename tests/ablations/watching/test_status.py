"""``python -m ablations status``: the state of each trial, read from the study's folder."""

import argparse
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablations.storage.attempts import State, update_attempt
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import HeldLease
from ablations.storage.plans import read_plan, write_plan
from ablations.storage.status import StatusReader, StudyStatus, record_of
from ablations.watching.status import add_command, lines_of, local_time, watch
from bbcu.errors import ConfigError
from tests.ablations.watching.sweeps import BEGAN, STUDY, Screen, at_work, finish, folder_of, run, worker

NOW = BEGAN + 3600


class Study:
    """A study that has planned three trials and left one combination out."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.plan("one", "two", "three")

    def plan(self, *names: str, task: str = "sr_x2") -> None:
        """Plan trials of these names, beside what is planned already."""
        setting = {"task": {"name": task}, "channels": 8, "data": "f" * 64}
        facts = {"factors": {"bn": "post"}, "levels": {"bn": "post"}, "setting": setting}
        trials = [{"cell": folder_of(self.outputs, name).cell, "seed": 0, "name": name} for name in names]
        left_out = {"levels": {"bn": "out"}, "setting": setting, "name": "bn=out", "reason": "impossible: no sign"}
        write_plan(self.outputs, STUDY, {"trials": [{**row, **facts} for row in trials], "left_out": [left_out]})

    def folder(self, name: str, seed: int = 0) -> TrialFolder:
        return folder_of(self.outputs, name, seed)

    def at_work(self, name: str) -> AbstractContextManager[HeldLease]:
        return at_work(self.folder(name), name)

    def end(self, name: str, state: State, reason: str, seconds: float = 60.0) -> None:
        """One more attempt at a trial, which ends in this way after ``seconds``."""
        with self.at_work(name):
            update_attempt(self.folder(name), state=state, reason=reason, ended=BEGAN + seconds)

    def status(self) -> StudyStatus:
        return StatusReader(self.outputs, STUDY).read()

    def counted(self) -> dict[str, int]:
        """The number of trials in each state that has any."""
        return {str(state): number for state, number in self.status().counts.items() if number}

    def lines(self) -> list[str]:
        return lines_of(self.status(), NOW)

    def section(self, title: str) -> list[str]:
        """The lines under a title."""
        lines = self.lines()
        rest = lines[lines.index(title) + 1 :]
        return rest[: rest.index("")] if "" in rest else rest


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


# --- a trial's state --------------------------------------------------------------------------------------------------


def test_each_trial_of_the_plan_is_in_one_state_and_what_is_left_out_is_excluded(study: Study) -> None:
    assert study.counted() == {"planned": 3, "excluded": 1}
    run(study.folder("one"), "one")
    with study.at_work("two"):
        assert study.counted() == {"planned": 1, "finished": 1, "running": 1, "excluded": 1}


@pytest.mark.parametrize("state", [State.FAILED, State.INTERRUPTED, State.PRUNED])
def test_a_trial_without_a_result_has_the_state_of_its_last_attempt(study: Study, state: State) -> None:
    study.end("one", state, "there is a reason")
    assert study.counted() == {"planned": 2, str(state): 1, "excluded": 1}


def test_a_trial_whose_process_was_killed_is_interrupted(study: Study) -> None:
    with worker(study.folder("one"), "one") as process:
        assert study.counted()["running"] == 1
        process.kill()
        process.join()
        assert study.counted() == {"planned": 2, "interrupted": 1, "excluded": 1}
    assert study.section("interrupted")[0] == "  one seed 0: the process ended without recording a reason"


def test_a_trial_that_is_retrained_is_running_although_it_has_a_result(study: Study) -> None:
    run(study.folder("one"), "one")
    with study.at_work("one"):
        assert study.counted()["running"] == 1


def test_a_result_that_is_damaged_or_lost_does_not_count(study: Study) -> None:
    for name in ("one", "two"):
        run(study.folder(name), name)
    study.folder("one").result_path.write_text("[]")
    study.folder("two").result_path.unlink()
    study.folder("three").path.mkdir(parents=True)
    study.folder("three").result_path.write_text("{")
    assert study.counted() == {"interrupted": 3, "excluded": 1}
    assert study.section("interrupted")[0] == "  one seed 0: its result.json is damaged: it holds no JSON object"


def test_a_trial_that_was_run_without_a_sweep_counts(study: Study) -> None:
    run(study.folder("alone"), "alone")
    study.end("lost", State.FAILED, "out of memory")
    assert study.counted() == {"planned": 3, "finished": 1, "failed": 1, "excluded": 1}
    assert study.section("failed")[0] == f"  {study.folder('lost').cell[:12]} seed 0: out of memory"


def test_a_folder_of_something_else_is_ignored(study: Study) -> None:
    (study.folder("one").path.parent / "seed0.old").mkdir(parents=True)
    (study.outputs / STUDY / "notes.txt").touch()
    assert study.counted() == {"planned": 3, "excluded": 1}


def test_the_same_reader_sees_what_has_changed(study: Study) -> None:
    reader = StatusReader(study.outputs, STUDY)
    assert reader.read().counts[State.PLANNED] == 3
    run(study.folder("one"), "one")
    assert reader.read().counts[State.FINISHED] == 1
    study.folder("one").result_path.write_text("[]")
    assert reader.read().counts[State.FINISHED] == 0
    study.plan("four")
    assert len(reader.read().trials) == 4


def test_a_result_with_the_same_date_and_size_is_not_read_again(study: Study) -> None:
    reader, path = StatusReader(study.outputs, STUDY), study.folder("one").result_path
    run(study.folder("one"), "one")
    reader.read()
    before = path.stat()
    path.write_text("x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reader.read().counts[State.FINISHED] == 1
    assert study.counted()["interrupted"] == 1


def test_a_trial_that_begins_while_it_is_read_is_running(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = StatusReader(study.outputs, STUDY)
    with study.at_work("one"):
        # The leases were listed before there was this one.
        monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(()))
        assert reader.read().counts[State.RUNNING] == 1


# --- as text ----------------------------------------------------------------------------------------------------------


def test_every_state_is_counted_even_without_trials(study: Study) -> None:
    run(study.folder("one"), "one")
    first, second, *_ = study.lines()
    assert first == f"study {STUDY}: 3 trials in {study.outputs / STUDY}"
    assert second == "planned 2  running 0  finished 1  failed 0  interrupted 0  pruned 0  excluded 1"
    assert study.section("excluded") == ["  bn=out: impossible: no sign"]


def test_a_running_trial_is_shown_with_its_step_score_and_process(study: Study) -> None:
    with study.at_work("one") as hold:
        hold.heartbeat(now=True, step=40, scored_at=25, psnr_db=31.5, began=NOW - 750)
        (line,) = study.section("running")
    where = f"process {os.getpid()} on {os.uname().nodename}"
    assert line == f"  one seed 0: training, step 40/100, 31.50 dB, {where}, since {local_time(NOW - 750)} (12 min)"


def test_a_trial_without_a_result_is_shown_with_its_attempts_and_its_log(study: Study) -> None:
    study.end("one", State.INTERRUPTED, "stopped from the keyboard", seconds=60)
    with study.at_work("one"):
        changes = {"state": State.FAILED, "reason": "out of memory\nin a long story", "ended": BEGAN + 90}
        update_attempt(study.folder("one"), **changes, from_step=40)
    where = f"process {os.getpid()} on {os.uname().nodename}"
    began = local_time(BEGAN)
    assert study.section("failed") == [
        "  one seed 0: out of memory",
        f"    attempt 1 of 2: {began} to {local_time(BEGAN + 60)}, {where}: interrupted: stopped from the keyboard",
        f"    attempt 2 of 2: {began} to {local_time(BEGAN + 90)}, resumed after step 40, {where}: "
        "failed: out of memory",
        f"    log: {study.outputs / STUDY}/{study.folder('one').cell[:12]}*/seed0/trial.log",
    ]


def test_only_twenty_trials_of_a_state_are_listed(study: Study) -> None:
    for number in range(22):
        study.end(f"trial {number}", State.FAILED, "out of memory")
    lines = study.section("failed")
    assert sum("out of memory" in line and "attempt" not in line for line in lines) == 20
    assert lines[-1] == "  and 2 more; --json lists all"


RESUMES = "run the same command again to resume"


def test_a_study_says_how_to_resume_if_something_is_left_and_nothing_runs(study: Study) -> None:
    assert study.lines()[-1] == RESUMES
    with study.at_work("one"):
        assert RESUMES not in study.lines()
    for name in ("one", "two", "three"):
        run(study.folder(name), name)
    assert RESUMES not in study.lines()


def test_trials_of_several_tasks_have_different_names(study: Study) -> None:
    study.plan("four", task="denoise")
    names = {trial.name for trial in study.status().trials}
    assert names == {*(f"{name} task.name=sr_x2" for name in ("one", "two", "three")), "four task.name=denoise"}


# --- as JSON ----------------------------------------------------------------------------------------------------------


def test_json_has_every_trial_with_all_its_facts(study: Study) -> None:
    run(study.folder("one"), "one")
    study.end("two", State.FAILED, "out of memory\nin a long story")
    with study.at_work("three") as hold:
        hold.heartbeat(now=True, step=40, scored_at=25, psnr_db=31.5)
        record = json.loads(json.dumps(record_of(study.status())))
    one, two, three = record["trials"]
    assert record["counts"]["finished"] == record["counts"]["failed"] == record["counts"]["running"] == 1
    assert (one["name"], one["state"], one["running"]) == ("one", "finished", None)
    assert two["reason"] == "out of memory\nin a long story"
    assert two["log"] == str(study.folder("two").log_path)
    assert two["attempts"][0]["ended"] == BEGAN + 60
    expected = {"step": 40, "steps": 100, "psnr_db": 31.5, "pid": os.getpid(), "phase": "training"}
    assert expected.items() <= three["running"].items()
    assert record["excluded"][0]["reason"] == "impossible: no sign"


def test_json_has_the_time_at_which_each_state_began(study: Study) -> None:
    run(study.folder("one"), "one")
    os.utime(study.folder("one").result_path, (BEGAN + 50, BEGAN + 50))
    study.end("two", State.FAILED, "out of memory")
    planned = {row["cell"]: row["planned_at"] for row in read_plan(study.outputs, STUDY)["trials"]}
    excluded = read_plan(study.outputs, STUDY)["left_out"][0]["planned_at"]
    record = record_of(study.status())
    assert [trial["since"] for trial in record["trials"]] == [
        BEGAN + 50,
        BEGAN + 60,
        planned[study.folder("three").cell],
    ]
    assert record["excluded"][0]["planned_at"] == excluded > 0
    with study.at_work("three") as hold:
        hold.heartbeat(now=True, began=NOW)
        assert record_of(study.status())["trials"][2]["since"] == NOW


def test_json_has_null_for_a_number_that_is_not_finite(study: Study) -> None:
    with study.at_work("one") as hold:
        hold.heartbeat(now=True, psnr_db=float("nan"))
        record = record_of(study.status())
    assert json.loads(json.dumps(record, allow_nan=False))["trials"][0]["running"]["psnr_db"] is None


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    given = parser.parse_args(["status", *arguments])
    given.run(given)


def test_the_command_prints_the_status_or_json(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    command(STUDY, "--outputs", str(study.outputs))
    assert capsys.readouterr().out.splitlines() == study.lines()
    command(STUDY, "--json", "--outputs", str(study.outputs))
    assert json.loads(capsys.readouterr().out) == record_of(study.status())


def test_an_unknown_study_is_refused_with_the_known_ones(study: Study) -> None:
    run(TrialFolder(study.outputs, "alone", "c" * 64, 0), "x")
    (study.outputs / "empty").mkdir()
    with pytest.raises(
        ConfigError, match=f"^no study 'huge' in {re.escape(str(study.outputs))}; available: alone, {STUDY}$"
    ):
        command("huge", "--outputs", str(study.outputs))


@pytest.mark.parametrize("name", ["", ".", "..", f"{STUDY}/"])
def test_a_path_is_not_a_study(study: Study, name: str) -> None:
    with pytest.raises(ConfigError, match="no study"):
        command(name, "--outputs", str(study.outputs))


def test_a_folder_without_studies_is_reported_as_empty(tmp_path: Path) -> None:
    for outputs in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="available: none"):
            command("huge", "--outputs", str(outputs))


# --- watching ---------------------------------------------------------------------------------------------------------


class Waits:
    """A wait that does the next thing of a story instead."""

    def __init__(self, *story: Callable[[], Any]) -> None:
        self._story: Iterator[Callable[[], Any]] = iter(story)
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        next(self._story, lambda: None)()


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=30)


def shown_on(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return Screen(console.file.getvalue()).written


def test_watching_redraws_the_status_until_nothing_runs(study: Study) -> None:
    console, frames = terminal(), []
    work = study.at_work("one")
    hold = work.__enter__()
    waits = Waits(
        lambda: frames.append(shown_on(console)),
        lambda: hold.heartbeat(now=True, step=40),
        lambda: frames.append(shown_on(console)),
        lambda: finish(study.folder("one")),
        lambda: work.__exit__(None, None, None),
    )
    last = watch(StatusReader(study.outputs, STUDY).read, console, waits)
    steps = [[line.split(", ")[1] for line in frame if "seed 0" in line] for frame in frames]
    assert steps == [["step 0/100"], ["step 40/100"]]
    assert last.counts[State.FINISHED] == 1
    assert shown_on(console) == []


def test_a_moment_without_a_running_trial_does_not_end_watching(study: Study) -> None:
    reader, held = StatusReader(study.outputs, STUDY), study.at_work("two")
    waits = Waits(lambda: None, lambda: held.__enter__(), lambda: held.__exit__(None, None, None))
    watch(reader.read, terminal(), waits)
    assert waits.times == 3 + 2


def test_ctrl_c_ends_watching_with_the_status_so_far(study: Study) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    with study.at_work("one"):
        last = watch(StatusReader(study.outputs, STUDY).read, terminal(), Waits(press))
    assert last.counts[State.RUNNING] == 1


def test_watching_without_a_console_draws_nothing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    watch(StatusReader(study.outputs, STUDY).read, None, Waits())
    assert capsys.readouterr().out == ""
