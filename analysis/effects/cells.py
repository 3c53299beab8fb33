"""Sum up each cell of a study: its scores over the seeds, its cost, and its difference to the reference."""

import dataclasses
import math
from collections.abc import Mapping

from analysis.effects.family import Family
from analysis.statistics.estimates import Estimate, Summary, summary
from analysis.statistics.rounding import rounded
from analysis.study.latency import Timed
from analysis.study.tasks import TaskResults


@dataclasses.dataclass(frozen=True)
class CellSummary:
    """The scores of one cell over the seeds under which it is finished.

    By test set: ``psnr`` (dB), ``ssim``, ``over_baseline`` (dB, the mean over seeds) and ``to_reference`` (dB; empty
    for the reference cell). ``look`` is that of :class:`analysis.effects.family.Measured`, of the difference to the
    reference. ``train_s`` is the mean over seeds, with the training of the cell's teacher if it has one.

    ``timed`` is what was measured at the main place of :class:`analysis.study.latency.Latency`, None if nothing;
    ``relative_time`` is over the time of the twin of the reference cell.
    """

    cell: str
    label: str
    is_reference: bool
    seeds: tuple[int, ...]
    collapsed: tuple[int, ...]
    psnr: Mapping[str, Summary]
    ssim: Mapping[str, Summary]
    over_baseline: Mapping[str, float]
    to_reference: Mapping[str, Estimate]
    look: Mapping[str, int | None]
    ops_g: float
    params_k: float
    train_s: float
    timed: Timed | None = None
    relative_time: float = math.nan
    packed_kb: float = math.nan


def cell_summaries(results: TaskResults, family: Family) -> list[CellSummary]:
    """Every finished cell, the highest mean PSNR over all test sets first, then by key.

    ``family`` has the differences to the reference, so that a cell and a row about it say the same.
    """
    if results.cells.empty:
        return []
    scored = [f"{kind}{name}/{metric}" for name in results.sets for kind, metric in SCORES]
    metrics = {name: results.by_cell(name) for name in [*scored, *COSTS]}
    return sorted((cell_summary(results, family, cell, metrics) for cell in results.levels), key=descending_psnr)


TEACHER = "timing/teacher_s"


def taught_s(results: TaskResults, cell: str) -> float:
    """Return the mean time in seconds that the teacher of a cell trained for; 0 for a cell without a teacher."""
    if f"metric/{TEACHER}" not in results.finished:
        return 0.0
    known = [seconds for seconds in results.by_cell(TEACHER)[cell].values() if not math.isnan(seconds)]
    return summary(known).mean if known else 0.0


SCORES = (("", "psnr_db"), ("", "ssim"), ("baseline/", "psnr_db"))
COSTS = ("cost/ops_g", "cost/params_k", "timing/train_s")


def descending_psnr(cell: CellSummary) -> tuple[bool, float, str]:
    """A sort key; a PSNR that is not a number comes last, and equal ones are ordered by the cell's key."""
    means = [score.mean for score in cell.psnr.values()]
    mean = rounded(math.fsum(means) / len(means)) if means else math.nan
    return (math.isnan(mean), -mean if mean == mean else 0.0, cell.cell)


def cell_summary(
    results: TaskResults, family: Family, cell: str, metrics: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> CellSummary:
    def values(metric: str) -> list[float]:
        return list(metrics[metric][cell].values())

    psnr = {name: values(f"{name}/psnr_db") for name in results.sets}
    baseline = {name: values(f"baseline/{name}/psnr_db") for name in results.sets}
    gains = {name: [a - b for a, b in zip(psnr[name], baseline[name], strict=True)] for name in results.sets}
    is_reference = cell == results.reference
    away = {name: family.measured(name, (results.reference, cell)) for name in results.sets if not is_reference}
    return CellSummary(
        cell=cell,
        label=results.labels[cell],
        is_reference=is_reference,
        seeds=tuple(results.seeds_of(cell)),
        collapsed=results.collapsed_seeds(cell),
        psnr={name: summary(found) for name, found in psnr.items()},
        ssim={name: summary(values(f"{name}/ssim")) for name in results.sets},
        over_baseline={name: summary(found).mean for name, found in gains.items()},
        to_reference={name: found.estimate for name, found in away.items()},
        look={name: found.look for name, found in away.items()},
        ops_g=values("cost/ops_g")[0],
        params_k=values("cost/params_k")[0],
        train_s=summary(values("timing/train_s")).mean + taught_s(results, cell),
        timed=results.latency.timed(cell),
        relative_time=results.latency.relative(cell, results.reference),
        packed_kb=results.latency.packed_kb.get(cell, math.nan),
    )
