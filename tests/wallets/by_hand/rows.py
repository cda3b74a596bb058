"""What the rows written by hand are made of: columns with their usual values, and placeholders for ids.

Nothing of the package is imported here nor in the tables beside it: they say what is right, and must not agree with a
declaration because they were read from it. ``T1`` is the id of the transaction of the first request that was sent,
``E1`` the id of the hold that it made, ``A1`` the id of the token that permitted it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Row = dict[str, Any]
Rows = Mapping[str, Sequence[Row]]

# What is there was made and changed then; what is sent is sent now; a clock that goes ahead has been at a later time.
MADE = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
CHANGED = datetime(2026, 3, 1, 12, 1, 0, 5, tzinfo=UTC)
NOW = datetime(2026, 3, 1, 12, 2, 0, 654321, tzinfo=UTC)
LATER = datetime(2026, 3, 1, 12, 3, tzinfo=UTC)
HOLD = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER_HOLD = "01890a5d-ac96-774b-bcce-b302099a8058"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request, what it is answered, and what is announced; nothing is where it was answered before."""

    request: Row
    answer: Row
    event: Row | None
    replayed: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """The rows that are there, what is sent, and all rows of all tables after it."""

    name: str
    sent: Sequence[Sent]
    rows: Rows
    state: Rows = field(default_factory=dict)


def user(name: str, available: int, escrow: int, version: int, **other: Any) -> Row:
    usual = {"currency": "points", "paying": 0, "state": "active", "created_at": MADE, "updated_at": NOW}
    return usual | {"owner_id": f"user:{name}", "available": available, "escrow": escrow, "version": version} | other


def model(name: str, earned: int, version: int, **other: Any) -> Row:
    usual = {"currency": "points", "paying": 0, "state": "active", "created_at": MADE, "updated_at": NOW}
    return usual | {"owner_id": f"model:{name}", "earned": earned, "version": version} | other


def item(escrow_id: str, amount: int, **other: Any) -> Row:
    """A hold of ana's that was made for queue-1, and is held."""
    return {
        "escrow_id": escrow_id,
        "owner_id": "user:ana",
        "currency": "points",
        "amount": amount,
        "status": "held",
        "queue_item_id": "queue-1",
        "feature_type": "song",
        "reason": "performance_request",
        "metadata": None,
        "model_id": None,
        "settled_amount": 0,
        "refunded_amount": 0,
        "created_at": CHANGED,
        "processed_at": None,
        "expires_at": None,
    } | other


def claim(source: str, reference: str, transaction_id: str, amount: int, **other: Any) -> Row:
    usual = {"owner_id": "user:ana", "currency": "points", "created_at": NOW}
    told = {"source": source, "reference": reference, "transaction_id": transaction_id, "amount": amount}
    return usual | told | other


def transaction(transaction_id: str, operation: str, reason: str, **other: Any) -> Row:
    """Of ana's, under the first key."""
    return {
        "transaction_id": transaction_id,
        "owner_id": "user:ana",
        "operation": operation,
        "idempotency_key": "key-1",
        "request_id": "request-1",
        "reason": reason,
        "currency": "points",
        "escrow_id": None,
        "queue_item_id": None,
        "feature_type": None,
        "model_id": None,
        "authorization_id": None,
        "metadata": None,
        "details": None,
        "occurred_at": NOW,
    } | other


def entry(account_id: str, bucket: str, amount: int, before: int, after: int, version: int, **other: Any) -> Row:
    """On a wallet; of a transaction of ana's."""
    return {
        "transaction_id": "T1",
        "account_id": account_id,
        "bucket": bucket,
        "owner_id": "user:ana",
        "currency": "points",
        "amount": amount,
        "balance_before": before,
        "balance_after": after,
        "wallet_version": version,
        "posted_at": NOW,
    } | other


def platform_entry(account_id: str, bucket: str, amount: int, **other: Any) -> Row:
    """On an account of the platform, which has no balance and no version."""
    nothing = {"balance_before": None, "balance_after": None, "wallet_version": None}
    return entry(account_id, bucket, amount, 0, 0, 0) | nothing | other


def asked(reason: str, **fields: Any) -> Row:
    """A request of ana's under the first key."""
    return {"idempotency_key": "key-1", "request_id": "request-1", "user_id": "ana", "reason": reason} | fields


def answered(**fields: Any) -> Row:
    return {"transaction_id": "T1", "timestamp": NOW} | fields


def announced(event_type: str, reason: str, **fields: Any) -> Row:
    """The event of a transaction of ana's."""
    return {
        "event_id": "T1",
        "event_type": event_type,
        "occurred_at": NOW,
        "transaction_id": "T1",
        "idempotency_key": "key-1",
        "request_id": "request-1",
        "currency": "points",
        "reason": reason,
        "metadata_json": None,
        "schema_version": 1,
        "user_id": "ana",
    } | fields
