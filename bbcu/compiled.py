"""Code that is compiled for this machine: the compiler, and folders that nobody else can put code into."""

import contextlib
import os
import shutil
from pathlib import Path

import torch

from bbcu.files import why_untrusted

TORCH_CACHE, TRITON_CACHE = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
"""The environment variables that say where torch's compiler caches its code."""

COMPILE_OPTIONS = {"cpp_cache_precompile_headers": False}
"""Options of torch's compiler.

It would keep 150 MB of precompiled headers in a folder of ``TMPDIR`` whose name anybody can guess, whatever
``TORCHINDUCTOR_CACHE_DIR`` says, and include in a training what another user has put there. They save two seconds of
each compilation after the first.
"""


def cpp_compiler() -> str | None:
    """Return the path of the C++ compiler that torch would call: ``CXX`` if it is set, else the first usual one."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for name in candidates if (found := shutil.which(name))), None)


NO_COMPILER = "no C++ compiler found (g++, clang++ or CXX)"


def own_cache() -> Path | None:
    """Return this user's folder for compiled code, as the XDG specification has it; None without a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "bbcu" / "compiled"
    except RuntimeError:
        return None


def make_private(folder: Path) -> bool:
    """Make a folder, with those above it that are missing, for this user alone; return whether it is there."""
    with contextlib.suppress(OSError):
        for level in reversed([folder, *folder.parents]):
            level.mkdir(mode=0o700, exist_ok=True)
    return folder.is_dir()


def use_cache(folder: Path | None = None) -> None:
    """Let torch's compiler cache its code for other processes and later runs, unless a cache is configured already.

    It is below ``folder``, by default the user's cache folder. What is in the cache runs in this process, so nobody
    else may be able to write to it: each user has a folder of their own. Where others could replace it, as in the
    outputs of a shared study, the user's cache folder is used instead. If that is no better, or a configured cache is
    not, :func:`untrusted_cache` says why.

    Call it before torch's compiler is imported. torch locks the entries, so processes may share the folder. Each set of
    vector instructions has a folder inside it, because code that was compiled for AVX-512 crashes a machine without it.
    """
    if TORCH_CACHE not in os.environ:
        shared = []
        if folder is not None:
            # Everybody who shares the outputs needs this folder, and nobody else those below it.
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
            shared = [folder.resolve() / str(os.getuid())]
        instructions = torch.backends.cpu.get_cpu_capability().replace(" ", "-").lower()
        places = [place / instructions for place in (*shared, own_cache()) if place]
        trusted = (place for place in places if make_private(place) and why_untrusted(place) is None)
        chosen = next(trusted, next(iter(places), None))
        if chosen is None:
            return
        os.environ[TORCH_CACHE] = str(chosen)
    os.environ.setdefault(TRITON_CACHE, str(Path(os.environ[TORCH_CACHE]) / "triton"))
    for variable in (TORCH_CACHE, TRITON_CACHE):
        make_private(Path(os.environ[variable]))


def untrusted_cache(variable: str) -> str | None:
    """Return why code must not be compiled into, or loaded from, the folder that this variable names, or None."""
    if variable not in os.environ:
        return f"{variable} is not set, and torch would choose a folder that others can write to"
    return f"{variable}: {reason}" if (reason := why_untrusted(Path(os.environ[variable]))) else None
