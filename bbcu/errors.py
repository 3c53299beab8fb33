"""The one tree of errors that a user can mend; each message is one line that names what is wrong and what is valid."""

import difflib
from collections.abc import Iterable


class BbcuError(Exception):
    """Base of every error that is shown to the user as one line, without a traceback."""


class ConfigError(BbcuError):
    """A key, a level or a combination of them that does not exist or cannot mean anything."""


class DataError(BbcuError):
    """A folder or an image that cannot be used; the message names its path."""


def unknown(kind: str, value: object, valid: Iterable[object]) -> str:
    """Say that ``value`` is no ``kind``, list what is valid and guess what was meant."""
    names = [str(name) for name in valid]
    close = difflib.get_close_matches(str(value), names, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {kind} {str(value)!r}{guess}; valid: {', '.join(names)}"
