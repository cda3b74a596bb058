"""The views of the one record: request, response, event and audit line are functions of a transaction.

Every view picks what it needs, by field name, from the facts that the transaction holds. A repeated
request is answered with the same functions, so its answer is equal by construction.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar, cast

from ..events.models import (
    EscrowHeld,
    EscrowPartiallySettled,
    EscrowRefunded,
    EscrowSettled,
    WalletCredited,
    WalletEvent,
)
from ..ledger.accounts import Bucket, Operation
from ..ledger.models import LedgerEntry, LedgerTransaction
from .requests import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    Request,
    UserCreditRequest,
)
from .responses import (
    EscrowHoldResponse,
    EscrowPartialSettleResponse,
    EscrowRefundResponse,
    EscrowSettleResponse,
    Response,
    UserCreditResponse,
)

T = TypeVar("T")
Facts = dict[str, Any]


def request_of(transaction: LedgerTransaction) -> Request:
    """The request that the transaction carried out, with its currency resolved."""
    return _pick(_OF[transaction.operation].request, facts_of(transaction))


def response_of(transaction: LedgerTransaction, *, replayed: bool = False) -> Response:
    """The answer to the request."""
    return _pick(_OF[transaction.operation].response, facts_of(transaction) | {"replayed": replayed})


def event_of(transaction: LedgerTransaction) -> WalletEvent:
    """The event that announces the transaction."""
    return _pick(_OF[transaction.operation].event, facts_of(transaction))


def audit_fields_of(transaction: LedgerTransaction) -> Facts:
    """What the audit line says, as structured fields; no metadata, which may be personal."""
    facts = facts_of(transaction)
    return {name: value for name, value in facts.items() if name not in {"metadata", "metadata_json", "timestamp"}}


def facts_of(transaction: LedgerTransaction) -> Facts:
    """Everything that the views may ask for, by name. A balance that was not touched is not there."""
    header = vars(transaction).copy()
    del header["entries"]
    common = {
        "user_id": transaction.owner_id.removeprefix("user:"),
        "metadata": transaction.metadata,
        "event_id": transaction.transaction_id,
        "timestamp": transaction.occurred_at,
    }
    entries = {Bucket(entry.bucket): entry for entry in transaction.entries}
    return header | common | _OF[transaction.operation].amounts(entries)


Entries = dict[Bucket, LedgerEntry]


def _credited(entries: Entries) -> Facts:
    available = entries[Bucket.AVAILABLE]
    return {
        "amount": available.amount,
        "previous_balance": available.balance_before,
        "new_available_balance": available.balance_after,
    }


def _held(entries: Entries) -> Facts:
    escrow = entries[Bucket.ESCROW]
    return _credited(entries) | {"amount": escrow.amount, "escrow_balance": escrow.balance_after}


def _settled(entries: Entries) -> Facts:
    earned = entries[Bucket.EARNED]
    amounts = dict.fromkeys(("amount", "settle_amount", "settled_amount"), earned.amount)
    return amounts | {"model_earned_balance": earned.balance_after}


def _refunded(entries: Entries) -> Facts:
    available = entries[Bucket.AVAILABLE]
    amounts = dict.fromkeys(("amount", "refund_amount", "refunded_amount"), available.amount)
    return amounts | {"user_available_balance": available.balance_after}


def _partially_settled(entries: Entries) -> Facts:
    facts = _settled(entries) | _refunded(entries)
    del facts["amount"]  # there are two
    return facts


@dataclass(frozen=True)
class _Views:
    request: type[Request]
    response: type[Response]
    event: type[WalletEvent]
    amounts: Callable[[Entries], Facts]


_OF: dict[str, _Views] = {
    Operation.CREDIT: _Views(UserCreditRequest, UserCreditResponse, WalletCredited, _credited),
    Operation.HOLD: _Views(EscrowHoldRequest, EscrowHoldResponse, EscrowHeld, _held),
    Operation.SETTLE: _Views(EscrowSettleRequest, EscrowSettleResponse, EscrowSettled, _settled),
    Operation.REFUND: _Views(EscrowRefundRequest, EscrowRefundResponse, EscrowRefunded, _refunded),
    Operation.PARTIAL_SETTLE: _Views(
        EscrowPartialSettleRequest, EscrowPartialSettleResponse, EscrowPartiallySettled, _partially_settled
    ),
}


def _pick(cls: type[T], facts: Facts) -> T:
    return cls(**{name: facts[name] for name in _names(cast(Hashable, cls)) if name in facts})


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.init)
