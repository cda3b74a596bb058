"""Comparing wallets, escrow items and claims with what the ledger says of them, and putting them right."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TextIO

from sqlalchemy import Connection, Table, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from ..core.database import Database, Retry
from ..core.errors import InvalidRequestError, StorageUnavailableError
from ..core.logs import say
from ..ledger.files import import_log
from ..ledger.models import LogHead
from .expected import EXPECTED, EXPLAINED

log = logging.getLogger(__name__)

MOST_DRIFTS = 10_000
REPAIR = Retry(attempts=3, backoff=0.1)
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A row that is not what the ledger says.

    ``found`` is ``None`` where it is missing, ``expected`` where nothing in the ledger explains it.
    """

    table: str
    key: dict[str, str]
    expected: Row | None
    found: Row | None

    @property
    def columns(self) -> list[str]:
        """The columns that differ: all of them where one side is missing."""
        expected, found = self.expected or {}, self.found or {}
        return [name for name in expected or found if expected.get(name) != found.get(name)]


def drifts(connection: Connection, *, since: int = 0, limit: int = MOST_DRIFTS) -> Iterator[Drift]:
    """Wallets, escrow items and claims that are not what the ledger says, at most so many of a table.

    With ``since``, only what was touched after that position of the log. Raises SQLAlchemy's errors, which
    ``Database.snapshot`` translates.
    """
    for table in EXPECTED:
        yield from _drifts(connection, table, {}, since, limit)


def apply(database: Database, drift: Drift) -> bool:
    """Put one row right, under its lock, from what the ledger says by then; false if it is right already.

    The ledger is never written. Raises ``OptimisticLockError``, ``StorageUnavailableError``.
    """
    repaired: bool = database.run(partial(_repair, drift), retry=REPAIR)
    if repaired:
        table, key = drift.table, drift.key
        say(log, logging.WARNING, "repaired %s %s", table, key, table=table, key=key, columns=drift.columns)
    return repaired


def put_right(
    database: Database, done: Callable[[Drift], object] = lambda drift: None
) -> tuple[list[Drift], list[Drift]]:
    """Put all rows right, one by one; returns those that were, and those that the database does not take.

    ``done`` is told each. Where a damaged ledger says what the table's own rules refuse (a balance below zero), the row
    stays as it is. Raises ``OptimisticLockError``, ``StorageUnavailableError``.
    """
    repaired: list[Drift] = []
    tried: dict[str, Drift] = {}
    while True:
        with database.snapshot() as connection:
            found = {f"{drift.table} {drift.key}": drift for drift in drifts(connection)}
        fresh = {name: drift for name, drift in found.items() if name not in tried}
        if not fresh:
            return repaired, list(found.values())
        tried |= fresh
        for drift in fresh.values():
            if _applied(database, drift):
                done(drift)
                repaired.append(drift)


def _applied(database: Database, drift: Drift) -> bool:
    try:
        return apply(database, drift)
    except StorageUnavailableError as error:
        if isinstance(error.__cause__, IntegrityError):
            return False
        raise


def restore(database: Database, file: TextIO, *, progress: Callable[[int], object] = lambda position: None) -> LogHead:
    """Write an exported log into an empty database, with the wallets, escrow items and claims that follow from it.

    Goes on where an interrupted import of the same file stopped. Raises ``InvalidRequestError`` that
    names the line of a damaged file, or the database if it holds something else;
    ``StorageUnavailableError``.
    """
    return import_log(database, file, admit=_check_empty, finish=fill_empty, progress=progress)


def fill_empty(connection: Connection) -> None:
    """Write all wallets, escrow items and claims. Raises ``InvalidRequestError`` if one of the tables is not empty."""
    _check_empty(connection)
    for table, expected in EXPECTED.items():
        connection.execute(insert(table).from_select([column.key for column in table.c], expected({}, 0)))


def _check_empty(connection: Connection) -> None:
    for table in EXPECTED:
        if connection.execute(select(table.c.currency).limit(1)).first() is not None:
            raise InvalidRequestError(
                field="database", value=f"one in use: there are rows in {table.name}", expected="a new one"
            )


def _repair(drift: Drift, connection: Connection, locked: bool, at: datetime) -> bool:
    table = next(table for table in EXPECTED if table.name == drift.table)
    mine = and_(*(table.c[name] == value for name, value in drift.key.items()))
    connection.execute(select(table.c.currency).where(mine).with_for_update())
    for now in _drifts(connection, table, drift.key):
        if now.expected is None:
            connection.execute(delete(table).where(mine))
        elif now.found is None:
            connection.execute(insert(table), now.expected)
        else:
            connection.execute(update(table).where(mine).values(now.expected))
        return True
    return False


def _drifts(
    connection: Connection, table: Table, key: dict[str, str], since: int = 0, limit: int = 1
) -> Iterator[Drift]:
    expected = EXPECTED[table](key, since).subquery("expected")
    names = [column.key for column in table.c]
    same = and_(*(expected.c[column.key] == column for column in table.primary_key))
    missing = next(iter(table.primary_key)).is_(None)
    differs = or_(missing, *(expected.c[name].is_distinct_from(table.c[name]) for name in names))
    compared = select(*(expected.c[name] for name in names), *table.c).join_from(expected, table, same, isouter=True)
    for row in connection.execute(compared.where(differs).limit(limit)).all():
        wanted, found = (dict(zip(names, side, strict=True)) for side in (row[: len(names)], row[len(names) :]))
        yield _drift(table, wanted, found if found[names[0]] is not None else None)
    if since == 0:
        mine = (table.c[name] == value for name, value in key.items())
        for row in connection.execute(select(table).where(*mine, ~EXPLAINED[table].exists()).limit(limit)).all():
            yield _drift(table, None, dict(zip(names, row, strict=True)))


def _drift(table: Table, expected: Row | None, found: Row | None) -> Drift:
    row = expected or found or {}
    key = {column.key: row[column.key] for column in table.primary_key}
    return Drift(table=table.name, key=key, expected=expected, found=found)
