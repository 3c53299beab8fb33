"""Compare two studies, or two versions of one: ``python -m analysis compare A B``.

Cells are the same if their keys are. If a setting differs between the two as a whole, such as the precision or the
data, no key is shared; the remaining cells are then matched by everything else, and the difference is named. Matched
cells are compared seed by seed, and the cells on one test set are one family of comparisons.
"""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report.archive import ARCHIVE, opened
from analysis.report.rounding import rounded
from analysis.report.words import render
from analysis.statistics.estimates import MARGIN_DB, Verdict, verdicts
from analysis.study.loading import StudyResults, load, load_folder
from analysis.study.settings import cell_labels, natural, setting_of
from bbcu.errors import ConfigError

Sides = tuple[pd.DataFrame, pd.DataFrame]
"""The finished trials of both studies."""


@dataclasses.dataclass(frozen=True)
class Match:
    """A cell that is in both studies: its key in each, and its name."""

    first: str
    second: str
    label: str


@dataclasses.dataclass(frozen=True)
class Compared:
    """One matched cell on one test set; the verdict is on the second study's PSNR minus the first's, in dB."""

    match: Match
    test_set: str
    seeds: tuple[int, ...]
    verdict: Verdict


@contextlib.contextmanager
def study_at(name: str, tracking_uri: str, outputs: Path) -> Iterator[StudyResults]:
    """Open the study that ``name`` means: a report's folder, ``results.zip``, ``outputs/STUDY``, or a study's name.

    Raises ConfigError if it is none of them.
    """
    path = Path(name)
    if path.is_file() or (path / ARCHIVE).is_file():
        with opened(path if path.is_file() else path / ARCHIVE) as archive:
            yield archive.results
    elif path.is_dir():
        yield load_folder(path.absolute())
    elif "/" in name:
        raise ConfigError(f"{name}: neither the folder of a study or report, nor a {ARCHIVE}")
    else:
        yield load(tracking_uri, name, outputs)


def compare(first: StudyResults, second: StudyResults, names: tuple[str, str], margin: float = MARGIN_DB) -> str:
    """Return the page in Markdown; ``names`` tell the studies apart, ``margin`` is in dB.

    Raises ValueError unless the margin is above 0.
    """
    sides = finished(first), finished(second)
    apart = settings_apart(sides)
    matched = matches(sides, (*first.factors, *second.factors), apart)
    same = sum(match.first == match.second for match in matched)
    return render(
        "compare.md.j2",
        names=names,
        margin=margin,
        same=same,
        alike=len(matched) - same,
        apart=apart,
        compared=rounded(compared(sides, matched, margin)),
        only=[
            (names[0], only_in(sides[0], {match.first for match in matched})),
            (names[1], only_in(sides[1], {match.second for match in matched})),
        ],
        differing=differing(sides),
    )


def finished(results: StudyResults) -> pd.DataFrame:
    """Return the finished trials."""
    return results.trials[results.trials["state"] == "finished"]


def setting_values(trials: pd.DataFrame) -> dict[str, set[str]]:
    """Return the values of every key of the setting."""
    columns = [str(column) for column in trials if str(column).startswith("setting/")]
    return {column.removeprefix("setting/"): set(trials[column].fillna("")) for column in columns}


def settings_apart(sides: Sides) -> list[str]:
    """Return the keys of the setting of which no trial of one study has the value of any trial of the other."""
    first, second = map(setting_values, sides)
    values = {key: (first.get(key, {""}), second.get(key, {""})) for key in sorted({*first, *second})}
    return [key for key, (one, other) in values.items() if one and other and not one & other]


def matches(sides: Sides, factors: Sequence[str], apart: Iterable[str]) -> list[Match]:
    """Return the cells in both: those of one key, and those that agree in everything but what is ``apart``."""
    known = [known_cells(side, factors, apart) for side in sides]
    names = list(dict.fromkeys(factors))
    both = pd.concat([side.reindex(columns=["cell", *(f"level/{name}" for name in names)]) for side in sides])
    labels = cell_labels(both.astype("object").fillna(""), names)
    same = [Match(cell, cell, labels[cell]) for cell in known[0] if cell in known[1]]
    left = [{cell: form for cell, form in side.items() if cell not in {m.first for m in same}} for side in known]
    counts = [Counter(side.values()) for side in left]
    partners = {form: cell for cell, form in left[1].items()}
    unique = [cell for cell, form in left[0].items() if counts[0][form] == counts[1][form] == 1]
    return [*same, *(Match(cell, partners[left[0][cell]], labels[cell]) for cell in unique)]


def known_cells(trials: pd.DataFrame, factors: Sequence[str], apart: Iterable[str]) -> dict[str, str]:
    """Return every finished cell with all that it is, except for what is ``apart``, as one text."""
    found = {}
    for _, row in trials.drop_duplicates("cell").iterrows():
        levels = {name: str(row.get(f"factor/{name}", "")) for name in factors}
        setting = {key: value for key, value in setting_of(row).items() if key not in apart}
        found[str(row["cell"])] = json.dumps([levels, setting, row["task"]], sort_keys=True)
    return found


def compared(sides: Sides, matched: Sequence[Match], margin: float) -> list[Compared]:
    """Compare every matched cell on every test set that both studies scored."""
    found: list[Compared] = []
    for name in shared_sets(sides):
        rows = []
        for match in matched:
            before, after = scores_by_seed(sides[0], match.first, name), scores_by_seed(sides[1], match.second, name)
            seeds = tuple(sorted(before.keys() & after.keys()))
            if before or after:
                rows.append((match, seeds, rounded([after[seed] - before[seed] for seed in seeds])))
        family = verdicts([differences for _, _, differences in rows], margin)
        found += [
            Compared(match, name, seeds, verdict) for (match, seeds, _), verdict in zip(rows, family, strict=True)
        ]
    return found


def scores_by_seed(trials: pd.DataFrame, cell: str, test_set: str) -> dict[int, float]:
    """Return the PSNR of a cell on a test set under each of its seeds."""
    own = trials[trials["cell"] == cell].dropna(subset=[f"metric/{test_set}/psnr_db"])
    return dict(zip(own["seed"].tolist(), own[f"metric/{test_set}/psnr_db"].tolist(), strict=True))


def shared_sets(sides: Sides) -> list[str]:
    """Return the test sets that both studies scored, Set5 before Set14."""
    first, second = (
        {str(c).split("/")[2] for c in side.dropna(axis=1, how="all") if str(c).startswith("metric/baseline/")}
        for side in sides
    )
    return sorted(first & second, key=natural)


def only_in(trials: pd.DataFrame, matched: set[str]) -> list[tuple[str, str, int]]:
    """Return the cells that are not matched: the name of a trial, the key, and the number of seeds."""
    seeds = trials.groupby("cell")["seed"].nunique()
    alone = trials[~trials["cell"].isin(matched)].drop_duplicates("cell")
    return [(row["name"], row["cell"], int(seeds[row["cell"]])) for _, row in alone.iterrows()]


def differing(sides: Sides) -> list[tuple[str, tuple[str, str]]]:
    """Return the settings, and what was recorded of code, packages and machines, that differ between the studies."""
    first, second = ({**setting_values(side), **provenance_values(side)} for side in sides)
    return [
        (key, (spelt(first.get(key, {""})), spelt(second.get(key, {""}))))
        for key in sorted({*first, *second})
        if first.get(key, {""}) != second.get(key, {""})
    ]


def spelt(values: Iterable[str]) -> str:
    """Spell values, including an absent one."""
    return " or ".join(value or "none" for value in sorted(values))


def provenance_values(trials: pd.DataFrame) -> dict[str, set[str]]:
    """Return the values of everything that the trials recorded of where they ran, one key per package."""
    found: dict[str, set[str]] = {}
    for text in trials["provenance"].unique():
        recorded: dict[str, Any] = json.loads(text) if text else {}
        packages = {f"packages.{name}": version for name, version in recorded.pop("packages", {}).items()}
        for key, value in {**recorded, **packages}.items():
            if key != "seed":
                found.setdefault(key, set()).add(str(value).lower() if isinstance(value, bool) else str(value))
    return found
