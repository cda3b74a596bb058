"""Credit: the platform gives a user points that it issues."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.values import Points
from ...events.models import UserEvent
from ...ledger.accounts import ISSUER, Movement, available
from ...ledger.models import LedgerTransaction
from ..entries import of_available
from ..needs import Room
from ..operation import Decision, Occasion, Operation, Response, UserRequest


@dataclass(frozen=True, kw_only=True)
class UserCreditRequest(UserRequest):
    """Give a user points."""

    amount: Points


@dataclass(frozen=True, kw_only=True)
class UserCreditResponse(Response):
    """The user's available points before and after."""

    previous_balance: int
    new_available_balance: int


@dataclass(frozen=True, kw_only=True)
class WalletCredited(UserEvent):
    """A user was given points."""

    event_type: str = field(default="wallet.credited", init=False)
    amount: int
    previous_balance: int
    new_available_balance: int


def decide(request: UserCreditRequest, occasion: Occasion) -> Decision:
    """From the issuer to the user, whose wallet must have room."""
    user = available(request.user_id)
    return Decision(needs=(Room(user, request.amount),), moves=(Movement(ISSUER, user, request.amount),))


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """The amount and the user's balances."""
    return of_available(transaction)


CREDIT = Operation(
    name="credit",
    request=UserCreditRequest,
    response=UserCreditResponse,
    event=WalletCredited,
    decide=decide,
    told=told,
)
