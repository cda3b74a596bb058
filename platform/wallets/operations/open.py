"""Open: an owner has a wallet from now on, whatever is in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...events.models import WalletEvent
from ...ledger.accounts import WALLETS, Account, Owner, Touch, kind_of
from ...ledger.models import LedgerTransaction
from ..operation import Decision, Occasion, Operation, Request, Response


@dataclass(frozen=True, kw_only=True)
class OpenWalletRequest(Request):
    """Open the wallet of an ``owner``, ``user:ana`` or ``model:luna``, in a currency; one that is there is touched."""

    owner: Owner

    @property
    def owner_id(self) -> str:
        """Whose operation it is: the owner's."""
        return self.owner


@dataclass(frozen=True, kw_only=True)
class OpenWalletResponse(Response):
    """That the wallet is there."""


@dataclass(frozen=True, kw_only=True)
class WalletOpened(WalletEvent):
    """An owner has a wallet."""

    event_type: str = field(default="wallet.opened", init=False)
    owner: str


def decide(request: OpenWalletRequest, occasion: Occasion) -> Decision:
    """A touch: nothing moves, and the wallet has a version more."""
    first, *_ = WALLETS[kind_of(request.owner)]
    return Decision(needs=(), moves=(Touch(Account(request.owner, first)),))


def told(transaction: LedgerTransaction) -> Mapping[str, Any]:
    """Whose wallet it is."""
    return {"owner": transaction.owner_id}


OPEN = Operation(
    name="open",
    request=OpenWalletRequest,
    response=OpenWalletResponse,
    event=WalletOpened,
    decide=decide,
    told=told,
)
