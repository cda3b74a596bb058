"""What an error of SQLAlchemy or a driver means, and what to do about it: decided by code, not by message text."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from sqlalchemy.exc import DisconnectionError, PendingRollbackError, SQLAlchemyError, UnboundExecutionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .errors import SEND_AGAIN, Advice, OptimisticLockError, StorageUnavailableError, WalletError

T = TypeVar("T")

# PostgreSQL: serialization failure, deadlock, lock timeout, and a unique violation, which among our own
# writes can only be an idempotency key or a row made at the same time: the next read answers it.
UNIQUE_VIOLATION = "23505"
CONFLICTS = {"40001", "40P01", "55P03", UNIQUE_VIOLATION}
# How a single statement of ours undoes itself when it finds a row changed.
DIVISION_BY_ZERO = "22012"
# How it stops where this release may not write (``schema.STOPPED``).
UNDEFINED_OBJECT = "42704"
# Connection exceptions, shutdown, crash, start-up, too many clients.
LOST = {"08000", "08001", "08003", "08004", "08006", "08007", "57P01", "57P02", "57P03", "53300"}
# SQLite: busy and locked (primary codes), and violations of a unique index or primary key (extended codes).
SQLITE_CONFLICTS = {5, 6}
SQLITE_UNIQUE_VIOLATIONS = {1555, 2067}
# It has one code for whatever is wrong with a statement; only its words, which are never translated, tell more.
SQLITE_ERROR = 1
NO_SUCH = ("no such table", "no such column")

LOCK_TIMEOUT = "55P03"
# A reader that wants to write while somebody has written: no lock, and waiting would not help.
SQLITE_BUSY_SNAPSHOT = 517
# What the wait was for, in the module's own transaction and in a caller's.
MAYBE_YOUR_OWN = (
    "another transaction has kept {what} locked through all {{attempts}} attempts; where it is one of your own, "
    "pass its session=, or end it first; else try again"
)
ANOTHERS = "another transaction has kept {what} locked; roll yours back, and start it over"

REPEAT = Advice("it can simply be repeated")
START_OVER = Advice("roll your transaction back, and start it over with the same request and the same key")
ROLL_BACK = Advice("your transaction has failed before; roll it back, and start it over", retryable=False)
BIND = Advice("the session is bound to no engine; make it with Session(database.engine)", retryable=False)
CREATE_SCHEMA = Advice(
    "{server}; call create_schema(), and see to it that the search path finds the module's tables", retryable=False
)
GRANT = Advice(
    "{server}; operations need SELECT, INSERT and UPDATE on every table of the module and USAGE of their schema, "
    "create_schema() also CREATE",
    retryable=False,
)
WRITABLE = Advice("it takes no writes: a replica, or set or mounted read-only; use one that does", retryable=False)
MEND = Advice("the same would fail again in the same way, so its cause has to be mended first", retryable=False)
UNDEFINED_TABLE, UNDEFINED_COLUMN, UNDEFINED_SCHEMA = "42P01", "42703", "3F000"
ADVICE: dict[str | int | None, Advice] = {
    UNDEFINED_TABLE: CREATE_SCHEMA,
    UNDEFINED_COLUMN: CREATE_SCHEMA,
    UNDEFINED_SCHEMA: CREATE_SCHEMA,
    "42501": GRANT,
    "25006": WRITABLE,
    "25P02": ROLL_BACK,
    8: WRITABLE,  # SQLITE_READONLY
}
# What fails again as it is. PostgreSQL: classes of SQLSTATEs (features, data, constraints, the state of the
# transaction, names and rights, limits of the program, what a trigger raises), and damage. SQLite: primary result
# codes (an error in the statement, rights, damage, constraints, types, parameters, no database).
PERMANENT_CLASSES = {"0A", "22", "23", "25", "28", "3D", "42", "44", "54", "P0"}
PERMANENT = {"XX001", "XX002", 1, 3, 11, 12, 19, 20, 23, 25, 26}
# Where SQLAlchemy itself gives up waiting, another try may find it better; everything else is how it is used.
PASSING = (PoolTimeoutError, DisconnectionError)


class Stale(Exception):  # noqa: N818 - a state of affairs, not a mistake
    """What an attempt has read is no longer so. Never leaves the loops of ``Database``."""


# What an attempt fails with. Single statements go past SQLAlchemy to the driver, not every text fits into every
# database's encoding, and psycopg reads times in no other DateStyle than ISO.
FAILURES = (Stale, SQLAlchemyError, psycopg.Error, UnicodeEncodeError, NotImplementedError)


@contextmanager
def translated(
    again: Advice = REPEAT, explain: Callable[[WalletError, Exception], WalletError] = lambda failure, error: failure
) -> Iterator[None]:
    """Turn whatever SQLAlchemy or the driver raises inside, where nothing is written, into the module's errors.

    ``again`` is what to do where another try can help; ``explain`` may find a better word for a failure.
    """
    try:
        yield
    except (*FAILURES, ValueError) as error:  # a ValueError is a time in SQLite that is none
        raise explain(translate(error, again=again), error) from error


def translate(error: Exception, attempts: int = 1, again: Advice = SEND_AGAIN) -> WalletError:
    """The module's error for one of the database's: contention, or a database that did not do its work.

    ``again`` is what to do where another try can help.
    """
    if isinstance(error, Stale) or _is_conflict(error):
        return OptimisticLockError(attempts=attempts, waited_for=_waited_for(error, again))
    advice = _advice(error, again)
    told = {"server": _said(error)} if "{server}" in advice.text else {}
    return StorageUnavailableError(advice=advice, cause=_code(error) or type(_of_driver(error)).__name__, **told)


def _waited_for(error: Exception, again: Advice) -> str | None:
    if not is_lock_timeout(error):
        return None
    what = "a row" if _code(error) == LOCK_TIMEOUT else "the file of the database"
    return (ANOTHERS if again is START_OVER else MAYBE_YOUR_OWN).format(what=what)


def is_lock_timeout(error: Exception) -> bool:
    """Whether the wait for a lock came to its end; SQLite has a single one, for whoever writes to the file."""
    code = _code(error)
    if isinstance(code, int):
        return code & 0xFF in SQLITE_CONFLICTS and code != SQLITE_BUSY_SNAPSHOT
    return code == LOCK_TIMEOUT


def _advice(error: Exception, again: Advice) -> Advice:
    code = _code(error)
    code = code & 0xFF if isinstance(code, int) else code
    if is_lost(error) or isinstance(error, PASSING):
        return again
    if isinstance(error, UnboundExecutionError):
        return BIND
    if isinstance(error, PendingRollbackError):
        return ROLL_BACK
    if code in ADVICE:
        return ADVICE[code]
    if code == SQLITE_ERROR and _said(error).startswith(NO_SUCH):
        return CREATE_SCHEMA
    return MEND if _is_permanent(error, code) else again


def _is_permanent(error: Exception, code: str | int | None) -> bool:
    if code is None:  # not the database's: SQLAlchemy's, a text that does not fit, a time that is none
        return not isinstance(_of_driver(error), psycopg.Error | sqlite3.Error)
    return code in PERMANENT or (isinstance(code, str) and code[:2] in PERMANENT_CLASSES)


def _said(error: Exception) -> str:
    """The server's own words, without the values that its details and hints may have."""
    original = _of_driver(error)
    diagnostic = getattr(original, "diag", None)
    return getattr(diagnostic, "message_primary", None) or str(original)


def is_transient(error: Exception) -> bool:
    """Whether the same work may succeed in a fresh transaction; decided by code, never by message text."""
    return isinstance(error, Stale) or _is_conflict(error) or is_lost(error)


def _of_driver(error: Exception) -> BaseException:
    """The driver's error, which SQLAlchemy has wrapped where the statement went through it."""
    return getattr(error, "orig", None) or error


def _code(error: Exception) -> str | int | None:
    """The SQLSTATE of PostgreSQL, or the extended result code of SQLite."""
    original = _of_driver(error)
    return getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorcode", None)


def _is_conflict(error: Exception) -> bool:
    code = _code(error)
    if isinstance(code, int):
        return code & 0xFF in SQLITE_CONFLICTS or is_unique_violation(error)
    return code in CONFLICTS


def is_unique_violation(error: Exception) -> bool:
    """Whether a row with that key is there already."""
    return _code(error) in {UNIQUE_VIOLATION, *SQLITE_UNIQUE_VIOLATIONS}


def is_miss(error: Exception) -> bool:
    """Whether a single statement found something else than it was made for: a read will tell what."""
    return is_unique_violation(error) or _code(error) == DIVISION_BY_ZERO


def is_stopped(error: Exception) -> bool:
    """Whether a single statement was not for this release, or for the schema that it met."""
    return _code(error) == UNDEFINED_OBJECT


def is_lost(error: Exception) -> bool:
    """Whether the connection is gone, or there was none to be had."""
    if getattr(error, "connection_invalidated", False) or _code(error) in LOST:
        return True
    # psycopg has no SQLSTATE where no server answered.
    return isinstance(_of_driver(error), psycopg.OperationalError) and _code(error) is None


def twice(work: Callable[[], T]) -> T:
    """Once more where a connection is lost: what the server has cut in the pool shows only when it is used."""
    try:
        return work()
    except FAILURES as error:
        if not is_lost(error):
            raise
    return work()
