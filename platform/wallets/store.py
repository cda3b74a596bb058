"""All SQL on the wallets' tables but the single statements."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    func,
    select,
)

from ..core.failures import Stale
from ..core.rows import given, insert_rows, parameters, update_rows
from ..ledger import store as ledger_store
from ..ledger.accounts import Bucket, model_owner, user_owner
from ..ledger.models import TRANSACTIONS
from .models import ESCROW_ITEMS, MODEL_WALLETS, USER_WALLETS, EscrowItem, EscrowStatus
from .unit_of_work import Keys, UnitOfWork, Wallet

ITEM = tuple(ESCROW_ITEMS.c[field.name] for field in fields(EscrowItem))
ENDING = tuple(
    ESCROW_ITEMS.c[name] for name in ("status", "model_id", "settled_amount", "refunded_amount", "processed_at")
)
_ITEM_VALUES = attrgetter(*(column.key for column in ITEM))
_ENDED_VALUES = attrgetter(*(column.key for column in ENDING))
_KEY_COLUMNS = (
    *(TRANSACTIONS.c[name] for name in ledger_store.KEY),
    ESCROW_ITEMS.c.escrow_id,
    USER_WALLETS.c.user_id,
    MODEL_WALLETS.c.model_id,
    USER_WALLETS.c.currency,
)
BUCKETS = {USER_WALLETS: (Bucket.AVAILABLE, Bucket.ESCROW), MODEL_WALLETS: (Bucket.EARNED,)}


class Asked(NamedTuple):
    """What operations of one kind need to know, as the statements want it."""

    parameters: Mapping[str, Any]
    many: bool
    of_items: bool


def ask(connection: Connection, keys: Sequence[Keys]) -> Asked:
    """For the rows of these operations, all of one kind."""
    many = len(keys) > 1
    return Asked(parameters(connection, keys) if many else keys[0]._asdict(), many, keys[0].escrow_id is not None)


def lock(connection: Connection, asked: Asked) -> None:
    """Lock the rows that the operations will change, in the one order that all lock in.

    SQLite has no row locks and needs none: its writers come one after the other.
    """
    if connection.dialect.name != "sqlite":
        for statement in _locks(connection.dialect.name, asked.many, asked.of_items):
            connection.execute(statement, asked.parameters)


def read(connection: Connection, asked: Asked) -> UnitOfWork:
    """Everything that the operations, all of one kind, need: the rows, and what their keys already did.

    One statement, so one snapshot: it can not see what a twin with the same key has done to the rows
    without seeing the twin's transaction too.
    """
    work = UnitOfWork()
    recorded: dict[str, list[Row[Any]]] = {}
    statement = _read(connection.dialect.name, asked.many, asked.of_items)
    for row in connection.execute(statement, asked.parameters):
        transaction_id, user_id, currency, available, escrow, version, updated_at = row[:7]
        if version is not None:
            balances = {Bucket.AVAILABLE: available, Bucket.ESCROW: escrow}
            work.wallets[user_owner(user_id), currency] = Wallet(balances, version, updated_at)
        if asked.of_items:
            _take_item(work, currency, row[7 : 11 + len(ITEM)])
        if transaction_id is not None:
            recorded.setdefault(transaction_id, []).append(row)
    for rows in recorded.values():
        transaction = ledger_store.collect(rows)
        work.recorded[transaction.owner_id, transaction.operation, transaction.idempotency_key] = transaction
    return work


def _take_item(work: UnitOfWork, currency: str, row: Sequence[Any]) -> None:
    model_id, earned, version, updated_at, *item = row
    if version is not None:
        work.wallets[model_owner(model_id), currency] = Wallet({Bucket.EARNED: earned}, version, updated_at)
    if item[0] is not None:
        found = _item(item)
        work.items[found.escrow_id, found.user_id] = found


def _asked(dialect: str, many: bool) -> FromClause:
    """What is asked for as a table: from a parameter for each value, or from one with all rows."""
    if many:
        return given(dialect, _KEY_COLUMNS)
    return select(*(bindparam(column.key, type_=column.type).label(column.key) for column in _KEY_COLUMNS)).subquery(
        "given"
    )


def _same(table: Table, source: Any, *names: str) -> ColumnElement[bool]:
    return and_(*(table.c[name] == source.c[name] for name in names))


def _resolved(asked: FromClause, of_item: bool) -> tuple[FromClause, ColumnElement[str]]:
    """What is asked for, with the escrow items; and the currency, which is the item's where there is one."""
    if not of_item:
        return asked, asked.c.currency
    joined = asked.outerjoin(ESCROW_ITEMS, _same(ESCROW_ITEMS, asked, "escrow_id", "user_id"))
    return joined, func.coalesce(ESCROW_ITEMS.c.currency, asked.c.currency)


@cache
def _locks(dialect: str, many: bool, of_item: bool) -> list[Select[Any]]:
    asked = _asked(dialect, many)
    source, currency = _resolved(asked, of_item)
    wallets = {USER_WALLETS: "user_id"} | ({MODEL_WALLETS: "model_id"} if of_item else {})
    rows = []
    if of_item:
        held = select(ESCROW_ITEMS.c.escrow_id).join_from(
            asked, ESCROW_ITEMS, _same(ESCROW_ITEMS, asked, "escrow_id", "user_id")
        )
        rows.append(held.order_by(ESCROW_ITEMS.c.escrow_id).with_for_update(of=ESCROW_ITEMS))
    for table, name in wallets.items():
        mine = and_(_same(table, asked, name), table.c.currency == currency)
        wanted = select(table.c[name]).select_from(source.join(table, mine))
        rows.append(wanted.order_by(table.c[name], table.c.currency).with_for_update(of=table))
    # Nobody wants to see them.
    return [select(func.count()).select_from(each.subquery()) for each in rows]


@cache
def _read(dialect: str, many: bool, of_item: bool) -> Select[Any]:
    asked = _asked(dialect, many)
    source, currency = _resolved(asked, of_item)
    source = source.outerjoin(
        USER_WALLETS, and_(_same(USER_WALLETS, asked, "user_id"), USER_WALLETS.c.currency == currency)
    )
    user = (USER_WALLETS.c[name] for name in ("available", "escrow", "version", "updated_at"))
    columns = [TRANSACTIONS.c.transaction_id, asked.c.user_id, currency, *user]
    if of_item:
        source = source.outerjoin(
            MODEL_WALLETS, and_(_same(MODEL_WALLETS, asked, "model_id"), MODEL_WALLETS.c.currency == currency)
        )
        model = (MODEL_WALLETS.c[name] for name in ("earned", "version", "updated_at"))
        columns += [asked.c.model_id, *model, *ITEM]
    source = ledger_store.with_recorded(source, asked)
    return select(*columns, *ledger_store.RECORD).select_from(source)


def write(connection: Connection, work: UnitOfWork) -> None:
    """Write what has been decided on escrow items and wallets, where each row is as it was read.

    Raises ``Stale`` when one is not. A wallet that was not there is inserted, so a unique violation says
    that it is there by now.
    """
    held = [item for item in work.decided if item.status is EscrowStatus.HELD]
    ended = [item for item in work.decided if item.status is not EscrowStatus.HELD]
    if held:
        insert_rows(connection, ITEM, [_ITEM_VALUES(item) for item in held])
    if ended:
        rows = sorted((item.escrow_id, item.user_id, EscrowStatus.HELD.value, *_ENDED_VALUES(item)) for item in ended)
        key = (ESCROW_ITEMS.c.escrow_id, ESCROW_ITEMS.c.user_id, ESCROW_ITEMS.c.status)
        _all(rows, update_rows(connection, key, ENDING, rows))
    _write_wallets(connection, work, USER_WALLETS, "user:")
    _write_wallets(connection, work, MODEL_WALLETS, "model:")


def _write_wallets(connection: Connection, work: UnitOfWork, table: Table, kind: str) -> None:
    owner, currency, *_ = table.c
    balances = tuple(table.c[bucket] for bucket in BUCKETS[table])
    changed = (table.c.version, table.c.updated_at, *balances)
    new, old = [], []
    for (owner_id, code), wallet in sorted(work.wallets.items()):
        if not owner_id.startswith(kind) or wallet.version == wallet.seen:
            continue
        key, values = (
            (owner_id.removeprefix(kind), code),
            (wallet.version, wallet.updated_at, *(wallet.balances[bucket] for bucket in BUCKETS[table])),
        )
        if wallet.seen:
            old.append((*key, wallet.seen, *values))
        else:
            new.append((*key, wallet.created_at, *values))
    if old:
        _all(old, update_rows(connection, (owner, currency, table.c.version), changed, old))
    if new:
        insert_rows(connection, (owner, currency, table.c.created_at, *changed), new)


def _all(rows: Sequence[Any], changed: int) -> None:
    if changed != len(rows):
        raise Stale


def _is(table: Table, values: Mapping[str, Any]) -> list[Any]:
    return [table.c[name] == value for name, value in values.items()]


def _item(row: Sequence[Any]) -> EscrowItem:
    values = {column.key: value for column, value in zip(ITEM, row, strict=True)}
    return EscrowItem(**values | {"status": EscrowStatus(values["status"])})


def wallet(connection: Connection, table: Table, **key: str) -> Row[Any] | None:
    """A wallet's row, ``None`` if it has none yet."""
    return connection.execute(select(table).where(*_is(table, key))).first()


def items(
    connection: Connection,
    equal: Mapping[str, str],
    *,
    held_before: datetime | None = None,
    after: str = "",
    limit: int,
) -> Sequence[EscrowItem]:
    """The escrow items whose columns equal these values, by id, so the oldest first."""
    statement = select(*ITEM).where(*_is(ESCROW_ITEMS, equal), ESCROW_ITEMS.c.escrow_id > after)
    if held_before is not None:
        statement = statement.where(ESCROW_ITEMS.c.created_at < held_before)
    return [_item(row) for row in connection.execute(statement.order_by(ESCROW_ITEMS.c.escrow_id).limit(limit))]
