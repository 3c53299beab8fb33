"""Binary convolution units for image restoration, networks built from them, and their training.

The library does not depend on Hydra or MLflow. Import the names in :data:`PUBLIC` from here: ``from bbcu import
BinaryUnit``. Each is loaded on first use, so that importing the package does not import torch. Module names from before
version 0.1.0, such as ``bbcu.units``, can still be imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "BinaryUnit": "bbcu.model.units",
    "UnitShape": "bbcu.model.units",
    "UnitSpec": "bbcu.model.specs",
    "NetworkSpec": "bbcu.model.parts",
    "Body": "bbcu.model.parts",
    "Convolution": "bbcu.model.parts",
    "build": "bbcu.model.networks",
    "Surrogate": "bbcu.model.surrogates",
    "sign": "bbcu.model.surrogates",
    "Binariser": "bbcu.model.binarisers",
    "count": "bbcu.model.cost",
    "load": "bbcu.deploy.sources",
    "Restorer": "bbcu.deploy.restoring",
    "from_authors_state": "bbcu.model.authors",
    "pack": "bbcu.deploy.packed",
    "PackedUnit": "bbcu.deploy.packed",
    "DeployError": "bbcu.deploy.packed",
    "BbcuError": "bbcu.errors",
    "ConfigError": "bbcu.errors",
}
"""Public names and the modules that define them."""

EARLIER_NAMES = {
    f"bbcu.{name}": f"bbcu.model.{name}"
    for name in ("binarisers", "checkpoints", "cost", "methods", "networks", "surrogates", "units")
}
"""Module names from before version 0.1.0 and the present ones."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'bbcu' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])


class _EarlierNameFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import a module under its earlier name; the module object is the same under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in EARLIER_NAMES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(EARLIER_NAMES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the spec that the import system has replaced; the module is already loaded."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the module's code, for ``python -m bbcu.cost``."""
        spec = importlib.util.find_spec(EARLIER_NAMES[fullname])
        assert spec is not None
        assert isinstance(spec.loader, importlib.abc.InspectLoader)
        return spec.loader.get_code(spec.name)


sys.meta_path.append(_EarlierNameFinder())
