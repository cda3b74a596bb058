"""Spend: a user pays the platform itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.values import OptionalIdentifier, Points
from ...events.models import UserEvent
from ...ledger.accounts import REVENUE, Movement, available
from ...ledger.models import LedgerTransaction
from ..entries import of_available
from ..needs import Enough
from ..operation import Decision, Occasion, Operation, Response, UserRequest


@dataclass(frozen=True, kw_only=True)
class SpendRequest(UserRequest):
    """Pay the platform with available points; ``order_id`` is what for, if the host has a name for it."""

    amount: Points
    order_id: OptionalIdentifier = None


@dataclass(frozen=True, kw_only=True)
class SpendResponse(Response):
    """The user's available points before and after."""

    previous_balance: int
    new_available_balance: int


@dataclass(frozen=True, kw_only=True)
class WalletSpent(UserEvent):
    """A user has paid the platform."""

    event_type: str = field(default="wallet.spent", init=False)
    amount: int
    order_id: str | None = None
    previous_balance: int
    new_available_balance: int


def decide(request: SpendRequest, occasion: Occasion) -> Decision:
    """From the user to the platform's revenue."""
    user = available(request.user_id)
    return Decision(needs=(Enough(user, request.amount),), moves=(Movement(user, REVENUE, request.amount),))


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """The amount and the user's balances."""
    return of_available(transaction)


SPEND = Operation(
    name="spend",
    request=SpendRequest,
    response=SpendResponse,
    event=WalletSpent,
    decide=decide,
    told=told,
    details=("order_id",),
)
