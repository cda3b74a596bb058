"""What callers ask for: frozen, keyword-only, valid once constructed.

Each raises ``InvalidRequestError`` for the first field, in the order of declaration, that is not what
it must be. Amounts are points in minor units, 1 to 2**53 - 1. ``currency=None`` means the configured
default for credits and holds, and the hold's own currency for everything after.
"""

from dataclasses import dataclass
from enum import StrEnum

from ..core.values import Checked, Code, Identifier, Metadata, OptionalCode, Points, Reason


class TransactionReason(StrEnum):
    """The standard reason codes; a host may use others of the form ``^[a-z][a-z0-9_]{0,63}$``."""

    TOP_UP = "top_up"
    BONUS = "bonus"
    ADMIN_CREDIT = "admin_credit"
    PERFORMANCE_REQUEST = "performance_request"
    MENU_PURCHASE = "menu_purchase"
    AUCTION_BID = "auction_bid"
    PERFORMANCE_COMPLETED = "performance_completed"
    PARTIAL_PERFORMANCE = "partial_performance"
    PERFORMANCE_ABANDONED = "performance_abandoned"
    USER_DISCONNECTED = "user_disconnected"
    MODEL_INITIATED_REFUND = "model_initiated_refund"
    QUEUE_TIMEOUT = "queue_timeout"
    ADMIN_REFUND = "admin_refund"
    OUTBID = "outbid"


@dataclass(frozen=True, kw_only=True)
class Request(Checked):
    """What every request has. The key belongs to one user and one operation, and protects for ever."""

    idempotency_key: Identifier
    request_id: Identifier
    user_id: Identifier
    reason: Reason
    metadata: Metadata = None
    currency: OptionalCode = None


@dataclass(frozen=True, kw_only=True)
class UserCreditRequest(Request):
    """Give a user points."""

    amount: Points


@dataclass(frozen=True, kw_only=True)
class EscrowHoldRequest(Request):
    """Move available points into escrow for a queue item."""

    amount: Points
    queue_item_id: Identifier
    feature_type: Code


@dataclass(frozen=True, kw_only=True)
class EscrowSettleRequest(Request):
    """Give all of a hold to a model."""

    escrow_id: Identifier
    model_id: Identifier
    amount: Points
    queue_item_id: Identifier


@dataclass(frozen=True, kw_only=True)
class EscrowRefundRequest(Request):
    """Give all of a hold back to its user."""

    escrow_id: Identifier
    amount: Points
    queue_item_id: Identifier


@dataclass(frozen=True, kw_only=True)
class EscrowPartialSettleRequest(Request):
    """Split a hold between a model and its user; the two amounts add up to the hold."""

    escrow_id: Identifier
    model_id: Identifier
    refund_amount: Points
    settle_amount: Points
    queue_item_id: Identifier
