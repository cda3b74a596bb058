"""All SQL on the ledger's tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    FromClause,
    Row,
    and_,
    bindparam,
    func,
    insert,
    literal,
    literal_column,
    select,
    tuple_,
    union_all,
)

from .accounts import Account
from .models import ENTRIES, TRANSACTIONS, LedgerEntry, LedgerTransaction, StatementLine, TransactionHeader

HEADER = [TRANSACTIONS.c[field.name] for field in fields(TransactionHeader)]
ENTRY = [ENTRIES.c[field.name] for field in fields(LedgerEntry)]
RECORD = [*HEADER, *ENTRY]


def add(connection: Connection, transaction: LedgerTransaction) -> None:
    """Write the transaction and its entries."""
    header = {column.key: getattr(transaction, column.key) for column in HEADER}
    connection.execute(insert(TRANSACTIONS), header)
    common = {
        "transaction_id": transaction.transaction_id,
        "owner_id": transaction.owner_id,
        "currency": transaction.currency,
    }
    entries = [{**common, **vars(entry)} for entry in transaction.entries]
    connection.execute(insert(ENTRIES), entries)


def with_recorded(source: FromClause) -> FromClause:
    """The source, joined with what :owner_id has recorded under :operation and :idempotency_key."""
    return source.outerjoin(
        TRANSACTIONS,
        and_(
            TRANSACTIONS.c.owner_id == bindparam("owner_id"),
            TRANSACTIONS.c.operation == bindparam("operation"),
            TRANSACTIONS.c.idempotency_key == bindparam("idempotency_key"),
        ),
    ).outerjoin(ENTRIES, ENTRIES.c.transaction_id == TRANSACTIONS.c.transaction_id)


def transactions(connection: Connection, ids: Sequence[str]) -> list[LedgerTransaction]:
    """The transactions of these ids that exist, by id."""
    statement = (
        select(*RECORD)
        .join_from(TRANSACTIONS, ENTRIES, ENTRIES.c.transaction_id == TRANSACTIONS.c.transaction_id)
        .where(TRANSACTIONS.c.transaction_id.in_(ids))
        .order_by(TRANSACTIONS.c.transaction_id)
    )
    found: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(statement):
        found.setdefault(row._mapping[TRANSACTIONS.c.transaction_id], []).append(row)
    return [collect(rows) for rows in found.values()]


def collect(rows: Sequence[Row[Any]]) -> LedgerTransaction:
    """The transaction that these rows of RECORD, one for each of its entries, are."""
    entries = (LedgerEntry(**_values(row, ENTRY)) for row in rows)
    return LedgerTransaction(**_values(rows[0], HEADER), entries=in_order(entries))


def in_order(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """The one order of a transaction's entries."""
    return tuple(sorted(entries, key=lambda entry: entry.account))


def _values(row: Row[Any], columns: Iterable[Column[Any]]) -> dict[str, Any]:
    values: Mapping[Any, Any] = row._mapping
    return {column.key: values[column] for column in columns}


PLACE = (ENTRIES.c.posted_at, func.coalesce(ENTRIES.c.wallet_version, 0), ENTRIES.c.transaction_id, ENTRIES.c.bucket)
LINE = [
    *ENTRY,
    *(TRANSACTIONS.c[field.name] for field in fields(StatementLine) if field.name not in {c.key for c in ENTRY}),
]
Place = tuple[datetime, int, str, str]


def place(line: StatementLine) -> Place:
    """Where a line stands in the statement of its account."""
    return line.posted_at, line.wallet_version or 0, line.transaction_id, line.bucket


def lines(
    connection: Connection, accounts: Sequence[Account], currency: str, *, limit: int, after: Place | None, newest: bool
) -> list[StatementLine]:
    """A page of the entries on these accounts; each account is read by its own index range."""

    def one(account: Account) -> Any:
        mine = select(*ENTRIES.c).where(
            ENTRIES.c.account_id == account.account_id,
            ENTRIES.c.bucket == account.bucket,
            ENTRIES.c.currency == currency,
        )
        if after is not None:
            # The first comparison is implied by the second; an index can use it.
            edge = tuple_(*(literal(value, column.type) for value, column in zip(after, PLACE, strict=True)))
            mine = mine.where(
                ENTRIES.c.posted_at <= after[0] if newest else ENTRIES.c.posted_at >= after[0],
                tuple_(*PLACE) < edge if newest else tuple_(*PLACE) > edge,
            )
        return mine.order_by(*_direction(PLACE, newest)).limit(limit).subquery()

    page = union_all(*(select(one(account)) for account in accounts)).subquery()
    order = (page.c.posted_at, func.coalesce(page.c.wallet_version, 0), page.c.transaction_id, page.c.bucket)
    columns = [page.c[c.key] if c.table is ENTRIES else c for c in LINE]
    statement = (
        select(*columns)
        .join_from(page, TRANSACTIONS, TRANSACTIONS.c.transaction_id == page.c.transaction_id)
        .order_by(*_direction(order, newest))
        .limit(limit)
    )
    return [StatementLine(**row._mapping) for row in connection.execute(statement)]


def _direction(columns: Iterable[Any], newest: bool) -> list[Any]:
    return [column.desc() if newest else column.asc() for column in columns]


def exact_sum(amount: Any) -> tuple[Any, Any]:
    """The sum of an expression in two halves: SQLite's SUM of the whole would overflow at 2**63."""
    return func.sum(amount.op(">>")(literal_column("32"))), func.sum(amount.op("&")(literal_column("4294967295")))


def exact(high: Any, low: Any) -> int:
    """The two halves of ``exact_sum`` put together (high half * 2**32 + low half, in two's complement)."""
    return (int(high) << 32) + int(low)
