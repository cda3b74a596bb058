"""Connections to the one database: opening them, what is looked at before they are used, reading, the schema."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import Any, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, text
from sqlalchemy.orm import Session

from ..migrations import TableInTheWayError, check_untranslated, upgrade
from .clock import Clock, GivenClock, ServersClock, SqlitesClock, microseconds, steady
from .engines import (
    AUTOCOMMIT,
    READ_ONLY,
    busy_timeout,
    check_transactional,
    create,
    level_of_connection,
    level_of_engine,
    prepare,
)
from .errors import InvalidRequestError, SchemaVersionError, WalletError
from .failures import (
    FAILURES,
    REPEAT,
    START_OVER,
    translated,
    twice,
)
from .rights import DENIED, lacking
from .schema import Home, SchemaState, state
from .sessions import HostSession, Whereabouts, bind_of, elsewhere, session_of
from .statement import ISOLATION_LEVELS, in_transaction

T = TypeVar("T")

SQLITE_WAITS = 2  # how many attempts of one call wait for the lock that SQLite has, before the others only look

LONGEST_LOCK_TIMEOUT_MS = 2**31 - 1  # what PostgreSQL takes for one; a longer one would fail every operation
SNAPSHOT = {READ_ONLY: True, "postgresql_readonly": True}
SNAPSHOT_SETTINGS = ("work_mem = '64MB'", "jit = off")
NOW = microseconds("clock_timestamp()").replace(":", "\\:")
TIME = text(f"SELECT {NOW}")


class Connections:
    """The part of a ``Database`` that opens, reads and looks at connections; its parameters are described there."""

    def __init__(
        self,
        target: str | URL | Engine,
        *,
        lock_timeout_ms: int = 5000,
        single_statement: bool = True,
        isolation_level: str | None = None,
        schema: str | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if type(lock_timeout_ms) is not int or not 1 <= lock_timeout_ms <= LONGEST_LOCK_TIMEOUT_MS:
            expected = f"a whole number of milliseconds from 1 to {LONGEST_LOCK_TIMEOUT_MS}"
            raise InvalidRequestError(field="lock_timeout_ms", value=lock_timeout_ms, expected=expected)
        if isolation_level is not None and isolation_level not in ISOLATION_LEVELS:
            raise InvalidRequestError(
                field="isolation_level", value=isolation_level, expected=f"None, {', '.join(ISOLATION_LEVELS)}"
            )
        self._owns_engine = not isinstance(target, Engine)
        self.engine = target if isinstance(target, Engine) else create(target)
        self._lock_timeout_ms = lock_timeout_ms
        self.lock_timeout = f"{lock_timeout_ms}ms"
        self.single_statement = single_statement and not self.is_sqlite
        # Joins with the rows of a parameter: what a plan made for an empty table would cost on a large one.
        self._settings = {"lock_timeout": self.lock_timeout, "plan_cache_mode": "force_custom_plan"}
        self._clock = _clock_of(self.engine, clock)
        self._process = os.getpid()
        self._isolation_level = None if self.is_sqlite else isolation_level or level_of_engine(self.engine)
        check_untranslated(self.engine, "target")
        self._home = Home(schema, self.engine.dialect.name)
        prepare(self.engine)
        self.whereabouts = Whereabouts(self.engine, self._told, schema)

    @property
    def schema(self) -> str | None:
        """The schema that everything is kept in; ``None`` is the first one of the search path."""
        return self._home.schema

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite; else it is PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Close the pooled connections; a host's own engine is left to the host."""
        if self._owns_engine:
            self._dispose()

    def now(self) -> datetime:
        """The database's time, which everything that is recorded is dated by, in UTC; or that of the given clock.

        Raises ``StorageUnavailableError`` where it is not known and cannot be asked for, ``InvalidRequestError`` for a
        given clock that tells no aware time.
        """
        at = self._clock.now()
        if at is None:
            with translated(), self._plain() as connection:
                at = self._measured(connection)
        return at

    def _measured(self, connection: Connection) -> datetime:
        """The time, asked for now."""
        asked_at = steady()
        server: int = connection.execute(TIME).scalar_one()
        self._clock.told(server, asked_at)
        return self._clock.dated(server)

    def _dispose(self) -> None:
        # A child that closed what it has inherited would end the sessions of its parent.
        self.engine.dispose(close=os.getpid() == self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def create_schema(self) -> None:
        """Bring the database, empty or of an older release, to this release's schema; idempotent, also side by side.

        Raises ``InvalidRequestError`` where a table of another one's has a name of ours (nothing is created then),
        ``SchemaVersionError`` where a newer release's schema stands that this one may not write to, and
        ``StorageUnavailableError``.
        """
        with translated(explain=self._explained):
            twice(self._upgrade)
        self._check_schema()

    def _upgrade(self) -> None:
        with self._begin() as connection:
            try:
                upgrade(connection, self.schema)
            except TableInTheWayError as error:
                expected = "a database in which these names are free, or the module's own"
                raise InvalidRequestError(field="database", value=str(error), expected=expected) from error

    def schema_state(self) -> SchemaState:
        """Where the database stands, and what it misses of this release's schema; nothing is changed.

        Raises ``InvalidRequestError`` where the search path finds another schema's tables, and
        ``StorageUnavailableError``.
        """
        with translated(explain=self._explained), self._plain() as connection:
            return state(connection, self.schema)

    def _check_schema(self, joined: Connection | None = None) -> None:
        """Once: a database of another version, or of none, is refused before anything is read or written."""
        if self._home.checked:
            return
        again = START_OVER if joined else REPEAT
        with translated(again, self._explained):
            if joined:
                self._look_over(joined)
            else:
                self._ask(self._look_over)

    def _look_over(self, connection: Connection) -> None:
        self._home.check(connection)
        if self._clock.now() is None:
            self._measured(connection)

    def ask(self, question: Callable[[Connection], T], *, session: HostSession = None) -> T:
        """The answer of ``question(connection)``, which only reads; each statement is its own snapshot on PostgreSQL.

        With a caller's ``session`` what its transaction sees, with what it has done so far. Raises what the question
        raises, ``InvalidRequestError`` for a session that cannot be joined, ``StorageUnavailableError``.
        """
        if session is not None:
            given = self.check_session(session)
            with translated(START_OVER):
                connection = self._joined(given)
                with self._home.lent(connection):
                    return question(connection)
        self._check_schema()
        return self._told(question)

    def _told(self, question: Callable[[Connection], T]) -> T:
        with translated(explain=self._explained):
            return self._ask(question)

    def _ask(self, question: Callable[[Connection], T]) -> T:
        def asked() -> T:
            with self._plain() as connection:
                return question(connection)

        return twice(asked)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for plain reads, each statement its own snapshot on PostgreSQL."""
        self._check_schema()
        with translated(explain=self._explained):
            self._ask(_nothing)
            with self._plain() as connection:
                yield connection

    def _explained(self, failure: WalletError, error: Exception, session: HostSession = None) -> WalletError:
        """A better word for what would fail again as it is: rights that are missing, or a release that is too old."""
        try:
            if failure.details.get("cause") == DENIED:
                with nullcontext(session.connection()) if session else self._plain() as connection:
                    return lacking(failure, error, connection, self.schema)
            if not failure.retryable and self._home.checked and session is None:
                self._home.checked = False
                self._check_schema()
        except SchemaVersionError as too_old:
            return too_old
        except (WalletError, *FAILURES):
            pass  # whatever keeps from looking, the failure has been told
        return failure

    def _plain(self) -> AbstractContextManager[Connection]:
        return self._connect(AUTOCOMMIT, **{READ_ONLY: True})

    @contextmanager
    def snapshot(self, of: Connection | None = None) -> Iterator[Connection]:
        """A connection for reading whole tables, whose every statement sees the same moment.

        With ``of``, on PostgreSQL, the moment of another snapshot: both can be read side by side.
        """
        self._check_schema()
        shared = None if of is None else of.scalar(text("SELECT pg_export_snapshot()"))
        with translated(explain=self._explained):
            self._ask(_nothing)
            with self._connect("REPEATABLE READ", **SNAPSHOT) as connection:
                if shared is not None:
                    connection.execute(text(f"SET TRANSACTION SNAPSHOT '{shared}'"))
                if not self.is_sqlite:
                    for setting in SNAPSHOT_SETTINGS:
                        connection.execute(text(f"SET LOCAL {setting}"))
                yield connection

    @contextmanager
    def _begin(self, *, waits: int = SQLITE_WAITS) -> Iterator[Connection]:
        with self._connect(self._isolation_level) as connection, self._patience(connection, waits), connection.begin():
            yield connection

    def _patience(self, connection: Connection, waits: int) -> AbstractContextManager[None]:
        """How long to wait for SQLite's one lock: as for a row's on PostgreSQL, but not on each of many attempts."""
        if not self.is_sqlite:
            return nullcontext()
        return busy_timeout(connection.connection, self._lock_timeout_ms if waits > 0 else 0)

    @contextmanager
    def _connect(self, isolation_level: str | None, **options: Any) -> Iterator[Connection]:
        if isolation_level is not None and not self.is_sqlite:
            options["isolation_level"] = isolation_level
        with self.engine.connect() as connection:
            self._end_what_listeners_began(connection)
            self._level_on(connection.connection)  # which refuses autocommit
            check_untranslated(connection, "target")
            # Of the connection, not of a derived engine: over that one's the level of the host's engine would win.
            yield connection.execution_options(**options, **self._home.translation)

    def _end_what_listeners_began(self, connection: Connection) -> None:
        """A host's listener that runs SQL on a new or lent connection leaves a transaction open, at some level."""
        if connection.in_transaction():
            connection.commit()
        if not self.is_sqlite and in_transaction(connection.connection):
            connection.connection.commit()

    def _level_on(self, pooled: PoolProxiedConnection) -> str | None:
        """The level of what is written on the connection: as asked for, or else as the engine has it."""
        if self.is_sqlite or self._isolation_level is not None:
            return self._isolation_level
        return level_of_connection(pooled)

    def check_session(self, session: object) -> Session:
        """The session itself, looked at and not used. Raises ``InvalidRequestError`` for one that cannot be joined."""
        given = session_of(session)
        bind = bind_of(given)
        # On another SQLite engine, which is not prepared, releasing the savepoint would commit.
        if bind is not None and not self._is_mine(bind) and (self.is_sqlite or bind.dialect.name != "postgresql"):
            raise elsewhere(bind)
        return given

    def remembers_for(self, session: HostSession) -> bool:
        """Whether what is known of this database is true for the session without asking it."""
        if session is None:
            return True
        bind = bind_of(session_of(session))
        return bind is not None and self._is_mine(bind)

    def _is_mine(self, engine: Engine) -> bool:
        return engine.pool is self.engine.pool

    def _joined(self, session: Session) -> Connection:
        """The session's connection, if it has a transaction and leads to this database."""
        connection = session.connection()
        if not self.is_sqlite:
            check_transactional(connection.connection, "session")
        check_untranslated(connection, "session")
        if not self._is_mine(connection.engine):
            if self.is_sqlite:
                raise elsewhere(connection.engine)
            self.whereabouts.check(connection)
        self._check_schema(connection)
        return connection


def _clock_of(engine: Engine, given: Callable[[], datetime] | None) -> Clock:
    if given is not None:
        return GivenClock(given)
    return SqlitesClock() if engine.dialect.name == "sqlite" else ServersClock()


def _nothing(connection: Connection) -> None:
    """To find out whether a connection that has lain in the pool is still one."""
    connection.execute(text("SELECT 1"))
