"""The command with ``hydra.sweeper.until=decided``: what it prints and records, and what it refuses."""

from collections.abc import Callable, Sequence

import pytest

from ablations.storage.folder import trial_folders
from ablations.storage.plans import read_plan
from tests.ablations.sweep.test_launchers import LAUNCHERS, is_installed, swept
from tests.harness.support import STUDY, Outcome, Workplace, contents, ended

DRY = "hydra.sweeper.dry_run=true"
LOOKS = ("hydra.sweeper.replicates=2", "hydra.sweeper.most_replicates=4")
RULE = ("hydra.sweeper.until=decided", *LOOKS)
CELLS = (
    *("bn=none,post", "task=denoise"),
    *("train.steps=12", "train.lr=0.01", "train.precision=fp32", "train.compile=false"),
)
"""Two cells whose difference takes more than two seeds, in arithmetic that repeats bit for bit."""


@pytest.fixture(scope="module")
def decided(new_workplace: Callable[[], Workplace]) -> tuple[Workplace, Outcome]:
    """A sweep that went on until all was decided."""
    place = new_workplace()
    return place, place.sweep(*CELLS, *RULE)


def test_the_comparisons_are_printed_with_their_verdicts_and_what_they_took(
    decided: tuple[Workplace, Outcome],
) -> None:
    place, outcome = decided
    assert outcome.status == 0, outcome.text
    lines = outcome.out.splitlines()
    assert "until=decided: 1 comparison, looks at 2, 3, 4 seeds, at most 8 trials" in lines
    assert conclusions(outcome) == ["BatchNorm after the convolution in place of alignment 8.125  worse at 4  4"]
    assert "8 trainings; 4 seeds for every cell would have been 8" in lines
    assert place.finished() == place.results()
    assert len(place.results()) == 8


def conclusions(outcome: Outcome) -> list[str]:
    """The rows of the table of comparisons."""
    lines = outcome.out.splitlines()
    (start,) = [place for place, line in enumerate(lines) if line.startswith("comparison ")]
    (end,) = [place for place, line in enumerate(lines) if " trainings; " in line]
    return lines[start + 1 : end]


def test_the_rule_is_in_the_plan(decided: tuple[Workplace, Outcome]) -> None:
    rule = read_plan(decided[0].outputs, STUDY)["rule"]
    assert (rule["looks"], rule["first_seed"], rule["margin_db"]) == ([2, 3, 4], 0, 0.05)
    ((pair,),) = rule["families"]
    assert set(pair) == {folder.cell for folder in trial_folders(decided[0].outputs, STUDY)}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "; set hydra.sweeper.until=decided hydra.sweeper.replicates=2 hydra.sweeper.most_replicates=4 as before"),
        ([DRY], "; set hydra.sweeper.until=decided"),
        (["hydra.sweeper.design=search", "hydra.sweeper.trials=1"], "; set hydra.sweeper.until=decided"),
        ([*RULE, "hydra.sweeper.looks=[2,4]"], ", and this one differs: looks=2,4 and not 2 to 4"),
        ([*RULE, "hydra.sweeper.margin_db=0.1", DRY], ", and this one differs: margin_db=0.1 and not 0.05"),
        ([*RULE, "bn=none,post,out"], ", and this one differs: comparisons=2 and not 1"),
        ([*RULE, "train.steps=13"], ", and this one differs: other comparisons"),
    ],
    ids=["none", "none, dry run", "search", "looks", "margin, dry run", "more cells", "other cells"],
)
def test_another_rule_is_refused_and_nothing_is_written(
    decided: tuple[Workplace, Outcome], options: Sequence[str], why: str
) -> None:
    place, _ = decided
    before = contents(place.folder)
    given = {key: text for key, _, text in (option.partition("=") for option in (*CELLS, *options))}
    refusal = place.sweep(*(f"{key}={text}" for key, text in given.items())).refusal
    assert f"the stopping rule of study {STUDY} is fixed before it trains{why}" in refusal
    assert "use another study.name" in refusal
    assert contents(place.folder) == before


def test_one_line_says_which_results_count_in_no_verdict(workplace: Workplace) -> None:
    assert workplace.sweep(*CELLS, "train.steps=1").status == 0
    outcome = workplace.sweep(*CELLS, *RULE, "train.steps=1", DRY)
    line = f"study {STUDY}: 2 results from before the rule count in no verdict; its seeds begin at 1"
    assert line in outcome.out.splitlines()
    assert f"study {STUDY}: 2 cells, 4 trials, 0 done already, 4 to train" in outcome.out


# --- the same, however it runs ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("ray"), reason="hydra-ray-launcher is missing")
def test_ray_comes_to_the_verdicts_of_the_basic_launcher(
    workplace: Workplace, decided: tuple[Workplace, Outcome]
) -> None:
    place, outcome = decided
    with swept((*CELLS, *RULE, *LAUNCHERS["ray"]), workplace) as sweep:
        assert sweep.outcome.status == 0, sweep.outcome.text
        assert conclusions(sweep.outcome) == conclusions(outcome)
        assert scores(workplace) == scores(place)


def scores(place: Workplace) -> dict[tuple[str, int], object]:
    results = {(folder.cell, folder.seed): folder.result() for folder in place.trials()}
    return {identity: result["metrics"] for identity, result in results.items() if result}


@pytest.mark.slow
def test_two_sweeps_at_once_one_of_them_by_joblib_share_the_trials(
    workplace: Workplace, decided: tuple[Workplace, Outcome]
) -> None:
    arguments = ["-m", *workplace.overrides(*CELLS, *RULE)]
    with (
        ended(workplace.start(*arguments, *LAUNCHERS["joblib"])) as first,
        ended(workplace.start(*arguments)) as second,
    ):
        assert [first.wait(600), second.wait(600)] == [0, 0]
    assert scores(workplace) == scores(decided[0])
    assert workplace.finished() == workplace.results()


# --- wrong options ----------------------------------------------------------------------------------------------------

UNTIL = "hydra.sweeper.until=decided"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["until=other"], "hydra.sweeper.until=other: unknown value 'other'; valid: None, decided"),
        (["most_replicates=4"], f"hydra.sweeper.most_replicates: has no effect without {UNTIL}; add it"),
        (["looks=[2,3]"], f"hydra.sweeper.looks: has no effect without {UNTIL}; add it"),
        (["until=decided", "replicates=2"], f"{UNTIL} needs hydra.sweeper.most_replicates"),
        (["until=decided", "most_replicates=4"], "hydra.sweeper.replicates=1: must be at least 2"),
        (
            ["until=decided", "replicates=4", "most_replicates=4"],
            "hydra.sweeper.most_replicates=4: must be above hydra.sweeper.replicates=4",
        ),
        (
            ["until=decided", "replicates=2", "most_replicates=101"],
            "hydra.sweeper.most_replicates=101: must be at most 100",
        ),
        *(
            (
                ["until=decided", *(option.removeprefix("hydra.sweeper.") for option in LOOKS), f"looks=[{looks}]"],
                f"hydra.sweeper.looks=[{looks}]: must ascend from hydra.sweeper.replicates=2 to "
                "hydra.sweeper.most_replicates=4",
            )
            for looks in ("", "2", "2,3", "3,4", "2,3,3,4", "2,5,4")
        ),
        (
            ["until=decided", "replicates=2", "most_replicates=4", "margin_db=0"],
            "hydra.sweeper.margin_db=0.0: must be a number above 0",
        ),
        (
            ["until=decided", "replicates=2", "most_replicates=4", "design=search", "trials=3"],
            f"{UNTIL}: design=search compares no cells",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_together_are_one_line(
    dry_workplace: Workplace, options: list[str], message: str
) -> None:
    refusal = dry_workplace.sweep("bn=none,post", *(f"hydra.sweeper.{option}" for option in options)).refusal
    assert message in refusal
    assert dry_workplace.is_untouched()


@pytest.mark.parametrize(
    ("swept_keys", "message"),
    [
        (["bn=none,post", "seed=0,1"], f"seed: {UNTIL} chooses the seeds of each cell; give it one value"),
        (["bn=post"], f"{UNTIL}: no two cells of this sweep make a comparison"),
        (["method=bicubic"], f"{UNTIL}: no two cells of this sweep make a comparison"),
    ],
    ids=["seeds", "one cell", "nothing trains"],
)
def test_a_sweep_without_anything_to_decide_is_refused(
    dry_workplace: Workplace, swept_keys: list[str], message: str
) -> None:
    assert message in dry_workplace.sweep(*swept_keys, *RULE).refusal
    assert dry_workplace.is_untouched()
