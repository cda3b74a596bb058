"""Deposit: points that somebody has paid for, credited once for each reference of their source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.values import Identifier, Points
from ...events.models import UserEvent
from ...ledger.accounts import ISSUER, Movement, available
from ...ledger.models import LedgerTransaction
from ..entries import of_available
from ..models import DEPOSIT_CLAIMS
from ..needs import Room, Unclaimed
from ..operation import Decision, Occasion, Operation, Response, UserRequest
from ..rows import Begun


@dataclass(frozen=True, kw_only=True)
class DepositRequest(UserRequest):
    """Credit a user with what ``reference`` of ``source`` stands for: a payment of a provider's, for example."""

    amount: Points
    source: Identifier
    reference: Identifier


@dataclass(frozen=True, kw_only=True)
class DepositResponse(Response):
    """The user's available points before and after."""

    previous_balance: int
    new_available_balance: int


@dataclass(frozen=True, kw_only=True)
class WalletDeposited(UserEvent):
    """A user was credited with a deposit."""

    event_type: str = field(default="wallet.deposited", init=False)
    amount: int
    source: str
    reference: str
    previous_balance: int
    new_available_balance: int


def decide(request: DepositRequest, occasion: Occasion) -> Decision:
    """From the issuer to the user, where nobody has claimed the reference."""
    user, amount = available(request.user_id), request.amount
    claim = Begun(
        table=DEPOSIT_CLAIMS,
        key=(request.source, request.reference),
        values={"amount": amount},
        copies=("owner_id", "transaction_id", "currency"),
        at="created_at",
        claimed=True,
    )
    unclaimed = Unclaimed(request.source, request.reference, request.owner_id, amount, occasion.currency)
    return Decision(needs=(unclaimed, Room(user, amount)), moves=(Movement(ISSUER, user, amount),), rows=(claim,))


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """The amount and the user's balances."""
    return of_available(transaction)


DEPOSIT = Operation(
    name="deposit",
    request=DepositRequest,
    response=DepositResponse,
    event=WalletDeposited,
    decide=decide,
    told=told,
    details=("source", "reference"),
    claims=True,
)
