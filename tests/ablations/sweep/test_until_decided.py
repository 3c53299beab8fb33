"""The command with ``hydra.sweeper.until=decided``: what it prints and records, and what it refuses."""

import shutil
from collections.abc import Callable, Sequence

import pytest

from ablations.storage.attempts import history_of
from ablations.storage.folder import trial_folders
from ablations.storage.plans import read_plan
from tests.ablations.sweep.test_launchers import LAUNCHERS
from tests.harness.support import STUDY, Outcome, Workplace, contents, ended

DRY = "hydra.sweeper.dry_run=true"
FEW = ("replicates=2", "most_replicates=4")
RULE = tuple(f"hydra.sweeper.{option}" for option in ("until=decided", *FEW))
CELLS = (
    *("bn=none,post", "task=denoise"),
    *("train.steps=12", "train.lr=0.01", "train.precision=fp32", "train.compile=false"),
)
"""Two cells whose difference takes more than two seeds, in arithmetic that repeats bit for bit."""


@pytest.fixture(scope="module")
def decided(new_workplace: Callable[[], Workplace]) -> tuple[Workplace, Outcome]:
    """A sweep that went on until all was decided, and has printed its progress."""
    place = new_workplace()
    return place, place.sweep(*CELLS, *RULE, "progress=auto")


def test_the_comparisons_are_printed_with_their_verdicts_and_what_they_took(
    decided: tuple[Workplace, Outcome],
) -> None:
    place, outcome = decided
    assert outcome.status == 0, outcome.text
    lines = outcome.out.splitlines()
    assert "until=decided: 1 comparison, looks at 2 to 4 seeds, at most 8 trials" in lines
    assert conclusions(outcome) == ["BatchNorm after the convolution in place of alignment 8.125  worse at 4  4"]
    assert "8 trainings; 4 seeds for every cell would have been 8" in lines
    assert place.finished() == place.results()
    assert len(place.results()) == 8


def test_the_view_shows_what_is_decided(decided: tuple[Workplace, Outcome]) -> None:
    lines = [line for line in decided[1].out.splitlines() if line.startswith(("comparisons:", "decided:"))]
    assert lines[-2:] == [
        "decided: BatchNorm after the convolution in place of alignment 8.125: worse on Tiny after 4 seeds",
        "comparisons: 1 decided",
    ]


def test_a_latency_that_a_finished_trial_lacks_is_measured_and_nothing_is_trained(
    decided: tuple[Workplace, Outcome], workplace: Workplace
) -> None:
    shutil.copytree(decided[0].outputs / STUDY, workplace.outputs / STUDY)
    unmeasured, *others = workplace.trials()
    for folder in others:
        result = folder.result()
        assert result is not None
        result["provenance"]["latency"] = {"backend": "native"}
        folder.write_result(result)
    outcome = workplace.sweep(*CELLS, *RULE, "measure.latency=true")
    assert outcome.status == 0, outcome.text
    assert "8 done already, nothing to train, the latency of 1 to measure" in outcome.out
    result = unmeasured.result()
    assert result is not None
    assert result["cost"]["latency_ms"] > 0
    assert len(history_of(unmeasured).attempts) == 1
    assert conclusions(outcome) == conclusions(decided[1])


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
        ([*RULE, "hydra.sweeper.margin_db=0.1", DRY], ", and this one differs: margin_db=0.1 and not 0.05"),
        ([*RULE, "bn=none,post,out"], ", and this one differs: comparisons=2 and not 1"),
        ([*RULE, "train.steps=13"], ", and this one differs: other comparisons"),
    ],
    ids=["none", "none, dry run", "search", "margin, dry run", "more cells", "other cells"],
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


SWEPT = ("residual=true,false", "bn=none,post", "act=inside,after")
STEPS = 'hydra.sweeper.steps=["act=after align=1","bn=post","bn=none align=auto","act=inside"]'
METHODS = 'hydra.sweeper.steps=["method=bicubic","method=bnn","method=irnet","method=bbcu"]'


@pytest.mark.parametrize(
    ("design", "more", "comparisons", "most"),
    [
        ("full", SWEPT, 4, 5 * 4 + 2),
        ("one_at_a_time", SWEPT, 3, 4 * 4),
        ("leave_one_out", SWEPT, 3, 4 * 4),
        ("chain", [STEPS], 5, 4 * 4),
        ("chain", ["task=sr_x2,sr_x4", METHODS], 4, 2 * (3 * 4 + 2)),
    ],
    ids=["full", "one at a time", "leave one out", "chain", "methods of two tasks"],
)
def test_every_design_has_comparisons_to_decide_and_other_cells_get_the_first_look_alone(
    dry_workplace: Workplace, design: str, more: Sequence[str], comparisons: int, most: int
) -> None:
    outcome = dry_workplace.sweep(*more, f"hydra.sweeper.design={design}", *RULE, DRY)
    assert outcome.status == 0, outcome.text
    line = f"until=decided: {comparisons} comparisons, looks at 2 to 4 seeds, at most {most} trials"
    assert line in outcome.out.splitlines()


# --- the same, however it runs ----------------------------------------------------------------------------------------


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
        (["looks=[2,3]"], f"hydra.sweeper.looks: has no effect without {UNTIL}; add it"),
        (
            ["until=decided", "replicates=2", "most_replicates=101"],
            "hydra.sweeper.most_replicates=101: must be at most",
        ),
        (["until=decided", "margin_db=0"], "hydra.sweeper.margin_db=0.0: must be a number above 0"),
        (["until=decided", *FEW, "design=search", "trials=3"], f"{UNTIL}: design=search compares no cells"),
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
