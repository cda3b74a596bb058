"""The wallets: what a host calls.

Whether a request is one, and permitted, is checked here; all the rest is the ``Executor``'s, and what differs between
the operations stands in their files.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Row

from ..core.errors import InvalidRequestError, WalletError
from ..core.plain import one
from ..core.refusals import EscrowNotFoundError
from ..core.sessions import HostSession
from ..core.values import (
    Metadata,
    Page,
    check_identifier,
    check_limit,
    check_part,
    check_time,
    decode_cursor,
    encode_cursor,
    plain_string,
)
from ..events.service import EventBus
from ..ledger.accounts import check_name, model_owner, user_owner
from ..ledger.service import LedgerService
from . import reads
from .authorization import Authorizer, QueueAuthorization, action_fields
from .config import WalletConfig
from .executor import Executor, Permitted, refused
from .models import EscrowItem, EscrowStatus, ModelBalance, UserBalance
from .operation import Operation, Request, Response
from .operations import permitted_by
from .operations.credit import CREDIT, UserCreditRequest, UserCreditResponse
from .operations.deposit import DEPOSIT, DepositRequest, DepositResponse
from .operations.hold import HOLD, EscrowHoldRequest, EscrowHoldResponse
from .operations.open import OPEN, OpenWalletRequest, OpenWalletResponse
from .operations.partial_settle import (
    PARTIAL_SETTLE,
    EscrowPartialSettleRequest,
    EscrowPartialSettleResponse,
    QueuePartialSettlementAuthorization,
)
from .operations.refund import REFUND, EscrowRefundRequest, EscrowRefundResponse, QueueRefundAuthorization
from .operations.settle import SETTLE, EscrowSettleRequest, EscrowSettleResponse, QueueSettlementAuthorization
from .operations.spend import SPEND, SpendRequest, SpendResponse
from .operations.transfer import TRANSFER, TransferRequest, TransferResponse

Req = TypeVar("Req", bound=Request)
Resp = TypeVar("Resp", bound=Response)

MAX_BATCH = 10_000
AUTHORIZER = "a QueueAuthorizer or an AuthorizationVerifier"


class WalletService:
    """Users' and models' wallets over a ledger.

    ``authorizer`` judges the queue's authorizations: a ``QueueAuthorizer``, or an
    ``AuthorizationVerifier`` where this side holds only public keys. Threads share one service.

    Every method takes the caller's SQLAlchemy ``session``: it then joins that transaction, sees what that has done
    so far, commits nothing and retries nothing; the event goes out after the caller's commit. Without a session and
    where ``max_retry_attempts`` is 0, an operation may also raise ``ClockSkewError``, after ``OptimisticLockError``.
    Raises ``InvalidRequestError`` for the first of its parts that is something else.
    """

    def __init__(
        self,
        ledger: LedgerService,
        *,
        authorizer: Authorizer,
        events: EventBus | None = None,
        config: WalletConfig | None = None,
    ) -> None:
        check_part("ledger", ledger, "a LedgerService", fits=isinstance(ledger, LedgerService))
        check_part("authorizer", authorizer, AUTHORIZER, fits=callable(getattr(authorizer, "verify", None)))
        publishes = events is None or callable(getattr(events, "publish", None))
        check_part("events", events, "an EventBus, or None", fits=publishes)
        configures = config is None or isinstance(config, WalletConfig)
        check_part("config", config, "a WalletConfig, or None", fits=configures)
        self.database = ledger.database
        self._authorizer = authorizer
        self._config = config or WalletConfig()
        self._executor = Executor(ledger, events, self._config)

    def credit_user(self, request: UserCreditRequest, *, session: HostSession = None) -> UserCreditResponse:
        """Give a user points, from the platform's issue; the first credit creates the wallet.

        Raises ``InvalidRequestError``, ``IdempotencyConflictError``, ``BalanceLimitError``,
        ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        return self._one(CREDIT, session, request)

    def hold_in_escrow(self, request: EscrowHoldRequest, *, session: HostSession = None) -> EscrowHoldResponse:
        """Move available points of a user into escrow, for a queue item.

        Raises ``InvalidRequestError``, ``IdempotencyConflictError``, ``InsufficientBalanceError``,
        ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        return self._one(HOLD, session, request)

    def settle_escrow(
        self, request: EscrowSettleRequest, authorization: QueueSettlementAuthorization, *, session: HostSession = None
    ) -> EscrowSettleResponse:
        """Give all of a hold to the model, as the queue has authorized.

        Raises ``InvalidRequestError``, ``InvalidAuthorizationError``, ``IdempotencyConflictError``,
        ``EscrowNotFoundError``, ``EscrowAlreadyProcessedError``, ``EscrowMismatchError``,
        ``BalanceLimitError``, ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        return self._one(SETTLE, session, request, authorization)

    def refund_escrow(
        self, request: EscrowRefundRequest, authorization: QueueRefundAuthorization, *, session: HostSession = None
    ) -> EscrowRefundResponse:
        """Give all of a hold back to its user, as the queue has authorized.

        Raises what ``settle_escrow`` raises, but for ``BalanceLimitError``: a refund always fits.
        """
        return self._one(REFUND, session, request, authorization)

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
        return self._one(PARTIAL_SETTLE, session, request, authorization)

    def carry_out(
        self,
        authorization: QueueAuthorization,
        *,
        idempotency_key: str,
        request_id: str,
        metadata: Metadata = None,
        session: HostSession = None,
    ) -> Response:
        """Do what the queue has decided: whichever operation it has authorized, as its token says.

        For decisions that come over a wire: ``QueueAuthorization.from_token(text)``. Answers and raises what the
        operation's own method does, given these fields and those that are signed; ``InvalidRequestError`` for what is
        no authorization.
        """
        operation = permitted_by(authorization)
        signed = {name: getattr(authorization, name) for name in action_fields(type(authorization))}
        told = {"idempotency_key": idempotency_key, "request_id": request_id, "metadata": metadata}
        return self._one(operation, session, operation.request(**told, **signed), authorization)

    def deposit_points(self, request: DepositRequest, *, session: HostSession = None) -> DepositResponse:
        """Credit a user with a payment, once for each reference of its source, under whatever key.

        The same user, amount and currency again is a replay. Raises ``InvalidRequestError``,
        ``IdempotencyConflictError``, ``DepositConflictError``, ``BalanceLimitError``, ``OptimisticLockError``,
        ``StorageUnavailableError``.
        """
        return self._one(DEPOSIT, session, request)

    def spend_points(self, request: SpendRequest, *, session: HostSession = None) -> SpendResponse:
        """Pay the platform with a user's available points.

        Raises ``InvalidRequestError``, ``IdempotencyConflictError``, ``InsufficientBalanceError``,
        ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        return self._one(SPEND, session, request)

    def transfer_points(self, request: TransferRequest, *, session: HostSession = None) -> TransferResponse:
        """Give a user's available points to another user, whose wallet is made if there is none.

        Raises ``InvalidRequestError``, ``IdempotencyConflictError``, ``InsufficientBalanceError``,
        ``BalanceLimitError`` (without a balance: it is the other user's), ``OptimisticLockError``,
        ``StorageUnavailableError``.
        """
        return self._one(TRANSFER, session, request)

    def open_wallet(self, request: OpenWalletRequest, *, session: HostSession = None) -> OpenWalletResponse:
        """See to it that an owner has a wallet; nothing moves, and one that is there has a version more.

        Raises ``InvalidRequestError``, ``IdempotencyConflictError``, ``OptimisticLockError``,
        ``StorageUnavailableError``.
        """
        return self._one(OPEN, session, request)

    def credit_many(
        self, requests: Sequence[UserCreditRequest], *, atomic: bool = False, session: HostSession = None
    ) -> list[UserCreditResponse | WalletError]:
        """Credit users in one transaction. Answers and raises as ``hold_many`` does."""
        return self._many(CREDIT, requests, atomic, session)

    def deposit_many(
        self, requests: Sequence[DepositRequest], *, atomic: bool = False, session: HostSession = None
    ) -> list[DepositResponse | WalletError]:
        """Credit payments in one transaction. Answers and raises as ``hold_many`` does."""
        return self._many(DEPOSIT, requests, atomic, session)

    def spend_many(
        self, requests: Sequence[SpendRequest], *, atomic: bool = False, session: HostSession = None
    ) -> list[SpendResponse | WalletError]:
        """Spend points of users in one transaction. Answers and raises as ``hold_many`` does."""
        return self._many(SPEND, requests, atomic, session)

    def transfer_many(
        self, requests: Sequence[TransferRequest], *, atomic: bool = False, session: HostSession = None
    ) -> list[TransferResponse | WalletError]:
        """Transfer points between users in one transaction. Answers and raises as ``hold_many`` does."""
        return self._many(TRANSFER, requests, atomic, session)

    def hold_many(
        self, requests: Sequence[EscrowHoldRequest], *, atomic: bool = False, session: HostSession = None
    ) -> list[EscrowHoldResponse | WalletError]:
        """Carry out holds in one transaction, in the order of the list (or tuple); at most 10,000.

        Returns, in that order, for each its response or its refusal: what one call after the other would
        have answered or raised. With ``atomic`` the first refusal is raised, its place in the list as
        ``index`` in its details, and nothing is moved; in a session only the batch is undone. Raises
        ``InvalidRequestError`` for what is no list or too long a one, and, for all together,
        ``OptimisticLockError`` and ``StorageUnavailableError``.
        """
        return self._many(HOLD, requests, atomic, session)

    def settle_many(
        self,
        settlements: Sequence[tuple[EscrowSettleRequest, QueueSettlementAuthorization]],
        *,
        atomic: bool = False,
        session: HostSession = None,
    ) -> list[EscrowSettleResponse | WalletError]:
        """Settle holds in one transaction: tuples of a request and its authorization, in the order of the list.

        Answers and raises as ``hold_many`` does. All authorizations are verified before anything is read,
        so with ``atomic`` a refused one wins over what the rules refuse.
        """
        return self._many(SETTLE, settlements, atomic, session)

    def refund_many(
        self,
        refunds: Sequence[tuple[EscrowRefundRequest, QueueRefundAuthorization]],
        *,
        atomic: bool = False,
        session: HostSession = None,
    ) -> list[EscrowRefundResponse | WalletError]:
        """Refund holds in one transaction, each in a tuple with its authorization; otherwise like ``settle_many``."""
        return self._many(REFUND, refunds, atomic, session)

    def get_user_balance(
        self, user_id: str, currency: str | None = None, *, session: HostSession = None
    ) -> UserBalance:
        """A user's balance, zero for an unknown user. Raises ``InvalidRequestError``, ``StorageUnavailableError``."""
        name, currency = check_name("user_id", user_id), self._currency(currency)
        row = self._wallet(user_owner(name), currency, session)
        return UserBalance.of(name, currency, row, as_of=self.database.now())

    def get_user_balances(self, user_id: str, *, session: HostSession = None) -> list[UserBalance]:
        """A user's balances in all currencies in which there is a wallet, by currency; empty for an unknown user.

        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        name = check_name("user_id", user_id)
        found = self.database.ask(partial(reads.wallets, owner_id=user_owner(name)), session=session)
        at = self.database.now()
        return [UserBalance.of(name, row.currency, row, as_of=at) for row in found]

    def get_model_balance(
        self, model_id: str, currency: str | None = None, *, session: HostSession = None
    ) -> ModelBalance:
        """A model's earnings, zero for an unknown one. Raises ``InvalidRequestError``, ``StorageUnavailableError``."""
        name, currency = check_name("model_id", model_id), self._currency(currency)
        row = self._wallet(model_owner(name), currency, session)
        return ModelBalance.of(name, currency, row, as_of=self.database.now())

    def get_model_balances(self, model_id: str, *, session: HostSession = None) -> list[ModelBalance]:
        """A model's earnings in all currencies. Answers and raises as ``get_user_balances`` does."""
        name = check_name("model_id", model_id)
        found = self.database.ask(partial(reads.wallets, owner_id=model_owner(name)), session=session)
        at = self.database.now()
        return [ModelBalance.of(name, row.currency, row, as_of=at) for row in found]

    def get_escrow(self, escrow_id: str, user_id: str | None = None, *, session: HostSession = None) -> EscrowItem:
        """One escrow item; with ``user_id``, only if it is that user's.

        Raises ``InvalidRequestError``, ``EscrowNotFoundError``, ``StorageUnavailableError``.
        """
        equal = {"escrow_id": check_identifier("escrow_id", escrow_id)}
        if user_id is not None:
            equal["owner_id"] = user_owner(check_name("user_id", user_id))
        found = self.database.ask(partial(reads.items, equal=equal, limit=1), session=session)
        if not found:
            raise EscrowNotFoundError(escrow_id=equal["escrow_id"], of_user=user_id is not None)
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
        session: HostSession = None,
    ) -> Page[EscrowItem]:
        """A page of escrow items, oldest first; at least one filter is needed, all given ones hold.

        ``held_before`` finds stuck holds: items that were made before that time and are held still.
        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        equal = {} if user_id is None else {"owner_id": user_owner(check_name("user_id", user_id))}
        if queue_item_id is not None:
            equal["queue_item_id"] = check_identifier("queue_item_id", queue_item_id)
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
        asked = partial(reads.items, equal=equal, held_before=held_before, after=edge, limit=limit + 1)
        found = self.database.ask(asked, session=session)
        items = tuple(found[:limit])
        return Page(items=items, next=encode_cursor(items[-1].escrow_id) if len(found) > limit else None)

    def _wallet(self, owner_id: str, currency: str, session: HostSession) -> Row[Any] | None:
        return self.database.ask(partial(reads.wallet, owner_id=owner_id, currency=currency), session=session)

    def _currency(self, currency: str | None) -> str:
        return self._config.currency(currency)

    def _one(self, operation: Operation[Req, Resp], session: HostSession, *given: object) -> Resp:
        self._check(session)
        return cast(Resp, self._executor.one(operation, self._permitted(operation, *given), session=session))

    def _many(
        self, operation: Operation[Req, Resp], requests: object, atomic: bool, session: HostSession
    ) -> list[Resp | WalletError]:
        self._check(session)
        asked: list[Permitted | WalletError] = []
        for place, given in enumerate(_batch(requests)):
            try:
                asked.append(self._permitted(operation, *(_pair(given) if operation.authorization else (given,))))
            except WalletError as refusal:
                asked.append(refused(refusal, place, atomic=atomic))
        answers = self._executor.many(operation, asked, atomic=atomic, session=session)
        return cast(list[Resp | WalletError], answers)

    def _check(self, session: HostSession) -> None:
        if session is not None:
            self.database.check_session(session)

    def _permitted(self, operation: Operation[Any, Any], request: object, authorization: object = None) -> Permitted:
        """The request, and the id of the authorization that permits exactly it where it needs one."""
        if not isinstance(request, operation.request) or type(request) is not operation.request:
            # Only its type: it may be the authorization, in the wrong place.
            expected = one(operation.request)
            raise InvalidRequestError(field="request", value=one(type(request)), expected=expected)
        if self._config.currencies is not None and not operation.currency_of_hold:
            self._config.currency(request.currency)
        permission = operation.authorization
        if permission is None:
            return Permitted(request)
        action = {name: getattr(request, name) for name in action_fields(permission)}
        return Permitted(request, self._authorizer.verify(authorization, permission, action))


def _batch(requests: object) -> Sequence[Any]:
    if not isinstance(requests, list | tuple) or len(requests) > MAX_BATCH:
        given = f"{len(requests)} of them" if isinstance(requests, list | tuple) else one(type(requests))
        raise InvalidRequestError(field="requests", value=given, expected=f"a list of at most {MAX_BATCH}")
    return requests


def _pair(given: object) -> tuple[object, ...]:
    if not isinstance(given, tuple) or len(given) != 2:
        raise InvalidRequestError(
            field="request", value=one(type(given)), expected="a request with its authorization, as a tuple"
        )
    return given


def _check_status(status: object, *, only_held: bool) -> str:
    known = [EscrowStatus.HELD.value] if only_held else [known.value for known in EscrowStatus]
    text = plain_string(status)
    if text is None or text not in known:
        raise InvalidRequestError(field="status", value=status, expected=f"one of {', '.join(known)}")
    return text
