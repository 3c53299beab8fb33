"""A study's report: one Markdown page with its figures, and the CSV behind each table and figure."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.storage.files import write_atomically
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
from analysis.effects.depth import EVERY, SHOWN_MEASURES, depth_table, range_cells, range_table
from analysis.effects.factors import (
    BINARY,
    FactorialAnalysis,
    factor_pairs,
    factorial_analyses,
    merged_cells,
    part_costs,
)
from analysis.effects.findings import PROBES, PSNR, Assessment, Status, assessed, comparable
from analysis.report import tables
from analysis.report.comparison import Table, comparisons
from analysis.report.figures import (
    MOST_INTERACTIONS,
    MOST_LINES,
    Drawing,
    alignment_figure,
    curves_figure,
    depth_figure,
    effects_figure,
    half_normal_figure,
    interactions_figure,
    means_figure,
    pareto_figure,
    ranges_figure,
    shares_figure,
    strip_figure,
)
from analysis.report.pictures import MOST_CELLS, SHOWN_PER_SET, drawable, strips
from analysis.statistics.estimates import MARGIN_DB, Estimate, Outcome, Verdict, smallest_sign_flip_p, what_seeds_allow
from analysis.statistics.factorial import Effect, HalfNormal
from analysis.study.loading import NOT_RECORDED, StudyResults
from analysis.study.origins import code_by_trial, codes, counted, counted_in_words, data_of, energy_in_words
from analysis.study.settings import SettingResults, levels_of, split_by_setting, varying

PAGE = "report.md"

MOST_LEFT_OUT = 40
"""A design can leave out thousands of cells; the page lists this many and the CSV lists all."""

MOST_ROWS = 500
"""More rows than this nobody reads on a page; it says how many are left out, and the CSV has all."""

MOST_PAIRS = 6
"""How many pairs of factors are drawn, the largest interactions first; the table has all."""

COLUMNS_MOVE = "Each column moves one factor from the cell that is closest to the reference. "

PART_NAMES = {"up": "upsampling"}
"""What a part is called in a sentence, where that is not its name in the config."""

SAME_COST = 1e-6
"""A change in cost below this is none."""

MOST_SAID = 8
"""How many comparisons of one verdict are told in the summary, the largest first; the table below it has all."""

MOST_IN_A_LINE = 2
"""More comparisons of one verdict than this have a line each."""

FEW_ROWS = 6
"""So many comparisons are told in words in the open; of more, the words are folded up below their table."""

READING = (
    "Differences are in dB of PSNR, more is better. Cells are compared within a seed, since trials of one seed share "
    "their patches, noise and initial values; the interval in brackets is Student's 95 % interval over seeds and is "
    "for one comparison alone. Verdicts are corrected by Holm for the number of comparisons in a table on one test "
    "set: better or worse where a difference is more than noise, equivalent where it is surely smaller than {margin:g} "
    "dB, and undecided where these seeds allow neither to be said. OPs are 10^9 multiply-adds on a 320 x 180 input and "
    "params thousands; a binary multiply-add counts 1/64, a binary weight 1/32."
)

RUNS = (
    "The last column of a table says how many runs a row rests on and leads to their names, under “Runs "
    "behind each row”."
)

ONE_SEED = (
    "**One seed cannot tell an effect from noise.** Numbers marked `[one seed]` have no interval and support no "
    "verdict."
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the page and the files that it links to, by name."""

    text: str
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Chapter:
    """One setting of the study with what was worked out for it.

    ``contrasts`` are averages over all pairs of cells, ``alone`` those of the pairs with the cell that is closest to
    the reference, where that is another reading, and ``steps`` those of a chain. ``prefix`` starts the names of its
    files, ``heading`` is the Markdown mark of its parts' headings, and ``margin`` the difference in dB that does not
    matter.
    """

    section: SettingResults
    cells: Sequence[CellSummary]
    contrasts: Sequence[Contrast]
    alone: Sequence[Contrast]
    steps: Sequence[Contrast]
    readings: Mapping[str, FactorialAnalysis]
    prefix: str
    heading: str
    margin: float

    def table(self, name: str, frame: pd.DataFrame) -> tuple[str, dict[str, bytes]]:
        """A link to a CSV file, and the file."""
        file = f"{self.prefix}{name}.csv"
        return f"Data: [{file}]({file})", {file: tables.as_csv(frame).encode()}

    def figure(self, name: str, alternative: str, drawn: Drawing) -> tuple[str, dict[str, bytes]]:
        """An embedded figure with a link to its vector form, and its files."""
        return embedded(f"{self.prefix}{name}", alternative, drawn)


def embedded(name: str, alternative: str, drawn: Drawing) -> tuple[str, dict[str, bytes]]:
    """An embedded figure with a link to its vector form where it has one, and its files."""
    image = f"![{alternative}]({name}.png)"
    if drawn.svg is None:
        return image, {f"{name}.png": drawn.png}
    return f"{image}\n\n[as SVG]({name}.svg)", {f"{name}.png": drawn.png, f"{name}.svg": drawn.svg}


def compose(results: StudyResults, margin: float = MARGIN_DB) -> dict[str, bytes]:
    """Every file of the report by its name; the same results give the same bytes.

    ``margin`` is the difference in dB that does not matter. Raises ValueError where it is not above 0.
    """
    found = split_by_setting(results)
    alone = len(found) == 1
    chapters = [
        Chapter(
            section,
            cell_summaries(section),
            contrasts(section, margin),
            from_the_reference(section, margin),
            steps(section, margin),
            factorial_analyses(section, margin),
            "" if alone else f"setting{number}-",
            "##" if alone else "###",
            margin,
        )
        for number, section in enumerate(found, start=1)
    ]
    groups = comparable([section for section in found if len(section.finished)])
    claims = [assessed(group, margin) for group in groups]
    parts = [Part(f"# Study `{results.study}`")]
    parts.append(opening(chapters[0]) if alone else Part(several_settings(results, found)))
    parts += [Part(text) for text in warnings(found)]
    parts += [in_short(chapters, groups, claims), how_to_read(chapters)]
    parts += [findings(claims, [titles_of(group) for group in groups], margin)]
    parts += [beside_the_paper(table) for table in comparisons(results)]
    for number, chapter in enumerate(chapters, start=1):
        if not alone:
            parts += [Part(f"## Setting {number}: `{chapter.section.title}`"), opening(chapter)]
        parts.extend(chapter_parts(chapter))
    parts.append(runs_behind(chapters, claims))
    text = "\n\n".join(part.text for part in parts if part.text) + "\n"
    return {PAGE: text.encode(), **{name: content for part in parts for name, content in part.files.items()}}


def beside_the_paper(table: Table) -> Part:
    """One of the paper's tables with ours in it."""
    link = f"Data: [{table.name}.csv]({table.name}.csv)"
    files = {f"{table.name}.csv": tables.as_csv(table.frame).encode()}
    return Part(f"## {table.title}\n\n{table.markdown}\n\n{link}", files)


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Put a report's files into ``folder`` and give the page's path.

    Files that only the previous page linked to are removed: they would be figures of results that are gone.
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


def chapter_parts(chapter: Chapter) -> list[Part]:
    """The parts of one setting, in the order of the page."""
    parts: list[Part] = []
    if chapter.cells:
        parts += [parts_of_the_network(chapter), chain(chapter), components(chapter), design(chapter), cells(chapter)]
        parts += [trade(chapter), inside(chapter)]
        parts += [learning(chapter), pictures(chapter)]
    return [*parts, absent(chapter), provenance(chapter)]


def several_settings(results: StudyResults, found: Sequence[SettingResults]) -> str:
    """What a reader of a study with several settings must know first."""
    return (
        f"{count(len(results.trials), 'trial')} under {len(found)} settings, which differ in something else than "
        "factors and seed. Each setting has its own part below, and no factor is compared across settings."
    )


def warnings(found: Sequence[SettingResults]) -> list[str]:
    """What a reader must know before any number: other data, other code, trials that are not there."""
    return [text for text in (data_in_words(found), code_in_words(found), lacking_in_words(found)) if text]


def data_in_words(found: Sequence[SettingResults]) -> str:
    """That the trials did not all see the same data; nothing where they did."""
    counts = counted(data_of(section) for section in found for _ in range(len(section.trials)))
    if len(counts) < 2:
        return ""
    named = listed(counted_in_words(counts))
    return f"**The trials saw {len(counts)} different data: {named}.** No number below mixes them."


def code_in_words(found: Sequence[SettingResults]) -> str:
    """That the results were not all made by the same code; nothing where they were, or where none is known."""
    counts = counted(code for section in found for code in codes(section.finished))
    if len(counts) < 2:
        return ""
    return (
        f"**The results were made by different code: {listed(counted_in_words(counts))}.** They were kept and stand "
        "together below, so a difference between cells of different code may be one of code; the list of trials at "
        "the end says which made which."
    )


def lacking_in_words(found: Sequence[SettingResults]) -> str:
    """That some trials have no result; nothing where all have."""
    trials = pd.concat([section.trials for section in found])
    lacking = int((trials["state"] != "finished").sum())
    if not lacking:
        return ""
    return (
        f"**{lacking} of {count(len(trials), 'trial')} {'has' if lacking == 1 else 'have'} no result: "
        f"{states_in_words(trials, told=False)}.** Each is listed with its reason under “Not in the tables, or "
        "suspect”; what is said of the others rests on the seeds that they share."
    )


def opening(chapter: Chapter) -> Part:
    """What was done, in words, and how to read the numbers."""
    section = chapter.section
    setting = {name: section.setting.get(name, "not recorded") for name in ("task.name", "network.name", "train.steps")}
    seeds = count(len(section.seeds), "seed") + (f" ({', '.join(map(str, section.seeds))})" if section.seeds else "")
    words = [
        f"{count(section.trials['cell'].nunique(), 'cell')} under {seeds}: {count(len(section.trials), 'trial')}, of "
        f"which {states_in_words(section.trials)}.",
        f"Task `{setting['task.name']}`, network `{setting['network.name']}`, {setting['train.steps']} training steps, "
        f"data `{data_of(section)}`.",
    ]
    if chapter.cells:
        reached = [
            f"{section.finished[f'metric/baseline/{name}/psnr_db'].mean():.3f} dB on {name}" for name in section.sets
        ]
        words.append(f"The baseline, {baseline_name(section)}, reaches {listed(reached)}.")
    text = " ".join(words)
    if not chapter.cells:
        return Part(f"{text}\n\nNo trial of it is finished, so there is nothing to compare yet.")
    one_seed = any(cell.to_anchor[name].n == 1 for cell in chapter.cells for name in section.sets)
    return Part("\n\n".join([text, *([ONE_SEED] if one_seed else [])]))


def how_to_read(chapters: Sequence[Chapter]) -> Part:
    """What the numbers are, in a few sentences."""
    if not any(chapter.cells for chapter in chapters):
        return Part("")
    said = READING.format(margin=chapters[0].margin)
    return Part(f"## How to read the numbers\n\n{said} {RUNS}")


STATES = ("finished", "failed", "interrupted", "pruned", "running", "missing")

ALWAYS_TOLD = ("finished", "failed", "missing")
"""The states that the opening names even where no trial is in them."""


def states_in_words(trials: pd.DataFrame, *, told: bool = True) -> str:
    """How many trials finished, failed and so on; with ``told`` false only of those without a result, where any is."""
    counts = trials["state"].value_counts()
    named = [state for state in STATES if counts.get(state, 0) or (told and state in ALWAYS_TOLD)]
    return listed([f"{counts.get(state, 0)} {state}" for state in named if told or state != "finished"])


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def baseline_name(section: SettingResults) -> str:
    """What a task's baseline is called."""
    return "bicubic interpolation" if section.setting.get("task.name", "").startswith("sr") else "the unrestored input"


def count(number: int, noun: str) -> str:
    """``1 cell``, ``4 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_short(
    chapters: Sequence[Chapter], groups: Sequence[Sequence[SettingResults]], claims: Sequence[Sequence[Assessment]]
) -> Part:
    """What was found, how sure that is, what it cost and how it compares with the paper, in a few lines."""
    blocks = []
    for chapter in chapters:
        if chapter.cells:
            own = [
                rows
                for group, rows in zip(groups, claims, strict=True)
                if len(group) == 1 and group[0] is chapter.section
            ]
            lines = [*chapter_in_short(chapter), *(line for rows in own for line in claims_in_short(rows))]
            blocks.append(block(f"`{chapter.section.title}`" if chapter.section.title else "", lines))
    for group, rows in zip(groups, claims, strict=True):
        if len(group) > 1:
            blocks.append(block(titles_of(group), claims_in_short(rows)))
    return Part("\n\n".join(["## In short", *blocks])) if blocks else Part("")


def block(title: str, lines: Sequence[str]) -> str:
    """A list under a title, where it has one."""
    return (f"**{title}:**\n\n" if title else "") + "\n".join(f"- {line}" for line in lines)


def claims_in_short(rows: Sequence[Assessment]) -> list[str]:
    """What became of the paper's claims: each that was tested by name, the others counted."""
    lines = []
    for status in (Status.SUPPORTED, Status.CONTRADICTED, Status.UNDECIDED):
        named: dict[str, list[str]] = {}
        for row in rows:
            if row.status is status:
                named.setdefault(row.finding.claim, []).append(effect_of(row))
        if named:
            told = [f"{claim} ({listed(found)})" for claim, found in named.items()]
            lines.append(listed_under(f"Claims of the paper **{status}** here", told))
    tested = {row.finding.claim for row in rows if row.status is not Status.NOT_TESTED}
    absent = len({row.finding.claim for row in rows} - tested)
    if absent:
        lines.append(f"Claims of the paper **{Status.NOT_TESTED}**: {absent}, each listed below with why.")
    return lines


def listed_under(heading: str, items: Sequence[str]) -> str:
    """A few items in the line of their heading, or more in a list of their own below it."""
    if len(items) <= MOST_IN_A_LINE:
        return f"{heading}: {'; '.join(items)}."
    return "\n".join([f"{heading}:", *(f"  - {item}" for item in items)])


def effect_of(row: Assessment) -> str:
    """The size of a claimed effect, where it was seen, and what the paper's tables print for the same."""
    unit = " dB" if row.finding.measure == PSNR else ""
    where = f"{'the ' if row.where == 'probes' else ''}{row.where}"
    said = f"{row.estimate.mean:+.3f}{unit} on {where}{', with dead cells' if row.dead else ''}"
    return f"{said}; the paper: {row.published}" if row.published else said


def chapter_in_short(chapter: Chapter) -> list[str]:
    """The lines of one setting."""
    section, best = chapter.section, chapter.cells[0]
    reached = [f"{tables.summary_text(best.psnr[name])} dB on {name}" for name in section.sets]
    lacking = [str(seed) for seed in section.seeds if seed not in best.seeds]
    without = f", without seed {listed(lacking)}" if lacking else ""
    lines = [
        f"Highest mean PSNR: `{best.label}` with {listed(reached)}, {count(len(best.seeds), 'seed')}{without}, at "
        f"{best.ops_g:.2f} G operations and {best.params_k:.0f} K parameters."
    ]
    lines += [told for outcome in Outcome if (told := decided(chapter, outcome))]
    lines += parts_in_short(chapter)
    seeds = sorted({len(contrast.seeds) for contrast in chapter.contrasts if contrast.seeds})
    if seeds:
        least = smallest_sign_flip_p(seeds[0])
        lines.append(
            f"How sure: intervals over {listed([str(number) for number in seeds])} seeds that hold if differences are "
            f"normal; {seeds[0]} seeds without that assumption cannot give a two-sided p below {least:.2g}."
            if seeds[0] > 1
            else "How sure: one seed tells no effect from noise."
        )
    trained = section.finished["metric/timing/train_s"].sum() / 3600
    lines.append(f"Training took {trained:.2f} hours in all, over {count(len(section.finished), 'trial')}.")
    if section.dead:
        lines.append(f"**{count(len(section.dead), 'finished trial')} dead**: see “Not in the tables, or suspect”.")
    return lines


def headline(chapter: Chapter) -> Sequence[Contrast]:
    """What the summary tells: the steps of a chain, or what a level does to the reference; parts have own lines."""
    return [] if costs_of_parts(chapter) else chapter.steps or chapter.alone or chapter.contrasts


def decided(chapter: Chapter, outcome: Outcome) -> str:
    """The contrasts with one verdict, each with its differences on the test sets that have it; empty for none."""
    found: list[tuple[float, str]] = []
    for contrast in headline(chapter):
        sets = [name for name, verdict in contrast.verdicts.items() if verdict.outcome is outcome]
        if sets:
            by_set = [
                f"{tables.estimate_text(contrast.psnr[name])} dB on {name}{needed_in_words(contrast.verdicts[name])}"
                for name in sets
            ]
            size = max(abs(contrast.psnr[name].mean) for name in sets)
            dead = ", with dead cells" if contrast.dead else ""
            found.append((size, f"{contrast.change} ({listed(by_set)}{dead}{cost_in_words(contrast)})"))
    if not found:
        return ""
    largest = sorted(found, key=lambda row: -row[0] if math.isfinite(row[0]) else math.inf)[:MOST_SAID]
    told = [text for row in found if row in largest for text in row[1:]]
    if len(found) > len(largest):
        told.append(f"and {len(found) - len(largest)} more below")
    centre = next(cell.label for cell in chapter.cells if cell.is_anchor)
    alone = f", alone, from `{centre}`" if chapter.alone and not chapter.steps else ""
    return listed_under(f"**{str(outcome).capitalize()}**{alone}", told)


def needed_in_words(verdict: Verdict) -> str:
    """How many seeds would likely decide a comparison that is open; nothing where none is known, or it is decided."""
    needed = verdict.seeds_needed
    if verdict.outcome is not Outcome.UNDECIDED or needed is None or needed.likely is None:
        return ""
    return f", where {needed.likely} seeds would likely decide"


def cost_in_words(contrast: Contrast) -> str:
    """The change in cost that comes with a contrast; nothing where there is none."""
    if abs(contrast.ops_g) < SAME_COST and abs(contrast.params_k) < SAME_COST:
        return ""
    return f"; {contrast.ops_g:+.2f} G operations, {contrast.params_k:+.1f} K parameters"


def parts_in_short(chapter: Chapter) -> list[str]:
    """What binarising each part costs and saves, where the study is about that."""
    costs = costs_of_parts(chapter)
    lines = []
    for part, (ops, params) in costs.items():
        effects_of_part = [
            f"{tables.estimate_text(effect.estimate)} dB on {name}{verdict_in_words(effect.estimate, verdict)}"
            for name, reading in chapter.readings.items()
            for effect, verdict in effects_and_verdicts(reading)
            if effect.term.moved == ((part, BINARY),)
        ]
        lines.append(
            f"**Binarising the {PART_NAMES.get(part, part)}**, averaged over what else is binary: "
            f"{listed(effects_of_part)}; {ops:+.2f} G operations, {params:+.1f} K parameters."
        )
    return lines


def verdict_in_words(found: Estimate, verdict: Verdict) -> str:
    """The verdict behind a comma; nothing where one seed allows none."""
    return "" if math.isnan(found.low) else f", {verdict.outcome}"


def effects_and_verdicts(reading: FactorialAnalysis) -> list[tuple[Effect, Verdict]]:
    """The effects of a reading, each with its verdict."""
    return list(zip(reading.effects.effects, reading.verdicts, strict=True)) if reading.effects else []


def costs_of_parts(chapter: Chapter) -> dict[str, tuple[float, float]]:
    """What binarising each part changes in operations and parameters, where the design is one of parts."""
    if not chapter.readings:
        return {}
    return part_costs(chapter.section, next(iter(chapter.readings.values())).responses.factors)


def titles_of(group: Sequence[SettingResults]) -> str:
    """The settings of a group in words."""
    return listed([f"`{section.title}`" for section in group])


def findings(claims: Sequence[Sequence[Assessment]], titles: Sequence[str], margin: float) -> Part:
    """What the cells say of the paper's claims, for each group of settings that may be compared."""
    if not claims:
        return Part("")
    lines = [
        "## The paper's claims",
        "Each claim of the paper (BBCU, ICLR 2023) is a contrast between cells with a predicted direction. It is "
        "supported or contradicted where the corrected verdict is decided, contradicted too where the difference is "
        f"surely smaller than {margin:g} dB, and undecided otherwise. These cells are trained under the conditions of "
        "this study and not under the paper's.",
    ]
    files: dict[str, bytes] = {}
    for number, rows in enumerate(claims, start=1):
        prefix = claims_prefix(number, len(claims))
        name = f"{prefix}findings.csv"
        files[name] = tables.as_csv(tables.finding_frame(rows)).encode()
        done = [row for row in rows if row.status is not Status.NOT_TESTED]
        if len(claims) > 1:
            lines.append(f"**{titles[number - 1]}:**")
        lines.append(tables.finding_table(done, f"{prefix}claims") if done else "No cells here test any of them.")
        if any(row.dead for row in done):
            lines.append("† rests on cells with a trial whose binary body contributes nothing.")
        probed = {row.finding.measure for row in done}
        lines.append(" ".join(text for measure, text in PROBES.items() if measure in probed))
        lines += [undecided_in_words(rows), untested_in_words(rows), f"Data: [{name}]({name})"]
    return Part("\n\n".join(line for line in lines if line), files)


def claims_prefix(number: int, of: int) -> str:
    """What starts the names of the files and rows of one group of claims."""
    return "" if of == 1 else f"setting{number}-"


def undecided_in_words(rows: Sequence[Assessment]) -> str:
    """The claims that these seeds leave open, each with why and how many seeds would decide it."""
    open_ = [f"- {row.finding.claim}, {row.where}: {row.reason}." for row in rows if row.status is Status.UNDECIDED]
    return "\n".join(["Undecided:\n", *open_]) if open_ else ""


def untested_in_words(rows: Sequence[Assessment]) -> str:
    """The claims that nothing here tests, each with why."""
    absent = [f"- {row.finding.claim}: {row.reason}." for row in rows if row.status is Status.NOT_TESTED]
    return "\n".join(["Not tested here:\n", *absent]) if absent else ""


def components(chapter: Chapter) -> Part:
    """What each component is worth: tables, a sentence for each row, the second reading, a forest plot."""
    section = chapter.section
    title = f"{chapter.heading} {'How the methods compare' if section.methods else 'What each component is worth'}"
    if not chapter.contrasts:
        return Part(f"{title}\n\nNo two finished cells differ in one factor alone, so no component can be told apart.")
    frames = [tables.contrast_frame(rows, reading) for rows, reading in readings_of_contrasts(chapter) if rows]
    link, files = chapter.table("effects", pd.concat(frames, ignore_index=True))
    lines = [title, allowed(chapter)]
    if chapter.alone:
        centre = next(cell.label for cell in chapter.cells if cell.is_anchor)
        lines += [f"**Alone, from `{centre}`**, the finished cell that is closest to the reference:"]
        lines += [contrast_lines(chapter, chapter.alone, "alone")]
        lines += ["**Averaged over all pairs of cells** that are alike otherwise, whatever else they are:"]
    lines += [contrast_lines(chapter, chapter.contrasts, "effects")]
    shown = chapter.alone or chapter.contrasts
    image, drawings = chapter.figure("effects", title.strip("# "), effects_figure(shown, section.sets, chapter.margin))
    legend = (
        f"The shaded band is the margin of {chapter.margin:g} dB. OPs and params are the change that comes with the "
        f"level.{' Drawn is what each level does alone.' if chapter.alone else ''}"
    )
    words = [*lines, image, legend, second_reading(chapter), link]
    return Part("\n\n".join(word for word in words if word), {**files, **drawings})


def readings_of_contrasts(chapter: Chapter) -> list[tuple[Sequence[Contrast], str]]:
    """The contrasts of a setting by the reading that they are, as the CSV file names it."""
    return [(chapter.alone, "alone, from the reference"), (chapter.contrasts, "all pairs"), (chapter.steps, "step")]


def contrast_lines(chapter: Chapter, rows: Sequence[Contrast], name: str) -> str:
    """A table of contrasts and a sentence for each; many sentences are folded up."""
    table = tables.contrast_table(rows, chapter.section.sets, f"{chapter.prefix}{name}")
    sentences = "\n".join(f"- {sentence(contrast, chapter.section)}" for contrast in rows)
    if len(rows) > FEW_ROWS:
        sentences = folded("Each row in words, with its p and what would decide it", sentences)
    return f"{table}\n\n{sentences}"


def folded(summary: str, text: str) -> str:
    """Text that is shown when its summary is clicked."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def chain(chapter: Chapter) -> Part:
    """What each step of a chain adds to the one before it; nothing where the study is none."""
    if not chapter.steps:
        return Part("")
    lines = [
        f"{chapter.heading} Step by step",
        "Each cell against the one before it, in the order of the study, and the last against the first. A step is "
        "worth what it adds behind those before it, which ranks no components. Step 1 is "
        f"`{chapter.section.labels[chapter.steps[0].pairs.cells[0][0]]}`.",
        contrast_lines(chapter, chapter.steps, "steps"),
    ]
    drawn = effects_figure(chapter.steps, chapter.section.sets, chapter.margin)
    image, files = chapter.figure("steps", "What each step adds", drawn)
    return Part("\n\n".join([*lines, image]), files)


def parts_of_the_network(chapter: Chapter) -> Part:
    """What binarising each part costs in PSNR and saves in operations and parameters, where the study is about that."""
    costs = costs_of_parts(chapter)
    if not costs:
        return Part("")
    frame = tables.part_frame(chapter.readings, costs)
    link, files = chapter.table("parts", frame)
    lines = [
        f"{chapter.heading} What binarising each part costs and saves",
        "PSNR is the change when the part becomes binary, averaged over all choices of the other parts; its Shapley "
        "share is its part of what making all of them binary costs. Operations and parameters are the same changes, "
        "which no seed moves.",
        tables.part_table(chapter.readings, costs),
        link,
    ]
    return Part("\n\n".join(lines), files)


def allowed(chapter: Chapter) -> str:
    """What the numbers of seeds behind the contrasts can show at best."""
    found = sorted({len(contrast.seeds) for contrast in chapter.contrasts})
    family = max((v.comparisons for contrast in chapter.contrasts for v in contrast.verdicts.values()), default=1)
    return " ".join(what_seeds_allow(seeds, max(family, 1)) for seeds in found if seeds)


def second_reading(chapter: Chapter) -> str:
    """The reading over pictures, with what it speaks of; nothing where no trial kept its pictures' scores."""
    readings_there = [reading for contrast in chapter.contrasts for reading in contrast.images.values()]
    if not readings_there:
        return ""
    scopes = "; ".join(dict.fromkeys(reading.scope for reading in readings_there))
    said = f"**A second reading, over pictures** ({scopes}). No verdict rests on it."
    return f"{said}\n\n{tables.images_table(chapter.contrasts, chapter.section.sets)}"


def sentence(contrast: Contrast, section: SettingResults) -> str:
    """One contrast in words, with its verdict and the reason for it on each test set."""
    said = "; ".join(phrase(name, verdict) for name, verdict in contrast.verdicts.items())
    basis = f"{count(len(contrast.pairs.cells), 'pair')} of cells, {count(len(contrast.seeds), 'seed')}"
    if contrast.dropped:
        basis += f", incomplete and dropped: {', '.join(map(str, contrast.dropped))}"
    along = [f"`{factor}`" for factor in contrast.pairs.moved_along]
    moved = f" {listed(along)} {'changes' if len(along) == 1 else 'change'} with it." if along else ""
    dead = [f"`{section.labels[cell]}`" for cell in contrast.dead]
    warned = f" **Includes trials whose body is dead: {listed(dead)}.**" if dead else ""
    if differs_in_code(contrast, section):
        warned += " **Within a seed it compares trials of different code.**"
    return f"{change_in_words(contrast)}: {said} ({basis}).{moved}{warned}"


def change_in_words(contrast: Contrast) -> str:
    """What was put in place of what."""
    if contrast.factor == METHOD:
        return f"`{contrast.level}` instead of `{contrast.base}`"
    if contrast.factor == STEP:
        return f"{contrast.level} against {contrast.base}"
    return f"`{contrast.factor}={contrast.level}` instead of `{contrast.base}`"


def differs_in_code(contrast: Contrast, section: SettingResults) -> bool:
    """Whether some pair of cells was made by different code under a seed."""
    code = code_by_trial(section)
    return any(code[base, seed] != code[other, seed] for base, other in contrast.pairs.cells for seed in contrast.seeds)


def phrase(name: str, verdict: Verdict) -> str:
    """The verdict on one test set, with its reason."""
    found = verdict.estimate
    if verdict.outcome in (Outcome.BETTER, Outcome.WORSE):
        return f"**{verdict.outcome}** by {abs(found.mean):.3f} dB on {name} ({verdict.reason})"
    if found.n == 1:
        return f"one seed: no verdict on {name} ({found.mean:+.3f} dB)"
    return f"{verdict.outcome} on {name} ({verdict.reason})"


def design(chapter: Chapter) -> Part:
    """What the factors do alone and together, where several vary."""
    if not chapter.readings:
        return Part("")
    lines = [
        f"{chapter.heading} Main effects and interactions",
        "A main effect is the level less the reference, averaged over all levels of the other factors. An interaction "
        "is how much the effect of one factor changes when the other moves too: two changes together do less or more "
        "than the sum of what each does alone. All effects on a test set are one family.",
    ]
    files: dict[str, bytes] = {}
    if not any(reading.effects and reading.effects.effects for reading in chapter.readings.values()):
        return Part(f"{lines[0]}\n\n{no_design(next(iter(chapter.readings.values())))}")
    for name, reading in chapter.readings.items():
        lines += design_lines(name, reading, chapter.section)
    for part in (effect_part(chapter), means_part(chapter), noise_part(chapter), share_part(chapter)):
        lines.append(part.text)
        files |= part.files
    return Part("\n\n".join(line for line in lines if line), files)


def no_design(reading: FactorialAnalysis) -> str:
    """Why no effect of a factor and no interaction can be had from the cells."""
    grid, there = reading.responses.grid, reading.responses.values
    lacking = [
        " ".join(f"{factor}={level}" for factor, level in zip(reading.responses.factors, cell, strict=True))
        for cell in grid
        if cell not in there
    ]
    named = ", ".join(f"`{cell}`" for cell in lacking[:MOST_SAID])
    rest = f" and {len(lacking) - MOST_SAID} more" if len(lacking) > MOST_SAID else ""
    return (
        f"Refused: the study has {len(there)} of the {len(grid)} combinations of its levels, and these do not "
        "determine the effect of any factor, an interaction or a share of the gain. To average over the cells that "
        f"are there would be an effect of something else. Without a score: {named}{rest}."
    )


def design_lines(name: str, reading: FactorialAnalysis, section: SettingResults) -> list[str]:
    """The effects on one test set in words and tables."""
    lines = [f"**{name}.**", *reading.problems]
    if reading.effects is None:
        return lines
    found = reading.effects
    said = f"From {found.method}, {count(len(found.seeds), 'seed')}."
    if found.dropped:
        said += f" Seeds that lack cells of the design and are dropped: {', '.join(map(str, sorted(found.dropped)))}."
    if math.isfinite(found.misfit):
        said += f" The fit leaves {found.misfit:.3f} dB a cell."
    merged = len(merged_cells(section, reading.responses.factors))
    if merged:
        said += f" {count(merged, 'cell')} of the design left out as the same network as another take its scores."
    if section.dead:
        cells_named = dict.fromkeys(f"`{section.labels[cell]}`" for cell, _ in section.dead)
        said += f" **Some cells of the design have a dead body: {listed(list(cells_named))}.**"
    lines.append(said)
    if found.refused:
        refused = ", ".join(f"`{term}`" for term in found.refused)
        lines.append(f"Not determined by the cells that there are, and not estimated: {refused}.")
    if not found.effects:
        return [*lines, "No effect can be estimated."]
    return [*lines, tables.effect_table(reading, 1), tables.effect_table(reading, 2)]


def effect_part(chapter: Chapter) -> Part:
    """The interactions as a forest plot, and all effects as CSV."""
    frame = tables.effect_frame(chapter.readings)
    if frame.empty:
        return Part("")
    link, files = chapter.table("design", frame)
    if not all(reading.interactions for reading in chapter.readings.values()):
        return Part(link, files)
    drawn = interactions_figure(chapter.readings, chapter.margin)
    image, drawings = chapter.figure("interactions", "Interactions of two factors", drawn)
    legend = "Interactions: right of 0, two changes together give more PSNR than the sum of what each gives alone."
    most = max(len(reading.interactions) for reading in chapter.readings.values())
    if most > MOST_INTERACTIONS:
        legend += f" Drawn are the {MOST_INTERACTIONS} largest of {most}."
    return Part("\n\n".join([image, legend, link]), {**files, **drawings})


def means_part(chapter: Chapter) -> Part:
    """The mean PSNR at the levels of two factors; lines that are not parallel interact."""
    name, reading = next(iter(chapter.readings.items()))
    pairs = factor_pairs(reading)
    if not pairs:
        return Part("")
    drawn = means_figure(reading, pairs[:MOST_PAIRS])
    image, files = chapter.figure("means", "Mean PSNR at the levels of two factors", drawn)
    said = f"Mean PSNR on {name} at the levels of two factors, over all cells; lines that are not parallel interact."
    if len(pairs) > MOST_PAIRS:
        said += f" Drawn are the {MOST_PAIRS} pairs with the largest interactions, of {len(pairs)}."
    return Part(f"{image}\n\n{said}", files)


def noise_part(chapter: Chapter) -> Part:
    """The half-normal plot, where seeds are too few to measure noise."""
    plots = {name: reading.half_normal for name, reading in chapter.readings.items() if reading.half_normal}
    if not plots:
        return Part("")
    image, files = chapter.figure("half_normal", "Half-normal plot of all effects", half_normal_figure(plots))
    said = (
        "With so few seeds the effects themselves show the noise: those that are nothing lie on a line from the "
        "origin. Those beyond Lenth's simultaneous margin are filled. An interaction counts half here."
    )
    found = "\n".join(f"- {name}: {standouts_in_words(plot)}." for name, plot in plots.items())
    return Part(f"{image}\n\n{said}{held_in_words(chapter)}\n\n{found}", files)


def standouts_in_words(plot: HalfNormal) -> str:
    """The effects beyond the simultaneous margin, the largest first."""
    out = [f"`{' x '.join(point.factors)}`" for point in reversed(plot.points) if point.stands_out]
    margin = f"{plot.simultaneous_margin:.3f} dB"
    return f"beyond {margin} are {listed(out)}" if out else f"no effect is beyond {margin}"


def share_part(chapter: Chapter) -> Part:
    """Each component's Shapley share of the total gain."""
    shown = {name: reading for name, reading in chapter.readings.items() if reading.shares}
    if not shown:
        return Part("")
    link, files = chapter.table("shares", tables.share_frame(shown))
    image, drawings = chapter.figure("shares", "Share of the gain", shares_figure(shown))
    lines = [
        f"**Shares of the gain.**{kept_in_full(chapter)} From all components ablated to all at their reference, each "
        "component's Shapley share is what it adds, averaged over all orders in which they can be added; the shares "
        "add up to the gain." + held_in_words(chapter)
    ]
    for name, reading in shown.items():
        total = reading.shares.total if reading.shares else None
        lines.append(f"{name}: {tables.estimate_text(total)} dB in all." if total else "")
        lines.append(tables.share_table(reading))
    return Part("\n\n".join([*lines, image, link]), {**files, **drawings})


def kept_in_full(chapter: Chapter) -> str:
    """What a component is in a design of parts; nothing elsewhere."""
    return " A component is here a part that stays in full precision." if costs_of_parts(chapter) else ""


def held_in_words(chapter: Chapter) -> str:
    """Which levels stand for a factor that has more than two."""
    held = next(iter(chapter.readings.values())).held
    pairs = [f"`{factor}`: `{levels[0]}` and `{levels[1]}`" for factor, levels in held.items()]
    return f" Of factors with more levels the first two are taken: {listed(pairs)}." if pairs else ""


def cells(chapter: Chapter) -> Part:
    """Every finished cell."""
    section = chapter.section
    centre = next(cell for cell in chapter.cells if cell.is_anchor)
    said = (
        "Sorted by PSNR, averaged over test sets. PSNR is the mean over seeds ± its standard deviation; "
        f"“over baseline” is the difference to {baseline_name(section)}; “to anchor” is the difference within a seed "
        f"to `{centre.label}`, the finished cell that is closest to the reference."
    )
    link, files = chapter.table("cells", tables.cell_frame(chapter.cells, section))
    dead = frozenset(cell for cell, _ in section.dead)
    if dead:
        said += " † marks cells with a trial whose binary body contributes nothing."
    partial = frozenset(cell.cell for cell in chapter.cells if len(cell.seeds) < len(section.seeds))
    if partial:
        said += " ‡ marks cells that lack a seed, so that their means are over other seeds than those of the rest."
    said += first_rows(len(chapter.cells), "cells")
    marks = {"†": dead, "‡": partial}
    table = tables.cell_table(chapter.cells[:MOST_ROWS], section.sets, marks)
    return Part("\n\n".join([f"{chapter.heading} Cells", said, table, link]), files)


def first_rows(rows: int, noun: str, where: str = "the CSV") -> str:
    """That a table does not show all; nothing where it does."""
    return f" The first {MOST_ROWS} of {rows} {noun} are listed; {where} has all." if rows > MOST_ROWS else ""


def trade(chapter: Chapter) -> Part:
    """PSNR against alignment and against cost, where cells differ in them."""
    section = chapter.section
    lines: list[str] = []
    files: dict[str, bytes] = {}
    table = cost_table(section, chapter.cells)
    if costs_differ(table):
        drawn = pareto_figure(table, section.sets)
        said = (
            "Cells on the front are beaten by none that costs as little. The other marks are the paper's own numbers "
            "for the same task and test set, from its size of network, training and data: they show where the field "
            "lies and are no comparison under equal conditions."
            if (table["source"] == "paper").any()
            else "Cells on the front are beaten by none that costs as little. The paper prints no number for this task "
            "on these test sets, so none of its points is drawn."
        )
        part = drawn_part(chapter, "pareto", "PSNR against cost", drawn, table, said)
        lines.append(part.text)
        files |= part.files
    aligned = alignment_table(section)
    if not aligned.empty:
        drawn = alignment_figure(aligned, section.sets)
        said = (
            "Each line joins cells that differ in the alignment alone; bars reach from the lowest seed to the highest."
        )
        lines_in_all = aligned["group"].nunique()
        if lines_in_all > MOST_LINES:
            said += f" Drawn are the first {MOST_LINES} of {lines_in_all} lines; the CSV has all."
        part = drawn_part(chapter, "alignment", "PSNR against residual alignment", drawn, aligned, said)
        lines.append(part.text)
        files |= part.files
    return Part("\n\n".join([f"{chapter.heading} Cost and alignment", *lines]), files) if lines else Part("")


def drawn_part(chapter: Chapter, name: str, title: str, drawn: Drawing, table: pd.DataFrame, said: str) -> Part:
    """A figure with what to see in it and the numbers behind it."""
    link, files = chapter.table(name, table)
    image, drawings = chapter.figure(name, title, drawn)
    return Part("\n\n".join([image, said, link]), {**files, **drawings})


def inside(chapter: Chapter) -> Part:
    """What the probes saw in the binary units."""
    section = chapter.section
    parts = []
    table = depth_table(section)
    if not table.empty:
        measures = [name for name in SHOWN_MEASURES if (table["measure"] == name).any()]
        said = (
            "Lines are means over seeds, bands reach from the lowest seed to the highest. "
            f"{'' if (table['factor'] == EVERY).all() else COLUMNS_MOVE}"
            "Lost of the output: the error of the best affine reconstruction of the unit without binarisation; lost by "
            "the sign: the same of what the sign sees; the window is where the gradient of the sign is not 0."
        )
        drawn = depth_figure(table, measures)
        parts.append(drawn_part(chapter, "depth", "Probes by depth", drawn, table, said))
    ranges = range_table(section)
    if not ranges.empty:
        labels = [section.labels[cell] for cell in range_cells(section) if (ranges["cell"] == cell).any()]
        said = (
            "Where 98 % of the values lie that a unit adds: the branch is drowned, or drowns, where the bands differ."
        )
        drawn = ranges_figure(ranges, labels)
        parts.append(drawn_part(chapter, "ranges", "Value ranges of residual and branch", drawn, ranges, said))
    if not parts:
        return Part("")
    text = "\n\n".join([f"{chapter.heading} Inside the network", *(part.text for part in parts)])
    return Part(text, {name: content for part in parts for name, content in part.files.items()})


def learning(chapter: Chapter) -> Part:
    """The learning curves."""
    table = curve_table(chapter.section)
    title = f"{chapter.heading} Learning curves"
    if table.empty:
        return Part(f"{title}\n\nNo trial left a learning curve.")
    labels = [cell.label for cell in chapter.cells][:MOST_LINES]
    said = "Lines are means over seeds; bands reach from the lowest seed to the highest."
    if len(chapter.cells) > MOST_LINES:
        said += f" Drawn are the first {MOST_LINES} of {len(chapter.cells)} cells in the table; the CSV has all."
    link, files = chapter.table("curves", table)
    image, drawn = chapter.figure("curves", "Learning curves", curves_figure(table, labels))
    return Part("\n\n".join([title, image, said, link]), {**files, **drawn})


def pictures(chapter: Chapter) -> Part:
    """The picture strips."""
    title = f"{chapter.heading} Pictures"
    found, available = strips(chapter.section, chapter.cells, baseline_name(chapter.section).split()[0])
    if not found:
        return Part(f"{title}\n\nNo trial left sample pictures.")
    said = (
        "The same place of a test picture for every cell; pixels are enlarged as they are. Under each output: the cell "
        "and its PSNR on the whole test set, under the cell's first seed. The frame is the window in which the cells "
        "disagree most, found by rule and not by hand; below it the window enlarged with its own PSNR (over all "
        "colours), and its error, white for the largest of any cell."
    )
    cells = drawable(chapter.section, chapter.cells)
    if len(cells) > MOST_CELLS:
        said += (
            f" Shown are {MOST_CELLS} of {len(cells)} cells: the one that the others are measured against, and some at "
            "even distances in the table above."
        )
    if len(found) < available:
        said += f" Shown are the first {SHOWN_PER_SET} pictures of each test set, {len(found)} of {available} in all."
    lines = [title, said]
    files: dict[str, bytes] = {}
    for strip in found:
        lines.append(f"{strip.test_set}, `{strip.picture}`:")
        name = re.sub(r"[^\w.-]", "_", f"pictures-{strip.test_set}-{strip.picture}")
        image, drawn = chapter.figure(name, f"{strip.test_set}, {strip.picture}", strip_figure(strip))
        lines.append(image)
        files |= drawn
    link, table = chapter.table("pictures", tables.strip_frame(found))
    return Part("\n\n".join([*lines, link]), {**files, **table})


def absent(chapter: Chapter) -> Part:
    """What is in no table above, with reasons."""
    section = chapter.section
    lines = [f"{chapter.heading} Not in the tables, or suspect"]
    files: dict[str, bytes] = {}
    if (section.trials["state"] != "finished").any():
        unfinished = section.trials[section.trials["state"] != "finished"]
        said = f"Trials that are not finished:{first_rows(len(unfinished), 'trials', f'{chapter.prefix}trials.csv')}"
        lines += [said, tables.unfinished_table(section, unfinished.head(MOST_ROWS))]
    else:
        lines.append("Every planned trial is finished." if len(section.trials) else "No trial was planned.")
    if section.dead:
        said = "Finished, and in the tables above, but with a binary body that contributes nothing to the picture:"
        lines += [said, tables.dead_table(section)]
    if section.left_out:
        frame = tables.left_out_frame(section)
        link, files = chapter.table("left_out", frame)
        shown = "" if len(frame) <= MOST_LEFT_OUT else f" The first {MOST_LEFT_OUT} are listed."
        said = f"{count(len(frame), 'cell')} left out before training, each for its reason.{shown}"
        lines += [said, tables.left_out_table(frame, MOST_LEFT_OUT), link]
    return Part("\n\n".join(lines), files)


def provenance(chapter: Chapter) -> Part:
    """What was the same for every trial, where the trials ran, and the run of each."""
    section = chapter.section
    fixed = fixed_levels(section)
    lines = [f"{chapter.heading} Setting and provenance", dirty_sentence(section)]
    if fixed:
        lines += ["Factors held fixed:", key_table("Factor", "Level", fixed)]
    lines += ["The setting:", key_table("Key", "Value", section.setting)]
    recorded = recorded_provenance(section)
    if recorded:
        lines += ["What the trials recorded of where they ran:", key_table("Key", "Value", recorded)]
    lines += [code_in_the_appendix(section), energy_in_words(section)]
    link, files = chapter.table("trials", tables.trial_frame(section))
    shown = tables.trial_table(section, section.trials.head(MOST_ROWS))
    more = first_rows(len(section.trials), "trials").strip()
    trials = "\n\n".join(
        text for text in ("<details>\n<summary>Every trial and its run</summary>", more, shown) if text
    )
    return Part("\n\n".join(line for line in [*lines, f"{trials}\n\n</details>", link] if line), files)


def runs_behind(chapters: Sequence[Chapter], claims: Sequence[Sequence[Assessment]]) -> Part:
    """The runs that each row of a table rests on: its cells, and of each cell the run of every seed."""
    rows = []
    for chapter in chapters:
        named = (("alone", chapter.alone), ("effects", chapter.contrasts), ("steps", chapter.steps))
        for name, found in named:
            rows += [
                tables.runs_row(f"{chapter.prefix}{name}", n, each.change, each.pairs.cells, each.seeds)
                for n, each in enumerate(found, start=1)
            ]
    for number, found_claims in enumerate(claims, start=1):
        done = [row for row in found_claims if row.status is not Status.NOT_TESTED]
        name = f"{claims_prefix(number, len(claims))}claims"
        rows += [
            tables.runs_row(name, n, f"{row.finding.claim}, {row.where}", row.pairs, row.seeds)
            for n, row in enumerate(done, start=1)
        ]
    by_cell = [row for chapter in chapters for row in tables.runs_of_cells(chapter.section, chapter.cells[:MOST_ROWS])]
    if not by_cell:
        return Part("")
    lines = [
        "## Runs behind each row",
        "A row of a table above leads here: to the pairs of cells that it compares, the second less the first under "
        "each seed, and from there to the MLflow run of each cell and seed.",
    ]
    if rows:
        lines.append(folded("The cells behind each row", tables.markdown(["Row", "What", "Cells", "Seeds"], rows)))
    lines.append(folded("The runs behind each cell", tables.markdown(["Cell", "Key", "Runs by seed"], by_cell)))
    return Part("\n\n".join(lines))


def code_in_the_appendix(section: SettingResults) -> str:
    """Which code made the results; nothing where there are none."""
    counts = counted(codes(section.finished))
    if not counts:
        return ""
    mixed = " **Numbers above may mix them.**" if len(counts) > 1 else ""
    return f"The code that made the results: {listed(counted_in_words(counts))}.{mixed}"


def fixed_levels(section: SettingResults) -> dict[str, str]:
    """The level of every factor that does not vary, with the levels that it was recorded as where those differ."""
    levels = [levels_of(row, section.factors) for _, row in section.trials.iterrows()]
    free = varying(levels, section.factors)
    fixed = {name: level for row in levels[:1] for name, level in row.items() if name not in free and level}
    recorded = {name: [text for text in section.trials[f"factor/{name}"].unique() if text] for name in fixed}
    return {
        name: f"{level} ({' or '.join(recorded[name])})" if level == "auto" else level for name, level in fixed.items()
    }


def dirty_sentence(section: SettingResults) -> str:
    """A warning where the code that ran is not the commit that is named."""
    dirty = int((section.trials["git_dirty"] == "true").sum())
    if not dirty:
        return ""
    return f"**{dirty} of {count(len(section.trials), 'trial')} ran with changes that were not committed.**"


def key_table(key: str, value: str, content: Mapping[str, str]) -> str:
    """Names and their values, sorted by name."""
    return tables.markdown([key, value], [[tables.code(name), content[name]] for name in sorted(content)])


def recorded_provenance(section: SettingResults) -> dict[str, str]:
    """Each key of the trials' provenance with its value, or with every value and how many trials have it.

    The code has a sentence of its own, and the seed is the trial's.
    """
    recorded = [json.loads(text) for text in section.trials["provenance"] if text]
    keys = sorted({key for row in recorded for key in row} - {"seed", "code"})
    return {
        key: distinct_values(readable(row[key]) if key in row else NOT_RECORDED for row in recorded) for key in keys
    }


def distinct_values(values: Iterable[str]) -> str:
    """The value where all are the same, else each with its count."""
    counts = pd.Series(list(values)).value_counts().sort_index()
    if len(counts) == 1:
        return str(counts.index[0])
    return "; ".join(f"{value} ({count(int(number), 'trial')})" for value, number in counts.items())


def readable(value: Any) -> str:
    """A value of the provenance as text: ``numpy 2.4.6, torch 2.13.0``."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {value[name]}" for name in sorted(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
