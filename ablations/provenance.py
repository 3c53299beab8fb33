"""Where a result comes from: the code, the packages and the machine."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "pillow", "scikit-image", "scikit-learn", "matplotlib", "hydra-core", "mlflow")


@functools.cache
def git_state() -> tuple[str, bool]:
    """The commit that runs and whether tracked files differ from it; ("unknown", True) outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return (commit or "unknown", commit is None or changed is None or changed != "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def provenance(device: str, threads: int, seed: int) -> dict[str, Any]:
    """What ``result.json`` keeps under ``provenance``."""
    commit, dirty = git_state()
    return {
        "git": commit,
        "dirty": dirty,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "cpu": processor(),
        "device": device,
        "threads": threads,
        "seed": seed,
    }
