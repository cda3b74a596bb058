"""Transfer: a user gives points to another one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import InvalidRequestError
from ...core.values import Points
from ...events.models import UserEvent
from ...ledger.accounts import Movement, Name, available, name_of
from ...ledger.models import LedgerTransaction
from ..entries import of_available
from ..needs import Enough, Room
from ..operation import Decision, Occasion, Operation, Response, UserRequest


@dataclass(frozen=True, kw_only=True)
class TransferRequest(UserRequest):
    """Give available points to another user, whose wallet is made if there is none."""

    recipient_id: Name
    amount: Points

    def __post_init__(self) -> None:
        """Refuses a transfer to oneself, which would be an entry in and one out on the same account."""
        super().__post_init__()
        if self.recipient_id == self.user_id:
            raise InvalidRequestError(field="recipient_id", value=self.recipient_id, expected="another user's id")


@dataclass(frozen=True, kw_only=True)
class TransferResponse(Response):
    """The giver's available points before and after; of the taker's balance nothing is said."""

    previous_balance: int
    new_available_balance: int


@dataclass(frozen=True, kw_only=True)
class WalletTransferred(UserEvent):
    """A user has given points to another one; the balances are the giver's."""

    event_type: str = field(default="wallet.transferred", init=False)
    recipient_id: str
    amount: int
    previous_balance: int
    new_available_balance: int


def decide(request: TransferRequest, occasion: Occasion) -> Decision:
    """From one user to the other, whose balance is not the giver's to know."""
    giver, taker = available(request.user_id), available(request.recipient_id)
    return Decision(
        needs=(Enough(giver, request.amount), Room(taker, request.amount, private=True)),
        moves=(Movement(giver, taker, request.amount),),
    )


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """The amount, the giver's balances, and who was given it."""
    [taken] = [entry for entry in transaction.entries if entry.account_id != transaction.owner_id]
    return {**of_available(transaction), "recipient_id": name_of(taken.account_id)}


TRANSFER = Operation(
    name="transfer",
    request=TransferRequest,
    response=TransferResponse,
    event=WalletTransferred,
    decide=decide,
    told=told,
)
