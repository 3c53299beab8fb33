"""The claims of the BBCU paper (ICLR 2023) as contrasts between cells, each with the direction that it predicts.

A claim is put to the cells that there are, whatever study they come from, and may well turn out wrong: small networks,
short trainings and other pictures are other conditions than the paper's. What no pair of cells tests is said to be so.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.effects.contrasts import Pairs, complete_seeds, cost_change, dead_cells, differences, matches
from analysis.published.tables import points
from analysis.statistics.estimates import ALPHA, MARGIN_DB, Estimate, Outcome, estimate, holm, verdicts
from analysis.study.settings import Section

PSNR = "PSNR"
"""The measure of a claim about quality, in dB on each test set; any other measure is a probe."""

PROBES = {
    "output_loss": "Output loss: the share of a binary unit's output that binarising loses, after the best linear fit "
    "in each channel, 0 for none and 1 for all; the mean over the units.",
    "range_gap": "Range gap: by how many powers of ten the deviation of a unit's branch exceeds that of the residual "
    "that it is added to, 0 where it does not; the mean over the units.",
}
"""What a measure that is a probe is, for a reader of its claims."""

METHOD_KEYS = ("channels", "network.initial", "network.standardise", "network.accumulate")
"""The part of a setting that a published method brings along: methods that differ in it may be compared."""

ABOVE_ONE = ">1"
"""Any residual alignment that is switched on."""


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
    methods names them under ``method`` and compares the methods as published, with the keys of the setting that they
    bring along; the others are alike.
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
        """Whether whole methods are compared."""
        return "method" in self.after

    @property
    def predicted(self) -> str:
        """The direction in words."""
        return f"{self.measure.replace('_', ' ')} {'rises' if self.sign > 0 else 'falls'}"

    @property
    def change(self) -> str:
        """The contrast in words: ``residual: false → true``."""
        names = dict.fromkeys([*self.before, *self.after])
        moved = ", ".join(f"{name}: {self.before.get(name, '')} → {self.after.get(name, '')}" for name in names)
        held = ", ".join(f"{name}={level}" for name, level in self.where.items())
        return f"{moved} at {held}" if held else moved


def levels(**given: str) -> dict[str, str]:
    """Levels by factor."""
    return given


BARE = levels(bn="none", align="1")
ALIGNED = levels(bn="none", align=ABOVE_ONE)
NORMALISED = levels(bn="post", align="1")
WITH_RESIDUAL = levels(residual="true")


def part_finding(part: str, before: str, after: str) -> Finding:
    """What binarising one more part costs; what it saves is shown beside it."""
    return Finding(f"Binarising the {part} costs PSNR", PSNR, levels(binarize=before), levels(binarize=after), -1)


def method_finding(name: str, method: str, *brings: str) -> Finding:
    """That BBCU is better than another method."""
    claim = f"BBCU is better than {name}"
    return Finding(claim, PSNR, levels(method=method), levels(method="bbcu"), +1, brings=brings)


FINDINGS: tuple[Finding, ...] = (
    Finding(
        "The residual reduces what a unit loses of its output",
        "output_loss",
        levels(residual="false"),
        levels(residual="true"),
        -1,
    ),
    Finding("The residual raises PSNR", PSNR, levels(residual="false"), levels(residual="true"), +1),
    Finding(
        "BatchNorm after the convolution closes the gap between the ranges of residual and branch",
        "range_gap",
        BARE,
        NORMALISED,
        -1,
        WITH_RESIDUAL,
    ),
    Finding("BatchNorm after the convolution raises PSNR", PSNR, BARE, NORMALISED, +1, WITH_RESIDUAL),
    Finding("Residual alignment closes the gap between the ranges", "range_gap", BARE, ALIGNED, -1, WITH_RESIDUAL),
    Finding(
        "Residual alignment closes the gap between the ranges better than BatchNorm",
        "range_gap",
        NORMALISED,
        ALIGNED,
        -1,
        WITH_RESIDUAL,
    ),
    Finding("Residual alignment raises PSNR", PSNR, BARE, ALIGNED, +1, WITH_RESIDUAL),
    Finding("Residual alignment is better than BatchNorm", PSNR, NORMALISED, ALIGNED, +1, WITH_RESIDUAL),
    Finding(
        "The activation inside the residual is better than after the add",
        PSNR,
        levels(act="after"),
        levels(act="inside"),
        +1,
        WITH_RESIDUAL,
    ),
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


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What one setting says of a finding, on one test set or of one probe.

    ``where`` is the test set, or ``probes``; ``pairs`` are the pairs of cells, and ``dead`` names those of them whose
    binary body contributes nothing. ``ops_g`` and ``params_k`` are the change in cost. ``published`` is what the
    paper's tables give for the same comparison, in words. For what is not tested, the estimate has n = 0.
    """

    finding: Finding
    where: str
    status: Status
    reason: str
    estimate: Estimate
    by_seed: tuple[float, ...]
    seeds: tuple[int, ...]
    dropped: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]
    dead: tuple[str, ...]
    ops_g: float
    params_k: float
    published: str = ""

    @property
    def n_pairs(self) -> int:
        """How many pairs of cells are compared."""
        return len(self.pairs)


NOTHING = Estimate(math.nan, math.nan, math.nan, 0, math.nan)


def comparable(found: Sequence[Section]) -> list[list[Section]]:
    """The sections whose settings differ in nothing but what a published method brings along, in order."""
    groups: dict[tuple[tuple[str, str], ...], list[Section]] = {}
    for section in found:
        shared = {key: value for key, value in section.setting.items() if key not in METHOD_KEYS}
        groups.setdefault(tuple(sorted(shared.items())), []).append(section)
    return list(groups.values())


def together(group: Sequence[Section]) -> Section:
    """The sections of a group as one, for comparing methods; the first one gives its setting."""
    if len(group) == 1:
        return group[0]
    return dataclasses.replace(
        group[0],
        trials=pd.concat([section.trials for section in group]),
        labels={cell: text for section in group for cell, text in section.labels.items()},
    )


def assessed(group: Sequence[Section], margin: float = MARGIN_DB) -> list[Assessment]:
    """Every finding put to the sections of a group, in the order of :data:`FINDINGS`.

    A finding on factors takes its pairs from one section each, never across two. All claims on one test set are one
    family, and so are those on probes: their p are corrected for how many there are.
    """
    merged = together(group)
    rows = [row for finding in FINDINGS for row in measured(finding, group, merged)]
    families: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.status is not Status.NOT_TESTED:
            families.setdefault(row.where, []).append(index)
    for where, indices in families.items():
        judge = by_probes if where == "probes" else by_psnr(margin)
        for index, row in zip(indices, judge([rows[index] for index in indices]), strict=True):
            rows[index] = row
    return rows


def measured(finding: Finding, group: Sequence[Section], merged: Section) -> list[Assessment]:
    """What the cells say of one finding, a row per test set or one for a probe; the status is still to come."""
    sections = [merged] if finding.on_methods else group
    found = [(section, pairs) for section in sections if (pairs := pairs_of(finding, section)).cells]
    if not found:
        return [untested(finding, why_untested(finding, merged))]
    section, pairs = max(found, key=lambda one: len(one[1].cells))
    seeds = complete_seeds(section, pairs)
    if finding.measure != PSNR:
        return [probe_row(finding, section, pairs, seeds)]
    return [
        row_of(finding, name, differences(section.scores(f"{name}/psnr_db"), pairs, seeds), section, pairs, seeds)
        for name in section.sets
    ]


def pairs_of(finding: Finding, section: Section) -> Pairs:
    """The pairs of finished cells that test a finding: at its levels, and alike in every other factor.

    As for the contrasts, likeness is that of recorded levels, and where no pair is alike in them, of those asked for.
    Methods make one pair or none: with two widths of one method there is no telling which the claim is about.
    """
    sides = [side(finding, section, wanted) for wanted in (finding.before, finding.after)]
    if finding.on_methods:
        alike = [f"setting/{key}" for key in METHOD_KEYS if key not in finding.brings]
        found = matches(sides[0], sides[1], [column for column in alike if column in section.cells])
        return Pairs(found if len(found) == 1 else (), ())
    named = {*finding.before, *finding.after}
    for kind in ("factor", "level"):
        columns = [f"{kind}/{factor}" for factor in section.factors if factor not in named]
        columns += [column for key in METHOD_KEYS if (column := f"setting/{key}") in section.cells]
        found = matches(sides[0], sides[1], columns)
        if found:
            return Pairs(found, ())
    return Pairs((), ())


def side(finding: Finding, section: Section, wanted: Mapping[str, str]) -> pd.DataFrame:
    """The finished cells on one side of a finding."""
    cells = section.cells
    for name, level in {**finding.where, **wanted}.items():
        column = "method" if name == "method" else f"factor/{name}"
        if column not in cells:
            return cells.iloc[:0]
        cells = cells.loc[np.array([is_level(str(value), level) for value in cells[column]], dtype=bool)]
    return cells


def is_level(recorded: str, wanted: str) -> bool:
    """Whether a recorded level is the wanted one, however a list or a number is spelt."""
    if wanted == ABOVE_ONE:
        return as_number(recorded) > 1
    if math.isfinite(as_number(wanted)):
        return as_number(recorded) == as_number(wanted)
    return recorded.replace(" ", "").replace("'", "").lower() == wanted


def as_number(text: str) -> float:
    """The number in a text, NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def why_untested(finding: Finding, merged: Section) -> str:
    """Which side of a finding has no cell, or that no two cells are alike otherwise."""
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


def untested(finding: Finding, reason: str) -> Assessment:
    """A finding that no pair of cells tests."""
    where = "" if finding.measure == PSNR else "probes"
    return Assessment(finding, where, Status.NOT_TESTED, reason, NOTHING, (), (), (), (), (), math.nan, math.nan)


def row_of(
    finding: Finding,
    where: str,
    by_seed: tuple[float, ...],
    section: Section,
    pairs: Pairs,
    seeds: tuple[int, ...],
) -> Assessment:
    """A finding with its numbers."""
    status, reason = Status.UNDECIDED, ""
    if not seeds:
        status, reason = Status.NOT_TESTED, "no seed has all cells of its pairs"
    return Assessment(
        finding,
        where,
        status,
        reason,
        estimate(by_seed),
        by_seed,
        seeds,
        tuple(seed for seed in section.seeds if seed not in seeds),
        pairs.cells,
        tuple(section.labels[cell] for cell in dead_cells(section, pairs)),
        cost_change(section, pairs, "ops_g"),
        cost_change(section, pairs, "params_k"),
        in_the_paper(finding, where, section.setting.get("task.name", "")),
    )


PUBLISHED_LEVELS = {"[]": "full_precision", "[body]": "bbcu", "[body,up]": "bbcu binarize=[body,up]"}
"""Which method of the paper's tables has which binary parts and is BBCU otherwise."""


def in_the_paper(finding: Finding, where: str, task: str) -> str:
    """What the paper's tables give for a comparison of methods, on the test set or else on all of theirs."""
    if finding.measure != PSNR or finding.where:
        return ""
    sides = [
        wanted.get("method") or PUBLISHED_LEVELS.get(wanted.get("binarize", ""), "")
        for wanted in (finding.before, finding.after)
    ]
    paper = points()
    paper = paper[paper["task"] == task]
    before, after = (paper[paper["method"] == method].set_index("test_set")["psnr_db"] for method in sides)
    found = (after - before).dropna()
    if where in found:
        return f"{found[where]:+.2f} dB"
    if found.empty:
        return ""
    return f"{found.min():+.2f} to {found.max():+.2f} dB on {len(found)} sets"


def probe_row(finding: Finding, section: Section, pairs: Pairs, seeds: tuple[int, ...]) -> Assessment:
    """A finding on a probe, its mean over all binary units of a trial being what is compared."""
    if section.units.empty:
        return untested(finding, "the trials of these cells left no probes")
    found = section.units.groupby(["cell", "seed"], as_index=False)[finding.measure].mean().dropna()
    identities = zip(found["cell"].tolist(), found["seed"].tolist(), strict=True)
    means = dict(zip(identities, found[finding.measure].tolist(), strict=True))
    probed = tuple(seed for seed in seeds if all((cell, seed) in means for pair in pairs.cells for cell in pair))
    if not probed:
        return untested(finding, f"no seed has {finding.measure} of all cells of its pairs")
    return row_of(finding, "probes", differences(means, pairs, probed), section, pairs, probed)


def by_psnr(margin: float) -> Callable[[Sequence[Assessment]], list[Assessment]]:
    """The judge of a family of claims on a test set, by :func:`analysis.statistics.estimates.verdicts`."""

    def judge(family: Sequence[Assessment]) -> list[Assessment]:
        found = verdicts([row.by_seed for row in family], margin)
        return [
            dataclasses.replace(row, status=status_of(verdict.outcome, row.finding.sign), reason=verdict.reason)
            for row, verdict in zip(family, found, strict=True)
        ]

    return judge


def status_of(outcome: Outcome, sign: int) -> Status:
    """What a verdict says of a predicted direction; a difference that is too small to matter contradicts it."""
    if outcome is Outcome.UNDECIDED:
        return Status.UNDECIDED
    predicted = Outcome.BETTER if sign > 0 else Outcome.WORSE
    return Status.SUPPORTED if outcome is predicted else Status.CONTRADICTED


def by_probes(family: Sequence[Assessment]) -> list[Assessment]:
    """The judge of the claims on probes: Student's test by Holm. A probe has no margin, so none is equivalent."""
    replicated = [bool(np.ptp(row.by_seed) > 0) if row.by_seed else False for row in family]
    raw = [row.estimate.p if varied else math.nan for row, varied in zip(family, replicated, strict=True)]
    corrected = holm(raw)
    return [judged_probe(row, float(p)) for row, p in zip(family, corrected, strict=True)]


def judged_probe(row: Assessment, p: float) -> Assessment:
    """One claim on a probe with its status."""
    if row.estimate.n < 2:
        return dataclasses.replace(row, reason="one seed: no interval and no test")
    if math.isnan(p):
        return dataclasses.replace(row, reason="the seeds give one and the same number, or none: no test")
    if p >= ALPHA:
        return dataclasses.replace(row, reason=f"corrected p = {p:.2g}")
    agrees = row.estimate.mean * row.finding.sign > 0
    status = Status.SUPPORTED if agrees else Status.CONTRADICTED
    return dataclasses.replace(row, status=status, reason=f"corrected p = {p:.2g}")
