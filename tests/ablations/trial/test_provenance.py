"""Where a result comes from: the fingerprint of the code that made it."""

import shutil
from pathlib import Path

import pytest

from ablations.trial.provenance import DECIDES_NOTHING, REPOSITORY, code_fingerprint, fingerprint_of

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
def test_comments_docstrings_and_layout_do_not_count(folder: Path, old: str, new: str) -> None:
    before = fingerprint_of(folder)
    assert old in CODE
    (folder / "growth.py").write_text(CODE.replace(old, new))
    assert fingerprint_of(folder) == before


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
def test_code_counts(folder: Path, old: str, new: str) -> None:
    before = fingerprint_of(folder)
    (folder / "growth.py").write_text(CODE.replace(old, new))
    assert fingerprint_of(folder) != before


def test_a_new_module_counts(folder: Path) -> None:
    before = fingerprint_of(folder)
    (folder / "more.py").write_text("")
    assert fingerprint_of(folder) != before


def test_the_name_of_a_module_counts(folder: Path) -> None:
    before = fingerprint_of(folder)
    (folder / "growth.py").rename(folder / "decay.py")
    assert fingerprint_of(folder) != before


BBCU = REPOSITORY / "bbcu"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(BBCU, tmp_path_factory.mktemp("copy") / "bbcu")


@pytest.mark.parametrize("name", sorted(path.relative_to(BBCU).as_posix() for path in BBCU.rglob("*.py")))
def test_one_token_in_a_module_counts_unless_the_module_decides_nothing(copy: Path, name: str) -> None:
    module = copy / name
    text = module.read_text()
    module.write_text(text + "\nANOTHER = 1\n")
    counts = fingerprint_of(copy) != code_fingerprint()
    module.write_text(text)
    assert counts == (module.name != "__init__.py" and name not in DECIDES_NOTHING)


def test_a_fingerprint_has_sixteen_digits() -> None:
    assert len(code_fingerprint()) == 16
    assert set(code_fingerprint()) <= set("0123456789abcdef")


def test_a_fingerprint_is_the_same_under_every_version_of_python(folder: Path) -> None:
    """Versions differ in the empty fields of a syntax tree; taken under 3.11, and the same under 3.12 and 3.13."""
    assert fingerprint_of(folder) == "4bca287faf1a87a9"
