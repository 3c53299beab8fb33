"""Synthetic studies whose truth is known, written as finished trials leave them and read back."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from matplotlib.image import imsave

from ablations.space.stopping_rule import StoppingRule
from ablations.storage.folder import CurvePoint, TrialFolder
from ablations.storage.plans import write_plan
from ablations.tracking.client import prepare_tracking
from ablations.tracking.runs import TrialRun, facts_of, final_metrics
from ablations.tracking.sync import synchronise
from analysis.study.loading import (
    StudyResults,
    factor_names,
    facts_row,
    left_out_cell,
    load,
    load_folder,
    prefixed,
    reference_levels,
    trial_frame,
)
from bbcu.model.methods import METHODS

# ---- a small study of two or three factors ---------------------------------------------------------------------------

REFERENCE = {"residual": True, "bn": "none", "align": "auto"}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial of a synthetic study: its levels as a user gives them, and its score on each test set, in dB.

    ``earlier`` are the scores at steps before the last, on every test set; without any, it was 0.5 dB less at half.
    """

    levels: Mapping[str, Any]
    seed: int
    psnr_db: Mapping[str, float]
    steps: int = 20
    ops_g: float = 2.0
    params_k: float = 40.0
    images: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    probes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: str = "bbcu"
    reference: Mapping[str, Any] = dataclasses.field(default_factory=lambda: REFERENCE)
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dead: bool | str | None = None
    baseline_db: float = 28.5
    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    earlier: Mapping[int, float] = dataclasses.field(default_factory=dict)

    @property
    def factors(self) -> dict[str, Any]:
        """The recorded levels: ``align=auto`` becomes the number that ``bn`` makes it, or the one in ``recorded``."""
        number = 130 if self.levels["bn"] == "none" else 1
        return {**self.levels, "align": number if self.levels["align"] == "auto" else self.levels["align"],
                **self.recorded}  # fmt: skip

    @property
    def setting(self) -> dict[str, Any]:
        return {
            "task": {"name": "sr_x2", "scale": 2},
            "network": {"name": "srresnet"},
            "channels": 8,
            "train": {"steps": self.steps, "lr": 0.001},
            "data": hashlib.sha256(b"photographs").hexdigest(),
            **self.others,
        }

    @property
    def cell(self) -> str:
        form = json.dumps([self.factors, self.setting], sort_keys=True)
        return hashlib.sha256(form.encode()).hexdigest()

    @property
    def name(self) -> str:
        return " ".join(f"{factor}={level}" for factor, level in self.factors.items()) + f" seed={self.seed}"


def trial(seed: int = 0, psnr_db: float = 30.0, steps: int = 20, **levels: Any) -> Trial:
    """A trial on Set5 alone, at the reference levels except those given."""
    return Trial({**REFERENCE, **levels}, seed, {"Set5": psnr_db}, steps)


PLACE = {"backend": "native", "twin": "onnxruntime", "size": "320 x 180", "cpu": "two fast cores"}
"""Where the trials of a synthetic study are measured."""


AnyTrial = TypeVar("AnyTrial", "Trial", "Ours")


def counted(each: AnyTrial, full_g: float, binary_g: float) -> AnyTrial:
    """The trial with its multiply-adds by kind, in 10^9."""
    ops_g = round(full_g + binary_g / 64, 3)
    cost = {"ops_g": ops_g, "full_macs_g": full_g, "binary_macs_g": binary_g}
    return dataclasses.replace(each, cost={**each.cost, **cost})


def timed(each: AnyTrial, ratio: float, twin_ms: float = 1000.0, **place: Any) -> AnyTrial:
    """The trial with its time over that of its twin, which took so long."""
    cost = {"latency_ratio": ratio, "latency_ms": ratio * twin_ms, "twin_ms": twin_ms, "packed_kb": 100.0}
    return dataclasses.replace(each, cost={**each.cost, **cost}, origin={**each.origin, "latency": {**PLACE, **place}})


def plan_of(trials: Iterable[Trial], left_out: Sequence[Mapping[str, Any]] = (), **others: Any) -> dict[str, Any]:
    """A plan of these trials; ``others`` are its keys beside the rows, such as ``pairing`` and ``design``."""
    rows = [
        {
            **{"cell": t.cell, "seed": t.seed, "name": t.name, "method": t.method},
            **{"factors": t.factors, "levels": t.levels, "reference": dict(t.reference), "setting": t.setting},
        }
        for t in trials
    ]
    return {**others, "trials": rows, "left_out": list(left_out)}


def result_of(trial: Trial) -> dict[str, Any]:
    return {
        "study": "components",
        "cell": trial.cell,
        "seed": trial.seed,
        "name": trial.name,
        "factors": trial.factors,
        "levels": dict(trial.levels),
        "reference": dict(trial.reference),
        "method": trial.method,
        "task": trial.setting["task"]["name"],
        "setting": trial.setting,
        "metrics": {
            name: {"psnr_db": psnr, "ssim": psnr / 40, **trial.scores, "images": images_of(trial, name)}
            for name, psnr in trial.psnr_db.items()
        },
        "baseline": {name: {"psnr_db": trial.baseline_db, "ssim": 0.8} for name in trial.psnr_db},
        "cost": {"ops_g": trial.ops_g, "params_k": trial.params_k, **trial.cost},
        "timing": {"train_s": 12.5 + trial.seed, "step_ms": 3.0, **trial.timing},
        "probes": dict(trial.probes),
        "dead": trial.dead,
        "provenance": {
            "git": "0123456789abcdef",
            "dirty": trial.seed == 2,
            "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
            "cpu": "two cores",
            "device": "cpu",
            "seed": trial.seed,
            **trial.origin,
        },
    }


def images_of(trial: Trial, test_set: str) -> dict[str, dict[str, float]]:
    return {name: {"psnr_db": psnr, "ssim": 0.9} for name, psnr in trial.images.get(test_set, {}).items()}


def curve_of(trial: Trial) -> list[CurvePoint]:
    noise = np.random.default_rng([trial.seed, trial.steps])
    points = [
        CurvePoint(step, {"train/loss": 0.2 / (1 + step) ** 0.4 * float(np.exp(noise.normal(0, 0.1)))}, time=0.0)
        for step in range(1, trial.steps + 1)
    ]
    for name, last in trial.psnr_db.items():
        course = {**(trial.earlier or {trial.steps // 2: last - 0.5}), trial.steps: last}
        points += [CurvePoint(step, {f"{name}/psnr_db": psnr}, time=0.0) for step, psnr in course.items()]
    return points


def write_samples(folder: Path, trial: Trial) -> None:
    """Crops of one test picture: a ring, and an output that is noisier for a lower PSNR."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    truth = np.stack([0.5 + 0.5 * np.sin(40 * (x**2 + y**2) * (1 + shift)) for shift in (0, 0.1, 0.2)], axis=-1)
    noise = np.random.default_rng(trial.seed).normal(0, 1, truth.shape)
    for test_set, psnr in trial.psnr_db.items():
        place = folder / test_set / "ring"
        place.mkdir(parents=True)
        output = truth + noise * 10 ** (-psnr / 20)
        pictures = {"input": truth[::2, ::2], "baseline": truth * 0.7 + 0.15, "output": output, "truth": truth}
        for kind, pixels in pictures.items():
            imsave(place / f"{kind}.png", np.clip(pixels, 0, 1))


def write_folder(
    outputs: Path,
    finished: Sequence[Trial],
    planned: Sequence[Trial] = (),
    left_out: Sequence[Mapping[str, Any]] = (),
    samples: bool = False,
    unplanned: Sequence[Trial] = (),
    **plan: Any,
) -> None:
    """Write the folder of a study as finished trials leave it; ``planned`` are those that were not run.

    ``unplanned`` have finished without a sweep, and ``plan`` has other keys of the plan.
    """
    write_plan(outputs, "components", plan_of([*finished, *planned], left_out, **plan))
    for each in (*finished, *unplanned):
        folder = TrialFolder(outputs, "components", each.cell, each.seed)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_curve(curve_of(each))
        if samples:
            write_samples(folder.samples, each)
        folder.write_result(result_of(each))


def read_back(outputs: Path, finished: Sequence[Trial], **others: Any) -> StudyResults:
    """Write the folder of a study and read it without MLflow."""
    write_folder(outputs, finished, **others)
    return load_folder(outputs / "components")


def no_file(name: str) -> None:
    """The path of a file of a trial that has none."""


def in_memory(finished: Sequence[Trial], unplanned: Sequence[Trial] = (), **others: Any) -> StudyResults:
    """The study as it is read back from its folder, without files: no curves, pictures or probes."""
    study = of_results(map(result_of, (*finished, *unplanned)), **others)
    planned = ["true"] * len(finished) + ["false"] * len(unplanned)
    return dataclasses.replace(study, trials=study.trials.assign(planned=planned))


def of_results(
    results: Iterable[Mapping[str, Any]],
    left_out: Sequence[Mapping[str, Any]] = (),
    pairing: bool = False,
    design: Mapping[str, Any] = MappingProxyType({}),
    rule: StoppingRule | None = None,
) -> StudyResults:
    """The study that these ``result.json`` are of, all of them planned."""
    rows = []
    for result in results:
        facts = facts_of(result)
        row = {**{name: result[name] for name in ("cell", "seed", "name")}, "state": "finished", "planned": "true"}
        rows.append({**row, **facts_row(facts.params, facts.tags), **prefixed("metric", final_metrics(dict(result)))})
    return StudyResults(
        study="components",
        trials=trial_frame(rows),
        left_out=tuple(map(left_out_cell, left_out)),
        factors=factor_names(rows),
        reference=reference_levels(rows),
        files={(row["cell"], row["seed"]): no_file for row in rows},
        pairing=pairing,
        design=design,
        data_names={},
        rule=rule,
    )


def write_study(tracking_uri: str, outputs: Path, finished: Sequence[Trial], **others: Any) -> None:
    """Write the folder of a study and record it in MLflow."""
    write_folder(outputs, finished, **others)
    synchronise(outputs, "components", tracking_uri)


def start(tracking_uri: str, outputs: Path, trial: Trial) -> tuple[TrialRun, TrialFolder]:
    """Open a trial's run as a training does."""
    experiment = prepare_tracking(tracking_uri, "components")
    run = TrialRun(tracking_uri, experiment, facts_of(result_of(trial)))
    return run, TrialFolder(outputs, "components", trial.cell, trial.seed)


def loaded(tracking_uri: str, outputs: Path, finished: Sequence[Trial], **others: Any) -> StudyResults:
    """Write a study, record it in MLflow and read it back."""
    write_study(tracking_uri, outputs, finished, **others)
    return load(tracking_uri, "components", outputs)


# ---- a study of the components whose effects are known ---------------------------------------------------------------

FULL_REFERENCE = {"residual": True, "bn": "none", "align": "auto", "act": "inside", "binarize": ["body"]}

TRUTH = {"residual": 1.0, "alignment": 0.5, "bn": 0.3, "inside": 0.15}
"""The gain of each component, in dB; without a residual an alignment is worth half."""

NOISE_DB = 0.01

PICTURES = ("baby", "bird", "butterfly", "head", "woman")


def true_psnr(levels: dict[str, Any]) -> float:
    aligned = bool(levels["bn"] == "none" and levels["align"] != 1)
    psnr: float = 30.0 + TRUTH["residual"] * bool(levels["residual"]) + TRUTH["inside"] * (levels["act"] == "inside")
    psnr += TRUTH["bn"] * (levels["bn"] == "post")
    return psnr + TRUTH["alignment"] * aligned * (1.0 if levels["residual"] else 0.5)


def spread(deviation: float) -> dict[str, float]:
    return {"p1": -2.3 * deviation, "p25": -0.7 * deviation, "p50": 0.0, "p75": 0.7 * deviation, "p99": 2.3 * deviation,
            "std": deviation}  # fmt: skip


def probes_of(levels: dict[str, Any], seed: int, depth: int = 8) -> dict[str, Any]:
    """Probes as the paper describes them: losses fall with a residual, the gap closes with BN or alignment."""
    noise = np.random.default_rng([seed, 7])
    aligned = levels["bn"] == "none" and levels["align"] != 1
    branch = 3.0 if aligned else 1.0 if levels["bn"] == "post" else 15.0
    beside = 5.0 if aligned else 1.0
    units = {}
    for index in range(depth):
        jitter = float(noise.normal(1, 0.01))
        units[f"body.{index // 2}.body.{index % 2}"] = {
            "sign_loss": 0.62 * jitter,
            "entropy": 0.9,
            "window": (0.3 if aligned else 0.7) * jitter * 0.95**index,
            "zeros": 0.0,
            "output_loss": (0.3 if levels["residual"] else 0.8) * jitter * (1 + 0.02 * index),
            "residual": spread(beside * (1 + 0.1 * index)) if levels["residual"] else None,
            "branch": spread(branch * jitter),
            "input": spread(beside * (1 + 0.1 * index)),
            "branch_ratio": branch * jitter / (beside * (1 + 0.1 * index)),
            "flipped": 0.2,
        }
    return {"pictures": 3, "units": units}


def full_trial(seed: int, **levels: Any) -> Trial:
    """A trial of the true model at the reference levels except those given."""
    asked = {**FULL_REFERENCE, **levels}
    draw = np.random.default_rng([seed, sum(map(ord, repr(sorted(asked.items()))))])
    psnr = true_psnr(asked) + draw.normal(0, NOISE_DB)
    images = {name: psnr + 2.0 * (place - 2) + draw.normal(0, 0.05) for place, name in enumerate(PICTURES)}
    cost = {"ops_g": 2.0 + 0.3 * (asked["bn"] == "post"), "params_k": 40.0 + (asked["bn"] == "post")}
    return Trial(
        asked, seed, {"Set5": psnr}, images={"Set5": images}, probes=probes_of(asked, seed), reference=FULL_REFERENCE,
        **cost,
    )  # fmt: skip


def components_study(seeds: Iterable[int]) -> tuple[list[Trial], list[dict[str, Any]]]:
    """Residual, BN, alignment and activation crossed, and the cells left out as the same network as another."""
    finished, left_out = [], {}
    for seed, residual, bn, align, act in itertools.product(
        seeds, (True, False), ("none", "post"), ("auto", 1), ("inside", "after")
    ):
        levels = {**FULL_REFERENCE, "residual": residual, "bn": bn, "align": align, "act": act}
        same = levels | ({"align": "auto"} if bn == "post" else {}) | ({} if residual else {"act": "inside"})
        if same != levels:
            twin = full_trial(seed, **same)
            left_out[tuple(map(str, levels.values()))] = {
                **{"levels": levels, "setting": twin.setting, "same_as": twin.cell},
                "reason": "BatchNorm needs no alignment" if bn == "post" and align == 1 else "there is no add",
            }
        else:
            finished.append(full_trial(seed, **levels))
    return finished, list(left_out.values())


# ---- a study of published methods ------------------------------------------------------------------------------------

TASKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "sr_x2": ({"name": "sr_x2"}, ("Set5", "Set14")),
    "sr_x4": ({"name": "sr_x4"}, ("Set5",)),
    "denoise": ({"name": "denoise", "sigma": [15, 25], "train_sigma": [0, 75]}, ("CBSD68-sigma15", "CBSD68-sigma25")),
    "jpeg": ({"name": "jpeg", "quality": [10], "train_quality": [10, 10]}, ("Classic5",)),
}

BASELINES = {("sr_x2", "Set5"): 33.9752, ("sr_x2", "Set14"): 30.5549, ("sr_x4", "Set5"): 28.6331}


@dataclasses.dataclass(frozen=True)
class Ours:
    """One trial of ours: a method, its score on every test set in dB, and its differences from the paper's training.

    ``sets`` are its test sets, by default the usual ones of its task.
    """

    method: str
    psnr_db: float
    seed: int = 0
    task: str = "sr_x2"
    steps: int = 500
    levels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sets: tuple[str, ...] = ()
    cost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: str = "srresnet"

    def result(self) -> dict[str, Any]:
        known = METHODS.get(self.method, METHODS["bbcu"])
        levels = {**known.all_levels, **self.levels}
        task, usual = TASKS[self.task]
        sets = self.sets or usual
        setting = {
            "task": task,
            "network": {"name": self.network, "initial": "torch", "standardise": False, **known.network},
            "channels": known.channels or 64,
            "blocks": 16 if self.task.startswith("sr") else 9,
            "train": {"steps": self.steps, "batch": 16, "patch": 24, "lr": 0.001, "precision": "fp32"},
            "data": "d" * 64,
        }
        if self.method in ("bicubic", "identity"):
            setting = {"task": task, "network": {"name": "baseline"}, "data": "d" * 64}
        form = json.dumps([levels, setting], sort_keys=True)
        return {
            "study": "methods",
            "cell": hashlib.sha256(form.encode()).hexdigest(),
            "seed": self.seed,
            "name": f"method={self.method}",
            "factors": levels,
            "levels": levels,
            "reference": METHODS["bbcu"].all_levels,
            "method": self.method,
            "task": self.task,
            "setting": setting,
            "metrics": {name: {"psnr_db": self.psnr_db, "ssim": self.psnr_db / 40, "images": {}} for name in sets},
            "baseline": {name: {"psnr_db": BASELINES.get((self.task, name), 25.0), "ssim": 0.8} for name in sets},
            "cost": {"ops_g": 18.55, "params_k": 224.6, **self.cost},
            "timing": {"train_s": 1.0},
            "probes": {},
            "provenance": {"git": "0" * 40, "dirty": False, "packages": {"torch": "2.13.0"}, **self.origin},
        }


def methods_study(folder: Path, trials: Sequence[Ours]) -> StudyResults:
    for each in trials:
        result = each.result()
        place = TrialFolder(folder, "methods", result["cell"], result["seed"])
        place.path.mkdir(parents=True)
        place.write_result(result)
    return load_folder(folder / "methods")
