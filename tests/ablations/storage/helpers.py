"""Leases, results and warnings that the tests of several rooms share, and a process that holds a trial."""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from ablations.storage.folder import CurvePoint, TrialFolder
from ablations.storage.lease import Lease, lease_path, process_start_of, this_host, trial_lock
from bbcu.files import write_atomically

CELL = "a" * 64
FORK = get_context("fork")


def result(seed: int = 0, cell: str = CELL) -> dict[str, Any]:
    """A whole result with round numbers."""
    return {
        "study": "tiny",
        "cell": cell,
        "name": "bn=post",
        "factors": {"residual": True, "bn": "post", "align": 1.0},
        "levels": {"residual": True, "bn": "post", "align": "auto"},
        "reference": {"residual": True, "bn": "none", "align": "auto"},
        "setting": {"task": {"name": "sr_x2"}, "channels": 8, "train": {"steps": 20}, "data": "f" * 64},
        "method": "custom",
        "task": "sr_x2",
        "seed": seed,
        "metrics": {"Set5": {"psnr_db": 36.0, "ssim": 0.95, "images": {"baby": {"psnr_db": 36.0, "ssim": 0.95}}}},
        "baseline": {"Set5": {"psnr_db": 34.0, "ssim": 0.93}},
        "cost": {"ops_g": 18.55, "params_k": 224.6},
        "timing": {"train_s": 2.0, "step_ms": 100.0, "evaluate_s": 1.0},
        "probes": {},
        "provenance": {"git": "0" * 40, "dirty": False},
    }


def finished(outputs: Path, seed: int = 0) -> TrialFolder:
    """A folder with a whole result, a curve of two points, a log and a picture."""
    folder = TrialFolder(outputs, "tiny", CELL, seed)
    folder.write_curve([CurvePoint(10, {"train/loss": 0.5}, 1.0), CurvePoint(20, {"train/loss": 0.25}, 2.0)])
    folder.write_result(result(seed))
    folder.config_path.write_text("seed: 0\n")
    (folder.samples / "Set5" / "baby").mkdir(parents=True)
    (folder.samples / "Set5" / "baby" / "output.png").write_bytes(b"picture")
    return folder


def put_lease(folder: TrialFolder, **changes: Any) -> Lease:
    """Write the lease of this very process, except for ``changes``, without its lock."""
    lease = Lease(
        *(folder.study, folder.cell, folder.seed, "bbcu", "", 500),
        token="some",
        host=this_host(),
        pid=os.getpid(),
        process_start=process_start_of(os.getpid()) or "",
        began=time.time(),
    )
    lease = dataclasses.replace(lease, **changes)
    write_atomically(lease_path(folder), json.dumps(dataclasses.asdict(lease)))
    return lease


class Warnings(logging.Handler):
    """Collects the warnings of this package, in a process that has no fixtures."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger("ablations").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _hold(folder: TrialFolder, connection: Connection) -> None:
    with trial_lock(folder, "other"):
        connection.send("held")
        connection.recv()


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a trial until it is told to release it, or is killed."""

    process: ForkProcess
    connection: Connection

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def release(self) -> int | None:
        """Tell it to release the trial, and return its exit status."""
        self.connection.send("release")
        self.process.join(60)
        return self.process.exitcode


@contextlib.contextmanager
def holder_of(folder: TrialFolder) -> Iterator[Holder]:
    """Start another process that holds the trial; kill it afterwards."""
    connection, its_own = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(folder, its_own))
    process.start()
    try:
        assert connection.recv() == "held"
        yield Holder(process, connection)
    finally:
        process.kill()
        process.join()
