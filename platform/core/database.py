"""The one place that begins, commits and retries."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ..migrations import TableInTheWayError, check_untranslated, upgrade
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
    is_lock_timeout,
    is_lost,
    is_miss,
    is_stopped,
    is_transient,
    is_unique_violation,
    translate,
    translated,
    twice,
)
from .logs import say
from .rights import DENIED, lacking
from .schema import FOUND, Home, SchemaState, state, with_found
from .sessions import HostSession, Whereabouts, bind_of, elsewhere, session_of
from .statement import ISOLATION_LEVELS, Parameters, Row, Statement, give_up, in_transaction

T = TypeVar("T")
Attempt = Callable[[Connection, bool], T]
Execute = Callable[[Statement, Parameters], Row | None]
AtOnce = Callable[[Execute, Callable[[], AbstractContextManager[Connection]]], T]

log = logging.getLogger(__name__)

JOINED_ATTEMPTS = 2
SQLITE_WAITS = 2  # how many attempts of one call wait for the lock that SQLite has, before the others only look
LONGEST_LOCK_TIMEOUT_MS = 2**31 - 1  # what PostgreSQL takes for one; a longer one would fail every operation
SNAPSHOT = {READ_ONLY: True, "postgresql_readonly": True}
SNAPSHOT_SETTINGS = ("work_mem = '64MB'", "jit = off")
MAX_DOUBLINGS = 10
LOCAL = ("lock_timeout", "plan_cache_mode")
SET_LOCALLY = with_found(", ".join(f"set_config('{name}', :{name}, true)" for name in LOCAL))
PUT_BACK = text("SELECT " + ", ".join(f"set_config('{name}', :{name}, true)" for name in LOCAL))
CURRENT_SETTINGS = text("SELECT " + ", ".join(f"current_setting('{name}') AS {name}" for name in LOCAL))


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
    configured when it opens. ``lock_timeout_ms`` bounds the wait for one row lock on PostgreSQL, and for the one
    lock of the file on SQLite, where a call waits so long twice at most.
    ``single_statement=False`` is for what speaks PostgreSQL's protocol but cannot change several tables
    in one statement (a cluster whose rows of one operation are on several machines).
    ``schema`` is the schema of PostgreSQL's that everything is kept in, wherever the search path leads; by default
    the first one of the search path, which must be the same on every connection.
    ``isolation_level`` is what every transaction that the module begins for writing on PostgreSQL has:
    READ COMMITTED, REPEATABLE READ or SERIALIZABLE; by default what the engine has, and else what the server
    gives. Nothing in the module needs more than READ COMMITTED; at the others contention ends in
    ``OptimisticLockError`` more often. A caller's ``session`` keeps its own level, and on SQLite every
    transaction is serializable anyway. What commits each statement by itself is refused, at the latest in use.
    Threads share one ``Database``; a forked worker may build its own or go on with this one.
    Raises ``InvalidRequestError`` for a target that is neither, and for a setting that is none.
    """

    def __init__(
        self,
        target: str | URL | Engine,
        *,
        lock_timeout_ms: int = 5000,
        single_statement: bool = True,
        isolation_level: str | None = None,
        schema: str | None = None,
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

    def _dispose(self) -> None:
        # A child that closed what it has inherited would end the sessions of its parent.
        self.engine.dispose(close=os.getpid() == self._process)

    def __enter__(self) -> "Database":
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
                self._home.check(joined)
            else:
                self._ask(self._home.check)

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

    def run(
        self,
        attempt: Attempt[T],
        *,
        retry: Retry,
        session: HostSession = None,
        at_once: AtOnce[T] | None = None,
    ) -> T:
        """Carry out ``attempt(connection, locked)`` in a transaction of its own, or join the session's.

        In its own transaction it is committed, and tried again whole after a conflict or a lost
        connection; ``locked`` is true for every try but the first: lock, then read. Raises what the
        attempt raises, ``OptimisticLockError``, ``StorageUnavailableError``.

        Where single statements are on, ``at_once(execute, connect)`` takes the place of the first try:
        ``execute`` carries out one statement as a transaction of its own and returns its first row, ``None``
        if it had no effect; ``connect`` gives a connection for plain reads.
        """
        if session is not None:
            return self._join(attempt, self.check_session(session))
        self._check_schema()
        number, waits = 0, SQLITE_WAITS
        lost: WalletError | None = None
        while True:
            retry.pause(number)
            try:
                if at_once is not None and number == 0 and self.single_statement:
                    return at_once(self._execute_alone, self._plain)
                with self._begin(waits=waits) as connection:
                    self._set_locally(connection)
                    return attempt(connection, number > 0)
            except FAILURES as error:
                waits -= is_lock_timeout(error)
                failure = translate(error, attempts=number + 1)
                lost = failure if is_lost(error) else lost
                if not is_transient(error) or number == retry.attempts:
                    # An attempt that was lost may have been committed: contention after it proves nothing.
                    raise lost or self._explained(failure, error) from error
                number += 1
                say(log, logging.DEBUG, "attempt %d: %s", number, failure.code, attempt=number, code=failure.code)

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

    def _execute_alone(self, statement: Statement, parameters: Parameters) -> Row | None:
        with closing(self.engine.raw_connection()) as pooled:
            level = self._level_on(pooled)
            try:
                if level is not None and in_transaction(pooled):
                    pooled.commit()  # a transaction that has begun already, at some other level
                row = self._home.placed(statement).execute(pooled, parameters, level)
                if in_transaction(pooled):
                    pooled.commit()
                return row
            except FAILURES as error:
                if is_lost(error):
                    pooled.invalidate(error)
                    # What has cut this connection has most likely cut the idle ones too.
                    self._dispose()
                if is_miss(error):
                    return None
                if is_stopped(error):
                    self._home.confirm(self._home.placed(FOUND).execute(pooled, {}, level))
                raise
            except BaseException as error:
                give_up(pooled)
                pooled.invalidate(error)
                raise

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

    def _join(self, attempt: Attempt[T], session: Session) -> T:
        """One try in a savepoint of the caller's transaction, and a second if a unique key was taken meanwhile."""
        number = 1
        while True:
            try:
                connection = self._joined(session)
                with connection.begin_nested(), self._settings_lent(connection):
                    return attempt(connection, True)
            except FAILURES as error:
                self._give_up_what_sqlite_has_rolled_back(session)
                if number == JOINED_ATTEMPTS or not is_unique_violation(error):
                    failure = translate(error, attempts=number, again=START_OVER)
                    raise self._explained(failure, error, session) from error
                number += 1

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

    def _give_up_what_sqlite_has_rolled_back(self, session: Session) -> None:
        """On a full disk SQLite rolls back by itself; the caller must not go on as if the transaction were there."""
        if self.is_sqlite:
            with suppress(SQLAlchemyError):
                connection = session.connection()
                if not getattr(connection.connection.dbapi_connection, "in_transaction", True):
                    connection.invalidate()

    def _set_locally(self, connection: Connection) -> None:
        """What every transaction for writing begins with: bounded waits, and a look at where it is going to write."""
        if self.is_sqlite:
            self._home.confirm_on_sqlite(connection)
        else:
            self._home.confirm(connection.execute(SET_LOCALLY, self._settings).first())

    @contextmanager
    def _settings_lent(self, connection: Connection) -> Iterator[None]:
        """The same inside the caller's transaction, whose own settings are put back afterwards."""
        with self._home.lent(connection):
            before = {} if self.is_sqlite else dict(connection.execute(CURRENT_SETTINGS).one()._mapping)
            self._set_locally(connection)
            yield
            if before:
                connection.execute(PUT_BACK, before)


def _nothing(connection: Connection) -> None:
    """To find out whether a connection that has lain in the pool is still one."""
    connection.execute(text("SELECT 1"))
