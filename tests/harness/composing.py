"""Hydra composes a config for the tests as it does for a user, but without work whose outcome is known."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore

compose_for_mode = Hydra.get_mode


def compose_faster() -> None:
    """Skip two steps of Hydra in this process and its forks; they take nearly half the time of a command that plans.

    Before each command Hydra composes the whole config once more, to read ``hydra.mode``, which no config here sets. At
    each composition it copies every config that Python code has registered, and later copies again the few that it
    reads.
    """
    Hydra.get_mode = _mode_of  # type: ignore[method-assign]
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def _mode_of(self: Hydra, config_name: str | None, overrides: Sequence[str]) -> Any:
    """The mode that the overrides ask for; None if they do not, and Hydra then goes by ``-m`` alone."""
    if any("hydra.mode" in text for text in overrides):
        return compose_for_mode(self, config_name, list(overrides))
    return None
