"""Synthetic studies that were trained by a stopping rule: the decisions of a sweep on scores that are made up.

A study is asked for look by look, as a sweep does it, so that its cells have just the seeds that the rule gives them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ablations.decide.decider import FAILED, Decider, EndedTrial
from ablations.decide.results import finished_trial
from ablations.space.family import cells_of_plan, family
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.folder import Identity
from analysis.study.loading import StudyResults, trial_frame
from analysis.study.schema import rows_of
from tests.harness.studies import Ours, Trial, of_results, read_back, result_of, trial

LOOKS = (3, 4, 6)
NOISE_DB = 0.02
COLLAPSED_DB = 20.0  # below every baseline

Result = dict[str, Any]


class Cell(Protocol):
    """A cell of a synthetic study: the ``result.json`` of each seed, and the seeds under which it fails."""

    @property
    def failed(self) -> tuple[int, ...]: ...

    def result(self, seed: int) -> Result: ...


@dataclasses.dataclass(frozen=True)
class Levels:
    """A cell of these levels that is worth so many dB on each test set, and ``collapsed`` under some seeds."""

    levels: Mapping[str, Any]
    psnr_db: Mapping[str, float]
    failed: tuple[int, ...] = ()
    collapsed: tuple[int, ...] = ()

    def trial(self, seed: int) -> Trial:
        """Its trial, with noise that depends on the cell and the seed alone."""
        bare = trial(seed, **self.levels)
        draw = np.random.default_rng([seed, int(bare.cell[:8], 16)])
        noise = {name: NOISE_DB * float(draw.standard_normal()) for name in self.psnr_db}
        scores = {name: round(psnr + noise[name], 6) for name, psnr in self.psnr_db.items()}
        down = seed in self.collapsed
        return dataclasses.replace(bare, psnr_db=dict.fromkeys(scores, COLLAPSED_DB + 0.01 * seed) if down else scores)

    def result(self, seed: int) -> Result:
        return result_of(self.trial(seed))


@dataclasses.dataclass(frozen=True)
class Method:
    """A published method that is worth so many dB on a task."""

    name: str
    psnr_db: float
    task: str
    failed: tuple[int, ...] = ()

    def result(self, seed: int) -> Result:
        draw = np.random.default_rng([seed, *map(ord, f"{self.name} {self.task}")])
        noise = NOISE_DB * float(draw.standard_normal())
        return Ours(self.name, round(self.psnr_db + noise, 6), seed, self.task).result()


def cell(psnr_db: float, **levels: Any) -> Levels:
    return Levels(levels, {"Set5": psnr_db})


def rule_for(
    cells: Sequence[Cell], design: Mapping[str, Any], looks: Sequence[int] = LOOKS, first_seed: int = 0
) -> StoppingRule:
    """The rule of a sweep over these cells."""
    found = map(family, cells_of_plan([each.result(first_seed) for each in cells], design))
    return StoppingRule(tuple(looks), first_seed, 0.05, tuple(filter(None, found)))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The trials that a rule has asked for, in order, with those that have ended; ``earlier`` are from before it."""

    rule: StoppingRule
    earlier: tuple[Identity, ...]
    asked: tuple[Identity, ...]
    ended: Mapping[Identity, EndedTrial]

    @property
    def finished(self) -> list[Identity]:
        return [*self.earlier, *(one for one in self.asked if self.ended.get(one, FAILED) is not FAILED)]

    @property
    def lacking(self) -> list[Identity]:
        return [one for one in self.asked if self.ended.get(one, FAILED) is FAILED]


def swept(
    cells: Mapping[str, Cell], design: Mapping[str, Any], looks: Sequence[int], earlier: int, most: float
) -> Sweep:
    rule = rule_for(list(cells.values()), design, looks, earlier)
    decider = Decider(rule, tuple(cells))
    ended: dict[Identity, EndedTrial] = {}
    asked: list[Identity] = []
    while new := decider.ask(ended):
        asked += new
        for key, seed in new:
            if len(ended) < most:
                known = seed not in cells[key].failed
                ended[key, seed] = finished_trial(cells[key].result(seed)) if known else FAILED
        if len(ended) >= most:
            break
    before = tuple((key, seed) for seed in range(earlier) for key in cells)
    return Sweep(rule, before, tuple(asked), ended)


def ruled(
    cells: Sequence[Cell],
    design: str = "one_at_a_time",
    looks: Sequence[int] = LOOKS,
    earlier: int = 0,
    most: float = float("inf"),
) -> StudyResults:
    """A study of these cells, trained by a rule until all is decided, or until ``most`` trials have ended.

    Its first ``earlier`` seeds have results from before the rule.
    """
    planned = {"name": design, "options": {}}
    by_key = {each.result(0)["cell"]: each for each in cells}
    sweep = swept(by_key, planned, looks, earlier, most)
    every = {one: by_key[one[0]].result(one[1]) for one in (*sweep.earlier, *sweep.asked)}
    rows = rows_of(of_results(every.values()).trials)
    for row in rows:
        if (one := (row["cell"], row["seed"])) in sweep.lacking:
            for name in [name for name in row if name.startswith("metric/")]:
                del row[name]
            failed = {"state": "failed", "reason": "the loss diverged"}
            row |= failed if one in sweep.ended else {"state": "missing", "reason": "planned, not started yet"}
    study = of_results([every[one] for one in sweep.finished] or every.values(), design=planned, rule=sweep.rule)
    return dataclasses.replace(study, trials=trial_frame(rows))


def rule_on_disk(outputs: Path, cells: Sequence[Levels], **plan: Any) -> StudyResults:
    """Such a study of one factor at a time as its trials leave it on disk, read back; ``plan`` has keys of its plan."""
    design = {"name": "one_at_a_time", "options": {}}
    by_key = {each.trial(0).cell: each for each in cells}
    sweep = swept(by_key, design, LOOKS, 0, float("inf"))
    trials = [by_key[key].trial(seed) for key, seed in sweep.finished]
    return read_back(outputs, trials, design=design, rule=sweep.rule.record(), **plan)
