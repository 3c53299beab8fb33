"""Find a part of a network by name: in a table of this package, or as a user's class by its dotted path."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.errors import BbcuError, ConfigError, first_line, shown, unknown


def look_up(key: str, name: str, table: Mapping[str, Any], base: type) -> Any:
    """Return the entry ``name`` of ``table``, or the class at the dotted path ``name`` (``my_module.MySurrogate``).

    ``key`` is the config key that ``name`` is the value of. Nothing is called. Raises ConfigError if the name is in
    neither, if its module raises an error, and if what it names is not a subclass of ``base``. A module of Python's
    standard library has no such class, and is not imported, since importing some of them opens a browser.
    """
    if name in table:
        return table[name]
    if not is_dotted(name):
        raise ConfigError(f"{unknown(key, name, table)}, or the dotted path of a class of your own")
    wanted = f"{key}={shown(name)}: must be a subclass of {base.__name__}"
    kind = imported(key, name, wanted)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        what = f"a {(*kind.__bases__, kind)[0].__name__}" if isinstance(kind, type) else "not a class"
        raise ConfigError(f"{wanted}, and {shown(name.rpartition('.')[2])} is {what}")
    return kind


def is_dotted(name: str) -> bool:
    """Return whether a text is the dotted path of something in a module."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def imported(key: str, name: str, wanted: str) -> Any:
    """Return what the dotted path ``name`` names; ``wanted`` says what it must be.

    Raises ConfigError if it is in Python's standard library, whose modules are not imported, or cannot be imported.
    """
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"{wanted}, and {shown(module)} is a module of Python's standard library")
    try:
        return getattr(importlib.import_module(module), attribute)
    # A module of the user's own may raise anything, and a script that is imported may exit.
    except (Exception, SystemExit) as error:
        reason = first_line(error)
        what = reason if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {reason}"
        raise ConfigError(f"{key} {shown(name)!r} cannot be imported: {shown(what)}") from error


def create(key: str, name: str, table: Mapping[str, Any], base: type, *arguments: Any) -> Any:
    """Return a new instance of what :func:`look_up` finds; raises ConfigError if a user's class raises an error."""
    kind = look_up(key, name, table, base)
    if name in table:
        return kind(*arguments)
    with errors_of_own(key, name):
        part = kind(*arguments)
    if not isinstance(part, base):
        raise ConfigError(f"{key}={shown(name)}: creates a {type(part).__name__}, not a {base.__name__}")
    return part


@contextlib.contextmanager
def errors_of_own(key: str, name: str) -> Iterator[None]:
    """Turn an error of the user's own code into a ConfigError that names the key and its value."""
    try:
        yield
    except BbcuError:
        raise
    # Code of the user's own may raise anything.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{key}={shown(name)}: {type(error).__name__}: {shown(first_line(error))}") from error


def probe(make: Callable[[], nn.Module], x: Tensor) -> Tensor:
    """Return the output of a new part for ``x`` on the CPU, to check a user's class.

    The default device may be another one, and the global random state is restored.
    """
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        output: Tensor = make()(x)
    return output
