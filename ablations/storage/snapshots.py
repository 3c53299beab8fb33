"""Snapshots of a training, from which an interrupted trial resumes.

A snapshot is one file, written atomically, whose name has the step and the start of the SHA-256 of its bytes. A damaged
or truncated file does not match its name, and the snapshot before it is used.
"""

import contextlib
import hashlib
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbcu.errors import first_line
from bbcu.files import read_bytes, replacing

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

RETAINED = 2
"""How many snapshots of a trial are retained: the newest, and one in case that is damaged."""

LARGEST = 16 * 2**30
"""The most bytes of a snapshot that are read."""

NAME = re.compile(r"step([0-9]+)-([0-9a-f]{16})\.pt")


class Snapshots:
    """The snapshots of one trial in ``folder``.

    ``origin`` has what must be the same to resume a training, such as the code and the version of torch. A snapshot of
    a different origin is skipped, since the result would belong to neither.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self._folder, self._origin = folder, dict(origin)
        self._skipped: set[Path] = set()
        self._has_warned = False

    def save(self, step: int, state: Mapping[str, Any]) -> bool:
        """Save ``state`` as that of ``step`` and delete old snapshots; return whether it could be written.

        A trial can finish without a snapshot, so a failure is logged and not raised.
        """
        import torch

        buffer = io.BytesIO()
        torch.save({"origin": self._origin, "state": dict(state)}, buffer)
        content = buffer.getvalue()
        name = f"step{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        try:
            with replacing(self._folder / name) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            if not self._has_warned:
                log.warning("no snapshot at step %d: %s; training continues", step, error.strerror)
            self._has_warned = True
            return False
        self._has_warned = False
        # A skipped snapshot of a later step must not displace a usable one.
        for path in [path for path in self._newest_first() if path not in self._skipped][RETAINED:]:
            path.unlink(missing_ok=True)
        return True

    def newest(self, device: "torch.device | str" = "cpu") -> dict[str, Any] | None:
        """Return the newest state that is intact and of this origin, or None; log why a newer one is skipped."""
        for path in self._newest_first():
            reason, state = self._read(path, device)
            if state is not None:
                return state
            log.warning("%s: %s; skipped", path, reason)
            self._skipped.add(path)
        return None

    def clear(self) -> None:
        """Remove every snapshot."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*"):
                path.unlink(missing_ok=True)
            if self._folder.is_dir():
                self._folder.rmdir()

    def _newest_first(self) -> list[Path]:
        return sorted((path for path in self._folder.glob("step*.pt") if NAME.fullmatch(path.name)), reverse=True)

    def _read(self, path: Path, device: "torch.device | str") -> tuple[str, dict[str, Any] | None]:
        import torch

        match = NAME.fullmatch(path.name)
        assert match is not None
        try:
            content = read_bytes(path, LARGEST)
        except OSError as error:
            return f"cannot be read: {error.strerror}", None
        if hashlib.sha256(content).hexdigest()[:16] != match[2]:
            return "the file is damaged", None
        try:
            saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except Exception as error:
            return f"torch does not load it: {first_line(error)}", None
        if not isinstance(saved, dict) or saved.keys() != {"origin", "state"}:
            return "it is not a snapshot", None
        if not isinstance(saved["origin"], dict) or not isinstance(saved["state"], dict):
            return "it is not a snapshot", None
        origin = saved["origin"]
        differing = sorted(key for key in {*origin, *self._origin} if origin.get(key) != self._origin.get(key))
        if differing:
            return f"made with a different {', '.join(differing)}", None
        return "", saved["state"]
