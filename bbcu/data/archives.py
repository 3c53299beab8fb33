"""Unpack archives that are not trusted: nothing outside the folder, no links, no devices, no bombs, in bounded time.

The parsers of the standard library bound neither their time nor their memory, and no other thread can stop them. So
each archive is unpacked by a process of its own, :mod:`bbcu.data.unpacking`, under limits of the operating system.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

from bbcu.errors import DataError, printable

Kind = Literal["zip", "tar"]

CHUNK = 2**18

LARGEST = 64 * 2**30
"""The most bytes that any archive may unpack to."""

MOST_EXPANSION = 20
"""How many times its own size an archive may unpack to; pictures are compressed already and come to about once."""

SMALLEST_LIMIT = 64 * 2**20
"""What even the smallest archive may unpack to: it may be mostly text, which compresses well."""

SMALLEST_ENTRY = 1024
"""The least that a file or folder counts for: millions of empty files fill a disk as well."""

MEMORY = 2**30
"""The bytes of memory that unpacking may take; the widest dictionary of xz without special options takes 64 MiB."""

SECONDS = 30
"""The processor time that unpacking even the smallest archive may take."""

SECONDS_PER_BYTE = 1e-6
"""The processor time that each byte of an archive adds; bzip2, the slowest, needs a tenth of that for pictures."""

LONGEST_MESSAGE = 300


def unpack(archive: Path, kind: Kind, member: str | None, folder: Path) -> None:
    """Unpack an archive, or only its folder ``member``, into an empty folder.

    Links and devices are refused, since pictures need none, and so are absolute names and names with ``..``. Outside
    ``member`` only such names and links that lead out of the archive are refused. The content may be 20 times the size
    of the archive or 64 MiB, whichever is more, and never more than 64 GiB. Unpacking may take 1 GiB of memory, and 30
    seconds of processor time and another for each 1,000,000 bytes of the archive.
    Raises DataError for what is refused, and for an archive that is damaged or does not hold ``member``; the caller
    removes what was unpacked until then. Raises OSError if the disk cannot be written, or if the unpacking process is
    killed from outside.
    """
    size = archive.stat().st_size
    seconds = SECONDS + int(size * SECONDS_PER_BYTE)
    task = {
        "archive": str(archive),
        "kind": kind,
        "member": member,
        "folder": str(folder),
        "most": min(LARGEST, max(SMALLEST_LIMIT, MOST_EXPANSION * size)),
    }
    command = [sys.executable, "-P", "-m", "bbcu.data.unpacking", json.dumps(task), str(seconds), str(MEMORY)]
    command.append(str(os.getpid()))
    # The modules are those of this process, wherever it has them from. Ctrl-C and any other exception kill the child.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        raise DataError(f"the archive cannot be read: it takes more than {seconds} seconds of processor time")
    if done.returncode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        raise ChildProcessError("the process that unpacks it was killed; the same command tries again")
    if done.returncode:
        last = done.stderr.decode(errors="replace").splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise DataError(f"the archive cannot be read: the process that unpacks it failed: {one_line(last[0])}")
    answer = json.loads(done.stdout)
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["file"])
    if answer["refused"]:
        raise DataError(answer["refused"])


def one_line(error: Exception | str) -> str:
    """Show a message, or that of an error, on one line of bounded length; without a message, the type of the error."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."
