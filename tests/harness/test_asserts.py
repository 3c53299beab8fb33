"""Every test asserts something, or its docstring says why it does not."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.paths import REPOSITORY

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
