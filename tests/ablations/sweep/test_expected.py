"""What a dry run says a sweep may expect."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations.decide.forecast import Spread
from ablations.sweep.expected import print_expected
from tests.harness.deciding import BASELINE_DB, STUDY, WORTH, leave_result, made_up_plan
from tests.harness.support import Workplace

DRY = "hydra.sweeper.dry_run=true"
UNTIL = ("hydra.sweeper.until=decided", "hydra.sweeper.replicates=2", "hydra.sweeper.most_replicates=4")
LAST_LINE = "dry run: nothing was trained or recorded"

Printed = Callable[[], list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out.splitlines()


def test_a_rule_may_expect_trainings_by_the_true_effects(tmp_path: Path, printed: Printed) -> None:
    print_expected(made_up_plan(tmp_path), Spread(0.05))
    first, header, *rows, last = printed()
    assert first == "expected trainings from the start of the study, if cells spread by 0.05 dB:"
    assert header.split("  ")[:2] == ["true effects", "trainings"]
    assert [row.split(" dB")[0] for row in rows] == ["0", "0.05", "0.1", "0.2", "0.5", "1"]
    # Four cells with three to eight seeds.
    assert all(12 <= int(row.split()[2]) <= 32 and row.split()[5] == "32" for row in rows)
    assert int(rows[-1].split()[2]) < 16 < 28 < int(rows[1].split()[2])
    assert rows[-1].split()[3:5] == ["100", "%"]
    assert last == (
        "the look at 8 seeds could show an effect of 0.091 dB with 80 % power in the hardest of 3 comparisons"
    )


def test_a_fixed_plan_could_show_a_smallest_effect(tmp_path: Path, printed: Printed) -> None:
    planned = made_up_plan(tmp_path)
    fixed = dataclasses.replace(planned, rule=None, trials=planned.trials[: 3 * len(WORTH)])
    print_expected(fixed, Spread(0.1))
    print_expected(dataclasses.replace(fixed, trials=planned.trials[: len(WORTH)]), Spread(0.1))
    three, one = printed()
    assert three == (
        "3 seeds could show an effect of 0.42 dB with 80 % power in the hardest of 3 comparisons, "
        "if cells spread by 0.1 dB"
    )
    assert one == "one seed could show no effect, because it has no spread; set hydra.sweeper.replicates"


def test_without_a_spread_one_line_says_how_to_give_one(tmp_path: Path, printed: Printed) -> None:
    planned = made_up_plan(tmp_path)
    print_expected(planned, None)
    print_expected(dataclasses.replace(planned, rule=None), None)
    how = "give the spread between seeds: hydra.sweeper.spread_db=0.05 or hydra.sweeper.spread_from=STUDY"
    assert printed() == [
        f"to learn how many trainings to expect, {how}",
        f"to learn which effects its seeds could show, {how}",
    ]


def test_a_sweep_of_one_cell_compares_nothing(tmp_path: Path, printed: Printed) -> None:
    planned = made_up_plan(tmp_path)
    print_expected(dataclasses.replace(planned, rule=None, trials=planned.trials[:1]), Spread(0.1))
    print_expected(dataclasses.replace(planned, rule=None, trials=planned.trials[:1]), None)
    assert printed() == []


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_with_a_rule_says_what_to_expect(dry_workplace: Workplace) -> None:
    outcome = dry_workplace.sweep("bn=none,post", DRY, *UNTIL, "hydra.sweeper.spread_db=0.1")
    *_, shown, last = outcome.out.splitlines()
    assert outcome.status == 0
    assert "expected trainings from the start of the study, if cells spread by 0.1 dB:" in outcome.out.splitlines()
    assert shown.startswith("the look at 4 seeds could show an effect of ")
    assert last == LAST_LINE
    assert dry_workplace.is_untouched()


def test_a_dry_run_takes_the_spread_from_an_earlier_study(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    for place, entry in enumerate(made_up_plan(workplace.outputs).trials[: 2 * len(WORTH)]):
        leave_result(entry, BASELINE_DB + 0.1 * (place >= len(WORTH)))
    outcome = workplace.sweep("bn=none,post", DRY, "hydra.sweeper.replicates=3", f"hydra.sweeper.spread_from={STUDY}")
    *_, shown, last = outcome.out.splitlines()
    assert shown.startswith("3 seeds could show an effect of 0.22 dB with 80 % power")
    assert shown.endswith(f"if cells spread by the median of study {STUDY}, 0.071 dB")
    assert last == LAST_LINE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["spread_db=0"], "hydra.sweeper.spread_db=0.0: must be a number above 0"),
        (["spread_db=nan"], "hydra.sweeper.spread_db=nan: must be a number above 0"),
        (["spread_from=other"], "hydra.sweeper.spread_from=other: no such study in "),
        (
            ["spread_db=0.1", "spread_from=other"],
            "hydra.sweeper.spread_db and hydra.sweeper.spread_from: give one of them",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_spread_that_cannot_be_used_is_refused_in_one_line(
    dry_workplace: Workplace, options: list[str], message: str
) -> None:
    given = (f"hydra.sweeper.{option}" for option in options)
    assert message in dry_workplace.sweep("bn=none,post", DRY, *given).refusal
    assert dry_workplace.is_untouched()
