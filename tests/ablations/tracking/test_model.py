"""A trial's network as a model that MLflow loads."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ablations.storage.folder import TrialFolder
from ablations.tracking.client import client_of, prepare_tracking
from ablations.tracking.model import EXAMPLE
from ablations.tracking.runs import wants_model
from ablations.tracking.sync import log_from_disk
from bbcu.deploy.sources import of_trial
from bbcu.training.evaluation import restore
from tests.ablations.storage.helpers import finished, result
from tests.harness.support import STUDY, Workplace


@pytest.fixture(scope="module")
def study(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A study of one trial whose model is logged."""
    place = new_workplace()
    assert place.run("tracking.model=true").status == 0
    return place


def address_in(place: Workplace) -> str:
    (run,) = place.runs("FINISHED")
    address: str = run.data.tags["model"]
    return address


def restored(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that MLflow loads the model of the one trial, and that it restores pictures as its network does."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    mlflow.set_tracking_uri(place.uri)
    model = mlflow.pyfunc.load_model(address_in(place))
    network = of_trial(place.folder_of().path).network
    pictures = np.random.default_rng(0).integers(0, 256, (2, EXAMPLE, EXAMPLE + 2, 3), dtype=np.uint8)
    expected = np.stack([restore(network, picture, torch.device("cpu")) for picture in pictures])
    assert np.array_equal(model.predict(pictures), expected)
    assert type(model.get_raw_model()) is type(network)
    identifier = address_in(place).removeprefix("models:/")
    scores = {each.key: each.value for each in client_of(place.uri).get_logged_model(identifier).metrics}
    (run,) = place.runs("FINISHED")
    assert scores["Tiny/psnr_db"] == run.data.metrics["Tiny/psnr_db"]


def test_a_model_that_was_asked_for_is_loaded_by_mlflow(study: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(study, monkeypatch)


def test_it_is_logged_later_too(
    study: Workplace, migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "empty.db"
    shutil.copyfile(migrated_database, path)
    later = Workplace(study.folder, f"sqlite:///{path}")
    assert log_from_disk(study.folder_of(), later.uri, prepare_tracking(later.uri, STUDY))
    restored(later, monkeypatch)


def test_no_model_is_logged_unless_it_is_asked_for(tmp_path: Path) -> None:
    folder: TrialFolder = finished(tmp_path)
    folder.checkpoint_path.write_bytes(b"")
    assert not wants_model(folder)
    folder.config_path.write_text("tracking: {model: false}")
    assert not wants_model(folder)
    folder.config_path.write_text("tracking: {model: true}")
    assert wants_model(folder)


def test_a_network_that_cannot_be_rebuilt_is_a_warning(
    tmp_path: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder: TrialFolder = finished(tmp_path)
    folder.checkpoint_path.write_bytes(b"")
    folder.config_path.write_text("tracking: {model: true}")
    folder.write_result(result())
    assert log_from_disk(folder, tracking_uri, prepare_tracking(tracking_uri, "tiny"))
    assert "the model of" in caplog.text
