"""Search for the best cells by Optuna's ask-and-tell interface: the results so far decide which cell is trained next.

The caller owns the loop: it asks for cells and tells their outcomes. Everything is stored, so a search can be stopped
at any time, resumed by another process, or shared by several processes. Optuna's samplers draw rows; this module
ensures that no cell is trained twice, that a killed process loses nothing, and that the search ends.
"""

import functools
import hashlib
import itertools
import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ablations.planning.outline import split
from ablations.search.options import OBJECTIVES, SearchOptions, sampler_of
from ablations.search.records import (
    UNDECIDED,
    WITH_VALUES,
    CellOutcome,
    Failed,
    Finished,
    IdentifiedRow,
    Proposal,
    Record,
    RowState,
)
from ablations.search.storages import refusal
from ablations.search.stored import StoredSearch, counts_as_drawn, note_state, state_of
from ablations.space.rows import Row, Sweep
from bbcu.errors import ConfigError, first_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

TOLERANCE = 1e-9
"""How far a stored value may be from that of the result, which a database may round."""

DRAWS = 3
"""How many rows are drawn for one new cell before the nearest new cell is taken; a draw costs milliseconds."""


class Search:
    """A search over the rows of ``levels``, which maps each swept key to the texts of its values.

    The same name, objectives, levels and cells in the same storage resume a search; if any of these changes, a new
    search starts, since values would not be comparable. With one process and one seed it is deterministic, across
    sessions too: a draw depends on the seed and the history alone.

    ``identify`` is called once for each row. A proposal is reserved for this process until its outcome is told, the
    process ends, or :meth:`close`. Raises ConfigError if no row is a cell, and if different code has scored cells and
    ``options.on_change`` is stop; BbcuError for a storage that cannot be used.
    """

    def __init__(self, options: SearchOptions, levels: Sweep, identify: Callable[[Row], IdentifiedRow]) -> None:
        self.options = options
        self._levels = {key: list(dict.fromkeys(values)) for key, values in levels.items()}
        self._identify = functools.cache(functools.partial(self._identify_row, identify))
        self._known: dict[str, list[float]] = {}
        self._live: dict[int, Trial] = {}
        directions = [OBJECTIVES[name] for name in options.objectives]
        self._stored = StoredSearch.opened(options, f"{options.name}-{self._fingerprint()}", directions)
        self._backend, self._study = self._stored.backend, self._stored.study
        self._stored.describe(options, self._levels)
        self._backend.hold_worker_lock()

    def check(self) -> None:
        """Raise BbcuError if a finished row is not what the results on disk say: they are the truth.

        A storage that machines without a common folder share may have rows of other machines, without a result here.
        """
        try:
            trials = self._study.get_trials(deepcopy=False)
            records = [self._record(trial) for trial in trials]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # The rows are those of a database that anything may have written to.
            reason = f"a row is damaged: {type(error).__name__}: {first_line(error)}"
            raise refusal(self.options.storage, reason) from error
        for trial, record in zip(trials, records, strict=True):
            # Optuna gives a pruned trial its last score as its value.
            has_score = trial.values is not None and record.state != RowState.PRUNED
            if has_score or record.state in WITH_VALUES:
                self._check_finished(record)

    def _check_finished(self, record: Record) -> None:
        name = f"row {record.number} ({' '.join(record.row)})"
        identified = self._identify(record.row)
        if record.state not in WITH_VALUES or identified.cell != record.cell:
            raise refusal(self.options.storage, f"{name} has a score and is not of the cell that was scored")
        if identified.values is None:
            if self._backend.common_folder:
                raise refusal(self.options.storage, f"{name} is finished and its cell has no valid result on disk")
            return
        for key, value in record.values.items():
            there = identified.values[key]
            if not math.isclose(value, there, rel_tol=0, abs_tol=TOLERANCE):
                raise refusal(self.options.storage, f"{name} has {key} {value:g} and its result on disk {there:g}")

    def close(self) -> None:
        """Release the proposals without an outcome, so that another process may propose them."""
        self._live.clear()
        self._backend.release_worker_lock()

    def ask(self, count: int) -> list[Proposal]:
        """Return up to ``count`` cells to train, each untrained and not yet proposed; fewer if the search has ended.

        Cells whose process died, and cells to retry, come first and are not counted again. Then rows are drawn. The
        sampler gets the values of a row whose cell is known, and learns that a row is not a cell; neither is proposed.
        If the draws yield nothing new, the new row that differs from the last draw in the fewest keys is taken, until
        the space is exhausted.
        """
        with self._backend.locked():
            self._backend.hold_worker_lock()
            self._queue_abandoned()
            proposals: list[Proposal] = []
            while len(proposals) < count:
                proposal = self._next_queued() or self._next_new()
                if proposal is None:
                    break
                proposals.append(proposal)
            return proposals

    def tell(self, proposal: Proposal, outcome: CellOutcome) -> None:
        """Record the outcome of a proposal of this search.

        A value that is not finite is a failure. If the cell was given to another process because this one seemed to be
        dead, its values are saved as those of a known cell and other outcomes are dropped.
        """
        with self._backend.locked():
            trial = self._live.pop(proposal.number, None)
            if trial is None:
                raise ValueError(f"proposal {proposal.number} is not this search's, or already has an outcome")
            if self._stored.is_running(proposal.number):
                self._record_outcome(trial, outcome)
                return
            log.warning("%s was given to another process in the meantime", " ".join(proposal.row))
            if isinstance(outcome, Finished):
                self._known[proposal.cell] = self._objective_values(outcome.values)

    def report(self, proposal: Proposal, step: int, value: float) -> bool:
        """Add a point to a proposal's learning curve; return whether to prune it.

        With several objectives nothing is pruned, since no curve shows all of them.
        """
        if len(self.options.objectives) > 1:
            return False
        with self._backend.locked():
            trial = self._live.get(proposal.number)
            if trial is None or not self._stored.is_running(proposal.number):
                return False
            # A trial that resumes from a snapshot may reach an evaluation for the second time.
            if step not in self._study.get_trials(deepcopy=False)[proposal.number].intermediate_values:
                trial.report(value, step)
            # The pruner compares numpy numbers.
            return bool(trial.should_prune())

    def retry_failed(self) -> int:
        """Queue every failed cell without a later result again, before all other cells; return how many."""
        with self._backend.locked():
            latest = {
                record.cell: record
                for record in self.history()
                if record.cell is not None and record.state not in (RowState.REPEATED, RowState.LEFT_OUT)
            }
            failed = [record for record in latest.values() if record.state == RowState.FAILED]
            for record in failed:
                self._queue(record.row, record.cell, again=record.number)
            return len(failed)

    def front(self) -> list[Record]:
        """Return the cells of the Pareto front, the best in the first objective first; for one objective, the best.

        It does not include known cells that were not drawn.
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
        """Return every row that was drawn, in the order of the draws."""
        return [self._record(trial) for trial in self._study.get_trials(deepcopy=False)]

    # --- drawing ------------------------------------------------------------------------------------------------

    def _identify_row(self, identify: Callable[[Row], IdentifiedRow], row: Row) -> IdentifiedRow:
        """Identify a row, and remember the values of a cell that is already trained."""
        identified = identify(row)
        if identified.cell is not None and identified.values is not None:
            self._known[identified.cell] = self._objective_values(identified.values)
        return identified

    def _fingerprint(self) -> str:
        """Return a hash of what makes values comparable; the key of one cell covers the setting of all cells."""
        first = tuple(f"{key}={texts[0]}" for key, texts in self._levels.items())
        cells = (self._identify(row).cell for row in _rows_around(self._levels, first))
        base = next((cell for cell in cells if cell is not None), None)
        if base is None:
            reason = self._identify(first).reason
            raise ConfigError(f"no row of this search is a cell: {' '.join(first)}: {reason}")
        text = json.dumps([self.options.measure, list(self._levels.items()), base])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _next_queued(self) -> Proposal | None:
        """Return the next queued cell; Optuna returns queued rows before it draws any."""
        while any(record.state == RowState.QUEUED for record in self.history()):
            proposal = self._propose(self._draw())
            if proposal is not None:
                return proposal
        return None

    def _next_new(self) -> Proposal | None:
        """Draw a new cell, or take one close to the draw; None if the budget or the space is exhausted."""
        if self._proposed_cells() >= self.options.trials:
            return None
        for _ in range(DRAWS):
            trial = self._draw()
            proposal = self._propose(trial)
            if proposal is not None:
                return proposal
        row = self._row_of(trial.params)
        while (nearest := self._nearest_new(row)) is not None:
            self._queue(nearest, self._identify(nearest).cell)
            proposal = self._propose(self._draw())
            if proposal is not None:
                return proposal
        return None

    def _proposed_cells(self) -> int:
        """Return the number of different cells that were proposed."""
        proposed = (*UNDECIDED, RowState.RUNNING, RowState.FINISHED, RowState.PRUNED)
        return len({record.cell for record in self.history() if record.cell and record.state in proposed})

    def _draw(self) -> "Trial":
        """Draw a row; its random numbers depend only on the seed and the number of earlier draws."""
        from optuna.distributions import CategoricalDistribution

        self._study.sampler = sampler_of(self.options.chosen_sampler, self._seed_of_draw())
        # A key with one value is not a choice, and would only take space in the storage.
        choices = {key: CategoricalDistribution(texts) for key, texts in self._levels.items() if len(texts) > 1}
        return self._study.ask(dict(choices))

    def _seed_of_draw(self) -> int:
        """Derive a seed from the number of draws so far.

        Retries, and rows whose process died, are not counted, so that later draws are the same as without them.
        """
        drawn = sum(map(counts_as_drawn, self._study.get_trials(deepcopy=False)))
        return int.from_bytes(hashlib.sha256(f"{self.options.seed} {drawn}".encode()).digest()[:4])

    def _propose(self, trial: "Trial") -> Proposal | None:
        """Return the proposal that a drawn row makes, or None after recording why it makes none."""
        row = self._row_of(trial.params)
        identified = self._identify(row)
        earlier = [record for record in self.history() if record.number != trial.number]
        if identified.cell is None:
            is_first = all(record.row != row for record in earlier)
            self._refuse(trial, RowState.LEFT_OUT if is_first else RowState.REPEATED, None, identified.reason)
            return None
        same = [record for record in earlier if record.cell == identified.cell and record.state != RowState.REPEATED]
        valued = [record for record in same if record.state in WITH_VALUES]
        values = list(valued[0].values.values()) if valued else self._known.get(identified.cell)
        for name, note in identified.notes.items():
            trial.set_user_attr(name, note)
        if values and all(record.row != row for record in valued):
            note_state(trial, RowState.KNOWN, cell=identified.cell)
            self._study.tell(trial, values)
            return None
        is_queued = "queued" in trial.user_attrs
        blocking = [record for record in same if not (is_queued and record.state in UNDECIDED)]
        if blocking:
            reason = f"the cell of row {blocking[-1].number}, which is {blocking[-1].state}"
            self._refuse(trial, RowState.REPEATED, identified.cell, reason)
            return None
        trial.set_user_attr("proposed", {"cell": identified.cell, "worker": self._backend.worker})
        self._live[trial.number] = trial
        return Proposal(trial.number, row, identified.cell)

    def _refuse(self, trial: "Trial", state: RowState, cell: str | None, reason: str) -> None:
        """Record that a row is not proposed.

        For one objective a row that is not a cell counts as pruned, so that the sampler learns to avoid it; others
        count as failures, from which samplers learn nothing.
        """
        from optuna.trial import TrialState

        note_state(trial, state, cell=cell, reason=reason)
        as_pruned = state == RowState.LEFT_OUT and len(self.options.objectives) == 1
        self._study.tell(trial, state=TrialState.PRUNED if as_pruned else TrialState.FAIL)

    def _nearest_new(self, row: Row) -> Row | None:
        """Return the row that differs from ``row`` in the fewest keys among those whose cell is not in the history."""
        seen = {record.cell for record in self.history()}
        for candidate in _rows_around(self._levels, row, random.Random(self._seed_of_draw())):
            cell = self._identify(candidate).cell
            if cell is not None and cell not in seen:
                return candidate
        return None

    # --- recording ---------------------------------------------------------------------------------------------

    def _queue_abandoned(self) -> None:
        """Queue each cell whose process has ended, once; if the cell has a result by now, record that instead."""
        from optuna.trial import TrialState

        queued = {record.cell for record in self.history() if record.state == RowState.QUEUED}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            proposed = trial.user_attrs.get("proposed")
            if proposed is not None and not self._has_ended(proposed["worker"]):
                continue
            record = self._record(trial)
            cell = self._identify(record.row).cell if proposed is not None else None
            if cell is not None and cell in self._known:
                self._study.tell(trial.number, self._known[cell])
                continue
            # Queue it before closing its row, so that nothing is lost if this process ends in between.
            if record.cell is not None and record.cell not in queued:
                self._queue(record.row, record.cell, again=record.number)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _has_ended(self, worker: str) -> bool:
        return worker != self._backend.worker and self._backend.has_ended(worker)

    def _queue(self, row: Row, cell: str | None, *, again: int | None = None) -> None:
        """Queue a row to be drawn before all others; ``again`` is its number if it was drawn before.

        The sampler's notes on that draw are copied, because without them the sampler would give its result less weight.
        """
        note = {"cell": cell, "row": list(row), "again": again is not None}
        params = {key: text for key, text in map(split, row) if len(self._levels[key]) > 1}
        self._study.enqueue_trial(params, user_attrs={"queued": note})
        if again is not None:
            trials = self._study.get_trials(deepcopy=False)
            self._stored.copy_notes(trials[again], trials[-1])

    def _record_outcome(self, trial: "Trial", outcome: CellOutcome) -> None:
        from optuna.trial import TrialState

        if isinstance(outcome, Finished):
            values = self._objective_values(outcome.values)
            wrong = [f"{name} is {value}" for name, value in self._named(values).items() if not math.isfinite(value)]
            if not wrong:
                self._study.tell(trial, values)
                return
            outcome = Failed(", ".join(wrong))
        if isinstance(outcome, Failed):
            note_state(trial, RowState.FAILED, reason=outcome.reason)
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            note_state(trial, RowState.PRUNED, step=outcome.step)
            self._study.tell(trial, state=TrialState.PRUNED)

    def _record(self, trial: "FrozenTrial") -> Record:
        proposed = trial.user_attrs.get("proposed", {})
        queued = trial.user_attrs.get("queued", {})
        verdict = trial.user_attrs.get("verdict", {})
        state = state_of(trial)
        return Record(
            trial.number,
            tuple(queued["row"]) if queued else self._row_of(trial.params),
            proposed.get("cell") or queued.get("cell") or verdict.get("cell"),
            state,
            self._named(trial.values) if state in WITH_VALUES else {},
            verdict.get("reason", ""),
            verdict.get("step"),
        )

    def _objective_values(self, values: Mapping[str, float]) -> list[float]:
        """Return the objectives in their order; raise ValueError if one is missing."""
        missing = [name for name in self.options.objectives if name not in values]
        if missing:
            raise ValueError(f"no value for {', '.join(missing)} among {', '.join(values)}")
        return [float(values[name]) for name in self.options.objectives]

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.options.objectives, values, strict=True))

    def _row_of(self, params: Mapping[str, str]) -> Row:
        return tuple(f"{key}={params.get(key, texts[0])}" for key, texts in self._levels.items())


def _rows_around(levels: Sweep, row: Row, order: random.Random | None = None) -> Iterator[Row]:
    """Yield every row, those that differ from ``row`` in the fewest keys first; ``order`` shuffles ties."""
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
