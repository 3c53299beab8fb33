"""Designs and conditions on the command line, and plans that agree with what Hydra composes."""

import json
import re
from collections.abc import Callable, Sequence

import pytest
from omegaconf import DictConfig

from ablations.planning.compose import Composer
from ablations.space.designs import rows_of
from ablations.space.factors import FACTORS, level_text
from ablations.trial.identity import network_of
from bbcu.model.cost import count
from tests.harness.support import STUDY, Outcome, Workplace, contents

DRY = "hydra.sweeper.dry_run=true"
KEY = re.compile(r"^[0-9a-f]{12}  ")


def keys(outcome: Outcome) -> list[str]:
    """The keys of the cells that a dry run lists, in its order."""
    return [line[:12] for line in outcome.out.splitlines() if KEY.match(line)]


def dry(workplace: Workplace, *overrides: str) -> Outcome:
    outcome = workplace.sweep(*overrides, DRY)
    assert outcome.status == 0, outcome.message
    return outcome


# --- what is planned is what Hydra composes ---------------------------------------------------------------------------


def sampled_rows() -> list[tuple[str, ...]]:
    sweep = {name: [level_text(level) for level in factor.levels] for name, factor in FACTORS.items()}
    sweep |= {"align": ["auto", "1", "1.3e2"], "residual": ["TRUE", "false", "'block'"], "method": ["bbcu", "bnn"]}
    return list(rows_of("random", sweep, {"cells": 6, "seed": 3}).rows)


@pytest.mark.parametrize(
    "row",
    [
        *sampled_rows(),
        ("align=${channels}",),
        ("align=3", "blocks=${align}"),
        ("++bn=post", "bn=pre"),
        ("bn=pre", "++bn=post"),
        ("binarize=[up, body]", "channels=6"),
    ],
    ids=" ".join,
)
def test_a_row_is_planned_as_the_trial_that_hydra_composes(dry_workplace: Workplace, row: tuple[str, ...]) -> None:
    outcome = dry_workplace.sweep(*row, DRY)
    if outcome.status:
        assert "no cell of this sweep can be trained: impossible" in outcome.message
        with pytest.raises(Exception, match=re.escape(outcome.message.partition("impossible: ")[2].strip())):
            dry_workplace.trial(*row)
        return
    trial = dry_workplace.trial(*row)
    cost = count(network_of(trial)).total
    lines = {line[:12]: line for line in outcome.out.splitlines() if KEY.match(line)}
    assert len(lines) == 1 + (trial.teacher is not None)
    line = lines[trial.cell.key[:12]]
    assert line.split()[-2:] == [cost.printed_ops_g, f"{cost.params_k:.1f}"]


def test_ten_thousand_cells_are_planned_from_one_composition(
    dry_workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra needs some 50 ms to compose a config, so a plan that composed each row would take minutes."""
    rows = []

    def compose(composer: Composer, row: Sequence[str]) -> DictConfig:
        rows.append(row)
        return composed_by_hydra(composer, row)

    composed_by_hydra = Composer.compose
    monkeypatch.setattr(Composer, "compose", compose)
    sweep = (
        "residual=true,false,block bn=none,pre,post,out act=inside,after,none act_fn=rprelu,prelu,relu,hardtanh "
        "threshold=true,false surrogate=quadratic,clip,identity,ede,ho weight=l1,l1mag,plain,irnet "
        "binarize=[body],[body,up] align=auto,1,65 hydra.sweeper.design=random hydra.sweeper.cells=17000"
    )
    outcome = dry(dry_workplace, *sweep.split())
    assert len(set(keys(outcome))) == len(keys(outcome)) > 10_000
    assert len(rows) == 1


# --- designs and conditions -------------------------------------------------------------------------------------------

SWEEP = ("residual=true,false", "bn=none,post", "act=inside,none")


@pytest.mark.parametrize(
    ("design", "cells"),
    [
        ([], 8),
        (["design=one_at_a_time"], 4),
        (["design=leave_one_out", "reference={bn: post}"], 4),
        (["design=fractional", "fraction=1/2"], 4),
        (["design=fractional", 'generators=["act=residual*bn"]'], 4),
        (["design=random", "cells=5", "seed=1"], 5),
        (['exclude=["residual=false and bn=post"]'], 6),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_design_on_the_command_line_has_its_cells(dry_workplace: Workplace, design: list[str], cells: int) -> None:
    assert len(keys(dry(dry_workplace, *SWEEP, *(f"hydra.sweeper.{option}" for option in design)))) == cells


def test_a_chain_repeats_its_steps_for_every_replicate(dry_workplace: Workplace) -> None:
    steps = 'hydra.sweeper.steps=["act=after align=1","bn=post","bn=none align=auto","act=inside"]'
    outcome = dry(dry_workplace, "hydra.sweeper.design=chain", steps, "hydra.sweeper.replicates=2")
    rows = (("act=after", "align=1"), ("act=after", "align=1", "bn=post"), ("act=after",), ())
    expected = [dry_workplace.trial(*row).cell.key[:12] for row in rows]
    assert keys(outcome) == expected * 2


def test_a_condition_is_listed_with_the_cell_that_it_leaves_out_and_an_unused_one_is_reported(
    dry_workplace: Workplace,
) -> None:
    outcome = dry(dry_workplace, *SWEEP[:2], 'hydra.sweeper.exclude=["residual=false and bn=post","align>999"]')
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("left out: ")]
    assert line.endswith('excluded by "residual=false and bn=post"')
    assert 'hydra.sweeper.exclude: "align>999" left nothing out' in outcome.out


def test_the_plan_records_the_design_and_its_notes(workplace: Workplace) -> None:
    options = ("hydra.sweeper.design=fractional", "hydra.sweeper.fraction=1/2")
    outcome = workplace.sweep(*SWEEP, *options)
    design = json.loads((workplace.outputs / STUDY / "plan.json").read_text())["design"]
    assert (design["name"], design["options"], design["exclude"]) == ("fractional", {"fraction": "1/2"}, [])
    assert design["notes"][0].startswith("4 rows, resolution III")
    for note in design["notes"]:
        assert f"design fractional: {note}" in outcome.out
    assert len(workplace.finished()) == 4


# --- study.pairing ----------------------------------------------------------------------------------------------------

UNTRAINED = "method=bicubic"
"""A trial that takes no training."""


@pytest.fixture(scope="module")
def paired(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A study that was planned with ``study.pairing=true``."""
    place = new_workplace()
    assert place.sweep(UNTRAINED, "study.pairing=true").status == 0
    return place


def test_the_plan_records_that_a_study_pairs_its_cells(paired: Workplace) -> None:
    assert json.loads((paired.outputs / STUDY / "plan.json").read_text())["pairing"] is True


@pytest.mark.parametrize(
    "options",
    [[], [DRY], ["hydra.sweeper.design=search", "hydra.sweeper.trials=1"]],
    ids=["a sweep", "a dry run", "a search"],
)
def test_a_later_sweep_with_another_pairing_is_one_line_and_writes_nothing(
    paired: Workplace, options: list[str]
) -> None:
    before = contents(paired.folder)
    assert paired.sweep("residual=true,false", *options).refusal == (
        f"run.py: study.pairing=false: study {STUDY} was planned with study.pairing=true, which is fixed before it "
        "trains; set it to true, or use another study.name"
    )
    assert contents(paired.folder) == before


def test_a_single_run_neither_reads_nor_changes_how_the_study_compares(paired: Workplace) -> None:
    before = (paired.outputs / STUDY / "plan.json").read_bytes()
    assert paired.run(UNTRAINED, "study.pairing=false").status == 0
    assert (paired.outputs / STUDY / "plan.json").read_bytes() == before


def test_pairing_is_part_of_no_cell(dry_workplace: Workplace) -> None:
    assert dry_workplace.trial("study.pairing=true").identity == dry_workplace.trial().identity
    outcome = dry_workplace.sweep("study.pairing=true,false", DRY)
    assert "study.pairing: says where or how to run" in outcome.refusal


# --- wrong designs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["design=typo"], "hydra.sweeper.design=typo: unknown design 'typo'"),
        (["cells=3"], "hydra.sweeper.cells: unknown option of design=full"),
        (["design=chain", "steps=[]"], "at least one step"),
        (["design=chain", 'steps=["act=after","evaluation.tile=8"]'], "evaluation.tile: says where or how to run"),
        (["design=chain", 'steps=["bogus=1"]'], "bogus"),
        (["design=chain", 'steps=["act=after,none"]'], "act=after,none: unknown level"),
        (["design=fractional", "fraction=1/2"], "bn has the values none, pre, post"),
        (["design=one_at_a_time", "reference=bn"], "reference=bn: write key and value"),
        (['exclude=["residual=false and tsak=sr_x2"]'], "column 20: unknown key 'tsak'"),
        (["exclude=bn"], "exclude"),
        (['exclude=["threshold=true"]'], 'no cell of this sweep can be trained: excluded by "threshold=true"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_design_is_one_line_and_nothing_runs(dry_workplace: Workplace, options: list[str], named: str) -> None:
    swept = [] if "design=chain" in options else ["bn=none,pre,post", "residual=true,false"]
    outcome = dry_workplace.sweep(*swept, *(f"hydra.sweeper.{option}" for option in options))
    assert outcome.status == 1
    assert len(outcome.message.splitlines()) == 1
    assert named in outcome.message
    assert dry_workplace.is_untouched()


def test_a_left_out_cell_names_the_cell_whose_network_it_is(workplace: Workplace) -> None:
    outcome = workplace.sweep("residual=false", "act=inside,after,none", "act_fn=relu", "threshold=true")
    assert outcome.status == 0, outcome.text
    plan = json.loads((workplace.outputs / STUDY / "plan.json").read_text())
    (row,) = plan["left_out"]
    (same,) = [trial for trial in plan["trials"] if trial["levels"]["act"] == "inside"]
    assert row["levels"]["act"] == "after"
    assert row["same_as"] == same["cell"]
