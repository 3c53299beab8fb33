"""The status of a study: what has become of each trial, read from the study's folder."""

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.space.factors import SHOWN
from ablations.storage.attempts import Attempt, State, history_of, state_at_rest
from ablations.storage.folder import Identity, TrialFolder, study_folder
from ablations.storage.lease import Lease, leases, living_lease
from ablations.storage.plans import read_plan, trial_names
from bbcu.errors import ConfigError

SEED = re.compile(r"seed\d+")


@dataclass(frozen=True)
class TrialStatus:
    """What has become of a trial; ``lease`` is there while it runs, ``attempts`` unless it has finished.

    ``since`` is when it came to its state, in seconds since the epoch, None where nobody has written that down.
    """

    folder: TrialFolder
    name: str
    state: State
    reason: str = ""
    since: float | None = None
    attempts: tuple[Attempt, ...] = ()
    lease: Lease | None = None

    @property
    def title(self) -> str:
        return f"{self.name} seed {self.folder.seed}"


@dataclass(frozen=True)
class StudyStatus:
    """What has become of a study; ``excluded`` are the combinations that its plan leaves out, each with its reason."""

    folder: Path
    trials: tuple[TrialStatus, ...]
    excluded: tuple[Mapping[str, Any], ...]

    @property
    def counts(self) -> dict[State, int]:
        """How many there are of each state."""
        counts = Counter(trial.state for trial in self.trials)
        counts[State.EXCLUDED] = len(self.excluded)
        return {state: counts[state] for state in State}

    def of(self, state: State) -> list[TrialStatus]:
        return [trial for trial in self.trials if trial.state == state]


@dataclass(frozen=True)
class ReadPlan:
    """What a study has planned: each trial's name, when it was planned first, and what is left out."""

    names: Mapping[Identity, str]
    times: Mapping[Identity, float | None]
    excluded: tuple[Mapping[str, Any], ...]


class StatusReader:
    """Reads the status of a study, again and again if need be."""

    def __init__(self, outputs: Path, study: str) -> None:
        if study not in (there := studies(outputs)):
            raise ConfigError(f"no study {study!r} in {outputs}; there: {', '.join(there) if there else 'none'}")
        self._outputs, self._study = outputs, study
        self._plan_mark: object = None
        self._plan = ReadPlan({}, {}, ())
        self._folders: dict[Identity, TrialFolder] = {}
        self._whole: dict[Path, tuple[tuple[int, int], str]] = {}

    def read(self) -> StudyStatus:
        """The status as it is now."""
        plan = self._planned()
        working = {(lease.cell, lease.seed): lease for lease in leases(self._outputs, self._study)}
        begun = identities_in(study_folder(self._outputs, self._study))
        trials = []
        # A trial that was run alone stands in no plan.
        for identity in [*plan.names, *sorted(begun - plan.names.keys())]:
            folder = self._folder(identity)
            name, planned_at = plan.names.get(identity, ""), plan.times.get(identity)
            if identity in begun:
                found = self._begun(folder, name, working.get(identity))
            else:
                found = TrialStatus(folder, name, State.PLANNED)
            is_planned = found.state == State.PLANNED
            trials.append(dataclasses.replace(found, since=planned_at) if is_planned else found)
        return StudyStatus(study_folder(self._outputs, self._study), tuple(trials), plan.excluded)

    def _planned(self) -> "ReadPlan":
        """What the study has planned; read again only where it has changed."""
        mark = mark_of(study_folder(self._outputs, self._study) / "plan.json")
        if mark != self._plan_mark:
            plan = read_plan(self._outputs, self._study)
            rows = {(row["cell"], row["seed"]): row for row in plan["trials"]}
            names = trial_names((identity, row["name"], row["setting"]) for identity, row in rows.items())
            times = {identity: row.get("planned_at") for identity, row in rows.items()}
            self._plan = ReadPlan(names, times, tuple(plan["left_out"]))
            self._plan_mark = mark
        return self._plan

    def _folder(self, identity: Identity) -> TrialFolder:
        if identity not in self._folders:
            self._folders[identity] = TrialFolder(self._outputs, self._study, *identity)
        return self._folders[identity]

    def _begun(self, folder: TrialFolder, name: str, lease: Lease | None) -> TrialStatus:
        """What has become of a trial that has a folder."""
        finished_as = None if lease is not None else self._name_in_result(folder)
        if finished_as is not None:
            return TrialStatus(folder, name or finished_as, State.FINISHED, since=self._written_at(folder))
        history = history_of(folder)
        last = history.attempts[-1] if history.attempts else None
        if lease is None and last is not None and last.state == State.RUNNING:
            # It may have begun since the leases were listed.
            lease = living_lease(folder)
        name = name or (lease.name if lease is not None else folder.cell[:SHOWN])
        if lease is not None:
            return TrialStatus(folder, name, State.RUNNING, "", lease.began, history.attempts, lease)
        return TrialStatus(folder, name, *state_at_rest(folder, last), history.since, history.attempts)

    def _name_in_result(self, folder: TrialFolder) -> str | None:
        """The name in the trial's result, or None where it has none that is whole."""
        mark = mark_of(folder.result_path)
        if mark is None:
            return None
        known = self._whole.get(folder.result_path)
        if known is not None and known[0] == mark:
            return known[1]
        result = folder.result()
        if result is None:
            return None
        self._whole[folder.result_path] = (mark, str(result["name"]))
        return str(result["name"])

    def _written_at(self, folder: TrialFolder) -> float:
        """When the result was written that was read last, which is when its trial finished."""
        mark, _ = self._whole[folder.result_path]
        return mark[0] / 1e9


def identities_in(folder: Path) -> set[Identity]:
    """The trials that have a folder in a study's; of thousands, so without a path object each."""
    with os.scandir(folder) as entries:
        cells = [entry for entry in entries if entry.is_dir()]
    names = ((cell.name, name) for cell in cells for name in os.listdir(cell) if SEED.fullmatch(name))
    return {(cell, int(name.removeprefix("seed"))) for cell, name in names}


def studies(outputs: Path) -> list[str]:
    """The names of the studies in ``outputs``: the folders that hold a plan or a trial."""
    folders = sorted(outputs.iterdir()) if outputs.is_dir() else []
    return [
        folder.name
        for folder in folders
        if (folder / "plan.json").exists() or next(folder.glob("*/seed*"), None) is not None
    ]


def record_of(status: StudyStatus) -> dict[str, Any]:
    """The status as JSON holds it; times are in seconds since the epoch."""
    return {
        "study": status.folder.name,
        "folder": str(status.folder),
        "counts": status.counts,
        "trials": [trial_record(trial) for trial in status.trials],
        "excluded": [dict(row) for row in status.excluded],
    }


def trial_record(trial: TrialStatus) -> dict[str, Any]:
    lease = trial.lease
    return {
        "cell": trial.folder.cell,
        "seed": trial.folder.seed,
        "name": trial.name,
        "state": trial.state,
        "reason": trial.reason,
        "since": trial.since,
        "attempts": [dataclasses.asdict(attempt) for attempt in trial.attempts],
        "log": str(trial.folder.log_path),
        "running": None if lease is None else lease_record(lease),
    }


def lease_record(lease: Lease) -> dict[str, Any]:
    """What a lease tells of a running trial; a PSNR that is no number is none, as JSON knows no such thing."""
    is_number = lease.psnr_db is not None and math.isfinite(lease.psnr_db)
    return {
        "session": lease.session,
        "host": lease.host.partition("/")[0],
        "pid": lease.pid,
        "since": lease.began,
        "phase": lease.phase,
        "step": lease.step,
        "steps": lease.steps,
        "scored_at": lease.scored_at,
        "psnr_db": lease.psnr_db if is_number else None,
    }


def mark_of(path: Path) -> tuple[int, int] | None:
    """The date in ns and the size of a file, or None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
