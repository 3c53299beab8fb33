"""A study's report: one Markdown page with its figures, and the CSV behind each table and figure.

This module gathers what the page shows; ``templates/report.md.j2`` and ``templates/setting.md.j2`` are the page.
"""

import dataclasses
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.effects.contrasts import (
    METHOD,
    STEP,
    CellSummary,
    Contrast,
    cell_summaries,
    contrasts,
    from_the_reference,
    steps,
)
from analysis.effects.curves import alignment_table, cost_table, costs_differ, curve_table
from analysis.effects.depth import EVERY, SHOWN_MEASURES, depth_table, range_table
from analysis.effects.factors import FactorialAnalysis, factor_pairs, factorial_analyses, merged_cells, part_costs
from analysis.effects.findings import PROBES, Assessment, Status, assessed, comparable
from analysis.report import figures, frames
from analysis.report.archive import recording, write_archive
from analysis.report.figures import MOST_INTERACTIONS, MOST_LINES, Drawing
from analysis.report.forms import PAGE, replace, write_forms
from analysis.report.frames import as_csv, rounded_frame
from analysis.report.markup import Markdown, code, file_name
from analysis.report.paper_table import paper_tables
from analysis.report.pictures import MOST_CELLS, SHOWN_PER_SET, Damaged, Strip, drawable, strips
from analysis.report.words import INTERACTION_WORDS, change, render, with_counts
from analysis.statistics.estimates import MARGIN_DB, Outcome, smallest_sign_flip_p, what_seeds_allow
from analysis.statistics.factorial import Effect
from analysis.statistics.rounding import rounded
from analysis.study.loading import NOT_RECORDED, StudyResults
from analysis.study.origins import code_by_trial, codes, counted, data_of, energies
from analysis.study.schema import STATES
from analysis.study.settings import SettingResults, levels_of, split_by_setting, varying
from bbcu.errors import BbcuError
from bbcu.files import read_bytes

LIMITS = {
    "MOST_LEFT_OUT": 40,  # a design can leave out thousands of cells
    "MOST_ROWS": 500,  # rows of a table on the page; nobody reads more, and the CSV has all
    "MOST_NAMED": 8,  # comparisons of one verdict in the summary, the largest first
    "MOST_PAIRS_NAMED": 30,  # pairs of cells behind a row
    "FEW_ROWS": 6,  # a table of more rows folds away the sentences below it
    "MOST_PAIRS": 6,  # pairs of factors that are drawn, the largest interactions first
}
SAME_COST = 1e-6  # a smaller change in cost is none

ALWAYS_NAMED = ("finished", "failed", "missing")  # the states that the opening counts even if no trial is in them


@dataclasses.dataclass
class Chapter:
    """One setting of the study, with all that the page shows of it and the files that it links to.

    ``contrasts`` average over all pairs of cells, ``alone`` are those of single pairs with the reference cell (empty if
    they are the same), and ``steps`` those of a chain. ``prefix`` starts the names of its files, ``heading`` is the
    Markdown mark of its headings, and ``margin`` the difference in dB that does not matter. ``strips`` are the drawn
    ones of ``picture_count`` test pictures, with their file names. ``damaged`` are the files of finished trials that
    cannot be read.
    """

    results: SettingResults
    margin: float
    prefix: str
    heading: str
    cells: Sequence[CellSummary]
    contrasts: Sequence[Contrast]
    alone: Sequence[Contrast]
    steps: Sequence[Contrast]
    analyses: Mapping[str, FactorialAnalysis]
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    frames: dict[str, pd.DataFrame] = dataclasses.field(default_factory=dict)
    strips: list[tuple[Strip, str]] = dataclasses.field(default_factory=list)
    picture_count: int = 0
    damaged: Damaged = dataclasses.field(default_factory=list)

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

    @functools.cached_property
    def reference(self) -> CellSummary:
        """The finished cell that is closest to the reference levels."""
        return next(cell for cell in self.cells if cell.is_reference)

    @property
    def baseline(self) -> str:
        return "bicubic interpolation" if self.results.setting.get("task.name", "")[:2] == "sr" else "unrestored input"

    @property
    def design(self) -> FactorialAnalysis | None:
        """The analysis of the first test set; None if the study is not a design."""
        return next(iter(self.analyses.values()), None)

    @functools.cached_property
    def part_costs(self) -> Mapping[str, tuple[float, float]]:
        return rounded(part_costs(self.results, self.design.responses.factors)) if self.design else {}

    @functools.cached_property
    def seed_numbers(self) -> list[int]:
        """The different numbers of seeds behind the contrasts."""
        return sorted({len(row.seeds) for row in self.contrasts if row.seeds})

    @property
    def what_seeds_allow(self) -> list[str]:
        """What these numbers of seeds can show at best, in sentences."""
        family = max((verdict.comparisons for row in self.contrasts for verdict in row.verdicts.values()), default=1)
        return [what_seeds_allow(number, max(family, 1)) for number in self.seed_numbers]

    @property
    def scopes(self) -> list[str]:
        """What the second reading, over pictures, applies to; empty if scores by picture were not kept."""
        return list(dict.fromkeys(found.scope for row in self.contrasts for found in row.images.values()))

    @property
    def has_single_seed(self) -> bool:
        """Whether some cell is compared with the reference cell under one seed alone."""
        return any(found.n == 1 for cell in self.cells for found in cell.to_reference.values())

    @property
    def collapsed_cells(self) -> list[str]:
        """The keys of the cells with a collapsed trial."""
        return list(dict.fromkeys(cell for cell, _ in self.results.collapsed))

    def decided(self, outcome: Outcome) -> list[tuple[Contrast, list[str]]]:
        """Return the contrasts with this verdict and the test sets on which they have it.

        They are the steps of a chain or else what a level does to the reference; a study of parts has its own lines.
        """
        rows = [] if self.part_costs else self.steps or self.alone or self.contrasts
        found = [(row, [name for name, verdict in row.verdicts.items() if verdict.outcome is outcome]) for row in rows]
        return [(row, sets) for row, sets in found if sets]

    def largest(self, found: Sequence[tuple[Contrast, list[str]]]) -> list[tuple[Contrast, list[str]]]:
        """Return the largest of the decided contrasts, in the order given."""
        size = [max(abs(row.psnr[name].mean) for name in sets) for row, sets in found]
        places = sorted(range(len(found)), key=lambda place: -size[place])[: LIMITS["MOST_NAMED"]]
        return [found[place] for place in sorted(places)]

    def labels_of(self, cells: Sequence[str]) -> list[Markdown]:
        return [code(self.results.labels[cell]) for cell in cells]

    def differs_in_code(self, row: Contrast) -> bool:
        """Tell whether some pair of cells was made by different code under a seed."""
        made_by = code_by_trial(self.results)
        return any(made_by[base, seed] != made_by[other, seed] for base, other in row.pairs.cells for seed in row.seeds)


def compose(study: StudyResults, margin: float = MARGIN_DB) -> dict[str, bytes]:
    """Return every file of the report by its name; the same results give the same bytes.

    ``margin`` is the difference in dB that does not matter. Raises ValueError unless it is above 0.
    """
    metrics = [name for name in study.trials if str(name).startswith("metric/")]
    study = dataclasses.replace(study, trials=study.trials.assign(**rounded_frame(study.trials[metrics])))
    settings = split_by_setting(study)
    alone = len(settings) == 1
    chapters = [
        chapter_of(results, margin, "" if alone else f"setting{number}-", "##" if alone else "###")
        for number, results in enumerate(settings, start=1)
    ]
    groups = comparable([results for results in settings if len(results.finished)])
    claims = [
        Claims(group, rounded(assessed(group, margin)), "" if len(groups) == 1 else f"setting{number}-")
        for number, group in enumerate(groups, start=1)
    ]
    papers = paper_tables(study)
    files = {f"{claim.prefix}findings.csv": as_csv(frames.finding_frame(claim.rows)) for claim in claims}
    files |= {f"{table.name}.csv": as_csv(table.frame) for table in papers}
    for chapter in chapters:
        files |= chapter.files
    page = render(
        "report.md.j2",
        study=study.study,
        trials=study.trials,
        chapters=chapters,
        claims=claims,
        papers=papers,
        margin=margin,
        data_sets=counted(data_of(results) for results in settings for _ in range(len(results.trials))),
        codes_used=counted(made_by for results in settings for made_by in codes(results.finished)),
        behind=list(rows_behind(chapters, claims)),
        **LIMITS,
        **CONSTANTS,
        **{function.__name__: function for function in FUNCTIONS},
    )
    return {PAGE: page.encode(), **files}


@dataclasses.dataclass(frozen=True)
class Claims:
    """The paper's claims put to settings that may be compared; ``prefix`` starts the names of its files and rows."""

    settings: Sequence[SettingResults]
    rows: Sequence[Assessment]
    prefix: str

    def having(self, status: Status) -> list[Assessment]:
        return [row for row in self.rows if row.status is status]

    @property
    def tested(self) -> list[Assessment]:
        """The claims that some cells test, in the order of the table."""
        return [row for row in self.rows if row.status is not Status.NOT_TESTED]

    @property
    def untested_count(self) -> int:
        """How many claims no test set and no probe tests."""
        return len({row.finding.claim for row in self.rows} - {row.finding.claim for row in self.tested})


def chapter_of(results: SettingResults, margin: float, prefix: str, heading: str) -> Chapter:
    """Work out everything that the page shows of one setting."""
    chapter = Chapter(
        results,
        margin,
        prefix,
        heading,
        rounded(cell_summaries(results)),
        rounded(contrasts(results, margin)),
        rounded(from_the_reference(results, margin)),
        rounded(steps(results, margin)),
        rounded(factorial_analyses(results, margin)),
    )
    if chapter.cells:
        for add in (add_effects, add_design, add_costs, add_probes, add_curves, add_pictures):
            add(chapter)
        chapter.add("cells", frame=frames.cell_frame(chapter.cells, results))
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


def add_effects(chapter: Chapter) -> None:
    sets, margin = chapter.results.sets, chapter.margin
    kinds = {"alone, from the reference": chapter.alone, "all pairs": chapter.contrasts, "step": chapter.steps}
    if chapter.contrasts:
        drawn = figures.effects_figure(chapter.alone or chapter.contrasts, sets, margin)
        chapter.add("effects", drawn, frames.contrast_frame(kinds))
    if chapter.steps:
        chapter.add("steps", figures.effects_figure(chapter.steps, sets, margin))
    if chapter.part_costs:
        chapter.add("parts", frame=frames.part_frame(chapter.analyses, chapter.part_costs))


def add_design(chapter: Chapter) -> None:
    """Add main effects, interactions and shares of the gain, if several factors vary."""
    analyses, design = chapter.analyses, chapter.design
    if design is None or not any(each.effects and each.effects.effects for each in analyses.values()):
        return
    chapter.add("design", frame=frames.effect_frame(analyses))
    if all(analysis.interactions for analysis in analyses.values()):
        chapter.add("interactions", figures.interactions_figure(analyses, chapter.margin))
    if pairs := factor_pairs(design):
        chapter.add("means", figures.means_figure(design, pairs[: LIMITS["MOST_PAIRS"]]))
    if plots := {name: analysis.half_normal for name, analysis in analyses.items() if analysis.half_normal}:
        chapter.add("half_normal", figures.half_normal_figure(plots))
    if shared := {name: analysis for name, analysis in analyses.items() if analysis.shares}:
        chapter.add("shares", figures.shares_figure(shared), frames.share_frame(shared))


def add_costs(chapter: Chapter) -> None:
    table = rounded_frame(cost_table(chapter.results, chapter.cells))
    if costs_differ(table):
        chapter.add("pareto", figures.pareto_figure(table, chapter.results.sets), table)
    aligned = rounded_frame(alignment_table(chapter.results))
    if not aligned.empty:
        chapter.add("alignment", figures.alignment_figure(aligned, chapter.results.sets), aligned)


def add_probes(chapter: Chapter) -> None:
    depth, ranges = rounded_frame(depth_table(chapter.results)), rounded_frame(range_table(chapter.results))
    if not depth.empty:
        measures = [name for name in SHOWN_MEASURES if (depth["measure"] == name).any()]
        chapter.add("depth", figures.depth_figure(depth, measures), depth)
    if not ranges.empty:
        chapter.add("ranges", figures.ranges_figure(ranges), ranges)


def add_curves(chapter: Chapter) -> None:
    table = rounded_frame(curve_table(chapter.results))
    if not table.empty:
        labels = [cell.label for cell in chapter.cells][:MOST_LINES]
        chapter.add("curves", figures.curves_figure(table, labels), table)


def add_pictures(chapter: Chapter) -> None:
    found, chapter.picture_count, damaged = strips(chapter.results, chapter.cells, chapter.baseline.split()[0])
    chapter.damaged += damaged
    for strip in found:
        name = file_name(f"pictures-{strip.test_set}-{strip.picture}", [taken for _, taken in chapter.strips])
        chapter.add(name, figures.strip_figure(strip))
        chapter.strips.append((strip, name))
    if found:
        chapter.add("pictures", frame=frames.strip_frame(found))


def states_in_words(trials: pd.DataFrame, always: Sequence[str] = ALWAYS_NAMED) -> list[str]:
    """Count the trials by state: ``4 finished``."""
    counts = trials["state"].value_counts()
    return [f"{counts.get(state, 0)} {state}" for state in STATES if counts.get(state, 0) or state in always]


def change_in_words(row: Contrast) -> Markdown:
    if row.factor == METHOD:
        return Markdown("{} instead of {}").format(code(row.level), code(row.base))
    if row.factor == STEP:
        return Markdown("{} against {}").format(row.level, row.base)
    return Markdown("{} instead of {}").format(code(f"{row.factor}={row.level}"), code(row.base))


def effects_of_order(analysis: FactorialAnalysis, order: int) -> list[tuple[Effect, str]]:
    """Return the effects of one factor, or of two together, each with its verdict in words."""
    return [
        (effect, str(verdict.outcome) if order == 1 else INTERACTION_WORDS[verdict.outcome])
        for effect, verdict in analysis.judged
        if len(effect.term.moved) == order
    ]


def rows_behind(chapters: Sequence[Chapter], claims: Sequence[Claims]) -> Iterator[dict[str, object]]:
    """Yield the cells and seeds that each row of the tables of contrasts and claims rests on."""
    tables: dict[str, list[tuple[str, Contrast | Assessment]]] = {}
    for chapter in chapters:
        for name, rows in (("alone", chapter.alone), ("effects", chapter.contrasts), ("steps", chapter.steps)):
            tables[f"{chapter.prefix}{name}"] = [(change(row), row) for row in rows]
    for claim in claims:
        tables[f"{claim.prefix}claims"] = [(f"{row.finding.claim}, {row.where}", row) for row in claim.tested]
    for table, named in tables.items():
        for number, (what, row) in enumerate(named, start=1):
            yield {"table": table, "number": number, "what": what, "pairs": row.pairs.cells, "seeds": row.seeds}


def runs_of_cells(results: SettingResults) -> dict[str, list[tuple[int, str]]]:
    """Return the MLflow run of each seed of each finished cell; empty for a trial that MLflow does not have."""
    runs: dict[str, list[tuple[int, str]]] = {}
    columns = (results.finished[name].tolist() for name in ("cell", "seed", "run_id"))
    for cell, seed, run in sorted(zip(*columns, strict=True)):
        runs.setdefault(cell, []).append((seed, run))
    return runs


def fixed_levels(results: SettingResults) -> dict[str, str]:
    """Return the level of every factor that does not vary, and the recorded levels if ``auto`` was asked for."""
    levels = [levels_of(row, results.factors) for _, row in results.trials.iterrows()]
    free = varying(levels, results.factors)
    fixed = {name: level for row in levels[:1] for name, level in row.items() if name not in free and level}
    recorded = {name: [text for text in results.trials[f"factor/{name}"].unique() if text] for name in fixed}
    return {
        name: f"{level} ({' or '.join(recorded[name])})" if level == "auto" else level for name, level in fixed.items()
    }


def recorded_provenance(results: SettingResults) -> dict[str, str]:
    """Return each key of the trials' provenance with its value, or with every value and how many trials have it.

    The code and the seed are shown elsewhere.
    """
    recorded = [json.loads(text) for text in results.trials["provenance"] if text]
    keys = sorted({key for row in recorded for key in row} - {"seed", "code"})
    counts = {key: Counter(readable(row.get(key, NOT_RECORDED)) for row in recorded) for key in keys}
    return {
        key: next(iter(values)) if len(values) == 1 else "; ".join(with_counts(dict(sorted(values.items()))))
        for key, values in counts.items()
    }


def readable(value: object) -> str:
    """Spell a value of the provenance: ``numpy 2.4.6, torch 2.13.0``."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {value[name]}" for name in sorted(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


CONSTANTS = {
    **{"MOST_LINES": MOST_LINES, "MOST_CELLS": MOST_CELLS, "MOST_INTERACTIONS": MOST_INTERACTIONS},
    **{"SHOWN_PER_SET": SHOWN_PER_SET, "SAME_COST": SAME_COST, "NOT_RECORDED": NOT_RECORDED, "EVERY": EVERY},
    **{"PROBES": PROBES, "Outcome": Outcome, "Status": Status},
}
FUNCTIONS = (
    *(change_in_words, codes, counted, data_of, drawable, effects_of_order, energies, factor_pairs, fixed_levels),
    *(frames.part_effects, math.isnan, merged_cells, recorded_provenance, rounded, runs_of_cells),
    *(smallest_sign_flip_p, states_in_words, zip),
)
"""What the templates use beside the data."""


def write_all(results: StudyResults, margin: float, folder: Path) -> list[Path]:
    """Write a report in all its forms, with the archive of what it read, and return their paths, the page first.

    Raises BbcuError if the folder cannot be written to.
    """
    recorded, asked = recording(results)
    files = compose(recorded, margin)
    try:
        page = write(files, folder)
        figures_and_data = [folder / name for name in files if name != PAGE]
        return [page, *figures_and_data, *write_forms(files, folder), write_archive(results, asked, margin, folder)]
    except OSError as error:
        place = error.filename or folder
        raise BbcuError(f"{folder}: the report cannot be written: {place}: {error.strerror}") from error


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a report's files into ``folder`` and return the page's path; links in their places are replaced.

    Files that only the previous page linked to are removed: they would show results that are gone.
    """
    page = folder / PAGE
    for name in re.findall(rb"\]\(([\w.-]+\.(?:png|svg|csv))\)", previous(page)):
        if name.decode() not in files:
            (folder / name.decode()).unlink(missing_ok=True)
    for name, content in files.items():
        if name != PAGE:
            replace(folder / name, content)
    replace(page, files[PAGE])
    return page


def previous(page: Path) -> bytes:
    """Return the page that is there already; nothing if it cannot be read."""
    try:
        return read_bytes(page)
    except OSError:
        return b""
