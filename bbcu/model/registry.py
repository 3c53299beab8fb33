"""Parts of a network by name: from a table of ours, or a class of the user's by its dotted path."""

import importlib
from collections.abc import Mapping
from typing import Any

from bbcu.errors import ConfigError, unknown


def look_up(key: str, name: str, table: Mapping[str, Any], base: type) -> Any:
    """Return the entry ``name`` of ``table``, or the class at the dotted path ``name`` (``my_module.MySurrogate``).

    ``key`` is the config key that asks for it. Raises ConfigError for a name in neither, with the valid ones, and for
    anything that is not a subclass of ``base``.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(f"{unknown(key, name, table)}, or the dotted path of a class of your own")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key} {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        what = f"a {found.__mro__[1].__name__}" if isinstance(found, type) else "not a class"
        raise ConfigError(f"{key}={name}: must be a subclass of {base.__name__}, and {attribute} is {what}")
    return found
