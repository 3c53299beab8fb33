"""Split a study by its settings: trials that differ in more than factors and seed are never compared."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from ablations.space.factors import SHOWN
from ablations.space.settings import telling_apart
from ablations.storage.folder import Identity
from analysis.study.loading import LeftOut, StudyResults
from analysis.study.methods import OWN_METHODS, method_of, names_of, settings_of_methods
from analysis.study.probes import SAME_SCORE_DB, Records, baseline_again, read_records

KEY_LENGTH = SHOWN  # how many characters of a SHA-256 are shown


@dataclasses.dataclass(frozen=True)
class SettingResults:
    """The trials of one setting of a study.

    ``title`` says how it differs from the study's other settings and is empty if it is the only one. ``labels`` names
    every cell by the levels that vary, or by its method if methods are compared; ``methods`` then holds the paper's
    name of each cell's method, and ``setting`` is that of most trials: the others differ in what their method sets.
    """

    title: str
    setting: Mapping[str, str]
    trials: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    factors: tuple[str, ...]
    labels: Mapping[str, str]
    study: StudyResults
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def finished(self) -> pd.DataFrame:
        return self.trials[self.trials["state"] == "finished"]

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """One row for each cell with a finished trial, in the order of the study, indexed by cell."""
        return self.finished.drop_duplicates("cell").set_index("cell", drop=False)

    @functools.cached_property
    def sets(self) -> tuple[str, ...]:
        """The test sets, Set5 before Set14."""
        return test_sets(self.finished)

    @functools.cached_property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that was planned or run."""
        return tuple(sorted(int(seed) for seed in self.trials["seed"].unique()))

    @functools.cached_property
    def identities(self) -> list[Identity]:
        return list(zip(self.finished["cell"].tolist(), self.finished["seed"].tolist(), strict=True))

    def scores(self, metric: str) -> dict[Identity, float]:
        return dict(zip(self.identities, self.finished[f"metric/{metric}"].tolist(), strict=True))

    @functools.cached_property
    def seeds_by_cell(self) -> dict[str, list[int]]:
        """The seeds under which each cell is finished, in order."""
        found: dict[str, list[int]] = {}
        for cell, seed in sorted(self.identities):
            found.setdefault(cell, []).append(seed)
        return found

    def seeds_of(self, cell: str) -> list[int]:
        return self.seeds_by_cell.get(cell, [])

    @functools.cached_property
    def records(self) -> Records:
        return read_records(self.identities, self.study.record)

    @property
    def units(self) -> pd.DataFrame:
        return self.records.units

    @functools.cached_property
    def collapsed(self) -> dict[Identity, str]:
        """The finished trials whose binary body contributes nothing, each with the evidence.

        The trial's own record comes first, then its probes, then its scores.
        """
        alike = dict(zip(self.identities, baseline_again(self.finished, self.sets), strict=True))
        by_score = f"its PSNR is the baseline's within {SAME_SCORE_DB:g} dB on every test set"
        found = {
            identity: self.records.collapsed.get(identity) or (by_score if alike[identity] else "")
            for identity in self.identities
        }
        return {identity: reason for identity, reason in found.items() if reason}

    def pictures(self, test_set: str, identity: Identity) -> dict[str, float]:
        """The PSNR of each picture of a test set in one finished trial; empty if it was not recorded."""
        found = self.records.pictures.get((identity, test_set))
        return dict(zip(found[0], found[1].tolist(), strict=True)) if found is not None else {}

    def curves(self) -> pd.DataFrame:
        return self.study.curves.merge(self.finished[["cell", "seed"]], on=["cell", "seed"])


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts Set5 before Set14."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def test_sets(trials: pd.DataFrame) -> tuple[str, ...]:
    """Return the test sets that some trial was scored on, Set5 before Set14."""
    scored = (re.fullmatch(r"metric/([^/]+)/psnr_db", name) for name in map(str, trials.dropna(axis=1, how="all")))
    return tuple(sorted((match[1] for match in scored if match and match[1] != "train"), key=natural))


def split_by_setting(study: StudyResults) -> list[SettingResults]:
    """The study's settings, in the order in which trials name them; those of one comparison of methods are one."""
    rows = rows_by_setting(study.trials)
    groups = grouped(study, rows)
    main = [max((rows[place] for place in group), key=lambda row: len(row[1]))[0] for group in groups]
    settings = [[rows[place][0] for place in group] for group in groups]
    for row in study.left_out:
        if dict(row.setting) not in [setting for found in settings for setting in found]:
            groups.append([])
            main.append(dict(row.setting))
            settings.append([dict(row.setting)])
    apart = telling_apart(main)
    found = []
    for group, setting, own in zip(groups, main, settings, strict=True):
        trials = study.trials.iloc[sorted(place for number in group for place in rows[number][1])]
        left_out = tuple(row for row in study.left_out if dict(row.setting) in own)
        shown = {name: setting.get(name) or "none" for name in apart}
        title = " ".join(f"{key}={value[:KEY_LENGTH] if key == 'data' else value}" for key, value in shown.items())
        methods = methods_in(study, trials, setting)
        labels = methods or cell_labels(trials, study.factors)
        found.append(SettingResults(title, setting, trials, left_out, study.factors, labels, study, methods))
    return found


Rows = Sequence[tuple[dict[str, str], list[int]]]  # settings with the positions of their trials


def grouped(study: StudyResults, rows: Rows) -> list[list[int]]:
    """Group settings that are read as one, by position: those of a comparison of methods; each other one alone."""
    methods = [frozenset(study.trials["method"].iloc[places]) for _, places in rows]
    tested = [tested_on(study.trials.iloc[places]) for _, places in rows]
    found: list[list[int]] = []
    for group in settings_of_methods([setting for setting, _ in rows], methods, tested):
        places = [place for number in group for place in rows[number][1]]
        together = len(group) > 1 and methods_in(study, study.trials.iloc[places], rows[group[0]][0])
        found += [group] if together else [[number] for number in group]
    return sorted(found)


def tested_on(trials: pd.DataFrame) -> str:
    """Identify the test pictures of a setting by what the baseline scores on them; empty if no score is known."""
    # Only PSNR: it follows from whole numbers, so every machine computes the same to the last digits.
    columns = sorted(str(name) for name in trials if re.fullmatch(r"metric/baseline/.*/psnr_db", str(name)))
    known = trials[columns].dropna(how="all").round(6)
    if known.empty:
        return ""
    return " ".join(f"{name}={value}" for name, value in known.iloc[0].dropna().items())


def methods_in(study: StudyResults, trials: pd.DataFrame, setting: Mapping[str, str]) -> dict[str, str]:
    """The paper's name of each cell's method if these trials compare methods, otherwise an empty dict.

    They do if each cell is a different published method, and at least one is neither BBCU nor a variant of it.
    """
    names, cells = names_of(setting.get("task.name", "")), trials.drop_duplicates("cell")
    found = {str(row["cell"]): method_of(row, study.reference, study.factors) for _, row in cells.iterrows()}
    published_once = len(set(found.values())) == len(found) and all(method in names for method in found.values())
    if not published_once or len(found) < 2 or OWN_METHODS.issuperset(found.values()):
        return {}
    return {cell: names[method] for cell, method in found.items()}


def rows_by_setting(trials: pd.DataFrame) -> list[tuple[dict[str, str], list[int]]]:
    columns = [str(name) for name in trials if str(name).startswith("setting/")]
    if not columns:
        return [({}, list(range(len(trials))))]
    names = [column.removeprefix("setting/") for column in columns]
    found: dict[tuple[str, ...], list[int]] = {}
    for position, values in enumerate(trials[columns].itertuples(index=False, name=None)):
        found.setdefault(values, []).append(position)
    return [
        ({name: value for name, value in zip(names, values, strict=True) if value != ""}, positions)
        for values, positions in found.items()
    ]


def setting_of(row: "pd.Series") -> dict[str, str]:
    return {
        name.removeprefix("setting/"): value
        for name, value in row.items()
        if isinstance(name, str) and name.startswith("setting/") and value != ""
    }


def varying(levels: Iterable[Mapping[str, str]], factors: Iterable[str]) -> list[str]:
    """The factors that have more than one level; a missing factor counts as a level."""
    rows = list(levels)
    return [factor for factor in factors if len({row.get(factor, "") for row in rows}) > 1]


def label(levels: Mapping[str, str], factors: Iterable[str]) -> str:
    """The levels of ``factors`` as a user types them, without the factors that a cell does not have."""
    return " ".join(f"{factor}={levels[factor]}" for factor in factors if levels.get(factor))


def levels_of(row: "pd.Series", factors: Iterable[str]) -> dict[str, str]:
    return {factor: str(row[f"level/{factor}"]) for factor in factors}


def cell_labels(trials: pd.DataFrame, factors: Sequence[str]) -> dict[str, str]:
    """Name each cell by the levels that vary, and by the start of its key if they do not make it unique."""
    levels = {str(row["cell"]): levels_of(row, factors) for _, row in trials.drop_duplicates("cell").iterrows()}
    names = varying(levels.values(), factors)
    labels = {cell: label(row, names) for cell, row in levels.items()}
    counts = pd.Series(labels).value_counts()
    return {
        cell: text if text and counts[text] == 1 else f"{text} cell {cell[:KEY_LENGTH]}".strip()
        for cell, text in labels.items()
    }
