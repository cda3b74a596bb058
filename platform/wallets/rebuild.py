"""What the wallets and escrow items must be, computed from the ledger alone; comparing, and putting right."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from ..core.database import Database, Retry
from ..core.errors import InvalidRequestError
from ..ledger.accounts import Bucket, Operation
from ..ledger.models import ENTRIES, LOG, TRANSACTIONS, LogHead
from ..ledger.store import exact_sum
from ..ledger.transfer import import_log
from .models import ESCROW_ITEMS, MODEL_WALLETS, USER_WALLETS, EscrowStatus

log = logging.getLogger(__name__)

MOST_DRIFTS = 10_000
REPAIR = Retry(attempts=3, backoff=0.1)
STATUS_AFTER = {
    Operation.SETTLE.value: EscrowStatus.SETTLED.value,
    Operation.REFUND.value: EscrowStatus.REFUNDED.value,
    Operation.PARTIAL_SETTLE.value: EscrowStatus.PARTIALLY_SETTLED.value,
}
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
    """Wallets and escrow items that are not what the ledger says, at most so many of a table.

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
        log.warning(
            "repaired %s %s",
            drift.table,
            drift.key,
            extra={"table": drift.table, "key": drift.key, "columns": drift.columns},
        )
    return repaired


def restore(database: Database, file: TextIO, *, progress: Callable[[int], object] = lambda position: None) -> LogHead:
    """Write an exported log into an empty database, with the wallets and escrow items that follow from it.

    Goes on where an interrupted import of the same file stopped. Raises ``InvalidRequestError`` that
    names the line of a damaged file, or the database if it holds something else;
    ``StorageUnavailableError``.
    """
    return import_log(database, file, admit=_check_empty, finish=fill_empty, progress=progress)


def fill_empty(connection: Connection) -> None:
    """Write all wallets and escrow items into their empty tables. Raises ``InvalidRequestError`` if one is not."""
    _check_empty(connection)
    for table, expected in EXPECTED.items():
        connection.execute(insert(table).from_select([column.key for column in table.c], expected({}, 0)))


def _check_empty(connection: Connection) -> None:
    for table in EXPECTED:
        if connection.execute(select(table.c.currency).limit(1)).first() is not None:
            raise InvalidRequestError(field="database", value=f"rows in {table.name}", expected="empty")


def _repair(drift: Drift, connection: Connection, locked: bool) -> bool:
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


def _expected_wallets(kind: str, buckets: tuple[Bucket, ...], key: dict[str, str], since: int) -> Select[Any]:
    """The rows of a wallet table as the entries give them; for one key, or all."""
    owner = f"{kind}_id"
    statement = (
        select(
            func.substr(ENTRIES.c.account_id, len(kind) + 2).label(owner),
            ENTRIES.c.currency,
            *(_sum(bucket).label(bucket.value) for bucket in buckets),
            func.max(ENTRIES.c.wallet_version).label("version"),
            func.min(ENTRIES.c.posted_at).label("created_at"),
            func.max(ENTRIES.c.posted_at).label("updated_at"),
        )
        .where(ENTRIES.c.bucket.in_([bucket.value for bucket in buckets]))
        .group_by(ENTRIES.c.account_id, ENTRIES.c.currency)
    )
    if key:
        account_id = f"{kind}:{key[owner]}"
        statement = statement.where(ENTRIES.c.account_id == account_id, ENTRIES.c.currency == key["currency"])
    if since:
        other = ENTRIES.alias("later")
        touched = select(other.c.account_id).where(_sealed_after(other.c.transaction_id, since))
        statement = statement.where(ENTRIES.c.account_id.in_(touched))
    return statement


def _sum(bucket: Bucket) -> ColumnElement[int]:
    high, low = exact_sum(case((ENTRIES.c.bucket == bucket.value, ENTRIES.c.amount), else_=0))
    return cast(high * 2**32 + low, BigInteger)


def _expected_items(key: dict[str, str], since: int) -> Select[Any]:
    """The rows of the escrow items as the holds, and what ended them, give them."""
    hold, end = TRANSACTIONS.alias("hold"), TRANSACTIONS.alias("ended_by")
    held, to_model, to_user = ENTRIES.alias("held"), ENTRIES.alias("to_model"), ENTRIES.alias("to_user")
    ended = and_(
        end.c.escrow_id == hold.c.escrow_id,
        end.c.owner_id == hold.c.owner_id,
        end.c.operation.in_(list(STATUS_AFTER)),
    )
    joined = (
        hold.join(held, _entry_of(held, hold, Bucket.ESCROW))
        .outerjoin(end, ended)
        .outerjoin(to_model, _entry_of(to_model, end, Bucket.EARNED))
        .outerjoin(to_user, _entry_of(to_user, end, Bucket.AVAILABLE))
    )
    columns = {
        "escrow_id": hold.c.escrow_id,
        "user_id": func.substr(hold.c.owner_id, len("user:") + 1),
        "currency": hold.c.currency,
        "amount": held.c.amount,
        "status": func.coalesce(case(STATUS_AFTER, value=end.c.operation), EscrowStatus.HELD.value),
        "queue_item_id": hold.c.queue_item_id,
        "feature_type": hold.c.feature_type,
        "reason": hold.c.reason,
        "metadata_json": hold.c.metadata_json,
        "model_id": end.c.model_id,
        "settled_amount": func.coalesce(to_model.c.amount, 0),
        "refunded_amount": func.coalesce(to_user.c.amount, 0),
        "created_at": hold.c.occurred_at,
        "processed_at": end.c.occurred_at,
    }
    statement = select(*(column.label(name) for name, column in columns.items())).select_from(joined)
    statement = statement.where(hold.c.operation == Operation.HOLD.value)
    if key:
        statement = statement.where(hold.c.escrow_id == key["escrow_id"], hold.c.owner_id == f"user:{key['user_id']}")
    if since:
        newer = (_sealed_after(each.c.transaction_id, since) for each in (hold, end))
        statement = statement.where(or_(*newer))
    return statement


def _entry_of(entries: Any, transaction: Any, bucket: Bucket) -> ColumnElement[bool]:
    return and_(entries.c.transaction_id == transaction.c.transaction_id, entries.c.bucket == bucket.value)


def _sealed_after(transaction_id: ColumnElement[Any], since: int) -> ColumnElement[bool]:
    """Whether a transaction came after a position of the log, or is not sealed yet."""
    return ~select(LOG.c.position).where(LOG.c.transaction_id == transaction_id, LOG.c.position <= since).exists()


# In the order in which rows are locked.
EXPECTED: dict[Table, Callable[[dict[str, str], int], Select[Any]]] = {
    ESCROW_ITEMS: _expected_items,
    USER_WALLETS: partial(_expected_wallets, "user", (Bucket.AVAILABLE, Bucket.ESCROW)),
    MODEL_WALLETS: partial(_expected_wallets, "model", (Bucket.EARNED,)),
}


def _entry_on(table: Table, kind: str, bucket: Bucket) -> Select[Any]:
    return select(ENTRIES.c.amount).where(
        ENTRIES.c.account_id == literal(f"{kind}:").concat(table.c[f"{kind}_id"]),
        ENTRIES.c.currency == table.c.currency,
        ENTRIES.c.bucket == bucket.value,
    )


# What in the ledger a row exists for: the hold of an escrow item, the first entry of a wallet.
EXPLAINED: dict[Table, Select[Any]] = {
    ESCROW_ITEMS: select(TRANSACTIONS.c.transaction_id).where(
        TRANSACTIONS.c.escrow_id == ESCROW_ITEMS.c.escrow_id,
        TRANSACTIONS.c.owner_id == literal("user:").concat(ESCROW_ITEMS.c.user_id),
        TRANSACTIONS.c.operation == Operation.HOLD.value,
    ),
    USER_WALLETS: _entry_on(USER_WALLETS, "user", Bucket.AVAILABLE),
    MODEL_WALLETS: _entry_on(MODEL_WALLETS, "model", Bucket.EARNED),
}
