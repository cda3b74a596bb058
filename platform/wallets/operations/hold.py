"""Hold: points of a user wait in escrow for something that will be performed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.values import Code, Identifier, Points
from ...ledger.accounts import Account, Bucket, Movement, available, escrow
from ...ledger.models import LedgerTransaction
from .. import holds
from ..entries import of_available
from ..holds import EscrowEvent
from ..models import EscrowStatus
from ..needs import Enough
from ..operation import Decision, Occasion, Operation, Response, UserRequest


@dataclass(frozen=True, kw_only=True)
class EscrowHoldRequest(UserRequest):
    """Move available points into escrow for a queue item."""

    amount: Points
    queue_item_id: Identifier
    feature_type: Code


@dataclass(frozen=True, kw_only=True)
class EscrowHoldResponse(Response):
    """``escrow_balance`` is the user's whole escrow in this currency."""

    escrow_id: str
    previous_balance: int
    new_available_balance: int
    escrow_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowHeld(EscrowEvent):
    """Points of a user wait in escrow; ``escrow_balance`` is the user's whole escrow."""

    event_type: str = field(default="wallet.escrow_held", init=False)
    amount: int
    previous_balance: int
    new_available_balance: int
    escrow_balance: int


def decide(request: EscrowHoldRequest, occasion: Occasion) -> Decision:
    """From available to escrow, with an item that says what for."""
    source = available(request.user_id)
    return Decision(
        needs=(Enough(source, request.amount),),
        moves=(Movement(source, escrow(request.user_id), request.amount),),
        rows=(holds.begun(request, occasion),),
    )


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """The amount and the user's balances."""
    held = transaction.entry(Account(transaction.owner_id, Bucket.ESCROW))
    return {**of_available(transaction), "amount": held.amount, "escrow_balance": held.balance_after}


HOLD = Operation(
    name="hold",
    request=EscrowHoldRequest,
    response=EscrowHoldResponse,
    event=EscrowHeld,
    decide=decide,
    told=told,
    leaves=EscrowStatus.HELD,
)
