"""Modules that compute what those of other authors do, with the names and shapes of their states.

``bbcu.from_authors_state("bisr_unit", state)`` gives a module in training mode. Its parameters are those of the state,
under the authors' names, so that values and gradients can be compared one by one; what computes is this package's own
unit or network, :attr:`AuthorsModule.module`, whose parameters they stand in for.
"""

from typing import Any

from bbcu.errors import ConfigError, unknown
from bbcu.model.authors import networks, unets, units
from bbcu.model.authors.state import AuthorsModule, Kind, State

KINDS: dict[str, Kind] = {**units.KINDS, **networks.KINDS, **unets.KINDS}
"""Every kind by its name."""


def from_authors_state(kind: str, state: State, **constants: Any) -> AuthorsModule:
    """Return the module of a kind, in training mode, with the tensors of the authors' ``state``.

    ``constants`` are what the state does not hold: ``align``, ``scale``, the progress of a schedule. Raises ConfigError
    for an unknown kind or constant, and for a state that has other tensors than those of the kind.
    """
    if kind not in KINDS:
        raise ConfigError(unknown("kind", kind, sorted(KINDS)))
    entry = KINDS[kind]
    for name in constants:
        if name not in entry.constants:
            raise ConfigError(unknown(f"constant of {kind}", name, entry.constants))
    try:
        module, names = entry.build(state, constants), entry.names(state, constants)
    except KeyError as error:
        raise ConfigError(f"{kind}: the state has no {error.args[0]}") from error
    missing = sorted(set(names.values()) - state.keys())
    if missing:
        raise ConfigError(f"{kind}: the state has no {missing[0]}")
    return AuthorsModule(module, names, state).train()
