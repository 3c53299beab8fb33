"""The structure of the code: which package may import which, and that no import runs in a circle."""

import ast
import graphlib
import itertools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.harness.paths import REPOSITORY

ALLOWED: dict[str, set[str]] = {
    "bbcu.passwords": set(),
    "bbcu.errors": {"bbcu.passwords"},
    "bbcu.terminal": {"bbcu.errors", "bbcu.passwords"},
    "bbcu.files": set(),
    "bbcu.machine": set(),
    "bbcu.compiled": {"bbcu.files"},
    "bbcu.model.specs": set(),
    "bbcu.model.methods": {"bbcu.model.specs"},
    "bbcu.model": {"bbcu.errors", "bbcu.files", "bbcu.model.specs", "bbcu.model.methods"},
    "bbcu.model.records": {"bbcu.errors", "bbcu.data", "bbcu.model", "bbcu.model.specs"},
    "bbcu.data": {"bbcu.errors", "bbcu.files", "bbcu.terminal"},
    "bbcu.training": {
        *("bbcu.errors", "bbcu.files", "bbcu.machine", "bbcu.compiled", "bbcu.model", "bbcu.data", "bbcu.deploy"),
    },
    "bbcu.deploy": {
        *("bbcu.errors", "bbcu.terminal", "bbcu.files", "bbcu.machine", "bbcu.compiled"),
        *("bbcu.data", "bbcu.model", "bbcu.model.specs", "bbcu.model.methods", "bbcu.model.records", "bbcu.training"),
    },
    "bbcu.restore": {"bbcu.terminal", "bbcu.deploy"},
    "bbcu.evaluate": {"bbcu.terminal", "bbcu.deploy"},
    "ablations.passwords": {"bbcu.passwords"},
    "ablations.config": {
        *("bbcu.errors", "bbcu.passwords", "bbcu.model.methods", "ablations.passwords", "ablations.space"),
    },
    "ablations.space": {"bbcu.errors", "bbcu.model.specs", "bbcu.model.methods"},
    "ablations.storage": {"bbcu.errors", "bbcu.files", "ablations.space"},
    "ablations.tracking": {
        *("bbcu.errors", "bbcu.passwords", "bbcu.files", "bbcu.terminal", "bbcu.training", "bbcu.deploy"),
        *("ablations.space", "ablations.storage"),
    },
    "ablations.watching": {"bbcu.errors", "bbcu.files", "ablations.space", "ablations.storage", "ablations.decide"},
    "ablations.decide": {"bbcu.errors", "bbcu.files", "ablations.space", "ablations.storage", "analysis.statistics"},
    "ablations.trial": {
        *(
            "bbcu.errors",
            "bbcu.passwords",
            "bbcu.files",
            "bbcu.machine",
            "bbcu.compiled",
            "bbcu.model",
            "bbcu.model.records",
            "bbcu.model.specs",
            "bbcu.model.methods",
            "bbcu.data",
            "bbcu.training",
            "bbcu.deploy",
        ),
        *("ablations.config", "ablations.space", "ablations.storage", "ablations.tracking"),
    },
    "ablations.planning": {
        *("bbcu.errors", "bbcu.passwords", "bbcu.files", "ablations.config", "ablations.space", "ablations.storage"),
        "ablations.trial",
    },
    "ablations.search": {
        *("bbcu.errors", "bbcu.passwords", "bbcu.files", "ablations.space", "ablations.planning", "ablations.trial"),
    },
    "ablations.sweep": {
        *("bbcu.errors", "bbcu.terminal", "bbcu.files", "bbcu.model", "bbcu.model.methods"),
        *("ablations.config", "ablations.space", "ablations.storage"),
        *("ablations.tracking", "ablations.trial", "ablations.planning", "ablations.search", "ablations.watching"),
        "ablations.decide",
    },
    "ablations.__main__": {
        *(
            "bbcu.errors",
            "bbcu.passwords",
            "bbcu.terminal",
            "bbcu.files",
            "ablations.space",
            "ablations.storage",
            "ablations.tracking",
            "ablations.watching",
        ),
    },
    "hydra_plugins": {"ablations.config", "ablations.sweep"},
    "ablations.command": {
        *("bbcu.errors", "bbcu.passwords", "bbcu.terminal", "bbcu.files"),
        *("ablations.config", "ablations.storage", "ablations.trial"),
    },
    "run": {"ablations.command"},
    "analysis.statistics": set(),
    "analysis.published": set(),
    "analysis.study": {
        *(
            "bbcu.errors",
            "bbcu.files",
            "ablations.space",
            "ablations.storage",
            "ablations.tracking",
            "analysis.published",
            "analysis.statistics",
        ),
    },
    "analysis.effects": {
        *("bbcu.errors", "bbcu.files", "bbcu.model.specs", "ablations.space", "ablations.storage"),
        *("analysis.study", "analysis.statistics", "analysis.published"),
    },
    "analysis.report": {
        *("bbcu.errors", "bbcu.files", "bbcu.model", "ablations.space", "ablations.storage", "ablations.tracking"),
        *("analysis.study", "analysis.statistics", "analysis.published", "analysis.effects"),
    },
    "analysis.__main__": {
        "bbcu.errors",
        "bbcu.terminal",
        "bbcu.files",
        "ablations.space",
        "ablations.tracking",
        "analysis.study",
        "analysis.statistics",
        "analysis.report",
    },
}
"""What each room may import of the others; specs and methods are rooms of their own because they need no torch."""

FORBIDDEN = {
    "bbcu": {"hydra", "omegaconf", "mlflow", "optuna"},
    "ablations.space": {"torch", "hydra", "omegaconf", "mlflow", "optuna", "numpy"},
    "ablations.storage": {"hydra", "omegaconf", "mlflow", "optuna", "rich"},
    "ablations.trial": {"mlflow", "optuna"},
    "ablations.planning": {"mlflow", "optuna", "rich"},
    "ablations.search": {"mlflow", "torch", "hydra"},
    "ablations.decide": {"torch", "hydra", "omegaconf", "mlflow", "optuna", "rich"},
    "ablations.sweep": {"mlflow", "optuna"},
    "ablations.watching": {"torch", "mlflow", "optuna"},
    "analysis": {"torch", "hydra", "omegaconf", "mlflow"},
    "analysis.statistics": {"pandas", "matplotlib"},
}
"""Packages that a room must not import at all. MLflow belongs to ``ablations.tracking`` alone."""

OURS = {"bbcu", "ablations", "analysis", "hydra_plugins", "run"}


def source_files() -> list[Path]:
    packages = (path for name in sorted(OURS - {"run"}) for path in sorted((REPOSITORY / name).rglob("*.py")))
    return [*packages, REPOSITORY / "run.py"]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str | None:
    """The room of a module; None for the ``__init__`` of one of our packages, which imports nothing."""
    found = [room for room in ALLOWED if module == room or module.startswith(f"{room}.")]
    return max(found, key=len) if found else None


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {module_of(path): path for path in source_files()}


def ours_imported_by(module: str) -> set[str]:
    """The modules of ours that a module imports, for types too; a name in a module counts as that module."""
    found = set()
    for name in imports_of(FILES[module]):
        if name.partition(".")[0] in OURS:
            found.add(name if name in FILES else name.rpartition(".")[0])
    return found


@pytest.mark.parametrize("module", list(FILES))
def test_every_file_belongs_to_a_room_and_imports_only_what_that_may(module: str) -> None:
    room = room_of(module)
    if room is None:
        assert FILES[module].name == "__init__.py", f"{module} is in no room"
        assert not ours_imported_by(module)
        return
    for imported in ours_imported_by(module):
        target = room_of(imported)
        assert target is None or target == room or target in ALLOWED[room], f"{module} imports {imported}"


def test_no_import_runs_in_a_circle() -> None:
    """Imports for types count as well: where two files need each other's types, one of them is in the wrong place."""
    graph = {module: {name for name in ours_imported_by(module) if name != module} for module in FILES}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("room", list(FORBIDDEN))
def test_a_room_does_not_import_what_it_must_not_know(room: str) -> None:
    for module, path in FILES.items():
        if module == room or module.startswith(f"{room}."):
            assert not {name.partition(".")[0] for name in imports_of(path)} & FORBIDDEN[room], module


@pytest.mark.parametrize(
    "module",
    [
        "bbcu",
        "bbcu.errors",
        "ablations.space.cells",
        "ablations.space.designs",
        "ablations.space.family",
        "ablations.config",
    ],
)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    """Hydra imports the config and the plugin at every start, so they must not bring torch or MLflow along."""
    probe = f"import sys, {module}; print(sorted({{'torch', 'mlflow', 'pandas', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in map(Requirement, lines)}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement} is not in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement}, but constraints.txt pins {pin}"
