"""Making engines, and installing what the module relies on, on its own and on the host's."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from .errors import InvalidRequestError
from .values import plain_string

BUSY_TIMEOUT_MS = 10_000
WAIT = f"busy_timeout = {BUSY_TIMEOUT_MS}"
SQLITE_PRAGMAS = (
    WAIT,
    "journal_mode = WAL",
    "synchronous = FULL",
    "recursive_triggers = ON",  # without it INSERT OR REPLACE deletes rows past the append-only triggers
)
SQLITE_BUSY = 5
WAL_TIMEOUT = 10.0
WAL_PAUSE = 0.01
# The mode of a file is written into it, so whoever only reads leaves it, and can write nothing by mistake.
SQLITE_READING = (WAIT, "query_only = ON")
READ_ONLY = "points_platform_read_only"
LEVEL = "points_platform_level"
AUTOCOMMIT = "AUTOCOMMIT"
SUPPORTED = {("sqlite", "pysqlite"), ("postgresql", "psycopg")}


def create(target: str | URL) -> Engine:
    """The engine for a URL. Raises ``InvalidRequestError`` for one that cannot serve."""
    if hasattr(target, "sync_engine"):
        raise _unusable(f"an async engine: {type(target).__name__}")
    if not isinstance(target, URL | str):
        raise _unusable(target)
    try:
        url = make_url(plain_string(target) or target)
    except (ArgumentError, ValueError):
        # Not shown: it may hold a password in a place that only its author knows.
        raise _unusable("a text that is no URL") from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise _unusable(url.drivername)
    _check_file(url)
    try:
        return create_engine(url, pool_size=16, max_overflow=16)
    except (TypeError, ValueError, ArgumentError):
        raise _unusable(f"{url.drivername} with options that it does not know") from None


def reading_only(engine: Engine) -> Engine:
    """The same engine for a ``Database`` that only reads; to be said before it is prepared."""
    engine.update_execution_options(**{READ_ONLY: True})
    return engine


def prepare(engine: Engine) -> None:
    """Install the listeners that the module relies on, once per engine.

    Raises ``InvalidRequestError`` for an engine that cannot serve.
    """
    dialect = engine.dialect
    if dialect.is_async:
        raise _unusable(f"an async engine for {dialect.name}+{dialect.driver}")
    if (dialect.name, dialect.driver) not in SUPPORTED:
        raise _unusable(f"{dialect.name}+{dialect.driver}")
    _check_file(engine.url)
    # An engine with options shares its pool with the one behind it, so that one needs the listeners too.
    engine = getattr(engine, "_proxied", engine)
    if event.contains(engine, "checkout", _leave_the_parents_connections):
        return
    event.listen(engine, "connect", _remember_process)
    event.listen(engine, "checkout", _leave_the_parents_connections)
    if dialect.name == "sqlite":
        reads_only = engine.get_execution_options().get(READ_ONLY, False)
        event.listen(engine, "connect", _configure_sqlite_for_reading if reads_only else _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _remember_level)


def level_of_engine(engine: Engine) -> str | None:
    """The isolation level among the options of a host's engine. Raises ``InvalidRequestError`` for autocommit."""
    level = engine.get_execution_options().get("isolation_level")
    level = level and level.replace("_", " ").upper()
    if level == AUTOCOMMIT:
        raise _autocommits("target")
    return level


def level_of_connection(pooled: PoolProxiedConnection) -> str | None:
    """The isolation level that the engine gives to its connections on PostgreSQL; ``None`` is the server's.

    Raises ``InvalidRequestError`` for autocommit.
    """
    check_transactional(pooled, "target")
    if LEVEL not in pooled.info:  # a connection from before the engine was prepared
        _remember_level(pooled.dbapi_connection, pooled)
    level: str | None = pooled.info[LEVEL]
    if level == AUTOCOMMIT:
        raise _autocommits("target")
    return level


@contextmanager
def busy_timeout(pooled: PoolProxiedConnection, milliseconds: int) -> Iterator[None]:
    """How long a SQLite connection waits for the file's lock inside the block; a host's own shorter wait stands."""
    cursor = pooled.cursor()
    (before,) = cursor.execute("PRAGMA busy_timeout").fetchone()
    wait = milliseconds if before == BUSY_TIMEOUT_MS else min(before, milliseconds)
    cursor.execute(f"PRAGMA busy_timeout = {wait}")
    try:
        yield
    finally:
        with suppress(Exception):  # a connection that is no more
            cursor.execute(f"PRAGMA busy_timeout = {before}")
            cursor.close()


def check_transactional(pooled: PoolProxiedConnection, field: str) -> None:
    """Refuse a connection that commits each statement by itself: half an operation would stay."""
    if getattr(pooled.dbapi_connection, "autocommit", False):
        raise _autocommits(field)


def _autocommits(field: str) -> InvalidRequestError:
    expected = "one without it, or an isolation_level"
    return InvalidRequestError(field=field, value="a connection in autocommit", expected=expected)


def _check_file(url: URL) -> None:
    if url.get_backend_name() != "sqlite":
        return
    file = url.database or ""
    if file in {"", "file:"} or ":memory:" in file or "memory" in url.query.get("mode", ""):
        raise _unusable("a database in memory, which other threads would not see")
    try:
        named = os.fsencode(file)
    except UnicodeEncodeError:
        raise _unusable("the name of a file that no file can have") from None
    if b"\0" in named:
        raise _unusable("the name of a file with a NUL")


def _unusable(value: object) -> InvalidRequestError:
    return InvalidRequestError(
        field="target",
        value=value,
        expected="sqlite:///a-file.db, postgresql+psycopg://…, or an Engine for one of them, and no async one "
        "(points_platform.aio serves those who await)",
    )


def _remember_process(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["pid"] = os.getpid()


def _remember_level(dbapi_connection: Any, record: ConnectionPoolEntry | PoolProxiedConnection) -> None:
    # Of a new connection: once it was lent at another level, SQLAlchemy spells out the server's own on it.
    level = dbapi_connection.isolation_level
    record.info[LEVEL] = AUTOCOMMIT if dbapi_connection.autocommit else level and level.name.replace("_", " ")


def _leave_the_parents_connections(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    """After a fork the pool makes new connections instead of talking over the parent's sockets."""
    if record.info.get("pid", os.getpid()) != os.getpid():
        record.dbapi_connection = proxy.dbapi_connection = None
        raise DisconnectionError("this connection belongs to the parent process")


def _configure_sqlite(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    _set_sqlite(dbapi_connection, SQLITE_PRAGMAS)


def _configure_sqlite_for_reading(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    _set_sqlite(dbapi_connection, SQLITE_READING)


def _set_sqlite(dbapi_connection: Any, pragmas: Sequence[str]) -> None:
    dbapi_connection.isolation_level = None  # BEGIN is ours, see below
    cursor = dbapi_connection.cursor()
    for pragma in pragmas:
        _set(cursor, pragma)
    cursor.close()


def _set(cursor: Any, pragma: str) -> None:
    # For a new file's change to WAL, which others may make at the same moment, no busy timeout counts.
    until = time.monotonic() + WAL_TIMEOUT
    while True:
        try:
            cursor.execute(f"PRAGMA {pragma}")
            return
        except Exception as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(WAL_PAUSE)


def _begin_sqlite(connection: Connection) -> None:
    if getattr(connection.connection.dbapi_connection, "in_transaction", False):
        return  # a host has begun it by a listener of its own
    # A transaction that reads first and then writes fails at once with a busy snapshot, and no timeout helps.
    reads_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN DEFERRED" if reads_only else "BEGIN IMMEDIATE")
