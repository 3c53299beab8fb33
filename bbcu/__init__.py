"""Binary convolution units for image restoration, the networks around them, and how one is trained.

A library without Hydra or MLflow. The names of :data:`PUBLIC` can be imported from here, as in
``from bbcu import BinaryUnit``; each is loaded when it is first used, so that importing the package does not import
torch. Modules that lay directly below ``bbcu`` before version 0.1.0 can still be imported by their earlier names.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "BinaryUnit": "bbcu.model.units",
    "UnitShape": "bbcu.model.units",
    "UnitSpec": "bbcu.model.specs",
    "NetworkSpec": "bbcu.model.networks",
    "Body": "bbcu.model.networks",
    "Convolution": "bbcu.model.networks",
    "build": "bbcu.model.networks",
    "Surrogate": "bbcu.model.surrogates",
    "sign": "bbcu.model.surrogates",
    "Binariser": "bbcu.model.binarisers",
    "count": "bbcu.model.cost",
    "load": "bbcu.model.checkpoints",
    "BbcuError": "bbcu.errors",
    "ConfigError": "bbcu.errors",
}
"""The public names, and the module of each."""

EARLIER_NAMES = {
    f"bbcu.{name}": f"bbcu.model.{name}"
    for name in ("binarisers", "checkpoints", "cost", "methods", "networks", "surrogates", "units")
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'bbcu' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])


class _EarlierNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module by the name that it had before."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in EARLIER_NAMES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(EARLIER_NAMES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back its own spec; it was executed under its present name."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_EarlierNames())
