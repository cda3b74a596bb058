"""The wallets' tables, and the values that are read from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, Column, Index, Table, Text
from sqlmodel import Field

from ..core.models import Base, UtcDateTime, column, points, text
from ..core.values import MAX_ID_LENGTH, MAX_POINTS, HasMetadata
from ..ledger.accounts import WALLETS, kind_of, name_of
from ..ledger.models import OWNER_LENGTH, UUID_LENGTH


class EscrowStatus(StrEnum):
    """``held``, and then once one of the others."""

    HELD = "held"
    SETTLED = "settled"
    REFUNDED = "refunded"
    PARTIALLY_SETTLED = "partially_settled"


ACTIVE = "active"


def _balance(kind: str) -> CheckConstraint:
    """No bucket is negative, and together they stay within the limit, so that what moves between them always fits."""
    names = [bucket.value for bucket in WALLETS[kind]]
    rule = " AND ".join(f"{name} >= 0" for name in names) + f" AND {' + '.join(names)} <= {MAX_POINTS}"
    return CheckConstraint(rule, name=f"{kind}_wallets_balance")


class UserWalletRow(Base, table=True):
    __tablename__ = "user_wallets"
    __table_args__ = (_balance("user"), CheckConstraint("version >= 1", name="user_wallets_version"))
    owner_id: str = column("owner_id", text(OWNER_LENGTH), key=True)
    currency: str = column("currency", text(32), key=True)
    available: int = points("available")
    escrow: int = points("escrow")
    paying: int = points("paying", default="0")
    state: str = column("state", text(32), default=ACTIVE)
    version: int = points("version")
    created_at: datetime = column("created_at", UtcDateTime())
    updated_at: datetime = column("updated_at", UtcDateTime())


class ModelWalletRow(Base, table=True):
    __tablename__ = "model_wallets"
    __table_args__ = (_balance("model"), CheckConstraint("version >= 1", name="model_wallets_version"))
    owner_id: str = column("owner_id", text(OWNER_LENGTH), key=True)
    currency: str = column("currency", text(32), key=True)
    earned: int = points("earned")
    paying: int = points("paying", default="0")
    state: str = column("state", text(32), default=ACTIVE)
    version: int = points("version")
    created_at: datetime = column("created_at", UtcDateTime())
    updated_at: datetime = column("updated_at", UtcDateTime())


class EscrowItemRow(Base, table=True):
    __tablename__ = "escrow_items"
    __table_args__ = (
        CheckConstraint(f"amount >= 1 AND amount <= {MAX_POINTS}", name="escrow_items_amount"),
        CheckConstraint("settled_amount >= 0 AND refunded_amount >= 0", name="escrow_items_split"),
        # Statuses are open: whatever they will be called, a hold is whole until it is over, and then all of it is gone.
        CheckConstraint(
            "(processed_at IS NULL AND settled_amount = 0 AND refunded_amount = 0 "
            "AND status NOT IN ('settled', 'refunded', 'partially_settled')) OR "
            "(processed_at IS NOT NULL AND settled_amount + refunded_amount = amount AND status <> 'held')",
            name="escrow_items_status",
        ),
        Index("escrow_items_owner", "owner_id", "status", "escrow_id"),
        Index("escrow_items_queue_item", "queue_item_id"),
    )
    escrow_id: str = column("escrow_id", text(UUID_LENGTH), key=True)
    owner_id: str = column("owner_id", text(OWNER_LENGTH), key=True)
    currency: str = column("currency", text(32))
    amount: int = points("amount")
    status: str = column("status", text(32))
    queue_item_id: str = column("queue_item_id", text(MAX_ID_LENGTH))
    feature_type: str = column("feature_type", text(32))
    reason: str = column("reason", text(64))
    metadata_json: str | None = Field(sa_column=Column("metadata", Text(), key="metadata_json"))
    model_id: str | None = column("model_id", text(MAX_ID_LENGTH), null=True)
    settled_amount: int = points("settled_amount", default="0")
    refunded_amount: int = points("refunded_amount", default="0")
    created_at: datetime = column("created_at", UtcDateTime())
    processed_at: datetime | None = column("processed_at", UtcDateTime(), null=True)
    expires_at: datetime | None = column("expires_at", UtcDateTime(), null=True)


class DepositClaimRow(Base, table=True):
    """What a source's reference has been credited as: the one row that is not its owner's but the reference's."""

    __tablename__ = "deposit_claims"
    __table_args__ = (CheckConstraint(f"amount >= 1 AND amount <= {MAX_POINTS}", name="deposit_claims_amount"),)
    source: str = column("source", text(MAX_ID_LENGTH), key=True)
    reference: str = column("reference", text(MAX_ID_LENGTH), key=True)
    owner_id: str = column("owner_id", text(OWNER_LENGTH))
    transaction_id: str = column("transaction_id", text(UUID_LENGTH))
    currency: str = column("currency", text(32))
    amount: int = points("amount")
    created_at: datetime = column("created_at", UtcDateTime())


USER_WALLETS: Table = UserWalletRow.__table__  # type: ignore[attr-defined]
MODEL_WALLETS: Table = ModelWalletRow.__table__  # type: ignore[attr-defined]
ESCROW_ITEMS: Table = EscrowItemRow.__table__  # type: ignore[attr-defined]
DEPOSIT_CLAIMS: Table = DepositClaimRow.__table__  # type: ignore[attr-defined]

# In the order in which everybody locks: rows of decisions first, then wallets, the hot ones last and shortest.
ROW_TABLES = (DEPOSIT_CLAIMS, ESCROW_ITEMS)
WALLET_TABLES = {"user": USER_WALLETS, "model": MODEL_WALLETS}


def wallet_table(owner_id: str) -> Table:
    """The table that has the wallets of owners of that kind."""
    return WALLET_TABLES[kind_of(owner_id)]


# Stuck holds are looked for across all users; only what is still held costs anything here.
Index(
    "escrow_items_held",
    ESCROW_ITEMS.c.escrow_id,
    sqlite_where=ESCROW_ITEMS.c.status == EscrowStatus.HELD.value,
    postgresql_where=ESCROW_ITEMS.c.status == EscrowStatus.HELD.value,
)


@dataclass(frozen=True, kw_only=True)
class EscrowItem(HasMetadata):
    """One hold and what became of it. Amounts are points in minor units."""

    escrow_id: str
    user_id: str
    currency: str
    amount: int
    status: EscrowStatus
    queue_item_id: str
    feature_type: str
    reason: str
    metadata_json: str | None
    model_id: str | None = None
    settled_amount: int = 0
    refunded_amount: int = 0
    created_at: datetime
    processed_at: datetime | None = None
    expires_at: datetime | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "EscrowItem":
        """The item that a row of the table is."""
        others = {name: value for name, value in row.items() if name not in {"owner_id", "status"}}
        return cls(user_id=name_of(row["owner_id"]), status=EscrowStatus(row["status"]), **others)


@dataclass(frozen=True, kw_only=True)
class UserBalance:
    """A user's points in one currency; ``total`` is available + escrow. Version 0: no wallet yet."""

    user_id: str
    currency: str
    available: int
    escrow: int
    total: int
    version: int
    as_of: datetime

    @classmethod
    def of(cls, user_id: str, currency: str, row: Any, *, as_of: datetime) -> "UserBalance":
        """The balance that a row of the table is, or none."""
        available, escrow, version = (row.available, row.escrow, row.version) if row else (0, 0, 0)
        points = {"available": available, "escrow": escrow, "total": available + escrow}
        return cls(user_id=user_id, currency=currency, **points, version=version, as_of=as_of)


@dataclass(frozen=True, kw_only=True)
class ModelBalance:
    """What a model has earned in one currency. Version 0: no wallet yet."""

    model_id: str
    currency: str
    earned: int
    version: int
    as_of: datetime

    @classmethod
    def of(cls, model_id: str, currency: str, row: Any, *, as_of: datetime) -> "ModelBalance":
        """The balance that a row of the table is, or none."""
        earned, version = (row.earned, row.version) if row else (0, 0)
        return cls(model_id=model_id, currency=currency, earned=earned, version=version, as_of=as_of)
