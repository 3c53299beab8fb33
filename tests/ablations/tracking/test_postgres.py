"""Tracking on a real PostgreSQL: MLflow holds each trial once and whole, even after an interruption."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.faults import BASIC, LATER_SNAPSHOT, let_go, started
from tests.harness.servers import (
    IN_STEPS,
    MlflowServer,
    PostgreSQL,
    check_recorded,
    mlflow_server,
    postgresql,
    synchronise,
    warnings,
)
from tests.harness.support import Workplace, ended

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

CELLS = "bn=pre,post"
SIDE_BY_SIDE = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture
def on_database(cluster: PostgreSQL, tmp_path: Path) -> Workplace:
    """A workplace that records in an empty database, without an MLflow server."""
    return Workplace.make(tmp_path, cluster.create())


@pytest.fixture(scope="module")
def server(cluster: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server on a database of its own."""
    with mlflow_server(cluster.create(), tmp_path_factory.mktemp("server")) as started:
        yield started


def test_workers_record_each_trial_once_and_whole_in_an_empty_database(on_database: Workplace) -> None:
    assert on_database.sweep(CELLS, *SIDE_BY_SIDE).status == 0
    check_recorded(on_database, trials=2)


def test_two_sweeps_at_once_lose_nothing_on_one_server(server: MlflowServer, tmp_path: Path) -> None:
    places = {study: Workplace.make(tmp_path / study, server.uri) for study in ("first", "second")}
    commands = {study: ["-m", *place.overrides(CELLS, f"study.name={study}")] for study, place in places.items()}
    with (
        ended(places["first"].start(*commands["first"])) as one,
        ended(places["second"].start(*commands["second"])) as other,
    ):
        messages = [process.communicate(timeout=600) for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), messages
    for study, place in places.items():
        check_recorded(place, study, trials=2)


def test_the_server_continues_after_its_database_was_restarted(
    cluster: PostgreSQL, server: MlflowServer, tmp_path: Path
) -> None:
    workplace = Workplace.make(tmp_path, server.uri)
    study = "study.name=restarted"
    assert workplace.sweep("bn=pre", study).status == 0
    cluster.stop()
    cluster.start()
    assert workplace.sweep("bn=pre,post", study).status == 0
    check_recorded(workplace, "restarted", trials=2)


def test_a_database_that_stops_during_a_training_causes_one_warning_and_loses_no_metric(
    cluster: PostgreSQL, on_database: Workplace
) -> None:
    last = on_database.folder_of("bn=post", *IN_STEPS)
    with started(on_database, "bn=pre,post", *IN_STEPS, *BASIC, halt=LATER_SNAPSHOT) as command:
        halted = command.halted()
        cluster.stop()
        try:
            let_go(halted)
            outcome = command.end()
        finally:
            cluster.start()
    assert outcome.status == 0, outcome.text
    assert warnings(last) == 1
    assert len(on_database.results()) == 2

    assert synchronise(on_database) == f"1 results and 0 trials without a result were logged to {on_database.uri}"
    check_recorded(on_database, trials=2)
