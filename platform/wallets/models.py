"""The wallets' tables, and the values that are read from them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, Column, Index, Table, Text
from sqlmodel import Field

from ..core.models import Base, UtcDateTime, column, points, text
from ..core.values import MAX_ID_LENGTH, MAX_POINTS, HasMetadata
from ..ledger.models import UUID_LENGTH


class EscrowStatus(StrEnum):
    """``held``, and then once one of the others."""

    HELD = "held"
    SETTLED = "settled"
    REFUNDED = "refunded"
    PARTIALLY_SETTLED = "partially_settled"


class UserWalletRow(Base, table=True):
    __tablename__ = "user_wallets"
    __table_args__ = (
        # Also the room for every refund: what is in escrow always fits back into available.
        CheckConstraint(
            f"available >= 0 AND escrow >= 0 AND available + escrow <= {MAX_POINTS}", name="user_wallets_balance"
        ),
        CheckConstraint("version >= 1", name="user_wallets_version"),
    )
    user_id: str = column("user_id", text(MAX_ID_LENGTH), key=True)
    currency: str = column("currency", text(32), key=True)
    available: int = points("available")
    escrow: int = points("escrow")
    version: int = points("version")
    created_at: datetime = column("created_at", UtcDateTime())
    updated_at: datetime = column("updated_at", UtcDateTime())


class ModelWalletRow(Base, table=True):
    __tablename__ = "model_wallets"
    __table_args__ = (
        CheckConstraint(f"earned >= 0 AND earned <= {MAX_POINTS}", name="model_wallets_balance"),
        CheckConstraint("version >= 1", name="model_wallets_version"),
    )
    model_id: str = column("model_id", text(MAX_ID_LENGTH), key=True)
    currency: str = column("currency", text(32), key=True)
    earned: int = points("earned")
    version: int = points("version")
    created_at: datetime = column("created_at", UtcDateTime())
    updated_at: datetime = column("updated_at", UtcDateTime())


class EscrowItemRow(Base, table=True):
    __tablename__ = "escrow_items"
    __table_args__ = (
        CheckConstraint(f"amount >= 1 AND amount <= {MAX_POINTS}", name="escrow_items_amount"),
        CheckConstraint("settled_amount >= 0 AND refunded_amount >= 0", name="escrow_items_split"),
        CheckConstraint(
            "(status = 'held' AND processed_at IS NULL AND settled_amount = 0 AND refunded_amount = 0) OR "
            "(status IN ('settled', 'refunded', 'partially_settled') AND processed_at IS NOT NULL "
            "AND settled_amount + refunded_amount = amount)",
            name="escrow_items_status",
        ),
        Index("escrow_items_user", "user_id", "status", "escrow_id"),
        Index("escrow_items_queue_item", "queue_item_id"),
    )
    escrow_id: str = column("escrow_id", text(UUID_LENGTH), key=True)
    user_id: str = column("user_id", text(MAX_ID_LENGTH), key=True)
    currency: str = column("currency", text(32))
    amount: int = points("amount")
    status: str = column("status", text(32))
    queue_item_id: str = column("queue_item_id", text(MAX_ID_LENGTH))
    feature_type: str = column("feature_type", text(32))
    reason: str = column("reason", text(64))
    metadata_json: str | None = Field(sa_column=Column("metadata", Text(), key="metadata_json"))
    model_id: str | None = column("model_id", text(MAX_ID_LENGTH), null=True)
    settled_amount: int = points("settled_amount")
    refunded_amount: int = points("refunded_amount")
    created_at: datetime = column("created_at", UtcDateTime())
    processed_at: datetime | None = column("processed_at", UtcDateTime(), null=True)


USER_WALLETS: Table = UserWalletRow.__table__  # type: ignore[attr-defined]
MODEL_WALLETS: Table = ModelWalletRow.__table__  # type: ignore[attr-defined]
ESCROW_ITEMS: Table = EscrowItemRow.__table__  # type: ignore[attr-defined]

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


@dataclass(frozen=True, kw_only=True)
class ModelBalance:
    """What a model has earned in one currency. Version 0: no wallet yet."""

    model_id: str
    currency: str
    earned: int
    version: int
    as_of: datetime
