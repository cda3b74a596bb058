"""The events: what happened, as an immutable value. Amounts and balances are points in minor units."""

from dataclasses import dataclass, field
from datetime import datetime

from ..core.values import HasMetadata

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class WalletEvent(HasMetadata):
    """What every event has. ``event_id`` is the id of the transaction that it announces."""

    event_id: str
    event_type: str
    occurred_at: datetime
    transaction_id: str
    idempotency_key: str
    request_id: str
    user_id: str
    currency: str
    reason: str
    metadata_json: str | None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class WalletCredited(WalletEvent):
    """A user was given points."""

    event_type: str = field(default="wallet.credited", init=False)
    amount: int
    previous_balance: int
    new_available_balance: int


@dataclass(frozen=True, kw_only=True)
class _EscrowEvent(WalletEvent):
    escrow_id: str
    queue_item_id: str
    feature_type: str


@dataclass(frozen=True, kw_only=True)
class EscrowHeld(_EscrowEvent):
    """Points of a user wait in escrow; ``escrow_balance`` is the user's whole escrow."""

    event_type: str = field(default="wallet.escrow_held", init=False)
    amount: int
    previous_balance: int
    new_available_balance: int
    escrow_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowSettled(_EscrowEvent):
    """A hold went to the model."""

    event_type: str = field(default="wallet.escrow_settled", init=False)
    authorization_id: str
    model_id: str
    settled_amount: int
    model_earned_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowRefunded(_EscrowEvent):
    """A hold went back to the user."""

    event_type: str = field(default="wallet.escrow_refunded", init=False)
    authorization_id: str
    refunded_amount: int
    user_available_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowPartiallySettled(_EscrowEvent):
    """A hold was split between the model and the user."""

    event_type: str = field(default="wallet.escrow_partially_settled", init=False)
    authorization_id: str
    model_id: str
    refunded_amount: int
    settled_amount: int
    user_available_balance: int
    model_earned_balance: int


EVENT_TYPES = (
    "wallet.credited",
    "wallet.escrow_held",
    "wallet.escrow_settled",
    "wallet.escrow_refunded",
    "wallet.escrow_partially_settled",
)
