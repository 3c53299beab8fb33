"""Split a study into what may be compared: the planned trials of one task that were scored on the same pictures.

Everything else that differs between two cells is a comparison: factors, networks, widths, learning rates, data.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd

from ablations.space.factors import SHOWN
from ablations.space.interventions import CellLevels
from ablations.space.settings import DATA, distinguishing_keys, task_of, without_task
from ablations.space.study_cells import UNTRAINED, StudyCells, completed, published_methods
from ablations.storage.folder import Identity
from analysis.study.collapse import collapsed_trials
from analysis.study.data_names import DataNames
from analysis.study.latency import Latency, latency_of
from analysis.study.loading import LeftOut, StudyResults
from analysis.study.methods import factors_of, names_of, tested_on
from analysis.study.probes import Records, read_records
from analysis.study.schema import rows_of

KEY_LENGTH = SHOWN  # how many characters of a SHA-256 are shown

ENDED = ("finished", "failed")
"""The states of a trial that a stopping rule waits for no longer."""

Row = Mapping[str, Any] | pd.Series
"""A row of the table of trials."""


@dataclasses.dataclass(frozen=True)
class TaskResults:
    """The planned trials of one task on the same test pictures.

    ``title`` says how they differ from the study's other ones and is empty if there are none. ``labels`` names every
    cell by the levels that vary, or by its method if methods are compared; ``methods`` then holds the paper's name of
    each cell's method. ``setting`` has the values of the reference cell, or of the first trial if none is finished.
    """

    title: str
    trials: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    labels: Mapping[str, str]
    study: StudyResults
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def factors(self) -> tuple[str, ...]:
        return self.study.factors

    @functools.cached_property
    def setting(self) -> dict[str, str]:
        if self.cells.empty:
            return setting_of(self.trials.iloc[0]) if len(self.trials) else {}
        return setting_of(self.cells[self.cells["cell"] == self.reference].iloc[0])

    @property
    def task(self) -> str:
        return self.setting.get("task.name", "")

    @property
    def is_search(self) -> bool:
        """Tell whether the cells were chosen by their scores."""
        return self.study.is_search

    @functools.cached_property
    def at_first_look(self) -> "TaskResults":
        """The trials that everything without a verdict is estimated from: all of them, or the first look of a rule.

        Seeds beyond it were given by what earlier ones showed, so that an estimate from them would be biased.
        """
        rule = self.study.rule
        if rule is None:
            return self
        counted = self.trials[self.trials["seed"].isin(rule.seeds(rule.first_look))]
        return self if len(counted) == len(self.trials) else dataclasses.replace(self, trials=counted)

    @functools.cached_property
    def ended(self) -> dict[str, frozenset[int]]:
        """The seeds by cell under which a trial has finished or failed."""
        found: dict[str, set[int]] = {}
        over = self.trials[self.trials["state"].isin(ENDED)]
        for cell, seed in zip(over["cell"].tolist(), over["seed"].tolist(), strict=True):
            found.setdefault(cell, set()).add(int(seed))
        return {cell: frozenset(seeds) for cell, seeds in found.items()}

    @functools.cached_property
    def finished(self) -> pd.DataFrame:
        return self.trials[self.trials["state"] == "finished"]

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """One row for each cell with a finished trial, in the order of the study, indexed by cell."""
        return self.finished.drop_duplicates("cell").set_index("cell", drop=False)

    @functools.cached_property
    def levels(self) -> dict[str, CellLevels]:
        """What each finished cell is, in the order of the study."""
        return {row["cell"]: cell_levels(row, self.factors) for row in rows_of(self.cells)}

    @functools.cached_property
    def trained(self) -> dict[str, CellLevels]:
        """The finished cells that are trained networks."""
        untrained = set(self.cells.index[self.cells["method"].isin(UNTRAINED)])
        own = {cell: levels for cell, levels in self.levels.items() if cell not in untrained}
        return completed(own, self.study.reference)

    @functools.cached_property
    def untrained(self) -> frozenset[str]:
        """The cells without a network, whose scores are exact and not samples."""
        return frozenset(self.levels.keys() - self.trained.keys())

    @functools.cached_property
    def study_cells(self) -> StudyCells:
        """The trained cells, as the pairs that are compared are found by."""
        return self._study_cells(self.trained)

    def _study_cells(self, levels: Mapping[str, CellLevels]) -> StudyCells:
        return StudyCells(
            levels=levels,
            methods=dict(zip(self.cells["cell"].tolist(), self.cells["method"].tolist(), strict=True)),
            reference=self.study.reference,
            design=self.study.design,
            published=self.methods,
            left_out=tuple({**without_task(row.setting), **row.levels} for row in self.left_out),
        )

    @functools.cached_property
    def reference(self) -> str:
        """The finished cell that effects are measured from; an untrained one if no other is finished.

        Raises ValueError if no trial is finished.
        """
        if self.at_first_look is not self and self.at_first_look.levels:
            return self.at_first_look.reference
        return (self.study_cells if self.trained else self._study_cells(self.levels)).reference_cell

    @functools.cached_property
    def sets(self) -> tuple[str, ...]:
        """The test sets, Set5 before Set14."""
        return test_sets(self.finished)

    @functools.cached_property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that was planned."""
        return tuple(sorted(int(seed) for seed in self.trials["seed"].unique()))

    @functools.cached_property
    def identities(self) -> list[Identity]:
        return list(zip(self.finished["cell"].tolist(), self.finished["seed"].tolist(), strict=True))

    @functools.cached_property
    def runs(self) -> dict[Identity, str]:
        """The MLflow run of each finished trial; empty for one that MLflow does not have."""
        return dict(zip(self.identities, self.finished["run_id"].tolist(), strict=True))

    def data_word(self, data: str) -> str:
        """What data of this fingerprint are called."""
        return self._data_words.get(data, data[:KEY_LENGTH])

    @functools.cached_property
    def _data_words(self) -> dict[str, str]:
        return words_of_data(self.study.data_names)

    def metric(self, name: str) -> dict[Identity, float]:
        """Return a metric of every finished trial."""
        return dict(zip(self.identities, self.finished[f"metric/{name}"].tolist(), strict=True))

    def by_cell(self, metric: str) -> dict[str, dict[int, float]]:
        """Return a metric of the finished trials by cell and seed, seeds in order."""
        return scores_by_cell(self.metric(metric))

    def other_metrics(self, test_set: str) -> list[str]:
        """Return the metrics of a test set besides PSNR and SSIM that some finished trial has, by name."""
        known = self.finished.dropna(axis=1, how="all")
        prefix = f"metric/{test_set}/"
        found = {str(name).removeprefix(prefix) for name in known if str(name).startswith(prefix)}
        return sorted(found - {"psnr_db", "ssim"})

    def psnr(self, test_set: str) -> dict[str, dict[int, float]]:
        """Return the PSNR on a test set in dB, by cell and seed."""
        return self._psnr[test_set]

    @functools.cached_property
    def _psnr(self) -> dict[str, dict[str, dict[int, float]]]:
        return {name: self.by_cell(f"{name}/psnr_db") for name in self.sets}

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

    @functools.cached_property
    def latency(self) -> Latency:
        """What the finished trials measured on a clock; which seeds a cell was given does not depend on it."""
        return latency_of(self.finished)

    @property
    def units(self) -> pd.DataFrame:
        return self.records.units

    @functools.cached_property
    def collapsed(self) -> dict[Identity, str]:
        """The collapsed trials, each with the evidence."""
        return collapsed_trials(self.finished, self.sets, self.records.collapsed)

    def collapsed_seeds(self, cell: str) -> tuple[int, ...]:
        """Return the seeds under which a cell collapsed."""
        return tuple(seed for seed in self.seeds_of(cell) if (cell, seed) in self.collapsed)

    def is_down(self, cell: str) -> bool:
        """Tell whether every finished trial of a cell collapsed."""
        return bool(self.seeds_of(cell)) and len(self.collapsed_seeds(cell)) == len(self.seeds_of(cell))

    @property
    def is_mostly_down(self) -> bool:
        """Whether more than half of the trained cells are down."""
        return 2 * sum(map(self.is_down, self.trained)) > len(self.trained)

    def pictures(self, test_set: str, identity: Identity) -> dict[str, float]:
        """Return the PSNR of each picture of a test set in one finished trial; empty if it was not recorded."""
        found = self.records.pictures.get((identity, test_set))
        return dict(zip(found[0], found[1].tolist(), strict=True)) if found is not None else {}

    def curves(self) -> pd.DataFrame:
        return self.study.curves.merge(self.finished[["cell", "seed"]], on=["cell", "seed"])


def scores_by_cell(scores: Mapping[Identity, float]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for (cell, seed), score in sorted(scores.items()):
        found.setdefault(cell, {})[seed] = score
    return found


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts Set5 before Set14."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def test_sets(trials: pd.DataFrame) -> tuple[str, ...]:
    """Return the test sets that some trial was scored on, Set5 before Set14."""
    scored = (re.fullmatch(r"metric/([^/]+)/psnr_db", name) for name in map(str, trials.dropna(axis=1, how="all")))
    return tuple(sorted((match[1] for match in scored if match and match[1] != "train"), key=natural))


def split_by_task(study: StudyResults) -> list[TaskResults]:
    """Return the study's planned trials by task and test pictures, in the order in which trials name them.

    A combination that was left out belongs to the trials of its task and data, or else to the first of its task. A task
    of which nothing was trained has no part of its own: the list has at least one part.
    """
    trials = study.planned
    every = [setting_of(row) for row in rows_of(trials.filter(like="setting/"))]
    groups = grouped(trials, every)
    known = [{str(every[place].get("data")) for place in places} for places in groups]
    main = [every[places[0]] if places else {} for places in groups]
    homes = [home_of(row, main, known) for row in study.left_out]
    apart = distinguishing_keys([task_of(setting) | {"data": setting.get("data", "")} for setting in main])
    names = words_of_data(study.data_names)
    found: list[TaskResults] = []
    for number, (places, setting) in enumerate(zip(groups, main, strict=True)):
        own = trials.iloc[places]
        left_out = tuple(row for row, home in zip(study.left_out, homes, strict=True) if home == number)
        shown = {key.removeprefix("task."): setting.get(key) or "none" for key in apart}
        words = [names.get(value, value[:KEY_LENGTH]) if key == DATA else value for key, value in shown.items()]
        title = " ".join(f"{key}={word}" if key != "name" else word for key, word in zip(shown, words, strict=True))
        if title in (each.title for each in found):
            title = f"{title} part {number + 1}".strip()  # the data of both are not recorded
        methods = methods_in(study, own, setting.get("task.name", ""))
        labels = methods or cell_labels(own, study.factors, names, study.reference)
        found.append(TaskResults(title, own, left_out, labels, study, methods))
    return found


def grouped(trials: pd.DataFrame, settings: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Return the positions of the trials of each task and set of test pictures, in order; one empty group if none."""
    known = tested_on(trials)
    keys = [(tuple(sorted(task_of(setting).items())), setting.get("data", "")) for setting in settings]
    tested: dict[object, str] = {}
    for key, own in zip(keys, known, strict=True):
        if own:
            tested.setdefault(key, own)
    found: dict[object, list[int]] = {}
    for position, (key, own) in enumerate(zip(keys, known, strict=True)):
        task, data = key
        # Data that are not recorded may be any.
        pictures = tested.get(key, data) if data or not own else own
        found.setdefault((task, pictures), []).append(position)
    return list(found.values()) or [[]]


def home_of(row: LeftOut, main: Sequence[Mapping[str, str]], data: Sequence[Collection[str]]) -> int:
    """Return the number of the group that a left-out combination belongs to: that of its data, else of its task.

    ``main`` has the setting of the first trial of each group, and ``data`` the fingerprints of all its data.
    """
    same_task = [number for number, setting in enumerate(main) if task_of(setting) == task_of(row.setting)]
    same_data = [number for number in same_task if str(row.setting.get("data")) in data[number]]
    return (same_data or same_task or [0])[0]


def methods_in(study: StudyResults, trials: pd.DataFrame, task: str) -> dict[str, str]:
    """The paper's name of each cell's method if these trials compare methods, otherwise an empty dict."""
    rows = rows_of(trials.drop_duplicates("cell"))
    networks = {setting_of(row).get("network.name", "") for row in rows if row["method"] not in UNTRAINED}
    names = names_of(task, networks - {""})
    recorded = {row["cell"]: str(row["method"]) for row in rows}
    levels = {row["cell"]: factors_of(row, study.factors) for row in rows}
    return {cell: names[method] for cell, method in published_methods(recorded, levels, study.reference).items()}


def setting_of(row: Row) -> dict[str, str]:
    return {
        name.removeprefix("setting/"): value
        for name, value in row.items()
        if isinstance(name, str) and name.startswith("setting/") and value != ""
    }


def cell_levels(row: Row, factors: Sequence[str]) -> CellLevels:
    """Return everything that a cell is but its task: its levels, and the other keys of its setting."""
    setting = without_task(setting_of(row))
    recorded, asked = (
        {name: str(row[f"{kind}/{name}"]) for name in factors if row[f"{kind}/{name}"] != ""}
        for kind in ("factor", "level")
    )
    return CellLevels({**recorded, **setting}, {**asked, **setting})


def varying(levels: Iterable[Mapping[str, str]], keys: Iterable[str]) -> list[str]:
    """The keys that have more than one value; a missing one counts as a value."""
    rows = list(levels)
    return [key for key in keys if len({row.get(key, "") for row in rows}) > 1]


def words_of_data(names: Mapping[str, DataNames]) -> dict[str, str]:
    """What data are called, by their fingerprint: their name, and the start of the fingerprint if others share it."""
    named = {data: found.train for data, found in names.items() if found.train}
    counts = Counter(named.values())
    return {data: name if counts[name] == 1 else f"{name} {data[:KEY_LENGTH]}" for data, name in named.items()}


def label(levels: Mapping[str, str], keys: Iterable[str], data: Mapping[str, str] = MappingProxyType({})) -> str:
    """The values of ``keys`` as a user types them, without the keys that a cell does not have; data by their name."""

    def word(key: str) -> str:
        return data.get(levels[key], levels[key][:KEY_LENGTH]) if key == DATA else levels[key]

    return " ".join(f"{key}={word(key)}" for key in keys if levels.get(key))


def cell_labels(
    trials: pd.DataFrame,
    factors: Sequence[str],
    data: Mapping[str, str] = MappingProxyType({}),
    reference: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Name each cell by the keys that vary, an untrained baseline by its method; a key's start makes it unique.

    ``data`` has what data are called, by their fingerprint, and ``reference`` the level of what a cell did not record.
    """
    rows = {row["cell"]: row for row in rows_of(trials.drop_duplicates("cell"))}
    cells = {cell: cell_levels(row, factors) for cell, row in rows.items()}
    trained = {cell: own for cell, own in cells.items() if rows[cell]["method"] not in UNTRAINED}
    levels = {cell: own.asked for cell, own in {**cells, **completed(trained, reference)}.items()}
    names = varying(
        (levels[cell] for cell in trained), dict.fromkeys(key for found in levels.values() for key in found)
    )
    labels = {
        cell: str(rows[cell]["method"]) if rows[cell]["method"] in UNTRAINED else label(found, names, data)
        for cell, found in levels.items()
    }
    counts = pd.Series(labels).value_counts()
    return {
        cell: text if text and counts[text] == 1 else f"{text} cell {cell[:KEY_LENGTH]}".strip()
        for cell, text in labels.items()
    }
