"""What the live view and ``status`` say about the comparisons of a study with a stopping rule."""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ablations.decide.decisions import Decisions
from ablations.planning.plan import plan_record
from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.plans import plan_path, write_plan
from ablations.storage.status import StatusReader
from ablations.watching.decisions import DecisionReader, comparison_line, comparison_records, summary_line
from ablations.watching.status import add_command, lines_of, watch
from analysis.statistics.sequential import Judged, Progress
from tests.ablations.watching.sweeps import BEGAN, Screen, Sweep, finish, folder_of
from tests.harness.deciding import STUDY, MadeUpSweep, drawn_score, leave_result, made_up_plan
from tests.harness.decisions import comparison, decisions, judged, still_open, worse
from tests.harness.paths import REPOSITORY

# --- in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "text"),
    [
        pytest.param({}, "open", id="before the first result"),
        pytest.param({"Set5": still_open(0)}, "open", id="before the first look"),
        pytest.param({"Set5": still_open(6), "Set14": still_open(6)}, "open after 6 seeds", id="open"),
        pytest.param({"Set5": worse(4), "Set14": worse(4)}, "worse on Set5, Set14 after 4 seeds", id="decided"),
        pytest.param(
            {"Set5": worse(3), "Set14": worse(4)},
            "worse on Set5 after 3 seeds; worse on Set14 after 4 seeds",
            id="twice",
        ),
        pytest.param(
            {"Set5": worse(3), "Set14": still_open(6)},
            "worse on Set5 after 3 seeds; open on Set14 after 6 seeds",
            id="both",
        ),
        pytest.param(
            {"Set5": judged(Progress.LAST_LOOK, 12)},
            "undecided at the last look on Set5 after 12 seeds",
            id="undecided",
        ),
        pytest.param({"Set5": judged(Progress.NOTHING, 3)}, "nothing learned on Set5 after 3 seeds", id="collapsed"),
    ],
)
def test_a_comparison_is_a_line_with_its_verdicts_and_their_looks(on: dict[str, Judged], text: str) -> None:
    found = comparison("clip", on)
    assert comparison_line(decisions(found), found) == f"clip: {text}"


def test_the_summary_counts_comparisons_and_says_which_look_comes_next() -> None:
    closed, left = comparison("clip", {"Set5": worse(3)}), comparison("ede", {"Set5": still_open(4)})
    assert summary_line(decisions(closed, left)) == "comparisons: 1 decided, 1 open; next look at 6 of 12 seeds"
    assert summary_line(decisions(closed)) == "comparisons: 1 decided"


def test_json_has_a_verdict_on_each_test_set_and_null_for_what_is_not_known() -> None:
    found = decisions(comparison("clip", {"Set5": worse(3), "Set14": still_open(4)}))
    (record,) = json.loads(json.dumps(comparison_records(found), allow_nan=False))
    assert record == {
        **{"comparison": "clip", "task": "sr_x2", "before": "reference", "after": "clip"},
        **{"progress": "open", "seeds": 4},
        "test_sets": {
            "Set5": {
                **{"progress": "decided", "look": 3, "verdict": "worse", "reason": "there is a reason"},
                **{"difference_db": -0.25, "low_db": None, "high_db": None},
            },
            "Set14": {
                **{"progress": "open", "look": 4, "verdict": "undecided", "reason": "there is a reason"},
                **{"difference_db": -0.25, "low_db": None, "high_db": None},
            },
        },
    }


# --- the live view ----------------------------------------------------------------------------------------------------


class Deciding:
    """A sweep over three cells, which trains two seeds of each at first; a test sets what is decided."""

    def __init__(self, sweep: Sweep) -> None:
        for name in tuple(sweep.folders):
            sweep.folders[f"{name} again"] = folder_of(sweep.outputs, name, seed=1)
        self.cells = {name: folder.cell for name, folder in sweep.folders.items()}
        self.now = self.after(still_open(0), still_open(0))

    def after(self, two: Judged, three: Judged) -> Decisions:
        """What is decided about the second and the third cell."""
        found = [
            comparison(label, {"Set5": on}, (self.cells["one"], self.cells[label]))
            for label, on in (("two", two), ("three", three))
        ]
        return decisions(*found, looks=(2, 3, 5))


def test_without_a_terminal_each_closed_comparison_and_each_look_is_a_line(sweep: Sweep) -> None:
    deciding = Deciding(sweep)
    with sweep.view(decisions=lambda: deciding.now) as view:
        view.update()
        view.update()
        assert sweep.lines == ["comparisons: 2 open; next look at 2 of 5 seeds"]
        deciding.now = deciding.after(worse(2), still_open(2))
        view.update()
        view.update()
        assert sweep.lines[1:] == [
            "decided: two: worse on Set5 after 2 seeds",
            "comparisons: 1 decided, 1 open; next look at 3 of 5 seeds",
        ]
        deciding.now = deciding.after(worse(2), judged(Progress.LAST_LOOK, 5))
    assert sweep.lines[3:] == [
        "closed: three: undecided at the last look on Set5 after 5 seeds",
        "comparisons: 1 decided, 1 undecided at the last look",
    ]


def test_what_was_decided_before_the_sweep_is_not_reported_again(sweep: Sweep) -> None:
    deciding = Deciding(sweep)
    deciding.now = deciding.after(worse(2), still_open(2))
    with sweep.view(decisions=lambda: deciding.now) as view:
        view.update()
    assert sweep.lines == ["comparisons: 1 decided, 1 open; next look at 3 of 5 seeds"]


def test_the_display_has_a_line_about_the_comparisons_and_those_that_are_closed_stay_above(on_terminal: Sweep) -> None:
    deciding = Deciding(on_terminal)
    with on_terminal.view(decisions=lambda: deciding.now) as view, on_terminal.at_work("one"):
        deciding.now = deciding.after(worse(2), still_open(2))
        on_terminal.draw(view)
        closed, headline, summary, row = on_terminal.screen
    assert closed == "decided: two: worse on Set5 after 2 seeds"
    assert headline == "0/6 trials done  0/3 cells  1 running"
    assert summary == "comparisons: 1 decided, 1 open; next look at 3 of 5 seeds"
    assert row.startswith("one seed 0")


def test_the_line_about_the_comparisons_leaves_less_room_for_trials(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ("one", "two", "three"), width=80, height=5)
    deciding = Deciding(sweep)
    with sweep.all_at_work(), sweep.view(decisions=lambda: deciding.now) as view:
        sweep.draw(view)
        _, summary, row, more = sweep.screen
    assert summary.startswith("comparisons: ")
    assert (row.split()[1], more) == ("seed", "and 5 more")


def test_a_view_that_shows_nothing_says_nothing_about_comparisons(sweep: Sweep) -> None:
    deciding = Deciding(sweep)
    with sweep.view(show=False, decisions=lambda: deciding.now) as view:
        deciding.now = deciding.after(worse(2), still_open(2))
        view.update()
    assert sweep.lines == []


@pytest.mark.parametrize(
    ("three", "left"),
    [
        # Five trainings of 50 s are asked for; two cells may get three seeds more.
        pytest.param(still_open(2), "at most 9 min left", id="open"),
        pytest.param(worse(2), "4 min left", id="decided"),
    ],
)
def test_the_time_left_is_at_most_that_of_the_seeds_which_open_comparisons_may_get(
    sweep: Sweep, three: Judged, left: str
) -> None:
    deciding = Deciding(sweep)
    deciding.now = deciding.after(worse(2), three)
    with sweep.view(decisions=lambda: deciding.now) as view:
        with sweep.at_work("one"):
            view.update()
            finish(sweep.folders["one"])
        view.update()
    assert sweep.lines[1] == f"1/6 one seed 0: 33.91 dB in 50 s, {left}"


# --- status -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of which the first look is complete: one comparison is decided, and two are open."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    MadeUpSweep(made_up_plan(tmp_path), lives=12).run()
    return tmp_path


def lines(outputs: Path) -> list[str]:
    status = StatusReader(outputs, STUDY).read()
    return lines_of(status, BEGAN, DecisionReader(outputs, STUDY).of(status))


CLIP, IDENTITY, EDE = (f"The {name} surrogate in place of the quadratic one" for name in ("clip", "identity", "EDE"))


def test_the_status_shows_each_comparison_after_the_counts(outputs: Path) -> None:
    _, counts, *rest = lines(outputs)
    assert counts.startswith("planned 3  running 0  finished 12")
    assert rest == [
        "comparisons: 1 decided, 2 open; next look at 4 of 8 seeds",
        "",
        "comparisons",
        f"  {CLIP}: worse on Tiny after 3 seeds",
        f"  {IDENTITY}: open after 3 seeds",
        f"  {EDE}: open after 3 seeds",
        "",
        "run the same command again to resume",
    ]


def test_a_study_with_an_open_comparison_can_be_resumed_although_no_trial_is_left(outputs: Path) -> None:
    """As a sweep leaves it that is killed after a look, before it asks for the next."""
    plan = made_up_plan(outputs)
    plan_path(outputs, STUDY).unlink()
    write_plan(outputs, STUDY, plan_record(dataclasses.replace(plan, trials=plan.trials[:12])))
    _, counts, summary, *_, last = lines(outputs)
    assert counts.startswith("planned 0  running 0  finished 12  failed 0")
    assert summary == "comparisons: 1 decided, 2 open; next look at 4 of 8 seeds"
    assert last == "run the same command again to resume"


def test_a_damaged_result_decides_nothing(outputs: Path) -> None:
    clip = made_up_plan(outputs).trials[1]
    clip.folder.result_path.write_text("[]")
    assert "comparisons: 3 open; next look at 3 of 8 seeds" in lines(outputs)


def test_nothing_is_said_about_comparisons_if_the_plan_is_damaged(outputs: Path) -> None:
    plan_path(outputs, STUDY).write_text("[]")
    assert not [line for line in lines(outputs) if "comparison" in line]


def test_comparisons_are_judged_again_only_if_a_trial_has_ended(outputs: Path) -> None:
    reader, decided = StatusReader(outputs, STUDY), DecisionReader(outputs, STUDY)
    before = decided.of(reader.read())
    reference, _, identity, ede = made_up_plan(outputs).trials[12:16]
    leave_result(reference, drawn_score("quadratic", 3))
    leave_result(identity, drawn_score("identity", 3))
    one_is_missing = decided.of(reader.read())
    assert decided.of(reader.read()) is one_is_missing
    begin_attempt(ede.folder)
    end_attempt(ede.folder, State.FAILED, "diverged")
    after = decided.of(reader.read())
    assert [found and found.next_look for found in (before, one_is_missing, after)] == [4, 4, 5]


def test_a_result_that_was_replaced_is_judged_again(outputs: Path) -> None:
    reader, decided = StatusReader(outputs, STUDY), DecisionReader(outputs, STUDY)
    decided.of(reader.read())
    for entry in made_up_plan(outputs).trials[1:12:4]:
        leave_result(entry, drawn_score("clip", entry.trial.seed) + 10)
    found = decided.of(reader.read())
    assert found is not None
    assert comparison_line(found, found.comparisons[0]) == f"{CLIP}: better on Tiny after 3 seeds"


def command(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    given = parser.parse_args(["status", *arguments])
    given.run(given)


def test_the_command_prints_comparisons_and_has_them_in_json(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(STUDY, "--outputs", str(outputs))
    assert capsys.readouterr().out.splitlines() == lines(outputs)
    command(STUDY, "--json", "--outputs", str(outputs))
    found = json.loads(capsys.readouterr().out)
    assert [(one["comparison"], one["progress"]) for one in found["comparisons"]] == [
        (CLIP, "decided"),
        (IDENTITY, "open"),
        (EDE, "open"),
    ]
    assert found["counts"]["finished"] == 12


def test_watching_draws_the_comparisons(outputs: Path) -> None:
    file, frames = io.StringIO(), []
    console = Console(file=file, force_terminal=True, width=100, height=30)
    reader = StatusReader(outputs, STUDY)
    watch(
        reader.read, console, lambda: frames.append(Screen(file.getvalue()).written), DecisionReader(outputs, STUDY).of
    )
    assert f"  {CLIP}: worse on Tiny after 3 seeds" in frames[0]


def test_the_status_of_a_study_without_a_rule_is_as_before_and_imports_no_statistics(tmp_path: Path) -> None:
    plan = dataclasses.replace(made_up_plan(tmp_path), rule=None)
    write_plan(tmp_path, STUDY, plan_record(plan))
    code = "import sys; from ablations.__main__ import main; main(sys.argv[1:]); print('scipy' in sys.modules)"
    arguments = ["status", STUDY, "--json", "--outputs", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    *text, imported = done.stdout.splitlines()
    assert json.loads("\n".join(text)).keys() == {"study", "folder", "counts", "damaged", "trials", "excluded"}
    assert imported == "False"


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_a_loop_tells_what_was_decided_when_it_last_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    summaries: list[str] = []
    sweep = MadeUpSweep(made_up_plan(tmp_path), on_new=lambda: summaries.append(summary_line(sweep.loop.decisions)))
    sweep.run()
    assert [*summaries, summary_line(sweep.loop.decisions)] == [
        "comparisons: 3 open; next look at 3 of 8 seeds",
        "comparisons: 1 decided, 2 open; next look at 4 of 8 seeds",
        "comparisons: 1 decided, 2 open; next look at 5 of 8 seeds",
        "comparisons: 1 decided, 2 open; next look at 6 of 8 seeds",
        "comparisons: 2 decided, 1 open; next look at 8 of 8 seeds",
        "comparisons: 3 decided",
    ]
