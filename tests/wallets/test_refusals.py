"""Every refusal: its error, its details, which one wins, and that nothing at all has changed."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from points_platform import core
from points_platform.core import (
    MAX_POINTS,
    BalanceLimitError,
    Database,
    DepositConflictError,
    EscrowAlreadyProcessedError,
    EscrowMismatchError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidAuthorizationError,
    InvalidRequestError,
    OptimisticLockError,
    StorageUnavailableError,
    WalletError,
)
from points_platform.wallets import EscrowPartialSettleRequest, WalletConfig
from support.world import World

UNKNOWN = str(uuid4())
Make = Callable[..., Any]
Refusal = tuple[type[WalletError], dict[str, Any]]

ERRORS: dict[type[WalletError], tuple[str, bool]] = {
    InvalidRequestError: ("invalid_request", False),
    InvalidAuthorizationError: ("invalid_authorization", False),
    IdempotencyConflictError: ("idempotency_conflict", False),
    DepositConflictError: ("deposit_conflict", False),
    EscrowNotFoundError: ("escrow_not_found", False),
    EscrowAlreadyProcessedError: ("escrow_already_processed", False),
    EscrowMismatchError: ("escrow_mismatch", False),
    InsufficientBalanceError: ("insufficient_balance", False),
    BalanceLimitError: ("balance_limit", False),
    OptimisticLockError: ("optimistic_lock", True),
    StorageUnavailableError: ("storage_unavailable", True),
}


@contextmanager
def refused(world: World, kind: type[WalletError], **details: Any) -> Iterator[None]:
    """The block is refused with exactly this error; every row stays as it was, and nothing is announced."""
    rows, events = world.snapshot(), list(world.events)
    with pytest.raises(WalletError) as refusal:
        yield
    assert type(refusal.value) is kind
    assert refusal.value.details == details
    assert world.snapshot() == rows
    assert world.events == events


@pytest.fixture
def limits(world: World) -> World:
    """A world whose model "full" can earn nothing more."""
    world.credit("rich", MAX_POINTS)
    mine: dict[str, Any] = {"user_id": "rich", "model_id": "full"}
    world.settle(world.hold("rich", MAX_POINTS).escrow_id, MAX_POINTS, **mine)
    world.credit("ana", 1000)
    return world


ENDS: dict[str, str] = {"settle": "settled", "refund": "refunded", "partial_settle": "partially_settled"}
ends = pytest.mark.parametrize("operation", ENDS)


def end_request(world: World, operation: str, escrow_id: str, **changes: Any) -> Any:
    make: Make = getattr(world, f"{operation}_request")
    return make(escrow_id, **changes)


def wrong_amount(request: Any, more: int = 1) -> Any:
    name = "settle_amount" if isinstance(request, EscrowPartialSettleRequest) else "amount"
    return replace(request, **{name: getattr(request, name) + more})


def mismatch(field: str, expected: object, given: object) -> Refusal:
    return EscrowMismatchError, {"field": field, "expected": expected, "given": given}


def test_the_table_of_errors_is_complete() -> None:
    errors = {
        value
        for value in vars(core).values()
        if isinstance(value, type) and issubclass(value, WalletError) and value is not WalletError
    }
    assert errors == {*ERRORS, core.ClockSkewError, core.SchemaVersionError, core.LedgerDamagedError}


@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_has_its_stable_code(kind: type[WalletError]) -> None:
    assert (kind.code, kind.retryable) == ERRORS[kind]
    assert kind.__bases__ == (WalletError,)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidRequestError(field="amount", value="7", expected="a number"), "amount must be a number, not '7'"),
        (
            IdempotencyConflictError(key="k", fields=("amount", "reason")),
            "idempotency key k has carried out a request with other values of amount, reason; send that one unchanged "
            "for its answer, and take another key only for what is to happen beside it",
        ),
        (
            InsufficientBalanceError(required=3, available=2, currency="points"),
            "3 points are required, 2 are available",
        ),
    ],
)
def test_an_error_survives_pickling_and_says_what_is_wrong(error: WalletError, message: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.details, str(copy), str(error)) == (type(error), error.details, message, message)


@ends
def test_what_cannot_end_a_hold_is_refused_by_name_and_its_key_stays_free(limits: World, operation: str) -> None:
    world = limits
    total = 30
    cases: list[tuple[Callable[[Any], Any], Refusal]] = [
        (lambda r: replace(r, escrow_id=UNKNOWN), (EscrowNotFoundError, {"escrow_id": UNKNOWN})),
        (lambda r: replace(r, escrow_id="no uuid"), (EscrowNotFoundError, {"escrow_id": "no uuid"})),
        (lambda r: replace(r, escrow_id="é" * 128), (EscrowNotFoundError, {"escrow_id": "é" * 128})),
        (lambda r: replace(r, user_id="ben"), (EscrowNotFoundError, {})),
        (lambda r: replace(r, user_id="rich"), (EscrowNotFoundError, {})),
        (lambda r: wrong_amount(r), mismatch("amount", total, total + 1)),
        (lambda r: wrong_amount(r, -1), mismatch("amount", total, total - 1)),
        (lambda r: replace(r, queue_item_id="queue-2"), mismatch("queue_item_id", "queue-1", "queue-2")),
        (lambda r: replace(r, queue_item_id="QUEUE-1"), mismatch("queue_item_id", "queue-1", "QUEUE-1")),
        (lambda r: replace(r, currency="gems"), mismatch("currency", "points", "gems")),
    ]
    if operation != "refund":
        amount = 30 if operation == "settle" else 20
        limit = {"limit": MAX_POINTS, "balance": MAX_POINTS, "amount": amount, "currency": "points"}
        cases.append((lambda r: replace(r, model_id="full"), (BalanceLimitError, limit)))
    for wrong, (kind, details) in cases:
        right = end_request(world, operation, world.hold(amount=total).escrow_id)
        expected = details or {"escrow_id": right.escrow_id}
        with refused(world, kind, **expected):
            world.send(wrong(right))
        assert world.send(right).replayed is False


@ends
def test_a_hold_ends_once_whatever_ended_it(world: World, operation: str) -> None:
    world.credit(amount=100)
    escrow_id = world.hold().escrow_id
    world.send(end_request(world, operation, escrow_id))
    for again in ENDS:
        with refused(world, EscrowAlreadyProcessedError, escrow_id=escrow_id, status=ENDS[operation]):
            world.send(end_request(world, again, escrow_id))


@pytest.mark.parametrize(
    ("user_id", "amount", "currency", "available"),
    [("ana", 71, None, 70), ("ana", MAX_POINTS, None, 70), ("ana", 1, "gems", 0), ("ben", 1, None, 0)],
    ids=["one too many", "far too many", "another currency", "unknown user"],
)
def test_a_hold_needs_available_points(
    world: World, user_id: str, amount: int, currency: str | None, available: int
) -> None:
    """Points in escrow are not available."""
    world.credit(amount=100)
    world.hold(amount=30)
    with refused(world, InsufficientBalanceError, required=amount, available=available, currency=currency or "points"):
        world.hold(user_id, amount, currency=currency)


@pytest.mark.parametrize("locked", [False, True])
def test_what_there_is_too_little_or_too_much_of_has_the_name_of_its_currency(world: World, locked: bool) -> None:
    """Whatever is configured, named, or told by the hold."""
    gems = world.service(config=WalletConfig(default_currency="gems"))
    world.credit(amount=MAX_POINTS, currency="gems")
    held = world.hold(amount=30, currency="gems")
    world.credit("ben", MAX_POINTS, currency="gems")
    world.settle(world.hold("ben", MAX_POINTS, currency="gems").escrow_id, MAX_POINTS, user_id="ben", model_id="full")

    def refusal(request: Any, wallets: Any = None) -> WalletError:
        with Session(world.database.engine) as session, pytest.raises(WalletError) as caught:
            world.send(request, wallets, **({"session": session} if locked else {}))
        return caught.value

    too_little = {"required": 30, "available": 0, "currency": "points"}
    assert refusal(world.hold_request()).details == too_little
    assert str(refusal(world.hold_request())) == "30 points are required, 0 are available"
    nobody = refusal(world.spend_request("cem"), gems)
    assert nobody.details == {"required": 30, "available": 0, "currency": "gems"}
    assert str(nobody) == "30 gems are required, 0 are available"
    too_much = {"limit": MAX_POINTS, "balance": MAX_POINTS, "amount": 1, "currency": "gems"}
    assert refusal(world.credit_request(amount=1, currency="gems")).details == too_much
    full = refusal(world.settle_request(held.escrow_id, model_id="full"))
    assert full.details == too_much | {"amount": 30}, "the hold has told it"
    assert str(full) == f"the balance cannot take 30 more; the limit is {MAX_POINTS} gems"


@pytest.mark.parametrize(
    ("user_id", "amount", "currency", "available"),
    [("ana", 71, None, 70), ("ana", MAX_POINTS, None, 70), ("ana", 1, "gems", 0), ("cem", 1, None, 0)],
    ids=["one too many", "far too many", "another currency", "unknown user"],
)
@pytest.mark.parametrize("operation", ["spend", "transfer"])
def test_what_is_paid_has_to_be_available(
    world: World, operation: str, user_id: str, amount: int, currency: str | None, available: int
) -> None:
    """Neither points in escrow nor anybody else's are."""
    world.credit(amount=100)
    world.credit("ben")
    world.hold(amount=30)
    with refused(world, InsufficientBalanceError, required=amount, available=available, currency=currency or "points"):
        getattr(world, operation)(user_id, amount, currency=currency)


def test_a_transfer_that_does_not_fit_says_nothing_of_what_the_taker_has(limits: World) -> None:
    world = limits
    world.credit("ben", MAX_POINTS - 10)
    with refused(world, InsufficientBalanceError, required=1001, available=1000, currency="points"):
        world.transfer(amount=1001)
    with refused(world, BalanceLimitError, limit=MAX_POINTS, amount=11, currency="points"):
        world.transfer(amount=11)
    assert world.transfer(amount=10).new_available_balance == 990
    with pytest.raises(BalanceLimitError) as full:
        world.transfer(amount=1)
    with refused(world, BalanceLimitError, limit=MAX_POINTS, amount=1, currency="points"):
        world.transfer(amount=1, metadata={"again": True})
    assert str(full.value) == f"the balance cannot take 1 more; the limit is {MAX_POINTS} points"


def test_nobody_transfers_to_oneself(world: World) -> None:
    with refused(world, InvalidRequestError, field="recipient_id", value="ana", expected="another user's id"):
        world.transfer(recipient_id="ana")


def test_a_payment_is_credited_once_whoever_is_named_and_under_whatever_key(world: World) -> None:
    paid = world.deposit_request(amount=100)
    reference = {"source": paid.source, "reference": paid.reference}
    first = world.send(paid)
    for service in (world.wallets, world.service()):
        events = len(world.events)
        again = world.send(replace(paid, idempotency_key=world.key(), metadata={"n": 1}, reason="bonus"), service)
        assert (again, again.replayed, len(world.events)) == (first, True, events)
        for change, fields in (
            ({"user_id": "ben"}, ("user_id",)),
            ({"amount": 101}, ("amount",)),
            ({"currency": "gems"}, ("currency",)),
            ({"currency": "gems", "amount": 1, "user_id": "ben"}, ("user_id", "amount", "currency")),
            ({"amount": MAX_POINTS}, ("amount",)),
        ):
            changes: dict[str, Any] = change
            other = replace(paid, idempotency_key=world.key(), **changes)
            with refused(world, DepositConflictError, **reference, fields=fields):
                world.send(other, service)
            if "user_id" not in change:
                differing = tuple(name for name in ("currency", "amount") if name in change)
                with refused(world, IdempotencyConflictError, key=paid.idempotency_key, fields=differing):
                    world.send(replace(paid, **changes), service)
    assert world.wallets.get_user_balance("ana").available == 100


def test_a_key_that_was_answered_with_another_deposit_stays_free(world: World) -> None:
    paid = world.deposit_request(amount=100)
    world.send(paid)
    other = replace(paid, idempotency_key="the other key")
    assert world.send(other).replayed is True
    assert world.send(replace(other, reference="another payment")).replayed is False


def test_a_deposit_that_does_not_fit_claims_nothing(world: World) -> None:
    world.credit(amount=MAX_POINTS)
    paid = world.deposit_request(amount=1)
    with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=MAX_POINTS, amount=1, currency="points"):
        world.send(paid)
    world.spend(amount=1)
    assert world.send(paid).replayed is False


def test_a_user_never_has_more_than_the_limit_escrow_included_so_a_refund_always_fits(world: World) -> None:
    world.credit(amount=MAX_POINTS - 1)
    held = world.hold(amount=MAX_POINTS - 1)
    with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=MAX_POINTS - 1, amount=2, currency="points"):
        world.credit(amount=2)
    assert world.credit(amount=1).new_available_balance == 1
    with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=MAX_POINTS, amount=1, currency="points"):
        world.credit(amount=1)
    assert world.credit(amount=MAX_POINTS, currency="gems").new_available_balance == MAX_POINTS
    assert world.refund(held.escrow_id, MAX_POINTS - 1).user_available_balance == MAX_POINTS
    with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=MAX_POINTS, amount=MAX_POINTS, currency="points"):
        world.credit(amount=MAX_POINTS)


def test_a_model_never_earns_more_than_the_limit(world: World) -> None:
    mine: dict[str, Any] = {"user_id": "rich"}
    world.credit("rich", MAX_POINTS)
    nearly = MAX_POINTS - 25
    world.settle(world.hold("rich", nearly).escrow_id, nearly, **mine)
    world.credit("ana", 100)
    ana = world.hold().escrow_id
    with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=nearly, amount=30, currency="points"):
        world.settle(ana, 30)
    with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=nearly, amount=26, currency="points"):
        world.partial_settle(ana, 4, 26)
    assert world.partial_settle(ana, 5, 25).model_earned_balance == MAX_POINTS
    last = world.hold(amount=1).escrow_id
    with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=MAX_POINTS, amount=1, currency="points"):
        world.settle(last, 1)
    assert world.settle(last, 1, model_id="nova").model_earned_balance == 1


@ends
def test_of_several_wrongs_the_first_of_the_table_is_named(limits: World, operation: str) -> None:
    """One request wrong in every way, repaired step by step in the order of the table."""
    world = limits
    done, held = world.hold().escrow_id, world.hold().escrow_id
    used = end_request(world, operation, done)
    world.send(used)
    full = {} if operation == "refund" else {"model_id": "full"}
    wrong = replace(wrong_amount(used), **full, escrow_id=UNKNOWN, queue_item_id="queue-2", currency="gems")
    method = getattr(world.wallets, f"{operation}_escrow")
    with refused(world, InvalidRequestError, field="request", value="a NoneType", expected=f"an {type(used).__name__}"):
        method(None, None)
    with refused(world, InvalidAuthorizationError, cause="missing"):
        method(wrong, None)
    differing = ("currency", "escrow_id", "model_id", "amount", "settle_amount", "queue_item_id")
    fields = tuple(n for n in differing if hasattr(wrong, n) and getattr(wrong, n) != getattr(used, n))
    with refused(world, IdempotencyConflictError, key=used.idempotency_key, fields=fields):
        world.send(wrong)
    wrong = replace(wrong, idempotency_key=world.key())
    with refused(world, EscrowNotFoundError, escrow_id=UNKNOWN):
        world.send(wrong)
    wrong = replace(wrong, escrow_id=done)
    with refused(world, EscrowAlreadyProcessedError, escrow_id=done, status=ENDS[operation]):
        world.send(wrong)
    wrong = replace(wrong, escrow_id=held)
    with refused(world, EscrowMismatchError, field="amount", expected=30, given=31):
        world.send(wrong)
    wrong = wrong_amount(wrong, -1)
    with refused(world, EscrowMismatchError, field="queue_item_id", expected="queue-1", given="queue-2"):
        world.send(wrong)
    wrong = replace(wrong, queue_item_id="queue-1")
    with refused(world, EscrowMismatchError, field="currency", expected="points", given="gems"):
        world.send(wrong)
    wrong = replace(wrong, currency=None)
    if full:
        amount = 30 if operation == "settle" else 20
        with refused(world, BalanceLimitError, limit=MAX_POINTS, balance=MAX_POINTS, amount=amount, currency="points"):
            world.send(wrong)
        wrong = replace(wrong, model_id="luna")
    assert world.send(wrong).replayed is False


def test_a_used_key_wins_over_missing_points_and_over_the_limit(limits: World) -> None:
    world = limits
    requests: list[Any] = [world.hold_request(amount=30), world.credit_request(amount=1)]
    requests += [world.deposit_request(amount=1), world.spend_request(amount=30), world.transfer_request(amount=30)]
    for request in requests:
        world.send(request)
        other = replace(request, amount=MAX_POINTS)
        for service in (world.wallets, world.service()):
            with refused(world, IdempotencyConflictError, key=request.idempotency_key, fields=("amount",)):
                world.send(other, service)


@ends
def test_nothing_ends_a_hold_without_the_authorization_for_it(world: World, operation: str) -> None:
    world.credit(amount=100)
    request = end_request(world, operation, world.hold().escrow_id)
    other = next(name for name in ENDS if name != operation)
    with refused(world, InvalidAuthorizationError, cause="missing"):
        world.send(request, authorization=None)
    with refused(world, InvalidAuthorizationError, cause="claim_mismatch", claim="action"):
        world.send(request, authorization=world.authorize(end_request(world, other, request.escrow_id)))
    with refused(world, InvalidAuthorizationError, cause="claim_mismatch", claim="reason"):
        world.send(request, authorization=world.authorize(request, reason="another_reason"))
    assert world.send(request).replayed is False


def test_somebody_who_keeps_the_rows_locked_is_reported_as_contention(world: World) -> None:
    world.credit(amount=100)
    world.credit("ben")
    requests: list[Any] = [world.credit_request(), world.hold_request(), world.spend_request()]
    requests += [world.transfer_request(), world.deposit_request(), world.open_request()]
    with Database(world.database.engine.url, lock_timeout_ms=1) as impatient, world.database.engine.begin() as other:
        if impatient.is_sqlite:
            event.listen(impatient.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=1"))
        other.execute(text("UPDATE user_wallets SET version = version"))
        waiting = World(impatient, config=WalletConfig(max_retry_attempts=1, retry_backoff_ms=0))
        for request in requests:
            with pytest.raises(OptimisticLockError) as refusal:
                waiting.send(request)
            assert refusal.value.details == {"attempts": 2}
        assert waiting.events == []
    assert [world.send(request).replayed for request in requests] == [False] * 6


@pytest.mark.parametrize(
    "target", ["sqlite:////no/such/folder/points.db", "postgresql+psycopg://nobody@127.0.0.1:1/no"]
)
def test_a_database_that_cannot_be_reached_is_no_driver_error(target: str) -> None:
    with Database(target) as database:
        world = World(database)
        calls: list[Callable[[], object]] = [
            world.credit,
            world.hold,
            world.spend,
            world.transfer,
            world.deposit,
            world.open,
            lambda: world.settle(UNKNOWN),
            lambda: world.wallets.get_user_balance("ana"),
            lambda: world.wallets.get_model_balance("luna"),
            lambda: world.wallets.get_escrow(UNKNOWN),
            lambda: world.wallets.list_escrows(user_id="ana"),
            lambda: world.ledger.entries("user:ana", "points"),
            lambda: world.ledger.transaction(UNKNOWN),
        ]
        for call in calls:
            with pytest.raises(StorageUnavailableError) as refusal:
                call()
            assert set(refusal.value.details) == {"cause"}
        assert world.events == []
