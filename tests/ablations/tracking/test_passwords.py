"""A password of a tracking server or of a search's database is used, and is in nothing that is stored or printed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from ablations.__main__ import main
from tests.harness.passwords import LOGIN, PASSWORD, USER, leaks, with_login
from tests.harness.servers import MlflowServer, free_port, mlflow_server_on_a_file, postgresql
from tests.harness.support import STUDY, Outcome, Workplace, call, with_launcher

STORED_BY_HYDRA = "hydra.output_subdir=.hydra"


@pytest.fixture(scope="module")
def server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server, which accepts any login."""
    with mlflow_server_on_a_file(migrated_database, tmp_path_factory.mktemp("server")) as started:
        yield started


@dataclasses.dataclass(frozen=True)
class Private:
    """A workplace whose tracking server needs a password, and the arguments that give it."""

    workplace: Workplace
    arguments: tuple[str, ...] = ()

    def command(self, *own: str) -> list[str]:
        study = f"study.name={self.workplace.folder.name.replace('_', '-')}"
        without = ["tracking.uri"] if self.arguments else []
        return [*self.arguments, *self.workplace.overrides(*own, study, without=without)]

    def run(self, *own: str) -> Outcome:
        return call(self.command(*own), self.workplace.folder)

    def sweep(self, *own: str) -> Outcome:
        return call(with_launcher(["-m", *self.command(*own)]), self.workplace.folder)


@pytest.fixture(params=["command line", "environment", "part of it", "config file", "variables of MLflow"])
def private(
    request: pytest.FixtureRequest, server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Private:
    """The password is given in each of the ways."""
    address = with_login(server.uri)
    if request.param == "environment":
        monkeypatch.setenv("LAB_TRACKING", address)
        address = "${oc.env:LAB_TRACKING}"
    elif request.param == "part of it":
        monkeypatch.setenv("LAB_PASSWORD", quote(PASSWORD, safe=""))
        address = address.replace(quote(PASSWORD, safe=""), "${oc.env:LAB_PASSWORD}")
    elif request.param == "variables of MLflow":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        address = server.uri
    workplace = Workplace.make(tmp_path / "work", address)
    if request.param != "config file":
        return Private(workplace)
    file = tmp_path / "conf" / "tracking" / "lab.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"defaults: [sqlite, _self_]\nuri: '{address}'\n", encoding="utf-8")
    return Private(workplace, (f"--config-dir={tmp_path / 'conf'}", "tracking=lab"))


def test_a_password_is_in_nothing_that_is_stored_or_printed_and_a_resume_works(
    private: Private, server: MlflowServer
) -> None:
    first, again = private.run(STORED_BY_HYDRA), private.sweep(STORED_BY_HYDRA, "bn=pre,none")
    assert (first.status, again.status) == (0, 0), first.text + again.text
    assert "already" in again.text
    assert list(private.workplace.folder.rglob(".hydra/overrides.yaml"))
    assert leaks(private.workplace.folder, first.text, again.text) == []
    assert leaks(server.folder) == []


def test_a_config_that_hydra_prints_has_no_password(tmp_path: Path) -> None:
    workplace = Workplace.make(tmp_path, f"http://{LOGIN}127.0.0.1:1")
    outcome = call([*workplace.overrides(), "--cfg=all"], tmp_path)
    assert f"uri: http://{USER}:***@127.0.0.1:1" in outcome.out
    assert leaks(tmp_path, outcome.text) == []


@pytest.mark.parametrize("variables", [False, True], ids=["address", "variables"])
def test_a_server_that_is_away_is_refused_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, variables: bool
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if variables:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    place = f"127.0.0.1:{free_port()}"
    workplace = Workplace.make(tmp_path, f"http://{place}" if variables else f"http://{LOGIN}{place}")
    outcome = workplace.sweep("bn=pre,post", STORED_BY_HYDRA)
    assert outcome.refusal.startswith("run.py: tracking.uri=http://")
    assert leaks(tmp_path, outcome.text) == []


def test_a_database_of_a_search_that_is_away_is_refused_without_its_password(workplace: Workplace) -> None:
    storage = f"postgresql+psycopg2://{LOGIN}127.0.0.1:{free_port()}/searches"
    search = ("hydra.sweeper.design=search", "hydra.sweeper.trials=2", f"hydra.sweeper.storage={storage}")
    outcome = workplace.sweep("bn=pre,post", STORED_BY_HYDRA, *search)
    assert f"hydra.sweeper.storage=postgresql+psycopg2://{USER}:***@127.0.0.1" in outcome.refusal
    assert leaks(workplace.folder, outcome.text) == []


def test_sync_does_not_print_the_password_of_a_server_that_is_away(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (workplace.outputs / STUDY).mkdir(parents=True)
    uri = f"http://{LOGIN}127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit) as left:
        main(["sync", STUDY, "--outputs", str(workplace.outputs), "--tracking-uri", uri])
    assert str(left.value.code).startswith(f"ablations: tracking.uri=http://{USER}:***@127.0.0.1")
    assert leaks(workplace.folder, str(left.value.code)) == []


@pytest.mark.postgres
@pytest.mark.slow
def test_a_search_in_postgresql_stores_no_password_and_resumes(tmp_path: Path) -> None:
    with postgresql() as cluster:
        tracking, storage = (with_login(cluster.create()).replace(USER, "mlflow") for _ in range(2))
        workplace = Workplace.make(tmp_path, tracking)
        search = ("hydra.sweeper.design=search", "hydra.sweeper.trials=2", f"hydra.sweeper.storage={storage}")
        first, again = (workplace.sweep("bn=pre,post", STORED_BY_HYDRA, *search) for _ in range(2))
        assert (first.status, again.status) == (0, 0), first.text + again.text
        assert len(workplace.trials()) == 2
        assert leaks(tmp_path, first.text, again.text) == []
        assert leaks(cluster.folder) == []
