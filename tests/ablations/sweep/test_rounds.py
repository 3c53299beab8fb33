"""Rounds: a sweep launches trials until each has ended, whatever breaks on the way."""

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from ablations.config import Config, register, typed
from ablations.planning.plan import PlannedTrial
from ablations.space.cells import Cell
from ablations.storage import stopping
from ablations.storage.attempts import State, begin_attempt, end_attempt, history_of, present_state
from ablations.storage.folder import TrialFolder
from ablations.storage.lease import LeaseLost, TrialBusy, lease_path, process_start_of
from ablations.storage.pruning import TrialPruned
from ablations.storage.stopping import Interrupted
from ablations.sweep import launchers
from ablations.sweep.launchers import Workers
from ablations.sweep.rounds import FINISHED, Rounds, TrialOutcome, remove_markers
from ablations.sweep.sharing import GpuShare
from ablations.trial.execution import TrialFailed, TrialHopeless, TrialOutOfMemory
from ablations.trial.identity import Trial
from ablations.trial.provenance import code_fingerprint
from bbcu.errors import ConfigError
from tests.ablations.storage.helpers import FORK, put_lease, result
from tests.harness.paths import REPOSITORY
from tests.harness.support import composed, of_hydra

STUDY = "rounds"

MOST_LOOKS = 60
"""After this many looks, half a second apart, a sweep counts as endless and is stopped."""


@pytest.fixture(autouse=True)
def nobody_has_asked() -> Iterator[None]:
    stopping.clear_request()
    yield
    stopping.clear_request()


def planned(outputs: Path, seed: int, on_change: str = "stop") -> PlannedTrial:
    """A trial of a sweep, identified by its seed."""
    trial = Trial(STUDY, "bbcu", Cell({}, {"network": {}}), seed)
    config = Config(outputs=str(outputs), on_change=on_change)
    return PlannedTrial(trial, trial.identity, (f"seed={seed}",), config, None)


# --- a launcher whose jobs do what a test says ------------------------------------------------------------------------


class WorkerDied(Exception):
    """What a launcher raises that has lost a worker and abandons its batch."""


Job = Callable[[TrialFolder], None]
"""What happens in a worker; an exception is how the job ends, except WorkerDied, which breaks the batch."""


def finish(folder: TrialFolder, code: str | None = None) -> None:
    """Leave a result of the present code, or of another."""
    provenance = {"git": "0" * 40, "dirty": False, "code": code_fingerprint() if code is None else code}
    begin_attempt(folder)
    folder.write_result({**result(folder.seed, folder.cell), "provenance": provenance})
    end_attempt(folder, State.FINISHED)


def begin(folder: TrialFolder) -> None:
    """Begin, and be lost with the batch."""
    begin_attempt(folder)


def die(folder: TrialFolder) -> None:
    """Begin, and kill the worker."""
    begin_attempt(folder)
    raise WorkerDied("out of memory")


def die_before_it_begins(folder: TrialFolder) -> None:
    raise WorkerDied("out of memory")


def end_with(error: Exception) -> Job:
    def job(folder: TrialFolder) -> None:
        raise error

    return job


class Scripted(Launcher):
    """A launcher whose workers do what a test says: ``script`` has, for each seed, a job for each time it is launched.

    A seed without a script does ``otherwise``. ``batches`` has the seeds that were launched together, ``jobs_at_once``
    how many jobs joblib was to run at once for each, if the launcher has its options.
    """

    def __init__(self, outputs: Path, script: dict[int, list[Job]]) -> None:
        self.outputs, self.script = outputs, {seed: iter(jobs) for seed, jobs in script.items()}
        self.otherwise: Job = finish
        self.batches: list[list[int]] = []
        self.overrides: list[Sequence[str]] = []
        self.joblib: dict[str, Any] | None = None
        self.jobs_at_once: list[int] = []

    def setup(self, **_: Any) -> None:
        """Do nothing."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.overrides += job_overrides
        seeds = [int(overrides[0].removeprefix("seed=")) for overrides in job_overrides]
        self.batches.append(seeds)
        if self.joblib is not None:
            self.jobs_at_once.append(self.joblib["n_jobs"])
        return [self._returned(seed) for seed in seeds]

    def folder_of(self, seed: int) -> TrialFolder:
        return planned(self.outputs, seed).folder

    def _returned(self, seed: int) -> JobReturn:
        job = next(self.script[seed]) if seed in self.script else self.otherwise
        folder = self.folder_of(seed)
        folder.path.mkdir(parents=True, exist_ok=True)
        done = JobReturn(status=JobStatus.COMPLETED)
        try:
            job(folder)
        except WorkerDied:
            raise
        except Exception as error:
            done.status, done.return_value = JobStatus.FAILED, error
        return done


@dataclasses.dataclass
class Sweep:
    """Trials of several seeds that are launched in rounds."""

    outputs: Path
    script: dict[int, list[Job]]
    retries: int = 1
    silence: float = 600.0
    on_change: str = "stop"
    look: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.launcher = Scripted(self.outputs, self.script)

    @property
    def batches(self) -> list[list[int]]:
        return self.launcher.batches

    @property
    def workers(self) -> Workers:
        return Workers(self.launcher, 1, ("session=s",))

    def folder(self, seed: int) -> TrialFolder:
        return planned(self.outputs, seed).folder

    def run(self, *seeds: int) -> dict[int, TrialOutcome]:
        """Run the trials of these seeds, and return their outcomes; stop if there is no end."""
        looks = itertools.count()

        def look() -> None:
            if next(looks) > MOST_LOOKS:
                stopping.request_stop(signal.SIGTERM)
            self.look()

        rounds = Rounds(self.workers, self.outputs, STUDY, self.retries, self.silence, look)
        outcomes = rounds.run([planned(self.outputs, seed, self.on_change) for seed in seeds])
        return {seed: outcome for (_, seed), outcome in outcomes.items()}


# --- trials with a teacher ------------------------------------------------------------------------------------------


def taught(outputs: Path, seed: int, teacher: PlannedTrial) -> PlannedTrial:
    """A trial of a cell of its own for each seed, which another trial teaches."""
    cell = Cell({}, {"network": {}, "channels": seed})
    trial = Trial(STUDY, "bbcu", cell, teacher.trial.seed, teacher.identity[0])
    config = Config(outputs=str(outputs), on_change="stop")
    return PlannedTrial(trial, trial.identity, (f"seed={seed}",), config, None)


class Taught(Scripted):
    """A launcher for trials of :func:`taught`, which are known by their overrides."""

    def __init__(self, outputs: Path, script: dict[int, list[Job]], entries: Sequence[PlannedTrial]) -> None:
        super().__init__(outputs, script)
        self.folders = {int(entry.overrides[0].removeprefix("seed=")): entry.folder for entry in entries}

    def folder_of(self, seed: int) -> TrialFolder:
        return self.folders[seed]


@dataclasses.dataclass
class School:
    """A teacher under the seeds 0 and 1, and two trials that each teaches: 10 and 20, 11 and 21."""

    outputs: Path
    script: dict[int, list[Job]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.teachers = [planned(self.outputs, seed) for seed in (0, 1)]
        self.students = [taught(self.outputs, 10 * n + seed, self.teachers[seed]) for seed in (0, 1) for n in (1, 2)]
        self.entries = [*self.students, *self.teachers]
        self.launcher = Taught(self.outputs, self.script, self.entries)
        self.rounds = Rounds(Workers(self.launcher, 1, ()), self.outputs, STUDY, 1, 600.0)

    def run(self, entries: Sequence[PlannedTrial]) -> dict[str, TrialOutcome]:
        outcomes = self.rounds.run(entries)
        return {entry.overrides[0].removeprefix("seed="): outcomes[entry.identity] for entry in entries}


def test_what_is_taught_is_launched_after_its_teacher(tmp_path: Path) -> None:
    school = School(tmp_path, {1: [end_with(RuntimeError("a hiccup")), finish]})
    assert set(school.run(school.entries).values()) == {FINISHED}
    assert school.launcher.batches == [[0, 1], [10, 20, 1], [11, 21]]


def test_what_is_taught_fails_with_its_teacher_and_says_so(tmp_path: Path) -> None:
    """Also if the teacher failed in an earlier call, as before an earlier look of a stopping rule."""
    school = School(tmp_path, {1: [end_with(TrialHopeless("the loss is nan"))]})
    outcomes = school.run([*school.students[:3], *school.teachers])
    assert school.launcher.batches == [[0, 1], [10, 20]]
    later = school.run(school.students[3:])
    assert school.launcher.batches == [[0, 1], [10, 20]]
    assert outcomes["10"] == outcomes["20"] == FINISHED
    reason = f"its teacher, cell {school.teachers[1].identity[0][:12]} seed 1, failed: the loss is nan"
    assert outcomes["11"] == later["21"] == TrialOutcome(State.FAILED, reason)
    assert [present_state(entry.folder) for entry in school.students[2:]] == 2 * [(State.FAILED, reason)]


def test_what_is_taught_waits_for_a_teacher_that_another_process_trains(tmp_path: Path) -> None:
    school = School(tmp_path)
    busy, parent = school.teachers[0].folder, os.getppid()
    put_lease(busy, pid=parent, process_start=process_start_of(parent))

    def finish_while_another_does(folder: TrialFolder) -> None:
        finish(folder)
        lease_path(busy).unlink()

    school.launcher.script[11] = iter([finish_while_another_does])
    assert set(school.run(school.entries).values()) == {FINISHED}
    assert school.launcher.batches == [[1], [11, 21], [0], [10, 20]]


# --- trials that end --------------------------------------------------------------------------------------------------


def test_trials_are_launched_together_with_the_session_of_their_sweep(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {})
    assert sweep.run(0, 1, 2) == {0: FINISHED, 1: FINISHED, 2: FINISHED}
    assert sweep.batches == [[0, 1, 2]]
    assert sweep.launcher.overrides == [["seed=0", "session=s"], ["seed=1", "session=s"], ["seed=2", "session=s"]]


def test_without_trials_nothing_is_launched(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {})
    assert sweep.run() == {}
    assert sweep.batches == []


def test_a_launcher_gets_no_more_than_a_batch_at_once(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {})
    outcomes = sweep.run(*range(70))
    assert [len(batch) for batch in sweep.batches] == [32, 32, 6]
    assert set(outcomes.values()) == {FINISHED}


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_trial_that_fails_is_retried_so_often_and_then_fails_with_its_last_reason(
    tmp_path: Path, retries: int
) -> None:
    sweep = Sweep(tmp_path, {0: [end_with(TrialFailed(f"for the {time}. time")) for time in range(1, 5)]}, retries)
    assert sweep.run(0, 1) == {0: TrialOutcome(State.FAILED, f"for the {retries + 1}. time"), 1: FINISHED}
    assert sweep.batches == [[0, 1]] + [[0]] * retries


def test_a_trial_that_fails_once_can_still_finish(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {0: [end_with(RuntimeError("a hiccup")), finish]})
    assert sweep.run(0) == {0: FINISHED}


@pytest.mark.parametrize(
    "error", [TrialHopeless("the loss is nan"), ConfigError("data.train: no such folder")], ids=["diverged", "config"]
)
def test_a_trial_that_would_fail_the_same_way_again_is_not_retried(tmp_path: Path, error: Exception) -> None:
    sweep = Sweep(tmp_path, {0: [end_with(error)]}, retries=5)
    assert sweep.run(0) == {0: TrialOutcome(State.FAILED, str(error))}


def test_a_pruned_trial_has_ended(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {0: [end_with(TrialPruned(20, 31.5))]})
    assert sweep.run(0) == {0: TrialOutcome(State.PRUNED, "pruned at step 20 with 31.50 dB", step=20)}


@pytest.mark.parametrize("error", [Interrupted("asked to stop (SIGTERM)"), LeaseLost("given to another")], ids=repr)
def test_a_trial_whose_worker_was_stopped_is_launched_again_without_using_a_retry(
    tmp_path: Path, error: Exception
) -> None:
    sweep = Sweep(tmp_path, {0: [end_with(error)] * 4 + [finish]}, retries=0)
    assert sweep.run(0) == {0: FINISHED}
    assert sweep.batches == [[0]] * 5


def test_a_sweep_that_is_asked_to_stop_launches_nothing_more(tmp_path: Path) -> None:
    def stop(folder: TrialFolder) -> None:
        stopping.request_stop(signal.SIGINT)
        raise Interrupted("stopped from the keyboard")

    sweep = Sweep(tmp_path, {33: [stop]})
    outcomes = sweep.run(*range(80))
    assert [len(batch) for batch in sweep.batches] == [32, 32]
    assert outcomes[33] == TrialOutcome(State.INTERRUPTED, "stopped from the keyboard")
    assert sorted(outcomes) == list(range(64))


# --- a worker that dies -----------------------------------------------------------------------------------------------


def test_when_a_batch_breaks_running_trials_are_launched_alone_and_the_others_together(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {1: [begin, finish], 2: [die, finish]})
    assert set(sweep.run(*range(6)).values()) == {FINISHED}
    assert sweep.batches == [[0, 1, 2, 3, 4, 5], [1], [2], [3, 4, 5]]


def test_a_trial_that_kills_its_worker_every_time_fails_and_the_others_finish(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {0: [begin, finish], 1: [die, die, die]}, retries=1)
    died = TrialOutcome(State.FAILED, "its worker died: out of memory")
    assert sweep.run(0, 1, 2) == {0: FINISHED, 1: died, 2: FINISHED}
    assert sweep.batches == [[0, 1, 2], [0], [1], [1], [2]]
    assert present_state(sweep.folder(1)) == (State.FAILED, died.reason)


def test_a_break_alone_counts_and_one_among_others_does_not(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {0: [die, die], 1: [finish]}, retries=0)
    outcomes = sweep.run(0, 1)
    assert sweep.batches == [[0, 1], [0], [1]]
    assert (outcomes[0].state, outcomes[1]) == (State.FAILED, FINISHED)


def test_if_the_launcher_breaks_before_anything_begins_all_use_a_retry(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {0: [die_before_it_begins] * 3}, retries=1)
    died = TrialOutcome(State.FAILED, "its worker died: out of memory")
    assert sweep.run(0, 1) == {0: died, 1: died}
    assert sweep.batches == [[0, 1], [0, 1]]


def test_a_trial_that_died_before_it_began_keeps_its_history(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {0: [die_before_it_begins]}, retries=0)
    sweep.folder(0).path.mkdir(parents=True)
    begin_attempt(sweep.folder(0))
    end_attempt(sweep.folder(0), State.INTERRUPTED, "yesterday")
    before = history_of(sweep.folder(0))
    assert sweep.run(0)[0].state == State.FAILED
    assert history_of(sweep.folder(0)) == before


def test_a_break_after_the_sweep_was_asked_to_stop_uses_no_retry(tmp_path: Path) -> None:
    def stop_and_die(folder: TrialFolder) -> None:
        stopping.request_stop(signal.SIGINT)
        die(folder)

    sweep = Sweep(tmp_path, {0: [stop_and_die]}, retries=0)
    assert sweep.run(0) == {}
    assert sweep.batches == [[0]]


# --- results that exist already ---------------------------------------------------------------------------------------


def test_a_result_of_other_code_does_not_replace_one_that_a_broken_batch_owes(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, {0: [die, finish]}, on_change="retrain")
    for seed in (0, 1):
        sweep.folder(seed).path.mkdir(parents=True)
        finish(sweep.folder(seed), code="other")
    assert sweep.run(0, 1) == {0: FINISHED, 1: FINISHED}
    assert sweep.batches == [[0, 1], [0], [1]]


def test_a_result_of_other_code_counts_with_on_change_keep(tmp_path: Path) -> None:
    def die_as_another_sweep_finishes(folder: TrialFolder) -> None:
        finish(folder, code="other")
        raise WorkerDied("out of memory")

    sweep = Sweep(tmp_path, {0: [die_as_another_sweep_finishes]}, on_change="keep")
    assert sweep.run(0) == {0: FINISHED}
    assert sweep.batches == [[0]]


# --- trials that another process holds --------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[int]:
    """The pid of another process, for leases of another sweep's worker."""
    process = FORK.Process(target=signal.pause, daemon=True)
    process.start()
    assert process.pid is not None
    yield process.pid
    process.kill()
    process.join()


def put_foreign_lease(folder: TrialFolder, pid: int, **changes: Any) -> None:
    """Write the lease of another sweep's worker, the process ``pid``, except for ``changes``."""
    put_lease(folder, **{"session": "another", "pid": pid, "process_start": process_start_of(pid) or "", **changes})


def test_a_trial_that_another_sweep_finishes_is_not_launched(tmp_path: Path, stranger: int) -> None:
    def finish_elsewhere() -> None:
        if lease_path(sweep.folder(0)).exists():
            finish(sweep.folder(0))
            lease_path(sweep.folder(0)).unlink()

    sweep = Sweep(tmp_path, {}, look=finish_elsewhere)
    put_foreign_lease(sweep.folder(0), stranger)
    assert sweep.run(0, 1) == {0: FINISHED, 1: FINISHED}
    assert sweep.batches[0] == [1]


def test_a_trial_that_another_sweep_leaves_without_a_result_is_launched(tmp_path: Path, stranger: int) -> None:
    def leave_it() -> None:
        lease_path(sweep.folder(0)).unlink(missing_ok=True)

    sweep = Sweep(tmp_path, {}, look=leave_it)
    put_foreign_lease(sweep.folder(0), stranger)
    assert sweep.run(0, 1) == {0: FINISHED, 1: FINISHED}
    assert sweep.batches == [[1], [0]]


def test_a_trial_that_proves_to_be_held_is_waited_for_without_using_a_retry(tmp_path: Path) -> None:
    def be_too_late(folder: TrialFolder) -> None:
        finish(folder)
        raise TrialBusy("is being trained by another process")

    sweep = Sweep(tmp_path, {0: [be_too_late]}, retries=0)
    assert sweep.run(0) == {0: FINISHED}
    assert sweep.batches == [[0]]


def test_a_view_that_raises_stops_nothing(tmp_path: Path, stranger: int) -> None:
    looked = []

    def stumble() -> None:
        looked.append(1)
        lease_path(sweep.folder(0)).unlink(missing_ok=True)
        raise ValueError("no room for a table")

    sweep = Sweep(tmp_path, {}, look=stumble)
    put_foreign_lease(sweep.folder(0), stranger)
    assert sweep.run(0) == {0: FINISHED}
    assert looked


# --- trials that share GPUs -------------------------------------------------------------------------------------------

GPU_MIB = 10_000.0
"""The memory of a GPU of which trials may fill 9,000 MiB."""


def finish_with(reserved: float | None) -> Job:
    """Leave the result of a trial that PyTorch gave this memory on a GPU, or of one on a CPU."""

    def job(folder: TrialFolder) -> None:
        finish(folder)
        timing = {} if reserved is None else {"gpu_reserved_mib": reserved, "gpu_mib": GPU_MIB}
        found = folder.result()
        assert found is not None
        folder.write_result({**found, "timing": timing})

    return job


@dataclasses.dataclass
class Gpus(Sweep):
    """A sweep on some GPUs, whose trials take 750 MiB unless a script says otherwise."""

    count: int = 1
    cores: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.launcher.joblib = {}
        self.launcher.otherwise = finish_with(750.0)

    @property
    def workers(self) -> Workers:
        share = GpuShare(self.count, self.cores)
        return Workers(self.launcher, share.at_once, (), share=share)

    @property
    def at_once(self) -> list[tuple[int, list[int]]]:
        """How many jobs joblib was to run at once in each batch, and the seeds of the batch."""
        return list(zip(self.launcher.jobs_at_once, self.batches, strict=True))


def test_the_first_trial_says_how_many_fit_on_a_gpu(tmp_path: Path) -> None:
    """It runs alone in a process of its own, which joblib starts for two jobs and not for one.

    Then 9,000 / (750 + 600) = 6 run at once; in the whole of the GPU there would be room for 7.
    """
    gpu = Gpus(tmp_path, {})
    assert set(gpu.run(*range(8)).values()) == {FINISHED}
    assert gpu.at_once == [(2, [0]), (6, [1, 2, 3, 4, 5, 6, 7])]


def test_several_gpus_begin_with_a_trial_on_each(tmp_path: Path) -> None:
    gpus = Gpus(tmp_path, {1: [finish_with(2400.0)]}, count=2)
    assert set(gpus.run(*range(5)).values()) == {FINISHED}
    assert gpus.at_once == [(2, [0, 1]), (6, [2, 3, 4])]


def test_every_gpu_has_a_trial_though_there_are_fewer_cores(tmp_path: Path) -> None:
    gpus = Gpus(tmp_path, {}, count=4, cores=2)
    assert set(gpus.run(*range(6)).values()) == {FINISHED}
    assert gpus.at_once == [(4, [0, 1, 2, 3]), (4, [4, 5])]


def test_a_larger_trial_later_lowers_the_number(tmp_path: Path) -> None:
    gpu = Gpus(tmp_path, {7: [finish_with(2400.0)]})
    gpu.run(*range(1 + 48 + 3))
    assert [jobs for jobs, _ in gpu.at_once] == [2, 6, 3]


def test_a_trial_that_fills_the_gpu_runs_alone(tmp_path: Path) -> None:
    gpu = Gpus(tmp_path, {0: [finish_with(9600.0)]})
    gpu.run(*range(3))
    assert gpu.at_once == [(2, [0]), (1, [1, 2])]


def test_a_trial_that_used_no_gpu_says_nothing(tmp_path: Path) -> None:
    gpu = Gpus(tmp_path, {0: [finish_with(None)], 1: [finish_with(None)]})
    gpu.run(*range(4))
    assert gpu.at_once == [(2, [0]), (2, [1]), (2, [2]), (6, [3])]


def test_a_trial_without_memory_starts_again_beside_half_as_many(tmp_path: Path) -> None:
    """That is none of its retries, until it runs alone."""
    full = end_with(TrialOutOfMemory("bbcu seed 3 failed: CUDA out of memory"))
    gpu = Gpus(tmp_path, {3: [full, full, full, finish]})
    assert set(gpu.run(*range(6)).values()) == {FINISHED}
    assert gpu.at_once == [(2, [0]), (6, [1, 2, 3, 4, 5]), (3, [3]), (1, [3]), (1, [3])]


def test_a_trial_that_fits_on_no_gpu_fails(tmp_path: Path) -> None:
    full = end_with(TrialOutOfMemory("bbcu seed 0 failed: CUDA out of memory"))
    gpu = Gpus(tmp_path, {0: 9 * [full]})
    assert gpu.run(0)[0].state == State.FAILED
    assert gpu.at_once == [(2, [0]), (2, [0])]


# --- workers ----------------------------------------------------------------------------------------------------------

CORES = len(os.sched_getaffinity(0))


BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
OWN = ("session='s'", "progress=false", "++hydra.job_logging.handlers.console.level=WARNING")


def workers(launcher: Launcher, **config: Any) -> Workers:
    """The workers of a sweep with this config of its launcher."""
    master = OmegaConf.create({"hydra": {"launcher": config}})
    return Workers.of(launcher, master, Config(threads="auto"), "s")


@pytest.mark.parametrize(
    ("config", "at_once", "batch"),
    [
        pytest.param({"_target_": BASIC}, 1, 32, id="one-by-one"),
        pytest.param({"_target_": JOBLIB, "n_jobs": 2}, 2, 32, id="two"),
        pytest.param({"_target_": JOBLIB, "n_jobs": 8}, 8, 64, id="eight"),
        pytest.param({"_target_": JOBLIB, "n_jobs": "auto"}, CORES, max(32, 8 * CORES), id="auto"),
        pytest.param({"_target_": JOBLIB, "n_jobs": -1}, CORES, max(32, 8 * CORES), id="all-cores"),
        pytest.param({"_target_": f"{SUBMITIT}.SlurmLauncher"}, None, 1000, id="elsewhere"),
        pytest.param({"_target_": RAY, "ray": {"init": {"num_cpus": 6}}}, 6, 48, id="ray-here"),
        pytest.param({"_target_": RAY, "ray": {"init": {"address": "local", "num_cpus": 6}}}, 6, 48, id="ray-own"),
        pytest.param({"_target_": RAY, "ray": {"init": {"address": "auto"}}}, None, 1000, id="ray-there"),
    ],
)
def test_the_size_of_a_batch_depends_on_how_many_trials_run_at_once(
    tmp_path: Path, config: dict[str, Any], at_once: int | None, batch: int
) -> None:
    found = workers(Scripted(tmp_path, {}), **config)
    assert (found.at_once, found.batch) == (at_once, batch)


def test_a_launcher_that_starts_a_whole_batch_at_once_gets_one_trial_per_core(tmp_path: Path) -> None:
    found = workers(Scripted(tmp_path, {}), _target_=f"{SUBMITIT}.LocalLauncher")
    assert found.batch == found.at_once == CORES


def overrides_of(workers: Workers) -> list[str]:
    """What the workers add to the overrides of a job."""
    assert isinstance(workers.launcher, Scripted)
    workers.launch([["seed=0"]])
    return list(workers.launcher.overrides[-1][1:])


def test_trials_that_run_at_once_get_one_thread_each(tmp_path: Path) -> None:
    alone, together = (workers(Scripted(tmp_path, {}), _target_=JOBLIB, n_jobs=jobs) for jobs in (1, CORES))
    assert overrides_of(alone) == [*OWN]
    assert overrides_of(together) == [*OWN, *["threads=1"] * (CORES > 1)]


def test_threads_that_the_user_has_set_stay(tmp_path: Path) -> None:
    master = OmegaConf.create({"hydra": {"launcher": {"_target_": JOBLIB, "n_jobs": 8}}})
    assert overrides_of(Workers.of(Scripted(tmp_path, {}), master, Config(threads=3), "s")) == [*OWN]


@pytest.mark.parametrize(
    ("cores", "gpus", "own", "chosen"),
    [
        pytest.param(4, 0, [], True, id="several-cores"),
        pytest.param(1, 2, [], True, id="several-gpus"),
        pytest.param(1, 0, [], False, id="one-core"),
        pytest.param(1, 1, [], False, id="one-gpu-and-core"),
        pytest.param(4, 1, ["hydra/launcher=basic"], False, id="chosen"),
    ],
)
def test_trials_run_side_by_side_unless_a_launcher_is_chosen(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, own: list[str], chosen: bool
) -> None:
    """As many as the machine holds: a number that is left to this machine."""
    register()
    monkeypatch.setattr(launchers, "cores", lambda: cores)
    monkeypatch.setattr(launchers, "gpus", lambda device: gpus)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("config", own, return_hydra_config=True)
        found = launchers.with_launcher(config, GlobalHydra.instance().config_loader()).hydra.launcher
    assert (found["_target_"], found.get("n_jobs")) == ((JOBLIB, "auto") if chosen else (BASIC, None))


def test_a_wrong_number_of_jobs_is_refused() -> None:
    config = OmegaConf.create({"hydra": {"launcher": {"_target_": JOBLIB, "n_jobs": "many"}}})
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.n_jobs=many: must be auto or a whole number"):
        launchers.with_launcher(config, of_hydra()[1])


@pytest.mark.parametrize(
    ("device", "at_once", "batch"),
    [
        pytest.param("auto", 2, 2, id="all-gpus"),
        pytest.param("cuda:1", 1, 1, id="one-of-them"),
        pytest.param("cpu", CORES, max(32, 8 * CORES), id="cores"),
    ],
)
def test_an_automatic_number_of_jobs_begins_with_a_trial_on_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, at_once: int, batch: int
) -> None:
    monkeypatch.setattr(launchers, "may_have_gpu", lambda: True)
    monkeypatch.setattr(launchers, "visible_gpus", lambda: 2)
    master = OmegaConf.create({"hydra": {"launcher": {"_target_": JOBLIB, "n_jobs": "auto"}}})
    found = Workers.of(Scripted(tmp_path, {}), master, Config(threads="auto", device=device), "s")
    assert (found.at_once, found.batch) == (at_once, batch)


@pytest.mark.parametrize("session", ["0123456789ab", "193843137e02", "019384313702"])
def test_the_name_of_a_session_reaches_a_trial_as_text(tmp_path: Path, session: str) -> None:
    found = Workers.of(Scripted(tmp_path, {}), OmegaConf.create({"hydra": {"launcher": {}}}), Config(), session)
    assert typed(composed(*found.overrides)).session == session


def test_a_sweep_removes_its_own_markers_and_no_others(tmp_path: Path) -> None:
    running = lease_path(planned(tmp_path, 0).folder).parent
    running.mkdir(parents=True)
    for name in ("s.stop", "s.search", "another.stop", "c-seed0.json"):
        (running / name).touch()
    remove_markers(tmp_path, STUDY, "s")
    assert sorted(path.name for path in running.iterdir()) == ["another.stop", "c-seed0.json"]
