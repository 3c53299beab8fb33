"""Passwords are masked in addresses, and in any text once an address is known."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bbcu import passwords
from bbcu.errors import BbcuError, first_line
from bbcu.passwords import has_password, masked, remember


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_remembered", set())
    for name in passwords.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql+psycopg2://user:hidden@host/db", "postgresql+psycopg2://user:***@host/db"),
        ("https://user:p@ss/w:rd#?@[::1]:5000/x", "https://user:***@[::1]:5000/x"),
        ("https://me@lab.org:hidden@host", "https://me@lab.org:***@host"),
        ("postgresql://user:two words@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user@host/db?password=hidden&sslmode=on", "postgresql://user@host/db?password=***&sslmode=on"),
        ("postgresql://host/db?sslmode=on&sslpassword=a%40b", "postgresql://host/db?sslmode=on&sslpassword=***"),
        ("https://host/?p%61ssword=hidden", "https://host/?p%61ssword=***"),
        ("https://host:5000/?token=a@b", "https://host:***"),
        ("see http://u:hidden@host/x and http://other:5000", "see http://u:***@host/x and http://other:5000"),
    ],
)
def test_a_password_in_an_address_is_masked(address: str, shown: str) -> None:
    assert masked(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:///mlflow.db",
        "sqlite:////data/a:b@c/mlflow.db",
        "http://127.0.0.1:5000",
        "http://[::1]:5000",
        "postgresql+psycopg2://user@host/db",
        "postgresql+psycopg2://user:${oc.env:SECRET}@host/db",
        "file:///tmp/a:b@c",
        "outputs/study/search.log",
    ],
)
def test_an_address_without_a_password_stays_as_it_is(address: str) -> None:
    assert masked(address) == address
    assert not has_password(address)


def test_a_remembered_password_is_masked_in_every_form() -> None:
    remember("https://me:hidden%40word@host")
    login = base64.b64encode(b"me:hidden@word").decode()
    text = f"hidden%40word, hidden@word, Basic {login}"
    assert masked(text) == "***, ***, Basic ***"


def test_a_password_of_the_environment_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    assert masked(f"hidden {base64.b64encode(b'me:hidden').decode()}") == "*** ***"


def test_an_error_holds_no_password_even_when_it_is_pickled() -> None:
    error = BbcuError("tracking.uri=https://me:hidden@host cannot be used")
    assert error.args == ("tracking.uri=https://me:***@host cannot be used",)
    assert first_line("https://me:hidden@host\nrefused") == "https://me:***@host"


def test_a_long_text_of_a_server_is_masked_at_once() -> None:
    """A text of a megabyte would take minutes if the search were quadratic."""
    for text in ("@" + "://a:" * 200_000, "://" + "?" * 500_000 + "@", "://a:" + "&token=" * 100_000):
        masked(text)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    TEXT.filter(lambda text: ":" not in text and not text.startswith("/")),
    TEXT.filter(lambda text: len(text) >= 4),
    TEXT,
    st.sampled_from(["postgresql+psycopg2", "https", "http"]),
)
@example("me", "a?token=b", "host", "https")
@example("me", "://x:", "host", "https")
@example("me", "&xy=", "[::1]:5000/x", "https")
def test_no_password_survives_in_an_address(user: str, password: str, host: str, scheme: str) -> None:
    passwords._remembered.clear()
    around = f"{scheme}://{user}:***@{host}, or ***, says a driver"
    assume(password not in around)
    for form in (password, quote(password, safe="")):
        assert password not in masked(f"{scheme}://{user}:{form}@{host}")
    address = f"{scheme}://{user}:{password}@{host}"
    remember(address)
    assert password not in masked(f"{address}, or {password}, says a driver")


@given(st.sampled_from(["password", "sslpassword", "token"]), TEXT.filter(lambda text: len(text) >= 4), TEXT)
def test_no_password_survives_in_a_query(name: str, password: str, database: str) -> None:
    form = quote(password, safe="")
    address = f"postgresql://user@host/{database}?sslmode=on&{name}={form}"
    assume(form not in f"postgresql://user@host/{database}?sslmode=on&{name}=***" and form != "***")
    assert form not in masked(address)
    passwords._remembered.clear()
    remember(address)
    assert password in "*** refused" or password not in masked(f"{password} refused")


@given(st.text(max_size=200))
@example("://")
@example("a://b:c@")
def test_any_text_can_be_masked_and_masking_again_changes_nothing(text: str) -> None:
    assert masked(masked(text)) == masked(text)
    remember(text)
