"""Two studies, or two versions of one, side by side: ``python -m analysis compare A B``.

Cells are the same where their keys are. Where a setting differs between the two as a whole, such as another precision
or other data, no key is shared, so the cells left over are matched by everything else and the difference is named.
Matched cells are compared within a seed; the cells on one test set are one family of comparisons.
"""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report import tables
from analysis.report.archive import ARCHIVE, opened
from analysis.statistics.estimates import MARGIN_DB, Verdict, verdicts
from analysis.study.loading import StudyResults, load, load_folder
from analysis.study.settings import KEY_LENGTH, cell_labels, natural, setting_of
from bbcu.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Match:
    """A cell that is in both studies: its key in each, and its name."""

    first: str
    second: str
    label: str


@dataclasses.dataclass(frozen=True)
class Compared:
    """One matched cell on one test set: the second study's PSNR less the first's, in dB, within each shared seed."""

    match: Match
    test_set: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    verdict: Verdict


@contextlib.contextmanager
def study_at(name: str, tracking_uri: str, outputs: Path) -> Iterator[StudyResults]:
    """The study that ``name`` means: a report's folder, ``results.zip``, a folder ``outputs/STUDY``, or a study's name.

    Raises ConfigError where there is none of them.
    """
    path = Path(name)
    if path.is_file() or (path / ARCHIVE).is_file():
        with opened(path if path.is_file() else path / ARCHIVE) as kept:
            yield kept.results
    elif path.is_dir():
        yield load_folder(path.absolute())
    elif "/" in name:
        raise ConfigError(f"{name}: no folder of a study or report, and no {ARCHIVE}")
    else:
        yield load(tracking_uri, name, outputs)


def compare(first: StudyResults, second: StudyResults, names: tuple[str, str], margin: float = MARGIN_DB) -> str:
    """The page in Markdown; ``names`` say which study is which, ``margin`` is the difference in dB that is none.

    Raises ValueError for a margin that is not above 0.
    """
    sides = finished(first), finished(second)
    apart = settings_apart(*sides)
    shared = matches(*sides, (*first.factors, *second.factors), apart)
    parts = [
        f"# `{names[0]}` and `{names[1]}`",
        "Differences are the second study less the first, in dB of PSNR: more is better for the second. Cells are "
        "compared within a seed; brackets hold Student's 95 % interval over seeds, and verdicts are corrected by Holm "
        f"among the cells on a test set: equivalent is what is surely smaller than {margin:g} dB.",
        "## Cells in both",
        shared_text(sides, shared, apart, margin),
        "## Cells in one",
        only_text(sides[0], {match.first for match in shared}, names[0]),
        only_text(sides[1], {match.second for match in shared}, names[1]),
        "## What differs around them",
        provenance_text(sides, names),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def finished(results: StudyResults) -> pd.DataFrame:
    """The finished trials."""
    return results.trials[results.trials["state"] == "finished"]


def settings_apart(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The keys of the setting that no trial of one study has as any trial of the other does, with both values."""
    found = {}
    for column in sorted({*setting_columns(first), *setting_columns(second)}):
        values = [set(side[column]) if column in side else {""} for side in (first, second)]
        if all(values) and not values[0] & values[1]:
            found[column.removeprefix("setting/")] = (spelt(values[0]), spelt(values[1]))
    return found


def setting_columns(trials: pd.DataFrame) -> list[str]:
    """The columns of the frame that hold the setting."""
    return [str(column) for column in trials if str(column).startswith("setting/")]


def spelt(values: Iterable[str]) -> str:
    """Values in words, the absent one too."""
    return " or ".join(value or "none" for value in sorted(values))


def matches(
    first: pd.DataFrame, second: pd.DataFrame, factors: Sequence[str], apart: Mapping[str, object]
) -> list[Match]:
    """The cells that are in both: those of one key, and those left over that agree in all but what is ``apart``."""
    known = [known_cells(side, factors, apart) for side in (first, second)]
    names = list(dict.fromkeys(factors))
    both = pd.concat([side.reindex(columns=["cell", *(f"level/{name}" for name in names)]) for side in (first, second)])
    labels = cell_labels(both.astype("object").fillna(""), names)
    same = [Match(cell, cell, labels[cell]) for cell in known[0] if cell in known[1]]
    left = [{cell: form for cell, form in side.items() if cell not in {m.first for m in same}} for side in known]
    by_form: dict[str, list[str]] = {}
    for cell, form in left[1].items():
        by_form.setdefault(form, []).append(cell)
    counts = Counter(left[0].values())
    alike = [
        Match(cell, by_form[form][0], labels[cell])
        for cell, form in left[0].items()
        if counts[form] == 1 and len(by_form.get(form, [])) == 1
    ]
    return [*same, *alike]


def known_cells(trials: pd.DataFrame, factors: Sequence[str], apart: Mapping[str, object]) -> dict[str, str]:
    """Every finished cell with all that it is but for what is ``apart``, as one text."""
    found = {}
    for _, row in trials.drop_duplicates("cell").iterrows():
        levels = {name: str(row.get(f"factor/{name}", "")) for name in factors}
        setting = {key: value for key, value in setting_of(row).items() if key not in apart}
        found[str(row["cell"])] = json.dumps([levels, setting, row["task"]], sort_keys=True)
    return found


def compared(sides: tuple[pd.DataFrame, pd.DataFrame], shared: Sequence[Match], margin: float) -> list[Compared]:
    """Every matched cell on every test set that both studies scored, with the verdicts of each family."""
    found: list[Compared] = []
    for name in shared_sets(*sides):
        rows = []
        for match in shared:
            before, after = scores_by_seed(sides[0], match.first, name), scores_by_seed(sides[1], match.second, name)
            seeds = tuple(sorted(before.keys() & after.keys()))
            if before or after:
                rows.append((match, seeds, tuple(after[seed] - before[seed] for seed in seeds)))
        family = verdicts([differences for _, _, differences in rows], margin)
        found += [
            Compared(match, name, seeds, differences, verdict)
            for (match, seeds, differences), verdict in zip(rows, family, strict=True)
        ]
    return found


def scores_by_seed(trials: pd.DataFrame, cell: str, test_set: str) -> dict[int, float]:
    """The PSNR of a cell on a test set under each of its seeds."""
    own = trials[trials["cell"] == cell]
    scores = zip(own["seed"], own[f"metric/{test_set}/psnr_db"], strict=True)
    return {int(seed): float(score) for seed, score in scores if score == score}


def shared_sets(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """The test sets that both studies scored, Set5 before Set14."""
    sets = [
        {str(c).split("/")[2] for c in side.dropna(axis=1, how="all") if str(c).startswith("metric/baseline/")}
        for side in (first, second)
    ]
    return sorted(sets[0] & sets[1], key=natural)


def shared_text(
    sides: tuple[pd.DataFrame, pd.DataFrame],
    shared: Sequence[Match],
    apart: Mapping[str, tuple[str, str]],
    margin: float,
) -> str:
    """The matched cells and what can be said of each."""
    if not shared:
        return "No cell is in both."
    same = sum(match.first == match.second for match in shared)
    said = [f"{same} cell{' has' if same == 1 else 's have'} the same key in both."]
    alike = [m for m in shared if m.first != m.second]
    if alike:
        keys = ", ".join(f"`{key}`" for key in apart)
        verb = "cell agrees" if len(alike) == 1 else "cells agree"
        said.append(f"{len(alike)} {verb} in all but {keys or 'nothing that is recorded'}.")
    if alike and "data" in apart:
        said.append(
            "**The two saw different data**: seeds share no patches then, and what differs may be the data themselves."
        )
    rows = [
        [
            tables.code(found.match.label),
            found.test_set,
            ", ".join(map(str, found.seeds)) or "none shared",
            tables.estimate_text(found.verdict.estimate),
            f"{found.verdict.outcome}: {found.verdict.reason}",
        ]
        for found in compared(sides, shared, margin)
    ]
    header = ["Cell", "Test set", "Seeds", "Difference (dB)", "Verdict"]
    return f"{' '.join(said)}\n\n{tables.markdown(header, rows, [3])}"


def only_text(trials: pd.DataFrame, shared: set[str], name: str) -> str:
    """The cells that only one study has."""
    alone = trials[~trials["cell"].isin(shared)].drop_duplicates("cell")
    if alone.empty:
        return f"Only in `{name}`: none."
    seeds = trials.groupby("cell")["seed"].nunique()
    rows = [
        [tables.code(row["name"]), row["cell"][:KEY_LENGTH], str(seeds[row["cell"]])] for _, row in alone.iterrows()
    ]
    return f"Only in `{name}`, {len(rows)}:\n\n{tables.markdown(['Trial', 'Cell', 'Seeds'], rows, [2])}"


def provenance_text(sides: tuple[pd.DataFrame, pd.DataFrame], names: tuple[str, str]) -> str:
    """Settings, methods and what was recorded of code, packages and machines, where the two studies differ."""
    known = [{**setting_values(side), **provenance_values(side)} for side in sides]
    rows = [
        [tables.code(key), *(spelt(side.get(key, {""})) for side in known)]
        for key in sorted({*known[0], *known[1]})
        if known[0].get(key, {""}) != known[1].get(key, {""})
    ]
    if not rows:
        return "Nothing that is recorded: the same settings, data, code and packages."
    return tables.markdown(["Key", *(tables.code(name) for name in names)], rows)


def setting_values(trials: pd.DataFrame) -> dict[str, set[str]]:
    """The values of every key of the setting."""
    return {column.removeprefix("setting/"): set(trials[column].fillna("")) for column in setting_columns(trials)}


def provenance_values(trials: pd.DataFrame) -> dict[str, set[str]]:
    """The values of everything that the trials recorded of where they ran, a package each."""
    found: dict[str, set[str]] = {}
    for text in trials["provenance"].unique():
        recorded: dict[str, Any] = json.loads(text) if text else {}
        packages = {f"packages.{name}": version for name, version in recorded.pop("packages", {}).items()}
        for key, value in {**recorded, **packages}.items():
            if key != "seed":
                found.setdefault(key, set()).add(str(value).lower() if isinstance(value, bool) else str(value))
    return found
