"""Fixtures that more than one test file needs, what is skipped where, and in which order files are given out."""

import gc
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from ablations.tracking.client import client_of
from tests.harness.paths import REPOSITORY
from tests.harness.support import Workplace

# Side by side, workers that each take every core wait for one another at every operation; tests are small, one does.
torch.set_num_threads(1)

# A shell that puts the tests in the background lets them ignore the keyboard, which some of them listen to.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Among a million objects that stay, looking for garbage as often as Python does takes a fifteenth of the time.
gc.set_threshold(100_000, 50, 100)

SHARED = REPOSITORY.parent / "shared"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none, and give out files with the most slow tests first.

    A file goes to one worker as a whole. With the quick ones last, no worker waits long for another in the end.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


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
