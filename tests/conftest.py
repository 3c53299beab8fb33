"""Fixtures that several test files need, what is skipped, and the order of the files."""

import gc
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from ablations.tracking.client import client_of
from bbcu.compiled import use_cache
from tests.harness.composing import compose_faster
from tests.harness.paths import REPOSITORY
from tests.harness.support import Workplace

# The browser, which is started only if a test asks for it.
pytest_plugins = ["tests.harness.browser"]

# Test processes that each use every core wait for one another at every operation.
torch.set_num_threads(1)

# The same cases in every run; BBCU_EXAMPLES=2000 looks further than the suite has time for.
hypothesis.settings.register_profile(
    "suite",
    derandomize="BBCU_EXAMPLES" not in os.environ,
    max_examples=int(os.environ.get("BBCU_EXAMPLES", 30)),
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("suite")

# A shell that runs the tests in the background lets them ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# With a million objects that stay, Python's own thresholds would cost a fifteenth of the time.
gc.set_threshold(100_000, 50, 100)

compose_faster()

use_cache(REPOSITORY / ".pytest_cache" / "compiled")

# Torch's compiler takes the processor's word for its vector instructions. Otherwise it compiles a program for each set
# of them whenever its cache is empty, which takes longer than the code of a test.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that need a CUDA device if there is none, and start with the files that take longest.

    Those are the files with the most slow tests, and then those with the most tests. Each file runs on one xdist
    worker. With the short ones last, no worker waits long for another.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        every = Counter(item.path for item in items)
        items.sort(key=lambda item: (-slow[item.path], -every[item.path], item.path))


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database with its schema. Making one takes seconds, so tests copy it."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    client_of(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(migrated_database: Path, tmp_path: Path) -> str:
    """A new tracking store."""
    path = tmp_path / "mlflow.db"
    shutil.copyfile(migrated_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def workplace(tracking_uri: str, tmp_path: Path) -> Workplace:
    """Small pictures and a tracking store, to run the whole command with."""
    return Workplace.make(tmp_path, tracking_uri)


@pytest.fixture(scope="session")
def new_workplace(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Callable[[], Workplace]:
    """Create a workplace, for fixtures that several tests share."""
    return lambda: Workplace.apart(tmp_path_factory.mktemp("workplace"), migrated_database)


@pytest.fixture(scope="session")
def dry_workplace(new_workplace: Callable[[], Workplace]) -> Workplace:
    """A workplace that many tests share, for commands that train and record nothing."""
    return new_workplace()
