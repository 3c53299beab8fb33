"""Errors that a user can correct; each message is one line that says what is wrong and what is valid."""

import difflib
from collections.abc import Iterable


class BbcuError(Exception):
    """Base of every error that is shown to the user as one line, without a traceback."""


class ConfigError(BbcuError):
    """A key or a level that does not exist, or a combination of levels that is impossible."""


class DataError(BbcuError):
    """A folder or an image that cannot be used; the message contains its path."""


def unknown(kind: str, value: object, valid: Iterable[object]) -> str:
    """Return a message that ``value`` is not a ``kind``, with the closest valid value and a list of all of them."""
    names = [str(name) for name in valid]
    close = difflib.get_close_matches(str(value), names, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {kind} {str(value)!r}{guess}; valid: {', '.join(names)}"
