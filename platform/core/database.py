"""The one place that begins, commits and retries."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, PoolProxiedConnection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .clock import TOLERANCE as TOLERATED
from .clock import steady
from .connections import NOW, SQLITE_WAITS, Connections
from .errors import ClockSkewError, InvalidRequestError, WalletError
from .failures import (
    FAILURES,
    START_OVER,
    Stale,
    is_lock_timeout,
    is_lost,
    is_miss,
    is_stopped,
    is_transient,
    is_unique_violation,
    translate,
    translated,
)
from .logs import say
from .schema import FOUND, with_found
from .sessions import HostSession
from .statement import Row, Statement, give_up, in_transaction

T = TypeVar("T")
Attempt = Callable[[Connection, bool, datetime], T]
Execute = Callable[[Statement, dict[str, Any]], Row | None]
AtOnce = Callable[[Execute, Callable[[], AbstractContextManager[Connection]]], T]

log = logging.getLogger(__name__)

JOINED_ATTEMPTS = 2
MAX_DOUBLINGS = 10
LOCAL = ("lock_timeout", "plan_cache_mode")
SET_LOCALLY = with_found(f"{NOW}, " + ", ".join(f"set_config('{name}', :{name}, true)" for name in LOCAL))
PUT_BACK = text("SELECT " + ", ".join(f"set_config('{name}', :{name}, true)" for name in LOCAL))
CURRENT_SETTINGS = text("SELECT " + ", ".join(f"current_setting('{name}') AS {name}" for name in LOCAL))
# The parameters of a single statement that are known when it is sent, and what its row ends with.
SENT_AT, TOLERANCE, LOCK_TIMEOUT = "occurred_at", "tolerance", "lock_timeout"


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a transaction is tried again, and how long to wait: at most backoff * 2**n seconds."""

    attempts: int
    backoff: float

    def pause(self, retry: int) -> None:
        """Wait before the given retry: the first comes at once, later ones with full jitter."""
        if retry > 1:
            time.sleep(random.uniform(0, self.backoff * 2 ** min(retry - 2, MAX_DOUBLINGS)))  # noqa: S311 - jitter is no secret


class Database(Connections):
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
    What is recorded is dated by the database's clock, not by the process's. ``clock`` is for tests: a function that
    returns the time, aware, which is then taken as it is; one that freezes Python's time reaches nothing else.
    Threads share one ``Database``; a forked worker may build its own or go on with this one.
    Raises ``InvalidRequestError`` for a target that is neither, and for a setting that is none.
    """

    def run(
        self,
        attempt: Attempt[T],
        *,
        retry: Retry,
        session: HostSession = None,
        at_once: AtOnce[T] | None = None,
    ) -> T:
        """Carry out ``attempt(connection, locked, at)`` in a transaction of its own, or join the session's.

        In its own transaction it is committed, and tried again whole after a conflict or a lost connection; ``locked``
        is true for every try but the first: lock, then read. ``at`` is what this try is dated by. Raises what it
        raises, ``OptimisticLockError``, ``ClockSkewError``, ``StorageUnavailableError``.

        Where single statements are on, ``at_once(execute, connect)`` takes the place of the first try: ``execute``
        carries out one as a transaction of its own and returns its first row without the last column, the server's
        time in microseconds, or ``None`` if it had no effect; it sets the parameters that are known when it is sent
        (``occurred_at``, ``tolerance``, ``lock_timeout``). ``connect`` gives a connection for plain reads.
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
                    return attempt(connection, number > 0, self._set_locally(connection))
            except FAILURES as error:
                waits -= is_lock_timeout(error)
                failure = translate(error, attempts=number + 1)
                lost = failure if is_lost(error) else lost
                if not is_transient(error) or number == retry.attempts:
                    # An attempt that was lost may have been committed: contention after it proves nothing.
                    raise lost or self._skewed(error, number) or self._explained(failure, error) from error
                number += 1
                say(log, logging.DEBUG, "attempt %d: %s", number, failure.code, attempt=number, code=failure.code)

    def session(self) -> Session:
        """A new session of SQLAlchemy's on this database."""
        return Session(self.engine)

    def in_session(self, work: Callable[[Session], T], *, sessions: Callable[[], Session] | None = None) -> T:
        """What ``work(session)`` answers, committed with all that it did; nothing is tried again.

        ``sessions`` makes the session. Raises what ``work`` raises, with everything undone, and
        ``OptimisticLockError`` and ``StorageUnavailableError`` where the commit fails.
        """
        with (sessions or self.session)() as session:
            if not session.in_transaction():
                session.begin()
            answer = work(session)
            with translated():
                session.commit()
            return answer

    def _skewed(self, error: Exception, number: int) -> ClockSkewError | None:
        """What a single statement that had no second try has met, if it is its time; which is right from then on."""
        if number or not isinstance(error, Stale):
            return None
        before = self._clock.now()
        with translated(), self._plain() as connection:
            wrong = before is not None and abs(self._measured(connection) - before) > TOLERATED
        return ClockSkewError(tolerance_s=TOLERATED.total_seconds()) if wrong else None

    def _execute_alone(self, statement: Statement, parameters: dict[str, Any]) -> Row | None:
        with closing(self.engine.raw_connection()) as pooled:
            level = self._level_on(pooled)
            try:
                if level is not None and in_transaction(pooled):
                    pooled.commit()  # a transaction that has begun already, at some other level
                row = self._dated(self._home.placed(statement), pooled, parameters, level)
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

    def _dated(
        self, statement: Statement, pooled: PoolProxiedConnection, parameters: dict[str, Any], level: str | None
    ) -> Row | None:
        """Send it with the time of now: not of before the connection was there, which may have been waited for."""
        asked_at = steady()
        parameters |= self._known_when_sent()
        row = statement.execute(pooled, parameters, level)
        if row is None:
            return None
        self._clock.told(int(row[-1]), asked_at)
        return row[:-1]

    def _known_when_sent(self) -> dict[str, Any]:
        return {SENT_AT: self._clock.now(), TOLERANCE: self._clock.tolerance, LOCK_TIMEOUT: self.lock_timeout}

    def _join(self, attempt: Attempt[T], session: Session) -> T:
        """One try in a savepoint of the caller's transaction, and a second if a unique key was taken meanwhile."""
        number = 1
        while True:
            try:
                connection = self._joined(session)
                with connection.begin_nested(), self._settings_lent(connection) as at:
                    return attempt(connection, True, at)
            except FAILURES as error:
                self._give_up_what_sqlite_has_rolled_back(session)
                if number == JOINED_ATTEMPTS or not is_unique_violation(error):
                    failure = translate(error, attempts=number, again=START_OVER)
                    raise self._explained(failure, error, session) from error
                number += 1

    def _give_up_what_sqlite_has_rolled_back(self, session: Session) -> None:
        """On a full disk SQLite rolls back by itself; the caller must not go on as if the transaction were there."""
        if self.is_sqlite:
            with suppress(SQLAlchemyError):
                connection = session.connection()
                if not getattr(connection.connection.dbapi_connection, "in_transaction", True):
                    connection.invalidate()

    def _set_locally(self, connection: Connection) -> datetime:
        """What every transaction for writing begins with: bounded waits, a look at where it writes; and the time."""
        if self.is_sqlite:
            self._home.confirm_on_sqlite(connection)
            return self.now()
        asked_at = steady()
        found = connection.execute(SET_LOCALLY, self._settings).first()
        self._home.confirm(found)
        server = int(found[0]) if found else 0
        self._clock.told(server, asked_at)
        return self._clock.dated(server)

    @contextmanager
    def _settings_lent(self, connection: Connection) -> Iterator[datetime]:
        """The same inside the caller's transaction, whose own settings are put back afterwards."""
        with self._home.lent(connection):
            before = {} if self.is_sqlite else dict(connection.execute(CURRENT_SETTINGS).one()._mapping)
            yield self._set_locally(connection)
            if before:
                connection.execute(PUT_BACK, before)


@contextmanager
def rolled_back(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back in the end, for tests.

    Raises ``InvalidRequestError`` where somebody has ended it before.
    """
    with engine.connect() as connection:
        transaction = connection.get_transaction() or connection.begin()
        try:
            yield connection
            if not transaction.is_active:
                expected = "left open: sessions on its connection join by create_savepoint, as those of session() do"
                raise InvalidRequestError(field="transaction", value="ended by the test", expected=expected)
        finally:
            connection.rollback()
