"""The one place that opens connections, commits, retries, and says what a driver's error means."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import col

from .errors import InvalidRequestError, OptimisticLockError, SchemaVersionError, StorageUnavailableError, WalletError
from .models import SCHEMA_VERSION, Base, SchemaVersionRow

T = TypeVar("T")
Attempt = Callable[[Connection, bool], T]

log = logging.getLogger(__name__)

# PostgreSQL: serialization failure, deadlock, lock timeout, and a unique violation, which among our own
# writes can only be an idempotency key or a row made at the same time: the next read answers it.
UNIQUE_VIOLATION = "23505"
CONFLICTS = {"40001", "40P01", "55P03", UNIQUE_VIOLATION}
# Connection exceptions, shutdown, crash, start-up, too many clients.
LOST = {"08000", "08001", "08003", "08004", "08006", "08007", "57P01", "57P02", "57P03", "53300"}
# SQLite: busy and locked (primary codes), and violations of a unique index or primary key (extended codes).
SQLITE_CONFLICTS = {5, 6}
SQLITE_UNIQUE_VIOLATIONS = {1555, 2067}
# Two create_schema() at once: duplicate table, object, function, or a row of the catalogue.
SCHEMA_RACES = {"42P07", "42710", "42723", "XX000"}

SQLITE_PRAGMAS = (
    "busy_timeout = 10000",
    "journal_mode = WAL",
    "synchronous = FULL",
    "recursive_triggers = ON",  # without it INSERT OR REPLACE deletes rows past the append-only triggers
)
READ_ONLY = "points_platform_read_only"
JOINED_ATTEMPTS = 2
MAX_DOUBLINGS = 10


class Stale(Exception):  # noqa: N818 - a state of affairs, not a mistake
    """What an attempt has read is no longer so. Never leaves this module's loops."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a transaction is tried again, and how long to wait: at most backoff * 2**n seconds."""

    attempts: int
    backoff: float

    def pause(self, retry: int) -> None:
        """Wait before the given retry: the first comes at once, later ones with full jitter."""
        if retry > 1:
            time.sleep(random.uniform(0, self.backoff * 2 ** min(retry - 2, MAX_DOUBLINGS)))  # noqa: S311 - jitter is no secret


class Database:
    """A PostgreSQL or SQLite database that holds the module's tables.

    ``target`` is a URL (``sqlite:///file.db``, ``postgresql+psycopg://…``) or the host's own SQLAlchemy
    ``Engine``; give an engine before its first connection is made, since each SQLite connection is
    configured when it opens. ``lock_timeout_ms`` bounds the wait for one row lock on PostgreSQL.
    Threads share one ``Database``; a forked worker may build its own or go on with this one.
    Raises ``InvalidRequestError`` for a target that is neither.
    """

    def __init__(self, target: str | URL | Engine, *, lock_timeout_ms: int = 5000) -> None:
        if type(lock_timeout_ms) is not int or lock_timeout_ms < 1:
            raise InvalidRequestError(
                field="lock_timeout_ms", value=lock_timeout_ms, expected="a whole number of milliseconds from 1"
            )
        self._owns_engine = not isinstance(target, Engine)
        self.engine = target if isinstance(target, Engine) else _create_engine(target)
        self._lock_timeout = text(f"SET LOCAL lock_timeout = {lock_timeout_ms}")
        self._schema_checked = False
        _prepare(self.engine)
        autocommit = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reading = self.engine.execution_options(**{READ_ONLY: True}, **autocommit)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Close the pooled connections; a host's own engine is left to the host."""
        if self._owns_engine:
            self.engine.dispose()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def create_schema(self) -> None:
        """Create the tables, indexes and triggers that are missing; idempotent, also side by side.

        Raises ``SchemaVersionError`` where another version's schema stands, and
        ``StorageUnavailableError``.
        """
        # The tables of the packages above are declared by importing them; core itself knows no table by name.
        for package in ("ledger", "wallets"):
            import_module(f"..{package}.models", __package__)
        for last in (False, False, True):
            try:
                with self.engine.begin() as connection:
                    if _schema_version(connection) is None:
                        Base.metadata.create_all(connection)
                        connection.execute(insert(SchemaVersionRow).values(version=SCHEMA_VERSION))
                break
            except SQLAlchemyError as error:
                raced = isinstance(error, DBAPIError) and (_is_conflict(error) or _code(error) in SCHEMA_RACES)
                if last or not raced:
                    raise translate(error) from error
        self._check_schema()

    def _check_schema(self) -> None:
        """Once: a database of another version, or of none, is refused before anything is read or written."""
        if self._schema_checked:
            return
        with translated(), self._reading.connect() as connection:
            found = _schema_version(connection)
        if found != SCHEMA_VERSION:
            raise SchemaVersionError(found=found, expected=SCHEMA_VERSION)
        self._schema_checked = True

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for plain reads, each statement its own snapshot on PostgreSQL."""
        self._check_schema()
        with translated(), self._reading.connect() as connection:
            yield connection

    def run(self, attempt: Attempt[T], *, retry: Retry, session: "Session | scoped_session[Any] | None" = None) -> T:
        """Carry out ``attempt(connection, locked)`` in a transaction of its own, or join the session's.

        In its own transaction it is committed, and tried again whole after a conflict or a lost
        connection; ``locked`` is true for every try but the first: lock, then read. Raises what the
        attempt raises, ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        self._check_schema()
        if session is not None:
            return self._join(attempt, session)
        for number in range(retry.attempts + 1):
            retry.pause(number)
            try:
                with self.engine.begin() as connection:
                    self._bound_lock_waits(connection)
                    return attempt(connection, number > 0)
            except (Stale, SQLAlchemyError) as error:
                failure = translate(error, attempts=number + 1)
                if not is_transient(error) or number == retry.attempts:
                    raise failure from error
                log.debug(
                    "attempt %d: %s", number + 1, failure.code, extra={"attempt": number + 1, "code": failure.code}
                )
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _join(self, attempt: Attempt[T], session: "Session | scoped_session[Any]") -> T:
        """One try in a savepoint of the caller's transaction, and a second if a unique key was taken meanwhile."""
        for last in (False, True):
            try:
                connection = session.connection()
                with connection.begin_nested(), self._lock_waits_bounded(connection):
                    return attempt(connection, True)
            except (Stale, SQLAlchemyError) as error:
                if last or not (isinstance(error, DBAPIError) and _is_unique_violation(error)):
                    raise translate(error, attempts=JOINED_ATTEMPTS if last else 1) from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _bound_lock_waits(self, connection: Connection) -> None:
        if not self.is_sqlite:
            connection.execute(self._lock_timeout)

    @contextmanager
    def _lock_waits_bounded(self, connection: Connection) -> Iterator[None]:
        """The same inside the caller's transaction, whose own setting is put back afterwards."""
        if self.is_sqlite:
            yield
            return
        before = connection.scalar(text("SELECT current_setting('lock_timeout')"))
        self._bound_lock_waits(connection)
        yield
        connection.execute(text("SELECT set_config('lock_timeout', :before, true)"), {"before": before})


def _schema_version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(SchemaVersionRow.__tablename__):
        return None
    return connection.scalar(select(col(SchemaVersionRow.version)))


def after_commit(
    session: "Session | scoped_session[Any]", key: object, item: T, deliver: Callable[[list[T]], None]
) -> None:
    """Call ``deliver`` with the items collected under ``key`` once the session's root transaction has committed.

    Nothing is delivered after a rollback of the root. What a rolled-back savepoint took with it is not
    known here: the receiver must read afresh what there is.
    """
    root = session() if isinstance(session, scoped_session) else session
    pending: dict[object, tuple[list[T], Callable[[list[T]], None]]] | None = root.info.get(after_commit)
    if pending is None:
        pending = root.info[after_commit] = {}
        _listen_for_the_end(root, pending)
    pending.setdefault(key, ([], deliver))[0].append(item)


def _listen_for_the_end(session: Session, pending: dict[object, Any]) -> None:
    committed: list[Any] = []

    # SQLAlchemy fires after_commit for released savepoints too, and before the connection is back in the pool.
    @event.listens_for(session, "after_commit")
    def mark(session: Session) -> None:
        if not session.in_nested_transaction():
            committed.extend(pending.values())

    @event.listens_for(session, "after_transaction_end")
    def end(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            deliveries = committed.copy()
            committed.clear()
            pending.clear()
            for items, deliver in deliveries:
                deliver(items)


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever SQLAlchemy or the driver raises inside into one of the module's errors."""
    try:
        yield
    except SQLAlchemyError as error:
        raise translate(error) from error


def translate(error: Exception, attempts: int = 1) -> WalletError:
    """The module's error for one of the database's: contention, or a database that did not do its work."""
    if isinstance(error, Stale) or (isinstance(error, DBAPIError) and _is_conflict(error)):
        return OptimisticLockError(attempts=attempts)
    cause = _code(error) if isinstance(error, DBAPIError) else None
    return StorageUnavailableError(cause=cause or type(getattr(error, "orig", None) or error).__name__)


def is_transient(error: Exception) -> bool:
    """Whether the same work may succeed in a fresh transaction; decided by code, never by message text."""
    if isinstance(error, DBAPIError):
        return _is_conflict(error) or _is_lost(error)
    return isinstance(error, Stale)


def _code(error: DBAPIError) -> str | int | None:
    """The SQLSTATE of PostgreSQL, or the extended result code of SQLite."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorcode", None)


def _is_conflict(error: DBAPIError) -> bool:
    code = _code(error)
    if isinstance(code, int):
        return code & 0xFF in SQLITE_CONFLICTS or _is_unique_violation(error)
    return code in CONFLICTS


def _is_unique_violation(error: DBAPIError) -> bool:
    return _code(error) in {UNIQUE_VIOLATION, *SQLITE_UNIQUE_VIOLATIONS}


def _is_lost(error: DBAPIError) -> bool:
    if error.connection_invalidated or _code(error) in LOST:
        return True
    # psycopg has no SQLSTATE where no server answered.
    return isinstance(error.orig, psycopg.OperationalError) and _code(error) is None


def _create_engine(target: str | URL) -> Engine:
    try:
        url = make_url(target)
    except (ArgumentError, ValueError):
        raise _unusable(target) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise _unusable(url.drivername)
    return create_engine(url, pool_size=16, max_overflow=16)


def _unusable(target: object) -> InvalidRequestError:
    # A URL may hold a password, and an error message ends in a log.
    value = target.rpartition("@")[2] if isinstance(target, str) else target
    return InvalidRequestError(
        field="target",
        value=value,
        expected="sqlite:///a-file.db, postgresql+psycopg://…, or an Engine for one of them",
    )


def _prepare(engine: Engine) -> None:
    """Install the listeners that the module relies on, once per engine; refuse an engine that cannot serve."""
    url, dialect = engine.url, engine.dialect
    if (dialect.name, dialect.driver) not in {("sqlite", "pysqlite"), ("postgresql", "psycopg")}:
        raise _unusable(f"{dialect.name}+{dialect.driver}")
    in_memory = url.database in {None, "", ":memory:"} or "memory" in (url.query.get("mode"), url.database)
    if dialect.name == "sqlite" and in_memory:
        raise _unusable("a database in memory, which other threads would not see")
    if event.contains(engine, "checkout", _leave_the_parents_connections):
        return
    event.listen(engine, "connect", _remember_process)
    event.listen(engine, "checkout", _leave_the_parents_connections)
    if dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)


def _remember_process(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["pid"] = os.getpid()


def _leave_the_parents_connections(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    """After a fork the pool makes new connections instead of talking over the parent's sockets."""
    if record.info.get("pid", os.getpid()) != os.getpid():
        record.dbapi_connection = proxy.dbapi_connection = None
        raise DisconnectionError("this connection belongs to the parent process")


def _configure_sqlite(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    dbapi_connection.isolation_level = None  # BEGIN is ours, see below
    cursor = dbapi_connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes fails at once with a busy snapshot, and no timeout helps.
    reads_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN DEFERRED" if reads_only else "BEGIN IMMEDIATE")
