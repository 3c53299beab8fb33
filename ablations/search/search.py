"""The search over cells: what to train next, learned from what is trained already, by Optuna's ask and tell.

A search is a value that owns no loop. It is asked for cells, told what came of them, and keeps all of that in a
storage, so that it can be stopped at any time and taken up by the next process, or shared by several at once. Optuna's
samplers choose rows; that no cell is trained twice, that nothing is lost with a process, and that the search ends is
settled here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablations.search.storages import _opened, _Place
from bbcu.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

import enum
import functools
import itertools
import json
import logging
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from ablations.planning.outline import split
from ablations.search.options import DRAWS, OBJECTIVES, PRUNERS, SAMPLERS, Direction, SearchOptions
from ablations.space.rows import Row, Sweep
from ablations.trial.changes import HOW_TO_CHOOSE, told_apart

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identified:
    """What a row is: the identity of its cell, or None and the reason why it is none.

    The identity must cover all that its values depend on, as the cell's key with its seeds does: two rows of one
    identity are trained once, and values that were kept under another are never mixed with these.
    """

    identity: str | None
    reason: str = ""


@dataclass(frozen=True)
class Proposal:
    """A cell to train, as ``row`` asks for it; ``number`` is its place in the search."""

    number: int
    row: Row
    identity: str


@dataclass(frozen=True)
class Finished:
    """A cell is trained; ``values`` has each objective, and may have more."""

    values: Mapping[str, float]


@dataclass(frozen=True)
class Failed:
    """A cell has no result; it is not proposed again unless :meth:`Search.retry_failed` says so."""

    reason: str


@dataclass(frozen=True)
class Pruned:
    """A cell was given up at a step for want of promise; it is never proposed again."""

    step: int


Outcome = Finished | Failed | Pruned


class Standing(enum.StrEnum):
    """What became of a row that was drawn.

    The first five are rows that were given out to be trained, or are to be. A known one was told its cell's values at
    once, a repeated one is of a cell that is running, say, already, and an abandoned one was given out again.
    """

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"
    KNOWN = "known"
    REPEATED = "repeated"
    LEFT_OUT = "left out"
    ABANDONED = "abandoned"


WITH_VALUES = (Standing.FINISHED, Standing.KNOWN)
UNDECIDED = (Standing.FAILED, Standing.ABANDONED, Standing.QUEUED)
"""The standings under which a cell that is queued may be given out again."""


@dataclass(frozen=True)
class Record:
    """One row of the history; ``dataclasses.asdict`` makes it JSON.

    ``cell`` is the identity, None where the row is none. ``values`` is empty without a result. ``reason`` says why a
    row failed, was left out or was not given out, and ``step`` where it was pruned.
    """

    number: int
    row: Row
    cell: str | None
    standing: Standing
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    step: int | None = None


# --- the search -------------------------------------------------------------------------------------------------------


class Search:
    """A search over the rows of ``levels``, which has the texts of each swept key.

    A search with the same name, objectives, levels and identities in the same storage is the same one and goes on where
    it was; any change of these begins a new one, since its values would not compare. For one process and one seed it is
    deterministic, across sessions too: what is drawn depends on the seed and the history alone.

    ``identify`` is called once for each row that is looked at. What a search proposes belongs to this process until it
    is told, or the process ends, or :meth:`close`. Raises ConfigError where no row is a cell, and where other code has
    scored cells and ``options.on_change`` is stop; and BbcuError for a storage that cannot be used.
    """

    def __init__(self, options: SearchOptions, levels: Sweep, identify: Callable[[Row], Identified]) -> None:
        self.options = options
        self._levels = {key: list(dict.fromkeys(values)) for key, values in levels.items()}
        self._identify = functools.cache(identify)
        self._known: dict[str, list[float]] = {}
        self._live: dict[int, Trial] = {}
        directions = [OBJECTIVES[name] for name in options.objectives]
        name = f"{options.name}-{self._fingerprint()}"
        self._shelf = _Shelf.of_code(options, name, directions)
        self._place, self._study = self._shelf.place, self._shelf.study
        self._claim = self._place.claim()

    def close(self) -> None:
        """Give back what was proposed and not told; another search may then propose it."""
        self._live.clear()
        self._claim.release()

    def known(self, identity: str, values: Mapping[str, float]) -> None:
        """Say what a cell is worth that was trained elsewhere; it costs nothing when it is drawn."""
        self._known[identity] = self._objective_values(values)

    def ask(self, count: int) -> list[Proposal]:
        """Up to ``count`` cells to train, each new and given to nobody else; fewer once the search comes to its end.

        First come those whose process has ended without a word, and those that are to be tried again; they cost nothing
        of ``trials``. Then rows are drawn. One that is a known cell is told its values at once, one that is no cell is
        told so, and neither is proposed. Where the draws bring nothing new, the new row that differs from the last in
        the fewest keys is taken, until the space is exhausted.
        """
        with self._place.locked():
            self._claim.renew()
            self._queue_abandoned()
            proposals: list[Proposal] = []
            while len(proposals) < count:
                proposal = self._next_queued() or self._next_new()
                if proposal is None:
                    break
                proposals.append(proposal)
            return proposals

    def tell(self, proposal: Proposal, outcome: Outcome) -> None:
        """Say what came of a proposal of this search.

        A value that is no finite number is a failure. Where another process has taken the cell up meanwhile, because
        this one was gone to all appearances, values are kept as known and all else is forgotten.
        """
        with self._place.locked():
            trial = self._live.pop(proposal.number, None)
            if trial is None:
                raise ValueError(f"proposal {proposal.number} is not this search's, or is told already")
            if not self._shelf.is_running(proposal.number):
                log.warning("%s was taken up by another process meanwhile", " ".join(proposal.row))
                if isinstance(outcome, Finished):
                    self.known(proposal.identity, outcome.values)
                return
            self._settle(trial, outcome)

    def report(self, proposal: Proposal, step: int, value: float) -> bool:
        """Add a point to a proposal's learning curve; whether to give the cell up now.

        Never with several objectives, whose curves nobody compares. In another process, use :meth:`reporter`.
        """
        return len(self.options.objectives) == 1 and self._shelf.report(proposal.number, step, value)

    def reporter(self, proposal: Proposal) -> "CurveReporter":
        """What another process needs to report a proposal's learning curve."""
        return CurveReporter(self._place.address, self._study.study_name, proposal.number, self.options.pruner)

    def retry_failed(self) -> int:
        """Propose every cell that has failed and has no result since once more, before all else; how many these are."""
        with self._place.locked():
            standings: dict[str, list[Record]] = {}
            for record in self.history():
                if record.cell is not None and record.standing not in (Standing.REPEATED, Standing.LEFT_OUT):
                    standings.setdefault(record.cell, []).append(record)
            failed = [records[-1] for records in standings.values() if records[-1].standing == Standing.FAILED]
            for record in failed:
                self._queue(record.row, record.cell, again=record.number)
            return len(failed)

    def best(self) -> Record | None:
        """The best cell so far, None before the first; raises ValueError where there are several objectives."""
        if len(self.options.objectives) > 1:
            raise ValueError(f"no cell is the best in {', '.join(self.options.objectives)} at once; ask for the front")
        return next(iter(self.front()), None)

    def front(self) -> list[Record]:
        """The cells that no other is at least as good as in all objectives and better in one; for one, the best.

        The best in the first objective comes first. Cells that were known and not drawn are not among them.
        """
        numbers = {trial.number for trial in self._study.best_trials}
        by_cell: dict[str | None, Record] = {}
        for record in self.history():
            if record.number in numbers:
                by_cell.setdefault(record.cell, record)
        first = self.options.objectives[0]
        sign = -1 if OBJECTIVES[first] == "maximize" else 1
        return sorted(by_cell.values(), key=lambda record: (sign * record.values[first], record.number))

    def history(self) -> list[Record]:
        """Every row that was drawn, and what became of it, in the order of the draws."""
        return [self._record(trial) for trial in self._study.get_trials(deepcopy=False)]

    # What is drawn

    def _fingerprint(self) -> str:
        """What makes values comparable, in a few characters; a base's identity stands for the setting of all cells."""
        bases = (self._identify(row).identity for row in _rows_around(self._levels, _first_row(self._levels)))
        base = next((identity for identity in bases if identity is not None), None)
        if base is None:
            reason = self._identify(_first_row(self._levels)).reason
            raise ConfigError(f"no row of this search is a cell: {' '.join(_first_row(self._levels))}: {reason}")
        text = json.dumps([self.options.objectives, list(self._levels.items()), base])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _next_queued(self) -> Proposal | None:
        """The next cell that is given out again; Optuna hands queued rows out before it draws any."""
        while any(record.standing == Standing.QUEUED for record in self.history()):
            proposal = self._propose(self._draw())
            if proposal is not None:
                return proposal
        return None

    def _next_new(self) -> Proposal | None:
        """A new cell by the sampler, or one near to what it draws; None where the budget or the space is used up."""
        if self._spent() >= self.options.trials:
            return None
        for _ in range(DRAWS):
            trial = self._draw()
            proposal = self._propose(trial)
            if proposal is not None:
                return proposal
        row = self._row_of(trial.params)
        while (nearest := self._nearest_new(row)) is not None:
            self._queue(nearest, self._identify(nearest).identity)
            proposal = self._propose(self._draw())
            if proposal is not None:
                return proposal
        return None

    def _spent(self) -> int:
        """How many cells were given out to be trained, each counted once."""
        given_out = (*UNDECIDED, Standing.RUNNING, Standing.FINISHED, Standing.PRUNED)
        return len({record.cell for record in self.history() if record.cell and record.standing in given_out})

    def _draw(self) -> "Trial":
        """A row of the sampler's, whose random numbers depend on nothing but the seed and how many came before."""
        from optuna.distributions import CategoricalDistribution

        self._study.sampler = SAMPLERS[self.options.chosen_sampler](_derived_seed(self.options.seed, self._drawn()))
        # A key with one value is no choice, and would only cost a line in the storage.
        choices = {key: CategoricalDistribution(texts) for key, texts in self._levels.items() if len(texts) > 1}
        return self._study.ask(dict(choices))

    def _drawn(self) -> int:
        """How many rows were drawn, each counted once: what is given out again, or was lost with the process that drew
        it before anybody heard of it, leaves the draws to come as they would have been.
        """
        return sum(map(_counts_as_drawn, self._study.get_trials(deepcopy=False)))

    def _propose(self, trial: "Trial") -> Proposal | None:
        """The proposal that a drawn row makes, or None where it is told at once why it makes none."""
        row = self._row_of(trial.params)
        found = self._identify(row)
        earlier = [record for record in self.history() if record.number != trial.number]
        if found.identity is None:
            is_first = all(record.row != row for record in earlier)
            self._refuse(trial, Standing.LEFT_OUT if is_first else Standing.REPEATED, None, found.reason)
            return None
        same = [record for record in earlier if record.cell == found.identity and record.standing != Standing.REPEATED]
        is_queued = "queued" in trial.user_attrs
        blocking = [record for record in same if not (is_queued and record.standing in UNDECIDED)]
        values = next((list(record.values.values()) for record in same if record.standing in WITH_VALUES), None)
        values = values or self._known.get(found.identity)
        if values and not any(record.row == row for record in same if record.standing in WITH_VALUES):
            trial.set_user_attr("verdict", {"standing": Standing.KNOWN, "cell": found.identity})
            self._study.tell(trial, values)
            return None
        if blocking:
            reason = f"the cell of row {blocking[-1].number}, which is {blocking[-1].standing}"
            self._refuse(trial, Standing.REPEATED, found.identity, reason)
            return None
        trial.set_user_attr("proposed", {"cell": found.identity, "worker": self._claim.worker})
        self._live[trial.number] = trial
        return Proposal(trial.number, row, found.identity)

    def _refuse(self, trial: "Trial", standing: Standing, cell: str | None, reason: str) -> None:
        """Tell a row that it is not given out.

        A row that is no cell counts as pruned where that can be, so that a sampler learns to stay away; all else is a
        failure, from which samplers learn nothing.
        """
        from optuna.trial import TrialState

        trial.set_user_attr("verdict", {"standing": standing, "cell": cell, "reason": reason})
        teaches = standing == Standing.LEFT_OUT and len(self.options.objectives) == 1
        self._study.tell(trial, state=TrialState.PRUNED if teaches else TrialState.FAIL)

    def _nearest_new(self, row: Row) -> Row | None:
        """The row of a cell that the history does not have that differs from ``row`` in the fewest keys."""
        seen = {record.cell for record in self.history()}
        seed = _derived_seed(self.options.seed, self._drawn())
        for candidate in _rows_around(self._levels, row, random.Random(seed)):
            identity = self._identify(candidate).identity
            if identity is not None and identity not in seen:
                return candidate
        return None

    # What became of it

    def _queue_abandoned(self) -> None:
        """Queue the cells whose process is gone, each once; one that has left a result is told that."""
        from optuna.trial import TrialState

        queued = {record.cell for record in self.history() if record.standing == Standing.QUEUED}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            proposed = trial.user_attrs.get("proposed")
            if proposed is not None and not self._is_gone(proposed["worker"]):
                continue
            record = self._record(trial)
            if proposed is not None and record.cell in self._known:
                self._study.tell(trial.number, self._known[record.cell])
                continue
            # Queued before it is told, so that nothing is lost if this process ends in between.
            if record.cell is not None and record.cell not in queued:
                self._queue(record.row, record.cell, again=record.number)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _is_gone(self, worker: str) -> bool:
        return worker != self._claim.worker and self._place.is_gone(worker)

    def _queue(self, row: Row, cell: str | None, *, again: int | None = None) -> None:
        """Have a row drawn before all others; ``again`` is its number where it was drawn before.

        What the sampler has noted of it then, such as its generation, goes along, or its result would count for less.
        """
        note = {"cell": cell, "row": list(row), "again": again is not None}
        self._study.enqueue_trial(self._params_of(row), user_attrs={"queued": note})
        if again is not None:
            trials = self._study.get_trials(deepcopy=False)
            self._shelf.copy_notes(trials[again], trials[-1])

    def _settle(self, trial: "Trial", outcome: Outcome) -> None:
        from optuna.trial import TrialState

        if isinstance(outcome, Finished):
            values = self._objective_values(outcome.values)
            wrong = [f"{name} is {value}" for name, value in self._named(values).items() if not math.isfinite(value)]
            if not wrong:
                self._study.tell(trial, values)
                return
            outcome = Failed(", ".join(wrong))
        if isinstance(outcome, Failed):
            trial.set_user_attr("verdict", {"standing": Standing.FAILED, "reason": outcome.reason})
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr("verdict", {"standing": Standing.PRUNED, "step": outcome.step})
            self._study.tell(trial, state=TrialState.PRUNED)

    def _record(self, trial: "FrozenTrial") -> Record:
        proposed = trial.user_attrs.get("proposed", {})
        queued = trial.user_attrs.get("queued", {})
        verdict = trial.user_attrs.get("verdict", {})
        standing = _standing_of(trial)
        return Record(
            trial.number,
            tuple(queued["row"]) if queued else self._row_of(trial.params),
            proposed.get("cell") or queued.get("cell") or verdict.get("cell"),
            standing,
            self._named(trial.values) if standing in WITH_VALUES else {},
            verdict.get("reason", ""),
            verdict.get("step"),
        )

    def _objective_values(self, values: Mapping[str, float]) -> list[float]:
        """The objectives in their order; raises ValueError where one is missing."""
        missing = [name for name in self.options.objectives if name not in values]
        if missing:
            raise ValueError(f"no value for {', '.join(missing)} among {', '.join(values)}")
        return [float(values[name]) for name in self.options.objectives]

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.options.objectives, values, strict=True))

    def _row_of(self, params: Mapping[str, str]) -> Row:
        return tuple(f"{key}={params.get(key, texts[0])}" for key, texts in self._levels.items())

    def _params_of(self, row: Row) -> dict[str, str]:
        return {key: text for key, text in map(split, row) if len(self._levels[key]) > 1}


def _standing_of(trial: "FrozenTrial") -> Standing:
    """What a row's state in Optuna and our own notes on it come to; a note counts once the state is final."""
    from optuna.trial import TrialState

    if trial.state == TrialState.WAITING:
        return Standing.QUEUED
    if trial.state == TrialState.RUNNING:
        return Standing.RUNNING
    noted = Standing(trial.user_attrs["verdict"]["standing"]) if "verdict" in trial.user_attrs else None
    if trial.state == TrialState.FAIL:
        return noted if noted in (Standing.FAILED, Standing.LEFT_OUT, Standing.REPEATED) else Standing.ABANDONED
    return noted or Standing.FINISHED


def _counts_as_drawn(trial: "FrozenTrial") -> bool:
    """Whether a row would be in the history if no process had ended without a word and nothing had failed."""
    attributes = trial.user_attrs
    if attributes.get("queued", {}).get("again"):
        return False
    return _standing_of(trial) != Standing.ABANDONED or "proposed" in attributes or "queued" in attributes


def _first_row(levels: Sweep) -> Row:
    return tuple(f"{key}={texts[0]}" for key, texts in levels.items())


def _rows_around(levels: Sweep, row: Row, order: random.Random | None = None) -> Iterator[Row]:
    """Every row of the space, those that differ from ``row`` in the fewest keys first; ``order`` shuffles the rest."""
    here = dict(map(split, row))
    others = {key: [text for text in texts if text != here[key]] for key, texts in levels.items()}
    keys = [key for key, texts in others.items() if texts]
    if order is not None:
        keys.sort(key=lambda _: order.random())
        others = {key: sorted(texts, key=lambda _: order.random()) for key, texts in others.items()}
    for changes in range(len(keys) + 1):
        for changed in itertools.combinations(keys, changes):
            for texts in itertools.product(*(others[key] for key in changed)):
                there = {**here, **dict(zip(changed, texts, strict=True))}
                yield tuple(f"{key}={text}" for key, text in there.items())


def _derived_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


# --- learning curves --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurveReporter:
    """Reports the learning curve of one proposal from whatever process trains it; ``dataclasses.asdict`` is JSON."""

    storage: str
    study: str
    number: int
    pruner: str

    def report(self, step: int, value: float) -> bool:
        """Add a point; whether to give the cell up now. Never for a proposal that is told already."""
        return self._shelf.report(self.number, step, value)

    @functools.cached_property
    def _shelf(self) -> "_Shelf":
        return _Shelf.opened(self.storage, self.study, self.pruner)


ANEW = "+"
"""What stands behind a search's name once for each time that it was begun anew for other code."""

CODE = "code"
"""The attribute of Optuna's study that has the fingerprint of the code that its cells were trained by."""


def _has_scores(study: "Study") -> bool:
    """Whether a sampler would learn anything from the study."""
    return any(trial.values or trial.intermediate_values for trial in study.get_trials(deepcopy=False))


def _scored_by_other_code(study: "Study", options: SearchOptions) -> bool:
    """Whether a study has scores of other code; raises ConfigError where it has, and the user has not chosen."""
    made_by = study.user_attrs.get(CODE)
    if made_by == options.code or not _has_scores(study):
        return False
    if options.on_change == "stop":
        raise ConfigError(
            f"the search of {options.name} has scores: {told_apart(made_by, options.code)}; {HOW_TO_CHOOSE}"
        )
    return True


@dataclass(frozen=True)
class _Shelf:
    """Where the history of one search stands: a place, Optuna's storage there, and its study in that."""

    place: "_Place"
    storage: "BaseStorage"
    study: "Study"

    @classmethod
    def opened(cls, storage: str, name: str, pruner: str) -> "_Shelf":
        """The study of that name; raises BbcuError for one that is not there, and a storage that cannot be used."""
        import optuna

        with _opened(storage) as (place, opened):
            return cls(place, opened, optuna.load_study(study_name=name, storage=opened, pruner=PRUNERS[pruner]()))

    @classmethod
    def of_code(cls, options: SearchOptions, name: str, directions: Sequence[Direction]) -> "_Shelf":
        """The latest study of that name, made where there is none yet, or where it is to be begun anew.

        Raises BbcuError for a storage that cannot be used, and ConfigError where other code has scored its cells and
        the user has not chosen.
        """
        import optuna

        with _opened(options.storage) as (place, opened):
            made = sorted(
                (known for known in optuna.get_all_study_names(opened) if known.partition(ANEW)[0] == name), key=len
            )

            def study_of(name: str) -> "Study":
                pruner = PRUNERS[options.pruner]()
                return optuna.create_study(
                    study_name=name, storage=opened, pruner=pruner, directions=list(directions), load_if_exists=True
                )

            study = study_of(made[-1] if made else name)
            if _scored_by_other_code(study, options) and options.on_change == "retrain":
                study = study_of(study.study_name + ANEW)
            if not _has_scores(study):
                study.set_user_attr(CODE, options.code)
        return cls(place, opened, study)

    def is_running(self, number: int) -> bool:
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False)[number].state == TrialState.RUNNING

    def copy_notes(self, earlier: "FrozenTrial", later: "FrozenTrial") -> None:
        """Give a row that waits the notes of the sampler on an earlier one that it does not have itself."""
        for name, note in earlier.system_attrs.items():
            if name not in later.system_attrs:
                self.storage.set_trial_system_attr(self._id_of(later.number), name, note)

    def _id_of(self, number: int) -> int:
        """What the storage calls a row."""
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def report(self, number: int, step: int, value: float) -> bool:
        """Add a point to a curve, and ask the pruner; False for a row that does not run."""
        with self.place.locked():
            if not self.is_running(number):
                return False
            # Optuna's own Trial reports in the process that asked for it alone; this is what it does inside.
            self.storage.set_trial_intermediate_value(self._id_of(number), step, float(value))
            return bool(self.study.pruner.prune(self.study, self.study.get_trials(deepcopy=False)[number]))
