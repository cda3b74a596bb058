"""All SQL on the wallets' tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from ..core.failures import Stale
from ..core.values import MAX_POINTS
from ..ledger import store as ledger_store
from ..ledger.accounts import Account, Bucket, Operation, model_owner, net, user_owner
from ..ledger.models import TRANSACTIONS, WalletState
from .models import ESCROW_ITEMS, MODEL_WALLETS, USER_WALLETS, EscrowItem, EscrowStatus
from .rules import Decision, State

ITEM = [ESCROW_ITEMS.c[field.name] for field in fields(EscrowItem)]
BUCKETS = {USER_WALLETS: (Bucket.AVAILABLE, Bucket.ESCROW), MODEL_WALLETS: (Bucket.EARNED,)}


class Keys(NamedTuple):
    """What identifies the rows of an operation. Without a currency it is the escrow item's."""

    user_id: str
    currency: str | None
    escrow_id: str | None
    model_id: str | None


def _read_statement() -> Any:
    """One row without a recorded transaction, else one for each of its entries.

    One statement, so one snapshot: it can not see what a twin with the same key has done to the rows
    without seeing the twin's transaction too.
    """
    anchor = select(literal(1)).subquery("request")
    currency = func.coalesce(ESCROW_ITEMS.c.currency, bindparam("currency"))
    joined = (
        anchor.outerjoin(
            ESCROW_ITEMS,
            and_(ESCROW_ITEMS.c.escrow_id == bindparam("escrow_id"), ESCROW_ITEMS.c.user_id == bindparam("user_id")),
        )
        .outerjoin(
            USER_WALLETS, and_(USER_WALLETS.c.user_id == bindparam("user_id"), USER_WALLETS.c.currency == currency)
        )
        .outerjoin(
            MODEL_WALLETS, and_(MODEL_WALLETS.c.model_id == bindparam("model_id"), MODEL_WALLETS.c.currency == currency)
        )
    )
    wallets = [USER_WALLETS.c.available, USER_WALLETS.c.escrow, USER_WALLETS.c.version, MODEL_WALLETS.c.earned]
    return select(*wallets, *ITEM, *ledger_store.RECORD).select_from(ledger_store.with_recorded(joined))


_READ = _read_statement()


def read(connection: Connection, operation: Operation, idempotency_key: str, keys: Keys) -> State:
    """Everything that a decision needs: the rows, and what this key already did."""
    parameters = {
        "owner_id": user_owner(keys.user_id),
        "operation": operation.value,
        "idempotency_key": idempotency_key,
        **keys._asdict(),
    }
    rows = connection.execute(_READ, parameters).all()
    row = rows[0]._mapping
    item = _item(rows[0]) if row[ESCROW_ITEMS.c.escrow_id] is not None else None
    return State(
        currency=item.currency if item else keys.currency or "",
        available=row[USER_WALLETS.c.available] or 0,
        escrow=row[USER_WALLETS.c.escrow] or 0,
        version=row[USER_WALLETS.c.version] or 0,
        earned=row[MODEL_WALLETS.c.earned] or 0,
        item=item,
        recorded=ledger_store.collect(rows) if row[TRANSACTIONS.c.transaction_id] is not None else None,
    )


def lock(connection: Connection, keys: Keys) -> None:
    """Lock the rows that the operation will change, by full key, in the one order that all lock in.

    SQLite has no row locks and needs none: its writers come one after the other.
    """
    currency = keys.currency
    if keys.escrow_id is not None:
        held = _lock_row(connection, ESCROW_ITEMS, escrow_id=keys.escrow_id, user_id=keys.user_id)
        currency = held.currency if held else currency
    _lock_row(connection, USER_WALLETS, user_id=keys.user_id, currency=currency)
    if keys.model_id is not None:
        _lock_row(connection, MODEL_WALLETS, model_id=keys.model_id, currency=currency)


def _lock_row(connection: Connection, table: Table, **key: str | None) -> Row[Any] | None:
    return connection.execute(select(table.c.currency).where(*_is(table, key)).with_for_update()).first()


def write(connection: Connection, decision: Decision) -> dict[str, WalletState]:
    """Carry out the decision on escrow item and wallets; returns the wallets as they are now, by owner.

    Raises ``Stale`` when a row is not as the decision needs it.
    """
    draft, item = decision.transaction, decision.item
    if item is not None:
        _write_item(connection, item)
    change = net(draft.movements)
    wallets = {}
    for owner, table, key in _wallets_of(decision):
        gains = {bucket: change.get(Account(owner, bucket), 0) for bucket in BUCKETS[table]}
        version = decision.seen_version if table is USER_WALLETS else None
        key["currency"] = draft.currency
        wallets[owner] = _change_wallet(connection, table, key, gains, at=draft.occurred_at, version=version)
    return wallets


def _wallets_of(decision: Decision) -> list[tuple[str, Table, dict[str, str]]]:
    """The wallets to change, users before models: the hot rows are locked last and shortest."""
    user_id = decision.transaction.owner_id.removeprefix("user:")
    wallets = [(user_owner(user_id), USER_WALLETS, {"user_id": user_id})]
    if (model_id := decision.transaction.model_id) is not None:
        wallets.append((model_owner(model_id), MODEL_WALLETS, {"model_id": model_id}))
    return wallets


def _write_item(connection: Connection, item: EscrowItem) -> None:
    if item.status is EscrowStatus.HELD:
        connection.execute(insert(ESCROW_ITEMS), {column.key: getattr(item, column.key) for column in ITEM})
        return
    changed = ("status", "model_id", "settled_amount", "refunded_amount", "processed_at")
    key = {"escrow_id": item.escrow_id, "user_id": item.user_id, "status": EscrowStatus.HELD}
    result = connection.execute(
        update(ESCROW_ITEMS).where(*_is(ESCROW_ITEMS, key)).values({name: getattr(item, name) for name in changed})
    )
    if result.rowcount != 1:
        raise Stale


def _change_wallet(
    connection: Connection,
    table: Table,
    key: Mapping[str, str],
    gains: Mapping[Bucket, int],
    *,
    at: datetime,
    version: int | None,
) -> WalletState:
    """Add the gains to a wallet, within its limits, raising its version by one.

    A change that only adds creates the wallet if it is the first. ``Stale`` if the wallet has another
    version than the given one, or the change would break a limit.
    """
    changes, within = _changes(table, gains, at)
    if version is None and min(gains.values()) >= 0:
        statement = _upsert(connection, table, key, gains, at, changes, within)
    else:
        expected = key if version is None else {**key, "version": version}
        statement = update(table).where(*_is(table, expected), within).values(changes)
    returned = (*(table.c[bucket] for bucket in gains), table.c.version, table.c.updated_at)
    row = connection.execute(statement.returning(*returned)).first()
    if row is None:
        raise Stale
    return WalletState(
        balances={bucket: row._mapping[table.c[bucket]] for bucket in gains},
        version=row.version,
        posted_at=row.updated_at,
    )


def _changes(
    table: Table, gains: Mapping[Bucket, int], at: datetime
) -> tuple[dict[str, ColumnElement[Any]], ColumnElement[bool]]:
    """The columns after the change, and the condition that the balances are within their limits then."""
    after = {bucket.value: table.c[bucket] + gain for bucket, gain in gains.items()}
    updated, now = table.c.updated_at, literal(at, table.c.updated_at.type)
    others = {
        "version": table.c.version + 1,
        # Never earlier than the change before, whatever the clocks do: history by time relies on it.
        "updated_at": case((updated > now, updated), else_=now),
    }
    total: ColumnElement[int] = sum(after.values(), start=literal_column("0"))
    return {**after, **others}, and_(*(value >= 0 for value in after.values()), total <= MAX_POINTS)


def _upsert(
    connection: Connection,
    table: Table,
    key: Mapping[str, str],
    gains: Mapping[Bucket, int],
    at: datetime,
    changes: Mapping[str, ColumnElement[Any]],
    within: ColumnElement[bool],
) -> Any:
    first = {bucket.value: gain for bucket, gain in gains.items()}
    times = {"created_at": at, "updated_at": at}
    statement = _INSERT[connection.dialect.name](table).values({**key, **first, **times, "version": 1})
    return statement.on_conflict_do_update(index_elements=[table.c[name] for name in key], set_=changes, where=within)


_INSERT: dict[str, Callable[[Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def _is(table: Table, values: Mapping[str, Any]) -> list[Any]:
    return [table.c[name] == value for name, value in values.items()]


def _item(row: Row[Any]) -> EscrowItem:
    values = {column.key: row._mapping[column] for column in ITEM}
    return EscrowItem(**{**values, "status": EscrowStatus(values["status"])})


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
