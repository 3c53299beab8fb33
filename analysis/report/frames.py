"""The numbers behind a report's tables as long frames, one CSV file each; every row is about one test set."""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from pandas.api.types import is_numeric_dtype

from analysis.effects.contrasts import CellSummary, Contrast
from analysis.effects.factors import FactorialAnalysis
from analysis.effects.findings import Assessment
from analysis.report.markup import csv_cell, one_line
from analysis.report.pictures import Strip
from analysis.statistics.estimates import Estimate, Verdict
from analysis.statistics.factorial import Effect, Share
from analysis.statistics.rounding import rounded
from analysis.study.origins import codes
from analysis.study.settings import SettingResults, label, levels_of, varying

Row = dict[str, object]


def rounded_frame(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = [name for name, column in frame.items() if column.dtype == object or column.dtype.kind == "f"]
    return frame.assign(**{str(name): [rounded(each) for each in frame[name].tolist()] for name in numbers})


def as_csv(frame: pd.DataFrame) -> bytes:
    """Return the frame as CSV with rounded numbers, texts that are no formula, and one kind of line end."""
    found = rounded_frame(frame).rename(columns=csv_cell)
    texts = {
        str(name): [csv_cell(each) if isinstance(each, str) else each for each in column.tolist()]
        for name, column in found.items()
        if not is_numeric_dtype(column.dtype)
    }
    return str(found.assign(**texts).to_csv(index=False, lineterminator="\n")).encode()


def interval(found: Estimate, mean: str, low: str = "low_95_db", high: str = "high_95_db", p: str = "") -> Row:
    return {mean: found.mean, low: found.low, high: found.high, **({p: found.p} if p else {})}


def verdict_columns(verdict: Verdict) -> Row:
    needed = verdict.seeds_needed
    return {
        "p_difference_holm": verdict.p_difference,
        "p_equivalence_holm": verdict.p_equivalence,
        "comparisons": verdict.comparisons,
        "verdict": str(verdict.outcome),
        "reason": verdict.reason,
        "seeds_needed_likely": "" if needed is None or needed.likely is None else needed.likely,
        "seeds_needed_cautious": "" if needed is None or needed.cautious is None else needed.cautious,
    }


def spaced(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def contrast_frame(kinds: Mapping[str, Sequence[Contrast]]) -> pd.DataFrame:
    """Return a row per contrast and test set; the keys of ``kinds`` say which pairs of cells are compared."""
    rows = []
    for reading, contrast in ((reading, contrast) for reading, found in kinds.items() for contrast in found):
        for name, found in contrast.psnr.items():
            pictures = contrast.images.get(name)
            over = pictures.estimate if pictures else None
            rows.append(
                {
                    "reading": reading,
                    "factor": contrast.factor,
                    "base": contrast.base,
                    "level": contrast.level,
                    "moved_along": spaced(contrast.pairs.moved_along),
                    "test_set": name,
                    **interval(found, "psnr_difference_db", p="p_uncorrected"),
                    **verdict_columns(contrast.verdicts[name]),
                    "seeds": found.n,
                    "seeds_dropped": spaced(contrast.dropped),
                    "cell_pairs": len(contrast.pairs.cells),
                    "collapsed_cells": len(contrast.collapsed),
                    "over_pictures_db": over.mean if over else "",
                    "over_pictures_low_95_db": over.low if over else "",
                    "over_pictures_high_95_db": over.high if over else "",
                    "pictures": over.n if over else "",
                    "ops_change_g": contrast.ops_g,
                    "params_change_k": contrast.params_k,
                }
            )
    return pd.DataFrame(rows)


def cell_frame(cells: Sequence[CellSummary], results: SettingResults) -> pd.DataFrame:
    to_reference = [f"to_reference_{column}" for column in ("db", "low_95_db", "high_95_db", "p_uncorrected")]
    return pd.DataFrame(
        {
            "cell": cell.cell,
            **{factor: results.cells.loc[cell.cell, f"level/{factor}"] for factor in results.factors},
            "test_set": name,
            "seeds": len(cell.seeds),
            "psnr_mean_db": cell.psnr[name].mean,
            "psnr_sd_db": cell.psnr[name].sd,
            "ssim_mean": cell.ssim[name].mean,
            "ssim_sd": cell.ssim[name].sd,
            "over_baseline_db": cell.over_baseline[name],
            "is_reference": cell.is_reference,
            **interval(cell.to_reference[name], *to_reference),
            "to_reference_seeds": cell.to_reference[name].n,
            "ops_g": cell.ops_g,
            "params_k": cell.params_k,
            "train_s": cell.train_s,
        }
        for cell in cells
        for name in results.sets
    )


def left_out_frame(results: SettingResults) -> pd.DataFrame:
    """Return a row per cell that was left out, named by the levels that vary among those and the planned cells."""
    levels = [dict(row.levels) for row in results.left_out]
    planned = [levels_of(row, results.factors) for _, row in results.trials.iterrows()]
    names = varying([*levels, *planned], dict.fromkeys([*results.factors, *(name for row in levels for name in row)]))
    rows = [(label(row, names), left.reason) for row, left in zip(levels, results.left_out, strict=True)]
    return pd.DataFrame(rows, columns=["cell", "reason"])


def effect_frame(analyses: Mapping[str, FactorialAnalysis]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "test_set": name,
            "term": str(effect.term),
            "factors": len(effect.term.moved),
            **interval(effect.estimate, "effect_db", p="p_uncorrected"),
            **verdict_columns(verdict),
            "seeds": effect.estimate.n,
            "method": analysis.effects.method,
        }
        for name, analysis in analyses.items()
        if analysis.effects
        for effect, verdict in analysis.judged
    )


def share_frame(analyses: Mapping[str, FactorialAnalysis]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "test_set": name,
            "factor": share.factor,
            **interval(share.gain, "gain_db", "gain_low_95_db", "gain_high_95_db"),
            **interval(share.fraction, "fraction", "fraction_low_95", "fraction_high_95"),
            "seeds": share.gain.n,
            "total_gain_db": analysis.shares.total.mean,
        }
        for name, analysis in analyses.items()
        if analysis.shares
        for share in analysis.shares.shares
    )


def part_effects(analysis: FactorialAnalysis, part: str) -> list[tuple[Effect, Verdict, Share | None]]:
    """Return the main effect of a part with its verdict, and its share if there is one; empty if not estimated."""
    shares = {share.factor: share for share in analysis.shares.shares} if analysis.shares else {}
    return [
        (effect, verdict, shares.get(part))
        for effect, verdict in analysis.judged
        if [factor for factor, _ in effect.term.moved] == [part]
    ]


def part_frame(analyses: Mapping[str, FactorialAnalysis], costs: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "part": part,
            "test_set": name,
            **interval(effect.estimate, "psnr_change_db"),
            **verdict_columns(verdict),
            "seeds": effect.estimate.n,
            "shapley_share_db": share.gain.mean if share else math.nan,
            "shapley_fraction": share.fraction.mean if share else math.nan,
            "ops_change_g": costs[part][0],
            "params_change_k": costs[part][1],
        }
        for part in costs
        for name, analysis in analyses.items()
        for effect, verdict, share in part_effects(analysis, part)
    )


def finding_frame(rows: Sequence[Assessment]) -> pd.DataFrame:
    """One row per claim of the paper and test set or probe."""
    return pd.DataFrame(
        {
            "claim": row.finding.claim,
            "contrast": row.finding.change,
            "measure": row.finding.measure,
            "predicted": row.finding.predicted,
            "on": row.where,
            "status": str(row.status),
            **interval(row.estimate, "mean", "low_95", "high_95", "p_uncorrected"),
            "seeds": spaced(row.seeds),
            "seeds_dropped": spaced(row.dropped),
            "cell_pairs": len(row.pairs.cells),
            "collapsed_cells": len(row.collapsed),
            "ops_change_g": row.ops_g,
            "params_change_k": row.params_k,
            "reason": row.reason,
        }
        for row in rows
    )


def trial_frame(results: SettingResults) -> pd.DataFrame:
    """One row per trial, with everything that is recorded of it but its provenance."""
    frame = results.trials.assign(code=codes(results.trials)).drop(columns="provenance").dropna(axis=1, how="all")
    frame.columns = [column.removeprefix("metric/") for column in frame.columns]
    return frame


def strip_frame(strips: Sequence[Strip]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "test_set": strip.test_set,
            "picture": one_line(strip.picture),
            "tile": tile.title,
            "seed": "" if tile.seed is None else tile.seed,
            "test_set_psnr_db": tile.psnr_db,
            "crop_psnr_db": tile.crop_psnr_db,
            "crop_top": strip.place[0],
            "crop_left": strip.place[1],
        }
        for strip in strips
        for tile in strip.tiles
    )
