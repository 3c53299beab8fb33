"""The time that a sweep will take, estimated from finished trials."""

from pathlib import Path

import pytest

from ablations.storage.attempts import State, update_attempt
from ablations.storage.lease import Lease
from ablations.watching.forecast import Forecast, duration
from ablations.watching.tracker import Ending, WatchedTrial
from tests.ablations.watching.sweeps import BEGAN, SESSION, STEPS, STUDY, Clock, Sweep, finish, folder_of

# --- when it will be over ---------------------------------------------------------------------------------------------


def finished(seconds: float, steps: int) -> Ending:
    return Ending(waiting(steps)[0], State.FINISHED, seconds=seconds, steps=steps)


def waiting(*steps: int) -> list[WatchedTrial]:
    return [WatchedTrial("x", number, folder_of(Path(), "x")) for number in steps]


def running(*steps: int) -> list[Lease]:
    """Trials of STEPS steps that are after these; each keeps its token."""
    return [
        Lease(STUDY, "c", seed, "x", SESSION, STEPS, f"token {seed}", "host", 1, "", BEGAN, step=step)
        for seed, step in enumerate(steps)
    ]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forecast(clock: Clock) -> Forecast:
    return Forecast(clock)


def test_nothing_is_estimated_before_a_trial_has_finished(clock: Clock, forecast: Forecast) -> None:
    clock.now += 60
    forecast.learn([Ending(waiting(100)[0], State.FAILED, "out of memory", seconds=10.0, steps=10)])
    assert forecast.left([], waiting(100)) is None
    assert forecast.left_of(running(0)[0]) is None
    assert forecast.trials_per_hour is None


@pytest.mark.parametrize(
    ("steps", "at_once", "seconds"),
    [
        pytest.param((100, 100, 100), 1, 3 * 50, id="one after the other"),
        pytest.param((100, 100, 100), 3, 50, id="all at once"),
        pytest.param((100, 100, 100), 2, 2 * 50, id="the third waits for a free place"),
        pytest.param((100, 300), 1, 50 + 150, id="by their steps"),
        pytest.param((), 2, 0, id="nothing"),
    ],
)
def test_waiting_trials_run_in_as_many_places_as_were_seen(
    forecast: Forecast, steps: tuple[int, ...], at_once: int, seconds: float
) -> None:
    forecast.learn([finished(seconds=20.0, steps=40)])
    forecast.observe(running(*[0] * at_once))
    assert forecast.left([], waiting(*steps)) == seconds


def test_a_waiting_trial_begins_when_the_first_running_one_ends(forecast: Forecast) -> None:
    forecast.learn([finished(seconds=50.0, steps=100)])
    now = running(90, 20)
    forecast.observe(now)
    assert forecast.left(now, []) == 80 / 2
    assert forecast.left(now, waiting(100)) == 10 / 2 + 100 / 2


@pytest.mark.parametrize(
    ("steps", "later", "seconds"),
    [
        pytest.param((), ((100, 300), (100,)), 150 + 50, id="a batch after the other"),
        pytest.param((100, 100, 100), ((100,),), 100 + 50, id="after the trials that wait"),
        pytest.param((), (), 0, id="nothing"),
    ],
)
def test_later_trials_begin_when_all_before_them_have_ended(
    forecast: Forecast, steps: tuple[int, ...], later: tuple[tuple[int, ...], ...], seconds: float
) -> None:
    forecast.learn([finished(seconds=50.0, steps=100)])
    forecast.observe(running(0, 0))
    assert forecast.left([], waiting(*steps), [waiting(*batch) for batch in later]) == seconds


def test_a_place_that_is_free_for_long_does_not_count(clock: Clock, forecast: Forecast) -> None:
    forecast.learn([finished(seconds=50.0, steps=100)])
    forecast.observe(running(0, 0))
    clock.now += 30
    forecast.observe(running(0))
    assert forecast.left([], waiting(100, 100)) == 50
    clock.now += 1
    forecast.observe(running(0))
    assert forecast.left([], waiting(100, 100)) == 100


def test_the_pace_is_the_mean_over_all_steps(forecast: Forecast) -> None:
    forecast.learn([finished(seconds=10.0, steps=10), finished(seconds=10.0, steps=190)])
    assert forecast.seconds_per_step == 20 / 200


def test_a_trial_without_steps_says_nothing_about_the_pace(forecast: Forecast) -> None:
    forecast.learn([finished(seconds=10.0, steps=0)])
    assert forecast.seconds_per_step is None
    forecast.learn([finished(seconds=50.0, steps=100)])
    assert forecast.seconds_per_step == 50 / 100


def test_a_running_trial_is_estimated_by_its_own_pace(clock: Clock, forecast: Forecast) -> None:
    forecast.learn([finished(seconds=50.0, steps=100)])
    forecast.observe(running(0))
    clock.now += 100
    forecast.observe(running(10))
    assert forecast.left_of(running(10)[0]) == 90 / 2
    clock.now += 40
    assert forecast.left_of(running(20)[0]) == 80 * 4


def test_trials_per_hour_count_from_the_start_of_the_view(clock: Clock, forecast: Forecast) -> None:
    clock.now += 1800
    forecast.learn([finished(10.0, 10), finished(10.0, 10)])
    assert forecast.trials_per_hour == 4


def test_a_resumed_trial_counts_by_the_steps_of_its_last_attempt(sweep: Sweep) -> None:
    folder = sweep.folders["one"]
    with sweep.view() as view:
        with sweep.at_work("one"):
            view.update()
            update_attempt(folder, from_step=90)
            finish(folder, seconds=10)
        view.update()
    # 10 steps took 10 s; 200 are to come.
    assert sweep.lines == ["1/3 one seed 0: 33.91 dB in 10 s, 3 min left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (47 * 3600 + 59 * 60, "47 h 59 min"),
        (48 * 3600, "2 d 0 h"),
        (60 * 3600, "2 d 12 h"),
    ],
)
def test_a_time_is_written_in_its_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
