"""Compare two studies, or two versions of one: ``python -m analysis compare A B``.

Cells are the same if their keys are. If a setting differs between the two as a whole, such as the precision or the
data, no key is shared; the remaining cells are then matched by everything else, and the difference is named. A factor
or a key of the setting that one study does not know, because it came later, has its default there. Matched cells are
compared by their means over seeds, and the cells on one test set are one family of comparisons. Of a study that was
trained by a stopping rule, only the first look counts, whose seeds were fixed beforehand for all cells.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.space.settings import default_as_text
from ablations.space.study_cells import UNTRAINED
from analysis.report.archive import ARCHIVE, archive_at, opened
from analysis.report.words import render
from analysis.statistics.estimates import MARGIN_DB, Estimate, Verdict, combination, mean_of, rank_correlation, verdicts
from analysis.statistics.rounding import rounded
from analysis.study.loading import StudyResults, identities_of, load, load_folder
from analysis.study.tasks import cell_labels, scores_by_cell, setting_of, test_sets
from bbcu.errors import ConfigError

Sides = tuple[pd.DataFrame, pd.DataFrame]  # the finished trials of both studies

ByCell = dict[str, dict[int, float]]
BothScores = Mapping[str, tuple[ByCell, ByCell]]
"""The PSNR by cell and seed in both studies, on each test set that both scored."""


@dataclasses.dataclass(frozen=True)
class Match:
    """A cell that is in both studies: its key in each, and its name."""

    first: str
    second: str
    label: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A matched cell on one test set, with the seeds of both studies, or of each if they differ."""

    label: str
    test_set: str
    seeds: str
    same: int
    verdict: Verdict | None = None


@dataclasses.dataclass(frozen=True)
class Order:
    """How far both studies order their ``cells`` alike on a test set: Spearman's correlation of their mean PSNR."""

    test_set: str
    cells: int
    rank_correlation: float


@contextlib.contextmanager
def study_at(name: str, tracking_uri: str, outputs: Path) -> Iterator[StudyResults]:
    """Open the study that ``name`` means: a report's folder, ``results.zip``, ``outputs/STUDY``, or a study's name.

    Raises ConfigError if it is none of them.
    """
    path = Path(name)
    if archive := archive_at(path):
        with opened(archive) as found:
            yield found.results
    elif os.path.isdir(path):
        yield load_folder(path.absolute())
    elif "/" in name:
        raise ConfigError(f"{name}: neither the folder of a study or report, nor a {ARCHIVE}")
    else:
        yield load(tracking_uri, name, outputs)


def compare(first: StudyResults, second: StudyResults, names: tuple[str, str], margin: float = MARGIN_DB) -> str:
    """Return the page in Markdown; ``names`` tell the studies apart, ``margin`` is in dB.

    Raises ValueError unless the margin is above 0.
    """
    sides = counted(first), counted(second)
    apart = settings_apart(sides)
    matched = matches(sides, (first, second), apart)
    same = sum(match.first == match.second for match in matched)
    labels = labels_in_both(sides, {match.second for match in matched}, (*first.factors, *second.factors))
    both = [name for name in test_sets(sides[0]) if name in test_sets(sides[1])]
    scores = {name: (scored(sides[0], name), scored(sides[1], name)) for name in both}
    return render(
        "compare.md.j2",
        names=names,
        margin=margin,
        ruled=[
            (name, study.rule, len(study.finished) - len(side))
            for name, study, side in zip(names, (first, second), sides, strict=True)
            if study.rule is not None
        ],
        same=same,
        alike=len(matched) - same,
        apart=apart,
        compared=rounded(compared(scores, matched, margin)),
        orders=orders(scores, matched),
        only=[
            (names[0], only_in(sides[0], {match.first for match in matched}, labels)),
            (names[1], only_in(sides[1], {match.second for match in matched}, labels)),
        ],
        differing=differing(sides),
    )


def counted(study: StudyResults) -> pd.DataFrame:
    """Return the finished trials of a study whose number was fixed beforehand: all, or the first look of its rule.

    A cell gets seeds beyond the first look because of what its earlier ones showed, so that an interval from them would
    not cover as often as it says.
    """
    trials = study.finished
    if study.rule is None:
        return trials
    first = trials["seed"].isin(study.rule.seeds(study.rule.first_look))
    return trials[first | trials["method"].isin(UNTRAINED)]


def setting_values(trials: pd.DataFrame) -> dict[str, set[str]]:
    """Return the values of each key of the setting; trials from before a key have its default."""
    columns = {str(name).removeprefix("setting/"): trials[name] for name in trials.filter(regex="^setting/")}
    return {key: set(values.fillna("").replace("", default_as_text(key))) for key, values in columns.items()}


def settings_apart(sides: Sides) -> list[str]:
    """Return the keys of the setting of which no trial of one study has the value of any trial of the other."""
    first, second = map(setting_values, sides)
    values = {key: values_of(key, (first, second)) for key in sorted({*first, *second})}
    return [key for key, (one, other) in values.items() if one and other and not one & other]


def values_of(key: str, sides: Sequence[Mapping[str, set[str]]]) -> list[set[str]]:
    """Return the values that a key of a setting or of the provenance has in each study."""
    return [side.get(key, {default_as_text(key)}) for side in sides]


def matches(sides: Sides, studies: tuple[StudyResults, StudyResults], apart: Collection[str]) -> list[Match]:
    """Return the cells in both: those of one key, and those that agree in everything but what is ``apart``."""
    shared = {*studies[0].factors} & {*studies[1].factors}
    known = [known_cells(side, study, shared, apart) for side, study in zip(sides, studies, strict=True)]
    pairs = {cell: cell for cell in known[0] if cell in known[1]}
    left = [{cell: form for cell, form in side.items() if cell not in pairs} for side in known]
    counts = [Counter(side.values()) for side in left]
    partners = {form: cell for cell, form in left[1].items()}
    pairs |= {cell: partners[form] for cell, form in left[0].items() if counts[0][form] == counts[1][form] == 1}
    labels = labels_in_both(sides, set(pairs.values()), (*studies[0].factors, *studies[1].factors), apart)
    return [Match(cell, partner, labels[cell]) for cell, partner in pairs.items()]


def labels_in_both(
    sides: Sides, matched: set[str], factors: Sequence[str], apart: Iterable[str] = ()
) -> dict[str, str]:
    """Name each cell by what varies in either study but for ``apart``, the matched cells under the first one's key."""
    factors = list(dict.fromkeys(factors))
    levels = [f"{kind}/{name}" for kind in ("factor", "level") for name in factors]
    rows = pd.concat([sides[0], sides[1][~sides[1]["cell"].isin(matched)]])
    settings = [str(name) for name in rows if str(name).startswith("setting/")]
    kept = [name for name in settings if name.removeprefix("setting/") not in apart]
    return cell_labels(rows.reindex(columns=["cell", "method", *levels, *kept]).astype("object").fillna(""), factors)


def known_cells(
    trials: pd.DataFrame, study: StudyResults, shared: Collection[str], apart: Collection[str]
) -> dict[str, str]:
    """Return every finished cell with all that it is, except for what is ``apart``, as one text.

    Of the factors that are not ``shared`` with the other study, it has those that are not at their reference level, and
    of the setting what is not the default.
    """
    found = {}
    for _, row in trials.drop_duplicates("cell").iterrows():
        levels = {
            name: str(row[f"factor/{name}"])
            for name in study.factors
            if name in shared or str(row[f"level/{name}"]) not in ("", study.reference.get(name))
        }
        setting = {
            key: value for key, value in setting_of(row).items() if key not in apart and value != default_as_text(key)
        }
        found[str(row["cell"])] = json.dumps([levels, setting, row["task"]], sort_keys=True)
    return found


def compared(scores: BothScores, matched: Sequence[Match], margin: float) -> list[Row]:
    """Return a row for each matched cell and test set that both studies scored.

    The verdict is on the second study's PSNR minus the first's, in dB. A cell that scores the same under every seed
    that both have is one training recorded twice: it has no verdict, and ``same`` counts these seeds.
    """
    found: list[Row] = []
    for name, (before, after) in scores.items():
        rows = []
        for match in matched:
            first, second = before.get(match.first, {}), after.get(match.second, {})
            if first or second:
                seeds = list(dict.fromkeys(", ".join(map(str, sorted(side))) or "none" for side in (first, second)))
                rows.append((Row(match.label, name, " / ".join(seeds), same_seeds(first, second)), (first, second)))
        tested = [pair for row, pair in rows if not row.same]
        family = iter(verdicts([difference(*pair) for pair in tested], margin))
        found += [row if row.same else dataclasses.replace(row, verdict=next(family)) for row, _ in rows]
    return found


def orders(scores: BothScores, matched: Sequence[Match]) -> list[Order]:
    """Return how far both studies order the matched cells alike on each test set that both scored."""
    found = []
    for name, (before, after) in scores.items():
        pairs = [
            (before[match.first], after[match.second])
            for match in matched
            if match.first in before and match.second in after
        ]
        first, second = ([rounded(mean_of(pair[side].values())) for pair in pairs] for side in range(2))
        found.append(Order(name, len(pairs), rank_correlation(first, second)))
    return [order for order in found if not math.isnan(order.rank_correlation)]


def same_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> int:
    """Return how many seeds both sides have if they score the same under each of these, otherwise 0."""
    shared = first.keys() & second.keys()
    return len(shared) if all(rounded(first[seed]) == rounded(second[seed]) for seed in shared) else 0


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    return combination({"second": 1.0, "first": -1.0}, {"first": first, "second": second})


def scored(trials: pd.DataFrame, test_set: str) -> dict[str, dict[int, float]]:
    """Return the PSNR on a test set by cell and seed."""
    known = trials.dropna(subset=[f"metric/{test_set}/psnr_db"])
    return scores_by_cell(dict(zip(identities_of(known), known[f"metric/{test_set}/psnr_db"].tolist(), strict=True)))


def only_in(trials: pd.DataFrame, matched: set[str], labels: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """Return the cells that are not matched: the label, the key, and the number of seeds."""
    seeds = trials.groupby("cell")["seed"].nunique()
    alone = trials[~trials["cell"].isin(matched)].drop_duplicates("cell")
    return [(labels[row["cell"]], row["cell"], int(seeds[row["cell"]])) for _, row in alone.iterrows()]


def differing(sides: Sides) -> list[tuple[str, tuple[str, str]]]:
    """Return the settings, and what was recorded of code, packages and machines, that differ between the studies."""
    recorded = [{**setting_values(side), **provenance_values(side)} for side in sides]
    pairs = {key: values_of(key, recorded) for key in sorted({*recorded[0], *recorded[1]})}
    return [(key, (spelt(first), spelt(second))) for key, (first, second) in pairs.items() if first != second]


def spelt(values: Iterable[str]) -> str:
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
