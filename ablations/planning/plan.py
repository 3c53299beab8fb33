"""The plan of a sweep: every trial once, and what is left out with the reason. Planning trains and writes nothing."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from ablations.config import Config, SweeperConfig, typed
from ablations.planning.compose import Composer, SharedConfig, check_compared_keys, swept_values
from ablations.planning.outline import LeftOutRow, check_complete
from ablations.planning.stopping import families_of, looks_of, rule_of
from ablations.space.designs import Listing, rows_of
from ablations.space.factors import FACTORS, SHOWN, level_text
from ablations.space.family import cells_of_plan
from ablations.space.rows import MAX_ROWS, Row
from ablations.space.settings import DATA, LAST_SEED
from ablations.space.stopping_rule import StoppingRule
from ablations.space.study_cells import StudyCells
from ablations.storage.folder import Identity, TrialFolder
from ablations.storage.plans import refuse_other_pairing, refuse_other_rule
from ablations.trial.data import fingerprint_of_tests
from ablations.trial.identity import Trial, check_network, check_runnable, trial_of
from ablations.trial.teachers import config_of_teacher, row_of_teacher, setting_of_teacher
from bbcu.errors import ConfigError
from bbcu.passwords import masked

SHARING_KEYS = ("seed", "align", "train.steps", "train.lr", "train.schedule")
"""The keys that change nothing of the code that units compile to. So does the data, but it is rarely swept."""


COSTED = ("binarize", "threshold", "weight", "rescale")
"""The factors whose levels change the cost that the paper counts, or whether a network can be built."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its identity, overrides and config; trials of one ``structure`` have networks of the same cost.

    ``only_teaches`` says that the design does not list it: it is trained because others need it as their teacher.
    """

    trial: Trial
    identity: Identity
    overrides: tuple[str, ...]
    config: Config
    structure: Hashable
    only_teaches: bool = False

    @property
    def folder(self) -> TrialFolder:
        return TrialFolder(Path(self.config.outputs), self.trial.study, *self.identity)

    @property
    def teacher(self) -> Identity | None:
        """The trial that must have a result before this one is trained, if there is one."""
        return None if self.trial.teacher is None else (self.trial.teacher, self.trial.seed)

    def record(self) -> dict[str, Any]:
        """The trial as a row of ``plan.json``."""
        return {**self.trial.facts(), **({"only_teaches": True} if self.only_teaches else {})}


@dataclass(frozen=True)
class LeftOut:
    """A combination that is not trained, and why; ``same_as`` is the key of the cell whose network it is, if any."""

    levels: Mapping[str, Any]
    setting: Mapping[str, Any]
    name: str
    reason: str
    same_as: str | None = None


@dataclass
class Plan:
    """Every trial of a sweep, what is left out, and the design; ``unused_conditions`` left out nothing.

    ``pairing`` says that the study compares its cells seed by seed. With a stopping ``rule`` the trials are those up to
    the last look, of which the sweep trains what it needs. Each teacher comes before what it teaches.
    """

    study: str
    pairing: bool
    design: Mapping[str, Any]
    rule: StoppingRule | None = None
    trials: list[PlannedTrial] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    unused_conditions: tuple[str, ...] = ()

    @property
    def listed(self) -> list[PlannedTrial]:
        """The trials that the design lists, without those that only teach others."""
        return [entry for entry in self.trials if not entry.only_teaches]


def make_plan(
    arguments: Sequence[str], options: SweeperConfig, master: DictConfig, config_loader: ConfigLoader
) -> Plan:
    """List the rows of the design, leave out those that are not cells of their own, and plan a trial for each seed.

    Raises BbcuError for a mistake in the study or on the command line, before anything is trained.
    """
    swept = swept_values(arguments, options, config_loader)
    listing = rows_of(options.design, swept, options.design_options)
    check_compared_keys({text for row in listing.rows for text in row}, swept)
    composer = Composer(master, config_loader)
    found = composer.outline(listing.rows, options.exclude)
    check_complete(listing, found)
    every = {row: cell_of(row, composer) for row in found.kept}
    if not every:
        reasons = "; ".join(sorted({row.reason for row in found.left_out}))
        raise ConfigError(f"no cell of this sweep can be trained: {reasons}")
    cells, unused_weights = without_unused_weights(every)
    check_networks(cells.values())
    design = design_record(options, listing)
    rule = rule_of_cells(options, cells, design)
    if rule is None:
        trials = trials_of(cells, options.replicates, sharing(cells, options.replicates))
    else:
        trials = trials_under(rule, cells)
    return Plan(
        study=composer.study.name,
        pairing=composer.study.pairing,
        design=design,
        rule=rule,
        trials=trials,
        left_out=[left_out_of(row, composer, every) for row in (*found.left_out, *unused_weights)],
        unused_conditions=found.unused_conditions,
    )


class RowPlanner:
    """Plans rows one at a time, for a search that chooses them as it goes; ``swept`` has the texts of each key."""

    def __init__(
        self, arguments: Sequence[str], options: SweeperConfig, master: DictConfig, config_loader: ConfigLoader
    ) -> None:
        self.options = options
        self.swept = swept_values(arguments, options, config_loader)
        self._composer = Composer(master, config_loader)
        self._checked: set[Hashable] = set()
        self._trainings = expected_sharing(self.swept, options)

    def base(self) -> Config:
        """The config of the first row, which says where and how the sweep runs."""
        config = typed(self._composer.compose([f"{key}={values[0]}" for key, values in self.swept.items()]))
        check_runnable(config)
        refuse_other_pairing(Path(config.outputs), config.study.name, config.study.pairing)
        refuse_other_rule(Path(config.outputs), config.study.name, None)
        return config

    def plan(self, row: Row) -> Plan:
        """The plan of one row: its cell under each seed, or why it is left out."""
        listing = Listing((row,))
        found = self._composer.outline(listing.rows, self.options.exclude)
        cells = {kept: cell_of(kept, self._composer) for kept in found.kept}
        new = [cell for cell in cells.values() if cell.structure not in self._checked]
        check_networks(new)
        self._checked |= {cell.structure for cell in new}
        return Plan(
            study=self._composer.study.name,
            pairing=self._composer.study.pairing,
            design=design_record(self.options, listing),
            trials=trials_of(cells, self.options.replicates, {cell.code: self._trainings for cell in cells.values()}),
            left_out=[left_out_of(row, self._composer, cells) for row in found.left_out],
        )


@dataclass(frozen=True)
class PlannedCell:
    """A row that is a cell of its own, with its config, its trial under the first seed, and its teacher if it has one.

    Cells of one ``code`` have units that compile to the same code.
    """

    row: Row
    config: Config
    trial: Trial
    structure: Hashable
    code: Hashable
    key: str
    teacher: "PlannedCell | None" = None


def cell_of(row: Row, composer: Composer) -> PlannedCell:
    return planned_cell(row, *composer.config_of(row))


def planned_cell(row: Row, config: Config, shared: SharedConfig) -> PlannedCell:
    """The cell of a config whose row has these overrides."""
    trial = trial_of(config, shared.setting)
    teacher = None
    if trial.teacher is not None:
        setting = setting_of_teacher(shared.setting)
        own = config_of_teacher(config)
        teacher = planned_cell(row_of_teacher(row), own, SharedConfig.of(own, setting))
    structure, code = structure_of(trial, shared), code_of_units(trial, shared)
    return PlannedCell(row, config, trial, structure, code, trial.cell.key, teacher)


def without_unused_weights(cells: Mapping[Row, PlannedCell]) -> tuple[dict[Row, PlannedCell], list[LeftOutRow]]:
    """Leave out each cell that differs from an earlier one only by a weight of distillation that changes nothing."""
    first: dict[Identity, Row] = {}
    left_out = []
    for row, cell in cells.items():
        if first.setdefault(cell.trial.identity, row) is not row:
            left_out.append(LeftOutRow(row, "train.distil_weight changes nothing here", first[cell.trial.identity]))
    return {row: cells[row] for row in first.values()}, left_out


def structure_of(trial: Trial, shared: SharedConfig) -> Hashable:
    """What decides whether a network can be built and what it costs, so that each is built once and not in each cell.

    Of the factors, that is ``COSTED`` and classes of the user's own. A unit or a network of the user's may depend on
    every factor.
    """
    factors, network = trial.cell.factors, trial.cell.setting["network"]
    declared = any(FACTORS[name].unit and level != FACTORS[name].reference for name, level in factors.items())
    if declared or "." in network["name"] + network.get("unit", ""):
        return shared.network, *factors.values()
    own = (level for level in factors.values() if isinstance(level, str) and "." in level)
    return shared.network, *(factors[name] for name in COSTED), *own


def code_of_units(trial: Trial, shared: SharedConfig) -> Hashable:
    """What decides the code that the trial's units compile to: all of its cell but ``SHARING_KEYS`` and the data."""
    levels = (level for name, level in trial.cell.factors.items() if name not in SHARING_KEYS)
    training = trial.cell.setting.get("train", {}).items()
    return shared.network, *levels, *(value for key, value in training if f"train.{key}" not in SHARING_KEYS)


def sharing(cells: Mapping[Row, PlannedCell], replicates: int) -> Counter[Hashable]:
    """How many trainings of a sweep share each code of compiled units: those of cells with this code, under all seeds.

    A training decides by it whether compilation pays. It is the number in the plan, whatever is done already, so that
    these trainings decide alike, also if the sweep is resumed or repeated. Cells of other codes may share parts of it,
    as the body's units in networks that differ in the other parts; that is not counted.
    """
    seeds = {(cell.key, cell.trial.seed + seed): cell.code for cell in cells.values() for seed in range(replicates)}
    return Counter(seeds.values())


def expected_sharing(swept: Mapping[str, Sequence[str]], options: SweeperConfig) -> int:
    """How many trainings of a search share a code of compiled units if its cells are spread evenly over the codes."""
    codes = math.prod(len(values) for key, values in swept.items() if key not in SHARING_KEYS)
    cells = min(options.trials or 1, math.prod(map(len, swept.values())))
    return options.replicates * max(1, cells // codes)


def check_networks(cells: Iterable[PlannedCell]) -> None:
    """Raise ConfigError if a network or its teacher cannot be built; each structure is built once."""
    every = [one for cell in cells for one in (cell, cell.teacher) if one is not None]
    for cell in {cell.structure: cell for cell in every}.values():
        check_network(cell.trial)


def rule_of_cells(
    options: SweeperConfig, cells: Mapping[Row, PlannedCell], design: Mapping[str, Any]
) -> StoppingRule | None:
    """The stopping rule of a sweep over these cells, None without one.

    Raises ConfigError if the study was planned with another.
    """
    config = next(iter(cells.values())).config
    outputs, study, rule = Path(config.outputs), config.study.name, None
    if looks := looks_of(options):
        families = families_of(study_cells(cells.values(), design))
        trials = {cell.trial.identity for cell in cells.values()}
        rule = rule_of(StoppingRule(looks, 0, options.margin_db, families), trials, outputs, study)
    refuse_other_rule(outputs, study, rule)
    return rule


def trials_under(rule: StoppingRule, cells: Mapping[Row, PlannedCell]) -> list[PlannedTrial]:
    """Every cell under each seed up to the last look, as :func:`trials_of` lists them.

    Trainings up to the first look are certain, so compilation has to pay for them alone.
    """
    first = {
        row: dataclasses.replace(cell, trial=dataclasses.replace(cell.trial, seed=rule.first_seed))
        for row, cell in cells.items()
    }
    return trials_of(first, rule.last_look, sharing(first, rule.first_look), "most_replicates")


def trials_of(
    cells: Mapping[Row, PlannedCell], replicates: int, shared: Mapping[Hashable, int], option: str = "replicates"
) -> list[PlannedTrial]:
    """Every cell under the first seed, then every cell under the next; each trial once, after that of its teacher.

    ``shared`` is how many trainings share each code, as :func:`sharing` returns it.
    Raises ConfigError for more trials than a sweep may have, and for a seed beyond the last; ``option`` is the one that
    asks for so many.
    """
    last = max((cell.trial.seed for cell in cells.values()), default=0) + replicates - 1
    if last > LAST_SEED:
        raise ConfigError(f"hydra.sweeper.{option}={replicates}: the last seed would be {last}, above {LAST_SEED}")
    if replicates * len(cells) > MAX_ROWS:
        raise ConfigError(
            f"hydra.sweeper.{option}={replicates}: with {len(cells)} cells, more than {MAX_ROWS} trials, the most of "
            "a sweep"
        )
    found = []
    # A whole replicate comes before the next, so a sweep that is stopped leaves whole replicates.
    for replicate, cell in itertools.product(range(replicates), cells.values()):
        seed = cell.trial.seed + replicate
        if cell.teacher is not None:
            found.append(dataclasses.replace(planned_trial(cell.teacher, seed, 1), only_teaches=True))
        found.append(planned_trial(cell, seed, shared[cell.code]))
    return each_once(found)


def planned_trial(cell: PlannedCell, seed: int, trainings: int) -> PlannedTrial:
    trial = dataclasses.replace(cell.trial, seed=seed)
    subdir = f"hydra.sweep.subdir={trial.study}/{cell.key}/seed{seed}"
    own = (*cell.row, f"seed={seed}", f"trainings={trainings}", subdir)
    config = dataclasses.replace(cell.config, seed=seed, trainings=trainings)
    return PlannedTrial(trial, trial.identity, own, config, cell.structure)


def each_once(trials: Iterable[PlannedTrial]) -> list[PlannedTrial]:
    """Every trial in the place where it comes first, as the design lists it if it does."""
    found: dict[Identity, PlannedTrial] = {}
    for entry in trials:
        if found.setdefault(entry.identity, entry).only_teaches:
            found[entry.identity] = entry
    return list(found.values())


def study_cells(cells: Collection[PlannedCell | PlannedTrial], design: Mapping[str, Any]) -> list[StudyCells]:
    """The trained cells of each task and set of test pictures, from one row or trial of each cell."""
    configs = {cell.trial.cell.setting[DATA]: cell.config for cell in cells}
    tested = {data: fingerprint_of_tests(config) for data, config in configs.items()}
    return cells_of_plan([cell.trial.facts() for cell in cells], design, tested)


def left_out_of(row: LeftOutRow, composer: Composer, cells: Mapping[Row, PlannedCell]) -> LeftOut:
    """A left-out row as ``plan.json`` and the terminal show it."""
    config, shared = composer.config_of(row.row)
    name = " ".join(f"{name}={level_text(level)}" for name, level in config.levels.items())
    if row.same_as is None:
        return LeftOut(config.levels, shared.setting, name, row.why)
    same = cells[row.same_as]
    reason = f"the same network as {same.trial.name} ({same.key[:SHOWN]}): {row.why}"
    return LeftOut(config.levels, shared.setting, name, reason, same.key)


def design_record(options: SweeperConfig, listing: Listing) -> dict[str, Any]:
    """The design in ``plan.json``: its name, the options that were given, the conditions and the notes."""
    given = {name: value for name, value in options.design_options.items() if value is not None}
    given = {name: masked(value) if isinstance(value, str) else value for name, value in given.items()}
    return {"name": options.design, "options": given, "exclude": options.exclude, "notes": list(listing.notes)}


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan as ``plan.json`` holds it."""
    return {
        "study": plan.study,
        "pairing": plan.pairing,
        "design": plan.design,
        "rule": None if plan.rule is None else plan.rule.record(),
        "cost": dataclasses.asdict(plan.trials[0].config.cost),
        "reference": plan.trials[0].trial.facts()["reference"],
        "trials": [entry.record() for entry in plan.trials],
        "left_out": [vars(entry) for entry in plan.left_out],
    }
