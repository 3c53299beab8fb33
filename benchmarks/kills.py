"""Kill a study again and again at random moments, and compare its trials with those of an undisturbed study.

    python -m benchmarks.kills                                 # 200 kills, one trial after the other
    python -m benchmarks.kills --kills 50 --launcher joblib    # with two workers, which are killed too

The study has four cells under two seeds, with a snapshot after each step. Its command and all its processes are killed
with SIGKILL, and the command is run again until the study is complete. Then a new study begins.

Every other kill comes at a moment drawn evenly from the time that the command would take for the remaining trials. The
others wait for a phase that is drawn first, each with the same chance, so that short phases are hit as well. The
command is stopped before it is killed, so that its phase is read from a disk that does not change.

Each study has a folder of its own for temporary files. What lies there, in the outputs or in ``/dev/shm`` at the end
is an error too, if it is not there after an undisturbed study.
"""

import itertools
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablations.storage.folder import TrialFolder, study_folder
from ablations.storage.lease import leases
from ablations.tracking.client import client_of
from benchmarks.common import parse_arguments, parser_of, write_figures
from tests.harness.faults import BASIC, JOBLIB, TRIALS, Command, Endings, check_nothing_lost, endings
from tests.harness.support import STUDY, Workplace, inherited

CELLS = (*TRIALS, "residual=true,false", "train.steps=8", "tracking.evaluations=2")
NUMBER = 8
LAUNCHERS = {"basic": BASIC, "joblib": JOBLIB}

PHASES = {
    "planning": 0.5,
    "between trials": 0.005,
    "opening the run": 0.02,
    "training": 0.05,
    "snapshot": 0.005,
    "probing": 0.01,
    "result": 0.02,
    "closing the run": 0.05,
    "conclusion": 0.02,
}
"""The phases of a command in their order, and the seconds that a kill waits at most in each."""

OCCURRENCES = 3
"""A kill that waits for a phase waits for one of its first three occurrences in the command."""

ONCE = ("planning", "conclusion")
"""The phases that a command enters only once."""

PHASE_OF_LEASE = {
    "preparing": "opening the run",
    "training": "training",
    "evaluating": "training",
    "probing": "probing",
    "recording": "result",
}

SHARED_MEMORY = Path("/dev/shm")

POLL_SECONDS = 0.0005

Files = dict[str, set[str]]
"""The names of files, by the place in which they lie."""

Wait = Callable[["Study", Command], None]
"""Returns when it is time to kill the command, or when the command has ended."""


@dataclass
class Tally:
    """The phases of the kills, the number of completed studies, and the errors that were found.

    ``leftovers`` counts the files that lay in each place right after a kill, beyond those of an undisturbed study.
    """

    phases: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    leftovers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(self.phases.values())


@dataclass(frozen=True)
class Study:
    """A study in a separate workplace, and the processes that have run its commands.

    ``earlier`` lay in shared memory before: the number of a process is used again after a while.
    """

    place: Workplace
    launcher: str
    earlier: frozenset[str]
    pids: list[int] = field(default_factory=list)

    def start(self) -> Command:
        overrides = (*CELLS, *LAUNCHERS[self.launcher])
        self.temporary.mkdir(exist_ok=True)
        environment = {**inherited(), "TMPDIR": str(self.temporary)}
        command = Command(self.place, overrides, None, self.place.notes(), environment)
        self.pids.append(command.pid)
        return command

    @property
    def temporary(self) -> Path:
        return self.place.folder / "temporary"

    def files(self) -> Files:
        """Return the names of what lies in each place that a study writes to, in ``/dev/shm`` those of its joblib."""
        commands = {path.name for path in self.place.folder.glob("command*")}
        ours = re.compile(rf"(sem\.loky-|joblib_memmapping_folder_)({'|'.join(map(str, self.pids))})[-_].*")
        return {
            "the outputs": names_below(self.place.outputs),
            "the folder of the records": names_in(self.place.folder) - commands,
            "the temporary folder": names_below(self.temporary),
            "shared memory": {name for name in names_in(SHARED_MEMORY) - self.earlier if ours.fullmatch(name)},
        }

    def done(self) -> int:
        """Return how many trials have a result."""
        return len(list(study_folder(self.place.outputs, STUDY).glob("*/seed*/result.json")))

    def phase(self, began: float) -> str:
        """Return the phase, read from the disk, of a command that started at ``began``; with workers, that of one."""
        if not is_newer(study_folder(self.place.outputs, STUDY) / "plan.json", began):
            return "planning"
        present = leases(self.place.outputs, STUDY)
        if not present:
            return "conclusion" if self.done() == NUMBER else "between trials"
        lease = present[0]
        trial = TrialFolder(self.place.outputs, STUDY, lease.cell, lease.seed)
        if trial.result_path.exists():
            return "closing the run"
        if any(is_newer(path, lease.began) for path in trial.snapshots.glob(".step*")):
            return "snapshot"
        return PHASE_OF_LEASE[lease.phase]


def is_newer(path: Path, moment: float) -> bool:
    """Return whether the file was written after ``moment``; file systems round times down."""
    try:
        return path.stat().st_mtime > moment - 0.01
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill the command repeatedly and print the result; exit with status 1 if a study differs."""
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--launcher", choices=LAUNCHERS, default="basic")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parse_arguments(parser, arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        tally = kill_often(Path(scratch), options.kills, options.launcher, random.Random(options.seed))
    print(f"{tally.kills} kills in {tally.studies} studies of {NUMBER} trials, {time.perf_counter() - start:.0f} s")
    for phase in PHASES:
        print(f"  {phase:16s} {tally.phases[phase]:4d}")
    print("files that are not those of an undisturbed study, after the kills:")
    for place, number in tally.leftovers.items():
        print(f"  {place:25s} {number / tally.kills:5.1f} on average")
    unharmed = "nothing lost, nothing twice, nothing left behind, every result equal to the undisturbed one"
    print("\n".join(tally.wrong) or unharmed)
    figures = {"phases": dict(tally.phases), "studies": tally.studies, "wrong": tally.wrong}
    write_figures(options.json, {**figures, "leftovers": dict(tally.leftovers)})
    sys.exit(1 if tally.wrong else 0)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def kill_often(scratch: Path, kills: int, launcher: str, draws: random.Random) -> Tally:
    """Kill commands ``kills`` times, and let the last study complete."""
    template = scratch / "template.db"
    client_of(f"sqlite:///{template}").search_experiments()
    places = (Workplace.apart(scratch / f"study{number}", template) for number in itertools.count())
    earlier = frozenset(names_in(SHARED_MEMORY))
    studies = (Study(place, launcher, earlier) for place in places)
    tally = Tally()
    # The first study fills caches, such as that of compiled Python.
    undisturbed(next(studies))
    model = next(studies)
    expected, life = undisturbed(model)
    # The sizes of pictures are cached only once the pictures have not changed for a while.
    undisturbed(model)
    expected_files = model.files()
    print(f"an undisturbed command takes {life:.1f} s for {len(expected)} trials", flush=True)
    while tally.kills < kills:
        study = next(studies)
        status = None
        while status is None:
            left = (1 + NUMBER - study.done()) / (1 + NUMBER)
            wait = draw(draws, tally.kills, left * life) if tally.kills < kills else to_the_end
            status = run_and_kill(study, wait, tally)
            if status is None:
                tally.leftovers.update({place: len(names) for place, names in leftovers(study, expected_files).items()})
        tally.studies += 1
        print(f"study {tally.studies}: complete after {tally.kills} kills in all", flush=True)
        try:
            assert status == 0, f"the last command ended with status {status}"
            check_nothing_lost(study.place, expected)
            behind = {place: sorted(names) for place, names in leftovers(study, expected_files).items() if names}
            assert not behind, f"left behind: {behind}"
        except AssertionError:
            tally.wrong.append(f"study {tally.studies} in {study.place.folder}:\n{traceback.format_exc()}")
        else:
            shutil.rmtree(study.place.folder)
    return tally


def leftovers(study: Study, expected: Files) -> Files:
    """Return what lies in each place and is not ``expected``."""
    return {place: names - expected[place] for place, names in study.files().items()}


def run_and_kill(study: Study, wait: Wait, tally: Tally) -> int | None:
    """Start the command, kill it when ``wait`` returns and count its phase; the status if it had ended before."""
    began, command = time.time(), study.start()
    wait(study, command)
    if command.returncode is None:
        command.send(signal.SIGSTOP)
        phase = study.phase(began)
        command.send(signal.SIGKILL)
        if command.wait() == -signal.SIGKILL:
            tally.phases[phase] += 1
            return None
    return command.returncode


def undisturbed(study: Study) -> tuple[Endings, float]:
    """Return the results of the trials without a kill, and the duration of the command in seconds."""
    start, command = time.perf_counter(), study.start()
    outcome = command.end()
    if outcome.status:
        sys.exit(f"the study failed:\n{outcome.text}")
    return endings(study.place), time.perf_counter() - start


def to_the_end(study: Study, command: Command) -> None:
    command.join()


def draw(draws: random.Random, number: int, left: float) -> Wait:
    """Return a function that waits for the next kill: by turns a time within ``left`` seconds and a time in a phase."""
    if number % 2 == 0:
        seconds = draws.uniform(0, left)
        return lambda study, command: command.join(seconds)
    phase = draws.choice(list(PHASES))
    occurrence, seconds = draws.randint(1, 1 if phase in ONCE else OCCURRENCES), draws.uniform(0, PHASES[phase])

    def wait(study: Study, command: Command) -> None:
        began, before, seen = time.time(), "", 0
        while command.returncode is None:
            now = study.phase(began)
            seen += now == phase != before
            if seen == occurrence:
                return command.join(seconds)
            before = now
            time.sleep(POLL_SECONDS)
        return None

    return wait


if __name__ == "__main__":
    main()
