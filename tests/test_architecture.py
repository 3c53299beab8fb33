"""The rooms keep to themselves: who may import whom, and what may not be imported at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = {"bbcu", "ablations", "analysis", "hydra_plugins", "run"}

ALLOWED = {
    "bbcu": {"bbcu"},
    "ablations": {"ablations", "bbcu"},
    "hydra_plugins": {"hydra_plugins", "ablations", "bbcu"},
    "analysis": {"analysis", "ablations.store", "bbcu.cost", "bbcu.errors"},
}
FORBIDDEN = {
    "bbcu": {"hydra", "omegaconf", "mlflow", "optuna"},
    "ablations/space.py": {"torch", "hydra", "omegaconf", "mlflow", "optuna", "numpy"},
    "ablations/designs.py": {"torch", "hydra", "omegaconf", "mlflow", "optuna", "numpy"},
    "ablations/conditions.py": {"torch", "hydra", "omegaconf", "mlflow", "optuna", "numpy"},
    "ablations/planning.py": {"torch", "hydra", "omegaconf", "mlflow", "optuna", "numpy"},
}


def imports(path: Path) -> set[str]:
    """The dotted names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return names


def files(room: str) -> list[Path]:
    path = REPOSITORY / room
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("room", list(ALLOWED))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = ALLOWED[room]
    for path in files(room):
        for name in imports(path):
            if name.partition(".")[0] in OURS and name not in {"ablations", "bbcu"}:
                fits = any(name == entry or name.startswith(f"{entry}.") for entry in allowed)
                assert fits, f"{path.relative_to(REPOSITORY)} imports {name}"


@pytest.mark.parametrize("room", list(FORBIDDEN))
def test_a_room_stays_free_of_what_it_must_not_know(room: str) -> None:
    for path in files(room):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & FORBIDDEN[room], path.relative_to(REPOSITORY)


@pytest.mark.parametrize("module", ["bbcu", "bbcu.errors", "ablations.space", "ablations.designs", "ablations.config"])
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    """Hydra imports the config and the plugin at every start, so they must not bring torch or MLflow along."""
    probe = f"import sys, {module}; print(sorted({{'torch', 'mlflow', 'pandas', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_every_dependency_is_pinned() -> None:
    pinned = {
        line.partition("==")[0].lower()
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {entry.partition(">")[0].partition("=")[0].strip().lower() for entry in wanted}
    assert names <= pinned
