"""Parts by name: a table of our own, or the dotted path of the user's."""

import importlib
from collections.abc import Mapping
from typing import Any

from bbcu.errors import ConfigError, unknown


def look_up(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """The entry ``name`` of ``table``, or the object at the dotted path ``name`` (``my_module.MySurrogate``).

    Raises ConfigError, with the valid names, for a name in neither.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(f"{unknown(kind, name, table)}, or the dotted path of your own")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported: {error}") from error
