"""Where a result comes from: the fingerprint of the code that made it."""

import ast
import io
import keyword
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablations.trial.provenance import (
    DECIDES_NOTHING,
    EXACT,
    REPOSITORY,
    _syntax_of,
    code_fingerprint,
    fingerprint_of,
    git_state,
    provenance,
)

CODE = '''"""What a module is for."""

FACTOR = 2
"""What the factor is for."""


def grown(x: float) -> float:
    """The number, grown."""
    # Why it grows.
    return FACTOR * x


class Growth:
    def of(self, x: float) -> float:
        return grown(x)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "growth.py").write_text(CODE)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Why it grows.", "# Why it has to grow,\n    # at length."),
        ("    # Why it grows.\n", ""),
        ("The number, grown.", "The number, as it grew."),
        ('"""What a module is for."""\n', ""),
        ('"""What the factor is for."""\n', ""),
        ('    """The number, grown."""\n', ""),
        ("FACTOR * x", "(FACTOR  *  x)"),
        ("\n\n\nclass", "\n\nclass"),
        ("class Growth:\n", 'class Growth:\n    """How it grows."""\n\n'),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(old: str, new: str, folder: Path) -> None:
    assert not counts(folder, old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 2", "FACTOR = 3"),
        ("FACTOR = 2", "FACTOR = 2.0"),
        ("FACTOR * x", "x * FACTOR"),
        ("x: float", "x: float = 1"),
        ("return grown(x)", 'return grown("x")'),
        ("return grown(x)", 'print("x")\n        return grown(x)'),
        ("grown", "shrunk"),
    ],
)
def test_code_counts(old: str, new: str, folder: Path) -> None:
    assert counts(folder, old, new)


def counts(folder: Path, old: str, new: str) -> bool:
    """Whether the fingerprint changes with this change of the code."""
    assert old in CODE
    before = fingerprint_of(folder)
    (folder / "growth.py").write_text(CODE.replace(old, new))
    return fingerprint_of(folder) != before


def test_a_new_module_counts(folder: Path) -> None:
    before = fingerprint_of(folder)
    (folder / "more.py").write_text("")
    assert fingerprint_of(folder) != before


def test_the_name_of_a_module_counts(folder: Path) -> None:
    before = fingerprint_of(folder)
    (folder / "growth.py").rename(folder / "decay.py")
    assert fingerprint_of(folder) != before


MODULES = sorted(path.relative_to(REPOSITORY / "bbcu").as_posix() for path in (REPOSITORY / "bbcu").rglob("*.py"))


def with_another_token(code: str) -> str:
    """Rename the last name in a module, or give a name to one that has none."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    names = [token for token in tokens if token.type == tokenize.NAME and not keyword.iskeyword(token.string)]
    if not names:
        return f"{code}\nANOTHER = 1\n"
    (row, start), (_, end) = names[-1].start, names[-1].end
    lines = code.splitlines(keepends=True)
    lines[row - 1] = f"{lines[row - 1][:start]}another{lines[row - 1][end:]}"
    return "".join(lines)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of bbcu to change."""
    copied = shutil.copytree(REPOSITORY / "bbcu", tmp_path_factory.mktemp("code") / "bbcu")
    assert fingerprint_of(copied) == code_fingerprint()
    return copied


@pytest.fixture(scope="module")
def parsed_once() -> Iterator[None]:
    """Parse each text once for all tests of a module; they differ in one file of many."""
    known: dict[str, str] = {}

    def remembered(path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        if text not in known:
            known[text] = _syntax_of(path)
        return known[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablations.trial.provenance._syntax_of", remembered)
        yield


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize("module", MODULES)
def test_one_token_counts_in_every_module_that_decides_a_result(package: Path, module: str) -> None:
    file = package / module
    code = file.read_text(encoding="utf-8")
    file.write_text(with_another_token(code), encoding="utf-8")
    try:
        counts = fingerprint_of(package) != code_fingerprint()
    finally:
        file.write_text(code, encoding="utf-8")
    assert counts == (module not in DECIDES_NOTHING and not module.startswith(EXACT) and file.name != "__init__.py")


def test_modules_that_do_not_count_exist_and_no_module_that_counts_imports_them() -> None:
    assert set(MODULES) >= DECIDES_NOTHING
    left_out = {f"bbcu.{module.removesuffix('.py').replace('/', '.')}" for module in DECIDES_NOTHING}
    for module in MODULES:
        if module not in DECIDES_NOTHING and not module.startswith(EXACT):
            tree = ast.parse((REPOSITORY / "bbcu" / module).read_text(encoding="utf-8"))
            imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not imported & left_out, module


def test_a_fingerprint_has_sixteen_digits() -> None:
    assert len(code_fingerprint()) == 16
    assert set(code_fingerprint()) <= set("0123456789abcdef")


def test_a_fingerprint_is_the_same_under_every_version_of_python(folder: Path) -> None:
    """Versions differ in the empty fields of a syntax tree; taken under 3.11, and the same under 3.12 and 3.13."""
    assert fingerprint_of(folder) == "4bca287faf1a87a9"


def test_git_takes_no_lock_that_a_killed_process_would_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/first\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    git_state.__wrapped__()
    assert set((tmp_path / "first").read_text().split()) == {"--no-optional-locks"}


def test_the_code_of_a_trial_with_parts_of_the_users_own_is_recorded_with_and_without_them() -> None:
    own = provenance("cpu", 1, seed=0, parts=("tests.harness.builders.Shallow",))
    assert own["code"] == code_fingerprint(("tests.harness.builders.Shallow",))
    assert (own["bbcu"], own["parts"]) == (code_fingerprint(), "tests.harness.builders.Shallow")
    assert not {"bbcu", "parts"} & provenance("cpu", 1, seed=0).keys()
