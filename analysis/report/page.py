"""A study's report: one Markdown page with its figures, and the CSV behind each table and figure.

The page opens with what the study says (:mod:`analysis.report.opening`). Everything behind it is folded, in a chapter
for each task (:mod:`analysis.report.chapter`). The templates are the page.
"""

import dataclasses
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ablations.space.price import MEASURED, PAPER
from ablations.space.settings import DATA
from analysis.effects.claims import PROBES, Status
from analysis.effects.curves import TIME
from analysis.effects.depth import EVERY
from analysis.effects.family import DECIDED, Conclusion
from analysis.effects.lengths import shortest
from analysis.report.archive import recording, write_archive
from analysis.report.chapter import LIMITS, Chapter, chapter_of
from analysis.report.drawing import MOST_LINES, Palette
from analysis.report.forms import PAGE, replace, write_forms
from analysis.report.frames import as_csv, rounded_frame
from analysis.report.html.details import Details
from analysis.report.lengths import LINEAR_DB
from analysis.report.markup import anchor
from analysis.report.opening import Opening, first_figure, opening_of
from analysis.report.paper_table import Table, paper_tables
from analysis.report.pictures import MOST_CELLS, SHOWN_PER_SET, drawable
from analysis.report.summary import SUMMARY, summary_of
from analysis.report.words import extremes, key, render, seeds_in_words, with_counts
from analysis.statistics.estimates import MARGIN_DB, break_even_correlation
from analysis.statistics.rounding import rounded
from analysis.study.experiment import run_address
from analysis.study.loading import NOT_RECORDED, StudyResults
from analysis.study.origins import codes, counted, energies, versions
from analysis.study.prices import priced
from analysis.study.schema import STATES
from analysis.study.tasks import TaskResults, cell_levels, split_by_task, varying
from bbcu.errors import BbcuError
from bbcu.files import read_bytes

log = logging.getLogger(__name__)

SAME_COST = 1e-6  # a smaller change in cost is none

ALWAYS_NAMED = ("finished", "failed", "missing")  # the states that the opening counts even if no trial is in them


@dataclasses.dataclass(frozen=True)
class Report:
    """A composed report: its files by name, what the page in HTML adds, and what it says by chapter."""

    files: Mapping[str, bytes]
    details: Details
    opening: Opening
    chapters: Sequence[Chapter]


def compose(study: StudyResults, margin: float = MARGIN_DB) -> dict[str, bytes]:
    """Return every file of the report by its name; see :func:`report_of`."""
    return dict(report_of(study, margin).files)


def report_of(study: StudyResults, margin: float = MARGIN_DB) -> Report:
    """Compose a report; the same results give the same bytes.

    ``margin`` is the difference in dB that does not matter; a stopping rule has its own. Raises ValueError unless it is
    above 0.
    """
    margin = margin if study.rule is None else study.rule.margin_db
    metrics = [name for name in study.trials if str(name).startswith("metric/")]
    study = dataclasses.replace(study, trials=study.trials.assign(**rounded_frame(study.trials[metrics])))
    as_counted, study = study, priced(study)
    parts = split_by_task(study)
    palette = Palette(tuple(dict.fromkeys(label for results in parts for label in results.labels.values())))
    alone = len(parts) == 1
    chapters = [
        chapter_of(results, margin, "" if alone else f"part{number}-", "##" if alone else "###", palette)
        for number, results in enumerate(parts, start=1)
    ]
    log.debug("the page")
    opening = opening_of(study, chapters)
    papers = papers_beside(as_counted, parts)
    files = {name: content for chapter in chapters for name, content in chapter.files.items()}
    files |= {f"{table.name}.csv": as_csv(table.frame) for table in papers}
    if drawn := first_figure(opening, margin):
        files |= {"effects.png": drawn.png, **({"effects.svg": drawn.svg} if drawn.svg else {})}
    page = render(
        "report.md.j2",
        opening=opening,
        study=study,
        chapters=chapters,
        papers=papers,
        margin=margin,
        has_effects="effects.png" in files,
        has_svg="effects.svg" in files,
        several=len(chapters) > 1,
        finished=opening.finished,
        **LIMITS,
        **CONSTANTS,
        **{function.__name__: function for function in FUNCTIONS},
    )
    return Report(
        {PAGE: page.encode(), SUMMARY: summary_of(opening, chapters, page), **files},
        details_of(study, chapters),
        opening,
        chapters,
    )


def details_of(study: StudyResults, chapters: Sequence[Chapter]) -> Details:
    cells = {
        f"runs-{anchor(key(cell))}": {**levels_of(chapter.results, levels.asked), **method_of(chapter.results, cell)}
        for chapter in chapters
        for cell, levels in chapter.results.levels.items()
    }
    strips = {f"{chapter.prefix}{name}.png": strip for chapter in chapters for strip, name in chapter.strips}
    return Details(cells, strips, study.experiment)


def levels_of(results: TaskResults, asked: Mapping[str, str]) -> dict[str, str]:
    """Return levels as a reader chooses them: data by their name, since a fingerprint of 64 digits says nothing."""
    return {name: results.data_word(level) if name == DATA else level for name, level in asked.items()}


def method_of(results: TaskResults, cell: str) -> dict[str, str]:
    return {"method": results.labels[cell]} if results.methods else {}


def papers_beside(study: StudyResults, parts: Sequence[TaskResults]) -> list[Table]:
    """Return the paper's tables beside the planned trials; none for a search, which chose its cells by their scores."""
    if study.is_search:
        return []
    planned = dataclasses.replace(study, trials=study.planned)
    return paper_tables(planned, {identity for results in parts for identity in results.collapsed})


def states_in_words(trials: pd.DataFrame, always: Sequence[str] = ALWAYS_NAMED) -> list[str]:
    """Count the trials by state: ``4 finished``."""
    counts = trials["state"].value_counts()
    return [f"{counts.get(state, 0)} {state}" for state in STATES if counts.get(state, 0) or state in always]


def runs_of_cells(results: TaskResults) -> dict[str, list[tuple[int, str]]]:
    """Return the MLflow run of each seed of each finished cell; empty for a trial that MLflow does not have."""
    runs: dict[str, list[tuple[int, str]]] = {}
    for (cell, seed), run in sorted(results.runs.items()):
        runs.setdefault(cell, []).append((seed, run))
    return runs


def fixed_levels(results: TaskResults) -> dict[str, str]:
    """Return the level of every factor that does not vary, and the recorded levels if ``auto`` was asked for."""
    levels = [cell_levels(row, results.factors).asked for _, row in results.trials.iterrows()]
    free = varying(levels, results.factors)
    fixed = {name: row[name] for row in levels[:1] for name in results.factors if name not in free and row.get(name)}
    recorded = {name: [text for text in results.trials[f"factor/{name}"].unique() if text] for name in fixed}
    return {
        name: f"{level} ({' or '.join(recorded[name])})" if level == "auto" else level for name, level in fixed.items()
    }


def recorded_provenance(results: TaskResults) -> dict[str, str]:
    """Return each key of the trials' provenance with its value, or with every value and how many trials have it.

    The code and the seed are shown elsewhere.
    """
    recorded = [json.loads(text) for text in results.trials["provenance"] if text]
    keys = sorted({key for row in recorded for key in row} - {"seed", "code", "bbcu"})
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
    **{"MOST_LINES": MOST_LINES, "MOST_CELLS": MOST_CELLS, "SHOWN_PER_SET": SHOWN_PER_SET},
    **{"SAME_COST": SAME_COST, "EVERY": EVERY, "PAPER": PAPER, "MEASURED": MEASURED, "TIME": TIME},
    **{"PROBES": PROBES, "LINEAR_DB": LINEAR_DB, "Conclusion": Conclusion, "DECIDED": DECIDED, "Status": Status},
}
FUNCTIONS = (
    *(
        break_even_correlation,
        codes,
        counted,
        drawable,
        energies,
        extremes,
        fixed_levels,
        math.isnan,
        recorded_provenance,
    ),
    *(rounded, run_address, runs_of_cells, seeds_in_words, shortest, states_in_words, versions),
)
"""What the templates use beside the data."""


def write_all(results: StudyResults, margin: float, folder: Path) -> list[Path]:
    """Write a report in all its forms and return their paths; see :func:`write_composed`."""
    return write_composed(results, margin, folder)[0]


def write_composed(results: StudyResults, margin: float, folder: Path) -> tuple[list[Path], Report]:
    """Write a report in all its forms, with the archive of what it read.

    Returns their paths, the page first, and the report. Raises BbcuError if the folder cannot be written to.
    """
    recorded, asked = recording(results)
    log.info("composing the report of %s", results.study)
    report = report_of(recorded, margin)
    files = report.files
    log.info("writing the report to %s", folder)
    try:
        page = write(files, folder)
        figures_and_data = [folder / name for name in files if name != PAGE]
        written = [
            page,
            *figures_and_data,
            *write_forms(files, folder, report.details),
            write_archive(results, asked, margin, folder),
        ]
        return written, report
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
