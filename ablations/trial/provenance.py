"""Where a result comes from: the code, the packages and the machine."""

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from bbcu.machine import processor

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "pillow", "scikit-image", "scikit-learn", "matplotlib", "hydra-core", "mlflow")


@functools.cache
def git_state() -> tuple[str, bool]:
    """The commit that runs and whether tracked files differ from it; ("unknown", True) outside a checkout of ours."""
    is_ours = _git("rev-parse", "--show-toplevel") == str(REPOSITORY)
    commit = _git("rev-parse", "HEAD") if is_ours else None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return (commit or "unknown", commit is None or changed is None or changed != "")


def _git(*arguments: str) -> str | None:
    try:
        # Git would lock the index to refresh it, and a process that is killed would leave the lock behind.
        command = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


DECIDES_NOTHING = {
    *("model/checkpoints.py", "model/cost.py", "model/methods.py", "model/operations.py", "model/published.py"),
    "training/probes.py",
    *("data/__main__.py", "data/archives.py", "data/downloads.py", "data/unpacking.py"),
}
"""Modules of ``bbcu`` that no trained network depends on; neither does any ``__init__.py``."""

EXACT = "deploy/"
"""The room of ``bbcu`` whose results are those of other code, bit for bit, in a training too."""


@functools.cache
def code_fingerprint(parts: tuple[str, ...] = ()) -> str:
    """The first 16 digits of the SHA-256 of the code that decides the result of a training: that of ``bbcu``.

    ``parts`` are the dotted paths of parts of the user's own; their modules count too, but not what these import.
    Comments, docstrings and layout do not count, so that a better wording makes no result stale.
    """
    own = fingerprint_of(REPOSITORY / "bbcu")
    if not parts:
        return own
    modules = sorted({part.rpartition(".")[0] for part in parts})
    texts = [own, *(f"{name}\n{_syntax_of(path)}" for name in modules if (path := _source_of(name)) is not None)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@functools.cache
def fingerprint_of_own(part: str) -> str:
    """The first 16 digits of the SHA-256 of the module of one part of the user's own; empty if it has no file."""
    path = _source_of(part.rpartition(".")[0])
    return "" if path is None else hashlib.sha256(_syntax_of(path).encode()).hexdigest()[:16]


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of all modules below ``folder`` that decide a result."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if path.name != "__init__.py" and name not in DECIDES_NOTHING and not name.startswith(EXACT):
            digest.update(f"{name}\n{_syntax_of(path)}\n".encode())
    return digest.hexdigest()[:16]


def _syntax_of(path: Path) -> str:
    """The syntax of a module as text, without comments, docstrings and layout."""
    return _as_text(_without_docstrings(ast.parse(path.read_text(encoding="utf-8"))))


def _as_text(node: object) -> str:
    """A syntax tree as text, without empty fields, in which versions of Python differ."""
    if isinstance(node, ast.AST):
        held = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({', '.join(f'{name}={_as_text(value)}' for name, value in held)})"
    return f"[{', '.join(map(_as_text, node))}]" if isinstance(node, list) else repr(node)


def _source_of(module: str) -> Path | None:
    """The file of a module of the user's; None where it has none, as one that is compiled.

    A module that cannot be imported is reported when the network is built.
    """
    if module.partition(".")[0] in sys.stdlib_module_names:
        return None
    try:
        path = getattr(importlib.import_module(module), "__file__", None)
    # A module of the user's own may raise anything, and a script that is imported may exit.
    except (Exception, SystemExit):
        return None
    return Path(path) if path is not None and path.endswith(".py") else None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A string that stands alone does nothing, be it a docstring or what is said of a constant above it.
            node.body = [one for one in body if not _is_bare_string(one)]  # type: ignore[attr-defined]
    return tree


def _is_bare_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@functools.cache
def package_versions() -> tuple[tuple[str, str], ...]:
    """The version of each package that a result depends on; what is installed does not change under a process."""
    return tuple((name, importlib.metadata.version(name)) for name in PACKAGES)


def provenance(device: str, threads: int, seed: int, parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """What ``result.json`` keeps under ``provenance``; ``parts`` are the dotted paths of the user's own in the trial.

    With such parts the fingerprint of the code is that of no other trial, so ``bbcu`` has the one without them.
    """
    commit, dirty = git_state()
    own = {"bbcu": code_fingerprint(), "parts": ", ".join(parts)} if parts else {}
    return {
        "git": commit,
        "dirty": dirty,
        "code": code_fingerprint(parts),
        **own,
        "packages": dict(package_versions()),
        "python": platform.python_version(),
        "cpu": processor(),
        "device": device,
        "threads": threads,
        "seed": seed,
    }
