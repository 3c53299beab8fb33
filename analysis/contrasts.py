"""What each component is worth: cells that differ in one factor, paired within a seed."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.sections import Section
from analysis.statistics import Estimate, Summary, paired_difference, summary


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Cells that differ in one factor, base first, and the factors whose recorded level had to move along."""

    cells: tuple[tuple[str, str], ...]
    moved_along: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """What moving one factor from ``base`` to ``level`` does.

    ``psnr`` holds, for each test set, the difference in dB, averaged over the pairs of cells within a seed and then
    estimated over ``seeds``; ``dropped`` are the seeds under which some cell of a pair is not finished. ``ops_g`` and
    ``params_k`` are the mean change in cost over the pairs.
    """

    factor: str
    base: str
    level: str
    pairs: Pairs
    seeds: tuple[int, ...]
    dropped: tuple[int, ...]
    psnr: Mapping[str, Estimate]
    ops_g: float
    params_k: float


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


def contrasts(section: Section) -> list[Contrast]:
    """Every level against the base level of its factor, factors and levels in the order of the study.

    A factor that does not vary among the finished cells has none, nor has a level whose cells have no partner.
    """
    found = []
    for factor in section.factors:
        base, others = base_and_others(section, factor)
        for level in others:
            pairs = paired_cells(section, factor, base, level)
            if pairs.cells:
                found.append(contrast(section, factor, (base, level), pairs))
    return found


def base_and_others(section: Section, factor: str) -> tuple[str, list[str]]:
    """The level that the others of a factor are measured against: the reference, or else the one listed first."""
    levels = [str(level) for level in section.cells[f"level/{factor}"].unique() if level != ""]
    if not levels:
        return "", []
    reference = section.results.reference.get(factor)
    base = reference if reference in levels else levels[0]
    return base, [level for level in levels if level != base]


def paired_cells(section: Section, factor: str, base: str, level: str) -> Pairs:
    """All pairs of finished cells that agree in every other factor.

    Agreement is that of the recorded levels. Where no pair agrees in them, it is that of the levels asked for: an
    ``align=auto`` that follows ``bn`` then counts as equal, and is named as a factor that moved along.
    """
    others = [other for other in section.factors if other != factor]
    asked = section.cells[f"level/{factor}"]
    for kind in ("factor", "level"):
        columns = [f"{kind}/{other}" for other in others]
        found = matches(section.cells[asked == base], section.cells[asked == level], columns)
        if found:
            moved = tuple(other for other in others if any(moves(section.cells, pair, other) for pair in found))
            return Pairs(found, moved)
    return Pairs((), ())


def matches(base: pd.DataFrame, other: pd.DataFrame, columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The cells of two frames that agree in all ``columns``."""
    partners: dict[tuple[str, ...], list[str]] = {}
    for cell, row in other.iterrows():
        partners.setdefault(tuple(row[list(columns)]), []).append(str(cell))
    return tuple(
        (str(cell), partner) for cell, row in base.iterrows() for partner in partners.get(tuple(row[list(columns)]), [])
    )


def moves(cells: pd.DataFrame, pair: tuple[str, str], factor: str) -> bool:
    """Whether the two cells of a pair record different levels of a factor."""
    column = cells[f"factor/{factor}"]
    return bool(column[pair[0]] != column[pair[1]])


def contrast(section: Section, factor: str, change: tuple[str, str], pairs: Pairs) -> Contrast:
    """The contrast over ``pairs``, for every test set and in cost."""
    seeds = complete_seeds(section, pairs)
    return Contrast(
        factor=factor,
        base=change[0],
        level=change[1],
        pairs=pairs,
        seeds=seeds,
        dropped=tuple(seed for seed in section.seeds if seed not in seeds),
        psnr={name: difference(section.scores(f"{name}/psnr_db"), pairs, seeds) for name in section.sets},
        ops_g=cost_change(section, pairs, "ops_g"),
        params_k=cost_change(section, pairs, "params_k"),
    )


def complete_seeds(section: Section, pairs: Pairs) -> tuple[int, ...]:
    """The seeds under which both cells of every pair are finished.

    A seed that lacks one pair would shift the average by what that pair differs from the others, so it is dropped.
    """
    finished = [set(section.seeds_of(cell)) for cell in {cell for pair in pairs.cells for cell in pair}]
    return tuple(sorted(set.intersection(*finished)))


def difference(scores: "pd.Series", pairs: Pairs, seeds: Sequence[int]) -> Estimate:
    """The mean over pairs of the second cell's score less the first's, estimated over seeds."""

    def mean_over_pairs(side: int, seed: int) -> float:
        return float(np.mean([scores[pair[side], seed] for pair in pairs.cells]))

    return paired_difference([mean_over_pairs(1, seed) for seed in seeds], [mean_over_pairs(0, seed) for seed in seeds])


def cost_change(section: Section, pairs: Pairs, name: str) -> float:
    """The mean change over pairs of a cost that a cell has under every seed alike."""
    cost = section.cells[f"metric/cost/{name}"]
    return float(np.mean([cost[other] - cost[base] for base, other in pairs.cells]))


def anchor(section: Section) -> str:
    """The finished cell with the most factors at their base level, the first of them where several have as many."""
    at_base = pd.Series(0, index=section.cells.index)
    for factor in section.factors:
        at_base += (section.cells[f"level/{factor}"] == base_and_others(section, factor)[0]).astype(int)
    return str(at_base.idxmax())


def cell_summaries(section: Section) -> list[CellSummary]:
    """Every finished cell, the highest mean PSNR over all test sets first, then by key."""
    if section.cells.empty:
        return []
    centre = anchor(section)
    found = [cell_summary(section, str(cell), centre) for cell in section.cells.index]
    return sorted(found, key=descending_psnr)


def descending_psnr(cell: CellSummary) -> tuple[bool, float, str]:
    """A sort key; a PSNR that is not a number comes last."""
    mean = float(np.mean([score.mean for score in cell.psnr.values()]))
    return (bool(np.isnan(mean)), 0.0 if np.isnan(mean) else -mean, cell.cell)


def cell_summary(section: Section, cell: str, centre: str) -> CellSummary:
    """What one cell reaches, and how far that is from the cell ``centre``."""
    trials = section.finished[section.finished["cell"] == cell]
    seeds = section.seeds_of(cell)
    shared = [seed for seed in seeds if seed in section.seeds_of(centre)]
    to_centre = Pairs(((centre, cell),), ())
    psnr = {name: trials[f"metric/{name}/psnr_db"] for name in section.sets}
    return CellSummary(
        cell=cell,
        label=section.labels[cell],
        is_anchor=cell == centre,
        seeds=tuple(seeds),
        psnr={name: summary(values.tolist()) for name, values in psnr.items()},
        ssim={name: summary(trials[f"metric/{name}/ssim"].tolist()) for name in section.sets},
        over_baseline={
            name: summary((values - trials[f"metric/baseline/{name}/psnr_db"]).tolist()).mean
            for name, values in psnr.items()
        },
        to_anchor={name: difference(section.scores(f"{name}/psnr_db"), to_centre, shared) for name in section.sets},
        ops_g=float(trials["metric/cost/ops_g"].iloc[0]),
        params_k=float(trials["metric/cost/params_k"].iloc[0]),
        train_s=summary(trials["metric/timing/train_s"].tolist()).mean,
    )
