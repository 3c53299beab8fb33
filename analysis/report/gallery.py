"""The index of the reports in a folder: ``README.md``, which git keeps, and ``index.html``, a page for the browser.

Both show of each report what its ``summary.json`` says, so no archive is opened. ``index.html`` has every report, those
of the user's own studies first. ``README.md`` has those in ``examples/``, which git keeps too: were the user's own in
it, each study would change a file of the repository. A folder without examples has all of its reports in both.
"""

import dataclasses
import functools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from analysis.effects.claims import Status
from analysis.effects.family import Conclusion
from analysis.report.archive import ARCHIVE
from analysis.report.forms import HTML, PAGE, replace
from analysis.report.html.page import asset, digest
from analysis.report.markup import one_line
from analysis.report.summary import SUMMARY, Summary, Task, read_summary
from analysis.report.words import count, environment, in_thousands, render
from analysis.study.schema import STATES
from bbcu.errors import BbcuError, ConfigError, first_line

README, INDEX = "README.md", "index.html"

EXAMPLES = "examples"
"""The folder of the reports that git keeps."""

MINUTE, HOUR = 60, 3600


@dataclasses.dataclass(frozen=True)
class Entry:
    """A report in an index: its folder, and its summary or the reason why there is none.

    ``folder`` is its path from where the command runs, and ``place`` that from the index.
    """

    folder: Path
    place: Path
    summary: Summary | None
    problem: str

    @property
    def name(self) -> str:
        return one_line(self.place.name)

    def link(self, name: str) -> str:
        """Return the address of one of the report's files from the index; empty if it does not exist."""
        return quote(os.fsencode(self.place / name)) if (self.folder / name).is_file() else ""

    @property
    def page(self) -> str:
        return self.link(PAGE)

    @property
    def html(self) -> str:
        return self.link(HTML)

    @property
    def figure(self) -> str:
        """The address of the first figure; empty if there is none."""
        return self.link(self.summary.figure.file) if self.summary and self.summary.figure else ""

    @property
    def command(self) -> str:
        """The command that writes the summary."""
        has_archive = (self.folder / ARCHIVE).is_file()
        name = str(self.folder) if has_archive else self.folder.name
        return f"python -m analysis {shlex.quote(one_line(name))}"

    @functools.cached_property
    def known(self) -> Summary:
        """The summary, of a report that has one."""
        assert self.summary is not None
        return self.summary

    @property
    def question(self) -> str:
        return capital(self.known.question)

    @property
    def verdicts(self) -> list[tuple[Conclusion, int]]:
        return [(each, self.known.verdicts[each]) for each in Conclusion if self.known.verdicts.get(each)]

    @property
    def verdicts_about(self) -> str:
        """What the verdicts are about: ``of 9 comparisons on 4 test sets``."""
        sets = sum(len(task.test_sets) for task in self.known.tasks)
        return f"of {count(self.known.changes, 'comparison')}" + (f" on {sets} test sets" if sets > 1 else "")

    @property
    def claims(self) -> list[tuple[Status, int]]:
        return [(each, self.known.claims[each]) for each in Status if self.known.claims.get(each)]

    @property
    def tasks(self) -> list[str]:
        """The conditions of each task; tasks that differ in nothing else are named together."""
        alike: dict[str, tuple[Task, list[str]]] = {}
        for task in self.known.tasks:
            alike.setdefault(task.model_copy(update={"task": ""}).model_dump_json(), (task, []))[1].append(task.task)
        return [in_words(task, names) for task, names in alike.values()]

    @property
    def trainings(self) -> str:
        """The size of the study: ``39 cells under 3 seeds, 117 trainings``, and what has no result."""
        few, many = self.known.seeds
        seeds = count(many, "seed") if few == many else f"{few} to {many} seeds"
        lacking = [f"{self.known.trials[state]} {state}" for state in STATES[1:] if self.known.trials.get(state)]
        size = f"{count(self.known.cells, 'cell')} under {seeds}, {count(self.known.trainings, 'training')}"
        return ", ".join([size, *lacking])

    @property
    def times(self) -> list[str]:
        """How long the trainings took, added up for each processor: ``19 min of training on AMD EPYC``."""
        return [f"{duration(seconds)} of training on {name}" for name, seconds in self.known.train_s.items()]


def in_words(task: Task, names: Sequence[str]) -> str:
    sets = f", tested on {together(task.test_sets)}" if task.test_sets else ""
    steps = f" for {in_thousands(task.steps)} steps" if task.steps else ""
    return capital(f"{task.network or 'a network'} for {together(names)}, trained on {task.trained_on}{steps}{sets}")


def together(words: Sequence[str]) -> str:
    """Join words as :func:`analysis.report.words.listed`, as text in no language yet: ``a, b and c``."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """Spell a time: ``95 s``, ``19 min``, ``1.8 h``."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 1.5 * HOUR else f"{seconds / HOUR:.1f} h"


@dataclasses.dataclass(frozen=True)
class Group:
    """The reports of one folder under their heading; the one with the most trainings, which shows most, comes first."""

    title: str
    entries: Sequence[Entry]

    @property
    def id(self) -> str:
        return self.title.lower().replace(" ", "-")


def groups(reports: Path) -> list[Group]:
    """Return the reports below a folder, those of the user's own studies first; raises ConfigError if there is none."""
    examples = entries(reports, Path(EXAMPLES))
    found = [
        Group("Own studies" if examples else "Studies", entries(reports, Path())),
        Group("Examples", examples),
    ]
    if not any(group.entries for group in found):
        raise ConfigError(f"no report below {reports}: python -m analysis STUDY writes one")
    return [group for group in found if group.entries]


def entries(reports: Path, below: Path) -> list[Entry]:
    pages = [page for page in (reports / below).glob(f"*/{PAGE}") if page.is_file()]
    found = [entry_of(page.parent, below / page.parent.name) for page in pages]
    return sorted(found, key=lambda entry: (-(entry.summary.trainings if entry.summary else 0), entry.name))


def entry_of(folder: Path, place: Path) -> Entry:
    try:
        return Entry(folder, place, read_summary(folder / SUMMARY), "")
    except FileNotFoundError:
        return Entry(folder, place, None, f"its report has no {SUMMARY} yet")
    # The message of an OSError has the whole path, which is nobody's business on a page that is published.
    except OSError as error:
        return Entry(folder, place, None, f"its {SUMMARY} cannot be read: {error.strerror}")
    except ValueError as error:
        return Entry(folder, place, None, f"its {SUMMARY} cannot be read: {first_line(error)}")


def write_index(reports: Path) -> list[Path]:
    """Write both forms of the index into a folder of reports and return their paths.

    Raises ConfigError if there is no report, and BbcuError if the folder cannot be written to.
    """
    found = groups(reports)
    try:
        for name, content in ((README, readme(found)), (INDEX, page(found))):
            replace(reports / name, content)
    except OSError as error:
        raise BbcuError(f"{reports}: the index cannot be written: {error.strerror}") from error
    return [reports / README, reports / INDEX]


def readme(found: Sequence[Group]) -> bytes:
    """Return the index as Markdown: the examples, or everything if there are none."""
    return render("gallery.md.j2", entries=found[-1].entries).encode()


def page(found: Sequence[Group]) -> bytes:
    """Return the index as a page of HTML; it loads the figures that lie beside it and nothing else."""
    style = asset("page.css") + asset("gallery.css")
    template = environment().get_template("gallery.html.j2")
    return template.render(style=Markup(style), style_hash=digest(style), groups=found, PAGE=PAGE, HTML=HTML).encode()
