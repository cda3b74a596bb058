"""The wallets: hold, settle, refund, partial settle and credit, each one way through.

verify → read → decide → write → commit → publish → respond. ``_perform`` is that way; what differs
between the operations is the rule that decides.
"""

import logging
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar, cast

from cachetools import TTLCache
from sqlalchemy import Connection

from ..core.database import HostSession, Retry, after_commit
from ..core.errors import EscrowNotFoundError, InvalidRequestError, WalletError
from ..core.values import (
    Page,
    check_code,
    check_identifier,
    check_limit,
    check_time,
    decode_cursor,
    encode_cursor,
    new_id,
    now,
)
from ..events.service import EventBus
from ..ledger.accounts import Operation, user_owner
from ..ledger.models import LedgerTransaction
from ..ledger.service import LedgerService
from . import rules, store
from .authorization import (
    Authorizer,
    QueueAuthorization,
    QueuePartialSettlementAuthorization,
    QueueRefundAuthorization,
    QueueSettlementAuthorization,
    action_fields,
)
from .models import MODEL_WALLETS, USER_WALLETS, EscrowItem, EscrowStatus, ModelBalance, UserBalance
from .requests import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    Request,
    UserCreditRequest,
)
from .responses import (
    EscrowHoldResponse,
    EscrowPartialSettleResponse,
    EscrowRefundResponse,
    EscrowSettleResponse,
    Response,
    UserCreditResponse,
)
from .views import audit_fields_of, event_of, request_of, response_of

log = logging.getLogger(__name__)
audit = logging.getLogger("points_platform.audit")

R = TypeVar("R", bound=Request)
CONFIG_LIMITS = {
    "max_retry_attempts": 10_000,
    "retry_backoff_ms": 60_000,
    "idempotency_cache_size": 10_000_000,
    "idempotency_cache_ttl_s": 86_400,
}


@dataclass(frozen=True, kw_only=True)
class WalletConfig:
    """How a ``WalletService`` works.

    ``max_retry_attempts`` counts retries after the first attempt, ``retry_backoff_ms`` is the longest
    wait before the second of them and doubles from there. The cache answers repeated requests
    without a read: at most ``idempotency_cache_size`` of them, each for ``idempotency_cache_ttl_s``
    seconds; without it, or after it, the ledger answers. Raises ``InvalidRequestError``.
    """

    max_retry_attempts: int = 3
    retry_backoff_ms: int = 100
    default_currency: str = "points"
    idempotency_cache_size: int = 10_000
    idempotency_cache_ttl_s: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "default_currency", check_code("default_currency", self.default_currency))
        for name, limit in CONFIG_LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= limit:
                raise InvalidRequestError(field=name, value=value, expected=f"a whole number from 0 to {limit}")

    @property
    def retry(self) -> Retry:
        """The same as the database layer takes it."""
        return Retry(attempts=self.max_retry_attempts, backoff=self.retry_backoff_ms / 1000)


class WalletService:
    """Users' and models' wallets over a ledger.

    ``authorizer`` judges the queue's authorizations: a ``QueueAuthorizer``, or an
    ``AuthorizationVerifier`` where this side holds only public keys. Threads share one service.

    Every method that changes something takes the caller's SQLAlchemy ``session``: it then joins that
    transaction, commits nothing and retries nothing; the event goes out after the caller's commit.
    """

    def __init__(
        self,
        ledger: LedgerService,
        *,
        authorizer: Authorizer,
        events: EventBus | None = None,
        config: WalletConfig | None = None,
    ) -> None:
        self._ledger = ledger
        self._database = ledger.database
        self._authorizer = authorizer
        self._events = events
        self._config = config or WalletConfig()
        self._cache: TTLCache[tuple[str, str, str], LedgerTransaction] = TTLCache(
            maxsize=self._config.idempotency_cache_size,
            ttl=self._config.idempotency_cache_ttl_s,
            timer=lambda: time.monotonic(),  # looked up at each call, so that frozen time freezes it too
        )
        self._cache_lock = threading.Lock()

    def credit_user(self, request: UserCreditRequest, *, session: HostSession = None) -> UserCreditResponse:
        """Give a user points, from the platform's issue; the first credit creates the wallet.

        Raises ``InvalidRequestError``, ``IdempotencyConflictError``, ``BalanceLimitError``,
        ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        _check_type(request, UserCreditRequest)
        return cast(UserCreditResponse, self._perform(Operation.CREDIT, rules.credit, request, session))

    def hold_in_escrow(self, request: EscrowHoldRequest, *, session: HostSession = None) -> EscrowHoldResponse:
        """Move available points of a user into escrow, for a queue item.

        Raises ``InvalidRequestError``, ``IdempotencyConflictError``, ``InsufficientBalanceError``,
        ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        _check_type(request, EscrowHoldRequest)
        return cast(EscrowHoldResponse, self._perform(Operation.HOLD, rules.hold, request, session))

    def settle_escrow(
        self, request: EscrowSettleRequest, authorization: QueueSettlementAuthorization, *, session: HostSession = None
    ) -> EscrowSettleResponse:
        """Give all of a hold to the model, as the queue has authorized.

        Raises ``InvalidRequestError``, ``InvalidAuthorizationError``, ``IdempotencyConflictError``,
        ``EscrowNotFoundError``, ``EscrowAlreadyProcessedError``, ``EscrowMismatchError``,
        ``BalanceLimitError``, ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        _check_type(request, EscrowSettleRequest)
        permission = self._verify(authorization, QueueSettlementAuthorization, request)
        response = self._perform(Operation.SETTLE, rules.settle, request, session, permission)
        return cast(EscrowSettleResponse, response)

    def refund_escrow(
        self, request: EscrowRefundRequest, authorization: QueueRefundAuthorization, *, session: HostSession = None
    ) -> EscrowRefundResponse:
        """Give all of a hold back to its user, as the queue has authorized.

        Raises what ``settle_escrow`` raises, but for ``BalanceLimitError``: a refund always fits.
        """
        _check_type(request, EscrowRefundRequest)
        permission = self._verify(authorization, QueueRefundAuthorization, request)
        response = self._perform(Operation.REFUND, rules.refund, request, session, permission)
        return cast(EscrowRefundResponse, response)

    def partial_settle_escrow(
        self,
        request: EscrowPartialSettleRequest,
        authorization: QueuePartialSettlementAuthorization,
        *,
        session: HostSession = None,
    ) -> EscrowPartialSettleResponse:
        """Split a hold between the model and its user, as the queue has authorized.

        Raises what ``settle_escrow`` raises.
        """
        _check_type(request, EscrowPartialSettleRequest)
        permission = self._verify(authorization, QueuePartialSettlementAuthorization, request)
        response = self._perform(Operation.PARTIAL_SETTLE, rules.partial_settle, request, session, permission)
        return cast(EscrowPartialSettleResponse, response)

    def get_user_balance(self, user_id: str, currency: str | None = None) -> UserBalance:
        """A user's balance, zero for an unknown user. Raises ``InvalidRequestError``, ``StorageUnavailableError``."""
        key = {"user_id": check_identifier("user_id", user_id), "currency": self._currency(currency)}
        with self._database.read() as connection:
            row = store.wallet(connection, USER_WALLETS, **key)
        available, escrow, version = (row.available, row.escrow, row.version) if row else (0, 0, 0)
        return UserBalance(
            **key, available=available, escrow=escrow, total=available + escrow, version=version, as_of=now()
        )

    def get_model_balance(self, model_id: str, currency: str | None = None) -> ModelBalance:
        """A model's earnings, zero for an unknown one. Raises ``InvalidRequestError``, ``StorageUnavailableError``."""
        key = {"model_id": check_identifier("model_id", model_id), "currency": self._currency(currency)}
        with self._database.read() as connection:
            row = store.wallet(connection, MODEL_WALLETS, **key)
        earned, version = (row.earned, row.version) if row else (0, 0)
        return ModelBalance(**key, earned=earned, version=version, as_of=now())

    def get_escrow(self, escrow_id: str, user_id: str | None = None) -> EscrowItem:
        """One escrow item; with ``user_id``, only if it is that user's.

        Raises ``InvalidRequestError``, ``EscrowNotFoundError``, ``StorageUnavailableError``.
        """
        equal = {"escrow_id": check_identifier("escrow_id", escrow_id)}
        if user_id is not None:
            equal["user_id"] = check_identifier("user_id", user_id)
        with self._database.read() as connection:
            found = store.items(connection, equal, limit=1)
        if not found:
            raise EscrowNotFoundError(escrow_id=escrow_id)
        return found[0]

    def list_escrows(
        self,
        *,
        user_id: str | None = None,
        queue_item_id: str | None = None,
        status: EscrowStatus | str | None = None,
        held_before: datetime | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[EscrowItem]:
        """A page of escrow items, oldest first; at least one filter is needed, all given ones hold.

        ``held_before`` finds stuck holds: items that were made before that time and are held still.
        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        filters = {"user_id": user_id, "queue_item_id": queue_item_id}
        equal = {name: check_identifier(name, value) for name, value in filters.items() if value is not None}
        if held_before is not None:
            held_before = check_time("held_before", held_before)
            status = EscrowStatus.HELD if status is None else status
        if status is not None:
            equal["status"] = _check_status(status, only_held=held_before is not None)
        if not equal:
            raise InvalidRequestError(
                field="user_id", value=None, expected="given, or queue_item_id, status or held_before"
            )
        check_limit("limit", limit)
        edge = "" if after is None else decode_cursor("after", after, str)[0]
        with self._database.read() as connection:
            found = store.items(connection, equal, held_before=held_before, after=edge, limit=limit + 1)
        items = tuple(found[:limit])
        return Page(items=items, next=encode_cursor(items[-1].escrow_id) if len(found) > limit else None)

    def _currency(self, currency: str | None) -> str:
        return self._config.default_currency if currency is None else check_code("currency", currency)

    def _verify(self, authorization: object, kind: type[QueueAuthorization], request: Request) -> str:
        action = {name: getattr(request, name) for name in action_fields(kind)}
        return self._authorizer.verify(authorization, kind, action)

    def _perform(
        self,
        operation: Operation,
        rule: rules.Rule[R],
        request: R,
        session: HostSession,
        authorization_id: str | None = None,
    ) -> Response:
        """The one way through, from a request that may be carried out to the response."""
        if request.currency is None and operation in (Operation.CREDIT, Operation.HOLD):
            request = replace(request, currency=self._config.default_currency)
        transaction = self._cached(operation, request)
        replayed = transaction is not None
        if transaction is None:
            occasion = rules.Occasion(
                transaction_id=new_id(), escrow_id=new_id(), at=now(), authorization_id=authorization_id
            )
            attempt = partial(self._attempt, operation, rule, request, occasion)
            transaction = self._database.run(attempt, retry=self._config.retry, session=session)
            # By id, so that an answer lost at the commit and found by the retry is still the first one.
            replayed = transaction.transaction_id != occasion.transaction_id
            if session is None:
                self._committed(transaction, announce=not replayed)
            elif not replayed:
                after_commit(session, self, transaction.transaction_id, self._joined_committed)
        if replayed:
            rules.check_same_request(request, request_of(transaction))
        return response_of(transaction, replayed=replayed)

    def _attempt(
        self,
        operation: Operation,
        rule: rules.Rule[R],
        request: R,
        occasion: rules.Occasion,
        connection: Connection,
        locked: bool,
    ) -> LedgerTransaction:
        """Read, decide, write, in one transaction; or find what the key has already done."""
        keys = store.Keys(
            user_id=request.user_id,
            currency=request.currency,
            escrow_id=getattr(request, "escrow_id", None),
            model_id=getattr(request, "model_id", None),
        )
        if locked:
            # The read is a statement of its own, after the wait: a locking read that waited sees the new
            # row beside an old snapshot of everything else.
            store.lock(connection, keys)
        state = store.read(connection, operation, request.idempotency_key, keys)
        if state.recorded is not None:
            return state.recorded
        decision = rule(request, state, occasion)
        # ── after this line the operation succeeds, or is tried again whole ──
        wallets = store.write(connection, decision)
        return self._ledger.record(connection, decision.transaction, wallets)

    def _cached(self, operation: Operation, request: Request) -> LedgerTransaction | None:
        with self._cache_lock:
            return self._cache.get((user_owner(request.user_id), operation, request.idempotency_key))

    def _committed(self, transaction: LedgerTransaction, *, announce: bool) -> None:
        """What follows a commit: nothing here can change the operation's outcome any more."""
        if self._cache.maxsize:
            with self._cache_lock:
                self._cache[transaction.owner_id, transaction.operation, transaction.idempotency_key] = transaction
        if announce:
            audit.info("%s %s", transaction.operation, transaction.transaction_id, extra=audit_fields_of(transaction))
            self._publish(transaction)

    def _publish(self, transaction: LedgerTransaction) -> None:
        if self._events is None:
            return
        try:
            self._events.publish(event_of(transaction))
        except Exception:
            log.warning(
                "the event bus failed on event %s",
                transaction.transaction_id,
                exc_info=True,
                extra={"event_id": transaction.transaction_id, "operation": transaction.operation},
            )

    def _joined_committed(self, transaction_ids: list[str]) -> None:
        """After the caller's commit: announce what a fresh read finds, since savepoints may have been undone."""
        try:
            found = self._ledger.transactions(transaction_ids)
        except WalletError:
            log.warning("no events for committed transactions", exc_info=True, extra={"event_ids": transaction_ids})
            return
        for transaction in found:
            self._committed(transaction, announce=True)


def _check_type(request: object, kind: type[Request]) -> None:
    if type(request) is not kind:
        # Only its type: it may be the authorization, in the wrong place.
        raise InvalidRequestError(field="request", value=f"a {type(request).__name__}", expected=f"an {kind.__name__}")


def _check_status(status: object, *, only_held: bool) -> str:
    known = [EscrowStatus.HELD.value] if only_held else [known.value for known in EscrowStatus]
    if not isinstance(status, str) or status not in known:
        raise InvalidRequestError(field="status", value=status, expected=f"one of {', '.join(known)}")
    return str.__str__(status)
