"""Mask passwords in addresses and in any text that quotes them.

A password is part of an address, as in ``postgresql://user:PASSWORD@host/database?sslpassword=PASSWORD``, or in a
variable of the environment. An address is masked by its form. :func:`remember` makes the passwords of an address known
to this process, so that they are masked in other texts too, such as the messages of a driver.
"""

import base64
import functools
import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"

SHORTEST = 4
"""The fewest characters of a password that is masked outside an address; a shorter one may be part of any word."""

VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
"""The variables of the environment that hold a password."""

_QUERY_IN_TEXT = re.compile(r"[?&](?P<name>[^=&?\s]*)=(?P<value>[^&\s]+)")
_QUERY_ALONE = re.compile(r"[?&](?P<name>[^=&?]*)=(?P<value>[^&]+)")
_ADDRESS = re.compile(r"\s*[\w+.-]+://")
_SECRET_NAME = re.compile(r"password|passwd|pwd|token|secret|credential|signature|api_?key", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{oc\.env:\w+\}")

_remembered: set[str] = set()


def masked(text: str) -> str:
    """Return a text with ``***`` for each password: in addresses, and those that this process knows.

    A password that is a reference to the environment, ``${oc.env:NAME}``, stays.
    """
    result, end = "", 0
    for start, stop in sorted(place.span for place in _places(text)):
        if start >= end:
            result += text[end:start] + MASK
        end = max(end, stop)
    result += text[end:]
    for secret in _known():
        result = result.replace(secret, MASK)
    return result


def has_password(address: str) -> bool:
    """Return whether an address contains a password."""
    return next(_places(address), None) is not None


def remember(address: str) -> None:
    """Make the passwords of an address known, so that :func:`masked` finds them in any text."""
    for place in _places(address):
        password = address[slice(*place.span)]
        # SQLAlchemy ends a password at the first @, and libraries for HTTP at the last.
        for secret in {password, password.partition("@")[0]}:
            _remembered.update(_forms(secret, place.user))


class _Place(NamedTuple):
    """Where a password is in a text, and the name of its user, if it is part of a login."""

    span: tuple[int, int]
    user: str | None = None


def _places(text: str) -> Iterator[_Place]:
    """Find the passwords of the addresses in a text, or of one address, which alone may have spaces."""
    if "://" in text:
        is_alone = _ADDRESS.match(text) is not None
        words = [(0, text)] if is_alone else [(match.start(), match[0]) for match in re.finditer(r"\S+", text)]
        logins = (_login(word, start) for start, word in words)
        queries = (_QUERY_ALONE if is_alone else _QUERY_IN_TEXT).finditer(text)
        secrets = (_Place(match.span("value")) for match in queries if _SECRET_NAME.search(unquote(match["name"])))
        for place in itertools.chain(filter(None, logins), secrets):
            password = text[slice(*place.span)]
            if password != MASK and not _VARIABLE.fullmatch(password):
                yield place


def _login(word: str, offset: int) -> _Place | None:
    """Find the password in ``scheme://user:password@host``.

    A user's name may have an @, as addresses of e-mail do, and a password any character, so it ends at the last @. An
    address that begins with a path has no login.
    """
    host = re.search(r"://(?!/)", word)
    if host is None:
        return None
    colon, end = word.find(":", host.end()), word.rfind("@")
    is_password = 0 <= colon < end - 1
    return _Place((offset + colon + 1, offset + end), word[host.end() : colon]) if is_password else None


def _known() -> list[str]:
    """Return every form of the passwords that are known, longest first."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    of_environment = (_forms(os.environ[name], user) for name in VARIABLES if os.environ.get(name))
    return sorted(_remembered.union(*of_environment), key=len, reverse=True)


@functools.lru_cache(maxsize=256)
def _forms(secret: str, user: str | None = None) -> frozenset[str]:
    """Return the texts that stand for a password: as written, decoded, encoded, quoted and in an HTTP header."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    forms = {form for text in plain for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1])}
    for text in plain:
        raw = text.encode("utf-8", "surrogatepass")
        forms |= {quote(raw), quote(raw, safe=""), quote_plus(raw), base64.b64encode(raw).decode()}
        if user is not None:
            login = f"{unquote(user)}:{text}".encode("utf-8", "surrogatepass")
            forms.add(base64.b64encode(login).decode())
    return frozenset(form for form in forms if len(form) >= SHORTEST and form != MASK)
