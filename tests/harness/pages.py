"""What a report must not do: break its own form, or say in one place what another place denies.

:func:`broken` looks at the form of a page: headings, tables, links. :func:`contradictions` compares everything that a
page and its CSV files say twice. Both return sentences, one for each fault, and know nothing of how a page is made.
"""

import dataclasses
import functools
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
from scipy.stats import beta

Files = Mapping[str, bytes]

VERDICTS = re.compile(r"\b(better|worse|equivalent|undecided)\b")
P_VALUE = re.compile(r"corrected p = \S+ among \d+|\bp = [^;\s]+")
NUMBER = r"[-+]\d+\.\d+"
INTERVAL = re.compile(rf"({NUMBER})(?: \[({NUMBER}), ({NUMBER})\])?")

TITLES = {
    "Surely worse": "worse",
    "Surely better": "better",
    "Risk of collapse": "risk of collapse",
    "No verdict, as nothing was learned": "nothing learned",
    "One seed, so no verdict": "one seed",
    "Undecided": "undecided",
    "No verdict, as a cell has no result": "no result",
    "Still open": "open",
}
"""The lists of the opening, and the conclusion that each is about; “Surely less than ...” is about equivalent ones."""

UNREADABLE = r"\bnan\b|\bNone\b|\binf\b|\{\{|\}\}|\{%|%\}|<NA>|\bNaT\b|Undefined"


# ---- a page in parts -------------------------------------------------------------------------------------------------


def unlinked(text: str) -> str:
    """A piece of Markdown without its links to runs."""
    return re.sub(r"(?<!\\)\[((?:[^\[\]\\`]|\\.|`[^`]*`)*)\]\(#runs-[\w-]+\)", r"\1", text)


def plain(text: str) -> str:
    """A piece of Markdown without its marks, and without the links to runs."""
    return re.sub(r"\\(.)", r"\1", re.sub(r"\*\*|(?<!\\)`", "", unlinked(text))).strip()


def fields(line: str) -> list[str]:
    """The cells of a row of a table."""
    return [field.strip() for field in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def linked(text: str) -> str:
    """The text of a link."""
    return text.partition("](")[0].removeprefix("[")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page, with the line before it."""

    before: str
    header: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> int:
        return self.header.index(name)

    def dicts(self) -> list[dict[str, str]]:
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, and the lines below it up to the next one."""

    level: int
    title: str
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @functools.cached_property
    def tables(self) -> list[Table]:
        found, before = [], ""
        for block in re.split(r"\n\s*\n", self.text):
            lines = block.splitlines()
            start = next((place for place, line in enumerate(lines) if line.startswith("|")), None)
            if start is not None and len(lines) > start + 1:
                rows = [fields(line) for line in lines[start + 2 :]]
                found.append(Table(before, fields(lines[start]), rows))
            before = lines[-1] if lines else before
        return found


def sections_of(page: str) -> list[Section]:
    """The parts of a page by heading; the first has the title of the page."""
    found: list[Section] = []
    for line in page.splitlines():
        if heading := re.match(r"(#{1,6}) (.*)", line):
            found.append(Section(len(heading[1]), plain(heading[2]), []))
        else:
            found[-1].lines.append(line)
    return found


@dataclasses.dataclass(frozen=True)
class Part:
    """A task of a report: its sections, its CSV files by name, and the stopping rule of the study if it has one."""

    title: str
    sections: Sequence[Section]
    frames: Mapping[str, pd.DataFrame]
    rule: "StoppingRule | None" = None

    def section(self, title: str) -> Section | None:
        return next((section for section in self.sections if section.title == title), None)

    def tables(self, title: str) -> list[Table]:
        section = self.section(title)
        return section.tables if section else []

    def table_with(self, title: str, *columns: str) -> Table | None:
        return next((table for table in self.tables(title) if set(columns) <= set(table.header)), None)

    @property
    def effects(self) -> Section | None:
        return self.section("What each change is worth") or self.section("How the methods compare")

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(self.frames["cells"]["test_set"])) if "cells" in self.frames else []


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """What the opening says of a stopping rule."""

    looks: tuple[int, ...]
    first_seed: int

    @classmethod
    def of(cls, opening: str) -> "StoppingRule | None":
        said = re.search(r"looks at (.*?), from seed (\d+) on", opening)
        if said is None:
            return None
        numbers = tuple(map(int, re.findall(r"\d+", said[1])))
        looks = tuple(range(numbers[0], numbers[1] + 1)) if said[1].startswith("every") else numbers
        return cls(looks, int(said[2]))

    def seeds(self, look: float) -> range:
        """The seeds of a look; of the first one for a number that is none."""
        return range(self.first_seed, self.first_seed + int(look if look >= self.looks[0] else self.looks[0]))


REPEATED = " [repeated 95 %]"


@dataclasses.dataclass(frozen=True)
class Report:
    """A report as its reader has it."""

    opening: str
    sections: Sequence[Section]
    parts: Sequence[Part]

    @classmethod
    def of(cls, files: Files) -> "Report":
        page = files["report.md"].decode()
        sections = sections_of(page)
        opening = page.partition("\n## ")[0]
        rule = StoppingRule.of(opening)
        numbers = sorted({int(found[1]) for name in files if (found := re.match(r"part(\d+)-", name))})
        if not numbers:
            return cls(opening, sections, [Part("", sections[1:], frames_of(files, ""), rule)])
        starts = [place for place, section in enumerate(sections) if section.level == 2][: len(numbers)]
        ends = [*starts[1:], len(sections)]
        parts = [
            Part(
                sections[start].title,
                [section for section in sections[start:end] if section.level == 3],
                frames_of(files, f"part{number}-"),
                rule,
            )
            for number, start, end in zip(numbers, starts, ends, strict=True)
        ]
        return cls(opening, sections, parts)

    @property
    def rule(self) -> StoppingRule | None:
        return self.parts[0].rule

    @property
    def bullets(self) -> dict[str, str]:
        """The lists of the opening by their title in bold."""
        found = re.findall(r"^- \*\*(.+?)\*\*(.*)$", self.opening, re.MULTILINE)
        return {plain(title): text for title, text in found}

    @property
    def first_table(self) -> Table | None:
        tables = Section(1, "", self.opening.splitlines()).tables
        return next((table for table in tables if table.header[-1] == "Collapsed"), None)

    def panels(self) -> list[tuple[str, Part, str]]:
        """The columns of the first table: their title, part and test set."""
        several = len(self.parts) > 1
        return [(f"{part.title} {name}" if several else name, part, name) for part in self.parts for name in part.sets]

    def measured(self, label: str) -> dict[str, Mapping[str, object]]:
        """The rows of effects.csv that have a conclusion for a change, by panel."""
        found: dict[str, Mapping[str, object]] = {}
        for title, part, name in self.panels():
            if "effects" in part.frames:
                frame = part.frames["effects"]
                rows = frame[(frame["change"] == label) & (frame["test_set"] == name) & (frame["conclusion"] != "")]
                if len(rows):
                    found[title] = dict(rows.iloc[0])
        return found

    @property
    def labels(self) -> list[str]:
        """The changes that have a conclusion somewhere."""
        frames = [part.frames["effects"] for part in self.parts if "effects" in part.frames]
        return list(dict.fromkeys(label for frame in frames for label in frame[frame["conclusion"] != ""]["change"]))


def frames_of(files: Files, prefix: str) -> dict[str, pd.DataFrame]:
    """The CSV files of a part; a column is of numbers if it holds nothing else, and an empty text is one."""
    found = {}
    for name in files:
        if name.startswith(prefix) and name.endswith(".csv"):
            frame = pd.read_csv(io.BytesIO(files[name]), dtype=str, keep_default_na=False)
            found[name.removeprefix(prefix).removesuffix(".csv")] = frame.apply(numbers_if_all)
    return found


def numbers_if_all(column: "pd.Series[str]") -> "pd.Series[str] | pd.Series[float]":
    known = column[column != ""]
    if known.empty or column.name in ("change", "test_set", "cell", "context", "before", "after"):
        return column
    try:
        return column.where(column != "", "nan").astype(float)
    except ValueError:
        return column


# ---- the form --------------------------------------------------------------------------------------------------------


def broken(files: Files) -> list[str]:
    """What is wrong with the form of a report."""
    page = files["report.md"].decode()
    return [fault for check in (headings, tables, folds, words, links) for fault in check(page, files)]


def headings(page: str, files: Files) -> Iterator[str]:
    found = sections_of(page)
    for section, after in zip(found, [*found[1:], None], strict=True):
        deeper = after is not None and after.level > section.level
        content = re.sub(r"</?details>|<summary>.*</summary>|Data: \S+", "", section.text)
        if not content.strip() and not deeper:
            yield f"nothing below the heading {section.title!r}"
    titles = Counter((section.level, section.title) for section in found if section.level == 2)
    yield from (f"the heading {title!r} is there {number} times" for (_, title), number in titles.items() if number > 1)


def tables(page: str, files: Files) -> Iterator[str]:
    lines = ["", *page.splitlines(), ""]
    for place, line in enumerate(lines):
        if not line.startswith("|"):
            continue
        width = len(fields(line))
        if not lines[place - 1].startswith("|"):
            rule = lines[place + 1]
            if lines[place - 1].strip() or not re.fullmatch(r"\|(?: :?-+:? \|)+", rule) or len(fields(rule)) != width:
                yield f"no table begins with the row {line!r}"
            elif not lines[place + 2].startswith("|"):
                yield f"a table without a row: {line!r}"
        elif len(fields(lines[place - 1])) != width:
            yield f"a row of {width} cells below one of {len(fields(lines[place - 1]))}: {line!r}"
        elif lines[place + 1].strip() and not lines[place + 1].startswith("|"):
            yield f"the table before {lines[place + 1]!r} would swallow it"


def folds(page: str, files: Files) -> Iterator[str]:
    lines, is_open = [*page.splitlines(), ""], False
    for line, after in itertools.pairwise(lines):
        if line == "<details>":
            if is_open or not re.fullmatch("<summary>.+</summary>", after):
                yield "a fold that another one holds, or that has no summary"
            is_open = True
        elif line == "</details>":
            if not is_open:
                yield "a fold is closed twice"
            is_open = False
        if line.startswith(("</details>", "<summary>")) and after.strip():
            yield f"{after!r} right below {line!r}: CommonMark takes it for HTML"
    if is_open:
        yield "a fold is not closed"


def words(page: str, files: Files) -> Iterator[str]:
    for line in page.splitlines():
        own = re.sub(r"`[^`]*`|(?<=\]\().*?(?=\))", "code", line)
        if found := re.search(UNREADABLE, own):
            yield f"{found[0]!r} in {line!r}"
        if re.search(r"(?<![.|])  +\S|\s[.,;:](\s|$)|,,|\.\.(?!\.)|\(\)|\[\]", own.lstrip(" -")):
            yield f"spaces or marks that do not belong: {line!r}"


def links(page: str, files: Files) -> Iterator[str]:
    found = re.findall(r"\]\(([^)]+)\)", page)
    anchors = re.findall(r'<a id="([^"]+)"></a>', page)
    places, names = {f"#{name}" for name in anchors}, {name for name in found if not name.startswith("#")}
    yield from (f"the place {name!r} is there twice" for name, number in Counter(anchors).items() if number > 1)
    yield from (f"the link {link!r} leads nowhere" for link in sorted({*found} - places - files.keys()))
    yield from (f"no link leads to {name!r}" for name in sorted(files.keys() - names - {"report.md", "summary.json"}))


# ---- what is said twice ----------------------------------------------------------------------------------------------


def contradictions(files: Files) -> list[str]:
    """What a report says in one place and denies in another."""
    report = Report.of(files)
    checks: Sequence[Callable[[Report], Iterator[str]]] = (
        first_table,
        lists_of_the_opening,
        savings_of_the_opening,
        smallest_effect,
        dependent_effects,
        claims_of_the_opening,
        conditions,
        warnings,
        front,
        spent,
    )
    by_part = (folded_rows, claims, collapsed_trials, descriptions, contexts, cells, cells_against_rows, looks, savings)
    found = [fault for check in checks for fault in check(report)]
    for part, check_part in itertools.product(report.parts, by_part):
        found += [f"{part.title}: {fault}".removeprefix(": ") for fault in check_part(part)]
    return found


def number(value: object) -> float:
    return math.nan if value == "" else float(str(value))


def text_of(row: Mapping[str, object], mean: str, low: str = "low_95_db", high: str = "high_95_db") -> str:
    """A difference with its interval as a page shows it."""
    values = [number(row[name]) for name in (mean, low, high)]
    if math.isnan(values[1]):
        return f"{values[0]:+.3f} [one seed]" if row.get("seeds") == 1 else f"{values[0]:+.3f}"
    return f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"


def effect_of(row: Mapping[str, object]) -> str:
    """What the first table shows of a row of effects.csv."""
    learned = number(row["learned_difference_db"])
    if row["conclusion"] == "nothing learned" or (row["conclusion"] == "risk of collapse" and math.isnan(learned)):
        return "—"
    return f"{learned:+.3f} without the collapsed" if row["conclusion"] == "risk of collapse" else text_of(row, DB)


def effect_and_verdict(row: Mapping[str, object]) -> str:
    """The same where the verdict has no column of its own."""
    effect, conclusion = effect_of(row), str(row["conclusion"])
    if conclusion in ("risk of collapse", "nothing learned"):
        return conclusion if effect == "—" else f"{conclusion} ({effect})"
    return f"{effect} {conclusion}"


def cost_of(row: Mapping[str, object]) -> str:
    ops, params = number(row["ops_change_g"]), number(row["params_change_k"])
    counted = "same" if max(abs(ops), abs(params)) < 1e-6 else f"{ops:+.2f} G OPs, {params:+.1f} K params"
    if row.get("saving", "") == "":
        return counted
    by_count, by_clock = (percent(row[f"{name}_change_percent"]) for name in ("ops", "time"))
    return f"{counted}; {by_count} by count, {by_clock} by the clock"


def percent(value: object) -> str:
    text = f"{number(value):+.1f}"
    return f"{'0.0' if text in ('-0.0', '+0.0') else text} %"


DB = "psnr_difference_db"


def differ(what: str, shown: object, other: object) -> Iterator[str]:
    if shown != other:
        yield f"{what}: {shown!r} and {other!r}"


def first_table(report: Report) -> Iterator[str]:
    table, labels = report.first_table, report.labels
    if table is None:
        yield from differ("no table of the interventions", labels, [])
        return
    yield from differ("interventions", [plain(row[0]) for row in table.rows], labels[: len(table.rows)])
    if len(table.rows) < len(labels):
        yield from differ("the rest", f"{len(labels) - len(table.rows)} more are below." in report.opening, True)
    for row in table.dicts():
        label = plain(next(iter(row.values())))
        measured = report.measured(label)
        yield from looks_of(report, label, row, measured)
        for title, _, _ in report.panels():
            shown, found = plain(row[f"{title} (dB){REPEATED if report.rule else ''}"]), measured.get(title)
            if found is None:
                yield from differ(f"{label} on {title}", shown, "—")
                continue
            verdict = plain(row["Verdict"]) if "Verdict" in row else ""
            own = effect_of(found) if "Verdict" in row else effect_and_verdict(found)
            yield from differ(f"{label} on {title}", shown, own)
            if "Verdict" in row:
                yield from differ(f"verdict of {label}", verdict, found["conclusion"])
        costs = [cost_of(found) for found in measured.values()]
        yield from differ(f"cost of {label}", row["Cost"], " / ".join(dict.fromkeys(costs)))
        yield from differ(f"collapsed in {label}", row["Collapsed"], collapsed_of(report, measured))


def looks_of(
    report: Report, label: str, row: Mapping[str, str], measured: Mapping[str, Mapping[str, object]]
) -> Iterator[str]:
    """The seeds of a row in the first table are its looks."""
    yield from differ(f"the seeds of {label} are said", "Seeds" in row, report.rule is not None)
    if report.rule:
        own = [
            f"{number(measured[title]['look']):.0f}" if title in measured else "—" for title, _, _ in report.panels()
        ]
        own = ["none yet" if look == "0" else look for look in own]
        known = {look for look in own if look != "—"}
        yield from differ(f"seeds of {label}", row["Seeds"], known.pop() if len(known) == 1 else " / ".join(own))


def collapsed_of(report: Report, measured: Mapping[str, Mapping[str, object]]) -> str:
    """What the first table counts of collapsed trials, of each part that has the change."""
    by_part: dict[str, Mapping[str, object]] = {}
    for title, part, _ in report.panels():
        known = by_part.get(part.title)
        # With a stopping rule the collapsed trials are those at the look with most seeds.
        if title in measured and (not known or number(measured[title].get("look", 1)) > number(known.get("look", 0))):
            by_part[part.title] = measured[title]
    found = []
    for row in by_part.values():
        before, after = (str(row[f"collapsed_{side}"]) for side in ("before", "after"))
        words = [with_interval(after), *([f"before {with_interval(before)}"] if not before.startswith("0 ") else [])]
        found.append("none" if before.startswith("0 ") and after.startswith("0 ") else "; ".join(words))
    return "none" if set(found) == {"none"} else " / ".join(found)


def with_interval(count: str) -> str:
    """``1 of 3 [1, 91] %``, by the beta distribution (Clopper and Pearson)."""
    number, total = map(int, count.split(" of "))
    if not number:
        return count
    low = beta.ppf(0.025, number, total - number + 1)
    high = beta.ppf(0.975, number + 1, total - number) if number < total else 1.0
    return f"{count} [{100 * low:.0f}, {100 * high:.0f}] %"


def named(text: str, panels: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    """The changes that a list of the opening names, with the panels in brackets, and how many more there are."""
    body = re.split(r"\. (?=The smallest effect)|\.$", text.removeprefix(": "))[0]
    found: dict[str, list[str]] = {}
    more = 0
    for item in body.split("; "):
        if rest := re.fullmatch(r"and (\d+) more", item):
            more = int(rest[1])
            continue
        inside = re.fullmatch(r"(.*) \(([^()]*)\)", item)
        names = inside[2].split(", ") if inside else []
        if inside and set(map(plain, names)) <= set(panels):
            found[plain(inside[1])] = [plain(name) for name in names]
        else:
            found[plain(item)] = []
    return found, more


def lists_of_the_opening(report: Report) -> Iterator[str]:
    panels = [title for title, _, _ in report.panels()]
    wanted: dict[str, dict[str, list[str]]] = {}
    for label in report.labels:
        for title, found in report.measured(label).items():
            wanted.setdefault(str(found["conclusion"]), {}).setdefault(label, []).append(title)
    seen = set()
    for heading, text in report.bullets.items():
        conclusion = "equivalent" if heading.startswith("Surely less than") else TITLES.get(heading)
        if conclusion is None:
            continue
        seen.add(conclusion)
        shown, more = named(text, panels)
        own = wanted.get(conclusion, {})
        yield from differ(f"number of {conclusion}", len(shown) + more, len(own))
        for label, places in shown.items():
            every = own.get(label, [])
            yield from differ(f"where {label} is {conclusion}", places or panels, every if places else every or panels)
            if not places:
                yield from differ(f"where {label} is {conclusion}", set(every), set(panels))
    yield from differ("conclusions in the opening", seen, wanted.keys())


def smallest_effect(report: Report) -> Iterator[str]:
    rows = [found for label in report.labels for found in report.measured(label).values()]
    found = [number(row["detectable_db"]) for row in rows if row["conclusion"] == "undecided"]
    found = [each for each in found if math.isfinite(each)]
    says = re.search(r"effect that (the last look|these seeds) could have shown", report.opening)
    if says:
        yield from differ("what shows the smallest effect", says[1] == "the last look", report.rule is not None)
    said = re.search(r"with 80 % power, is (\d+\.\d\d)(?: dB| to (\d+\.\d\d) dB)", report.opening)
    yield from differ("a smallest effect is said", bool(said), bool(found))
    if said and found:
        yield from differ("smallest effect", (said[1], said[2] or said[1]), (f"{min(found):.2f}", f"{max(found):.2f}"))


def dependent_effects(report: Report) -> Iterator[str]:
    for heading, text in re.findall(
        r"^- \*\*Depends on its context\*\*(?:, (.*?))?: (.*?)(?:, at the first look)?\.$", report.opening, re.MULTILINE
    ):
        part = next(part for part in report.parts if plain(heading) in ("", part.title))
        frame = part.frames["contexts"]
        frame = frame[frame["test_set"] == part.sets[0]]
        for item in text.split("; "):
            said = re.fullmatch(rf"(.*) \(({NUMBER}) dB at the reference, ({NUMBER}) at (.*)\)", item)
            if said is None:
                yield f"not understood: {item!r}"
                continue
            own = frame[frame["change"] == plain(said[1])]
            means = {str(row["context"]): f"{row[DB]:+.2f}" for _, row in own.iterrows()}
            yield from differ(f"{said[1]} at the reference", said[2], means.get(""))
            yield from differ(f"{said[1]} at {said[4]}", said[3], means.get(plain(said[4])))


STATUSES = ("contradicted", "undecided", "supported")


def claims_of_the_opening(report: Report) -> Iterator[str]:
    by_text: dict[str, set[str]] = {}
    for part in report.parts:
        for _, row in part.frames.get("claims", pd.DataFrame()).iterrows():
            by_text.setdefault(str(row["claim"]), set()).add(str(row["status"]))
    first = {text: next((status for status in STATUSES if status in found), "") for text, found in by_text.items()}
    said = report.bullets.get("Claims of the paper")
    yield from differ("the claims are said", said is not None, bool(first))
    if said is None:
        return
    for status in STATUSES:
        own = [text for text, each in first.items() if each == status]
        shown = re.search(rf"(\d+) {status}(?: \((.*?)\)(?=[,.]))?", said)
        yield from differ(f"{status} claims", shown and int(shown[1]), len(own))
        if shown and status != "supported":
            names = [name for name in (shown[2] or "").split("; ") if name]
            yield from differ(f"{status} claims named", len(names), len(own))
            yield from (f"{name} is not {status}" for name in names if not plain(name).startswith(tuple(own)))


def conditions(report: Report) -> Iterator[str]:
    for part in report.parts:
        lines = [line for line in report.opening.splitlines() if " for " in line and " finished" in line]
        line = next((line for line in lines if not part.title or plain(line).startswith(f"- {part.title}:")), "")
        trials = part.frames["trials"]
        if not line:
            yield from differ("conditions are said", "more parts are below" in report.opening, bool(len(trials)))
            continue
        for noun, number in (
            ("cell", trials["cell"].nunique()),
            ("seed", trials["seed"].nunique()),
        ):
            if report.rule and noun == "seed":
                counts = trials.groupby("cell")["seed"].nunique()
                words = " to ".join(dict.fromkeys(map(str, (counts.min(), counts.max()))))
                yield from differ("seeds a cell", f" {words} seeds a cell," in line, True)
                continue
            said = re.search(rf"(\d+) {noun}s?,", line)
            yield from differ(f"{noun}s", said and int(said[1]), number)
        for count, state in re.findall(r"(\d+) (finished|failed|missing|interrupted|pruned|running)", line):
            yield from differ(state, int(count), int((trials["state"] == state).sum()))
        for name in part.sets:
            baseline = trials[trials["state"] == "finished"][f"baseline/{name}/psnr_db"].mean()
            yield from differ(f"baseline on {name}", f" {baseline:.2f} dB" in line, True)


def warnings(report: Report) -> Iterator[str]:
    trials = pd.concat([part.frames["trials"] for part in report.parts])
    lacking = trials[trials["state"] != "finished"]
    said = re.search(r"(\d+) trials? ha(?:s|ve) no result: (.*?)\.\*\*", report.opening)
    yield from differ("trials without a result", int(said[1]) if said else 0, len(lacking))
    for count, state in re.findall(r"(\d+) (\w+)", said[2] if said else ""):
        yield from differ(state, int(count), int((lacking["state"] == state).sum()))
    finished = trials[trials["state"] == "finished"]
    dirty = re.search(r"(\d+) of (\d+) trials? ran with uncommitted changes", report.opening)
    own = int((finished["git_dirty"].astype(str).str.lower() == "true").sum()) if "git_dirty" in finished else 0
    yield from differ(
        "dirty trials", (int(dirty[1]), int(dirty[2])) if dirty else (0, len(finished)), (own, len(finished))
    )
    if "Nothing was learned" in report.opening:
        yield from differ("verdicts although nothing was learned", VERDICTS.findall(report.opening), [])


def front(report: Report) -> Iterator[str]:
    """Nothing is on the front that another cell of it beats."""
    table = next((t for t in Section(1, "", report.opening.splitlines()).tables if t.header[0] == "Cell"), None)
    if table is None:
        return
    cells = pd.concat([part.frames["cells"] for part in report.parts])
    for row in table.dicts():
        found = cells[(cells["psnr_mean_db"].map("{:.3f}".format) == row["PSNR (dB)"])]
        yield from differ(f"{row['Cell']} of the front among the cells", bool(len(found)), True)


def pairs_of(text: str) -> tuple[str, str]:
    before, after = re.findall(r"\(#runs-([\w-]+)\)", text)
    return before, after


def folded_rows(part: Part) -> Iterator[str]:
    if part.effects is None:
        return
    frame = part.frames["effects"]
    counted = re.search(r"<summary>(\d+) interventions?", part.effects.text)
    concluded = frame[frame["conclusion"] != ""]
    yield from differ("interventions", counted and int(counted[1]), concluded["change"].nunique())
    table = next((table for table in part.effects.tables if "Cells" in table.header), None)
    rows = table.dicts() if table else []
    changes = [plain(next(iter(row.values()))) for row in rows]
    yield from differ("folded rows", list(dict.fromkeys(changes)), list(dict.fromkeys(concluded["change"])))
    for label, row in zip(changes, rows, strict=True):
        name = plain(row.get("Test set", "")) or part.sets[0]
        own = concluded[(concluded["change"] == label) & (concluded["test_set"] == name)].iloc[0]
        yield from differ(f"verdict of {label} on {name}", plain(row["Verdict"]), own["conclusion"])
        why, reason = plain(row["Why"]), str(own["reason"])
        if own["conclusion"] == "risk of collapse":
            yield from differ(f"p of {label} on {name}", P_VALUE.findall(why), P_VALUE.findall(reason))
        elif reason and len(why) < 200:
            yield from differ(f"reason of {label} on {name}", why.endswith(reason), True)
    for line in part.effects.lines:
        if said := re.search(r"corrected for (\d+) comparisons? on a test set", line):
            most = frame["comparisons"].replace("", 0).astype(float).max()
            yield from differ("comparisons", int(said[1]), int(most))


def claims(part: Part) -> Iterator[str]:
    """A claim and a row about the same two cells say the same."""
    frame = part.frames.get("claims")
    table = part.table_with("The paper's claims", "Claim", "Cells")
    yield from differ("the claims have a section", table is not None, frame is not None)
    if frame is None or table is None or part.effects is None:
        return
    summary = re.search(r"<summary>(\d+) claims?", str(part.section("The paper's claims").text))  # type: ignore[union-attr]
    yield from differ("claims", summary and int(summary[1]), frame["claim"].nunique())
    effects = next((table for table in part.effects.tables if "Cells" in table.header), None)
    measured = {}
    for line in effects.rows if effects else []:
        own = part.frames["effects"]
        for _, found in own[own["change"] == plain(line[0])].iterrows():
            measured[frozenset(pairs_of(line[-1])), found["test_set"]] = (pairs_of(line[-1]), found)
    for row, (_, claim) in zip(table.dicts(), frame.iterrows(), strict=True):
        name = f"{claim['claim']} on {claim['on']}"
        yield from differ(f"status of {name}", plain(row["Direction"]), claim["status"])
        measured_as = row["Measured" + (REPEATED if part.rule else "")]
        shown = re.sub(" §", "", re.sub(" †$", "", measured_as))
        if part.rule:
            yield from differ(f"interval of {name}", "§" in measured_as, claim["interval"] == "first look")
        yield from differ(f"effect of {name}", shown, text_of(dict(claim), "mean", "low_95", "high_95"))
        collapsed = not (
            str(claim["collapsed_before"]).startswith("0 ") and str(claim["collapsed_after"]).startswith("0 ")
        )
        yield from differ(f"mark of {name}", "†" in measured_as, collapsed)
        if claim["measure"] != "PSNR":
            continue
        cells = pairs_of(row["Cells"])
        if (frozenset(cells), claim["on"]) not in measured:
            continue
        pair, effect = measured[frozenset(cells), claim["on"]]
        sign = 1 if pair == cells else -1
        yield from differ(f"{name} and its row", f"{sign * effect[DB] + 0.0:.6g}", f"{claim['mean']:.6g}")
        rises = claim["predicted"].endswith("rises")
        upwards = {"better": rises == (sign > 0), "worse": rises != (sign > 0)}.get(effect["conclusion"])
        expected = "supported" if upwards else "contradicted" if upwards is False else "undecided"
        if effect["conclusion"] == "equivalent":
            expected = "contradicted"
        if expected == "contradicted" and "contradicts no claim" in claim["reason"]:
            expected = "undecided"  # most networks of the study learned nothing, and the opening says so
        yield from differ(f"{name} and its row", claim["status"], expected)


def collapsed_trials(part: Part) -> Iterator[str]:
    evidence = next((t for t in part.tables("Trials and provenance") if "Evidence" in t.header), None)
    listed = Counter(plain(row[0]) for row in (evidence.rows if evidence else []))
    table = part.table_with("Cells", "Cell", "Seeds")
    if table is None:
        return
    shown = {plain(row["Cell"]).removesuffix(" ‡"): int(row.get("Collapsed") or 0) for row in table.dicts()}
    yield from differ("collapsed trials", {k: n for k, n in shown.items() if n}, dict(listed))
    totals = {plain(row["Cell"]).removesuffix(" ‡"): linked(row["Seeds"]) for row in table.dicts()}
    for _, row in part.frames.get("effects", pd.DataFrame()).iterrows():
        for side in ("before", "after"):
            label = str(row[side])
            if part.rule:
                yield from differ(
                    f"collapsed in {label}", row[f"collapsed_{side}"], collapsed_at(part, label, number(row["look"]))
                )
            elif label in shown:
                yield from differ(
                    f"collapsed in {label}", row[f"collapsed_{side}"], f"{shown[label]} of {totals[label]}"
                )


def label_cells(part: Part) -> dict[str, str]:
    """The key of each cell by its label, from the table of runs; the key is cut as a page shows it."""
    table = next((t for t in part.tables("Trials and provenance") if "Runs by seed" in t.header), None)
    return {plain(re.sub(r"<a .*?</a>", "", row["Cell"])): plain(row["Key"]) for row in table.dicts()} if table else {}


def collapsed_at(part: Part, label: str, look: float) -> str:
    """How many trials of a cell have collapsed at a look, or at the first one for a look that is no number."""
    trials, rule = part.frames["trials"], part.rule
    assert rule is not None
    own = trials[trials["cell"].str.startswith(label_cells(part)[label]) & (trials["state"] == "finished")]
    own = own[own["seed"].isin(rule.seeds(look))]
    return f"{int((own['collapsed'] != '').sum()) if 'collapsed' in own else 0} of {len(own)}"


def descriptions(part: Part) -> Iterator[str]:
    """Averages, contexts, interactions, fits and cells carry no verdict."""
    for title in ("In other contexts", "Fitted effects", "Cells", "Cost and alignment", "Cost", "Alignment"):
        if (section := part.section(title)) and (found := VERDICTS.findall(section.text)):
            yield f"verdicts under {title!r}: {', '.join(found)}"


def contexts(part: Part) -> Iterator[str]:
    tables = [table for table in part.tables("In other contexts") if "Lowest" in table.header]
    evidence = next((t for t in part.tables("Trials and provenance") if "Evidence" in t.header), None)
    first = part.rule.seeds(part.rule.looks[0]) if part.rule else None
    collapsed = {plain(row[0]) for row in (evidence.rows if evidence else []) if first is None or int(row[1]) in first}
    yield from differ("tables of contexts", len(tables), len(part.sets) if "contexts" in part.frames else 0)
    for name, table in zip(part.sets, tables, strict=False):
        frame = part.frames["contexts"]
        effects = part.frames["effects"]
        for row in table.rows:
            label = plain(row[0])
            own = frame[(frame["change"] == label) & (frame["test_set"] == name)]
            yield from differ(f"contexts of {label}", int(row[3]), len(own))
            yield from differ(
                f"mark of {label}", row[2].endswith(" †"), bool(collapsed & {*own["before"], *own["after"]})
            )
            for place, end in ((4, own[DB].min()), (5, own[DB].max())):
                yield from differ(f"ends of {label} on {name}", row[place].split(" ")[0], f"{end:+.3f}")
            at = effects[(effects["change"] == label) & (effects["test_set"] == name)].iloc[0]
            # With a stopping rule everything here is of the first look, also what has a verdict of a later one.
            known = text_of(dict(own.iloc[0]), DB) if part.rule else effect_of(dict(at))
            yield from differ(f"{label} at the reference", row[1], known if at["conclusion"] else "—")


def cells(part: Part) -> Iterator[str]:
    table, frame = part.table_with("Cells", "Cell", "Params (K)"), part.frames.get("cells")
    yield from differ("the cells have a table", table is not None, frame is not None)
    if table is None or frame is None:
        return
    for row in table.dicts():
        key = pairs_of(row["Seeds"] * 2)[0]
        own = frame[frame["cell"].str.startswith(key)].set_index("test_set")
        for name in part.sets:
            mean, sd = number(own.loc[name, "psnr_mean_db"]), number(own.loc[name, "psnr_sd_db"])
            spread = f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"
            yield from differ(f"PSNR of {row['Cell']}", row[f"{name} PSNR (dB)"], spread)
            if part.rule:
                marked = "§" in row[f"{name} to reference{REPEATED}"]
                yield from differ(f"interval of {row['Cell']}", marked, own.loc[name, "interval"] == "first look")


def cells_against_rows(part: Part) -> Iterator[str]:
    """The distance of a cell to the reference is the effect of the change that leads there."""
    effects, frame = part.frames.get("effects"), part.frames.get("cells")
    table = next((t for t in (part.effects.tables if part.effects else []) if "Cells" in t.header), None)
    if effects is None or frame is None or table is None:
        return
    reference = str(frame[frame["is_reference"].astype(str).str.lower() == "true"]["cell"].iloc[0])
    for row in table.rows:
        before, after = pairs_of(row[-1])
        sign = 1 if reference.startswith(before) else -1 if reference.startswith(after) else 0
        for _, effect in effects[effects["change"] == plain(row[0])].iterrows():
            other = frame[
                frame["cell"].str.startswith(after if sign > 0 else before) & (frame["test_set"] == effect["test_set"])
            ]
            if sign and len(other):
                distance = number(other["to_reference_db"].iloc[0])
                yield from differ(f"{row[0]} and its cell", f"{sign * effect[DB] + 0.0:.6g}", f"{distance:.6g}")
                if part.rule:
                    yield from differ(f"look of {row[0]} and its cell", effect["look"], other["look"].iloc[0])


def savings(part: Part) -> Iterator[str]:
    """What the clock says of a change is what its row of effects.csv says, and the fronts are those of prices.csv."""
    effects, table = part.frames.get("effects"), part.table_with("Counted and measured", "The saving is")
    known = effects[effects["saving"] != ""] if effects is not None and "saving" in effects else pd.DataFrame()
    yield from differ("savings are shown", table is not None, len(known) > 0)
    for row in table.dicts() if table else ():
        own = known[known["change"] == plain(next(iter(row.values())))].iloc[0]
        low, high = number(own["time_low_95_percent"]), number(own["time_high_95_percent"])
        inside = "one seed" if math.isnan(low) else f"{low:+.1f}, {high:+.1f}"
        shown = (row["By count"], row["By the clock [95 %]"], plain(row["The saving is"]), float(row["Seeds"]))
        clock = f"{percent(own['time_change_percent'])} [{inside}]"
        said = (percent(own["ops_change_percent"]), clock, own["saving"], own["time_seeds"])
        yield from differ(f"saving of {own['change']}", shown, said)
    prices = part.frames.get("prices")
    fronts = part.table_with("Counted and measured", "OPs at 1/64 (G)")
    for row in fronts.dicts() if fronts and prices is not None else ():
        own = prices[prices["label"] == plain(row["Cell"])].iloc[0]
        bold = [field.startswith("**") for field in list(row.values())[2:]]
        said = [str(own[name]).lower() == "true" for name in prices if str(name).startswith("on_front_")]
        yield from differ(f"fronts of {row['Cell']}", bold, said)


def savings_of_the_opening(report: Report) -> Iterator[str]:
    text = report.bullets.get("Savings by the clock", "")
    for label, part in itertools.product(report.labels, report.parts):
        effects = part.frames.get("effects", pd.DataFrame(columns=["change", "saving"]))
        own = effects[effects["change"] == label]
        for word in own["saving"].unique() if "saving" in own else ():
            if word:
                found = re.search(rf"\b{word}: (.*?)(?: — |\.$)", plain(text))
                yield from differ(
                    f"{word} of {label}", bool(found and (label in found[1] or " more" in found[1])), True
                )


# ---- a stopping rule -------------------------------------------------------------------------------------------------

UNTRAINED = ("bicubic", "identity")


def spent(report: Report) -> Iterator[str]:
    """What was spent, what all seeds would have been, and what counts in no verdict, are what the trials say."""
    rule = report.rule
    if rule is None:
        yield from differ("looks without a rule", any("decisions" in part.frames for part in report.parts), False)
        return
    trials = pd.concat([part.frames["trials"] for part in report.parts])
    inside = trials["seed"].isin(rule.seeds(rule.looks[-1]))
    own = trials[inside & ~trials["method"].isin(UNTRAINED)]
    said = re.search(
        r"(\d+) trainings? w\w+ spent( so far)?; (\d+) seeds for every cell would have been (\d+)", report.opening
    )
    if said is None:
        yield "what was spent is not said"
        return
    yield from differ("trainings", int(said[1]), int(own["state"].isin(["finished", "failed"]).sum()))
    yield from differ("the last look", int(said[3]), rule.looks[-1])
    yield from differ("trainings of a fixed number of seeds", int(said[4]), rule.looks[-1] * own["cell"].nunique())
    earlier = re.search(r"(\d+) results? from before the rule", report.opening)
    others = int((~inside & (trials["state"] == "finished")).sum())
    yield from differ("results from before the rule", int(earlier[1]) if earlier else 0, others)
    last = [(part.title, rows.iloc[-1]) for part in report.parts for _, rows in courses(part)]
    fallen = [row["look"] for _, row in last if row["state"] in ("better", "worse", "equivalent")]
    words = re.search(r"the look at which it fell, (\d+)(?: to (\d+))? seeds", report.opening)
    ends = (f"{min(fallen):.0f}", f"{max(fallen):.0f}") if fallen else None
    yield from differ("looks of the verdicts", words and (words[1], words[2] or words[1]), ends)
    still = {(title, row["comparison"]) for title, row in last if row["state"] == "open"}
    is_open = re.search(r"\*\*(\d+) of \d+ comparisons? (?:is|are) still open", report.opening)
    # Before its first look, a part has no look to list.
    if all("decisions" in part.frames for part in report.parts) or not is_open:
        yield from differ("open comparisons", int(is_open[1]) if is_open else 0, len(still))
    yield from differ("what was spent so far", bool(said[2]), bool(is_open))


def courses(part: Part) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The rows of decisions.csv by comparison and test set."""
    frame = part.frames.get("decisions")
    if frame is None:
        return []
    return [((str(name), str(on)), rows) for (name, on), rows in frame.groupby(["comparison", "test_set"], sort=False)]


def looks(part: Part) -> Iterator[str]:
    """A comparison passes the looks of the rule in order, up to the one whose verdict its row has."""
    if part.rule is None:
        return
    effects = part.frames.get("effects", pd.DataFrame(columns=["change", "test_set"]))
    for (name, on), rows in courses(part):
        passed = tuple(int(look) for look in rows["look"])
        yield from differ(f"looks of {name} on {on}", passed, part.rule.looks[: len(passed)])
        yield from differ(f"open looks of {name} on {on}", set(rows["state"][:-1]) - {"open"}, set())
        own = effects[(effects["change"] == name) & (effects["test_set"] == on)]
        last = rows.iloc[-1]
        for _, row in own[own["conclusion"] != ""].iterrows() if len(own) else ():
            yield from differ(
                f"last look of {name} on {on}", (last["look"], last["state"]), (row["look"], row["conclusion"])
            )
            for column, other in ((DB, DB), ("low_repeated_95_db", "low_95_db"), ("high_repeated_95_db", "high_95_db")):
                yield from differ(
                    f"{column} of {name} on {on}", f"{number(last[column]):.6g}", f"{number(row[other]):.6g}"
                )
            yield from differ(f"interval of {name}", row["interval"], "repeated")
