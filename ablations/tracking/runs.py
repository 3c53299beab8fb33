"""Log a trial to its MLflow run: when it starts, while it trains and at its end."""

import dataclasses
import functools
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablations.space.factors import level_text
from ablations.space.settings import flatten
from ablations.storage.attempts import PROCESS_DIED
from ablations.storage.folder import CurvePoint, TrialFolder, metrics_in
from ablations.storage.leftovers import cache_folder
from ablations.tracking.client import client_of, search_runs
from bbcu.errors import first_line
from bbcu.files import temporary_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000
"""The largest number of metrics that MLflow accepts in one ``log_batch``."""

PATIENCE_SECONDS = 60.0
PATIENCE_SHARE = 0.05
"""The longest time that a trial waits for MLflow in total: seconds, or a share of the trial's time if that is more."""

TAG_LENGTH = 5000
"""The largest number of characters in a tag of MLflow."""


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What is logged when a trial starts: its identity, name, params and tags."""

    study: str
    cell: str
    seed: int
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


def end_run(client: "MlflowClient", run_id: str, state: str, reason: str = "", ended: float | None = None) -> None:
    """Close a run with the trial's state and the reason; ``ended`` is in seconds since the epoch, by default now."""
    status = {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
    if reason:
        client.set_tag(run_id, "reason", reason[:TAG_LENGTH])
    client.set_tag(run_id, "state", state)
    client.set_terminated(run_id, status, None if ended is None else int(1000 * ended))


def location_of(folder: TrialFolder) -> str:
    """Return the machine and the path of a trial's folder, as its run records them."""
    return f"{platform.node()}:{folder.path.resolve()}"


class TrialRun:
    """The MLflow run of one trial; ``seconds`` is the time that calls to MLflow have taken so far.

    A store that does not answer never stops a training: the first failing call is logged as a warning, later calls are
    skipped, and :func:`ablations.tracking.sync.synchronise` logs the records from the disk later. ``experiment`` is
    None if the store did not answer at the start. ``began`` is in seconds since the epoch, by default now.
    """

    def __init__(self, uri: str, experiment: str | None, facts: RunFacts, began: float | None = None) -> None:
        self._uri, self._experiment, self._facts = uri, experiment or "", facts
        self._began = None if began is None else int(1000 * began)
        self._is_unavailable = experiment is None
        self._created_at = time.monotonic()
        self._run_id = ""
        self.seconds = 0.0
        self._call(self._start)

    @property
    def recorded(self) -> bool:
        """Whether MLflow has accepted everything so far."""
        return not self._is_unavailable

    def log_curve(self, points: Sequence[CurvePoint]) -> None:
        """Log every metric of ``points``, in as few calls as MLflow allows."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * point.time), point.step)
            for point in points
            for name, value in point.metrics.items()
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            batch = metrics[start : start + METRICS_PER_BATCH]
            self._call(functools.partial(self._log_metrics, batch))

    def finish(self, folder: TrialFolder, metrics: Mapping[str, float], step: int, ended: float | None = None) -> None:
        """Log the final metrics at ``step`` and the folder's files, and close the run as FINISHED.

        ``ended`` is in seconds since the epoch, by default now.
        """
        self.log_curve([CurvePoint(step, metrics)])
        self._call(lambda: self._log_files(folder))
        self._call(self._supersede_others)
        self._call(lambda: end_run(self._client, self._run_id, "finished", ended=ended))

    def close_without_result(self, folder: TrialFolder, state: str, reason: str, ended: float | None = None) -> None:
        """Close the run of a trial without a result with its state (failed, interrupted or pruned) and the reason."""
        self._call(lambda: self._log_files(folder))
        self._call(lambda: end_run(self._client, self._run_id, state, reason, ended))

    def _start(self) -> None:
        from mlflow.entities import Param, RunTag

        self._client = client_of(self._uri)
        self._end_abandoned()
        tags = {**self._facts.tags, "study": self._facts.study, "cell": self._facts.cell, "seed": str(self._facts.seed)}
        run = self._client.create_run(self._experiment, self._began, tags, self._facts.name)
        self._run_id = run.info.run_id
        params = [Param(name, value) for name, value in self._facts.params.items()]
        self._client.log_batch(self._run_id, params=params, tags=[RunTag("state", "running")])

    def _end_abandoned(self) -> None:
        """Close the runs that a killed process left open; the caller has locked the trial, so they are not in use."""
        for run in search_runs(self._uri, self._experiment, f"{self._own_runs()} and attributes.status = 'RUNNING'"):
            end_run(self._client, run.info.run_id, "interrupted", PROCESS_DIED)

    def _supersede_others(self) -> None:
        """Mark other runs of this trial as interrupted, since only one may be finished.

        The result of an earlier finished run was lost from the disk; an open one comes from a call that was repeated
        because the server was slow.
        """
        for run in search_runs(self._uri, self._experiment, self._own_runs()):
            if run.info.run_id == self._run_id or run.info.status not in ("FINISHED", "RUNNING"):
                continue
            end_run(self._client, run.info.run_id, "interrupted", f"replaced by run {self._run_id}")

    def _own_runs(self) -> str:
        return f"tags.cell = '{self._facts.cell}' and tags.seed = '{self._facts.seed}'"

    def _log_metrics(self, metrics: Sequence["Metric"]) -> None:
        self._client.log_batch(self._run_id, metrics=metrics)

    def _log_files(self, folder: TrialFolder) -> None:
        # MLflow looks up the run at each call, so one call logs all files.
        with temporary_folder(cache_folder(folder.outputs) / "records") as copies:
            for path in (folder.config_path, folder.result_path, folder.curve_path, folder.state_path, folder.log_path):
                # Anything but a regular file, such as a pipe or a device, is none of a trial.
                if path.is_file():
                    shutil.copyfile(path, copies / path.name)
            if folder.samples.is_dir():
                shutil.copytree(folder.samples, copies / "samples")
            self._client.log_artifacts(self._run_id, str(copies))

    def _call(self, action: Callable[[], object]) -> None:
        if self._is_unavailable:
            return
        if self.seconds > max(PATIENCE_SECONDS, PATIENCE_SHARE * (time.monotonic() - self._created_at)):
            self._is_unavailable = True
            log.warning("MLflow at %s is too slow; the records wait on disk", self._uri)
            return
        start = time.perf_counter()
        try:
            action()
        except Exception as error:
            self._is_unavailable = True
            log.warning("MLflow at %s does not accept records (%s); they wait on disk", self._uri, first_line(error))
        finally:
            self.seconds += time.perf_counter() - start


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a result as MLflow names them: ``Set5/psnr_db``, ``cost/ops_g``, ``timing/train_s``, ..."""
    metrics: dict[str, float] = {}
    for prefix, group in (("", "metrics"), ("baseline/", "baseline")):
        for name, scores in result[group].items():
            metrics |= {f"{prefix}{name}/{metric}": value for metric, value in metrics_in(scores).items()}
    for group in ("cost", "timing"):
        metrics |= {f"{group}/{name}": value for name, value in result[group].items()}
    return metrics


def facts_of(result: Mapping[str, Any], folder: TrialFolder | None = None) -> RunFacts:
    """Return the facts to log, from a trial's result or from what is known before it starts."""
    setting = {name: str(value) for name, value in flatten(result["setting"]).items()}
    factors = {name: level_text(level) for name, level in result["factors"].items()}
    provenance = result["provenance"]
    tags = {
        "method": result["method"],
        "task": result["task"],
        "factors": json.dumps(list(result["factors"])),
        "levels": json.dumps(result["levels"]),
        "reference": json.dumps(result["reference"]),
        "git": provenance["git"],
        "git_dirty": level_text(provenance["dirty"]),
        "provenance": json.dumps(provenance),
        **({} if folder is None else {"folder": location_of(folder)}),
    }
    params = {**factors, **setting, "seed": str(result["seed"])}
    return RunFacts(result["study"], result["cell"], result["seed"], result["name"], params, tags)
