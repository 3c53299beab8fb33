"""Write into MLflow what a report says of a study and of its trials."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ablations.space.factors import level_text
from ablations.storage.folder import Identity
from ablations.tracking.client import DESCRIBED_BY, NAME, REPORT, identity_of
from ablations.tracking.notes import description_of, note_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def describe_study(client: "MlflowClient", experiment: str, text: str) -> None:
    """Give a study's experiment the opening of its report as its description, unless a user has edited it."""
    new = note_tags(client.get_experiment(experiment).tags, text)
    for name, value in {**new, DESCRIBED_BY: REPORT}.items() if new else ():
        client.set_experiment_tag(experiment, name, value)


def describe_runs(
    client: "MlflowClient",
    runs: Sequence["Run"],
    verdicts: Mapping[str, Sequence[str]],
    collapsed: Mapping[Identity, str],
) -> None:
    """Give each trial's run its description with the verdicts on its cell, in one call for each run that changes.

    A run of an earlier version, which has no seed in its name, gets one.
    """
    from mlflow.entities import RunTag

    for run in runs:
        identity, tags = identity_of(run), run.data.tags
        # A run of an earlier version may lack what a description is made of.
        if identity is None or not {"method", "task", "levels", "reference"} <= tags.keys():
            continue
        new = {}
        if NAME not in tags:
            new = {NAME: run.info.run_name, "mlflow.runName": f"{run.info.run_name} seed {identity[1]}"}
        if identity in collapsed and run.info.status == "FINISHED":
            evidence = collapsed[identity]
            new |= {"collapsed": level_text(bool(evidence)), **({"collapsed_by": evidence} if evidence else {})}
        told = verdicts.get(identity[0], ()) if run.info.status == "FINISHED" else ()
        # Tags that somebody has damaged: the run is reported without them, and keeps its description.
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            new |= note_tags(tags, description_of(run.data.params, {**tags, **new}, told))
        changed = [RunTag(name, value) for name, value in new.items() if tags.get(name) != value]
        if changed:
            client.log_batch(run.info.run_id, tags=changed)
