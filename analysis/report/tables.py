"""A report's tables: as long frames for CSV, with every digit, and as Markdown to read."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence

import pandas as pd

from analysis.effects.contrasts import CellSummary, Contrast
from analysis.effects.factors import FactorialAnalysis
from analysis.effects.findings import PSNR, Assessment
from analysis.report.figures import INTERACTION_WORDS
from analysis.report.pictures import Strip
from analysis.statistics.estimates import Estimate, Summary, Verdict
from analysis.statistics.factorial import Effect, Share
from analysis.study.loading import NOT_RECORDED
from analysis.study.origins import codes, energies
from analysis.study.settings import KEY_LENGTH, SettingResults, label, varying

MOST_LETTERS = 200
"""How much of a reason the Markdown table shows; the CSV has all of it."""


def as_csv(frame: pd.DataFrame) -> str:
    """The frame with the shortest digits that give the same number back, and one kind of line end."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """A table in GitHub's Markdown; the columns numbered in ``numeric`` are set flush right."""
    right = set(numeric)
    rule = ["---:" if index in right else "---" for index in range(len(header))]
    lines = [header, rule, *([escaped(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text that stays inside its table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Text set as code; nothing where there is nothing."""
    return f"`{text}`" if text else ""


def shortened(text: str) -> str:
    """A reason short enough for a table."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MOST_LETTERS else flat[: MOST_LETTERS - 1] + "…"


def estimate_text(estimate: Estimate) -> str:
    """A difference in dB with its interval, or with why it has none."""
    if estimate.n == 0:
        return "no complete seed"
    if estimate.n == 1:
        return f"{estimate.mean:+.3f} [one seed]"
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def judged_text(estimate: Estimate, verdict: Verdict) -> str:
    """A difference with its interval and its verdict; without one where one seed allows none."""
    return estimate_text(estimate) + ("" if math.isnan(estimate.low) else f" {verdict.outcome}")


def summary_text(summary: Summary) -> str:
    """Mean and standard deviation of a PSNR in dB; the mean alone where there is one value."""
    return f"{summary.mean:.3f}" if summary.n < 2 else f"{summary.mean:.3f} ± {summary.sd:.3f}"


MOST_PAIRS_NAMED = 30
"""How many pairs of cells a row names; more are every pair of cells that are alike but in what the row moves."""


def anchor_name(table: str, number: int) -> str:
    """Where the cells behind a row of a table are listed."""
    return f"runs-{table}-{number}"


def runs_link(table: str, number: int, runs: int) -> str:
    """How many runs a row rests on, as a link to where they are listed."""
    return f"[{runs}](#{anchor_name(table, number)})"


def cell_link(cell: str) -> str:
    """The start of a cell's key as a link to its runs."""
    return f"[{cell[:KEY_LENGTH]}](#runs-{cell[:KEY_LENGTH]})"


def runs_row(
    table: str, number: int, what: str, pairs: Sequence[tuple[str, str]], seeds: Sequence[int]
) -> tuple[str, ...]:
    """The cells behind a row, each as a link to its runs."""
    named = [f"{cell_link(base)} → {cell_link(other)}" for base, other in pairs[:MOST_PAIRS_NAMED]]
    rest = f", and {len(pairs) - MOST_PAIRS_NAMED} more pairs" if len(pairs) > MOST_PAIRS_NAMED else ""
    place = f'<a id="{anchor_name(table, number)}"></a>{table} {number}'
    return place, what, ", ".join(named) + rest, ", ".join(map(str, seeds))


def runs_of_cells(section: SettingResults, cells: Sequence[CellSummary]) -> list[tuple[str, ...]]:
    """The MLflow run of each seed of these cells."""
    runs: dict[str, list[str]] = {}
    columns = (section.finished[name].tolist() for name in ("cell", "seed", "run_id"))
    for cell, seed, run in sorted(zip(*columns, strict=True)):
        runs.setdefault(cell, []).append(f"{seed}: {code(run) or 'not in MLflow'}")
    return [
        (
            f'<a id="runs-{cell.cell[:KEY_LENGTH]}"></a>{code(cell.label)}',
            code(cell.cell[:KEY_LENGTH]),
            ", ".join(runs[cell.cell]),
        )
        for cell in cells
    ]


def contrast_frame(contrasts: Sequence[Contrast], reading: str) -> pd.DataFrame:
    """One row per contrast and test set; ``reading`` says which pairs of cells are compared."""
    rows = [
        {
            "reading": reading,
            "factor": contrast.factor,
            "base": contrast.base,
            "level": contrast.level,
            "moved_along": " ".join(contrast.pairs.moved_along),
            "test_set": name,
            "psnr_difference_db": estimate.mean,
            "low_95_db": estimate.low,
            "high_95_db": estimate.high,
            "p_uncorrected": estimate.p,
            **verdict_columns(contrast.verdicts[name]),
            "seeds": estimate.n,
            "seeds_dropped": " ".join(map(str, contrast.dropped)),
            "cell_pairs": len(contrast.pairs.cells),
            "dead_cells": len(contrast.dead),
            **image_columns(contrast, name),
            "ops_change_g": contrast.ops_g,
            "params_change_k": contrast.params_k,
        }
        for contrast in contrasts
        for name, estimate in contrast.psnr.items()
    ]
    return pd.DataFrame(rows)


def verdict_columns(verdict: Verdict) -> dict[str, object]:
    """What a family allows to be said, for a CSV file."""
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


def image_columns(contrast: Contrast, name: str) -> dict[str, object]:
    """The second reading, over pictures, for a CSV file; empty where there is none."""
    reading = contrast.images.get(name)
    return {
        "over_pictures_db": "" if reading is None else reading.estimate.mean,
        "over_pictures_low_95_db": "" if reading is None else reading.estimate.low,
        "over_pictures_high_95_db": "" if reading is None else reading.estimate.high,
        "pictures": "" if reading is None else reading.estimate.n,
    }


def images_table(contrasts: Sequence[Contrast], sets: Sequence[str]) -> str:
    """The second reading of every contrast that has one."""
    rows = [
        [contrast.change, *(image_text(contrast, name) for name in sets)] for contrast in contrasts if contrast.images
    ]
    header = ["Change", *(f"{name} (dB)" for name in sets)]
    return markdown(header, rows, range(1, len(header)))


def image_text(contrast: Contrast, name: str) -> str:
    """One second reading: its interval and how many pictures."""
    reading = contrast.images.get(name)
    if reading is None:
        return "pictures were not kept"
    found = reading.estimate
    if found.n < 2:
        return f"{found.mean:+.3f} [one picture]"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] n = {found.n}"


def contrast_table(contrasts: Sequence[Contrast], sets: Sequence[str], name: str) -> str:
    """What each component is worth, a row per contrast; ``name`` is what the listing of its runs calls the table."""
    header = ["Change", *(f"{each} (dB)" for each in sets), "Seeds", "Pairs", "OPs (G)", "Params (K)", "Runs"]
    rows = [
        [
            contrast.change,
            *(judged_text(contrast.psnr[name], contrast.verdicts[name]) for name in sets),
            str(len(contrast.seeds)),
            str(len(contrast.pairs.cells)),
            f"{contrast.ops_g:+.3f}",
            f"{contrast.params_k:+.1f}",
            runs_link(name, number, contrast.runs),
        ]
        for number, contrast in enumerate(contrasts, start=1)
    ]
    return markdown(header, rows, range(1, len(header)))


def cell_frame(cells: Sequence[CellSummary], section: SettingResults) -> pd.DataFrame:
    """One row per cell and test set."""
    rows = [
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
            "to_anchor_db": cell.to_anchor[name].mean,
            "to_anchor_low_95_db": cell.to_anchor[name].low,
            "to_anchor_high_95_db": cell.to_anchor[name].high,
            "to_anchor_p_uncorrected": cell.to_anchor[name].p,
            "to_anchor_seeds": cell.to_anchor[name].n,
            "ops_g": cell.ops_g,
            "params_k": cell.params_k,
            "train_s": cell.train_s,
        }
        for cell in cells
        for name in section.sets
    ]
    return pd.DataFrame(rows)


def cell_table(cells: Sequence[CellSummary], sets: Sequence[str], marks: Mapping[str, Container[str]]) -> str:
    """Finished cells, with the columns of each test set side by side; ``marks`` says which cells have which mark."""
    per_set = ("PSNR (dB)", "SSIM", "over baseline", "to anchor [95 %]")
    header = ["Cell", "Seeds", *(f"{name} {column}" for name in sets for column in per_set)]
    header += ["OPs (G)", "Params (K)", "Train (s)", "Runs"]
    rows = [
        [
            " ".join([code(cell.label), *(mark for mark, marked in marks.items() if cell.cell in marked)]),
            str(len(cell.seeds)),
            *(text for name in sets for text in set_columns(cell, name)),
            f"{cell.ops_g:.3f}",
            f"{cell.params_k:.1f}",
            f"{cell.train_s:.1f}",
            f"[{len(cell.seeds)}](#runs-{cell.cell[:KEY_LENGTH]})",
        ]
        for cell in cells
    ]
    return markdown(header, rows, range(1, len(header)))


def set_columns(cell: CellSummary, name: str) -> list[str]:
    """What a cell reaches on one test set."""
    return [
        summary_text(cell.psnr[name]),
        f"{cell.ssim[name].mean:.4f}",
        f"{cell.over_baseline[name]:+.3f}",
        "anchor" if cell.is_anchor else to_anchor_text(cell, name),
    ]


def to_anchor_text(cell: CellSummary, name: str) -> str:
    """The paired difference to the anchor, with its n where the anchor lacks some of the cell's seeds."""
    estimate = cell.to_anchor[name]
    return estimate_text(estimate) + (f" n = {estimate.n}" if 1 < estimate.n < len(cell.seeds) else "")


def unfinished_table(section: SettingResults, trials: pd.DataFrame) -> str:
    """Trials that are in no other table, with their reasons."""
    rows = [
        [code(section.labels[row["cell"]]), str(row["seed"]), row["state"], shortened(row["reason"])]
        for _, row in trials.iterrows()
    ]
    return markdown(["Cell", "Seed", "State", "Reason"], rows, [1])


def left_out_names(section: SettingResults) -> list[str]:
    """A name for each left-out cell, by the levels that vary among those and the cells that were planned."""
    levels = [dict(row.levels) for row in section.left_out]
    planned = [
        {factor: str(row[f"level/{factor}"]) for factor in section.factors} for _, row in section.trials.iterrows()
    ]
    names = varying([*levels, *planned], dict.fromkeys([*section.factors, *(name for row in levels for name in row)]))
    return [label(row, names) for row in levels]


def left_out_frame(section: SettingResults) -> pd.DataFrame:
    """One row per left-out cell."""
    rows = [
        {"cell": name, "reason": row.reason}
        for name, row in zip(left_out_names(section), section.left_out, strict=True)
    ]
    return pd.DataFrame(rows, columns=["cell", "reason"])


def left_out_table(frame: pd.DataFrame, most: int) -> str:
    """The first ``most`` left-out cells."""
    rows = [[code(row["cell"]), shortened(row["reason"])] for _, row in frame.head(most).iterrows()]
    return markdown(["Cell", "Reason"], rows)


def outcome_words(effect: Effect, verdict: Verdict) -> str:
    """The verdict on an effect; one on an interaction says how the two go together."""
    return str(verdict.outcome) if len(effect.term.moved) == 1 else INTERACTION_WORDS[verdict.outcome]


def effect_frame(readings: Mapping[str, FactorialAnalysis]) -> pd.DataFrame:
    """One row per effect and test set."""
    rows = [
        {
            "test_set": name,
            "term": str(effect.term),
            "factors": len(effect.term.moved),
            "effect_db": effect.estimate.mean,
            "low_95_db": effect.estimate.low,
            "high_95_db": effect.estimate.high,
            "p_uncorrected": effect.estimate.p,
            **verdict_columns(verdict),
            "seeds": effect.estimate.n,
            "method": reading.effects.method,
        }
        for name, reading in readings.items()
        if reading.effects
        for effect, verdict in zip(reading.effects.effects, reading.verdicts, strict=True)
    ]
    return pd.DataFrame(rows)


def effect_table(reading: FactorialAnalysis, order: int) -> str:
    """The effects of so many factors together on one test set; nothing where there is none."""
    found = zip(reading.effects.effects, reading.verdicts, strict=True) if reading.effects else ()
    rows = [
        [code(str(effect.term)), estimate_text(effect.estimate), outcome_words(effect, verdict)]
        for effect, verdict in found
        if len(effect.term.moved) == order
    ]
    return markdown(["Effect", "dB", "Verdict"], rows, [1]) if rows else ""


def share_frame(readings: Mapping[str, FactorialAnalysis]) -> pd.DataFrame:
    """One row per component and test set."""
    rows = [
        {
            "test_set": name,
            "factor": share.factor,
            "gain_db": share.gain.mean,
            "gain_low_95_db": share.gain.low,
            "gain_high_95_db": share.gain.high,
            "fraction": share.fraction.mean,
            "fraction_low_95": share.fraction.low,
            "fraction_high_95": share.fraction.high,
            "seeds": share.gain.n,
            "total_gain_db": reading.shares.total.mean,
        }
        for name, reading in readings.items()
        if reading.shares
        for share in reading.shares.shares
    ]
    return pd.DataFrame(rows)


def share_table(reading: FactorialAnalysis) -> str:
    """Each component's share of the total gain on one test set."""
    shares = reading.shares.shares if reading.shares else ()
    rows = [[code(share.factor), estimate_text(share.gain), fraction_text(share.fraction)] for share in shares]
    return markdown(["Component", "Share (dB)", "Share of the gain"], rows, [1, 2])


def fraction_text(fraction: Estimate) -> str:
    """A fraction in per cent with its interval, or that any is possible."""
    if not math.isfinite(fraction.mean):
        return "no gain to share"
    if fraction.n < 2:
        return f"{100 * fraction.mean:.0f} % [one seed]"
    if math.isnan(fraction.low):
        return f"{100 * fraction.mean:.0f} % [any: the total cannot be told from 0]"
    return f"{100 * fraction.mean:.0f} % [{100 * fraction.low:.0f}, {100 * fraction.high:.0f}]"


def finding_frame(rows: Sequence[Assessment]) -> pd.DataFrame:
    """One row per finding and test set or probe."""
    return pd.DataFrame(
        [
            {
                "claim": row.finding.claim,
                "contrast": row.finding.change,
                "measure": row.finding.measure,
                "predicted": row.finding.predicted,
                "on": row.where,
                "status": str(row.status),
                "mean": row.estimate.mean,
                "low_95": row.estimate.low,
                "high_95": row.estimate.high,
                "p_uncorrected": row.estimate.p,
                "seeds": " ".join(map(str, row.seeds)),
                "seeds_dropped": " ".join(map(str, row.dropped)),
                "cell_pairs": row.n_pairs,
                "dead_cells": len(row.dead),
                "ops_change_g": row.ops_g,
                "params_change_k": row.params_k,
                "reason": row.reason,
            }
            for row in rows
        ]
    )


def finding_table(rows: Sequence[Assessment], name: str) -> str:
    """The findings that were tested, a row each; ``name`` is what the listing of its runs calls the table."""
    header = ["Claim of the paper", "Predicted", "On", "Found", "In the paper", "Verdict"]
    header += ["Seeds", "Pairs", "OPs (G)", "Params (K)", "Runs"]
    body = [
        [
            f"{row.finding.claim} ({code(row.finding.change)})",
            row.finding.predicted,
            row.where,
            estimate_text(row.estimate) + (" dB" if row.finding.measure == PSNR else ""),
            row.published or "no number",
            f"**{row.status}**" + (" †" if row.dead else ""),
            f"{len(row.seeds)}" + (f", dropped {' '.join(map(str, row.dropped))}" if row.dropped else ""),
            str(row.n_pairs),
            f"{row.ops_g:+.3f}",
            f"{row.params_k:+.1f}",
            runs_link(name, number, len({cell for pair in row.pairs for cell in pair}) * len(row.seeds)),
        ]
        for number, row in enumerate(rows, start=1)
    ]
    return markdown(header, body, [3, 6, 7, 8, 9, 10])


def part_frame(readings: Mapping[str, FactorialAnalysis], costs: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """What binarising each part does, a row per part and test set."""
    rows = [
        {
            "part": part,
            "test_set": name,
            "psnr_change_db": effect.estimate.mean,
            "low_95_db": effect.estimate.low,
            "high_95_db": effect.estimate.high,
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
    ]
    return pd.DataFrame(rows)


def part_effects(reading: FactorialAnalysis, part: str) -> list[tuple[Effect, Verdict, Share | None]]:
    """The main effect of a part with its verdict, and its share where there is one."""
    effects = reading.effects.effects if reading.effects else ()
    shares = {share.factor: share for share in reading.shares.shares} if reading.shares else {}
    return [
        (effect, verdict, shares.get(part))
        for effect, verdict in zip(effects, reading.verdicts, strict=True)
        if [factor for factor, _ in effect.term.moved] == [part]
    ]


def part_table(readings: Mapping[str, FactorialAnalysis], costs: Mapping[str, tuple[float, float]]) -> str:
    """The same to read, a row per part."""
    header = ["Part"]
    for name in readings:
        header += [f"{name} PSNR (dB)", f"{name} share of the loss"]
    header += ["OPs (G)", "of what can be saved", "Params (K)", "of what can be saved"]
    totals = [math.fsum(cost[which] for cost in costs.values()) for which in (0, 1)]
    rows = []
    for part, cost in costs.items():
        texts = [part]
        for reading in readings.values():
            found = part_effects(reading, part)
            texts += [judged_text(found[0][0].estimate, found[0][1]) if found else "not estimated"]
            texts += [fraction_text(found[0][2].fraction) if found and found[0][2] else "none"]
        for change, total, digits in zip(cost, totals, (3, 1), strict=True):
            texts += [f"{change:+.{digits}f}", f"{100 * change / total:.0f} %" if total else ""]
        rows.append(texts)
    return markdown(header, rows, range(1, len(header)))


def dead_table(section: SettingResults) -> str:
    """The finished trials whose binary body contributes nothing, each with what tells so."""
    rows = [[code(section.labels[cell]), str(seed), reason] for (cell, seed), reason in section.dead.items()]
    return markdown(["Cell", "Seed", "What tells so"], rows, [1])


def trial_frame(section: SettingResults) -> pd.DataFrame:
    """Every trial with everything that is recorded of it, but its provenance."""
    frame = section.trials.assign(code=codes(section.trials)).drop(columns="provenance").dropna(axis=1, how="all")
    frame.columns = [column.removeprefix("metric/") for column in frame.columns]
    return frame


def trial_table(section: SettingResults, trials: pd.DataFrame) -> str:
    """Trials with their runs and what made them, for whoever looks one up; with energy where all are known."""
    header = ["Cell", "Seed", "State", "MLflow run", "Git", "Uncommitted changes", "Code"]
    rows = [
        [
            code(section.labels[row["cell"]]),
            str(row["seed"]),
            row["state"],
            code(row["run_id"]),
            code(row["git"][:KEY_LENGTH]),
            {"true": "yes", "false": "no"}.get(row["git_dirty"], ""),
            (made_by if made_by == NOT_RECORDED else code(made_by)) if row["provenance"] else "",
        ]
        for made_by, (_, row) in zip(codes(trials), trials.iterrows(), strict=True)
    ]
    energy = energies(section)
    if energy.empty or energy.isna().any():
        return markdown(header, rows, [1])
    taken = [f"{energy[index]:,.0f}" if index in energy.index else "" for index in trials.index]
    return markdown([*header, "Energy (J)"], [[*row, text] for row, text in zip(rows, taken, strict=True)], [1, 7])


def strip_frame(strips: Sequence[Strip]) -> pd.DataFrame:
    """What each tile of the picture strips is."""
    rows = [
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
    ]
    return pd.DataFrame(rows)
