"""Log a trial to its MLflow run: when it starts, while it trains and at its end."""

import contextlib
import dataclasses
import functools
import json
import logging
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.space.collapse import evidence_of_collapse
from ablations.space.factors import level_text
from ablations.space.settings import flatten
from ablations.storage.attempts import PROCESS_DIED
from ablations.storage.folder import CurvePoint, TrialFolder, metrics_in, steps_of
from ablations.storage.leftovers import cache_folder
from ablations.tracking.client import NAME, client_of, search_runs
from ablations.tracking.notes import (
    LONGEST_DIGEST,
    DataSet,
    config_in,
    data_in_words,
    data_sets_of,
    description_of,
    means_of,
    note_tags,
)
from bbcu.errors import first_line
from bbcu.files import temporary_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

log = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000
"""The largest number of metrics that MLflow accepts in one ``log_batch``."""

PATIENCE_SECONDS = 60.0
PATIENCE_SHARE = 0.05
"""The longest time that a trial waits for MLflow in total: seconds, or a share of the trial's time if that is more."""

TAG_LENGTH = 5000
"""The largest number of characters in a tag of MLflow."""

MODEL = "model"
"""The folder of a trial's model among the files of its run, on a server that keeps no models."""


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What is logged when a trial starts: its identity, the name of its cell, params, tags and data sets."""

    study: str
    cell: str
    seed: int
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    data_sets: tuple[DataSet, ...] = ()


def end_run(
    client: "MlflowClient",
    run_id: str,
    state: str,
    reason: str = "",
    ended: float | None = None,
    more: Mapping[str, str] | None = None,
) -> None:
    """Close a run with the trial's state, the reason and ``more`` tags; ``ended`` is in seconds since the epoch.

    Without ``ended`` it ends now.
    """
    from mlflow.entities import RunTag

    status = {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
    tags = {**(more or {}), "state": state, **({"reason": reason[:TAG_LENGTH]} if reason else {})}
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
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
        self._model = ""
        self._model_id: str | None = None
        self._tags = {
            **self._facts.tags,
            **{"study": facts.study, "cell": facts.cell, "seed": str(facts.seed), NAME: facts.name},
            **({"data": data_in_words(facts.data_sets)} if facts.data_sets else {}),
        }
        self.seconds = 0.0
        self._call(self._start)
        if facts.data_sets:
            self._call(lambda: self._optional(self._log_data_sets))

    @property
    def recorded(self) -> bool:
        """Whether MLflow has accepted everything so far."""
        return not self._is_unavailable

    def log_curve(self, points: Sequence[CurvePoint]) -> None:
        """Log every metric of ``points``, and the mean PSNR over the test sets, in as few calls as MLflow allows."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * point.time), point.step, model_id=self._model_id)
            for point in (*points, *means_of(points))
            for name, value in point.metrics.items()
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            batch = metrics[start : start + METRICS_PER_BATCH]
            self._call(functools.partial(self._log_metrics, batch))

    def finish(self, folder: TrialFolder, result: Mapping[str, Any], ended: float | None = None) -> None:
        """Log the metrics of a result after its last step, the folder's files and the model, and close the run.

        The model is logged if the trial's config asks for it. ``ended`` is in seconds since the epoch, by default now.
        """
        if wants_model(folder):
            # Before the metrics, which MLflow then shows of the model too.
            self._call(lambda: self._log_model(folder, steps_of(result)))
        self.log_curve([CurvePoint(steps_of(result), final_metrics(result))])
        self._call(lambda: self._log_files(folder))
        evidence = evidence_of_collapse(result)
        more = {"collapsed": level_text(bool(evidence)), **({"collapsed_by": evidence} if evidence else {})}
        if self._model:
            more["model"] = self._model
        self._call(self._supersede_others)
        self._end("finished", "", ended, more)

    def close_without_result(self, folder: TrialFolder, state: str, reason: str, ended: float | None = None) -> None:
        """Close the run of a trial without a result with its state (failed, interrupted or pruned) and the reason."""
        self._call(lambda: self._log_files(folder))
        self._end(state, reason, ended, {})

    def _end(self, state: str, reason: str, ended: float | None, more: Mapping[str, str]) -> None:
        """Close the run and describe how it ended."""
        before = self._tags
        self._tags = {**before, **more, "state": state, "reason": reason}
        note = note_tags(before, description_of(self._facts.params, self._tags))
        self._call(lambda: end_run(self._client, self._run_id, state, reason, ended, {**more, **note}))

    def _start(self) -> None:
        from mlflow.entities import Param, RunTag

        self._client = client_of(self._uri)
        self._end_abandoned()
        self._tags |= note_tags({}, description_of(self._facts.params, self._tags))
        name = f"{self._facts.name} seed {self._facts.seed}"
        run = self._client.create_run(self._experiment, self._began, self._tags, name)
        self._run_id = run.info.run_id
        params = [Param(name, value) for name, value in self._facts.params.items()]
        self._client.log_batch(self._run_id, params=params, tags=[RunTag("state", "running")])

    def _log_data_sets(self) -> None:
        """List the data sets of the trial, each with the fingerprint of all of them, which is the one that is known."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        digest = self._facts.params["data"]
        inputs = [
            DatasetInput(
                Dataset(each.name, digest[:LONGEST_DIGEST], "local", json.dumps({"uri": each.place})),
                [InputTag("mlflow.data.context", each.context)],
            )
            for each in self._facts.data_sets
        ]
        try:
            self._client.log_inputs(self._run_id, inputs)
        except MlflowException as error:
            if is_missing_feature(error):
                raise
            # Trials that start together list the same data, and MLflow looks for them before it adds them: all but one
            # of these trials fail, and find them the second time.
            self._client.log_inputs(self._run_id, inputs)

    def _log_model(self, folder: TrialFolder, step: int) -> None:
        """Log the network after ``step`` as a model of MLflow.

        A network that cannot be rebuilt, as one with a factor of the user's own, is named in a warning. A server
        without models gets the model among the files of the run.
        """
        from ablations.tracking.model import save_model

        with temporary_folder(cache_folder(folder.outputs) / "models") as place:
            try:
                save_model(folder, place / MODEL)
            # Any part of a user's network may raise anything; the trial has its result.
            except Exception as error:
                log.warning("the model of %s is not in MLflow: %s", folder.shortened(folder.path), first_line(error))
                return
            if not self._optional(lambda: self._log_model_of_run(place / MODEL, step)):
                self._client.log_artifacts(self._run_id, str(place / MODEL), MODEL)
                self._model = f"runs:/{self._run_id}/{MODEL}"

    def _log_model_of_run(self, saved: Path, step: int) -> None:
        """Log a saved model to the models of the experiment."""
        from mlflow.entities import LoggedModelOutput

        # MLflow forbids some characters in the name of a model.
        name = re.sub(r"[/:.%\"']", "_", f"{self._facts.name} seed {self._facts.seed}")
        model = self._client.create_logged_model(self._experiment, name, self._run_id, params=dict(self._facts.params))
        self._client.log_model_artifacts(model.model_id, str(saved))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step)])
        self._model, self._model_id = f"models:/{model.model_id}", model.model_id

    @staticmethod
    def _optional(action: Callable[[], object]) -> bool:
        """Do what an older server cannot do; return whether it could."""
        from mlflow.exceptions import MlflowException

        try:
            action()
        except MlflowException as error:
            if not is_missing_feature(error):
                raise
            log.debug("this server of MLflow lacks a feature: %s", first_line(error))
            return False
        return True

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


def is_missing_feature(error: "MlflowException") -> bool:
    """Whether a server of MLflow is too old for what was asked of it."""
    return error.error_code in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a result as MLflow names them: ``Set5/psnr_db``, ``cost/ops_g``, ``timing/train_s``, ..."""
    metrics: dict[str, float] = {}
    for prefix, group in (("", "metrics"), ("baseline/", "baseline")):
        for name, scores in result[group].items():
            metrics |= {f"{prefix}{name}/{metric}": value for metric, value in metrics_in(scores).items()}
    for group in ("cost", "timing"):
        metrics |= {f"{group}/{name}": value for name, value in result[group].items()}
    return metrics


def wants_model(folder: TrialFolder) -> bool:
    """Whether the config of a trial asks for its model in MLflow, and it has one: a baseline trains nothing."""
    tracking = config_in(folder).get("tracking")
    return isinstance(tracking, dict) and tracking.get("model") == "true" and folder.checkpoint_path.exists()


def facts_of(
    result: Mapping[str, Any], folder: TrialFolder | None = None, data: Mapping[str, Any] | None = None
) -> RunFacts:
    """Return the facts to log, from a trial's result or from what is known before it starts.

    ``data`` is that key of its config, by default of the one in its folder.
    """
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
        **({} if folder is None else {"folder": location_of(folder), **source_tags(folder, provenance["git"])}),
    }
    params = {**factors, **setting, "seed": str(result["seed"])}
    if data is None and folder is not None:
        data = config_in(folder).get("data")
    sets = data_sets_of(data, trains="train" in result["setting"])
    return RunFacts(result["study"], result["cell"], result["seed"], result["name"], params, tags, sets)


def source_tags(folder: TrialFolder, commit: str) -> dict[str, str]:
    """Return the tags in which MLflow keeps the source of a run, and the user who owns its folder."""
    tags = {"mlflow.source.name": "run.py", "mlflow.source.type": "LOCAL"}
    if commit != "unknown":
        tags["mlflow.source.git.commit"] = commit
    # In a container the owner may have no name.
    with contextlib.suppress(KeyError, OSError):
        tags["mlflow.user"] = folder.path.owner()
    return tags
