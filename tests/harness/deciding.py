"""Sweeps with a stopping rule whose trainings are made up: each trial scores what its cell is worth, and noise."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from ablations.config import Config, DataConfig
from ablations.planning.plan import Plan, PlannedTrial, plan_record
from ablations.space.cells import Cell
from ablations.space.factors import REFERENCE
from ablations.space.family import cells_of_plan, family
from ablations.space.stopping_rule import StoppingRule
from ablations.storage.attempts import State, begin_attempt, end_attempt
from ablations.storage.folder import Identity
from ablations.storage.plans import write_plan
from ablations.sweep.decide_loop import DecideLoop
from ablations.sweep.launchers import Workers
from ablations.sweep.rounds import Rounds, TrialOutcome
from ablations.trial.execution import TrialFailed
from ablations.trial.identity import Trial
from ablations.trial.provenance import code_fingerprint

STUDY = "madeup"
BASELINE_DB = 30.0
COLLAPSED_DB = 29.0
NOISE_DB = 0.015

LOOKS = (3, 4, 5, 6, 8)

Score = Callable[[str, int], float | None]
"""Returns the PSNR of a surrogate under a seed; None for a trial that fails."""

WORTH: Mapping[str, float] = {"quadratic": 35.0, "clip": 33.0, "identity": 35.08, "ede": 35.0}
"""What the levels of the surrogate are worth: one difference shows at once, one later, and one is none."""


def drawn_score(surrogate: str, seed: int) -> float:
    """What a surrogate is worth in dB, and noise, the same for the same seed."""
    draw = np.random.default_rng([seed, list(WORTH).index(surrogate)])
    return round(WORTH[surrogate] + NOISE_DB * float(draw.standard_normal()), 6)


def planned(outputs: Path, surrogate: str, seed: int, **config: Any) -> PlannedTrial:
    """A trial of a tiny super-resolution network with this surrogate."""
    levels = {**REFERENCE, "surrogate": surrogate}
    network = {"name": "srresnet", "unit": "binary", "initial": "torch", "accumulate": False, "standardise": False}
    setting = {"task": {"name": "sr_x2"}, "network": network, "channels": 8, "blocks": 1, "data": "f" * 64}
    trial = Trial(STUDY, "bbcu" if surrogate == "quadratic" else "custom", Cell(levels, setting, levels), seed)
    own = Config(outputs=str(outputs), data=DataConfig(name="embedded"), **{"on_change": "stop", **config})
    return PlannedTrial(trial, trial.identity, (surrogate, str(seed)), own, None)


def made_up_plan(outputs: Path, looks: Sequence[int] = LOOKS, first_seed: int = 0, **config: Any) -> Plan:
    """The plan of a sweep that compares each surrogate with the first."""
    design = {"name": "one_at_a_time", "options": {}, "exclude": [], "notes": []}
    first = [planned(outputs, surrogate, first_seed, **config) for surrogate in WORTH]
    families = tuple(map(family, cells_of_plan([entry.trial.facts() for entry in first], design)))
    rule = StoppingRule(tuple(looks), first_seed, 0.05, families)
    trials = [planned(outputs, name, seed, **config) for seed in rule.seeds(rule.last_look) for name in WORTH]
    return Plan(STUDY, False, design, rule, trials)


def result_of(entry: PlannedTrial, psnr_db: float, code: str | None = None) -> dict[str, Any]:
    """A whole result with this score."""
    return {
        **entry.trial.facts(),
        "metrics": {"Tiny": {"psnr_db": psnr_db, "ssim": 0.9}},
        "baseline": {"Tiny": {"psnr_db": BASELINE_DB, "ssim": 0.8}},
        "cost": {"ops_g": 1.0, "params_k": 1.0},
        "timing": {"train_s": 1.0},
        "probes": {},
        "provenance": {"git": "0" * 40, "dirty": False, "code": code or code_fingerprint()},
    }


def leave_result(entry: PlannedTrial, psnr_db: float, code: str | None = None) -> None:
    """Leave the result of a trial that has this score."""
    entry.folder.path.mkdir(parents=True, exist_ok=True)
    entry.folder.write_result(result_of(entry, psnr_db, code))


class Killed(BaseException):
    """Stands for the end of the process: nothing is recorded, and nobody handles it."""


class Trainer(Launcher):
    """Trains by making up scores; ``trained`` has the trials that it was given, and ``lives`` how many it ends."""

    def __init__(self, plan: Plan, score: Score, lives: float = float("inf")) -> None:
        self._entries = {entry.overrides: entry for entry in plan.trials}
        self._score, self._lives = score, lives
        self.trained: list[tuple[str, int]] = []

    def setup(self, **_: Any) -> None:
        """Do nothing."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        return [self._trained(surrogate, seed) for surrogate, seed in job_overrides]

    def _trained(self, surrogate: str, seed: str) -> JobReturn:
        entry, psnr_db = self._entries[surrogate, seed], self._score(surrogate, int(seed))
        if self._lives <= 0:
            raise Killed
        self._lives -= 1
        self.trained.append((surrogate, int(seed)))
        done = JobReturn(status=JobStatus.COMPLETED)
        if psnr_db is None:
            entry.folder.path.mkdir(parents=True, exist_ok=True)
            begin_attempt(entry.folder)
            end_attempt(entry.folder, State.FAILED, "diverged")
            done.status, done.return_value = JobStatus.FAILED, TrialFailed("diverged")
        elif entry.folder.result() is None or entry.config.on_change == "retrain":
            leave_result(entry, psnr_db)
        return done


@dataclasses.dataclass
class MadeUpSweep:
    """One run of the command over a plan, from what is on disk to the end or to its death after ``lives`` trials."""

    plan: Plan
    score: Score = drawn_score
    lives: float = float("inf")
    on_new: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.outputs = Path(self.plan.trials[0].config.outputs)
        self.trainer = Trainer(self.plan, self.score, self.lives)

    def run(self) -> dict[Identity, TrialOutcome]:
        """Run it; a sweep that was killed has no outcomes."""
        self.loop = DecideLoop(self.plan)
        write_plan(self.outputs, STUDY, plan_record(self.loop.plan))
        rounds = Rounds(Workers(self.trainer, 1, ()), self.outputs, STUDY, retries=0, silence=600.0)
        try:
            return self.loop.run(rounds, lambda new: self.on_new())
        except Killed:
            return {}

    @property
    def trained(self) -> dict[str, list[int]]:
        """The seeds that this run has trained, by surrogate."""
        found: dict[str, list[int]] = {}
        for surrogate, seed in self.trainer.trained:
            found.setdefault(surrogate, []).append(seed)
        return found

    @property
    def conclusions(self) -> dict[str, str]:
        """What has become of each surrogate's comparison with the first."""
        names = {entry.identity[0]: entry.overrides[0] for entry in self.plan.trials}
        return {names[found.pair[1]]: found.conclusion("Tiny") for found in self.loop.decided().comparisons}
