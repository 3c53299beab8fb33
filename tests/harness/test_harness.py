"""Rules of the tests themselves: each asserts something, and pages and the fork server name what exists."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.paths import REPOSITORY
from tests.harness.processes import IMPORTED

FILES = sorted((REPOSITORY / "tests").rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def names_called(function: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = node.func
            yield called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


@pytest.fixture(scope="module")
def asserting() -> set[str]:
    """The functions that contain an assert, or call one that does."""
    found = {"raises", "warns", "fail", "assert_close", "assert_allclose", "assert_array_equal"}
    every = [function for path in FILES for function in functions(path)]
    before = 0
    while len(found) > before:
        before = len(found)
        for function in every:
            if any(isinstance(node, ast.Assert) for node in ast.walk(function)) or found & set(names_called(function)):
                found.add(function.name)
    return found


@pytest.mark.parametrize("path", [path for path in FILES if path.name.startswith("test_")], ids=lambda path: path.stem)
def test_a_test_asserts_or_says_why_not(path: Path, asserting: set[str]) -> None:
    tests = [function for function in functions(path) if function.name.startswith("test_")]
    silent = [test.name for test in tests if test.name not in asserting and not ast.get_docstring(test)]
    assert silent == []


@pytest.mark.parametrize("name", [name for name in IMPORTED if not name.startswith("hydra_plugins")])
def test_what_the_fork_server_imports_exists(name: str) -> None:
    """It ignores a module that does not exist, and commands would import for seconds instead."""
    assert importlib.util.find_spec(name) is not None


def test_the_page_on_faults_names_tests_that_exist() -> None:
    rows = [line for line in (REPOSITORY / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[-1])}
    assert len(named) > 20
    assert {f"test_{name}" for name in named} <= {function.name for path in FILES for function in functions(path)}
