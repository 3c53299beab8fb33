"""A tracking server that is away or hangs, and the set-up in ``compose.yaml``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.faults import BASIC, SNAPSHOT_ENDS, let_go, started
from tests.harness.servers import (
    IN_STEPS,
    MlflowServer,
    check_recorded,
    free_port,
    mlflow_server_on_a_file,
    synchronise,
    warnings,
)
from tests.harness.support import REPOSITORY, Workplace, wait_until

# --- a server that is away --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server on a file; a test that stops it starts it again."""
    with mlflow_server_on_a_file(migrated_database, tmp_path_factory.mktemp("server")) as started:
        yield started


def test_a_server_that_does_not_answer_is_refused_in_one_line_and_nothing_is_trained(tmp_path: Path) -> None:
    workplace = Workplace.make(tmp_path, f"http://127.0.0.1:{free_port()}")
    refusal = workplace.sweep("bn=pre,post").refusal
    assert refusal.startswith(f"run.py: tracking.uri={workplace.uri} cannot be used: ")
    assert workplace.trials() == []


@pytest.mark.slow
def test_a_server_that_hangs_delays_a_training_once_and_gets_everything_afterwards(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    workplace = Workplace.make(tmp_path, server.uri)
    study = "study.name=silent"
    folder = workplace.trial(*IN_STEPS, study).folder(workplace.outputs)
    with started(workplace, *IN_STEPS, study, *BASIC, halt=SNAPSHOT_ENDS) as command:
        halted = command.halted()
        server.pause()
        try:
            let_go(halted)
            wait_until(lambda: warnings(folder) > 0 or command.returncode is not None, "the warning")
        finally:
            server.resume()
        outcome = command.end()
    assert outcome.status == 0, outcome.text
    assert warnings(folder) == 1
    check_recorded(workplace, "silent", trials=1)


@pytest.mark.slow
def test_a_trial_that_starts_while_the_server_is_away_is_trained_and_logged_later(
    server: MlflowServer, tmp_path: Path
) -> None:
    workplace = Workplace.make(tmp_path, server.uri)
    study = "study.name=away"
    with started(workplace, "bn=pre,post", *IN_STEPS, study, *BASIC, halt=SNAPSHOT_ENDS) as command:
        halted = command.halted()
        server.stop()
        try:
            let_go(halted)
            outcome = command.end()
        finally:
            server.start()
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("wait on disk") == 2, outcome.text
    assert f"when it is available again: python -m ablations sync away --outputs {workplace.outputs}" in outcome.text

    assert synchronise(workplace, "away") == f"2 results and 0 trials without a result were logged to {workplace.uri}"
    check_recorded(workplace, "away", trials=2)


# --- the set-up that the documentation gives --------------------------------------------------------------------------

COMPOSE = REPOSITORY / "compose.yaml"
PAGE = REPOSITORY / "docs" / "tracking.md"
VARIABLE = re.compile(r"\$\{(\w+)([^}]*)\}")


def compose() -> dict[str, Any]:
    content = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def variables() -> list[tuple[str, str]]:
    """Each place where the file takes a variable from the environment, with what holds there when it is unset."""
    return VARIABLE.findall(COMPOSE.read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def test_the_services_are_a_database_and_a_server_that_waits_for_it() -> None:
    services = compose()["services"]
    assert set(services) == {"postgres", "mlflow"}
    assert services["mlflow"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert all(service["healthcheck"]["test"] for service in services.values())


def test_only_the_server_has_a_port_outside_sends_no_telemetry_and_runs_no_jobs() -> None:
    services = compose()["services"]
    assert "ports" not in services["postgres"]
    assert len(services["mlflow"]["ports"]) == 1
    off = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    assert off.items() <= services["mlflow"]["environment"].items()


def test_data_and_artifacts_lie_in_named_volumes() -> None:
    content = compose()
    mounted = [volume.split(":")[:2] for service in content["services"].values() for volume in service["volumes"]]
    assert sorted(name for name, _ in mounted) == sorted(content["volumes"])
    command = content["services"]["mlflow"]["command"]
    assert command[command.index("--artifacts-destination") + 1] in [place for _, place in mounted]
    assert int(command[command.index("--workers") + 1]) > 1


def test_the_password_comes_from_the_environment_and_is_required() -> None:
    unset = [text for name, text in variables() if name == "MLFLOW_DATABASE_PASSWORD"]
    assert len(unset) == 2
    assert all(text.startswith(":?") and "MLFLOW_DATABASE_PASSWORD" in text for text in unset)
    secrets = [
        str(value)
        for service in compose()["services"].values()
        for name, value in service["environment"].items()
        if "PASSWORD" in name
    ]
    assert len(secrets) == 2
    assert all(VARIABLE.fullmatch(secret) for secret in secrets)


def test_the_server_runs_the_versions_of_the_constraints() -> None:
    recipe = compose()["services"]["mlflow"]["build"]["dockerfile_inline"]
    (command,) = [line for line in recipe.splitlines() if "pip install" in line]
    packages = command.partition("--constraint constraints.txt ")[2].split()
    assert packages == ["mlflow", "psycopg2-binary"]
    assert set(packages) <= set(pins())


def test_the_page_names_every_service_volume_and_variable_of_the_file() -> None:
    page, content = PAGE.read_text(encoding="utf-8"), compose()
    for name in (*content["services"], *content["volumes"], *(name for name, _ in variables())):
        assert f"`{name}`" in page


def test_the_page_lists_exactly_the_variables_of_the_file() -> None:
    (table,) = re.findall(r"^\| variable .*?\n\n", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    named = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert sorted(named) == sorted({name for name, _ in variables()})
