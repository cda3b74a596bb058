"""What hosts may ask of the wallets' tables, without changing anything."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Table, select

from .models import ESCROW_ITEMS, EscrowItem, wallet_table


def wallet(connection: Connection, owner_id: str, currency: str) -> Row[Any] | None:
    """An owner's wallet in a currency, ``None`` if there is none yet."""
    table = wallet_table(owner_id)
    return connection.execute(select(table).where(*_is(table, {"owner_id": owner_id, "currency": currency}))).first()


def wallets(connection: Connection, owner_id: str) -> Sequence[Row[Any]]:
    """All wallets of an owner, by currency."""
    table = wallet_table(owner_id)
    return connection.execute(select(table).where(*_is(table, {"owner_id": owner_id})).order_by(table.c.currency)).all()


def items(
    connection: Connection,
    equal: Mapping[str, str],
    *,
    held_before: datetime | None = None,
    after: str = "",
    limit: int,
) -> Sequence[EscrowItem]:
    """The escrow items whose columns equal these values, by id, so the oldest first."""
    statement = select(ESCROW_ITEMS).where(*_is(ESCROW_ITEMS, equal), ESCROW_ITEMS.c.escrow_id > after)
    if held_before is not None:
        statement = statement.where(ESCROW_ITEMS.c.created_at < held_before)
    found = connection.execute(statement.order_by(ESCROW_ITEMS.c.escrow_id).limit(limit))
    keys = ESCROW_ITEMS.c.keys()
    return [EscrowItem.of(dict(zip(keys, row, strict=True))) for row in found]


def _is(table: Table, values: Mapping[str, str]) -> list[Any]:
    return [table.c[name] == value for name, value in values.items()]
