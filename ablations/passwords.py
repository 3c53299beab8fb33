"""Keep the passwords of a command's addresses out of all that Hydra and its launchers store.

Hydra can save the overrides and the config of a job, and launchers write jobs to files. So before a job starts, an
address with a password moves to a variable of the environment, and the config and the overrides refer to it. Launchers
on this machine, and Slurm by default, pass the environment to their workers.
"""

import os
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from bbcu.passwords import has_password, masked, remember

ADDRESSES = {"tracking.uri": "BBCU_TRACKING_URI", "hydra.sweeper.storage": "BBCU_SEARCH_STORAGE"}
"""The keys whose value is an address that may have a password, and the variable that it moves to."""


class PasswordsInEnvironment(Callback):
    """Hydra calls this before it saves or starts anything."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        move_passwords(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        move_passwords(config)


def move_passwords(config: DictConfig) -> None:
    """Move each address of ``config`` that has a password to the environment, and refer to it there.

    An override refers to it too, since workers compose the config again, from files that may contain the password.
    """
    with flag_override(config, ["struct", "readonly"], False), flag_override(config.hydra, "readonly", False):
        for key, variable in ADDRESSES.items():
            address = _written(config, key)
            if isinstance(address, str) and has_password(address):
                remember(address)
                os.environ[variable] = str(OmegaConf.select(config, key))
                remember(os.environ[variable])
                reference = reference_to(variable)
                OmegaConf.update(config, key, reference)
                kind = "hydra" if key.startswith("hydra.") else "task"
                others = [text for text in config.hydra.overrides[kind] if key_of(text) != key]
                config.hydra.overrides[kind] = [*map(masked, others), f"{key}={reference}"]
        if "override_dirname" in config.hydra.job:
            config.hydra.job.override_dirname = masked(config.hydra.job.override_dirname)


def reference_to(variable: str) -> str:
    return f"${{oc.env:{variable}}}"


def key_of(override: str) -> str:
    return str(OverridesParser.create().parse_override(override).key_or_group)


def shown_address(config: DictConfig, key: str) -> str:
    """Return an address as it may be stored: with its references to the environment, and without passwords."""
    written = _written(config, key)
    moved = written == reference_to(ADDRESSES[key])
    return masked(str(OmegaConf.select(config, key)) if moved or not isinstance(written, str) else written)


def _written(config: DictConfig, key: str) -> Any:
    """Return a value as the config has it, with its interpolations."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    values = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else None
    return values.get(name) if isinstance(values, dict) else None
