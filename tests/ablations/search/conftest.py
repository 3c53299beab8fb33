"""A storage of each kind, and processes that search in it."""

from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ablations.search.searches import SPAWN, Start

if TYPE_CHECKING:
    from tests.harness.servers import PostgreSQL


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "search.log")


@pytest.fixture(scope="package")
def server() -> Iterator["PostgreSQL"]:
    # Processes that are started import this file too, and what runs servers brings MLflow along.
    from tests.harness.servers import postgresql

    with postgresql() as running:
        yield running


@pytest.fixture(params=["journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of each kind, with nothing in it."""
    if request.param == "postgresql":
        database: str = request.getfixturevalue("server").create()
        return database
    return {"journal": str(tmp_path / "search.log"), "sqlite": f"sqlite:///{tmp_path}/search.db"}[request.param]


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts a function in a process of its own, with a wire to it; what is left of them is killed in the end."""
    processes = []

    def start(function: Callable[..., None], *arguments: object) -> tuple[BaseProcess, "Connection[Any, Any]"]:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=function, args=(*arguments, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        return process, ours

    yield start
    for process in processes:
        process.kill()
        process.join()
