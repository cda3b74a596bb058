"""What an error of SQLAlchemy or a driver means: decided by code, never by message text."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from .errors import OptimisticLockError, StorageUnavailableError, WalletError

# PostgreSQL: serialization failure, deadlock, lock timeout, and a unique violation, which among our own
# writes can only be an idempotency key or a row made at the same time: the next read answers it.
UNIQUE_VIOLATION = "23505"
CONFLICTS = {"40001", "40P01", "55P03", UNIQUE_VIOLATION}
# How a single statement of ours undoes itself when it finds a row changed.
DIVISION_BY_ZERO = "22012"
# Connection exceptions, shutdown, crash, start-up, too many clients.
LOST = {"08000", "08001", "08003", "08004", "08006", "08007", "57P01", "57P02", "57P03", "53300"}
# SQLite: busy and locked (primary codes), and violations of a unique index or primary key (extended codes).
SQLITE_CONFLICTS = {5, 6}
SQLITE_UNIQUE_VIOLATIONS = {1555, 2067}


class Stale(Exception):  # noqa: N818 - a state of affairs, not a mistake
    """What an attempt has read is no longer so. Never leaves the loops of ``Database``."""


# What an attempt fails with. Single statements go past SQLAlchemy to the driver, not every text fits into every
# database's encoding, and psycopg reads times in no other DateStyle than ISO.
FAILURES = (Stale, SQLAlchemyError, psycopg.Error, UnicodeEncodeError, NotImplementedError)


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever SQLAlchemy or the driver raises inside into one of the module's errors."""
    try:
        yield
    except (*FAILURES, ValueError) as error:  # a ValueError is a time in SQLite that is none
        raise translate(error) from error


def translate(error: Exception, attempts: int = 1) -> WalletError:
    """The module's error for one of the database's: contention, or a database that did not do its work."""
    if isinstance(error, Stale) or _is_conflict(error):
        return OptimisticLockError(attempts=attempts)
    return StorageUnavailableError(cause=_code(error) or type(_of_driver(error)).__name__)


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


def is_lost(error: Exception) -> bool:
    """Whether the connection is gone, or there was none to be had."""
    if getattr(error, "connection_invalidated", False) or _code(error) in LOST:
        return True
    # psycopg has no SQLSTATE where no server answered.
    return isinstance(_of_driver(error), psycopg.OperationalError) and _code(error) is None
