"""Modules that compute what those of other authors do, with the names and shapes of their states.

``bbcu.from_authors_state("bisr_unit", state)`` gives a module in training mode. Its parameters are those of the state,
under the authors' names, so that values and gradients can be compared one by one; what computes is this package's own
unit or network, :attr:`AuthorsModule.module`, whose parameters they stand in for.
"""

from collections.abc import Mapping
from typing import Any

import torch

from bbcu.errors import ConfigError, unknown
from bbcu.model.authors import networks, unets, units
from bbcu.model.authors.state import AuthorsModule, Kind, differences

KINDS: dict[str, Kind] = {**units.KINDS, **networks.KINDS, **unets.KINDS}
"""Every kind by its name."""

WITHOUT_EFFECT = ("seed",)
"""Constants that say how a state was made; every kind takes them, and they change nothing."""


WRAPPERS = ("module.", "model.")
"""What the names of a state begin with if it was saved around its network, by ``nn.DataParallel`` for instance."""


def without_wrapper(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop a wrapper that every name of a state begins with."""
    for wrapper in WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def from_authors_state(kind: str, state: Mapping[str, Any], **constants: Any) -> AuthorsModule:
    """Return the module of a kind, in training mode, with the values of the authors' ``state``, tensors or arrays.

    A ``module.`` or ``model.`` that every name begins with is dropped. ``constants`` are what the state does not hold,
    numbers or arrays of one number: ``align``, ``scale``, the place in a schedule. Raises ConfigError for an unknown
    kind or constant, and for a state that has other tensors than those of the kind.
    """
    if kind not in KINDS:
        raise ConfigError(unknown("kind", kind, sorted(KINDS)))
    entry = KINDS[kind]
    for name in constants:
        if name not in (*entry.constants, *WITHOUT_EFFECT):
            raise ConfigError(unknown(f"constant of {kind}", name, (*entry.constants, *WITHOUT_EFFECT)))
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in constants.items()}
    tensors = {name: torch.as_tensor(value) for name, value in without_wrapper(state).items()}
    try:
        module, names = entry.build(tensors, plain), entry.names(tensors, plain)
    except KeyError as error:
        raise ConfigError(f"{kind}: the state and the constants have no {error.args[0]}") from error
    if (difference := differences(kind, entry, module, names, tensors)) is not None:
        raise ConfigError(difference)
    return AuthorsModule(module, names, tensors).train()
