"""The address of a study on a tracking server: only a server's, and nothing in it but an address."""

import pytest

from analysis.study.experiment import experiment_address, is_experiment, is_run_of, run_address

EXPERIMENT = "https://mlflow.example:5000/lab/#/experiments/7"

HOSTILE = (
    "javascript:alert(1)//x/#/experiments/7",
    "https://user:secret@mlflow.example/#/experiments/7",
    "https://user@mlflow.example/#/experiments/7",
    "https://mlflow.example/?token=secret#/experiments/7",
    "https://mlflow.example/#/experiments/7) ![x](http://evil.example/t.png",
    'https://mlflow.example/"onclick=alert(1)/#/experiments/7',
    "https://mlflow.example/<script>/#/experiments/7",
    "https://mlflow.example/#/experiments/7\n",
    "https://mlflow.example/#/experiments/\u0667",
    "https://mlflow.example/#/experiments/7/../..",
    "https://mlflow.\u202eexample/#/experiments/7",
    f"https://{'m' * 300}/#/experiments/7",
    "file:///etc/passwd#/experiments/7",
    "//evil.example/#/experiments/7",
    "data:text/html,/#/experiments/7",
    "",
)


@pytest.mark.parametrize("address", HOSTILE)
def test_nothing_else_is_an_address_of_an_experiment(address: str) -> None:
    assert not is_experiment(address)
    assert run_address(address, "0123456789abcdef") == ""
    assert not is_run_of(address, f"{address}/runs/0123456789abcdef")


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        pytest.param("http://127.0.0.1:5000", "http://127.0.0.1:5000/#/experiments/7", id="a server"),
        pytest.param("https://me:secret@mlflow.example:5000/lab/", EXPERIMENT, id="login and path"),
        pytest.param("https://mlflow.example:5000/lab?token=secret", EXPERIMENT, id="query"),
        pytest.param("sqlite:///mlflow.db", "", id="a database"),
        pytest.param("postgresql+psycopg2://me:secret@host/db", "", id="a database server"),
        pytest.param("databricks", "", id="a profile"),
        pytest.param("http://host:port", "", id="no port"),
        pytest.param("http://", "", id="no host"),
        pytest.param("http://[::1]:5000", "", id="brackets, which Markdown would read"),
    ],
)
def test_the_address_of_a_study_has_no_login(uri: str, wanted: str) -> None:
    assert experiment_address(uri, "7") == wanted


def test_only_the_runs_of_the_experiment_are_linked_to() -> None:
    assert run_address(EXPERIMENT, "0a1b") == f"{EXPERIMENT}/runs/0a1b"
    assert is_run_of(EXPERIMENT, f"{EXPERIMENT}/runs/0a1b")
    for other in ("https://evil.example/#/experiments/7/runs/0a1b", f"{EXPERIMENT}1/runs/0a1b", f"{EXPERIMENT}/runs/"):
        assert not is_run_of(EXPERIMENT, other)
    for run in ("", "../../x", "0a1b)", "0a 1b", "a" * 65):
        assert run_address(EXPERIMENT, run) == ""
