"""The numbers behind a report's tables as long frames, one CSV file each; every row is about one test set."""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from analysis.effects.contrasts import CellSummary, Contrast
from analysis.effects.factors import FactorialAnalysis
from analysis.effects.findings import Assessment
from analysis.report.pictures import Strip
from analysis.statistics.estimates import Estimate, Verdict
from analysis.statistics.factorial import Effect, Share
from analysis.study.origins import codes
from analysis.study.settings import SettingResults, label, varying

Row = dict[str, object]


def interval(found: Estimate, mean: str, low: str = "low_95_db", high: str = "high_95_db", p: str = "") -> Row:
    """The columns of an estimate."""
    return {mean: found.mean, low: found.low, high: found.high, **({p: found.p} if p else {})}


def verdict_columns(verdict: Verdict) -> Row:
    """The columns of a verdict."""
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
    """Several values in one column."""
    return " ".join(map(str, values))


def contrast_frame(contrasts: Sequence[Contrast], reading: str) -> pd.DataFrame:
    """One row per contrast; ``reading`` says which pairs of cells are compared."""
    rows = []
    for contrast in contrasts:
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
                    "collapsed_cells": len(contrast.dead),
                    "over_pictures_db": over.mean if over else "",
                    "over_pictures_low_95_db": over.low if over else "",
                    "over_pictures_high_95_db": over.high if over else "",
                    "pictures": over.n if over else "",
                    "ops_change_g": contrast.ops_g,
                    "params_change_k": contrast.params_k,
                }
            )
    return pd.DataFrame(rows)


def cell_frame(cells: Sequence[CellSummary], section: SettingResults) -> pd.DataFrame:
    """One row per cell."""
    to_anchor = ("to_anchor_db", "to_anchor_low_95_db", "to_anchor_high_95_db", "to_anchor_p_uncorrected")
    return pd.DataFrame(
        {
            "cell": cell.cell,
            **{factor: section.cells.loc[cell.cell, f"level/{factor}"] for factor in section.factors},
            "test_set": name,
            "seeds": len(cell.seeds),
            "psnr_mean_db": cell.psnr[name].mean,
            "psnr_sd_db": cell.psnr[name].sd,
            "ssim_mean": cell.ssim[name].mean,
            "ssim_sd": cell.ssim[name].sd,
            "over_baseline_db": cell.over_baseline[name],
            "is_anchor": cell.is_anchor,
            **interval(cell.to_anchor[name], *to_anchor),
            "to_anchor_seeds": cell.to_anchor[name].n,
            "ops_g": cell.ops_g,
            "params_k": cell.params_k,
            "train_s": cell.train_s,
        }
        for cell in cells
        for name in section.sets
    )


def left_out_frame(section: SettingResults) -> pd.DataFrame:
    """One row per cell that was left out, named by the levels that vary among those and the planned cells."""
    levels = [dict(row.levels) for row in section.left_out]
    planned = [
        {factor: str(row[f"level/{factor}"]) for factor in section.factors} for _, row in section.trials.iterrows()
    ]
    names = varying([*levels, *planned], dict.fromkeys([*section.factors, *(name for row in levels for name in row)]))
    rows = [(label(row, names), left.reason) for row, left in zip(levels, section.left_out, strict=True)]
    return pd.DataFrame(rows, columns=["cell", "reason"])


def effect_frame(readings: Mapping[str, FactorialAnalysis]) -> pd.DataFrame:
    """One row per main effect or interaction."""
    return pd.DataFrame(
        {
            "test_set": name,
            "term": str(effect.term),
            "factors": len(effect.term.moved),
            **interval(effect.estimate, "effect_db", p="p_uncorrected"),
            **verdict_columns(verdict),
            "seeds": effect.estimate.n,
            "method": reading.effects.method,
        }
        for name, reading in readings.items()
        if reading.effects
        for effect, verdict in zip(reading.effects.effects, reading.verdicts, strict=True)
    )


def share_frame(readings: Mapping[str, FactorialAnalysis]) -> pd.DataFrame:
    """One row per component's share of the gain."""
    return pd.DataFrame(
        {
            "test_set": name,
            "factor": share.factor,
            **interval(share.gain, "gain_db", "gain_low_95_db", "gain_high_95_db"),
            **interval(share.fraction, "fraction", "fraction_low_95", "fraction_high_95"),
            "seeds": share.gain.n,
            "total_gain_db": reading.shares.total.mean,
        }
        for name, reading in readings.items()
        if reading.shares
        for share in reading.shares.shares
    )


def part_effects(reading: FactorialAnalysis, part: str) -> list[tuple[Effect, Verdict, Share | None]]:
    """The main effect of a part with its verdict, and its share if there is one; empty if it is not estimated."""
    shares = {share.factor: share for share in reading.shares.shares} if reading.shares else {}
    return [
        (effect, verdict, shares.get(part))
        for effect, verdict in zip(reading.effects.effects if reading.effects else (), reading.verdicts, strict=True)
        if [factor for factor, _ in effect.term.moved] == [part]
    ]


def part_frame(readings: Mapping[str, FactorialAnalysis], costs: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """One row per part of the network: what binarising it does."""
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
        for name, reading in readings.items()
        for effect, verdict, share in part_effects(reading, part)
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
            "cell_pairs": row.n_pairs,
            "collapsed_cells": len(row.dead),
            "ops_change_g": row.ops_g,
            "params_change_k": row.params_k,
            "reason": row.reason,
        }
        for row in rows
    )


def trial_frame(section: SettingResults) -> pd.DataFrame:
    """One row per trial, with everything that is recorded of it but its provenance."""
    frame = section.trials.assign(code=codes(section.trials)).drop(columns="provenance").dropna(axis=1, how="all")
    frame.columns = [column.removeprefix("metric/") for column in frame.columns]
    return frame


def strip_frame(strips: Sequence[Strip]) -> pd.DataFrame:
    """One row per tile of the picture strips."""
    return pd.DataFrame(
        {
            "test_set": strip.test_set,
            "picture": strip.picture,
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
