"""Errors that a user can correct; each message is one line that says what is wrong and what is valid."""

import difflib
from collections.abc import Iterable

from bbcu.passwords import masked

LONGEST_LINE = 2000
"""The most characters of another program's message that are shown."""


class BbcuError(Exception):
    """Base of every error that is shown to the user as one line, without a traceback.

    A message may quote a file's name or content, so its control characters are escaped; or an address, so its
    passwords are masked, before anything can store the error.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(masked(text) if isinstance(text, str) else text for text in arguments))

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(BbcuError):
    """A key or a level that does not exist, or a combination of levels that is impossible."""


class DataError(BbcuError):
    """A folder or an image that cannot be used; the message contains its path."""


def unknown(kind: str, value: object, valid: Iterable[object]) -> str:
    """Return a message that ``value`` is not a ``kind``, with the closest valid value and a list of all of them."""
    names, text = [str(name) for name in valid], shown(value)
    close = difflib.get_close_matches(text, names, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {kind} {text!r}{guess}; valid: {', '.join(names) or 'none'}"


def shown(value: object, longest: int = 200) -> str:
    """Return a value as text for a message, shortened if it has more characters than ``longest``."""
    try:
        text = str(value)
    except (ValueError, RecursionError):
        # Python does not print an integer of more than 4,300 digits, nor a list within lists within a thousand others.
        return "a value that is too long to show"
    return text if len(text) <= longest else f"{text[:longest]}..."


def printable(text: object) -> str:
    r"""Return a text or path on one line that any terminal and file accepts, with ``\n`` or ``\udcff`` for others."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(text)
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines with each line as :func:`printable` returns it."""
    return "\n".join(map(printable, text.split("\n")))


def first_line(message: BaseException | str) -> str:
    """Return the first line of a message, printable, without passwords and not too long; the type's name if empty."""
    # A message may contain the whole answer of a server. A password that is cut here is not in the part that is shown.
    lines = masked(str(message)[: 10 * LONGEST_LINE]).strip().splitlines()
    if not lines:
        return type(message).__name__
    return printable(lines[0] if len(lines[0]) <= LONGEST_LINE else f"{lines[0][:LONGEST_LINE]} ...")
