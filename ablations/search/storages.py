"""Where Optuna keeps a search: a file, a journal or a database, each safe with several processes."""

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


def _check_storage(storage: str) -> None:
    path = storage.removeprefix("sqlite:///")
    is_sqlite = path != storage and path not in ("", ":memory:") and "?" not in path
    is_journal = "://" not in storage and storage.endswith(".log")
    is_postgresql = storage.startswith(("postgresql://", "postgresql+"))
    if not (is_sqlite or is_journal or is_postgresql):
        valid = ("FILE.log", "sqlite:///FILE.db", "postgresql+psycopg2://USER@HOST/DATABASE")
        raise ConfigError(f"hydra.sweeper.storage: {unknown('storage', _without_password(storage), valid)}")


@contextlib.contextmanager
def _opened(storage: str) -> Iterator[tuple["_Place", "BaseStorage"]]:
    """Open a storage, and have it for oneself in the body: several that start at once would each make its tables.

    Raises BbcuError for one that cannot be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _told_plainly(storage):
        place = _place_of(storage)
        with place.locked():
            yield place, place.open()


class _Claim(abc.ABC):
    """A sign that a process is there, which goes with it however it ends."""

    def __init__(self) -> None:
        self.worker = uuid.uuid4().hex

    @abc.abstractmethod
    def renew(self) -> None:
        """Put the sign up again where it was lost, as a connection may be."""

    @abc.abstractmethod
    def release(self) -> None: ...


class _Place(abc.ABC):
    """Where a history is kept: how to open it, to have it for oneself, and to see who else is there."""

    address: str

    @abc.abstractmethod
    def open(self) -> "BaseStorage": ...

    @abc.abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Have the place for oneself, against threads and processes; the others wait."""

    @abc.abstractmethod
    def claim(self) -> _Claim: ...

    @abc.abstractmethod
    def is_gone(self, worker: str) -> bool:
        """Whether the process of a claim has ended; to be asked by who has the place for himself."""


def _place_of(storage: str) -> _Place:
    if storage.startswith("postgresql"):
        return _Database(storage)
    if storage.startswith("sqlite:///"):
        return _SQLite(storage)
    return _Journal(storage)


class _File(_Place):
    """A file, with locks of the operating system beside it, which is let go of however a process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self._path.with_name(f".{path.name}.lock"), poll_interval=0.01)
        self._workers = self._path.with_name(f".{path.name}.workers")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._lock:
            yield

    def claim(self) -> _Claim:
        self._workers.mkdir(exist_ok=True)
        return _FileClaim(self._workers)

    def is_gone(self, worker: str) -> bool:
        path = self._workers / worker
        if not path.exists():
            return True
        lock = filelock.FileLock(path, blocking=False)
        try:
            with lock:
                path.unlink()
        except filelock.Timeout:
            return False
        return True


class _FileClaim(_Claim):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / self.worker
        # It is held for the whole process, whichever thread asks.
        self._lock = filelock.FileLock(self._path, thread_local=False)
        self._lock.acquire()

    def renew(self) -> None:
        """A lock on a file is never lost."""

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        self._lock.release()


class _SQLite(_File):
    WAIT_SECONDS = 60
    """How long to wait for others at the file; SQLite's own 5 s are short beside a view that reads it all."""

    def __init__(self, url: str) -> None:
        super().__init__(Path(url.removeprefix("sqlite:///")))
        self.address = f"sqlite:///{self._path}"

    def open(self) -> "BaseStorage":
        from optuna.storages import RDBStorage

        return RDBStorage(self.address, engine_kwargs={"creator": self._connected})

    def _connected(self) -> sqlite3.Connection:
        """A connection that does not wait for the disk, four times as fast; only a power cut can then lose a moment."""
        connection = sqlite3.connect(self._path, timeout=self.WAIT_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


class _Journal(_File):
    def __init__(self, path: str) -> None:
        super().__init__(Path(path))
        self.address = str(self._path)

    def open(self) -> "BaseStorage":
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path, lock = self._path, self._lock

        class WholeLines(JournalFileOpenLock):
            """Our lock in the place of Optuna's, which a killed process leaves behind for half a minute."""

            def acquire(self) -> bool:
                lock.acquire()
                _cut_torn_line(path)
                return True

            def release(self) -> None:
                lock.release()

        return JournalStorage(JournalFileBackend(str(path), lock_obj=WholeLines(str(path))))


def _cut_torn_line(path: Path) -> None:
    """Take away a last line that a process was killed over, before another one is written behind it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read() == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


class _Database(_Place):
    """A database in PostgreSQL, with its advisory locks, which are let go of with a session however it ends.

    A pooler between that shares sessions, as PgBouncer does by transaction, would break them.
    """

    # A server that hears nothing of a session for a minute gives it up, where a machine has lost its power.
    KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"

    def __init__(self, url: str) -> None:
        from sqlalchemy import NullPool, create_engine

        self.address = url
        options = {"options": self.KEEPALIVES}
        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options)

    def open(self) -> "BaseStorage":
        from optuna.storages import RDBStorage

        return RDBStorage(self.address, engine_kwargs={"pool_pre_ping": True})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self._engine.connect() as session:
            _advisory(session, "pg_advisory_lock", "bbcu search")
            yield

    def claim(self) -> _Claim:
        return _DatabaseClaim(self._engine)

    def is_gone(self, worker: str) -> bool:
        with self._engine.connect() as session:
            return bool(_advisory(session, "pg_try_advisory_lock", worker))


class _DatabaseClaim(_Claim):
    def __init__(self, engine: "Engine") -> None:
        super().__init__()
        self._engine = engine
        self._session = self._signed()

    def _signed(self) -> "Connection":
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
            self._session = self._signed()

    def release(self) -> None:
        self._session.close()


def _advisory(session: "Connection", function: str, name: str) -> Any:
    """Call one of PostgreSQL's functions on the lock of that name, which ends with the session."""
    from sqlalchemy import text

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    return session.execute(text(f"SELECT {function}(:key)"), {"key": key}).scalar()


@contextlib.contextmanager
def _told_plainly(storage: str) -> Iterator[None]:
    """Turn what goes wrong when a storage is opened into one line that names it."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OSError, ImportError, KeyError, ValueError, SQLAlchemyError, OptunaError) as error:
        # Optuna's own text is an advice for programmers; what went wrong is its cause.
        cause = error.__cause__ if isinstance(error, OptunaError) and error.__cause__ is not None else error
        why = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise BbcuError(f"hydra.sweeper.storage={_without_password(storage)}: cannot be used: {why}") from error


def _without_password(storage: str) -> str:
    scheme, mark, rest = storage.partition("://")
    login, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{login.partition(':')[0]}{at}{host}" if at else storage
