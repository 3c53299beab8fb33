"""Write files so that readers and crashes never see a part of one, and read files that may be anything.

A temporary file or folder holds a lock of the operating system for as long as its process lives, on whatever machine
that is. What holds no lock was left behind by a process that was killed, and :func:`remove_abandoned` removes it.
Modes follow the umask.
"""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

ENDING = ".tmp"
"""How the names of temporary files and folders end; they begin with a dot."""

TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{12}}\{ENDING}", re.DOTALL)
"""The names of temporary files and folders: a dot, the start of the target's name, and an identity.

They are short because the path of a socket, which Ray makes in such a folder, may have 107 bytes.
"""

NAME_LENGTH = 32
"""How many characters of the target's name a temporary one has; a name may have 255 bytes."""

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""The errors of a file system that has no locks; what is left behind there is not removed."""

LARGEST_TEXT = 256 * 2**20
"""The most bytes that :func:`read_bytes` reads by default; the plan of 10,000 trials has a tenth of that."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, and move it to ``path`` unless an error is raised.

    ``durable`` waits until the content is on the disk, so that it survives a power cut; otherwise it survives only the
    end of this process. Raises OSError if the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, _create) as temporary:
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(path)


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace ``path`` by ``text``; readers see the old content or the new one, never a part, even after a crash."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Yield a new folder beside ``beside``, on the same disk, so that it can be renamed; it is removed at the end."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with _locked(beside, Path.mkdir) as temporary:
        yield temporary


@contextlib.contextmanager
def _locked(beside: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """Create and lock a temporary file or folder; remove it at the end if it is still there."""
    temporary, handle = _create_locked(beside, create)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)
        if handle is not None:
            os.close(handle)


def _create_locked(beside: Path, create: Callable[[Path], object]) -> tuple[Path, int | None]:
    while True:
        temporary = beside.with_name(f".{beside.name[:NAME_LENGTH]}.{uuid.uuid4().hex[:12]}{ENDING}")
        create(temporary)
        try:
            handle = _lock(temporary)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            return temporary, None
        if handle is not None:
            return temporary, handle


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _lock(path: Path) -> int | None:
    """Lock a temporary file or folder; None if another process has locked it, or has removed it as abandoned."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str | None = None) -> list[Path]:
    """Remove the temporary files and folders directly in ``folder`` that no living process holds, and return them.

    ``name`` is that of the target, for a folder in which other programs have files too. What cannot be locked or
    removed, as that of another user, stays.
    """
    removed = []
    start = "*" if name is None else glob.escape(name[:NAME_LENGTH])
    for path in sorted(path for path in folder.glob(f".{start}.*{ENDING}") if TEMPORARY.fullmatch(path.name)):
        with contextlib.suppress(OSError):
            handle = _lock(path)
            if handle is not None:
                try:
                    _remove(path)
                    removed.append(path)
                finally:
                    os.close(handle)
    return removed


def why_untrusted(folder: Path) -> str | None:
    """Return why another user could change what is in ``folder``, or None if only this user and root can.

    The folder and all above it, after links, must belong to one of the two, and nobody else may be able to write to
    them. A sticky folder such as ``/tmp`` may be above it: what is in there can be renamed by its owner alone.
    """
    try:
        path = folder.resolve(strict=True)
        for level in (path, *path.parents):
            status = level.stat()
            if status.st_uid not in (0, os.geteuid()):
                return f"{level} belongs to another user"
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and (level == path or not status.st_mode & stat.S_ISVTX):
                return f"other users can write to {level}"
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


class NotAFile(OSError):
    """A path that is to be read is no regular file, such as a FIFO, or is larger than is allowed."""


def read_bytes(path: Path, limit: int = LARGEST_TEXT, start: int = 0) -> bytes:
    """Return the content of a regular file from ``start`` on; raise NotAFile for any other, and beyond ``limit`` bytes.

    A FIFO or a device does not block. Raises OSError if the file cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFile(errno.EINVAL, "not a regular file", str(path))
        file.seek(start)
        size, most = max(status.st_size - start, 0), limit - start
        # Python allocates as much as it is asked to read, however short the file is.
        content = file.read(min(size, most) + 1)
        if size < len(content) <= most:
            content += file.read(most + 1 - len(content))
    if len(content) > most:
        raise NotAFile(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return content


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """Return the content of a regular file as UTF-8 text, as :func:`read_bytes`; raise ValueError if it is not text."""
    return read_bytes(path, limit).decode("utf-8")
