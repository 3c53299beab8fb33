"""Fixtures that more than one test file needs."""

import shutil
from pathlib import Path

import pytest
import torch
from support import Workplace

from ablations.store import client_of

# Side by side, workers that each take every core wait for one another at every operation; tests are small, one does.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its schema and nothing in it; making one takes seconds, so tests copy this one."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    client_of(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(migrated_database: Path, tmp_path: Path) -> str:
    """A tracking store of the test's own."""
    path = tmp_path / "mlflow.db"
    shutil.copyfile(migrated_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def workplace(tracking_uri: str, tmp_path: Path) -> Workplace:
    """Small photographs and a tracking store, to run the whole command on."""
    return Workplace.make(tmp_path, tracking_uri)
