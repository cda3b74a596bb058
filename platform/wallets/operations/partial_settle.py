"""Partial settle: a hold is split between the model and its user, as the queue has decided."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...core.values import Identifier, Points
from ...ledger.accounts import Movement, Name, available, earned, escrow
from ...ledger.models import LedgerTransaction
from .. import holds
from ..authorization import QueueAuthorization
from ..entries import of_earned, of_refunded
from ..holds import EndingRequest, EscrowEvent
from ..models import EscrowStatus
from ..needs import Room
from ..operation import Decision, Occasion, Operation, Response


@dataclass(frozen=True, kw_only=True)
class EscrowPartialSettleRequest(EndingRequest):
    """Split a hold between a model and its user; the two amounts add up to the hold."""

    model_id: Name
    refund_amount: Points
    settle_amount: Points
    queue_item_id: Identifier


@dataclass(frozen=True, kw_only=True, repr=False)
class QueuePartialSettlementAuthorization(QueueAuthorization):
    """Permits one split of one hold."""

    action: ClassVar[str] = "partial_settle"
    model_id: Name
    refund_amount: Points
    settle_amount: Points


@dataclass(frozen=True, kw_only=True)
class EscrowPartialSettleResponse(Response):
    """What went to either side, and the balances of both."""

    refunded_amount: int
    settled_amount: int
    user_available_balance: int
    model_earned_balance: int


@dataclass(frozen=True, kw_only=True)
class EscrowPartiallySettled(EscrowEvent):
    """A hold was split between the model and the user."""

    event_type: str = field(default="wallet.escrow_partially_settled", init=False)
    authorization_id: str
    model_id: str
    refunded_amount: int
    settled_amount: int
    user_available_balance: int
    model_earned_balance: int


def decide(request: EscrowPartialSettleRequest, occasion: Occasion) -> Decision:
    """From the user's escrow to both, of which the model's wallet must have room."""
    user, model = request.user_id, earned(request.model_id)
    refunded, settled = request.refund_amount, request.settle_amount
    return Decision(
        needs=(holds.held(request, refunded + settled, occasion), Room(model, settled)),
        moves=(Movement(escrow(user), available(user), refunded), Movement(escrow(user), model, settled)),
        rows=(holds.settled(request, EscrowStatus.PARTIALLY_SETTLED, amount=settled, refunded=refunded),),
    )


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """Both amounts and both balances."""
    return {**of_earned(transaction), **of_refunded(transaction)}


PARTIAL_SETTLE = Operation(
    name="partial_settle",
    request=EscrowPartialSettleRequest,
    authorization=QueuePartialSettlementAuthorization,
    response=EscrowPartialSettleResponse,
    event=EscrowPartiallySettled,
    decide=decide,
    told=told,
    currency_of_hold=True,
    leaves=EscrowStatus.PARTIALLY_SETTLED,
)
