"""Estimate what each component is worth: cells that differ in one factor, paired within a seed."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from ablations.storage.folder import Identity
from analysis.statistics.estimates import (
    MARGIN_DB,
    Estimate,
    ImageEstimate,
    IncompleteDataError,
    Summary,
    Verdict,
    estimate,
    over_images,
    summary,
    verdicts,
)
from analysis.statistics.rounding import rounded, settled
from analysis.study.methods import BBCU, UNTRAINED
from analysis.study.settings import SettingResults, label

METHOD = "method"  # stands for the factor if whole methods are compared
STEP = "step"  # stands for the factor if a cell is compared with the one before it
MOST_STEPS = 12  # more cells than this were not put in a row by hand, so they are not a chain
MOST_MOVED = 2  # a step of a chain changes at most so many factors, as from BatchNorm to alignment


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Cells that differ in one factor, base first, and the factors whose recorded level changes with it."""

    cells: tuple[tuple[str, str], ...]
    moved_along: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """Every cell of the pairs once."""
        return tuple(dict.fromkeys(cell for pair in self.cells for cell in pair))


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The effect of changing one factor from ``base`` to ``level``.

    ``by_seed`` holds, for each test set, the difference in dB, averaged over the pairs of cells within each of
    ``seeds``; ``psnr`` is estimated from it. ``dropped`` are the seeds under which some cell of a pair is not
    finished, and ``collapsed`` the cells with a collapsed trial. ``verdicts`` are those of the family of all contrasts
    on a test set, and ``images`` holds estimates over pictures if their scores are recorded.
    ``ops_g`` and ``params_k`` are the mean change in cost over the pairs.
    """

    factor: str
    base: str
    level: str
    pairs: Pairs
    seeds: tuple[int, ...]
    dropped: tuple[int, ...]
    collapsed: tuple[str, ...]
    by_seed: Mapping[str, tuple[float, ...]]
    psnr: Mapping[str, Estimate]
    verdicts: Mapping[str, Verdict]
    images: Mapping[str, ImageEstimate]
    ops_g: float
    params_k: float

    @property
    def change(self) -> str:
        """What changes: ``residual: true → false``, or the two methods or steps."""
        moved = f"{self.base} → {self.level}"
        return moved if self.factor in (METHOD, STEP) else f"{self.factor}: {moved}"


@dataclasses.dataclass(frozen=True)
class CellSummary:
    """The scores of one cell over the seeds under which it is finished.

    By test set: ``psnr`` (dB) and ``ssim``, ``over_baseline`` (dB, the mean over seeds), and ``to_reference``
    (dB, paired within a seed). ``train_s`` is the mean over seeds.
    """

    cell: str
    label: str
    is_reference: bool
    seeds: tuple[int, ...]
    psnr: Mapping[str, Summary]
    ssim: Mapping[str, Summary]
    over_baseline: Mapping[str, float]
    to_reference: Mapping[str, Estimate]
    ops_g: float
    params_k: float
    train_s: float


def contrasts(results: SettingResults, margin: float = MARGIN_DB) -> list[Contrast]:
    """Compare every level with the base level of its factor, in the order of the study.

    A level whose cells have no partner is left out. The contrasts on one test set are one family: their verdicts are
    corrected for how many there are. If the study compares methods, each is compared with BBCU.
    """
    if results.methods:
        return judged(method_contrasts(results), results.sets, margin)
    found = [contrast(results, factor, change, pairs) for factor, change, pairs in changes(results)]
    return judged(found, results.sets, margin)


def from_the_reference(results: SettingResults, margin: float = MARGIN_DB) -> list[Contrast]:
    """The same with one pair of cells each: what a level does alone, to the cell that is closest to the reference.

    Empty if all contrasts are such pairs already, or if some level has no such pair, as in a chain. These verdicts are
    a family of their own.
    """
    if results.methods or results.cells.empty:
        return []
    centre = reference_cell(results)
    found = []
    several, complete = False, True
    for factor, change, pairs in changes(results):
        alone = paired_cells(results, factor, *change, results.cells.index == centre)
        several |= alone.cells != pairs.cells
        complete &= bool(alone.cells)
        if alone.cells:
            found.append(contrast(results, factor, change, alone))
    return judged(found, results.sets, margin) if several and complete else []


def changes(results: SettingResults) -> Iterator[tuple[str, tuple[str, str], Pairs]]:
    """Every factor with its base and another level, and the pairs of finished cells that differ in that alone."""
    for factor in results.factors:
        base, others = base_and_others(results, factor)
        for level in others:
            pairs = paired_cells(results, factor, base, level)
            if pairs.cells:
                yield factor, (base, level), pairs


def method_contrasts(results: SettingResults) -> list[Contrast]:
    """Every trained method against BBCU, or against the first one if BBCU is missing, in the order of the study."""
    base = reference_cell(results) if not results.cells.empty else ""
    others = results.cells.index[~results.cells["method"].isin(UNTRAINED)]
    return [
        contrast(results, METHOD, (results.methods[base], results.methods[cell]), Pairs(((base, cell),)))
        for cell in map(str, others)
        if cell != base
    ]


def steps(results: SettingResults, margin: float = MARGIN_DB) -> list[Contrast]:
    """Compare each cell of a chain with the one before it, and the last with the first; empty if there is no chain.

    A chain is a few cells in a row, each of which changes one or two factors of the one before. Some cell is more than
    one factor away from the reference, so that contrasts of a single factor do not show them all.
    """
    cells = [str(cell) for cell in results.cells.index]
    if results.methods or not 3 <= len(cells) <= MOST_STEPS:
        return []
    asked, recorded = levels_by_cell(results, "level"), levels_by_cell(results, "factor")
    moved = [moved_levels(recorded[one], recorded[other], asked[other]) for one, other in itertools.pairwise(cells)]
    centre = reference_cell(results)
    far = any(len(moved_levels(recorded[centre], recorded[cell], asked[cell])) > 1 for cell in cells)
    if not far or not all(1 <= len(each) <= MOST_MOVED for each in moved) or is_grid(list(asked.values())):
        return []
    texts = [label(each, results.factors) for each in moved]
    last = len(cells) - 1
    pairs = [*((n, n + 1, f"step {n + 2} ({text})") for n, text in enumerate(texts)), (0, last, f"step {last + 1}")]
    found = [
        contrast(results, STEP, (f"step {one + 1}", name), Pairs(((cells[one], cells[other]),)))
        for one, other, name in pairs
    ]
    return judged(found, results.sets, margin)


def levels_by_cell(results: SettingResults, kind: str) -> dict[str, dict[str, str]]:
    """The levels of every finished cell, as the user gave them (``level``) or as recorded (``factor``)."""
    columns = [results.cells[f"{kind}/{factor}"].tolist() for factor in results.factors]
    rows = (dict(zip(results.factors, row, strict=True)) for row in zip(*columns, strict=True))
    return dict(zip(map(str, results.cells.index), rows, strict=True))


def moved_levels(before: Mapping[str, str], after: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """The factors whose recorded level changes, with the level as the user gave it."""
    return {factor: asked[factor] for factor, level in after.items() if before[factor] != level}


def is_grid(levels: Sequence[Mapping[str, str]]) -> bool:
    """Whether the cells are all combinations of their levels, which is a factorial design."""
    sizes = [len({row[factor] for row in levels}) for factor in levels[0]]
    return math.prod(sizes) <= len(levels)


def judged(found: Sequence[Contrast], sets: Sequence[str], margin: float) -> list[Contrast]:
    families = {name: verdicts([each.by_seed[name] for each in found], margin) for name in sets}
    return [
        dataclasses.replace(each, verdicts={name: families[name][index] for name in sets})
        for index, each in enumerate(found)
    ]


def base_and_others(results: SettingResults, factor: str) -> tuple[str, list[str]]:
    """The level that the others of a factor are measured against: the reference, or else the one listed first."""
    levels = [str(level) for level in results.cells[f"level/{factor}"].unique() if level != ""]
    if not levels:
        return "", []
    reference = results.study.reference.get(factor)
    base = reference if reference in levels else levels[0]
    return base, [level for level in levels if level != base]


def paired_cells(
    results: SettingResults, factor: str, base: str, level: str, first: npt.NDArray[np.bool_] | None = None
) -> Pairs:
    """All pairs of finished cells that agree in every other factor; ``first`` says which cells may come first.

    Recorded levels are compared. If no pair agrees in them, the levels that the user gave are: an ``align=auto`` that
    follows ``bn`` then counts as equal, and is listed as a factor that moved along.
    """
    others = [other for other in results.factors if other != factor]
    asked = results.cells[f"level/{factor}"]
    at_base = (asked == base) if first is None else (asked == base) & first
    for kind in ("factor", "level"):
        columns = [f"{kind}/{other}" for other in others]
        found = matches(results.cells[at_base], results.cells[asked == level], columns)
        if found:
            recorded = levels_by_cell(results, "factor")
            moved = (other for other in others if any(recorded[a][other] != recorded[b][other] for a, b in found))
            return Pairs(found, tuple(moved))
    return Pairs(())


def matches(base: pd.DataFrame, other: pd.DataFrame, columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of cells of two frames that agree in all ``columns``."""

    def levels(cells: pd.DataFrame) -> list[tuple[str, ...]]:
        return list(zip(*(cells[column].tolist() for column in columns), strict=True)) if columns else [()] * len(cells)

    partners: dict[tuple[str, ...], list[str]] = {}
    for cell, found in zip(other["cell"].tolist(), levels(other), strict=True):
        partners.setdefault(found, []).append(cell)
    return tuple(
        (cell, partner)
        for cell, found in zip(base["cell"].tolist(), levels(base), strict=True)
        for partner in partners.get(found, [])
    )


def contrast(results: SettingResults, factor: str, change: tuple[str, str], pairs: Pairs) -> Contrast:
    """The contrast over ``pairs``, for every test set and in cost, without verdicts."""
    seeds = complete_seeds(results, pairs)
    by_seed = {name: differences(results.scores(f"{name}/psnr_db"), pairs, seeds) for name in results.sets}
    images = {name: image_estimate(results, name, pairs, seeds) for name in results.sets}
    return Contrast(
        factor=factor,
        base=change[0],
        level=change[1],
        pairs=pairs,
        seeds=seeds,
        dropped=tuple(seed for seed in results.seeds if seed not in seeds),
        collapsed=collapsed_cells(results, pairs),
        by_seed=by_seed,
        psnr={name: estimate(values) for name, values in by_seed.items()},
        verdicts={},
        images={name: found for name, found in images.items() if found is not None},
        ops_g=cost_change(results, pairs, "ops_g"),
        params_k=cost_change(results, pairs, "params_k"),
    )


def collapsed_cells(results: SettingResults, pairs: Pairs) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cell for cell, _ in results.collapsed if cell in pairs.members))


def complete_seeds(results: SettingResults, pairs: Pairs) -> tuple[int, ...]:
    """The seeds under which both cells of every pair are finished.

    A seed that lacks one pair would shift the average by how that pair differs from the others, so it is dropped.
    """
    finished = [set(results.seeds_of(cell)) for cell in pairs.members]
    return tuple(sorted(set.intersection(*finished)))


def differences(scores: Mapping[Identity, float], pairs: Pairs, seeds: Sequence[int]) -> tuple[float, ...]:
    """The second cell's score minus the first's under each seed, averaged over the pairs."""
    means = [np.mean([scores[other, seed] - scores[base, seed] for base, other in pairs.cells]) for seed in seeds]
    return tuple(settled(means).tolist())


def image_estimate(results: SettingResults, test_set: str, pairs: Pairs, seeds: Sequence[int]) -> ImageEstimate | None:
    """The difference over pictures, averaged over the pairs; None if trials did not record each picture's score."""
    try:
        return over_images({seed: picture_differences(results, test_set, pairs, seed) for seed in seeds})
    except IncompleteDataError:
        return None


def picture_differences(results: SettingResults, test_set: str, pairs: Pairs, seed: int) -> dict[str, float]:
    """The second cell's score minus the first's in each picture; empty if some cell lacks a picture of another."""
    scores = {cell: results.pictures(test_set, (cell, seed)) for cell in pairs.members}
    pictures = scores[pairs.cells[0][0]].keys()
    if any(found.keys() != pictures for found in scores.values()):
        return {}
    return {
        picture: float(np.mean([scores[other][picture] - scores[base][picture] for base, other in pairs.cells]))
        for picture in sorted(pictures)
    }


def cost_change(results: SettingResults, pairs: Pairs, name: str) -> float:
    """The mean change over pairs of a cost, which does not depend on the seed."""
    cost = dict(zip(results.cells["cell"].tolist(), results.cells[f"metric/cost/{name}"].tolist(), strict=True))
    return float(np.mean([cost[other] - cost[base] for base, other in pairs.cells]))


def reference_cell(results: SettingResults) -> str:
    """The finished cell with the most factors at their base level, the first of several.

    Among methods it is BBCU, or the first one if BBCU is missing.
    """
    if results.methods:
        ours = results.cells.index[results.cells["method"] == BBCU]
        return str(ours[0] if len(ours) else results.cells.index[0])
    at_base = pd.Series(0, index=results.cells.index)
    for factor in results.factors:
        at_base += (results.cells[f"level/{factor}"] == base_and_others(results, factor)[0]).astype(int)
    return str(at_base.idxmax())


def cell_summaries(results: SettingResults) -> list[CellSummary]:
    """Every finished cell, the highest mean PSNR over all test sets first, then by key."""
    if results.cells.empty:
        return []
    centre = reference_cell(results)
    scored = [f"{kind}{name}/{metric}" for name in results.sets for kind, metric in SCORES]
    metrics = {name: results.scores(name) for name in [*scored, *COSTS]}
    found = [cell_summary(results, cell, centre, metrics) for cell in results.seeds_by_cell]
    return sorted(found, key=descending_psnr)


SCORES = (("", "psnr_db"), ("", "ssim"), ("baseline/", "psnr_db"))
COSTS = ("cost/ops_g", "cost/params_k", "timing/train_s")


def descending_psnr(cell: CellSummary) -> tuple[bool, float, str]:
    """A sort key; a PSNR that is not a number comes last, and equal ones are ordered by the cell's key."""
    mean = rounded(float(np.mean([score.mean for score in cell.psnr.values()])))
    return (math.isnan(mean), -mean if mean == mean else 0.0, cell.cell)


def cell_summary(
    results: SettingResults, cell: str, centre: str, metrics: Mapping[str, Mapping[Identity, float]]
) -> CellSummary:
    """The scores of one cell, and their distance to the cell ``centre``; ``metrics`` holds those of every trial."""
    seeds = results.seeds_of(cell)
    shared = [seed for seed in seeds if seed in results.seeds_of(centre)]
    to_centre = Pairs(((centre, cell),))

    def values(metric: str) -> list[float]:
        return [metrics[metric][cell, seed] for seed in seeds]

    psnr = {name: values(f"{name}/psnr_db") for name in results.sets}
    return CellSummary(
        cell=cell,
        label=results.labels[cell],
        is_reference=cell == centre,
        seeds=tuple(seeds),
        psnr={name: summary(found) for name, found in psnr.items()},
        ssim={name: summary(values(f"{name}/ssim")) for name in results.sets},
        over_baseline={
            name: summary(np.subtract(found, values(f"baseline/{name}/psnr_db")).tolist()).mean
            for name, found in psnr.items()
        },
        to_reference={
            name: estimate(differences(metrics[f"{name}/psnr_db"], to_centre, shared)) for name in results.sets
        },
        ops_g=values("cost/ops_g")[0],
        params_k=values("cost/params_k")[0],
        train_s=summary(values("timing/train_s")).mean,
    )
