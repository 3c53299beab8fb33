"""A report's tables: as long frames for CSV, with every digit, and as Markdown to read."""

from collections.abc import Iterable, Sequence

import pandas as pd

from analysis.contrasts import CellSummary, Contrast
from analysis.pictures import Strip
from analysis.sections import Section, label, varying
from analysis.statistics import Estimate, Summary, verdict

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


def summary_text(summary: Summary) -> str:
    """Mean and standard deviation of a PSNR in dB; the mean alone where there is one value."""
    return f"{summary.mean:.3f}" if summary.n < 2 else f"{summary.mean:.3f} ± {summary.sd:.3f}"


def contrast_frame(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """One row per contrast and test set."""
    rows = [
        {
            "factor": contrast.factor,
            "base": contrast.base,
            "level": contrast.level,
            "moved_along": " ".join(contrast.pairs.moved_along),
            "test_set": name,
            "psnr_difference_db": estimate.mean,
            "low_95_db": estimate.low,
            "high_95_db": estimate.high,
            "p_uncorrected": estimate.p,
            "seeds": estimate.n,
            "seeds_dropped": len(contrast.dropped),
            "cell_pairs": len(contrast.pairs.cells),
            "ops_change_g": contrast.ops_g,
            "params_change_k": contrast.params_k,
            "verdict": verdict(estimate),
        }
        for contrast in contrasts
        for name, estimate in contrast.psnr.items()
    ]
    return pd.DataFrame(rows)


def contrast_table(contrasts: Sequence[Contrast], sets: Sequence[str]) -> str:
    """What each component is worth, a row per contrast."""
    header = ["Factor", "Change", *(f"{name} (dB)" for name in sets), "Seeds", "Pairs", "OPs (G)", "Params (K)"]
    rows = [
        [
            code(contrast.factor),
            f"{code(contrast.base)} → {code(contrast.level)}",
            *(estimate_text(contrast.psnr[name]) for name in sets),
            str(len(contrast.seeds)),
            str(len(contrast.pairs.cells)),
            f"{contrast.ops_g:+.3f}",
            f"{contrast.params_k:+.1f}",
        ]
        for contrast in contrasts
    ]
    return markdown(header, rows, range(2, len(header)))


def cell_frame(cells: Sequence[CellSummary], section: Section) -> pd.DataFrame:
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


def cell_table(cells: Sequence[CellSummary], sets: Sequence[str]) -> str:
    """Every finished cell, with the columns of each test set side by side."""
    per_set = ("PSNR (dB)", "SSIM", "over baseline", "to anchor [95 %]")
    header = ["Cell", "Seeds", *(f"{name} {column}" for name in sets for column in per_set)]
    header += ["OPs (G)", "Params (K)", "Train (s)"]
    rows = [
        [
            code(cell.label),
            str(len(cell.seeds)),
            *(text for name in sets for text in set_columns(cell, name)),
            f"{cell.ops_g:.3f}",
            f"{cell.params_k:.1f}",
            f"{cell.train_s:.1f}",
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


def unfinished_table(section: Section) -> str:
    """Every trial that is in no other table, with its reason."""
    trials = section.trials[section.trials["state"] != "finished"]
    rows = [
        [code(section.labels[row["cell"]]), str(row["seed"]), row["state"], shortened(row["reason"])]
        for _, row in trials.iterrows()
    ]
    return markdown(["Cell", "Seed", "State", "Reason"], rows, [1])


def left_out_names(section: Section) -> list[str]:
    """A name for each left-out cell, by the levels that vary among those and the cells that were planned."""
    levels = [dict(row.levels) for row in section.left_out]
    planned = [
        {factor: str(row[f"level/{factor}"]) for factor in section.factors} for _, row in section.trials.iterrows()
    ]
    names = varying([*levels, *planned], dict.fromkeys([*section.factors, *(name for row in levels for name in row)]))
    return [label(row, names) for row in levels]


def left_out_frame(section: Section) -> pd.DataFrame:
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


def trial_frame(section: Section) -> pd.DataFrame:
    """Every trial with everything that is recorded of it, but its provenance."""
    frame = section.trials.drop(columns="provenance").dropna(axis=1, how="all")
    frame.columns = [column.removeprefix("metric/") for column in frame.columns]
    return frame


def trial_table(section: Section) -> str:
    """Every trial with its run, for whoever looks one up."""
    rows = [
        [
            code(section.labels[row["cell"]]),
            str(row["seed"]),
            row["state"],
            code(row["run_id"]),
            code(row["git"][:12]),
            {"true": "yes", "false": "no"}.get(row["git_dirty"], ""),
        ]
        for _, row in section.trials.iterrows()
    ]
    return markdown(["Cell", "Seed", "State", "MLflow run", "Git", "Uncommitted changes"], rows, [1])


def strip_frame(strips: Sequence[Strip]) -> pd.DataFrame:
    """What each tile of the picture strips is."""
    rows = [
        {
            "test_set": strip.test_set,
            "picture": strip.picture,
            "tile": tile.title,
            "seed": "" if tile.seed is None else tile.seed,
            "test_set_psnr_db": tile.psnr_db,
        }
        for strip in strips
        for tile in strip.tiles
    ]
    return pd.DataFrame(rows)
