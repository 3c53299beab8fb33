"""What a report says first, in at most forty lines: question, conditions, and each intervention at the reference."""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from ablations.space.price import PAPER
from analysis.effects.claims import Status
from analysis.effects.comparisons import Row
from analysis.effects.family import Conclusion, Measured
from analysis.effects.savings import Word
from analysis.report.chapter import LIMITS, Chapter
from analysis.report.conditions import Conditions, conditions_of, question_of
from analysis.report.drawing import Drawing
from analysis.report.forest import Dot, ForestCell, ForestRow, forest_figure
from analysis.report.markup import Markdown
from analysis.report.notes import measured_note, seed_note
from analysis.report.stopping import Stopping
from analysis.statistics.rounding import rounded
from analysis.study.loading import StudyResults
from analysis.study.origins import versions
from analysis.study.tasks import cell_labels, words_of_data


@dataclasses.dataclass(frozen=True)
class Panel:
    """One column of the first table and figure: a test set of a chapter."""

    chapter: Chapter
    test_set: str
    title: str


@dataclasses.dataclass(frozen=True)
class OpeningRow:
    """An intervention in the first table: its row in each chapter that has it, by the chapter's number."""

    label: str
    rows: Mapping[int, Row]

    def measured(self, panel: Panel, chapters: Sequence[Chapter]) -> Measured | None:
        row = self.rows.get(place_of(panel.chapter, chapters))
        return row.by_set.get(panel.test_set) if row else None


def place_of(chapter: Chapter, chapters: Sequence[Chapter]) -> int:
    return next(number for number, other in enumerate(chapters) if other is chapter)


@dataclasses.dataclass(frozen=True)
class Opening:
    """What the page says first: the question, the conditions, the interventions, and what they add up to."""

    study: StudyResults
    question: Markdown
    conditions: Sequence[Conditions]
    chapters: Sequence[Chapter]
    panels: Sequence[Panel]
    rows: Sequence[OpeningRow]

    @property
    def base(self) -> str:
        """The method that the others are compared with, by its names; empty if other things are compared too."""
        names = dict.fromkeys(chapter.reference.label for chapter in self.finished if chapter.results.methods)
        return " or ".join(names) if all(chapter.results.methods for chapter in self.finished) else ""

    @property
    def shown(self) -> Sequence[OpeningRow]:
        """The rows of the first table, as many as leave the opening at forty lines."""
        parts = min(len(self.chapters), LIMITS["MOST_PARTS"])
        taken = (parts if parts > 1 else 0) + (self.stopping.lines if self.stopping else 0)
        taken += bool(self.savings) + 2 * (self.study.price != PAPER)
        return self.rows[: LIMITS["MOST_OPENING"] - taken]

    @functools.cached_property
    def finished(self) -> list[Chapter]:
        return [chapter for chapter in self.chapters if chapter.cells]

    def concluded(self, *conclusions: Conclusion) -> list[tuple[OpeningRow, list[Panel]]]:
        """Return the rows with one of these conclusions and the panels in which they have it, largest effect first."""
        found = []
        for row in self.rows:
            measured = [(panel, row.measured(panel, self.chapters)) for panel in self.panels]
            own = [(panel, each) for panel, each in measured if each and each.conclusion in conclusions]
            if own:
                size = max(abs(each.estimate.mean) for _, each in own)
                found.append((row, [panel for panel, _ in own], size))
        return [(row, panels) for row, panels, _ in sorted(found, key=lambda one: -rounded(one[2]))]

    @functools.cached_property
    def savings(self) -> list[tuple[Word, list[tuple[OpeningRow, list[Panel]]]]]:
        """What the clock says of savings by count: each word with its rows and the panels of the parts that have it."""
        found = []
        for word in Word:
            own = [
                (row, [panel for panel in self.panels if self.saving(row, panel) is word])
                for row in self.rows
                if any(self.saving(row, panel) is word for panel in self.panels)
            ]
            found += [(word, own)] if own else []
        return found

    def saving(self, row: OpeningRow, panel: Panel) -> Word | None:
        found = row.rows.get(place_of(panel.chapter, self.chapters))
        return found.saving.word if found and found.saving else None

    def looks_of(self, row: OpeningRow) -> list[str]:
        """Return the number of seeds at the look of a row: one if it is the same everywhere, or else one per panel."""
        measured = [row.measured(panel, self.chapters) for panel in self.panels]
        looks = ["—" if each is None or each.look is None else str(each.look or "none yet") for each in measured]
        known = set(looks) - {"—"}
        return [*known] if len(known) == 1 else looks

    @property
    def detectable(self) -> tuple[float, float] | None:
        """The range, over the undecided rows, of the smallest effect that the seeds could have shown, in dB."""
        found = [
            each.verdict.detectable
            for row in self.rows
            for panel in self.panels
            if (each := row.measured(panel, self.chapters))
            and each.conclusion is Conclusion.UNDECIDED
            and each.verdict
            and math.isfinite(each.verdict.detectable)
        ]
        return (min(found), max(found)) if found else None

    def claims(self, status: Status) -> list[tuple[str, list[str]]]:
        """Return each claim of this status, and where it has it if that is not wherever it was tested.

        A claim is contradicted if it is anywhere, and otherwise undecided if it is anywhere.
        """
        found: dict[str, dict[Status, list[str]]] = {}
        for chapter in self.finished:
            for row in chapter.tested:
                where = f"{chapter.results.title} {row.where}".strip()
                found.setdefault(row.claim.text, {}).setdefault(row.status, []).append(where)
        order = (Status.CONTRADICTED, Status.UNDECIDED, Status.SUPPORTED)
        first = {text: next(each for each in order if each in by_status) for text, by_status in found.items()}
        return [
            (text, found[text][status] if len(found[text]) > 1 else []) for text, own in first.items() if own is status
        ]

    @functools.cached_property
    def stopping(self) -> Stopping | None:
        """The stopping rule of the study, if it has one."""
        rule = self.study.rule
        return None if rule is None else Stopping(rule, self.study.planned, self.chapters)

    @property
    def unfinished(self) -> pd.DataFrame:
        planned = self.study.planned
        return planned[planned["state"] != "finished"]

    @property
    def unplanned(self) -> pd.DataFrame:
        """The trials that no design lists: single runs and teachers."""
        return self.study.trials[self.study.trials["planned"] != "true"]

    @functools.cached_property
    def names(self) -> Mapping[str, str]:
        """Every cell of the study, of the plan or not, by what varies."""
        return cell_labels(self.study.trials, self.study.factors, words_of_data(self.study.data_names))

    @property
    def dirty(self) -> int:
        """How many finished trials ran with uncommitted changes."""
        return sum(int((chapter.results.finished["git_dirty"] == "true").sum()) for chapter in self.chapters)

    @functools.cached_property
    def codes(self) -> Mapping[str, int]:
        return versions(pd.concat([chapter.results.finished for chapter in self.chapters]))

    @functools.cached_property
    def dead(self) -> list[Chapter]:
        """The chapters in which every trained network collapsed."""
        return [
            chapter
            for chapter in self.finished
            if chapter.results.trained and all(map(chapter.results.is_down, chapter.results.trained))
        ]

    @property
    def mostly_down(self) -> list[tuple[Chapter, int]]:
        """The other chapters of which most networks collapsed under every seed, with how many did."""
        found = [chapter for chapter in self.finished if chapter.results.is_mostly_down]
        return [
            (chapter, sum(map(chapter.results.is_down, chapter.results.trained)))
            for chapter in found
            if not any(chapter is dead for dead in self.dead)
        ]

    @property
    def down(self) -> list[Chapter]:
        """The other chapters whose reference cell collapsed under every seed."""
        return [
            chapter
            for chapter in self.finished
            if chapter.results.is_down(chapter.results.reference) and not any(chapter is dead for dead in self.dead)
        ]


def opening_of(study: StudyResults, chapters: Sequence[Chapter]) -> Opening:
    several = len(chapters) > 1
    panels = [
        Panel(chapter, name, f"{chapter.results.title} {name}" if several else name)
        for chapter in chapters
        for name in chapter.results.sets
    ]
    found: dict[str, OpeningRow] = {}
    for number, chapter in enumerate(chapters):
        for row in chapter.rows:
            known = found.get(row.label, OpeningRow(row.label, {}))
            found[row.label] = dataclasses.replace(known, rows={**known.rows, number: row})
    conditions = [conditions_of(chapter.results) for chapter in chapters]
    return Opening(
        study, question_of([each.results for each in chapters]), conditions, chapters, panels, [*found.values()]
    )


def first_figure(opening: Opening, margin: float) -> Drawing | None:
    """Draw the interventions of the first table as a forest, with the seeds as dots."""
    panels = [panel.title for panel in opening.panels]
    if not opening.shown:
        return None
    lines = [
        ForestRow(
            row.label,
            {
                panel.title: forest_cell(panel.chapter, row.rows[number], panel.test_set)
                for panel in opening.panels
                if (number := place_of(panel.chapter, opening.chapters)) in row.rows
            },
        )
        for row in opening.shown
    ]
    reference = None
    if not any(chapter.is_chain for chapter in opening.chapters):
        names = {chapter.reference.label for chapter in opening.finished}
        reference = ForestRow(
            f"Reference: {next(iter(names))}" if len(names) == 1 else "Reference",
            {
                panel.title: ForestCell(
                    None, "", dots_of(panel.chapter, panel.chapter.results.reference, None, panel.test_set)
                )
                for panel in opening.panels
            },
        )
    return forest_figure(lines, panels, margin, reference, repeated=opening.stopping is not None)


def forest_cell(chapter: Chapter, row: Row, test_set: str) -> ForestCell:
    found = row.by_set[test_set]
    seeds = chapter.seeds_behind(found)
    dots = dots_of(chapter, row.pair[1], row.pair[0], test_set, seeds)
    note = measured_note((row.label, f"{chapter.results.title} {test_set}".strip()), found, row.pair[1])
    return ForestCell(found.estimate, str(found.conclusion or ""), dots, note)


def dots_of(
    chapter: Chapter, cell: str, base: str | None, test_set: str, seeds: Collection[int] | None = None
) -> tuple[Dot, ...]:
    """The score of each seed of a cell minus the mean of another one, or of the cell itself; of these ``seeds``."""
    scores, down = chapter.results.psnr(test_set), chapter.results.collapsed_seeds(cell)
    own, level = (
        {seed: score for seed, score in scores[each].items() if seeds is None or seed in seeds}
        for each in (cell, base or cell)
    )
    if not level:
        return ()
    mean = math.fsum(level.values()) / len(level)
    results, side = chapter.results, "its mean" if base is None else f"the mean of {chapter.results.labels[base]}"

    def dot(seed: int, score: float) -> Dot:
        difference, collapsed = rounded(score - mean), seed in down
        numbers = f"{'collapsed, ' if collapsed else ''}PSNR {score:.3f} dB, {difference:+.3f} dB from {side}"
        names = (results.labels[cell], f"{results.title} {test_set}".strip())
        return Dot(difference, collapsed, seed_note(names, seed, numbers, results.runs[cell, seed], cell))

    return tuple(dot(seed, score) for seed, score in own.items())
