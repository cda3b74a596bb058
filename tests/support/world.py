"""A small platform for tests: the services on one database, requests with sensible defaults, the events seen."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from points_platform.core import Base, Database
from points_platform.events import EVENT_TYPES, EventBus, WalletEvent
from points_platform.ledger import LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import (
    DepositRequest,
    DepositResponse,
    EscrowHoldRequest,
    EscrowHoldResponse,
    EscrowPartialSettleRequest,
    EscrowPartialSettleResponse,
    EscrowRefundRequest,
    EscrowRefundResponse,
    EscrowSettleRequest,
    EscrowSettleResponse,
    OpenWalletRequest,
    OpenWalletResponse,
    SpendRequest,
    SpendResponse,
    TransferRequest,
    TransferResponse,
    UserCreditRequest,
    UserCreditResponse,
    WalletConfig,
    WalletService,
)

from .by_operation import ByOperation
from .raw import raw_rows

# The method that sends each request, and whether the queue has to permit it.
METHODS: dict[type, tuple[str, bool]] = ByOperation(
    "METHODS in tests/support/world.py",
    {
        UserCreditRequest: ("credit_user", False),
        EscrowHoldRequest: ("hold_in_escrow", False),
        EscrowSettleRequest: ("settle_escrow", True),
        EscrowRefundRequest: ("refund_escrow", True),
        EscrowPartialSettleRequest: ("partial_settle_escrow", True),
        SpendRequest: ("spend_points", False),
        TransferRequest: ("transfer_points", False),
        OpenWalletRequest: ("open_wallet", False),
        DepositRequest: ("deposit_points", False),
    },
)

T = TypeVar("T")
SECRET = "a secret of at least 32 bytes, for tests"
Snapshot = dict[str, list[tuple[Any, ...]]]


@dataclass
class World:
    """The services, and shorthands for requests whose other fields do not matter.

    Request shorthands end in ``_request``; those that also send it carry the operation's name. Every
    request gets a key of its own unless one is given.
    """

    database: Database
    config: WalletConfig = field(default_factory=partial(WalletConfig, retry_backoff_ms=5))
    authorizer: QueueAuthorizer = field(default_factory=partial(QueueAuthorizer, SECRET))
    events: list[WalletEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self.bus = EventBus()
        for event_type in EVENT_TYPES:
            self.bus.subscribe(event_type, self.events.append)
        self.ledger = LedgerService(self.database)
        self.wallets = self.service()

    def service(self, **changes: Any) -> WalletService:
        """Another service on the same database, with an empty cache; by default like the first one."""
        options: dict[str, Any] = {"authorizer": self.authorizer, "events": self.bus, "config": self.config}
        ledger = changes.pop("ledger", self.ledger)
        return WalletService(ledger, **options | changes)

    def key(self) -> str:
        return f"key-{next(self._numbers)}"

    def credit_request(self, user_id: str = "ana", amount: int = 100, **changes: Any) -> UserCreditRequest:
        return self._make(UserCreditRequest, {"reason": "top_up"}, changes, user_id=user_id, amount=amount)

    def hold_request(self, user_id: str = "ana", amount: int = 30, **changes: Any) -> EscrowHoldRequest:
        defaults = {"reason": "performance_request", "queue_item_id": "queue-1", "feature_type": "song"}
        return self._make(EscrowHoldRequest, defaults, changes, user_id=user_id, amount=amount)

    def settle_request(self, escrow_id: str, amount: int = 30, **changes: Any) -> EscrowSettleRequest:
        defaults = {**PERFORMED, "reason": "performance_completed", "model_id": "luna"}
        return self._make(EscrowSettleRequest, defaults, changes, escrow_id=escrow_id, amount=amount)

    def refund_request(self, escrow_id: str, amount: int = 30, **changes: Any) -> EscrowRefundRequest:
        defaults = {**PERFORMED, "reason": "queue_timeout"}
        return self._make(EscrowRefundRequest, defaults, changes, escrow_id=escrow_id, amount=amount)

    def partial_settle_request(
        self, escrow_id: str, refund_amount: int = 10, settle_amount: int = 20, **changes: Any
    ) -> EscrowPartialSettleRequest:
        defaults = {**PERFORMED, "reason": "partial_performance", "model_id": "luna"}
        amounts = {"refund_amount": refund_amount, "settle_amount": settle_amount}
        return self._make(EscrowPartialSettleRequest, defaults | amounts, changes, escrow_id=escrow_id)

    def spend_request(self, user_id: str = "ana", amount: int = 30, **changes: Any) -> SpendRequest:
        return self._make(SpendRequest, {"reason": "purchase"}, changes, user_id=user_id, amount=amount)

    def transfer_request(self, user_id: str = "ana", amount: int = 30, **changes: Any) -> TransferRequest:
        defaults = {"reason": "gift", "recipient_id": "ben"}
        return self._make(TransferRequest, defaults, changes, user_id=user_id, amount=amount)

    def open_request(self, owner: str = "user:ana", **changes: Any) -> OpenWalletRequest:
        return self._make(OpenWalletRequest, {"reason": "sign_up"}, changes, owner=owner)

    def deposit_request(self, user_id: str = "ana", amount: int = 100, **changes: Any) -> DepositRequest:
        """Of a reference of its own unless one is given."""
        reference = changes.pop("reference", None) or f"payment-{next(self._numbers)}"
        defaults = {"reason": "payment", "source": "bank"}
        return self._make(DepositRequest, defaults, changes, user_id=user_id, amount=amount, reference=reference)

    def _make(self, kind: type[T], defaults: dict[str, Any], changes: dict[str, Any], **given: Any) -> T:
        keys = {"idempotency_key": changes.pop("idempotency_key", None) or self.key(), "request_id": "request-1"}
        return kind(**{**keys, **defaults, **given, **changes})

    def authorize(self, request: Any, **changes: Any) -> Any:
        """The queue's authorization for exactly this request; changes go into what is signed."""
        names = (
            "queue_item_id",
            "escrow_id",
            "user_id",
            "model_id",
            "amount",
            "refund_amount",
            "settle_amount",
            "reason",
        )
        action = {name: getattr(request, name) for name in names if hasattr(request, name)} | changes
        signs: dict[type, Any] = {
            EscrowSettleRequest: self.authorizer.authorize_settlement,
            EscrowRefundRequest: self.authorizer.authorize_refund,
            EscrowPartialSettleRequest: self.authorizer.authorize_partial_settlement,
        }
        return signs[type(request)](**action)

    def send(self, request: Any, wallets: WalletService | None = None, **options: Any) -> Any:
        """Send any request; settlements and refunds with a fresh authorization unless one is given."""
        method, needs_authorization = METHODS[type(request)]
        given: tuple[Any, ...] = (request,)
        if needs_authorization:
            given += (options.pop("authorization") if "authorization" in options else self.authorize(request),)
        return getattr(wallets or self.wallets, method)(*given, **options)

    def credit(self, user_id: str = "ana", amount: int = 100, **changes: Any) -> UserCreditResponse:
        return self.wallets.credit_user(self.credit_request(user_id, amount, **changes))

    def hold(self, user_id: str = "ana", amount: int = 30, **changes: Any) -> EscrowHoldResponse:
        return self.wallets.hold_in_escrow(self.hold_request(user_id, amount, **changes))

    def settle(self, escrow_id: str, amount: int = 30, **changes: Any) -> EscrowSettleResponse:
        response: EscrowSettleResponse = self.send(self.settle_request(escrow_id, amount, **changes))
        return response

    def refund(self, escrow_id: str, amount: int = 30, **changes: Any) -> EscrowRefundResponse:
        response: EscrowRefundResponse = self.send(self.refund_request(escrow_id, amount, **changes))
        return response

    def partial_settle(self, escrow_id: str, *amounts: int, **changes: Any) -> EscrowPartialSettleResponse:
        response: EscrowPartialSettleResponse = self.send(self.partial_settle_request(escrow_id, *amounts, **changes))
        return response

    def spend(self, user_id: str = "ana", amount: int = 30, **changes: Any) -> SpendResponse:
        return self.wallets.spend_points(self.spend_request(user_id, amount, **changes))

    def transfer(self, user_id: str = "ana", amount: int = 30, **changes: Any) -> TransferResponse:
        return self.wallets.transfer_points(self.transfer_request(user_id, amount, **changes))

    def open(self, owner: str = "user:ana", **changes: Any) -> OpenWalletResponse:
        return self.wallets.open_wallet(self.open_request(owner, **changes))

    def deposit(self, user_id: str = "ana", amount: int = 100, **changes: Any) -> DepositResponse:
        return self.wallets.deposit_points(self.deposit_request(user_id, amount, **changes))

    def snapshot(self) -> Snapshot:
        """Every row of every table."""
        with self.database.engine.connect() as connection:
            return {
                table.name: sorted(raw_rows(connection, table.name)[1], key=repr)
                for table in Base.metadata.sorted_tables
            }


PERFORMED = {"user_id": "ana", "queue_item_id": "queue-1"}


@contextmanager
def elsewhere(world: World, config: WalletConfig | None = None) -> Iterator[tuple[WalletService, Session]]:
    """Another process's service on the same database, with an open session; nothing is shared but the rows."""
    with Database(world.database.engine.url) as database, Session(database.engine) as session:
        yield World(database, config=config or world.config).wallets, session


def at_once(*calls: Callable[[], T]) -> list[T | Exception]:
    """Make the calls in as many threads, all starting at the same moment; exceptions are results."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], T]) -> T | Exception:
        barrier.wait(timeout=60)
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(start, calls))
