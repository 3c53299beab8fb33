"""Test the claims of the BBCU paper (ICLR 2023): contrasts between cells, each with the direction that it predicts.

A claim is tested on the cells that there are, whatever study they come from, and may well turn out wrong: small
networks, short trainings and other pictures are other conditions than the paper's.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ablations.storage.folder import Identity
from analysis.effects.contrasts import Pairs, collapsed_cells, complete_seeds, cost_change, differences, matches
from analysis.published.tables import points
from analysis.statistics.estimates import ALPHA, MARGIN_DB, Estimate, Outcome, estimate, holm, verdicts
from analysis.statistics.rounding import rounded
from analysis.study import methods
from analysis.study.settings import SettingResults

PSNR = "PSNR"  # the measure of a claim about quality, in dB on each test set; any other measure is a probe

PROBES = {
    "output_loss": "Output loss: the share of a binary unit's output that binarising loses, after the best linear fit "
    "in each channel, 0 for none and 1 for all; the mean over the units.",
    "range_gap": "Range gap: by how many powers of ten the deviation of a unit's branch exceeds that of the residual "
    "that it is added to, 0 if it does not; the mean over the units.",
}
"""What a measure that is a probe is, for a reader of its claims."""

METHOD_KEYS = ("channels", *methods.METHOD_KEYS)
"""The part of a setting that a published method sets: methods that differ in it may be compared."""

ABOVE_ONE = ">1"  # any residual alignment that is switched on


class Status(enum.StrEnum):
    """What the cells say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested here"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim: going from the cells with the levels ``before`` to those with ``after`` moves ``measure`` by ``sign``.

    Levels are those that a cell records, ``>1`` for any greater number; ``where`` holds for both sides. A finding on
    methods names them under ``method`` and compares them as published: they may differ in the keys of the setting
    that ``brings`` lists.
    """

    claim: str
    measure: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    sign: int
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    brings: tuple[str, ...] = ()

    @property
    def on_methods(self) -> bool:
        return "method" in self.after

    @property
    def predicted(self) -> str:
        return f"{self.measure.replace('_', ' ')} {'rises' if self.sign > 0 else 'falls'}"

    @property
    def change(self) -> str:
        """The contrast in words: ``residual: false → true``."""
        names = dict.fromkeys([*self.before, *self.after])
        moved = ", ".join(f"{name}: {self.before.get(name, '')} → {self.after.get(name, '')}" for name in names)
        held = ", ".join(f"{name}={level}" for name, level in self.where.items())
        return f"{moved} at {held}" if held else moved


BARE = {"bn": "none", "align": "1"}
ALIGNED = {"bn": "none", "align": ABOVE_ONE}
NORMALISED = {"bn": "post", "align": "1"}
AFTER, INSIDE = {"act": "after"}, {"act": "inside"}
WITH_RESIDUAL, WITHOUT_RESIDUAL = {"residual": "true"}, {"residual": "false"}
CLOSES = "closes the gap between the ranges"
BN_CLOSES = f"BatchNorm after the convolution {CLOSES} of residual and branch"


def component_finding(claim: str, before: Mapping[str, str], after: Mapping[str, str], measure: str = PSNR) -> Finding:
    """The claim that changing a component with a residual beside it raises PSNR, or lowers another measure."""
    return Finding(claim, measure, before, after, 1 if measure == PSNR else -1, WITH_RESIDUAL)


def part_finding(part: str, before: str, after: str) -> Finding:
    return Finding(f"Binarising the {part} costs PSNR", PSNR, {"binarize": before}, {"binarize": after}, -1)


def method_finding(name: str, method: str, *brings: str) -> Finding:
    claim = f"BBCU is better than {name}"
    return Finding(claim, PSNR, {"method": method}, {"method": methods.BBCU}, +1, brings=brings)


FINDINGS: tuple[Finding, ...] = (
    Finding("The residual reduces what a unit loses of its output", "output_loss", WITHOUT_RESIDUAL, WITH_RESIDUAL, -1),
    Finding("The residual raises PSNR", PSNR, WITHOUT_RESIDUAL, WITH_RESIDUAL, +1),
    component_finding(BN_CLOSES, BARE, NORMALISED, "range_gap"),
    component_finding("BatchNorm after the convolution raises PSNR", BARE, NORMALISED),
    component_finding(f"Residual alignment {CLOSES}", BARE, ALIGNED, "range_gap"),
    component_finding(f"Residual alignment {CLOSES} better than BatchNorm", NORMALISED, ALIGNED, "range_gap"),
    component_finding("Residual alignment raises PSNR", BARE, ALIGNED),
    component_finding("Residual alignment is better than BatchNorm", NORMALISED, ALIGNED),
    component_finding("The activation inside the residual is better than after the add", AFTER, INSIDE),
    part_finding("body", "[]", "[body]"),
    part_finding("upsampling", "[body]", "[body,up]"),
    part_finding("head", "[body]", "[head,body]"),
    part_finding("tail", "[body]", "[body,tail]"),
    method_finding("ReActNet", "reactnet"),
    method_finding("BTM", "btm", "network.initial", "network.standardise"),
    method_finding("IR-Net", "irnet"),
    method_finding("Bi-Real Net", "bireal"),
    method_finding("BNN", "bnn"),
    method_finding("the full-precision Lite network", "lite", "channels"),
)


NOTHING, NO_PAIRS = Estimate(math.nan, math.nan, math.nan, 0, math.nan), Pairs(())


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What one setting says of a finding, on one test set or of one probe.

    ``where`` is the test set, or ``probes``; ``collapsed`` names the collapsed
    ones. ``ops_g`` and ``params_k`` are the change in cost. ``published`` is the same
    comparison in the paper's tables, as text. For what is not tested, the estimate has n = 0.
    """

    finding: Finding
    where: str
    status: Status
    reason: str
    estimate: Estimate = NOTHING
    by_seed: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    pairs: Pairs = NO_PAIRS
    collapsed: tuple[str, ...] = ()
    ops_g: float = math.nan
    params_k: float = math.nan
    published: str = ""


def comparable(found: Sequence[SettingResults]) -> list[list[SettingResults]]:
    """Group settings that differ only in what a published method sets, in order."""
    groups: dict[tuple[tuple[str, str], ...], list[SettingResults]] = {}
    for results in found:
        shared = {key: value for key, value in results.setting.items() if key not in METHOD_KEYS}
        groups.setdefault(tuple(sorted(shared.items())), []).append(results)
    return list(groups.values())


def together(group: Sequence[SettingResults]) -> SettingResults:
    """The results of a group as one, for comparing methods; its setting is the first one's."""
    if len(group) == 1:
        return group[0]
    return dataclasses.replace(
        group[0],
        trials=pd.concat([results.trials for results in group]),
        labels={cell: text for results in group for cell, text in results.labels.items()},
    )


def assessed(group: Sequence[SettingResults], margin: float = MARGIN_DB) -> list[Assessment]:
    """Test every finding on the settings of a group, in the order of :data:`FINDINGS`.

    A finding on factors takes its pairs from one setting, never across two. All claims on one test set are one family,
    and so are those on probes: their p are corrected for how many there are.
    """
    merged = together(group)
    rows = [row for finding in FINDINGS for row in measured(finding, group, merged)]
    families: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.status is not Status.NOT_TESTED:
            families.setdefault(row.where, []).append(index)
    for where, indices in families.items():
        family = [rows[index] for index in indices]
        judged = judged_by_probes(family) if where == "probes" else judged_by_psnr(family, margin)
        for index, row in zip(indices, judged, strict=True):
            rows[index] = row
    return rows


def measured(finding: Finding, group: Sequence[SettingResults], merged: SettingResults) -> list[Assessment]:
    candidates = [merged] if finding.on_methods else group
    found = [(results, pairs) for results in candidates if (pairs := pairs_of(finding, results)).cells]
    if not found:
        where = "" if finding.measure == PSNR else "probes"
        return [Assessment(finding, where, Status.NOT_TESTED, why_untested(finding, merged))]
    results, pairs = max(found, key=lambda one: len(one[1].cells))
    if finding.measure == PSNR:
        scores = {name: results.scores(f"{name}/psnr_db") for name in results.sets}
    else:
        scores = {"probes": probe_means(results, finding.measure)}
    return [row_of(finding, where, by_trial, results, pairs) for where, by_trial in scores.items()]


def probe_means(results: SettingResults, measure: str) -> dict[Identity, float]:
    """The mean of a probe over all binary units of a trial, for the trials that have one."""
    means = results.units.groupby(["cell", "seed"])[measure].mean().dropna()
    return dict(zip(means.index.tolist(), means.tolist(), strict=True))


def pairs_of(finding: Finding, results: SettingResults) -> Pairs:
    """The pairs of finished cells that test a finding: at its levels, and equal in every other factor.

    As for the contrasts, recorded levels are compared, and if no pair is equal in them, the levels that the user gave.
    Methods make one pair or none: with two widths of one method it is unknown which one the claim is about.
    """
    before, after = (side(finding, results, wanted) for wanted in (finding.before, finding.after))
    if finding.on_methods:
        alike = [f"setting/{key}" for key in METHOD_KEYS if key not in finding.brings]
        found = matches(before, after, [column for column in alike if column in results.cells])
        return Pairs(found if len(found) == 1 else ())
    named = {*finding.before, *finding.after}
    for kind in ("factor", "level"):
        columns = [f"{kind}/{factor}" for factor in results.factors if factor not in named]
        columns += [column for key in METHOD_KEYS if (column := f"setting/{key}") in results.cells]
        found = matches(before, after, columns)
        if found:
            return Pairs(found)
    return Pairs(())


def side(finding: Finding, results: SettingResults, wanted: Mapping[str, str]) -> pd.DataFrame:
    cells = results.cells
    for name, level in {**finding.where, **wanted}.items():
        column = "method" if name == "method" else f"factor/{name}"
        if column not in cells:
            return cells.iloc[:0]
        cells = cells.loc[np.array([is_level(str(value), level) for value in cells[column]], dtype=bool)]
    return cells


def is_level(recorded: str, wanted: str) -> bool:
    """Whether a recorded level, as text, is the wanted one; numbers are compared as numbers."""
    number = pd.to_numeric(pd.Series([recorded, wanted]), errors="coerce")
    return bool(number[0] > 1 if wanted == ABOVE_ONE else recorded == wanted or number[0] == number[1])


def why_untested(finding: Finding, merged: SettingResults) -> str:
    sides = {
        "; ".join(f"{name}={level}" for name, level in {**finding.where, **wanted}.items()): wanted
        for wanted in (finding.before, finding.after)
    }
    absent = [words for words, wanted in sides.items() if side(finding, merged, wanted).empty]
    if absent:
        return f"no finished cell with {' and none with '.join(absent)}"
    if finding.on_methods:
        return "no cell of one method that goes with just one of the other"
    return "no two finished cells of one setting that differ in nothing else"


def row_of(
    finding: Finding, where: str, scores: Mapping[Identity, float], results: SettingResults, pairs: Pairs
) -> Assessment:
    seeds = complete_seeds(results, pairs)
    seeds = tuple(seed for seed in seeds if all((cell, seed) in scores for cell in pairs.members))
    by_seed = differences(scores, pairs, seeds)
    return Assessment(
        finding,
        where,
        Status.UNDECIDED if seeds else Status.NOT_TESTED,
        "" if seeds else f"no seed has {finding.measure} of all cells of its pairs",
        estimate(by_seed),
        by_seed,
        seeds,
        tuple(seed for seed in results.seeds if seed not in seeds),
        pairs,
        tuple(results.labels[cell] for cell in collapsed_cells(results, pairs)),
        cost_change(results, pairs, "ops_g"),
        cost_change(results, pairs, "params_k"),
        in_the_paper(finding, where, results.setting.get("task.name", "")),
    )


PUBLISHED_LEVELS = {"[]": "full_precision", "[body]": "bbcu", "[body,up]": "bbcu binarize=[body,up]"}
"""The method of the paper's tables that has these binary parts and is BBCU otherwise."""


def in_the_paper(finding: Finding, where: str, task: str) -> str:
    """A comparison of methods in the paper's tables, on the test set or else on all of theirs; empty if not there."""
    if finding.measure != PSNR or finding.where:
        return ""
    paper = points()
    paper = paper[paper["task"] == task]
    methods_of = (
        wanted.get("method") or PUBLISHED_LEVELS.get(wanted.get("binarize", ""), "")
        for wanted in (finding.before, finding.after)
    )
    before, after = (paper[paper["method"] == name].set_index("test_set")["psnr_db"] for name in methods_of)
    found = (after - before).dropna()
    if where in found:
        return f"{found[where]:+.2f} dB"
    return "" if found.empty else f"{found.min():+.2f} to {found.max():+.2f} dB on {len(found)} sets"


def judged_by_psnr(family: Sequence[Assessment], margin: float) -> list[Assessment]:
    found = verdicts([row.by_seed for row in family], margin)
    return [
        dataclasses.replace(row, status=status_of(verdict.outcome, row.finding.sign), reason=verdict.reason)
        for row, verdict in zip(family, found, strict=True)
    ]


def status_of(outcome: Outcome, sign: int) -> Status:
    """What a verdict says of a predicted direction; a difference that is too small to matter contradicts it."""
    if outcome is Outcome.UNDECIDED:
        return Status.UNDECIDED
    predicted = Outcome.BETTER if sign > 0 else Outcome.WORSE
    return Status.SUPPORTED if outcome is predicted else Status.CONTRADICTED


def judged_by_probes(family: Sequence[Assessment]) -> list[Assessment]:
    """The claims on probes with their status: Student's test with Holm's correction. A probe has no margin."""
    varied = [bool(row.by_seed) and rounded(float(np.ptp(row.by_seed))) > 0 for row in family]
    corrected = holm([row.estimate.p if vary else math.nan for row, vary in zip(family, varied, strict=True)])
    found = []
    for row, p in zip(family, rounded(corrected.tolist()), strict=True):
        if math.isnan(p):
            alike = "the seeds give the same number, or none: no test"
            reason = alike if row.estimate.n > 1 else "one seed: no interval and no test"
        else:
            reason = f"corrected p = {p:.2g}"
        agrees = row.estimate.mean * row.finding.sign > 0
        status = Status.UNDECIDED if not p < ALPHA else Status.SUPPORTED if agrees else Status.CONTRADICTED
        found.append(dataclasses.replace(row, status=status, reason=reason))
    return found
