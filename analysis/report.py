"""A study's report: one Markdown page with its figures, and the CSV behind each table and figure."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.store import write_atomically
from analysis import tables
from analysis.contrasts import CellSummary, Contrast, cell_summaries, contrasts
from analysis.curves import curve_table
from analysis.figures import MOST_LINES, curves_figure, effects_figure, strip_figure
from analysis.pictures import SHOWN_PER_SET, strips
from analysis.results import StudyResults
from analysis.sections import KEY_LENGTH, Section, levels_of, sections, varying
from analysis.statistics import Estimate, verdict

PAGE = "report.md"

MOST_LEFT_OUT = 40
"""A design can leave out thousands of cells; the page lists this many and the CSV lists all."""

READING = (
    "Differences are in dB of PSNR, more is better. Cells are compared within a seed, since trials of one seed share "
    "their patches, noise and initial values; the interval in brackets is Student's 95 % interval over seeds. It is "
    "not corrected for multiple comparisons: among twenty effects that are all nothing, one interval is expected to "
    "exclude 0. OPs are 10^9 multiply-adds on a 320 x 180 input and params thousands; a binary multiply-add counts "
    "1/64, a binary weight 1/32."
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

    ``prefix`` starts the names of its files and ``heading`` is the Markdown mark of its parts' headings.
    """

    section: Section
    cells: Sequence[CellSummary]
    contrasts: Sequence[Contrast]
    prefix: str
    heading: str

    def table(self, name: str, frame: pd.DataFrame) -> tuple[str, dict[str, bytes]]:
        """A link to a CSV file, and the file."""
        file = f"{self.prefix}{name}.csv"
        return f"Data: [{file}]({file})", {file: tables.as_csv(frame).encode()}

    def figure(self, name: str, alternative: str, png: bytes) -> tuple[str, dict[str, bytes]]:
        """An embedded figure, and its file."""
        file = f"{self.prefix}{name}.png"
        return f"![{alternative}]({file})", {file: png}


def compose(results: StudyResults) -> dict[str, bytes]:
    """Every file of the report by its name; the same results give the same bytes."""
    found = sections(results)
    parts = [Part(f"# Study `{results.study}`")]
    if len(found) > 1:
        parts.append(Part(several_settings(results, found)))
    for number, section in enumerate(found, start=1):
        alone = len(found) == 1
        if not alone:
            parts.append(Part(f"## Setting {number}: `{section.title}`"))
        prefix, heading = ("", "##") if alone else (f"setting{number}-", "###")
        parts.extend(chapter_parts(Chapter(section, cell_summaries(section), contrasts(section), prefix, heading)))
    text = "\n\n".join(part.text for part in parts if part.text) + "\n"
    return {PAGE: text.encode(), **{name: content for part in parts for name, content in part.files.items()}}


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Put a report's files into ``folder`` and give the page's path.

    Files that only the previous page linked to are removed: they would be figures of results that are gone.
    """
    page = folder / PAGE
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    for name in re.findall(r"\]\(([\w.-]+\.(?:png|csv))\)", before):
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
    parts = [opening(chapter)]
    if chapter.cells:
        parts += [components(chapter), cells(chapter), learning(chapter), pictures(chapter)]
    return [*parts, absent(chapter), provenance(chapter)]


def several_settings(results: StudyResults, found: Sequence[Section]) -> str:
    """What a reader of a study with several settings must know first."""
    return (
        f"{count(len(results.trials), 'trial')} under {len(found)} settings, which differ in something else than "
        "factors and seed. Each setting has its own part below, and nothing is compared across settings."
    )


def opening(chapter: Chapter) -> Part:
    """What was done, in words, and how to read the numbers."""
    section = chapter.section
    setting = {name: section.setting.get(name, "not recorded") for name in ("task.name", "network.name", "train.steps")}
    data = section.setting.get("data", "not recorded")[:KEY_LENGTH]
    seeds = count(len(section.seeds), "seed") + (f" ({', '.join(map(str, section.seeds))})" if section.seeds else "")
    words = [
        f"{count(section.trials['cell'].nunique(), 'cell')} under {seeds}: {count(len(section.trials), 'trial')}, of "
        f"which {states_in_words(section)}.",
        f"Task `{setting['task.name']}`, network `{setting['network.name']}`, {setting['train.steps']} training steps, "
        f"data `{data}`.",
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
    return Part("\n\n".join([text, READING, *([ONE_SEED] if one_seed else [])]))


def states_in_words(section: Section) -> str:
    """How many trials finished, failed and so on; finished, failed and missing are named even when none is."""
    counts = section.trials["state"].value_counts()
    named = [
        f"{counts.get(state, 0)} {state}"
        for state in ("finished", "failed", "interrupted", "running", "missing")
        if state in ("finished", "failed", "missing") or counts.get(state, 0)
    ]
    return listed(named)


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def baseline_name(section: Section) -> str:
    """What a task's baseline is called."""
    return "bicubic interpolation" if section.setting.get("task.name", "").startswith("sr") else "the unrestored input"


def count(number: int, noun: str) -> str:
    """``1 cell``, ``4 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def components(chapter: Chapter) -> Part:
    """What each component is worth: a table, a sentence for each row, a forest plot."""
    title = f"{chapter.heading} What each component is worth"
    if not chapter.contrasts:
        return Part(f"{title}\n\nNo two finished cells differ in one factor alone, so no component can be told apart.")
    sets = chapter.section.sets
    link, files = chapter.table("effects", tables.contrast_frame(chapter.contrasts))
    image, drawn = chapter.figure("effects", "What each component is worth", effects_figure(chapter.contrasts, sets))
    sentences = "\n".join(f"- {sentence(contrast)}" for contrast in chapter.contrasts)
    legend = (
        "Filled points exclude 0; hollow points do not; a hollow diamond is one seed, which has no interval. "
        "OPs and params are the change that comes with the level."
    )
    table = tables.contrast_table(chapter.contrasts, sets)
    return Part("\n\n".join([title, table, sentences, image, legend, link]), {**files, **drawn})


def sentence(contrast: Contrast) -> str:
    """One contrast in words, with its verdict for each test set."""
    by_verdict: dict[str, list[str]] = {}
    for name, estimate in contrast.psnr.items():
        by_verdict.setdefault(verdict(estimate), []).append(name)
    said = "; ".join(
        phrase(words, {name: contrast.psnr[name] for name in names}) for words, names in by_verdict.items()
    )
    basis = f"{count(len(contrast.pairs.cells), 'pair')} of cells, {count(len(contrast.seeds), 'seed')}"
    if contrast.dropped:
        basis += f", {count(len(contrast.dropped), 'incomplete seed')} dropped"
    along = [f"`{factor}`" for factor in contrast.pairs.moved_along]
    moved = f" {listed(along)} {'changes' if len(along) == 1 else 'change'} with it." if along else ""
    return f"`{contrast.factor}={contrast.level}` instead of `{contrast.base}`: {said} ({basis}).{moved}"


def phrase(words: str, estimates: Mapping[str, Estimate]) -> str:
    """What a contrast does on the test sets that have one verdict."""
    if words in ("better", "worse"):
        by = [f"{abs(estimate.mean):.3f} dB on {name}" for name, estimate in estimates.items()]
        return f"**{words}** by {listed(by)}"
    moved = [
        name + (f" ({estimate.mean:+.3f} dB)" if math.isfinite(estimate.mean) else "")
        for name, estimate in estimates.items()
    ]
    return f"{words} on {listed(moved)}"


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
    table = tables.cell_table(chapter.cells, section.sets)
    return Part("\n\n".join([f"{chapter.heading} Cells", said, table, link]), files)


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
        "The same place of a test picture for every cell, chosen by rule and not by hand; pixels are enlarged as they "
        "are. Under each output: the cell and its PSNR on the whole test set, under the cell's first seed."
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
    lines = [f"{chapter.heading} Not in the tables"]
    files: dict[str, bytes] = {}
    if (section.trials["state"] != "finished").any():
        lines += ["Trials that are not finished:", tables.unfinished_table(section)]
    else:
        lines.append("Every planned trial is finished." if len(section.trials) else "No trial was planned.")
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
    link, files = chapter.table("trials", tables.trial_frame(section))
    trials = f"<details>\n<summary>Every trial and its run</summary>\n\n{tables.trial_table(section)}\n\n</details>"
    return Part("\n\n".join(line for line in [*lines, trials, link] if line), files)


def fixed_levels(section: Section) -> dict[str, str]:
    """The level of every factor that does not vary, with the levels that it was recorded as where those differ."""
    levels = [levels_of(row, section.factors) for _, row in section.trials.iterrows()]
    free = varying(levels, section.factors)
    fixed = {name: level for row in levels[:1] for name, level in row.items() if name not in free and level}
    recorded = {name: [text for text in section.trials[f"factor/{name}"].unique() if text] for name in fixed}
    return {
        name: f"{level} ({' or '.join(recorded[name])})" if level == "auto" else level for name, level in fixed.items()
    }


def dirty_sentence(section: Section) -> str:
    """A warning where the code that ran is not the commit that is named."""
    dirty = int((section.trials["git_dirty"] == "true").sum())
    if not dirty:
        return ""
    return f"**{dirty} of {count(len(section.trials), 'trial')} ran with changes that were not committed.**"


def key_table(key: str, value: str, content: Mapping[str, str]) -> str:
    """Names and their values, sorted by name."""
    return tables.markdown([key, value], [[tables.code(name), content[name]] for name in sorted(content)])


def recorded_provenance(section: Section) -> dict[str, str]:
    """Each key of the trials' provenance with its value, or with every value and how many trials have it."""
    recorded = [json.loads(text) for text in section.trials["provenance"] if text]
    keys = sorted({key for row in recorded for key in row} - {"seed"})
    return {key: distinct_values(readable(row[key]) for row in recorded if key in row) for key in keys}


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
