"""Read the status of a study, the state of each of its trials, from the study's folder."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.space.factors import SHOWN
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import Attempt, State, damage_of, history_of, state_without_process
from ablations.storage.files import DamagedFile
from ablations.storage.folder import Identity, TrialFolder, identities_in, study_folder
from ablations.storage.lease import Lease, leases, living_lease
from ablations.storage.plans import name_in_plan, plan_path, read_plan, rule_in, trial_names
from bbcu.errors import ConfigError


@dataclass(frozen=True)
class TrialStatus:
    """The state of a trial; ``lease`` is set while it runs, and ``attempts`` unless it has finished.

    ``since`` is when it entered the state, in seconds since the epoch, or None if that was not recorded. ``damage`` is
    what is wrong with a file of its folder.
    """

    folder: TrialFolder
    name: str
    state: State
    reason: str = ""
    since: float | None = None
    attempts: tuple[Attempt, ...] = ()
    lease: Lease | None = None
    damage: DamagedFile | None = None

    @property
    def title(self) -> str:
        return f"{self.name} seed {self.folder.seed}"


@dataclass(frozen=True)
class StudyStatus:
    """The states of a study's trials; ``excluded`` has the combinations that its plan leaves out, with the reasons.

    ``damage`` is what is wrong with the plan; nobody knows then what was planned. ``rule`` is the plan's stopping rule.
    """

    folder: Path
    trials: tuple[TrialStatus, ...]
    excluded: tuple[Mapping[str, Any], ...]
    damage: DamagedFile | None = None
    rule: StoppingRule | None = None

    @property
    def counts(self) -> dict[State, int | None]:
        """How many trials are in each state; None for planned and excluded ones if the plan is damaged."""
        counts = Counter(trial.state for trial in self.trials)
        counts[State.EXCLUDED] = len(self.excluded)
        unknown = () if self.damage is None else (State.PLANNED, State.EXCLUDED)
        return {state: None if state in unknown else counts[state] for state in State}

    def of(self, state: State) -> list[TrialStatus]:
        return [trial for trial in self.trials if trial.state == state]


@dataclass(frozen=True)
class PlanSummary:
    """The plan of a study: each trial's name, when it was first planned, the excluded combinations, the stopping rule.

    ``damage`` is what is wrong with its file.
    """

    names: Mapping[Identity, str]
    times: Mapping[Identity, float | None]
    excluded: tuple[Mapping[str, Any], ...]
    damage: DamagedFile | None = None
    rule: StoppingRule | None = None


class StatusReader:
    """Reads the status of a study; repeated reads open only the files that have changed.

    Raises ConfigError, which names the studies that exist, for one that does not.
    """

    def __init__(self, outputs: Path, study: str) -> None:
        if study not in (available := studies(outputs)):
            raise ConfigError(f"no study {study!r} in {outputs}; available: {', '.join(available) or 'none'}")
        self._outputs, self._study = outputs, study
        self._plan_stamp: object = "not read"
        self._plan = PlanSummary({}, {}, ())
        self._folders: dict[Identity, TrialFolder] = {}
        self._result_names: dict[Path, tuple[tuple[int, int], str]] = {}

    def read(self) -> StudyStatus:
        plan = self._read_plan()
        running = {(lease.cell, lease.seed): lease for lease in leases(self._outputs, self._study)}
        started = identities_in(study_folder(self._outputs, self._study))
        trials = []
        # A trial that was run without a sweep is not in the plan.
        for identity in [*plan.names, *sorted(started - plan.names.keys())]:
            name = plan.names.get(identity, "")
            trial = TrialStatus(self._folder(identity), name, State.PLANNED)
            if identity in started:
                trial = self._started(trial.folder, name, running.get(identity))
            if trial.state == State.PLANNED:
                trial = dataclasses.replace(trial, since=plan.times.get(identity))
            trials.append(trial)
        folder = study_folder(self._outputs, self._study)
        return StudyStatus(folder, tuple(trials), plan.excluded, plan.damage, plan.rule)

    def _read_plan(self) -> PlanSummary:
        stamp = stamp_of(plan_path(self._outputs, self._study))
        if stamp != self._plan_stamp:
            try:
                plan = read_plan(self._outputs, self._study)
            except DamagedFile as error:
                return PlanSummary({}, {}, (), error)
            rows = {(row["cell"], row["seed"]): row for row in plan["trials"]}
            names = trial_names(
                (identity, name_in_plan(row["name"], only_teaches=row.get("only_teaches", False)), row["setting"])
                for identity, row in rows.items()
            )
            times = {identity: row.get("planned_at") for identity, row in rows.items()}
            self._plan = PlanSummary(names, times, tuple(plan["left_out"]), rule=rule_in(plan))
            self._plan_stamp = stamp
        return self._plan

    def _folder(self, identity: Identity) -> TrialFolder:
        if identity not in self._folders:
            self._folders[identity] = TrialFolder(self._outputs, self._study, *identity)
        return self._folders[identity]

    def _started(self, folder: TrialFolder, name: str, lease: Lease | None) -> TrialStatus:
        """Return the status of a trial that has a folder."""
        finished = None if lease is not None else self._result_name(folder)
        if finished is not None:
            (written_ns, _), own_name = finished
            return TrialStatus(folder, name or own_name, State.FINISHED, since=written_ns / 1e9)
        history = history_of(folder)
        if lease is None and history.state == State.RUNNING:
            # It may have started since the leases were listed.
            lease = living_lease(folder)
        name = name or (lease.name if lease is not None else folder.cell[:SHOWN])
        if lease is not None:
            return TrialStatus(folder, name, State.RUNNING, "", lease.began, history.attempts, lease)
        state, reason = state_without_process(folder, history)
        damage = damage_of(folder, history)
        return TrialStatus(folder, name, state, reason, history.since, history.attempts, damage=damage)

    def _result_name(self, folder: TrialFolder) -> tuple[tuple[int, int], str] | None:
        """Return the stamp of the trial's result and the name in it, or None if it has no valid result."""
        stamp = stamp_of(folder.result_path)
        if stamp is None:
            return None
        known = self._result_names.get(folder.result_path)
        if known is None or known[0] != stamp:
            result = folder.result()
            if result is None:
                return None
            known = self._result_names[folder.result_path] = (stamp, str(result["name"]))
        return known


def studies(outputs: Path) -> list[str]:
    """Return the names of the studies in ``outputs``: the folders that hold a plan or a trial."""
    folders = sorted(outputs.iterdir()) if outputs.is_dir() else []
    return [
        folder.name
        for folder in folders
        if folder.is_dir() and (os.path.lexists(folder / "plan.json") or identities_in(folder))
    ]


def record_of(status: StudyStatus) -> dict[str, Any]:
    """Return the status as plain data for JSON; times are in seconds since the epoch."""
    return {
        "study": status.folder.name,
        "folder": str(status.folder),
        "counts": status.counts,
        "damaged": None if status.damage is None else str(status.damage),
        "trials": [trial_record(trial) for trial in status.trials],
        "excluded": [dict(row) for row in status.excluded],
    }


def trial_record(trial: TrialStatus) -> dict[str, Any]:
    return {
        "cell": trial.folder.cell,
        "seed": trial.folder.seed,
        "name": trial.name,
        "state": trial.state,
        "reason": trial.reason,
        "since": trial.since,
        "attempts": [dataclasses.asdict(attempt) for attempt in trial.attempts],
        "log": str(trial.folder.log_path),
        "damaged": None if trial.damage is None else str(trial.damage.path),
        "running": None if trial.lease is None else lease_record(trial.lease),
    }


def lease_record(lease: Lease) -> dict[str, Any]:
    """Return the progress in a lease as plain data; a PSNR that is not finite becomes None, which JSON requires."""
    is_finite = lease.psnr_db is not None and math.isfinite(lease.psnr_db)
    names = ("session", "pid", "phase", "step", "steps", "scored_at")
    return {
        **{name: getattr(lease, name) for name in names},
        "host": lease.host.partition("/")[0],
        "since": lease.began,
        "psnr_db": lease.psnr_db if is_finite else None,
    }


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return the modification time of a file in ns and its size, or None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
