"""What an operation is: a value that names its request, its rule, its answer and its event, and nothing else knows it.

How to add one: docs/WALLET_ESCROW_ARCHITECTURE.md, "Adding an operation".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from ..core.values import Checked, Identifier, Metadata, OptionalCode, Reason
from ..events.models import WalletEvent
from ..ledger.accounts import Move, Name, user_owner
from ..ledger.models import LedgerTransaction
from .authorization import QueueAuthorization
from .models import EscrowStatus
from .needs import Need
from .rows import Begun, Changed


class TransactionReason(StrEnum):
    """The standard reason codes; a host may use others of the form ``^[a-z][a-z0-9_]{0,63}$``."""

    TOP_UP = "top_up"
    BONUS = "bonus"
    ADMIN_CREDIT = "admin_credit"
    PERFORMANCE_REQUEST = "performance_request"
    MENU_PURCHASE = "menu_purchase"
    AUCTION_BID = "auction_bid"
    PERFORMANCE_COMPLETED = "performance_completed"
    PARTIAL_PERFORMANCE = "partial_performance"
    PERFORMANCE_ABANDONED = "performance_abandoned"
    USER_DISCONNECTED = "user_disconnected"
    MODEL_INITIATED_REFUND = "model_initiated_refund"
    QUEUE_TIMEOUT = "queue_timeout"
    ADMIN_REFUND = "admin_refund"
    OUTBID = "outbid"
    PURCHASE = "purchase"
    GIFT = "gift"
    PAYMENT = "payment"
    SIGN_UP = "sign_up"


@dataclass(frozen=True, kw_only=True)
class Request(Checked, ABC):
    """What every request has: frozen, keyword-only, valid once constructed.

    Constructing one raises ``InvalidRequestError`` for the first field, in the order of declaration, that is not what
    it must be. Amounts are points in minor units, 1 to 2**53 - 1. The key belongs to one owner and one operation, and
    protects for ever. ``currency=None`` is the configured default, or a named hold's own.
    """

    idempotency_key: Identifier
    request_id: Identifier
    reason: Reason
    metadata: Metadata = None
    currency: OptionalCode = None

    @property
    @abstractmethod
    def owner_id(self) -> str:
        """Whose operation it is, as the ledger says it: ``user:ana``."""


@dataclass(frozen=True, kw_only=True)
class UserRequest(Request):
    """What every request of a user has."""

    user_id: Name

    @property
    def owner_id(self) -> str:
        """Whose operation it is, as the ledger says it."""
        return user_owner(self.user_id)


@dataclass(frozen=True, kw_only=True)
class Response:
    """What every response has: the transaction's id and its time, and the balances right after it, in minor units.

    ``replayed`` says that the operation had been carried out before under the same key. The answer is the one of then,
    so ``replayed`` takes no part in comparing two responses.
    """

    transaction_id: str
    timestamp: datetime
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
    """What an operation gets from outside, once for all its attempts.

    ``made_id`` is for a row that it may begin. ``currency`` is the request's or the configured default; ``""`` where a
    row that is there will tell it.
    """

    made_id: str
    currency: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """All that an operation comes to, made of the request alone.

    ``needs`` must be met for it, and refuse in their order; ``moves`` are what the wallets and the ledger see of it,
    ``rows`` what it begins or changes beside them, in the order in which they are locked.
    """

    needs: tuple[Need, ...]
    moves: tuple[Move, ...]
    rows: tuple[Begun | Changed, ...] = ()


Req = TypeVar("Req", bound=Request)
Resp = TypeVar("Resp", bound=Response)


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[Req, Resp]):
    """One operation. ``name`` is what the ledger records and its chart knows.

    ``decide`` is pure. ``told`` is what a transaction tells beyond its header: the fields of request, response and
    event that stand in its entries. ``details`` are the fields of the request that stand neither there nor in the
    header. ``authorization`` is what the queue must have signed, where the queue decides; ``currency_of_hold`` whether
    a request without a currency means that of the hold that it names. ``leaves`` is the status in which it leaves that
    hold, ``claims`` whether it claims the source's reference in its details: from both the rows can be computed again.
    """

    name: str
    request: type[Req]
    response: type[Resp]
    event: type[WalletEvent]
    decide: Callable[[Req, Occasion], Decision]
    told: Callable[[LedgerTransaction], Mapping[str, Any]]
    details: tuple[str, ...] = ()
    authorization: type[QueueAuthorization] | None = None
    currency_of_hold: bool = False
    leaves: EscrowStatus | None = None
    claims: bool = False
