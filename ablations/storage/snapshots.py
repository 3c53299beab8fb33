"""Snapshots of a training, from which a trial that was interrupted goes on.

A snapshot is one file, written beside its place and moved there, whose name has the step and the start of the SHA-256
of its bytes. One that was cut short, or has rotted, does not match its name and is passed over for the one before.
"""

import contextlib
import hashlib
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.storage.files import first_line, replacing

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

KEPT = 2
"""How many snapshots a trial keeps: the newest, and one for the case that this one is damaged."""

NAME = re.compile(r"step(\d+)-([0-9a-f]{16})\.pt")


class Snapshots:
    """The snapshots of one trial in ``folder``.

    ``origin`` has what must be the same for a training to go on where another stopped, such as the code and torch; a
    snapshot of another origin is not taken up, since the result would be neither's.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self._folder, self._origin = folder, dict(origin)
        self._passed_over: set[Path] = set()
        self._has_warned = False

    def save(self, step: int, state: Mapping[str, Any]) -> bool:
        """Keep ``state`` as that of ``step``, and drop what is older than the one before; whether the disk took it.

        A disk that is full or went away costs the trial nothing but its way back, so the training goes on.
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
                log.warning("no snapshot at step %d: %s; the training goes on", step, error.strerror)
            self._has_warned = True
            return False
        self._has_warned = False
        # What was passed over counts for nothing: one of a later step would push out those that count.
        for path in [path for path in self._newest_first() if path not in self._passed_over][KEPT:]:
            path.unlink(missing_ok=True)
        return True

    def newest(self, device: "torch.device | str" = "cpu") -> dict[str, Any] | None:
        """The newest state that is whole and of this origin, or None; says of each other one why it is passed over."""
        for path in self._newest_first():
            reason, state = self._read(path, device)
            if state is not None:
                return state
            log.warning("%s: %s; it is passed over", path, reason)
            self._passed_over.add(path)
        return None

    def clear(self) -> None:
        """Remove every snapshot, as nothing is left to go on with."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*"):
                path.unlink(missing_ok=True)
            if self._folder.is_dir():
                self._folder.rmdir()

    def _newest_first(self) -> list[Path]:
        return sorted((path for path in self._folder.glob("step*.pt") if NAME.fullmatch(path.name)), reverse=True)

    def _read(self, path: Path, device: "torch.device | str") -> tuple[str, dict[str, Any] | None]:
        import torch

        found = NAME.fullmatch(path.name)
        assert found is not None
        try:
            content = path.read_bytes()
        except OSError as error:
            return f"cannot be read: {error.strerror}", None
        if hashlib.sha256(content).hexdigest()[:16] != found[2]:
            return "the file is damaged", None
        try:
            saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except Exception as error:
            return f"torch does not load it: {first_line(error)}", None
        if not isinstance(saved, dict) or saved.keys() != {"origin", "state"} or not isinstance(saved["origin"], dict):
            return "it is no snapshot", None
        differing = sorted(key for key in {*saved["origin"], *self._origin} if self._differs(saved["origin"], key))
        if differing:
            return f"made with another {', '.join(differing)}", None
        return "", saved["state"]

    def _differs(self, origin: Mapping[str, Any], key: str) -> bool:
        return bool(origin.get(key) != self._origin.get(key))
