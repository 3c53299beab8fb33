"""What a study would have said after fewer steps: the figure, and the tables behind it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from analysis.effects.comparisons import Row
from analysis.effects.lengths import Stage
from analysis.report.drawing import Note, Palette, drawing, figure_legend, grid, labelled, legend_height, noted, signed
from analysis.report.forest import OUTCOME_MARKS
from analysis.report.notes import effect_note
from analysis.statistics.estimates import Verdict
from analysis.statistics.rounding import rounded

LINEAR_DB = 0.1  # the axis of the effects is linear up to here, and logarithmic beyond
TICKS_DB = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ROOM = 1.4  # by how much the axis exceeds the largest effect
MARK_SIZE = 6.0


def length_frame(found: Mapping[str, Sequence[Stage]], rows: Sequence[Row]) -> pd.DataFrame:
    """Return a row per test set, step and comparison: the effect at the step, and what it would have been called."""
    return pd.DataFrame(
        {
            "test_set": name,
            "step": stage.step,
            "comparison": row.label,
            "psnr_difference_db": verdict.estimate.mean,
            "low_95_db": verdict.estimate.low,
            "high_95_db": verdict.estimate.high,
            "p_difference_holm": verdict.p_difference,
            "p_equivalence_holm": verdict.p_equivalence,
            "outcome": str(verdict.outcome),
        }
        for name, stages in found.items()
        for stage in stages
        for row, verdict in zip(rows, stage.verdicts, strict=True)
    )


def agreement_frame(found: Mapping[str, Sequence[Stage]]) -> pd.DataFrame:
    """Return a row per test set and step: how far its effects and outcomes are those of the last step."""
    return pd.DataFrame(
        {
            "test_set": name,
            "step": stage.step,
            "rank_correlation": stage.rank_correlation,
            "same_outcome": stage.same,
            "opposite_outcome": stage.opposite,
            "comparisons": len(stage.verdicts),
        }
        for name, stages in found.items()
        for stage in stages
    )


@drawing()
def lengths_figure(
    figure: Figure, found: Mapping[str, Sequence[Stage]], rows: Sequence[Row], labels: Sequence[str], palette: Palette
) -> None:
    """Draw a panel per test set: a line per comparison, its effect against the step, marked by its outcome there.

    ``rows`` are the comparisons to draw, and ``labels`` those of the cells after their change, whose looks they have.
    """
    names = [row.label for row in rows]
    axes = grid(figure, len(found), 3.6, 0.5 + legend_height(names), wide=True, sharey=True)
    for panel, (name, stages) in zip(axes, found.items(), strict=True):
        panel.set_yscale("symlog", linthresh=LINEAR_DB, linscale=0.7)
        panel.set_xscale("log")
        panel.axhline(0, color="0.3", linewidth=0.8)
        steps = [stage.step for stage in stages]
        for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
            look = palette[label]
            verdicts = [rounded(stage.verdicts[place]) for stage in stages]
            means = [verdict.estimate.mean for verdict in verdicts]
            panel.plot(steps, means, color=look.colour, linestyle=look.dashes, label=labelled(row.label))
            for step, verdict in zip(steps, verdicts, strict=True):
                mark = dataclasses.replace(OUTCOME_MARKS[str(verdict.outcome)], colour=look.colour)
                point = panel.plot([step], [verdict.estimate.mean], **mark.look(MARK_SIZE), linestyle="")
                noted(point, note_of(row, name, step, verdict))
        panel.set_title(name)
        panel.set_xlabel("training step")
        panel.set_xticks(halvings(steps), map(str, halvings(steps)))
        panel.xaxis.set_minor_locator(NullLocator())
    every = [one for stages in found.values() for stage in stages for one in stage.verdicts[: len(rows)]]
    fit_effects(axes[0], [one.estimate.mean for one in every])
    axes[0].set_ylabel("difference in PSNR (dB)")
    used = {str(one.outcome) for one in every}
    marks = [mark for name, mark in OUTCOME_MARKS.items() if name in used]
    gray = [dataclasses.replace(mark, colour="0.2").look(MARK_SIZE) for mark in marks]
    handles = [Line2D([], [], linestyle="", **look) for look in gray]
    axes[-1].legend(handles, [mark.name for mark in marks], loc="best", fontsize=9)
    figure_legend(figure, names)


def fit_effects(panel: Axes, effects: Sequence[float]) -> None:
    """Let the axis reach from the lowest effect, or 0, to the highest, or 0, and name it in steps of about three."""
    wide = [ROOM * effect for effect in effects if math.isfinite(effect)]
    low, high = min(-LINEAR_DB / 2, *wide, 0.0), max(LINEAR_DB / 2, *wide, 0.0)
    ticks = [tick for tick in (*(-tick for tick in reversed(TICKS_DB)), 0.0, *TICKS_DB) if low <= tick <= high]
    panel.set_ylim(low, high)
    panel.set_yticks(ticks, [signed(tick, 1) if tick else "0" for tick in ticks])
    panel.yaxis.set_minor_locator(NullLocator())


def note_of(row: Row, test_set: str, step: int, verdict: Verdict) -> Note:
    return effect_note((row.label, test_set, f"step {step}"), verdict.estimate, str(verdict.outcome), row.pair[1])


def halvings(steps: Sequence[int]) -> list[int]:
    """Return the first and the last step, and those nearest to its half, its quarter and so on, ascending."""
    wanted = [steps[-1] / 2**power for power in range(int(math.log2(steps[-1] / steps[0])) + 1)]
    return sorted({steps[0], *(min(steps, key=lambda step: abs(step - each)) for each in wanted)})
