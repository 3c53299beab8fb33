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

from ablations.storage.files import write_atomically
from analysis.effects.contrasts import (
    METHOD,
    STEP,
    CellSummary,
    Contrast,
    cell_summaries,
    contrasts,
    descending_psnr,
    from_the_reference,
    steps,
)
from analysis.effects.curves import alignment_table, cost_table, costs_differ, curve_table
from analysis.effects.depth import EVERY, SHOWN_MEASURES, depth_table, range_cells, range_table
from analysis.effects.factors import (
    BINARY,
    FactorialAnalysis,
    factor_pairs,
    factorial_analyses,
    merged_cells,
    part_costs,
)
from analysis.effects.findings import PROBES, Assessment, Status, assessed, comparable
from analysis.report import figures, frames
from analysis.report.figures import MOST_INTERACTIONS, MOST_LINES, Drawing
from analysis.report.paper_table import paper_tables
from analysis.report.pictures import MOST_CELLS, SHOWN_PER_SET, Strip, drawable, strips
from analysis.report.rounding import as_csv, rounded
from analysis.report.words import INTERACTION_WORDS, render, values_with_counts
from analysis.statistics.estimates import MARGIN_DB, Outcome, smallest_sign_flip_p, what_seeds_allow
from analysis.statistics.factorial import Effect
from analysis.study.loading import NOT_RECORDED, StudyResults
from analysis.study.origins import code_by_trial, codes, counted, counted_in_words, data_of, energies, energy_in_words
from analysis.study.settings import KEY_LENGTH, SettingResults, levels_of, split_by_setting, varying

PAGE = "report.md"

LIMITS = {
    "MOST_LEFT_OUT": 40,  # a design can leave out thousands of cells
    "MOST_ROWS": 500,  # rows of a table on the page; nobody reads more, and the CSV has all
    "MOST_NAMED": 8,  # comparisons of one verdict in the summary, the largest first
    "MOST_PAIRS_NAMED": 30,  # pairs of cells behind a row
    "FEW_ROWS": 6,  # a table of more rows folds away the sentences below it
    "MOST_PAIRS": 6,  # pairs of factors that are drawn, the largest interactions first
}
MOST_ROWS = LIMITS["MOST_ROWS"]

SAME_COST = 1e-6
"""A smaller change in cost is none."""

STATES = ("finished", "failed", "interrupted", "pruned", "running", "missing")
ALWAYS_NAMED = ("finished", "failed", "missing")
"""The states that the opening counts even if no trial is in them."""

READINGS = {"alone": "alone, from the reference", "contrasts": "all pairs", "steps": "step"}
"""The three kinds of contrasts, as ``effects.csv`` names them."""


@dataclasses.dataclass
class Chapter:
    """One setting of the study, with all that the page shows of it and the files that it links to.

    ``contrasts`` average over all pairs of cells, ``alone`` are those of single pairs with the reference cell (empty if
    they are the same), and ``steps`` those of a chain. ``prefix`` starts the names of its files, ``heading`` is the
    Markdown mark of its headings, and ``margin`` the difference in dB that does not matter.

    What a figure cannot show in full is counted: ``pair_count`` pairs of factors, ``alignment_lines``,
    ``picture_count`` test pictures and ``drawable_count`` cells with pictures of their own; ``strips`` are the drawn
    ones with their file names. ``merged_count`` cells of the design take the scores of another cell,
    ``has_paper_points`` says whether the paper has points to draw against cost, and ``depth_by_cell`` whether the
    probes are drawn cell by cell.
    """

    section: SettingResults
    margin: float
    prefix: str
    heading: str
    cells: Sequence[CellSummary]
    contrasts: Sequence[Contrast]
    alone: Sequence[Contrast]
    steps: Sequence[Contrast]
    readings: Mapping[str, FactorialAnalysis]
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    pair_count: int = 0
    merged_count: int = 0
    has_paper_points: bool = False
    alignment_lines: int = 0
    depth_by_cell: bool = False
    strips: list[tuple[Strip, str]] = dataclasses.field(default_factory=list)
    picture_count: int = 0
    drawable_count: int = 0

    def has(self, name: str) -> bool:
        """Tell whether the setting has a file of this name."""
        return f"{self.prefix}{name}" in self.files

    def add(self, name: str, drawn: Drawing | None = None, frame: pd.DataFrame | None = None) -> None:
        """Add a figure, a table's data or both under one name."""
        if drawn:
            self.files[f"{self.prefix}{name}.png"] = drawn.png
            if drawn.svg is not None:
                self.files[f"{self.prefix}{name}.svg"] = drawn.svg
        if frame is not None:
            self.files[f"{self.prefix}{name}.csv"] = as_csv(frame)

    @functools.cached_property
    def reference(self) -> CellSummary:
        """The finished cell that is closest to the reference levels."""
        return next(cell for cell in self.cells if cell.is_anchor)

    @functools.cached_property
    def baseline(self) -> str:
        """What the task's baseline is called."""
        return "bicubic interpolation" if self.section.setting.get("task.name", "")[:2] == "sr" else "unrestored input"

    @functools.cached_property
    def baseline_psnr(self) -> dict[str, float]:
        """The baseline's PSNR in dB on every test set."""
        scores = {name: self.section.finished[f"metric/baseline/{name}/psnr_db"].mean() for name in self.section.sets}
        return rounded({name: float(score) for name, score in scores.items()})

    @functools.cached_property
    def part_costs(self) -> Mapping[str, tuple[float, float]]:
        """What binarising each part changes in operations and parameters, if the study is about parts."""
        if not self.readings:
            return {}
        return rounded(part_costs(self.section, next(iter(self.readings.values())).responses.factors))

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
        return list(dict.fromkeys(reading.scope for row in self.contrasts for reading in row.images.values()))

    @property
    def training_hours(self) -> float:
        """How long all finished trainings took."""
        return float(self.section.finished["metric/timing/train_s"].sum()) / 3600

    @property
    def has_single_seed(self) -> bool:
        """Whether some cell is compared with the reference cell under one seed alone."""
        return any(found.n == 1 for cell in self.cells for found in cell.to_anchor.values())

    @property
    def collapsed_cells(self) -> list[str]:
        """The keys of the cells with a collapsed trial."""
        return list(dict.fromkeys(cell for cell, _ in self.section.dead))

    def decided(self, outcome: Outcome) -> list[tuple[Contrast, list[str]]]:
        """The contrasts with this verdict and the test sets on which they have it.

        They are the steps of a chain or else what a level does to the reference; a study of parts has its own lines.
        """
        rows = [] if self.part_costs else self.steps or self.alone or self.contrasts
        found = [(row, [name for name, verdict in row.verdicts.items() if verdict.outcome is outcome]) for row in rows]
        return [(row, sets) for row, sets in found if sets]

    def largest(self, found: Sequence[tuple[Contrast, list[str]]]) -> list[tuple[Contrast, list[str]]]:
        """The largest of the decided contrasts, in the order given; those that are not a number come last."""

        def smallness(place: int) -> float:
            row, sets = found[place]
            size = max(abs(row.psnr[name].mean) for name in sets)
            return -size if math.isfinite(size) else math.inf

        return [found[place] for place in sorted(sorted(range(len(found)), key=smallness)[: LIMITS["MOST_NAMED"]])]

    def labels_of(self, cells: Sequence[str]) -> list[str]:
        """The names of cells, set as code."""
        return [f"`{self.section.labels[cell]}`" for cell in cells]

    def differs_in_code(self, row: Contrast) -> bool:
        """Tell whether some pair of cells was made by different code under a seed."""
        code = code_by_trial(self.section)
        return any(code[base, seed] != code[other, seed] for base, other in row.pairs.cells for seed in row.seeds)

    def missing_cells(self) -> list[str]:
        """The cells of the design without a score."""
        responses = next(iter(self.readings.values())).responses
        return [responses.name(cell) for cell in responses.grid if cell not in responses.values]


def compose(results: StudyResults, margin: float = MARGIN_DB) -> dict[str, bytes]:
    """Return every file of the report by its name; the same results give the same bytes.

    ``margin`` is the difference in dB that does not matter. Raises ValueError unless it is above 0.
    """
    metrics = [name for name in results.trials if str(name).startswith("metric/")]
    results = dataclasses.replace(results, trials=results.trials.assign(**rounded(results.trials[metrics])))
    found = split_by_setting(results)
    alone = len(found) == 1
    chapters = [
        gathered(section, margin, "" if alone else f"setting{number}-", "##" if alone else "###")
        for number, section in enumerate(found, start=1)
    ]
    groups = comparable([section for section in found if len(section.finished)])
    claims = [claims_of(group, margin, number, len(groups)) for number, group in enumerate(groups, start=1)]
    papers = paper_tables(results)
    files = {f"{claim.prefix}findings.csv": as_csv(frames.finding_frame(claim.rows)) for claim in claims}
    files |= {f"{table.name}.csv": as_csv(table.frame) for table in papers}
    for chapter in chapters:
        files |= chapter.files
    page = render(
        "report.md.j2",
        study=results.study,
        trials=results.trials,
        chapters=chapters,
        claims=claims,
        papers=papers,
        margin=margin,
        warnings=warnings(found),
        behind=list(rows_behind(chapters, claims)),
        runs={chapter.prefix: runs_of_cells(chapter.section) for chapter in chapters},
        **WORDS,
    )
    return {PAGE: page.encode(), **files}


@dataclasses.dataclass(frozen=True)
class Claims:
    """The paper's claims put to settings that may be compared; ``prefix`` starts the names of its files and rows."""

    sections: Sequence[SettingResults]
    rows: Sequence[Assessment]
    prefix: str

    def having(self, status: Status) -> list[Assessment]:
        """The claims with this status."""
        return [row for row in self.rows if row.status is status]

    def by_name(self, status: Status) -> dict[str, list[Assessment]]:
        """The same by the claim that they are about."""
        found: dict[str, list[Assessment]] = {}
        for row in self.having(status):
            found.setdefault(row.finding.claim, []).append(row)
        return found

    @property
    def tested(self) -> list[Assessment]:
        """The claims that some cells test, in the order of the table."""
        return [row for row in self.rows if row.status is not Status.NOT_TESTED]

    @property
    def untested_count(self) -> int:
        """How many claims no test set and no probe tests."""
        return len({row.finding.claim for row in self.rows} - {row.finding.claim for row in self.tested})


def runs_behind(row: Assessment) -> int:
    """How many runs a claim's numbers rest on."""
    return len({cell for pair in row.pairs for cell in pair}) * len(row.seeds)


def claims_of(group: Sequence[SettingResults], margin: float, number: int, of: int) -> Claims:
    """Put the paper's claims to a group of settings."""
    return Claims(group, rounded(assessed(group, margin)), "" if of == 1 else f"setting{number}-")


def gathered(section: SettingResults, margin: float, prefix: str, heading: str) -> Chapter:
    """Work out everything that the page shows of one setting."""
    chapter = Chapter(
        section,
        margin,
        prefix,
        heading,
        sorted(rounded(cell_summaries(section)), key=lambda cell: rounded(descending_psnr(cell))),
        rounded(contrasts(section, margin)),
        rounded(from_the_reference(section, margin)),
        rounded(steps(section, margin)),
        rounded(factorial_analyses(section, margin)),
    )
    if chapter.cells:
        add_effects(chapter)
        add_design(chapter)
        add_costs(chapter)
        add_probes(chapter)
        add_curves(chapter)
        add_pictures(chapter)
        chapter.add("cells", frame=frames.cell_frame(chapter.cells, section))
    if section.left_out:
        chapter.add("left_out", frame=frames.left_out_frame(section))
    chapter.add("trials", frame=frames.trial_frame(section))
    return chapter


def add_effects(chapter: Chapter) -> None:
    """Add the contrasts, and what binarising each part costs."""
    sets, margin = chapter.section.sets, chapter.margin
    kinds = [(getattr(chapter, name), reading) for name, reading in READINGS.items()]
    if chapter.contrasts:
        frame = pd.concat([frames.contrast_frame(rows, reading) for rows, reading in kinds if rows], ignore_index=True)
        drawn = figures.effects_figure(chapter.alone or chapter.contrasts, sets, margin)
        chapter.add("effects", drawn, frame)
    if chapter.steps:
        chapter.add("steps", figures.effects_figure(chapter.steps, sets, margin))
    if chapter.part_costs:
        chapter.add("parts", frame=frames.part_frame(chapter.readings, chapter.part_costs))


def add_design(chapter: Chapter) -> None:
    """Add main effects, interactions and shares of the gain, if several factors vary."""
    read = chapter.readings
    if not any(reading.effects and reading.effects.effects for reading in read.values()):
        return
    drawn = (
        figures.interactions_figure(read, chapter.margin)
        if all(reading.interactions for reading in read.values())
        else None
    )
    chapter.add("design", frame=frames.effect_frame(read))
    chapter.add("interactions", drawn)
    pairs = factor_pairs(next(iter(read.values())))
    chapter.pair_count = len(pairs)
    if pairs:
        chapter.add("means", figures.means_figure(next(iter(read.values())), pairs[: LIMITS["MOST_PAIRS"]]))
    plots = {name: reading.half_normal for name, reading in read.items() if reading.half_normal}
    if plots:
        chapter.add("half_normal", figures.half_normal_figure(plots))
    shared = {name: reading for name, reading in read.items() if reading.shares}
    if shared:
        chapter.add("shares", figures.shares_figure(shared), frames.share_frame(shared))
    factors = next(iter(read.values())).responses.factors
    chapter.merged_count = len(merged_cells(chapter.section, factors))


def add_costs(chapter: Chapter) -> None:
    """Add PSNR against cost and against alignment, if cells differ in them."""
    table = rounded(cost_table(chapter.section, chapter.cells))
    if costs_differ(table):
        chapter.has_paper_points = bool((table["source"] == "paper").any())
        chapter.add("pareto", figures.pareto_figure(table, chapter.section.sets), table)
    aligned = rounded(alignment_table(chapter.section))
    if not aligned.empty:
        chapter.alignment_lines = aligned["group"].nunique()
        chapter.add("alignment", figures.alignment_figure(aligned, chapter.section.sets), aligned)


def add_probes(chapter: Chapter) -> None:
    """Add what the probes measured in the binary units."""
    depth, ranges = rounded(depth_table(chapter.section)), rounded(range_table(chapter.section))
    if not depth.empty:
        measures = [name for name in SHOWN_MEASURES if (depth["measure"] == name).any()]
        chapter.depth_by_cell = bool((depth["factor"] == EVERY).all())
        chapter.add("depth", figures.depth_figure(depth, measures), depth)
    if not ranges.empty:
        probed = [cell for cell in range_cells(chapter.section) if (ranges["cell"] == cell).any()]
        labels = [chapter.section.labels[cell] for cell in probed]
        chapter.add("ranges", figures.ranges_figure(ranges, labels), ranges)


def add_curves(chapter: Chapter) -> None:
    """Add the learning curves."""
    table = rounded(curve_table(chapter.section))
    if not table.empty:
        labels = [cell.label for cell in chapter.cells][:MOST_LINES]
        chapter.add("curves", figures.curves_figure(table, labels), table)


def add_pictures(chapter: Chapter) -> None:
    """Add the strips of sample pictures."""
    found, chapter.picture_count = strips(chapter.section, chapter.cells, chapter.baseline.split()[0])
    chapter.drawable_count = len(drawable(chapter.section, chapter.cells))
    for strip in found:
        name = re.sub(r"[^\w.-]", "_", f"pictures-{strip.test_set}-{strip.picture}")
        chapter.add(name, figures.strip_figure(strip))
        chapter.strips.append((strip, name))
    if found:
        chapter.add("pictures", frame=frames.strip_frame(found))


def warnings(found: Sequence[SettingResults]) -> dict[str, list[str]]:
    """What a reader must know before any number: several data sets, several codes, trials without a result."""
    trials = pd.concat([section.trials for section in found])
    data = counted(data_of(section) for section in found for _ in range(len(section.trials)))
    code = counted(code for section in found for code in codes(section.finished))
    return {
        "data": counted_in_words(data) if len(data) > 1 else [],
        "code": counted_in_words(code) if len(code) > 1 else [],
        "unfinished": states_in_words(trials[trials["state"] != "finished"], ()),
    }


def states_in_words(trials: pd.DataFrame, always: Sequence[str] = ALWAYS_NAMED) -> list[str]:
    """Count the trials by state: ``4 finished``."""
    counts = trials["state"].value_counts()
    return [f"{counts.get(state, 0)} {state}" for state in STATES if counts.get(state, 0) or state in always]


def change_in_words(row: Contrast) -> str:
    """Say what replaces what."""
    if row.factor == METHOD:
        return f"`{row.level}` instead of `{row.base}`"
    if row.factor == STEP:
        return f"{row.level} against {row.base}"
    return f"`{row.factor}={row.level}` instead of `{row.base}`"


def effects_of_order(reading: FactorialAnalysis, order: int) -> list[tuple[Effect, str]]:
    """The effects of one factor, or of two together, each with its verdict in words."""
    if reading.effects is None:
        return []
    return [
        (effect, str(verdict.outcome) if order == 1 else INTERACTION_WORDS[verdict.outcome])
        for effect, verdict in zip(reading.effects.effects, reading.verdicts, strict=True)
        if len(effect.term.moved) == order
    ]


def rows_behind(chapters: Sequence[Chapter], claims: Sequence[Claims]) -> Iterator[dict[str, object]]:
    """Yield the cells and seeds that each row of the tables of contrasts and claims rests on."""
    for chapter in chapters:
        for name, rows in (("alone", chapter.alone), ("effects", chapter.contrasts), ("steps", chapter.steps)):
            for number, row in enumerate(rows, start=1):
                place = {"table": f"{chapter.prefix}{name}", "number": number}
                yield {**place, "what": row.change, "pairs": row.pairs.cells, "seeds": row.seeds}
    for claim in claims:
        for number, found in enumerate(claim.tested, start=1):
            place = {"table": f"{claim.prefix}claims", "number": number}
            what = f"{found.finding.claim}, {found.where}"
            yield {**place, "what": what, "pairs": found.pairs, "seeds": found.seeds}


def runs_of_cells(section: SettingResults) -> dict[str, list[tuple[int, str]]]:
    """The MLflow run of each seed of each finished cell; empty for a trial that MLflow does not have."""
    runs: dict[str, list[tuple[int, str]]] = {}
    columns = (section.finished[name].tolist() for name in ("cell", "seed", "run_id"))
    for cell, seed, run in sorted(zip(*columns, strict=True)):
        runs.setdefault(cell, []).append((seed, run))
    return runs


def fixed_levels(section: SettingResults) -> dict[str, str]:
    """The level of every factor that does not vary, and the recorded levels if ``auto`` was asked for."""
    levels = [levels_of(row, section.factors) for _, row in section.trials.iterrows()]
    free = varying(levels, section.factors)
    fixed = {name: level for row in levels[:1] for name, level in row.items() if name not in free and level}
    recorded = {name: [text for text in section.trials[f"factor/{name}"].unique() if text] for name in fixed}
    return {
        name: f"{level} ({' or '.join(recorded[name])})" if level == "auto" else level for name, level in fixed.items()
    }


def recorded_provenance(section: SettingResults) -> dict[str, str]:
    """Each key of the trials' provenance with its value, or with every value and how many trials have it.

    The code and the seed are shown elsewhere.
    """
    recorded = [json.loads(text) for text in section.trials["provenance"] if text]
    keys = sorted({key for row in recorded for key in row} - {"seed", "code"})
    return {
        key: values_with_counts(Counter(readable(row[key]) if key in row else NOT_RECORDED for row in recorded))
        for key in keys
    }


def readable(value: object) -> str:
    """Spell a value of the provenance: ``numpy 2.4.6, torch 2.13.0``."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {value[name]}" for name in sorted(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def trial_rows(section: SettingResults) -> list[dict[str, str]]:
    """The rows of the list of trials, with the energy of each if it is known of all."""
    trials, energy = section.trials.head(MOST_ROWS), energies(section).to_dict()
    known = bool(energy) and not any(map(math.isnan, energy.values()))
    return [
        {
            "cell": section.labels[row["cell"]],
            "seed": str(row["seed"]),
            "state": row["state"],
            "run": row["run_id"],
            "git": row["git"][:KEY_LENGTH],
            "uncommitted": {"true": "yes", "false": "no"}.get(row["git_dirty"], ""),
            "code": made_by if row["provenance"] else "",
            **({"energy": f"{energy[index]:,.0f}" if index in energy else ""} if known else {}),
        }
        for made_by, (index, row) in zip(codes(trials), trials.iterrows(), strict=True)
    ]


WORDS = {
    **LIMITS,
    "MOST_LINES": MOST_LINES,
    "MOST_CELLS": MOST_CELLS,
    "MOST_INTERACTIONS": MOST_INTERACTIONS,
    "SHOWN_PER_SET": SHOWN_PER_SET,
    "SAME_COST": SAME_COST,
    "NOT_RECORDED": NOT_RECORDED,
    "BINARY": BINARY,
    "PROBES": PROBES,
    "Outcome": Outcome,
    "Status": Status,
    "isnan": math.isnan,
    "smallest_sign_flip_p": smallest_sign_flip_p,
    "change_in_words": change_in_words,
    "counted_in_words": counted_in_words,
    "counted": counted,
    "codes": codes,
    "data_of": data_of,
    "effects_of_order": effects_of_order,
    "energy_in_words": energy_in_words,
    "fixed_levels": fixed_levels,
    "part_effects": frames.part_effects,
    "runs_behind": runs_behind,
    "left_out_frame": frames.left_out_frame,
    "recorded_provenance": recorded_provenance,
    "states_in_words": states_in_words,
    "trial_rows": trial_rows,
}
"""What the templates use beside the data."""


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a report's files into ``folder`` and return the page's path.

    Files that only the previous page linked to are removed: they would show results that are gone.
    """
    page = folder / PAGE
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    for name in re.findall(r"\]\(([\w.-]+\.(?:png|svg|csv))\)", before):
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name != PAGE:
            (folder / name).write_bytes(content)
    write_atomically(page, files[PAGE].decode())
    return page
