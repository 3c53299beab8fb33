"""A chapter of a report: one task of the study, with all that the page shows of it and the files that it links to."""

import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from ablations.space.claims import pairs_to_test
from ablations.space.family import compared, corrected_together, is_chain, tested_pairs
from ablations.space.interventions import Pair
from ablations.space.price import MEASURED, PAPER
from analysis.effects.cells import CellSummary, cell_summaries
from analysis.effects.claims import ON_PROBES, Assessment, Status, assessed
from analysis.effects.comparisons import Context, Interaction, Row, interactions, most_different, rows
from analysis.effects.curves import TIME, alignment_table, cost_table, costs_differ, curve_table, front
from analysis.effects.depth import SHOWN_MEASURES, depth_table, range_table
from analysis.effects.family import Family, Measured
from analysis.effects.fractions import Fit, fitted, half_normals
from analysis.effects.importance import Importance, importances
from analysis.effects.lengths import Stage, stages
from analysis.effects.ruled import RuledFamily, family_of
from analysis.effects.savings import Prices, Saving, Word, prices_of, savings
from analysis.report import figures, frames
from analysis.report.decisions import Decision, decision_frame, decisions, decisions_figure
from analysis.report.drawing import MOST_LINES, Drawing, Palette
from analysis.report.forest import ContextDot, ContextRow, contexts_figure
from analysis.report.frames import as_csv, rounded_frame
from analysis.report.importance import importance_figure, importance_frame
from analysis.report.lengths import agreement_frame, length_frame, lengths_figure
from analysis.report.markup import file_name
from analysis.report.notes import effect_note
from analysis.report.pictures import Damaged, Strip, strips
from analysis.statistics.estimates import Estimate, correlation_within_seeds
from analysis.statistics.factorial import HalfNormal
from analysis.statistics.rounding import rounded
from analysis.study.latency import Place
from analysis.study.tasks import TaskResults

log = logging.getLogger(__name__)

LIMITS = {
    "MOST_LEFT_OUT": 40,  # a design can leave out thousands of cells
    "MOST_ROWS": 500,  # rows of a table on the page; nobody reads more, and the CSV has all
    "MOST_OPENING": 16,  # interventions in the first table of one task; the rest are below
    "MOST_FRONT": 8,  # cells of the front there
    "MOST_PARTS": 6,  # tasks whose conditions the opening has
    "MOST_TASKS": 2,  # tasks of which it says which effects depend on their context
    "MOST_DEPENDENT": 3,  # interventions whose effect depends on the context in the opening
    "MOST_NAMED": 8,  # names in a sentence of the opening
    "MOST_DECISIONS": 60,  # comparisons in the figure of a stopping rule
    "MOST_INTERACTIONS": 15,  # interactions in the table, the largest first
    "MOST_PRICED": 16,  # cells in the table of prices
    "MOST_COMPARED": 40,  # cells that are ranked pair by pair at each price; of more, those on some front
    "MOST_FLIPS": 10,  # pairs that change their order, the largest first
}
"""How much a page shows; the CSV files have all."""


@dataclasses.dataclass
class Chapter:
    """One task of the study, with all that the page shows of it and the files that it links to.

    ``first`` has the trials from which everything without a verdict is estimated; all unless the study has a stopping
    rule. ``decisions`` are the comparisons of that rule, look by look.

    ``rows`` are the interventions with a verdict, ``elsewhere`` those that only other contexts show. ``prefix`` starts
    the names of its files, ``heading`` is the Markdown mark of its headings, and ``margin`` the difference in dB that
    does not matter. ``strips`` are the drawn ones of ``picture_count`` test pictures, with their file names.
    ``damaged`` are the files of finished trials that cannot be read. ``prices`` ranks the cells at several prices of a
    binary multiply-add, None if too few record what is counted. ``savings_elsewhere`` has what the interventions save
    at the places where fewer cells were measured than at the main one. ``importances`` are those of a search, or why
    there are none. ``stages`` say by test set what ``rows`` would have shown after fewer steps.
    """

    results: TaskResults
    first: TaskResults
    family: Family
    margin: float
    prefix: str
    heading: str
    palette: Palette
    cells: Sequence[CellSummary]
    rows: Sequence[Row]
    elsewhere: Sequence[Row]
    interactions: Sequence[Interaction]
    claims: Sequence[Assessment]
    fit: Fit | None
    half_normals: Mapping[str, HalfNormal]
    is_chain: bool
    decisions: Sequence[Decision] = ()
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    frames: dict[str, pd.DataFrame] = dataclasses.field(default_factory=dict)
    strips: list[tuple[Strip, str]] = dataclasses.field(default_factory=list)
    picture_count: int = 0
    damaged: Damaged = dataclasses.field(default_factory=list)
    prices: Prices | None = None
    savings_elsewhere: Mapping[Place, Mapping[Pair, Saving]] = dataclasses.field(default_factory=dict)
    importances: Sequence[Importance] | str = ()
    stages: Mapping[str, Sequence[Stage]] = dataclasses.field(default_factory=dict)

    def has(self, name: str) -> bool:
        return f"{self.prefix}{name}" in self.files

    def add(self, name: str, drawn: Drawing | None = None, frame: pd.DataFrame | None = None) -> None:
        if drawn:
            self.files[f"{self.prefix}{name}.png"] = drawn.png
            if drawn.svg is not None:
                self.files[f"{self.prefix}{name}.svg"] = drawn.svg
        if frame is not None:
            self.frames[name] = frame
            self.files[f"{self.prefix}{name}.csv"] = as_csv(frame)

    @property
    def family_size(self) -> int:
        return self.family.size

    @functools.cached_property
    def reference(self) -> CellSummary:
        """The cell that effects are measured from."""
        return next(cell for cell in self.cells if cell.is_reference)

    @functools.cached_property
    def with_runs(self) -> frozenset[str]:
        """The cells whose runs the page lists, so that others lead there."""
        return frozenset(cell.cell for cell in self.cells[: LIMITS["MOST_ROWS"]])

    @property
    def baseline(self) -> str:
        return "bicubic interpolation" if self.results.task.startswith("sr") else "unrestored input"

    @property
    def baseline_word(self) -> str:
        return "bicubic" if self.results.task.startswith("sr") else "input"

    @functools.cached_property
    def front(self) -> pd.DataFrame:
        """The cells that no other one beats in PSNR at the same or fewer operations, the cheapest first.

        In the same or less time if the study ranks by that.
        """
        table = cost_table(self.results, self.cells)
        here = table[(table["source"] == "here") & (table["test_set"] == self.results.sets[0])]
        cost = TIME if self.by_time else "ops_g"
        cells = {cell.label: cell.cell for cell in self.cells}
        found = rounded_frame(front(here.dropna(subset=[cost]), cost))
        return found.assign(cell=found["label"].map(cells))

    @property
    def by_time(self) -> bool:
        """Whether cells are ranked by the clock and not by count."""
        return self.results.study.price == MEASURED and self.is_timed

    @property
    def is_timed(self) -> bool:
        return self.results.latency.main is not None

    @property
    def timed_rows(self) -> list[Row]:
        """The interventions of which the clock says something."""
        return [row for row in self.rows if row.saving]

    @property
    def other_words(self) -> list[tuple[Place, list[tuple[Row, Word]]]]:
        """The interventions of which the clock says something else at another place."""
        found: list[tuple[Place, list[tuple[Row, Word]]]] = []
        for place, own in self.savings_elsewhere.items():
            words = [(row, row.saving.word, own[row.pair].word) for row in self.rows if row.saving and row.pair in own]
            different: list[tuple[Row, Word]] = []
            different += [(row, there) for row, here, there in words if there not in (here, Word.ONE_SEED)]
            found += [(place, different)] if different else []
        return found

    @functools.cached_property
    def sound(self) -> list[str]:
        """The trained cells of which no trial collapsed."""
        return [cell for cell in self.first.trained if not self.first.collapsed_seeds(cell)]

    @functools.cached_property
    def correlation(self) -> Mapping[str, float]:
        """The correlation of the sound cells within a seed, by test set."""
        return rounded(
            {
                name: correlation_within_seeds({cell: self.first.psnr(name)[cell] for cell in self.sound})
                for name in self.first.sets
            }
        )

    def having(self, status: Status) -> list[Assessment]:
        return [row for row in self.claims if row.status is status]

    @property
    def tested(self) -> list[Assessment]:
        """The claims that some cells test, in the order of the table."""
        return [row for row in self.claims if row.is_tested]

    @property
    def undecided_apart(self) -> list[Assessment]:
        """The undecided claims whose reason is not that of a row about the same two cells."""
        pairs = {frozenset(row.pair) for row in self.rows}
        return [
            row
            for row in self.having(Status.UNDECIDED)
            if frozenset(row.pair or ()) not in pairs or row.where == ON_PROBES or row.withheld
        ]

    @property
    def has_probes(self) -> bool:
        """Whether a claim about a probe is tested."""
        return any(row.where == ON_PROBES for row in self.tested)

    @property
    def changes_alignment(self) -> bool:
        rows = (*self.rows, *self.elsewhere)
        return any(change.key == "align" for row in rows for change in row.intervention.changes)

    @property
    def contextual(self) -> list[Row]:
        """The interventions with several contexts, those at the reference first."""
        return [row for row in (*self.rows, *self.elsewhere) if row.contexts] + [
            row for row in self.elsewhere if not row.contexts
        ]

    @functools.cached_property
    def dependent(self) -> list[tuple[Row, Context]]:
        """The interventions whose effect surely depends on the context, each with the one that differs most.

        On the first test set; the largest few. An effect that collapsed trials are in does not count, at the reference
        and elsewhere: there the context is not what explains the difference.
        """
        name = self.results.sets[0]
        sound = [
            dataclasses.replace(row, contexts=tuple(each for each in row.contexts if not self.has_collapsed(each.pair)))
            for row in self.rows
            if not self.has_collapsed(row.pair)
        ]
        found = [(row, context) for row in sound if (context := most_different(row, name))]
        found.sort(key=lambda one: -abs(one[1].change[name].mean))
        return found[: LIMITS["MOST_DEPENDENT"]]

    def seeds_behind(self, found: Measured) -> Collection[int] | None:
        """Return the seeds that an estimate is of; None for all that there are."""
        rule = self.results.study.rule
        return None if rule is None else rule.seeds(found.look or rule.first_look)

    def has_collapsed(self, pair: Pair) -> bool:
        return any(map(self.first.collapsed_seeds, pair))

    @functools.cached_property
    def collapsed_somewhere(self) -> list[Row]:
        """The interventions that some collapsed trial is in, in any context."""
        return [
            row
            for row in self.contextual
            if any(map(self.has_collapsed, (row.pair, *(context.pair for context in row.contexts))))
        ]

    @property
    def scopes(self) -> list[str]:
        """What the second reading, over pictures, applies to; empty if scores by picture were not kept."""
        return list(dict.fromkeys(found.scope for row in self.rows for found in row.pictures.values()))


def chapter_of(results: TaskResults, margin: float, prefix: str, heading: str, palette: Palette) -> Chapter:
    """Work out everything that the page shows of one task."""
    log.debug("%s, verdicts", results.title or results.task)
    first = results.at_first_look
    cells = first.study_cells
    found, to_test = compared(cells), pairs_to_test(cells) if first.trained else []
    pairs = tested_pairs(cells, found)
    family = family_of(results, corrected_together(pairs, to_test), margin)
    every = rounded(rows(first, found, family))
    at_reference = [row for row in every if row.pair in pairs and row.pair in family]
    saved = saved_at_each_place(results, [row.pair for row in at_reference])
    here = saved.pop(results.latency.main, {}) if results.latency.main else {}
    chapter = Chapter(
        results=results,
        first=first,
        family=family,
        margin=margin,
        prefix=prefix,
        heading=heading,
        palette=palette,
        cells=rounded(cell_summaries(results, family)),
        rows=[dataclasses.replace(row, saving=here.get(row.pair)) for row in at_reference],
        elsewhere=[described(row) for row in every if row not in at_reference],
        interactions=rounded(interactions(first, at_reference)),
        claims=rounded(assessed(first, to_test, family)),
        fit=rounded(fitted(first, found)),
        half_normals=rounded(half_normals(first)),
        is_chain=is_chain(cells),
        savings_elsewhere=saved,
    )
    if isinstance(family, RuledFamily):
        add_decisions(chapter, family)
    if chapter.cells:
        for add in PARTS:
            log.debug("%s, %s", results.title or results.task, add.__name__.removeprefix("add_"))
            add(chapter)
        chapter.add("cells", frame=frames.cell_frame(chapter.cells, results))
        others = frames.metric_frame(chapter.cells, results)
        if not others.empty:
            chapter.add("metrics", frame=others)
    for name, identities in (
        ("result.json", results.records.damaged),
        ("curve.csv", results.study.damaged_curves.intersection(results.identities)),
    ):
        chapter.damaged += [(cell, seed, name) for cell, seed in identities]
    chapter.damaged.sort()
    if results.left_out:
        chapter.add("left_out", frame=frames.left_out_frame(results))
    chapter.add("trials", frame=frames.trial_frame(results))
    return chapter


def saved_at_each_place(results: TaskResults, pairs: Sequence[Pair]) -> dict[Place, dict[Pair, Saving]]:
    """Return what pairs of cells save by count and by the clock, the place with most cells first."""
    ops = {str(cell): float(value) for cell, value in results.cells["metric/cost/ops_g"].items()} if pairs else {}
    return {place: savings(results.latency, ops, pairs, place) for place in results.latency.places}


def described(row: Row) -> Row:
    """Return a row without its verdict, which a claim may have given to its pair of cells."""
    bare = {name: dataclasses.replace(found, verdict=None, conclusion=None) for name, found in row.by_set.items()}
    return dataclasses.replace(row, by_set=bare)


def add_decisions(chapter: Chapter, family: RuledFamily) -> None:
    results = chapter.results
    chapter.decisions = rounded(decisions(family, results, chapter.rows))
    frame = decision_frame(chapter.decisions)
    if not frame.empty:
        shown = chapter.decisions[: LIMITS["MOST_DECISIONS"]]
        chapter.add("decisions", decisions_figure(shown, results.sets, family.rule.looks), frame)


def context_drawing(chapter: Chapter) -> Drawing | None:
    """Draw each intervention in all of its contexts, on the first test set."""
    name = chapter.results.sets[0]

    def dot(label: str, context: str, effect: Estimate, pair: Pair, at_reference: bool) -> ContextDot:
        where = context or ("at the reference" if at_reference else "")
        note = effect_note((label, where), effect, cell=pair[1])
        return ContextDot(effect, at_reference, chapter.has_collapsed(pair), note)

    lines = [
        ContextRow(
            row.label,
            (
                dot(row.label, row.context, row.described[name], row.pair, row in chapter.rows),
                *(dot(row.label, each.label, each.by_set[name], each.pair, False) for each in row.contexts),
            ),
            row.average[name].mean,
            effect_note((row.label, f"mean over {len(row.contexts) + 1} contexts"), row.average[name]),
        )
        for row in chapter.contextual
        if row.contexts
    ]
    return contexts_figure(lines, chapter.margin) if lines else None


def add_effects(chapter: Chapter) -> None:
    if chapter.rows or chapter.elsewhere:
        chapter.add("effects", frame=frames.row_frame([*chapter.rows, *chapter.elsewhere], chapter.results))
    if chapter.contextual:
        chapter.add("contexts", context_drawing(chapter), frames.context_frame(chapter.contextual, chapter.results))
    if chapter.interactions:
        chapter.add("interactions", frame=frames.interaction_frame(chapter.interactions))
    if chapter.tested:
        chapter.add("claims", frame=frames.claim_frame(chapter.tested, chapter.results))
    if chapter.fit and chapter.fit.effects:
        chapter.add("fit", frame=frames.fit_frame(chapter.fit))
    if chapter.half_normals:
        chapter.add("half_normal", figures.half_normal_figure(chapter.half_normals))


def add_costs(chapter: Chapter) -> None:
    table = rounded_frame(cost_table(chapter.results, chapter.cells))
    if costs_differ(table):
        price = chapter.results.study.price
        counted = PAPER if price == MEASURED else price
        cells = {(cell.label, "here"): cell.cell for cell in chapter.cells}
        places = zip(table["label"].tolist(), table["source"].tolist(), strict=True)
        drawn = table.assign(cell=[cells.get(place, "") for place in places])
        chapter.add("pareto", figures.pareto_figure(drawn, chapter.results.sets, chapter.palette, counted), table)
    aligned = rounded_frame(alignment_table(chapter.results))
    if not aligned.empty:
        chapter.add("alignment", figures.alignment_figure(aligned, chapter.results.sets), aligned)


def add_importances(chapter: Chapter) -> None:
    if not chapter.results.is_search:
        return
    chapter.importances = importances(chapter.results)
    if not isinstance(chapter.importances, str):
        chapter.add("importance", importance_figure(chapter.importances), importance_frame(chapter.importances))


def add_measured(chapter: Chapter) -> None:
    results = chapter.results
    means = {cell.cell: cell.psnr[results.sets[0]].mean for cell in chapter.cells}
    chapter.prices = prices_of(results, results.latency, means, LIMITS["MOST_COMPARED"])
    if chapter.is_timed:
        chapter.add("latency", frame=frames.latency_frame(results))
    if chapter.prices:
        chapter.add("prices", frame=frames.prices_frame(chapter.prices))
        if chapter.prices.flips:
            chapter.add("flips", frame=frames.flips_frame(chapter.prices, results))


def add_probes(chapter: Chapter) -> None:
    depth, ranges = rounded_frame(depth_table(chapter.first)), rounded_frame(range_table(chapter.first))
    if not depth.empty:
        measures = [name for name in SHOWN_MEASURES if (depth["measure"] == name).any()]
        chapter.add("depth", figures.depth_figure(depth, measures, chapter.palette), depth)
    if not ranges.empty:
        chapter.add("ranges", figures.ranges_figure(ranges), ranges)


def add_curves(chapter: Chapter) -> None:
    table = rounded_frame(curve_table(chapter.results))
    if not table.empty:
        labels = [cell.label for cell in chapter.cells][:MOST_LINES]
        drawn = figures.curves_figure(table, labels, chapter.reference.label, chapter.palette)
        chapter.add("curves", drawn, table)


def add_lengths(chapter: Chapter) -> None:
    rows = [row for row in chapter.rows if row.pair in chapter.family]
    chapter.stages = rounded(stages(chapter.first, [row.pair for row in rows], chapter.family))
    if not chapter.stages:
        return
    drawn = rows[:MOST_LINES]
    labels = [chapter.results.labels[row.pair[1]] for row in drawn]
    figure = lengths_figure(chapter.stages, drawn, labels, chapter.palette)
    chapter.add("lengths", figure, length_frame(chapter.stages, rows))
    chapter.add("agreement", frame=agreement_frame(chapter.stages))


def add_pictures(chapter: Chapter) -> None:
    found, chapter.picture_count, damaged = strips(chapter.results, chapter.cells, chapter.baseline_word)
    chapter.damaged += damaged
    for strip in found:
        name = file_name(f"pictures-{strip.test_set}-{strip.picture}", [taken for _, taken in chapter.strips])
        chapter.add(name, figures.strip_figure(strip))
        chapter.strips.append((strip, name))
    if found:
        chapter.add("pictures", frame=frames.strip_frame(found))


PARTS = (
    *(add_effects, add_costs, add_importances, add_measured, add_probes),
    *(add_curves, add_lengths, add_pictures),
)
"""What adds a part of a chapter to it, in the order of the page."""
