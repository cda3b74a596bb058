"""Refund: all of a hold goes back to its user, as the queue has decided."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...core.values import Identifier, Points
from ...ledger.accounts import Movement, available, escrow
from ...ledger.models import LedgerTransaction
from .. import holds
from ..authorization import QueueAuthorization
from ..entries import of_refunded
from ..holds import EndingRequest, EscrowEvent
from ..models import EscrowStatus
from ..operation import Decision, Occasion, Operation, Response


@dataclass(frozen=True, kw_only=True)
class EscrowRefundRequest(EndingRequest):
    """Give all of a hold back to its user."""

    amount: Points
    queue_item_id: Identifier


@dataclass(frozen=True, kw_only=True, repr=False)
class QueueRefundAuthorization(QueueAuthorization):
    """Permits giving all of one hold back."""

    action: ClassVar[str] = "refund"
    amount: Points


@dataclass(frozen=True, kw_only=True)
class EscrowRefundResponse(Response):
    """What went back to the user, and what is available now."""

    refunded_amount: int
    user_available_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowRefunded(EscrowEvent):
    """A hold went back to the user."""

    event_type: str = field(default="wallet.escrow_refunded", init=False)
    authorization_id: str
    refunded_amount: int
    user_available_balance: int


def decide(request: EscrowRefundRequest, occasion: Occasion) -> Decision:
    """From escrow back to available: in the same wallet, so there is always room."""
    user = request.user_id
    return Decision(
        needs=(holds.held(request, request.amount, occasion),),
        moves=(Movement(escrow(user), available(user), request.amount),),
        rows=(holds.refunded(request, EscrowStatus.REFUNDED),),
    )


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """The amount and the user's balance."""
    facts = of_refunded(transaction)
    return {**facts, "amount": facts["refunded_amount"]}


REFUND = Operation(
    name="refund",
    request=EscrowRefundRequest,
    authorization=QueueRefundAuthorization,
    response=EscrowRefundResponse,
    event=EscrowRefunded,
    decide=decide,
    told=told,
    currency_of_hold=True,
    leaves=EscrowStatus.REFUNDED,
)
