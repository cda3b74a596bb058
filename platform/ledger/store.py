"""All SQL on the ledger's tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from itertools import groupby, islice, pairwise
from operator import attrgetter
from textwrap import fill
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Row,
    and_,
    column,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    union_all,
    values,
)

from ..core.models import UtcDateTime
from ..core.rows import insert_rows
from .accounts import CHART, Account, InHold, accounts_of
from .models import (
    ENTRIES,
    TRANSACTIONS,
    EarningsPeriod,
    LedgerEntry,
    LedgerTransaction,
    StatementLine,
    StatementTransaction,
    TransactionHeader,
)
from .posting import in_order

HEADER = tuple(TRANSACTIONS.c[field.name] for field in fields(LedgerTransaction) if field.name != "entries")
ENTRY = tuple(ENTRIES.c[field.name] for field in fields(LedgerEntry))
POSTED = (ENTRIES.c.transaction_id, ENTRIES.c.owner_id, ENTRIES.c.currency, *ENTRY)
RECORD = (*HEADER, *ENTRY)
_HEADER_VALUES = attrgetter(*(column.key for column in HEADER))
_ENTRY_VALUES = attrgetter(*(column.key for column in ENTRY))
KEY = ("owner_id", "operation", "idempotency_key")
OF_TRANSACTION = ENTRIES.c.transaction_id == TRANSACTIONS.c.transaction_id


def add(connection: Connection, transactions: Sequence[LedgerTransaction]) -> None:
    """Write the transactions and their entries."""
    entries = [
        (each.transaction_id, each.owner_id, each.currency, *_ENTRY_VALUES(entry))
        for each in transactions
        for entry in each.entries
    ]
    insert_rows(connection, HEADER, [_HEADER_VALUES(each) for each in transactions])
    insert_rows(connection, POSTED, entries)


def recording(*, source: str, values: Mapping[str, str]) -> str:
    """The part of a data-modifying statement that records the transaction, if there is a row in ``source``.

    ``values`` has the SQL of the header's columns that are not parameters of their names.
    """
    header = [values.get(column.key) or parameter(column) for column in HEADER]
    return f"""
    INSERT INTO {TRANSACTIONS} ({in_lines(column.name for column in HEADER)})
    SELECT {in_lines(header)}
    FROM {source}
    RETURNING transaction_id, currency"""


def unused_key() -> str:
    """The SQL condition that the owner has recorded nothing under this operation and key."""
    key = " AND ".join(f"{name} = %({name})s::varchar" for name in KEY)
    return f"NOT EXISTS (SELECT FROM {TRANSACTIONS} WHERE {key})"


def in_lines(parts: Iterable[str]) -> str:
    """Comma-separated, and not too wide for a reader."""
    return fill(", ".join(parts), width=100, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)


def posting(*, wallets: Sequence[str], entries: Sequence[str]) -> str:
    """The part that posts the entries of the part ``recorded``, as the wallets are by then.

    An entry is the SQL of its account, bucket, amount, balance after, version and time of posting.
    """
    names = "account_id, bucket, amount, balance_after, wallet_version, posted_at"
    lines = ",\n        ".join(entries)
    return f"""
    INSERT INTO {ENTRIES} (transaction_id, owner_id, currency, {names}, balance_before)
    SELECT recorded.transaction_id, %(owner_id)s::varchar, recorded.currency, {names}, balance_after - amount
    FROM {", ".join(["recorded", *wallets])}, LATERAL (VALUES
        {lines}
    ) AS entry ({names})"""


def parameter(column: Column[Any], name: str | None = None) -> str:
    """A column's value as a parameter of PostgreSQL's driver, by its own or another name, with its type."""
    types = {UtcDateTime: "timestamptz", BigInteger: "bigint"}
    return f"%({name or column.key})s::{types.get(type(column.type), 'varchar')}"


def with_recorded(source: FromClause, asked: FromClause) -> FromClause:
    """The source, joined with what the owner has recorded under the operation and key that are asked for."""
    key = and_(*(TRANSACTIONS.c[name] == asked.c[name] for name in KEY))
    return source.outerjoin(TRANSACTIONS, key).outerjoin(ENTRIES, OF_TRANSACTION)


def transactions(connection: Connection, ids: Sequence[str]) -> list[LedgerTransaction]:
    """The transactions of these ids that exist, by id."""
    return _transactions(connection, TRANSACTIONS.c.transaction_id.in_(ids))


def transactions_of_escrow(connection: Connection, escrow_id: str) -> list[LedgerTransaction]:
    """The transactions of an escrow item: the hold, and what ended it."""
    found = _transactions(connection, TRANSACTIONS.c.escrow_id == escrow_id)
    return sorted(
        found, key=lambda each: each.operation not in CHART or CHART[each.operation].hold is not InHold.BEGINS
    )


def _transactions(connection: Connection, which: ColumnElement[bool]) -> list[LedgerTransaction]:
    statement = (
        select(*RECORD)
        .join_from(TRANSACTIONS, ENTRIES, OF_TRANSACTION)
        .where(which)
        .order_by(TRANSACTIONS.c.transaction_id)
    )
    rows = connection.execute(statement).all()
    return [
        collect(list(group)) for _, group in groupby(rows, key=lambda row: row._mapping[TRANSACTIONS.c.transaction_id])
    ]


def collect(rows: Sequence[Row[Any]]) -> LedgerTransaction:
    """The transaction that these rows of RECORD, at least one for each of its entries, are."""
    entries = {LedgerEntry(**_values(row, ENTRY)) for row in rows if row._mapping[ENTRIES.c.account_id] is not None}
    return LedgerTransaction(**_values(rows[0], HEADER), entries=in_order(entries))


def _values(row: Row[Any], columns: Iterable[Column[Any]]) -> dict[str, Any]:
    values: Mapping[Any, Any] = row._mapping
    return {column.key: values[column] for column in columns}


PLACE = (ENTRIES.c.posted_at, func.coalesce(ENTRIES.c.wallet_version, 0), ENTRIES.c.transaction_id, ENTRIES.c.bucket)
LINE = (
    *ENTRY,
    *(TRANSACTIONS.c[field.name] for field in fields(StatementLine) if field.name not in {c.key for c in ENTRY}),
)
OF_HEADER = {field.name for field in fields(TransactionHeader)}
Place = tuple[datetime, int, str, str]
# No bucket is called so: before and after all of them.
FIRST_BUCKET, LAST_BUCKET = "", "~"


class Which(NamedTuple):
    """What a statement is of: accounts in a currency, values of the transactions, since and until."""

    accounts: Sequence[Account]
    currency: str
    equal: Mapping[str, str]
    span: tuple[datetime | None, ...]


def place(line: StatementLine) -> Place:
    """Where a line stands in the statement of its account."""
    return line.posted_at, line.wallet_version or 0, line.transaction_id, line.bucket


def lines(
    connection: Connection, which: Which, *, limit: int, after: Place | None, newest: bool
) -> list[StatementLine]:
    """A page of the entries on these accounts."""
    return [StatementLine(**row) for row in _page(connection, LINE, which, limit, after, newest)]


def statement(
    connection: Connection, which: Which, *, limit: int, after: Place | None, newest: bool
) -> list[StatementTransaction]:
    """The same with one line for each transaction, one more than ``limit`` where there are more."""
    # A transaction's entries on an owner's accounts stand side by side, at most one on each.
    rows = _page(connection, RECORD, which, limit * len(which.accounts) + 1, after, newest)
    by_transaction = (list(group) for _, group in groupby(rows, key=lambda row: row["transaction_id"]))
    return [_line(group) for group in islice(by_transaction, limit + 1)]


def _line(rows: Sequence[Mapping[str, Any]]) -> StatementTransaction:
    entries = {LedgerEntry(**{column.key: row[column.key] for column in ENTRY}) for row in rows}
    return StatementTransaction(**{name: rows[0][name] for name in OF_HEADER}, entries=in_order(entries))


def _page(
    connection: Connection,
    columns: Sequence[Column[Any]],
    which: Which,
    limit: int,
    after: Place | None,
    newest: bool,
) -> list[dict[str, Any]]:
    """A page of the rows of these entries and their transactions; each account is read by its own index range."""
    wanted = [TRANSACTIONS.c[name] == value for name, value in which.equal.items()]
    since, until = which.span
    wanted += [ENTRIES.c.posted_at >= since] if since is not None else []
    wanted += [ENTRIES.c.posted_at < until] if until is not None else []
    if after is not None:
        # The first comparison follows from the second, and is the one that an index can use.
        edge = tuple_(*(literal(value, column.type) for value, column in zip(after, PLACE, strict=True)))
        beyond = ENTRIES.c.posted_at <= after[0] if newest else ENTRIES.c.posted_at >= after[0]
        wanted += [beyond, tuple_(*PLACE) < edge if newest else tuple_(*PLACE) > edge]

    def one(account: Account) -> Any:
        on = _on(account, which.currency)
        mine = select(*columns).join_from(ENTRIES, TRANSACTIONS, OF_TRANSACTION).where(*on, *wanted)
        return select(mine.order_by(*_direction(PLACE, newest)).limit(limit).subquery())

    page = union_all(*map(one, which.accounts)).subquery()
    order = (page.c.posted_at, func.coalesce(page.c.wallet_version, 0), page.c.transaction_id, page.c.bucket)
    statement = select(page).order_by(*_direction(order, newest)).limit(limit)
    names = [column.key for column in columns]
    return [dict(zip(names, row, strict=True)) for row in connection.execute(statement)]


def _direction(columns: Iterable[Any], newest: bool) -> list[Any]:
    return [column.desc() if newest else column.asc() for column in columns]


def _on(account: Account, currency: str) -> tuple[ColumnElement[bool], ...]:
    return (
        ENTRIES.c.account_id == account.account_id,
        ENTRIES.c.bucket == account.bucket,
        ENTRIES.c.currency == currency,
    )


def balance_at(connection: Connection, account: Account, currency: str, at: datetime) -> int:
    """The balance that the last entry up to that time left."""
    last = select(ENTRIES.c.balance_after).where(*_on(account, currency), ENTRIES.c.posted_at <= at)
    return connection.scalar(last.order_by(ENTRIES.c.posted_at.desc(), ENTRIES.c.wallet_version.desc()).limit(1)) or 0


def balance_at_version(connection: Connection, account: Account, currency: str, version: int) -> int | None:
    """The balance at that version of the wallet; ``None`` if the wallet has not come so far."""
    last = select(ENTRIES.c.balance_after).where(*_on(account, currency), ENTRIES.c.wallet_version <= version)
    last = last.order_by(ENTRIES.c.wallet_version.desc()).limit(1)
    # Another bucket of the wallet may have had the latest change.
    siblings = accounts_of(account.account_id)
    newest = (select(func.max(ENTRIES.c.wallet_version)).where(*_on(each, currency)) for each in siblings)
    row = connection.execute(select(*(part.scalar_subquery() for part in (last, *newest)))).one()
    return None if version > max(reached or 0 for reached in row[1:]) else row[0] or 0


def earned_between(
    connection: Connection, account: Account, currency: str, edges: Sequence[datetime]
) -> list[EarningsPeriod]:
    """What the account gained between each two neighbouring times, in one query."""
    spans = list(pairwise(edges))
    at = ENTRIES.c.posted_at.type
    rows = values(column("number", Integer()), column("start", at), column("finish", at))
    periods = rows.data([(number, *span) for number, span in enumerate(spans)]).cte("periods")
    within = and_(ENTRIES.c.posted_at >= periods.c.start, ENTRIES.c.posted_at < periods.c.finish)
    gained = and_(*_on(account, currency), ENTRIES.c.amount > 0, within)
    statement = (
        select(periods.c.number, *exact_sum(ENTRIES.c.amount))
        .join_from(periods, ENTRIES, gained, isouter=True)
        .group_by(periods.c.number)
    )
    sums = {number: exact(high or 0, low or 0) for number, high, low in connection.execute(statement)}
    return [EarningsPeriod(start=start, end=end, earned=sums[n]) for n, (start, end) in enumerate(spans)]


def exact_sum(amount: Any) -> tuple[Any, Any]:
    """The sum of an expression in two halves: SQLite's SUM of the whole would overflow at 2**63."""
    return func.sum(amount.op(">>")(literal_column("32"))), func.sum(amount.op("&")(literal_column("4294967295")))


def exact(high: Any, low: Any) -> int:
    """The two halves of ``exact_sum`` put together (high half * 2**32 + low half, in two's complement)."""
    return (int(high) << 32) + int(low)
