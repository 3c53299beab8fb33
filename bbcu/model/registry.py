"""Find a part of a network by name: in a table of this package, or as a user's class by its dotted path."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bbcu.errors import ConfigError, unknown


def look_up(key: str, name: str, table: Mapping[str, Any], base: type) -> Any:
    """Return the entry ``name`` of ``table``, or the class at the dotted path ``name`` (``my_module.MySurrogate``).

    ``key`` is the config key that ``name`` is the value of. Raises ConfigError if the name is in neither, and if what
    it names is not a subclass of ``base``.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(f"{unknown(key, name, table)}, or the dotted path of a class of your own")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key} {name!r} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        what = f"a {kind.__mro__[1].__name__}" if isinstance(kind, type) else "not a class"
        raise ConfigError(f"{key}={name}: must be a subclass of {base.__name__}, and {attribute} is {what}")
    return kind


def probe(kind: type[nn.Module], x: Tensor) -> Tensor:
    """Return the output of a new instance of ``kind`` for ``x`` on the CPU, to check a user's class.

    The default device may be another one, and the global random state is restored.
    """
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        output: Tensor = kind()(x)
    return output
