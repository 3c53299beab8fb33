"""The numbers behind a report's tables as long frames, one CSV file each; every row is about one test set."""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd
from pandas.api.types import is_numeric_dtype

from ablations.space.interventions import Pair
from ablations.space.settings import without_task
from analysis.effects.cells import CellSummary
from analysis.effects.claims import Assessment
from analysis.effects.comparisons import Interaction, Row
from analysis.effects.curves import TIME
from analysis.effects.family import Collapses
from analysis.effects.fractions import Fit
from analysis.effects.savings import Prices, Saving
from analysis.report.markup import csv_cell, one_line
from analysis.report.pictures import Strip
from analysis.statistics.estimates import Estimate, ImageEstimate, Verdict, summary
from analysis.statistics.rounding import rounded
from analysis.study.latency import counts_by_kind
from analysis.study.loading import identities_of
from analysis.study.origins import codes
from analysis.study.tasks import TaskResults, cell_levels, label, varying

Columns = dict[str, object]


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


def interval(found: Estimate, mean: str, low: str = "low_95_db", high: str = "high_95_db", p: str = "") -> Columns:
    return {mean: found.mean, low: found.low, high: found.high, **({p: found.p} if p else {})}


def verdict_columns(verdict: Verdict | None) -> Columns:
    if verdict is None:
        return dict.fromkeys(("p_difference_holm", "p_equivalence_holm", "comparisons", "reason", "detectable_db"), "")
    return {
        "p_difference_holm": verdict.p_difference,
        "p_equivalence_holm": verdict.p_equivalence,
        "comparisons": verdict.comparisons,
        "reason": verdict.reason,
        "detectable_db": verdict.detectable,
    }


def row_frame(found: Sequence[Row], results: TaskResults) -> pd.DataFrame:
    """Return a row per intervention and test set: the effect and its verdict, or none in the nearest context."""
    return pd.DataFrame(
        {
            "change": row.label,
            "typed": row.intervention.as_typed,
            "before": results.labels[row.pair[0]],
            "after": results.labels[row.pair[1]],
            "test_set": name,
            **interval(measured.estimate, "psnr_difference_db", p="p_uncorrected"),
            "degrees_of_freedom": measured.estimate.freedom,
            "conclusion": str(measured.conclusion or ""),
            **verdict_columns(measured.verdict),
            "seeds": measured.estimate.n,
            **look_columns(measured.look, results),
            "collapsed_before": of_total(measured.collapsed[0]),
            "collapsed_after": of_total(measured.collapsed[1]),
            "learned_difference_db": measured.learned,
            **over_pictures(row.pictures.get(name)),
            "ops_change_g": row.ops_g,
            "params_change_k": row.params_k,
            **(saving_columns(row.saving) if any(each.saving for each in found) else {}),
        }
        for row in found
        for name, measured in row.by_set.items()
    )


def saving_columns(found: Saving | None) -> Columns:
    """Return the change of operations and of time in percent, below 0 for a saving."""
    names = ("ops_change_percent", "time_change_percent", "time_low_95_percent", "time_high_95_percent")
    if found is None:
        return dict.fromkeys((*names, "time_p_holm", "time_seeds", "saving"), "")
    # The upper end of what is saved is the lower end of the change.
    values = (found.by_count, found.by_clock, found.high, found.low)
    changes = dict(zip(names, (-100 * value for value in values), strict=True))
    return {**changes, "time_p_holm": found.p, "time_seeds": found.n, "saving": str(found.word)}


def look_columns(look: int | None, results: TaskResults, *, known: bool = True) -> Columns:
    """Say at which look an estimate is, and of which kind its interval and p are; nothing without a stopping rule."""
    if results.study.rule is None:
        return {}
    kind = "first look" if look is None else "repeated"
    return {"look": "" if look is None else look, "interval": kind if known else ""}


def of_total(found: Collapses) -> str:
    return f"{found.count} of {found.total}"


def over_pictures(found: ImageEstimate | None) -> Columns:
    if found is None:
        return dict.fromkeys(
            ("over_pictures_db", "over_pictures_low_95_db", "over_pictures_high_95_db", "pictures"), ""
        )
    over = interval(found.estimate, "over_pictures_db", "over_pictures_low_95_db", "over_pictures_high_95_db")
    return {**over, "pictures": found.estimate.n}


def context_frame(found: Sequence[Row], results: TaskResults) -> pd.DataFrame:
    """Return a row per intervention, context and test set; ``change_...`` is the difference to the first context."""

    def named(pair: Pair, context: str) -> Columns:
        return {"context": context, "before": results.labels[pair[0]], "after": results.labels[pair[1]]}

    rows = []
    for row in found:
        for name in row.by_set:
            shared = {"change": row.label, "test_set": name}
            first = interval(row.described[name], "psnr_difference_db")
            rows.append({**shared, **named(row.pair, row.context), **first})
            rows += [
                {
                    **shared,
                    **named(context.pair, context.label),
                    **interval(context.by_set[name], "psnr_difference_db"),
                    **interval(context.change[name], "change_db", "change_low_95_db", "change_high_95_db"),
                    "at_a_floor": context.floor,
                }
                for context in row.contexts
            ]
    return pd.DataFrame(rows)


def interaction_frame(found: Sequence[Interaction]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "first": each.first.label,
            "second": each.second.label,
            "test_set": name,
            **interval(estimate, "interaction_db"),
            "contexts": each.contexts,
            "contexts_at_a_floor": each.at_floor,
        }
        for each in found
        for name, estimate in each.by_set.items()
    )


def fit_frame(fit: Fit) -> pd.DataFrame:
    return pd.DataFrame(
        {"term": str(effect.term), "test_set": name, **interval(estimate, "effect_db"), "seeds": estimate.n}
        for effect in fit.effects
        for name, estimate in effect.by_set.items()
    )


def cell_frame(cells: Sequence[CellSummary], results: TaskResults) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "cell": cell.cell,
            **results.levels[cell.cell].asked,
            "test_set": name,
            "seeds": len(cell.seeds),
            "psnr_mean_db": cell.psnr[name].mean,
            "psnr_sd_db": cell.psnr[name].sd,
            "ssim_mean": cell.ssim[name].mean,
            "ssim_sd": cell.ssim[name].sd,
            "over_baseline_db": cell.over_baseline[name],
            "collapsed": len(cell.collapsed),
            "is_reference": cell.is_reference,
            **distance(cell, name),
            **look_columns(cell.look.get(name), results, known=not cell.is_reference),
            "ops_g": cell.ops_g,
            "params_k": cell.params_k,
            "train_s": cell.train_s,
            **(timed_columns(cell) if results.latency.main else {}),
        }
        for cell in cells
        for name in results.sets
    )


def metric_frame(cells: Sequence[CellSummary], results: TaskResults) -> pd.DataFrame:
    """Return a row for each cell, test set and metric besides PSNR and SSIM, over the seeds that have it."""
    found = {
        (name, metric): results.by_cell(f"{name}/{metric}")
        for name in results.sets
        for metric in results.other_metrics(name)
    }
    summaries = [
        (cell, name, metric, summary([value for value in of_cells[cell.cell].values() if not math.isnan(value)]))
        for cell in cells
        for (name, metric), of_cells in found.items()
    ]
    return pd.DataFrame(
        {
            "cell": cell.cell,
            "label": cell.label,
            "test_set": name,
            "metric": metric,
            "seeds": over.n,
            "mean": over.mean,
            "sd": over.sd,
        }
        for cell, name, metric, over in summaries
        if over.n
    )


def timed_columns(cell: CellSummary) -> Columns:
    if cell.timed is None:
        return dict.fromkeys(TIMED, "")
    found = cell.timed
    values = (found.ratio.median, found.ratio.low, found.ratio.high, found.ms.median, found.twin_ms.median)
    return dict(zip(TIMED, (*values, cell.relative_time, cell.packed_kb, found.ratio.n), strict=True))


TIMED = (
    *("time_over_twin", "time_over_twin_min", "time_over_twin_max", "time_ms", "twin_ms"),
    *("time_over_the_references_twin", "packed_kb", "measured_seeds"),
)


def latency_frame(results: TaskResults) -> pd.DataFrame:
    """Return a row per place and cell that was measured there; without binary units, by the engine of its twin."""
    latency, counts = results.latency, counts_by_kind(results.finished)
    return pd.DataFrame(
        {
            "cell": cell,
            "label": results.labels[cell],
            **dataclasses.asdict(place),
            **({"backend": place.twin} if counts.get(cell, (0, 1))[1] == 0 else {}),
            "seeds": found.ratio.n,
            "time_over_twin": found.ratio.median,
            "time_over_twin_min": found.ratio.low,
            "time_over_twin_max": found.ratio.high,
            "time_ms": found.ms.median,
            "twin_ms": found.twin_ms.median,
        }
        for place in latency.places
        for cell in latency.runs[place]
        if (found := latency.timed(cell, place))
    )


def prices_frame(found: Prices) -> pd.DataFrame:
    """Return a row per cell: its costs, and on which fronts it is."""
    named = {name: f"ops_g_at_{name}" if name != TIME else "time_over_the_references_twin" for name in found.fronts}
    fronts = {
        f"on_front_{'by_time' if name == TIME else f'at_{name}'}": [cell in own for cell in found.costs["cell"]]
        for name, own in found.fronts.items()
    }
    return found.costs.rename(columns={"mean": "psnr_mean_db", **named}).assign(**fronts)


def flips_frame(found: Prices, results: TaskResults) -> pd.DataFrame:
    """Return a row per pair whose order changes: the change in cost from the second to the first, in percent."""
    return pd.DataFrame(
        {
            "cell": results.labels[flip.cheaper],
            "against": results.labels[flip.other],
            **{
                f"change_{'of_time' if name == TIME else f'at_{name}'}_percent": 100 * change
                for name, change in flip.change.items()
            },
        }
        for flip in found.flips
    )


def distance(cell: CellSummary, test_set: str) -> Columns:
    names = [f"to_reference_{column}" for column in ("db", "low_95_db", "high_95_db", "p_uncorrected")]
    return interval(cell.to_reference[test_set], *names) if cell.to_reference else dict.fromkeys(names, "")


def left_out_frame(results: TaskResults) -> pd.DataFrame:
    """Return a row per cell that was left out, named by the levels that vary among those and the planned cells."""
    levels = [{**row.levels, **without_task(row.setting)} for row in results.left_out]
    planned = [cell_levels(row, results.factors).asked for _, row in results.trials.iterrows()]
    names = varying([*levels, *planned], dict.fromkeys([*results.factors, *(name for row in levels for name in row)]))
    rows = [(label(row, names), left.reason) for row, left in zip(levels, results.left_out, strict=True)]
    return pd.DataFrame(rows, columns=["cell", "reason"])


def claim_frame(found: Sequence[Assessment], results: TaskResults) -> pd.DataFrame:
    """Return a row per tested claim of the paper and test set or probe."""
    return pd.DataFrame(
        {
            "claim": row.claim.text,
            "contrast": row.claim.change,
            "measure": row.claim.measure,
            "predicted": row.claim.predicted,
            "on": row.where,
            "away_from_the_papers_unit": row.context,
            "status": str(row.status),
            **interval(row.estimate, "mean", "low_95", "high_95", "p_uncorrected"),
            "seeds": row.estimate.n,
            **look_columns(row.look, results),
            "collapsed_before": of_total(row.collapsed[0]),
            "collapsed_after": of_total(row.collapsed[1]),
            "other_contexts": len(row.others),
            "printed_db": row.printed,
            "size": row.size,
            "doubt": row.doubt,
            "ops_change_g": row.ops_g,
            "params_change_k": row.params_k,
            "reason": row.reason,
        }
        for row in found
    )


def trial_frame(results: TaskResults) -> pd.DataFrame:
    """Return a row per trial, with everything that is recorded of it but its provenance, and why it collapsed if so."""
    trials = results.trials
    evidence = [results.collapsed.get(identity, "") for identity in identities_of(trials)]
    frame = trials.assign(code=codes(trials), collapsed=evidence).drop(columns="provenance").dropna(axis=1, how="all")
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
