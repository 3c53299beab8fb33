"""The storage backends of a search: a journal, SQLite or PostgreSQL, each safe with several processes at once.

A backend opens Optuna's storage, locks it, and tells which processes of a search are alive. Locks of the operating
system, or of a database session, are released however a process ends, so nothing ever waits for a timeout.
"""

import abc
import contextlib
import hashlib
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from bbcu.errors import BbcuError, ConfigError, unknown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import Connection, Engine


def check_storage(storage: str) -> None:
    """Raise ConfigError for a storage of a kind that does not exist, or that would be lost with the process."""
    path = storage.removeprefix("sqlite:///")
    is_sqlite = path != storage and path not in ("", ":memory:") and "?" not in path
    is_journal = "://" not in storage and storage.endswith(".log")
    is_postgresql = storage.startswith(("postgresql://", "postgresql+"))
    if not (is_sqlite or is_journal or is_postgresql):
        valid = ("FILE.log", "sqlite:///FILE.db", "postgresql+psycopg2://USER@HOST/DATABASE")
        raise ConfigError(f"hydra.sweeper.storage: {unknown('storage', _without_password(storage), valid)}")


@contextlib.contextmanager
def opened(storage: str) -> Iterator[tuple["StorageBackend", "BaseStorage"]]:
    """Open a storage and lock it: several processes that start at once would each make its tables.

    Raises BbcuError for a storage that cannot be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _errors_in_one_line(storage):
        backend = _backend_of(storage)
        with backend.locked():
            yield backend, backend.open()


class WorkerLock(abc.ABC):
    """A lock that a process of a search holds as long as it lives, by which others see that it does."""

    def __init__(self) -> None:
        self.worker = uuid.uuid4().hex

    @abc.abstractmethod
    def renew(self) -> None:
        """Acquire the lock again if it was lost with a connection."""

    @abc.abstractmethod
    def release(self) -> None: ...


class StorageBackend(abc.ABC):
    """Where a search is stored."""

    @abc.abstractmethod
    def open(self) -> "BaseStorage": ...

    @abc.abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Lock the storage against other threads and processes, which wait."""

    @abc.abstractmethod
    def worker_lock(self) -> WorkerLock: ...

    @abc.abstractmethod
    def has_ended(self, worker: str) -> bool:
        """Return whether the process of a worker lock has ended; call it while the storage is locked."""


def _backend_of(storage: str) -> StorageBackend:
    if storage.startswith("postgresql"):
        return _PostgreSQL(storage)
    if storage.startswith("sqlite:///"):
        return _SQLite(Path(storage.removeprefix("sqlite:///")))
    return _Journal(Path(storage))


class _File(StorageBackend):
    """A file, with locks of the operating system beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self._path.with_name(f".{path.name}.lock"), poll_interval=0.01)
        self._workers = self._path.with_name(f".{path.name}.workers")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._lock:
            yield

    def worker_lock(self) -> WorkerLock:
        self._workers.mkdir(exist_ok=True)
        return _FileLock(self._workers)

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


class _FileLock(WorkerLock):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / self.worker
        # It belongs to the whole process, whichever thread asks.
        self._lock = filelock.FileLock(self._path, thread_local=False)
        self._lock.acquire()

    def renew(self) -> None:
        """Do nothing: a lock on a file is never lost."""

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        self._lock.release()


class _SQLite(_File):
    WAIT_SECONDS = 60
    """How long to wait for other users of the file; SQLite's own 5 s are too few while a program reads it all."""

    def open(self) -> "BaseStorage":
        from optuna.storages import RDBStorage

        return RDBStorage(f"sqlite:///{self._path}", engine_kwargs={"creator": self._connect})

    def _connect(self) -> sqlite3.Connection:
        """Connect without waiting for the disk, which is four times as fast; a power cut can lose the last moment."""
        connection = sqlite3.connect(self._path, timeout=self.WAIT_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


class _Journal(_File):
    def open(self) -> "BaseStorage":
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path, lock = self._path, self._lock

        class WholeLinesLock(JournalFileOpenLock):
            """Our lock in place of Optuna's, which a killed process leaves behind for half a minute."""

            def acquire(self) -> bool:
                lock.acquire()
                _truncate_partial_line(path)
                return True

            def release(self) -> None:
                lock.release()

        return JournalStorage(JournalFileBackend(str(path), lock_obj=WholeLinesLock(str(path))))


def _truncate_partial_line(path: Path) -> None:
    """Truncate a partial last line, which a killed process may leave, before another line is appended to it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read() == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


class _PostgreSQL(StorageBackend):
    """A database in PostgreSQL, with its advisory locks, which are released with the session however it ends.

    A connection pooler that shares sessions, as PgBouncer does by transaction, would break them.
    """

    # The server gives up a session that has been unreachable for a minute, as after a power cut.
    KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"

    def __init__(self, url: str) -> None:
        from sqlalchemy import NullPool, create_engine

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

    def worker_lock(self) -> WorkerLock:
        return _SessionLock(self._engine)

    def has_ended(self, worker: str) -> bool:
        with self._engine.connect() as session:
            return bool(_advisory(session, "pg_try_advisory_lock", worker))


class _SessionLock(WorkerLock):
    def __init__(self, engine: "Engine") -> None:
        super().__init__()
        self._engine = engine
        self._session = self._acquire()

    def _acquire(self) -> "Connection":
        session = self._engine.connect()
        _advisory(session, "pg_advisory_lock", self.worker)
        return session

    def renew(self) -> None:
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        try:
            self._session.execute(text("SELECT 1"))
        except DBAPIError:
            self._session.invalidate()
            self._session = self._acquire()

    def release(self) -> None:
        self._session.close()


def _advisory(session: "Connection", function: str, name: str) -> Any:
    """Call one of PostgreSQL's functions on the advisory lock of that name."""
    from sqlalchemy import text

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    return session.execute(text(f"SELECT {function}(:key)"), {"key": key}).scalar()


@contextlib.contextmanager
def _errors_in_one_line(storage: str) -> Iterator[None]:
    """Turn what fails when a storage is opened into a BbcuError that names the storage."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OSError, ImportError, KeyError, ValueError, SQLAlchemyError, OptunaError) as error:
        # Optuna's own text is advice for programmers; the reason is its cause.
        cause = error.__cause__ if isinstance(error, OptunaError) and error.__cause__ is not None else error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise BbcuError(f"hydra.sweeper.storage={_without_password(storage)}: cannot be used: {reason}") from error


def _without_password(storage: str) -> str:
    scheme, mark, rest = storage.partition("://")
    login, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{login.partition(':')[0]}{at}{host}" if at else storage
