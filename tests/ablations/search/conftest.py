"""A storage of each kind, and processes that search in it."""

from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.ablations.search.searches import FORK, Start
from tests.harness.servers import PostgreSQL, postgresql


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "search.log")


@pytest.fixture(scope="package")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as running:
        yield running


@pytest.fixture(params=["journal", "sqlite"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of each kind that is a file."""
    return {"journal": str(tmp_path / "search.log"), "sqlite": f"sqlite:///{tmp_path}/search.db"}[request.param]


@pytest.fixture(params=["journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of each kind, for tests in which processes or threads meet."""
    if request.param == "postgresql":
        database: str = request.getfixturevalue("server").create()
        return database
    return {"journal": str(tmp_path / "search.log"), "sqlite": f"sqlite:///{tmp_path}/search.db"}[request.param]


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts a function in another process, with a connection to it; kills what still runs at the end."""
    processes = []

    def start(function: Callable[..., None], *arguments: object) -> tuple[BaseProcess, "Connection[Any, Any]"]:
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=function, args=(*arguments, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        return process, ours

    yield start
    for process in processes:
        process.kill()
        process.join()
