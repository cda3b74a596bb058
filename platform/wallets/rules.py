"""The rules: pure functions that refuse a request with a named error, or decide what will be written.

After a decision nothing can be refused any more: it is written whole, or the operation is tried again
from its read.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from ..core.errors import (
    BalanceLimitError,
    EscrowAlreadyProcessedError,
    EscrowMismatchError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InsufficientBalanceError,
)
from ..core.values import MAX_POINTS, canonical_json
from ..ledger.accounts import ISSUER, Movement, Operation, available, earned, escrow, user_owner
from ..ledger.models import TransactionDraft
from .models import EscrowItem, EscrowStatus
from .requests import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    Request,
    UserCreditRequest,
)

R = TypeVar("R", bound=Request)
EndingRequest = EscrowSettleRequest | EscrowRefundRequest | EscrowPartialSettleRequest
Rule = Callable[[R, "State", "Occasion"], "Decision"]


@dataclass(frozen=True, kw_only=True)
class State:
    """What a decision needs to know. A wallet that does not exist has nothing in it."""

    currency: str
    available: int = 0
    escrow: int = 0
    earned: int = 0
    item: EscrowItem | None = None


@dataclass(frozen=True, kw_only=True)
class Occasion:
    """What an operation gets from outside, once for all its attempts: ids, the time, the permission's id."""

    transaction_id: str
    escrow_id: str
    at: datetime
    authorization_id: str | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """All that is to be written. The only thing that passes from the rules to the SQL.

    ``item`` is the escrow item as it will be.
    """

    transaction: TransactionDraft
    item: EscrowItem | None


def credit(request: UserCreditRequest, state: State, occasion: Occasion) -> Decision:
    """Points from the platform to the user. Refuses with ``BalanceLimitError``."""
    _check_limit(state.available + state.escrow, request.amount)
    movement = Movement(ISSUER, available(request.user_id), request.amount)
    return Decision(transaction=_draft(Operation.CREDIT, request, state, occasion, None, movement), item=None)


def hold(request: EscrowHoldRequest, state: State, occasion: Occasion) -> Decision:
    """Points of the user into escrow. Refuses with ``InsufficientBalanceError``."""
    if state.available < request.amount:
        raise InsufficientBalanceError(required=request.amount, available=state.available)
    item = EscrowItem(
        escrow_id=occasion.escrow_id,
        user_id=request.user_id,
        currency=state.currency,
        amount=request.amount,
        status=EscrowStatus.HELD,
        queue_item_id=request.queue_item_id,
        feature_type=request.feature_type,
        reason=request.reason,
        metadata_json=_metadata(request),
        created_at=occasion.at,
    )
    movement = Movement(available(request.user_id), escrow(request.user_id), request.amount)
    return Decision(transaction=_draft(Operation.HOLD, request, state, occasion, item, movement), item=item)


def settle(request: EscrowSettleRequest, state: State, occasion: Occasion) -> Decision:
    """All of a hold to a model. Refuses as ``_held`` does, then with ``BalanceLimitError``."""
    item = _held(request, state)
    _check_limit(state.earned, request.amount)
    movement = Movement(escrow(request.user_id), earned(request.model_id), request.amount)
    done = _processed(item, EscrowStatus.SETTLED, occasion, settled=request.amount, model_id=request.model_id)
    return Decision(transaction=_draft(Operation.SETTLE, request, state, occasion, done, movement), item=done)


def refund(request: EscrowRefundRequest, state: State, occasion: Occasion) -> Decision:
    """All of a hold back to its user. Refuses as ``_held`` does; it always fits."""
    item = _held(request, state)
    movement = Movement(escrow(request.user_id), available(request.user_id), request.amount)
    done = _processed(item, EscrowStatus.REFUNDED, occasion, refunded=request.amount)
    return Decision(transaction=_draft(Operation.REFUND, request, state, occasion, done, movement), item=done)


def partial_settle(request: EscrowPartialSettleRequest, state: State, occasion: Occasion) -> Decision:
    """A hold split between a model and its user. Refuses as ``_held`` does, then with ``BalanceLimitError``."""
    item = _held(request, state)
    _check_limit(state.earned, request.settle_amount)
    movements = (
        Movement(escrow(request.user_id), available(request.user_id), request.refund_amount),
        Movement(escrow(request.user_id), earned(request.model_id), request.settle_amount),
    )
    done = _processed(
        item,
        EscrowStatus.PARTIALLY_SETTLED,
        occasion,
        settled=request.settle_amount,
        refunded=request.refund_amount,
        model_id=request.model_id,
    )
    return Decision(transaction=_draft(Operation.PARTIAL_SETTLE, request, state, occasion, done, *movements), item=done)


def check_same_request(request: Request, recorded: Request, *, currency: str | None) -> None:
    """Refuse with ``IdempotencyConflictError`` unless this is the recorded request, sent again.

    Every field counts but ``request_id``; ``currency`` is the request's, ``None`` if the recorded one is meant.
    """
    given = vars(request) | {"currency": recorded.currency if currency is None else currency}
    differing = tuple(
        f.name
        for f in fields(request)
        if f.name != "request_id" and _comparable(given[f.name]) != _comparable(getattr(recorded, f.name))
    )
    if differing:
        raise IdempotencyConflictError(key=request.idempotency_key, fields=differing)


def _comparable(value: Any) -> Any:
    # In Python {"n": 1} equals {"n": True} and {"n": 1.0}; as JSON they are three values.
    return canonical_json(value) if isinstance(value, dict) else value


def presume(request: Request, currency: str | None, at: datetime) -> State:
    """The state in which the request is carried out, as far as the request tells: what is tried unseen.

    What only the hold knows, its currency too where none is asked for, is ``""``.
    """
    if isinstance(request, EscrowHoldRequest):
        return State(currency=currency or "", available=request.amount)
    if not isinstance(request, EndingRequest):
        return State(currency=currency or "")
    item = EscrowItem(
        escrow_id=request.escrow_id,
        user_id=request.user_id,
        currency=currency or "",
        amount=_whole(request),
        status=EscrowStatus.HELD,
        queue_item_id=request.queue_item_id,
        feature_type="",
        reason="",
        metadata_json=None,
        created_at=at,
    )
    return State(currency=item.currency, item=item)


def _whole(request: EndingRequest) -> int:
    """What the hold must be for this request to end it."""
    if isinstance(request, EscrowPartialSettleRequest):
        return request.refund_amount + request.settle_amount
    return request.amount


def _held(request: EndingRequest, state: State) -> EscrowItem:
    """The escrow item, if it is held and the request says of it what is so.

    Refuses with ``EscrowNotFoundError``, ``EscrowAlreadyProcessedError``, ``EscrowMismatchError``.
    """
    item = state.item
    if item is None:
        raise EscrowNotFoundError(escrow_id=request.escrow_id)
    if item.status is not EscrowStatus.HELD:
        raise EscrowAlreadyProcessedError(escrow_id=item.escrow_id, status=item.status.value)
    given = {"amount": _whole(request), "queue_item_id": request.queue_item_id}
    if request.currency is not None:
        given["currency"] = request.currency
    for field, value in given.items():
        if value != getattr(item, field):
            raise EscrowMismatchError(field=field, expected=getattr(item, field), given=value)
    return item


def _check_limit(balance: int, amount: int) -> None:
    if balance + amount > MAX_POINTS:
        raise BalanceLimitError(limit=MAX_POINTS, balance=balance, amount=amount)


def _processed(
    item: EscrowItem,
    status: EscrowStatus,
    occasion: Occasion,
    *,
    settled: int = 0,
    refunded: int = 0,
    model_id: str | None = None,
) -> EscrowItem:
    changes = {"settled_amount": settled, "refunded_amount": refunded, "model_id": model_id}
    return EscrowItem(**vars(item) | changes | {"status": status, "processed_at": occasion.at})


def _draft(
    operation: Operation,
    request: Request,
    state: State,
    occasion: Occasion,
    item: EscrowItem | None,
    *movements: Movement,
) -> TransactionDraft:
    return TransactionDraft(
        transaction_id=occasion.transaction_id,
        owner_id=user_owner(request.user_id),
        operation=operation.value,
        idempotency_key=request.idempotency_key,
        request_id=request.request_id,
        reason=request.reason,
        currency=state.currency,
        occurred_at=occasion.at,
        escrow_id=item.escrow_id if item else None,
        queue_item_id=item.queue_item_id if item else None,
        feature_type=item.feature_type if item else None,
        model_id=item.model_id if item else None,
        authorization_id=occasion.authorization_id,
        metadata_json=_metadata(request),
        movements=movements,
    )


def _metadata(request: Request) -> str | None:
    return None if request.metadata is None else canonical_json(request.metadata)
