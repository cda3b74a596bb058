"""Settle: all of a hold goes to the model, as the queue has decided."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...core.values import Identifier, Points
from ...ledger.accounts import Movement, Name, earned, escrow
from ...ledger.models import LedgerTransaction
from .. import holds
from ..authorization import QueueAuthorization
from ..entries import of_earned
from ..holds import EndingRequest, EscrowEvent
from ..models import EscrowStatus
from ..needs import Room
from ..operation import Decision, Occasion, Operation, Response


@dataclass(frozen=True, kw_only=True)
class EscrowSettleRequest(EndingRequest):
    """Give all of a hold to a model."""

    model_id: Name
    amount: Points
    queue_item_id: Identifier


@dataclass(frozen=True, kw_only=True, repr=False)
class QueueSettlementAuthorization(QueueAuthorization):
    """Permits giving all of one hold to one model."""

    action: ClassVar[str] = "settle"
    model_id: Name
    amount: Points


@dataclass(frozen=True, kw_only=True)
class EscrowSettleResponse(Response):
    """What went to the model, and what it has earned in all."""

    settled_amount: int
    model_earned_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowSettled(EscrowEvent):
    """A hold went to the model."""

    event_type: str = field(default="wallet.escrow_settled", init=False)
    authorization_id: str
    model_id: str
    settled_amount: int
    model_earned_balance: int


def decide(request: EscrowSettleRequest, occasion: Occasion) -> Decision:
    """From the user's escrow to the model, whose wallet must have room."""
    model = earned(request.model_id)
    return Decision(
        needs=(holds.held(request, request.amount, occasion), Room(model, request.amount)),
        moves=(Movement(escrow(request.user_id), model, request.amount),),
        rows=(holds.settled(request, EscrowStatus.SETTLED, amount=request.amount),),
    )


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """The amount and the model's balance."""
    facts = of_earned(transaction)
    return {**facts, "amount": facts["settled_amount"]}


SETTLE = Operation(
    name="settle",
    request=EscrowSettleRequest,
    authorization=QueueSettlementAuthorization,
    response=EscrowSettleResponse,
    event=EscrowSettled,
    decide=decide,
    told=told,
    currency_of_hold=True,
    leaves=EscrowStatus.SETTLED,
)
