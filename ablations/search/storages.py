"""The storage backends of a search: a journal, SQLite or PostgreSQL, each safe with several processes at once.

A backend opens Optuna's storage, locks it, and checks which processes of a search are alive. Locks of the operating
system, or of a database session, are released however a process ends, so no process waits for a timeout.
"""

import abc
import contextlib
import functools
import hashlib
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from bbcu.errors import BbcuError, ConfigError, first_line, unknown
from bbcu.passwords import remember

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import Connection


REMEDY = "delete it to search anew: the results on disk are used again, so nothing is trained twice"


def check_storage(storage: str) -> None:
    """Raise ConfigError for a kind of storage that does not exist, or that would be lost when the process ends."""
    remember(storage)
    path = storage.removeprefix("sqlite:///")
    is_sqlite = path != storage and path not in ("", ":memory:") and "?" not in path
    is_journal = "://" not in storage and storage.endswith(".log")
    is_postgresql = storage.startswith(("postgresql://", "postgresql+"))
    if not (is_sqlite or is_journal or is_postgresql):
        valid = ("FILE.log", "sqlite:///FILE.db", "postgresql+psycopg2://USER@HOST/DATABASE")
        raise ConfigError(f"hydra.sweeper.storage: {unknown('storage', storage, valid)}")


@contextlib.contextmanager
def opened(storage: str) -> Iterator[tuple["StorageBackend", "BaseStorage"]]:
    """Open a storage and lock it, since processes that start at the same time would each create its tables.

    Raises BbcuError for a storage that cannot be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _errors_in_one_line(storage):
        backend = _backend_of(storage)
        with backend.locked():
            yield backend, backend.open()


class StorageBackend(abc.ABC):
    """Where a search is stored; ``worker`` identifies its process, whose lock shows others that it is alive."""

    common_folder = True
    """Whether every process that uses the storage has the same folder of results."""

    def __init__(self) -> None:
        self.worker = uuid.uuid4().hex

    @abc.abstractmethod
    def open(self) -> "BaseStorage": ...

    @abc.abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Lock the storage against other threads and processes, which wait."""

    @abc.abstractmethod
    def hold_worker_lock(self) -> None:
        """Acquire the lock of this process, unless it is held; a lock may be lost with a connection."""

    @abc.abstractmethod
    def release_worker_lock(self) -> None: ...

    @abc.abstractmethod
    def has_ended(self, worker: str) -> bool:
        """Return whether the process of a worker has ended; call it while the storage is locked."""


def _backend_of(storage: str) -> StorageBackend:
    if storage.startswith("postgresql"):
        return _PostgreSQL(storage)
    if storage.startswith("sqlite:///"):
        return _SQLite(Path(storage.removeprefix("sqlite:///")))
    return _Journal(Path(storage))


class _File(StorageBackend):
    """A file, with locks of the operating system next to it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path.absolute()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Opening a FIFO would wait for its other end.
        if self._path.exists() and not self._path.is_file():
            raise ConfigError(f"hydra.sweeper.storage={path}: is not a file")
        self._lock = filelock.FileLock(self._path.with_name(f".{path.name}.lock"), poll_interval=0.01)
        self._workers = self._path.with_name(f".{path.name}.workers")
        # The lock belongs to the process, not to a thread.
        self._own_lock = filelock.FileLock(self._workers / self.worker, thread_local=False)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._lock:
            yield

    def hold_worker_lock(self) -> None:
        self._workers.mkdir(exist_ok=True)
        if not self._own_lock.is_locked:
            self._own_lock.acquire()

    def release_worker_lock(self) -> None:
        (self._workers / self.worker).unlink(missing_ok=True)
        self._own_lock.release()

    def has_ended(self, worker: str) -> bool:
        path = self._workers / worker
        if not path.exists():
            return True
        try:
            with filelock.FileLock(path, blocking=False):
                path.unlink()
        except filelock.Timeout:
            return False
        return True


class _SQLite(_File):
    WAIT_SECONDS = 60
    """How long to wait for other users of the file; SQLite's 5 s are too short while a program reads all of it."""

    def open(self) -> "BaseStorage":
        from optuna.storages import RDBStorage

        with contextlib.closing(self._connect()) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise refusal(f"sqlite:///{self._path}", f"the database is damaged: {found}")
        return RDBStorage(f"sqlite:///{self._path}", engine_kwargs={"creator": self._connect})

    def _connect(self) -> sqlite3.Connection:
        """Connect without waiting for the disk, which is four times as fast; a power cut may lose recent changes."""
        connection = sqlite3.connect(self._path, timeout=self.WAIT_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


class _Journal(_File):
    def open(self) -> "BaseStorage":
        from optuna.storages import JournalStorage

        from ablations.search.journal import ChainedJournal

        return JournalStorage(ChainedJournal(self._path, self._lock, functools.partial(refusal, str(self._path))))


class _PostgreSQL(StorageBackend):
    """A database in PostgreSQL, with its advisory locks, which are released with the session however it ends.

    A connection pooler that shares sessions, as PgBouncer does by transaction, would break them.
    """

    # Machines without a common folder can share a database.
    common_folder = False

    # The server closes a session whose client has been unreachable for a minute, for example after a power cut.
    KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"

    def __init__(self, url: str) -> None:
        from sqlalchemy import NullPool, create_engine

        super().__init__()
        self._session: Connection | None = None
        self._url = url
        options = {"options": self.KEEPALIVES}
        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options)

    def open(self) -> "BaseStorage":
        from optuna.storages import RDBStorage

        return RDBStorage(self._url, engine_kwargs={"pool_pre_ping": True})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._engine.connect() as session:
            _advisory(session, "pg_advisory_lock", "bbcu search")
            yield

    def hold_worker_lock(self) -> None:
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        if self._session is not None:
            try:
                self._session.execute(text("SELECT 1"))
                return
            except DBAPIError:
                self._session.invalidate()
        self._session = self._engine.connect()
        _advisory(self._session, "pg_advisory_lock", self.worker)

    def release_worker_lock(self) -> None:
        if self._session is not None:
            self._session.close()

    def has_ended(self, worker: str) -> bool:
        with self._engine.connect() as session:
            return bool(_advisory(session, "pg_try_advisory_lock", worker))


def _advisory(session: "Connection", function: str, name: str) -> Any:
    """Call one of PostgreSQL's functions on the advisory lock of that name."""
    from sqlalchemy import text

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    return session.execute(text(f"SELECT {function}(:key)"), {"key": key}).scalar()


@contextlib.contextmanager
def _errors_in_one_line(storage: str) -> Iterator[None]:
    """Turn errors of opening a storage into a BbcuError of one line that names the storage."""
    from optuna.exceptions import OptunaError

    try:
        yield
    except BbcuError:
        raise
    except Exception as error:  # Optuna reads bytes that may be anything, and says not which errors it raises.
        # Optuna's message is advice for programmers; the cause has the reason.
        cause = error.__cause__ if isinstance(error, OptunaError) and error.__cause__ is not None else error
        raise BbcuError(f"hydra.sweeper.storage={storage}: cannot be used: {first_line(cause)}") from error


def refusal(storage: str, reason: str) -> BbcuError:
    """Return the error for a storage whose content contradicts itself or the results on disk."""
    return BbcuError(f"hydra.sweeper.storage={storage}: cannot be used: {reason}; {REMEDY}")
