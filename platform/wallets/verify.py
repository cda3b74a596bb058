"""Verifying a whole database: the ledger, its log, and whether wallets and escrow items are what the ledger says."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DataError

from ..core.clock import TOLERANCE
from ..core.database import Database
from ..core.values import check_count
from ..ledger.findings import Finding, Kind
from ..ledger.models import LogHead
from ..ledger.verify import (
    LEDGER_CHECKS,
    MOST_FINDINGS,
    SCHEMA_CHECKS,
    SEAL_CHECKS,
    Check,
    check_head,
    check_times,
)
from .expected import EXPECTED, claimed_twice
from .models import ESCROW_ITEMS, USER_WALLETS, EscrowStatus
from .rebuild import drifts

TIMES = "times"
# What a row of a table is called in a finding.
ROW = {table.name: table.name.removesuffix("s") for table in EXPECTED}


def verify(
    database: Database,
    *,
    since: int = 0,
    head: LogHead | None = None,
    ledger_only: bool = False,
    progress: Callable[[str], object] = lambda check: None,
) -> Generator[Finding, None, None]:
    """Everything that is wrong in the database, from one consistent snapshot, also of a live one.

    ``since`` narrows it to what came after that position of the log; ``head`` is one that was kept
    elsewhere, without which a log that was cut at its end, or replaced as a whole, cannot be told from a
    shorter or another one. ``ledger_only`` leaves out wallets and escrow items, and the triggers, constraints
    and indexes that the schema must have. ``progress`` is called with the name of each check before it starts,
    on PostgreSQL from two threads. Raises ``InvalidRequestError``, ``SchemaVersionError``,
    ``StorageUnavailableError``.
    """
    check_count("since", since)
    times: Check = partial(check_times, latest=database.now() + TOLERANCE)
    checks = {**LEDGER_CHECKS, TIMES: times, **DEPOSIT_CHECKS}
    others = checks if ledger_only else {**SCHEMA_CHECKS, **checks, **WALLET_CHECKS}
    with database.snapshot() as connection:
        if database.is_sqlite:
            yield from _checked({**SEAL_CHECKS, **others}, connection, since, progress)
        else:
            # Hashing keeps one core busy for about as long as everything else keeps another one.
            with database.snapshot(of=connection) as other, ThreadPoolExecutor(1) as threads:
                seals = threads.submit(lambda: list(_checked(SEAL_CHECKS, other, since, progress)))
                yield from _checked(others, connection, since, progress)
                yield from seals.result()
        if head is not None:
            yield from check_head(connection, head)


def check_names() -> list[str]:
    """The names of the checks that ``verify`` makes."""
    return [*SCHEMA_CHECKS, *LEDGER_CHECKS, TIMES, *DEPOSIT_CHECKS, *SEAL_CHECKS, *WALLET_CHECKS]


def _checked(
    checks: dict[str, Check], connection: Connection, since: int, progress: Callable[[str], object]
) -> Iterator[Finding]:
    for name, check in checks.items():
        progress(name)
        count = 0
        try:
            for finding in check(connection, since):
                yield finding
                count += 1
        except (TypeError, ValueError, DataError) as error:
            # What is no time or number, or none that Python has (SQLite keeps anything, PostgreSQL 'infinity').
            yield Finding(
                kind="unreadable", ids={"check": name}, expected="values of the columns' types", found=str(error)
            )
        if count >= MOST_FINDINGS:
            yield Finding(kind="more_findings", ids={"check": name}, expected=0, found=f"more than {count}")


def _rows(connection: Connection, since: int) -> Iterator[Finding]:
    """Wallets, escrow items and claims that are not what the ledger says."""
    for drift in drifts(connection, since=since):
        what = "missing" if drift.found is None else "unexplained" if drift.expected is None else "differs"
        kind = cast(Kind, f"{ROW[drift.table]}_{what}")
        yield Finding(kind=kind, ids=dict(drift.key), expected=drift.expected, found=drift.found)


def _held(connection: Connection, since: int) -> Iterator[Finding]:
    """Users whose held escrow items do not sum to their escrow."""
    held = (
        select(ESCROW_ITEMS.c.owner_id, ESCROW_ITEMS.c.currency, func.sum(ESCROW_ITEMS.c.amount).label("held"))
        .where(ESCROW_ITEMS.c.status == EscrowStatus.HELD.value)
        .group_by(ESCROW_ITEMS.c.owner_id, ESCROW_ITEMS.c.currency)
        .subquery()
    )
    sum_held = func.coalesce(held.c.held, 0)
    same = (held.c.owner_id == USER_WALLETS.c.owner_id) & (held.c.currency == USER_WALLETS.c.currency)
    statement = select(USER_WALLETS.c.owner_id, USER_WALLETS.c.currency, USER_WALLETS.c.escrow, sum_held)
    statement = statement.join_from(USER_WALLETS, held, same, isouter=True).where(USER_WALLETS.c.escrow != sum_held)
    for owner_id, currency, escrow, total in connection.execute(statement):
        ids = {"owner_id": owner_id, "currency": currency}
        yield Finding(kind="escrow_balance", ids=ids, expected=int(total), found=escrow)


def _deposits(connection: Connection, since: int) -> Iterator[Finding]:
    """References that were credited more than once."""
    for source, reference, one, other, times in connection.execute(claimed_twice(since).limit(MOST_FINDINGS)):
        ids = {"source": source, "reference": reference, "transaction_ids": [one, other]}
        yield Finding(kind="deposit_claimed_twice", ids=ids, expected=1, found=times)


# What the ledger alone tells, and only the operations can read.
DEPOSIT_CHECKS: dict[str, Check] = {"deposits": _deposits}
WALLET_CHECKS: dict[str, Check] = {"wallets, escrow items and claims": _rows, "held escrow": _held}
