"""What each component is worth: cells that differ in one factor, paired within a seed."""

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
    ImageReading,
    IncompleteDataError,
    Summary,
    Verdict,
    estimate,
    over_images,
    summary,
    verdicts,
)
from analysis.study.methods import BBCU, UNTRAINED
from analysis.study.settings import Section, label

METHOD = "method"
"""What stands for the factor where whole methods are compared."""

STEP = "step"
"""What stands for the factor where a cell is compared with the one before it."""

MOST_STEPS = 12
"""More cells than this were not lined up by hand, and are no chain."""

MOST_MOVED = 2
"""A step of a chain moves so many factors at most, as from BatchNorm to alignment."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Cells that differ in one factor, base first, and the factors whose recorded level had to move along."""

    cells: tuple[tuple[str, str], ...]
    moved_along: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """What moving one factor from ``base`` to ``level`` does.

    ``by_seed`` holds, for each test set, the difference in dB, averaged over the pairs of cells within each of
    ``seeds``; ``psnr`` is what is estimated from it. ``dropped`` are the seeds under which some cell of a pair is not
    finished, and ``dead`` the cells of the pairs that have a trial whose binary body contributes nothing. ``verdicts``
    are those of the family of all contrasts on a test set, and ``images`` is the second reading, over pictures, where
    there is one. ``ops_g`` and ``params_k`` are the mean change in cost over the pairs.
    """

    factor: str
    base: str
    level: str
    pairs: Pairs
    seeds: tuple[int, ...]
    dropped: tuple[int, ...]
    dead: tuple[str, ...]
    by_seed: Mapping[str, tuple[float, ...]]
    psnr: Mapping[str, Estimate]
    verdicts: Mapping[str, Verdict]
    images: Mapping[str, ImageReading]
    ops_g: float
    params_k: float

    @property
    def cells(self) -> tuple[str, ...]:
        """Every cell of the pairs once."""
        return tuple(dict.fromkeys(cell for pair in self.pairs.cells for cell in pair))

    @property
    def runs(self) -> int:
        """How many runs the numbers rest on."""
        return len(self.cells) * len(self.seeds)

    @property
    def change(self) -> str:
        """What moves, in Markdown: ``residual: true → false``, or the two methods."""
        if self.factor == STEP:
            return f"{self.base} → {self.level}"
        moved = f"`{self.base}` → `{self.level}`"
        return moved if self.factor == METHOD else f"`{self.factor}`: {moved}"


@dataclasses.dataclass(frozen=True)
class CellSummary:
    """What one cell reaches, over the seeds under which it is finished.

    By test set: ``psnr`` (dB) and ``ssim``, ``over_baseline`` (dB, the mean over seeds), and ``to_anchor`` (dB, paired
    within a seed). ``train_s`` is the mean over seeds.
    """

    cell: str
    label: str
    is_anchor: bool
    seeds: tuple[int, ...]
    psnr: Mapping[str, Summary]
    ssim: Mapping[str, Summary]
    over_baseline: Mapping[str, float]
    to_anchor: Mapping[str, Estimate]
    ops_g: float
    params_k: float
    train_s: float


def contrasts(section: Section, margin: float = MARGIN_DB) -> list[Contrast]:
    """Every level against the base level of its factor, factors and levels in the order of the study.

    A factor that does not vary among the finished cells has none, nor has a level whose cells have no partner. The
    contrasts on one test set are one family: their verdicts are corrected for how many there are.
    """
    if section.methods:
        return judged(method_contrasts(section), section.sets, margin)
    found = [contrast(section, factor, change, pairs) for factor, change, pairs in factor_pairs(section)]
    return judged(found, section.sets, margin)


def from_the_reference(section: Section, margin: float = MARGIN_DB) -> list[Contrast]:
    """The same for one pair of cells each: what a level does alone, to the cell that is closest to the reference.

    Empty where all contrasts are such pairs already, or where some level has no such pair, as in a chain. The verdicts
    are those of a family of their own.
    """
    if section.methods or section.cells.empty:
        return []
    centre = anchor(section)
    found = []
    several, whole = False, True
    for factor, change, pairs in factor_pairs(section):
        alone = paired_cells(section, factor, *change, section.cells.index == centre)
        several |= alone.cells != pairs.cells
        whole &= bool(alone.cells)
        if alone.cells:
            found.append(contrast(section, factor, change, alone))
    return judged(found, section.sets, margin) if several and whole else []


def factor_pairs(section: Section) -> Iterator[tuple[str, tuple[str, str], Pairs]]:
    """Every factor with its base and another level, and the pairs of finished cells that differ in that alone."""
    for factor in section.factors:
        base, others = base_and_others(section, factor)
        for level in others:
            pairs = paired_cells(section, factor, base, level)
            if pairs.cells:
                yield factor, (base, level), pairs


def method_contrasts(section: Section) -> list[Contrast]:
    """Every trained method against BBCU, or against the first one where it is not there, in the order of the study."""
    base = anchor(section) if not section.cells.empty else ""
    others = section.cells.index[~section.cells["method"].isin(UNTRAINED)]
    return [
        contrast(section, METHOD, (section.methods[base], section.methods[cell]), Pairs(((base, cell),), ()))
        for cell in map(str, others)
        if cell != base
    ]


def steps(section: Section, margin: float = MARGIN_DB) -> list[Contrast]:
    """Each cell of a chain against the one before it, and the last against the first; empty where there is no chain.

    A chain is a few cells in a row of which each moves one or two factors of the one before, and of which some is
    farther than one factor from the reference, so that cells that differ in one factor alone do not show them all.
    """
    cells = [str(cell) for cell in section.cells.index]
    if section.methods or not 3 <= len(cells) <= MOST_STEPS:
        return []
    asked, recorded = levels_by_cell(section, "level"), levels_by_cell(section, "factor")
    moved = [moved_levels(recorded[one], recorded[other], asked[other]) for one, other in itertools.pairwise(cells)]
    centre = anchor(section)
    far = any(len(moved_levels(recorded[centre], recorded[cell], asked[cell])) > 1 for cell in cells)
    if not far or not all(1 <= len(each) <= MOST_MOVED for each in moved) or is_grid(list(asked.values())):
        return []
    texts = [label(each, section.factors) for each in moved]
    last = len(cells) - 1
    pairs = [*((n, n + 1, f"step {n + 2} ({text})") for n, text in enumerate(texts)), (0, last, f"step {last + 1}")]
    found = [
        contrast(section, STEP, (f"step {one + 1}", name), Pairs(((cells[one], cells[other]),), ()))
        for one, other, name in pairs
    ]
    return judged(found, section.sets, margin)


def levels_by_cell(section: Section, kind: str) -> dict[str, dict[str, str]]:
    """The levels of every finished cell, those asked for (``level``) or those recorded (``factor``)."""
    columns = [section.cells[f"{kind}/{factor}"].tolist() for factor in section.factors]
    rows = zip(*columns, strict=True)
    return {
        str(cell): dict(zip(section.factors, row, strict=True))
        for cell, row in zip(section.cells.index, rows, strict=True)
    }


def moved_levels(before: Mapping[str, str], after: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """The factors whose recorded level moves, with the level that was asked for."""
    return {factor: asked[factor] for factor, level in after.items() if before[factor] != level}


def is_grid(levels: Sequence[Mapping[str, str]]) -> bool:
    """Whether the cells are all combinations of their levels, which the factorial reading is about."""
    sizes = [len({row[factor] for row in levels}) for factor in levels[0]]
    return math.prod(sizes) <= len(levels)


def judged(found: Sequence[Contrast], sets: Sequence[str], margin: float) -> list[Contrast]:
    """The contrasts with the verdicts that their family allows on each test set."""
    families = {name: verdicts([each.by_seed[name] for each in found], margin) for name in sets}
    return [
        dataclasses.replace(each, verdicts={name: families[name][index] for name in sets})
        for index, each in enumerate(found)
    ]


def base_and_others(section: Section, factor: str) -> tuple[str, list[str]]:
    """The level that the others of a factor are measured against: the reference, or else the one listed first."""
    levels = [str(level) for level in section.cells[f"level/{factor}"].unique() if level != ""]
    if not levels:
        return "", []
    reference = section.results.reference.get(factor)
    base = reference if reference in levels else levels[0]
    return base, [level for level in levels if level != base]


def paired_cells(
    section: Section, factor: str, base: str, level: str, first: npt.NDArray[np.bool_] | None = None
) -> Pairs:
    """All pairs of finished cells that agree in every other factor; ``first`` says which cells may come first.

    Agreement is that of the recorded levels. Where no pair agrees in them, it is that of the levels asked for: an
    ``align=auto`` that follows ``bn`` then counts as equal, and is named as a factor that moved along.
    """
    others = [other for other in section.factors if other != factor]
    asked = section.cells[f"level/{factor}"]
    at_base = (asked == base) if first is None else (asked == base) & first
    for kind in ("factor", "level"):
        columns = [f"{kind}/{other}" for other in others]
        found = matches(section.cells[at_base], section.cells[asked == level], columns)
        if found:
            moved = tuple(other for other in others if moves(section.cells, found, other))
            return Pairs(found, moved)
    return Pairs((), ())


def matches(base: pd.DataFrame, other: pd.DataFrame, columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The cells of two frames that agree in all ``columns``."""

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


def moves(cells: pd.DataFrame, pairs: Sequence[tuple[str, str]], factor: str) -> bool:
    """Whether the two cells of some pair record different levels of a factor."""
    levels = dict(zip(cells["cell"].tolist(), cells[f"factor/{factor}"].tolist(), strict=True))
    return any(levels[base] != levels[other] for base, other in pairs)


def contrast(section: Section, factor: str, change: tuple[str, str], pairs: Pairs) -> Contrast:
    """The contrast over ``pairs``, for every test set and in cost, its verdicts still to come."""
    seeds = complete_seeds(section, pairs)
    by_seed = {name: differences(section.scores(f"{name}/psnr_db"), pairs, seeds) for name in section.sets}
    images = {name: image_reading(section, name, pairs, seeds) for name in section.sets}
    return Contrast(
        factor=factor,
        base=change[0],
        level=change[1],
        pairs=pairs,
        seeds=seeds,
        dropped=tuple(seed for seed in section.seeds if seed not in seeds),
        dead=dead_cells(section, pairs),
        by_seed=by_seed,
        psnr={name: estimate(values) for name, values in by_seed.items()},
        verdicts={},
        images={name: reading for name, reading in images.items() if reading is not None},
        ops_g=cost_change(section, pairs, "ops_g"),
        params_k=cost_change(section, pairs, "params_k"),
    )


def dead_cells(section: Section, pairs: Pairs) -> tuple[str, ...]:
    """The cells of the pairs that have a trial whose binary body contributes nothing."""
    involved = {cell for pair in pairs.cells for cell in pair}
    return tuple(dict.fromkeys(cell for cell, _ in section.dead if cell in involved))


def complete_seeds(section: Section, pairs: Pairs) -> tuple[int, ...]:
    """The seeds under which both cells of every pair are finished.

    A seed that lacks one pair would shift the average by what that pair differs from the others, so it is dropped.
    """
    finished = [set(section.seeds_of(cell)) for cell in {cell for pair in pairs.cells for cell in pair}]
    return tuple(sorted(set.intersection(*finished)))


def differences(scores: Mapping[Identity, float], pairs: Pairs, seeds: Sequence[int]) -> tuple[float, ...]:
    """The second cell's score less the first's under each seed, averaged over the pairs."""
    return tuple(
        float(np.mean([scores[other, seed] - scores[base, seed] for base, other in pairs.cells])) for seed in seeds
    )


def image_reading(section: Section, test_set: str, pairs: Pairs, seeds: Sequence[int]) -> ImageReading | None:
    """The difference over pictures, averaged over the pairs; None where trials did not keep each picture's score."""
    sides = [
        {
            seed: mean_by_picture([section.pictures(test_set, (pair[side], seed)) for pair in pairs.cells])
            for seed in seeds
        }
        for side in (1, 0)
    ]
    if not seeds or any(not scores for side in sides for scores in side.values()):
        return None
    try:
        return over_images(*sides)
    except IncompleteDataError:
        return None


def mean_by_picture(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each picture's score; empty where some cell lacks a picture that another has."""
    pictures = set(scores[0])
    if any(set(each) != pictures for each in scores):
        return {}
    return {picture: float(np.mean([each[picture] for each in scores])) for picture in sorted(pictures)}


def cost_change(section: Section, pairs: Pairs, name: str) -> float:
    """The mean change over pairs of a cost that a cell has under every seed alike."""
    cost = dict(zip(section.cells["cell"].tolist(), section.cells[f"metric/cost/{name}"].tolist(), strict=True))
    return float(np.mean([cost[other] - cost[base] for base, other in pairs.cells]))


def anchor(section: Section) -> str:
    """The finished cell with the most factors at their base level, the first of them where several have as many.

    Among methods it is BBCU, or the first one where that is not there.
    """
    if section.methods:
        ours = section.cells.index[section.cells["method"] == BBCU]
        return str(ours[0] if len(ours) else section.cells.index[0])
    at_base = pd.Series(0, index=section.cells.index)
    for factor in section.factors:
        at_base += (section.cells[f"level/{factor}"] == base_and_others(section, factor)[0]).astype(int)
    return str(at_base.idxmax())


def cell_summaries(section: Section) -> list[CellSummary]:
    """Every finished cell, the highest mean PSNR over all test sets first, then by key."""
    if section.cells.empty:
        return []
    centre = anchor(section)
    metrics = [f"{kind}{name}/{metric}" for name in section.sets for kind, metric in SCORES]
    columns = {name: section.scores(name) for name in [*metrics, *COSTS]}
    found = [cell_summary(section, cell, centre, columns) for cell in section.seeds_by_cell]
    return sorted(found, key=descending_psnr)


SCORES = (("", "psnr_db"), ("", "ssim"), ("baseline/", "psnr_db"))
COSTS = ("cost/ops_g", "cost/params_k", "timing/train_s")


def descending_psnr(cell: CellSummary) -> tuple[bool, float, str]:
    """A sort key; a PSNR that is not a number comes last."""
    mean = float(np.mean([score.mean for score in cell.psnr.values()]))
    return (bool(np.isnan(mean)), 0.0 if np.isnan(mean) else -mean, cell.cell)


def cell_summary(
    section: Section, cell: str, centre: str, columns: Mapping[str, Mapping[Identity, float]]
) -> CellSummary:
    """What one cell reaches, and how far that is from the cell ``centre``; ``columns`` hold every trial's metrics."""
    seeds = section.seeds_of(cell)
    shared = [seed for seed in seeds if seed in section.seeds_of(centre)]
    to_centre = Pairs(((centre, cell),), ())

    def values(metric: str) -> list[float]:
        return [columns[metric][cell, seed] for seed in seeds]

    psnr = {name: values(f"{name}/psnr_db") for name in section.sets}
    return CellSummary(
        cell=cell,
        label=section.labels[cell],
        is_anchor=cell == centre,
        seeds=tuple(seeds),
        psnr={name: summary(found) for name, found in psnr.items()},
        ssim={name: summary(values(f"{name}/ssim")) for name in section.sets},
        over_baseline={
            name: summary(np.subtract(found, values(f"baseline/{name}/psnr_db")).tolist()).mean
            for name, found in psnr.items()
        },
        to_anchor={name: estimate(differences(columns[f"{name}/psnr_db"], to_centre, shared)) for name in section.sets},
        ops_g=values("cost/ops_g")[0],
        params_k=values("cost/params_k")[0],
        train_s=summary(values("timing/train_s")).mean,
    )
