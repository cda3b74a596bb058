"""Two operations that meet at a chosen moment: what the slower one answers, and that it never misnames why."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from points_platform.core import (
    BalanceLimitError,
    Database,
    EscrowAlreadyProcessedError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    OptimisticLockError,
    WalletError,
)
from points_platform.wallets import EscrowRefundRequest, WalletConfig, WalletService
from support.recount import recount
from support.statements import before_each
from support.workers import one_of_each, ready
from support.world import World, at_once, elsewhere

MAX_POINTS = 2**53 - 1
FIRST_WRITE = {
    "credit": "INSERT INTO user_wallets",
    "hold": "INSERT INTO escrow_items",
    "settle": "UPDATE escrow_items",
    "refund": "UPDATE escrow_items",
    "partial_settle": "UPDATE escrow_items",
    "spend": "UPDATE user_wallets",
    "transfer": "UPDATE user_wallets",
    "deposit": "INSERT INTO deposit_claims",
    "open": "INSERT INTO user_wallets",
}
BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


@pytest.fixture(params=["sqlite", "postgresql"])
def here(request: pytest.FixtureRequest) -> Iterator[World]:
    """A platform whose operations wait for a row lock as long as it takes."""
    yield from patient_world(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def on_postgresql(postgresql_url: str) -> Iterator[World]:
    """The same statement by statement, where a second writer can get between a read and the write that rests on it."""
    yield from patient_world(postgresql_url, single_statement=False)


def patient_world(url: str, *, single_statement: bool = True) -> Iterator[World]:
    with Database(url, lock_timeout_ms=60_000, single_statement=single_statement) as database:
        yield World(database)
        recount(database)


@contextmanager
def meddling(world: World, moment: str, act: Callable[[], object], times: int = 1) -> Iterator[list[str]]:
    """Act just before a statement of the world's engine that contains this text; yields all its statements."""
    with before_each(world.database.engine, moment, *[lambda connection: act()] * times) as statements:
        yield statements


@contextmanager
def failing_once(world: World, moment: str, sqlstate: str) -> Iterator[None]:
    """Let the server refuse the first statement with this text as if a conflict had arisen there."""
    left = [f"DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '{sqlstate}'; END $$"]

    def before(connection: Any, cursor: Any, statement: str, parameters: Any, *others: Any) -> tuple[str, Any]:
        return (left.pop(), {}) if moment in statement and left else (statement, parameters)

    event.listen(world.database.engine, "before_cursor_execute", before, retval=True)
    try:
        yield
        assert not left, f"the moment never came: {moment}"
    finally:
        event.remove(world.database.engine, "before_cursor_execute", before)


def while_it_waits(world: World, call: Callable[[], Any], then: Callable[[], object]) -> Any:
    """Start the call in a thread; when it is seen to wait for a lock, do what lets it go on. Errors are answers."""
    beginning = threading.Event()

    def before(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        if statement == "BEGIN IMMEDIATE":
            beginning.set()

    event.listen(world.database.engine, "before_cursor_execute", before)
    try:
        with ThreadPoolExecutor(1) as threads:
            try:
                answer = threads.submit(call)
                (wait_for_sqlite if world.database.is_sqlite else wait_for_postgresql)(world, beginning, answer)
            finally:
                then()
        return answer.exception() or answer.result()
    finally:
        # Only now: the call in the thread goes through the list of those who listen.
        event.remove(world.database.engine, "before_cursor_execute", before)


def wait_for_sqlite(world: World, beginning: threading.Event, answer: "Future[Any]") -> None:
    assert beginning.wait(30), "it never began to write"
    assert not answer.done(), "it did not wait"


def wait_for_postgresql(world: World, beginning: threading.Event, answer: "Future[Any]") -> None:
    deadline = time.monotonic() + 30
    with Database(world.database.engine.url) as observer, observer.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        while not connection.scalar(BLOCKED):
            assert not answer.done(), f"it did not wait: {answer.exception() or answer.result()}"
            assert time.monotonic() < deadline, "it never waited"


def joined(world: World, request: Any) -> Any:
    """Send the request within a transaction of a caller, and commit it."""
    with Session(world.database.engine) as session, session.begin():
        return world.send(request, session=session)


SENDING = {"own": World.send, "joined": joined}
sending = pytest.mark.parametrize("send", SENDING.values(), ids=SENDING)


@sending
def test_a_repetition_that_waits_while_its_twin_commits_answers_with_the_replay(
    here: World, send: Callable[[World, Any], Any]
) -> None:
    for operation, request in one_of_each(here):
        with elsewhere(here) as (wallets, session):
            first = here.send(request, wallets, session=session)
            events = len(here.events)
            answer = while_it_waits(here, partial(send, here, request), session.commit)
        assert (answer, answer.replayed, first.replayed) == (first, True, False), operation
        assert len(here.events) == events, f"{operation}: a replay announces nothing"


@sending
def test_a_repetition_that_waits_while_its_twin_rolls_back_has_the_effect_itself(
    here: World, send: Callable[[World, Any], Any]
) -> None:
    for operation, request in one_of_each(here):
        with elsewhere(here) as (wallets, session):
            undone = here.send(request, wallets, session=session)
            answer = while_it_waits(here, partial(send, here, request), session.rollback)
        assert answer.replayed is False, operation
        assert answer.transaction_id != undone.transaction_id, operation
        assert here.events[-1].transaction_id == answer.transaction_id, operation


@sending
def test_another_request_that_waits_while_its_key_is_taken_is_a_conflict_and_nothing_else(
    here: World, send: Callable[[World, Any], Any]
) -> None:
    for operation, request in one_of_each(here):
        with elsewhere(here) as (wallets, session):
            other = type(request)(**vars(request) | {"reason": "another_reason"})
            here.send(other, wallets, session=session)
            answer = while_it_waits(here, partial(send, here, request), session.commit)
        assert isinstance(answer, IdempotencyConflictError), operation
        assert answer.details == {"key": request.idempotency_key, "fields": ("reason",)}, operation


@sending
def test_a_hold_that_waits_while_another_takes_the_points_names_what_is_left(
    here: World, send: Callable[[World, Any], Any]
) -> None:
    here.credit(amount=50)
    with elsewhere(here) as (wallets, session):
        here.send(here.hold_request(amount=30), wallets, session=session)
        answer = while_it_waits(here, partial(send, here, here.hold_request(amount=30)), session.commit)
    assert isinstance(answer, InsufficientBalanceError)
    assert answer.details == {"required": 30, "available": 20, "currency": "points"}


@sending
def test_a_hold_that_waits_while_points_arrive_is_served_with_them(
    here: World, send: Callable[[World, Any], Any]
) -> None:
    here.credit(amount=30)
    with elsewhere(here) as (wallets, session):
        here.send(here.credit_request(amount=5), wallets, session=session)
        answer = while_it_waits(here, partial(send, here, here.hold_request(amount=30)), session.commit)
    assert (answer.previous_balance, answer.new_available_balance) == (35, 5)


@sending
def test_an_end_that_waits_while_another_ends_the_hold_is_already_processed(
    here: World, send: Callable[[World, Any], Any]
) -> None:
    here.credit(amount=1000)
    here.hold(amount=1000)  # so that the escrow balance alone would let a hold end twice
    for operation in ("settle", "refund", "partial_settle"):
        request = ready(here, operation)
        with elsewhere(here) as (wallets, session):
            here.send(here.refund_request(request.escrow_id), wallets, session=session)
            answer = while_it_waits(here, partial(send, here, request), session.commit)
        assert isinstance(answer, EscrowAlreadyProcessedError), operation
        assert answer.details == {"escrow_id": request.escrow_id, "status": "refunded"}


def test_a_retry_that_waits_for_its_row_lock_finds_what_its_twin_committed_meanwhile(on_postgresql: World) -> None:
    """The first attempt fails; before the retry locks, the twin has changed the rows and not yet committed."""
    here = on_postgresql
    for operation in ("credit", "deposit", "open"):
        here.credit(f"user-of-{operation}")  # so that there is a wallet to lock
    for operation, request in one_of_each(here):
        with elsewhere(here) as (wallets, session):
            twin = partial(here.send, request, wallets, session=session)
            first_write = FIRST_WRITE[operation].replace("INSERT INTO user_wallets", "UPDATE user_wallets")
            with failing_once(here, first_write, "40001"), meddling(here, "FOR UPDATE", twin):
                answer = while_it_waits(here, partial(here.send, request), session.commit)
            assert (answer, answer.replayed) == (here.send(request, wallets), True), operation


@pytest.mark.parametrize(("write", "seen"), [("INSERT INTO user_wallets", ["23505"]), ("UPDATE user_wallets", [])])
def test_two_credits_with_one_key_that_meet_at_their_write_are_one(
    on_postgresql: World, write: str, seen: list[str]
) -> None:
    """The second finds the new wallet there already, or the old one at another version."""
    here = on_postgresql
    before = 0 if seen else here.credit().new_available_balance
    request = here.credit_request()
    twins: list[Any] = []
    with (
        elsewhere(here) as (wallets, _),
        refusals(here) as sqlstates,
        meddling(here, write, lambda: twins.append(here.send(request, wallets))),
    ):
        answer = here.send(request)
    assert sqlstates == seen
    assert (answer, answer.replayed) == (twins[0], True)
    assert here.wallets.get_user_balance("ana").available == before + 100


@contextmanager
def refusals(world: World) -> Iterator[list[str]]:
    """The SQLSTATE of each error that the server gives."""
    seen: list[str] = []

    def note(context: Any) -> None:
        seen.append(context.original_exception.sqlstate)

    event.listen(world.database.engine, "handle_error", note)
    yield seen
    event.remove(world.database.engine, "handle_error", note)


def test_a_key_taken_inside_the_callers_transaction_is_answered_and_spares_what_the_caller_wrote(
    on_postgresql: World,
) -> None:
    here = on_postgresql
    request = here.credit_request()
    twins: list[Any] = []
    with elsewhere(here) as (wallets, _), Session(here.database.engine) as session, refusals(here) as sqlstates:
        here.send(here.credit_request("ben", 7), session=session)
        with meddling(here, "INSERT INTO user_wallets", lambda: twins.append(here.send(request, wallets))):
            answer = here.send(request, session=session)
        here.send(here.credit_request("eva", 8), session=session)
        session.commit()
    assert sqlstates == ["23505"]
    assert (answer, answer.replayed) == (twins[0], True)
    assert [here.wallets.get_user_balance(user).available for user in ("ana", "ben", "eva")] == [100, 7, 8]


def test_a_hold_whose_wallet_changed_after_its_read_is_decided_anew(on_postgresql: World) -> None:
    here = on_postgresql
    here.credit(amount=100)
    with elsewhere(here) as (wallets, _):
        credit = partial(here.send, here.credit_request(amount=11), wallets)
        with meddling(here, "UPDATE user_wallets", credit) as statements:
            answer = here.hold(amount=30)
    assert (answer.previous_balance, answer.new_available_balance, answer.replayed) == (111, 81, False)
    assert sum("UPDATE user_wallets" in statement for statement in statements) == 2
    assert len(here.events) == 2


def test_a_hold_whose_points_were_taken_after_its_read_is_refused_with_what_is_left(on_postgresql: World) -> None:
    here = on_postgresql
    here.credit(amount=50)
    with elsewhere(here) as (wallets, _):
        take = partial(here.send, here.hold_request(amount=30), wallets)
        with (
            meddling(here, "UPDATE user_wallets", take),
            pytest.raises(InsufficientBalanceError) as refusal,
        ):
            here.hold(amount=30)
    assert refusal.value.details == {"required": 30, "available": 20, "currency": "points"}


def test_a_changed_wallet_without_retries_is_an_optimistic_lock_error_that_changes_nothing(
    on_postgresql: World,
) -> None:
    here = on_postgresql
    here.credit(amount=100)
    impatient = here.service(config=WalletConfig(max_retry_attempts=0))
    request = here.hold_request()
    with elsewhere(here) as (wallets, _):
        credit = partial(here.send, here.credit_request(amount=11), wallets)
        with meddling(here, "UPDATE user_wallets", credit), pytest.raises(OptimisticLockError) as error:
            here.send(request, impatient)
    assert error.value.details == {"attempts": 1}
    assert here.wallets.get_user_balance("ana").available == 111
    assert not here.snapshot()["escrow_items"]
    assert here.send(request).replayed is False, "the key was not consumed"


@pytest.mark.parametrize("retries", [0, 3])
def test_rows_that_stay_locked_exhaust_the_retries_and_change_nothing(url: str, retries: int) -> None:
    engine = create_engine(url)
    with Database(engine, lock_timeout_ms=1) as database:
        if database.is_sqlite:
            event.listen(engine, "connect", lambda connection, record: connection.execute("PRAGMA busy_timeout = 1"))
        world = World(database, config=WalletConfig(max_retry_attempts=retries, retry_backoff_ms=1))
        world.credit("user-of-credit")
        for operation, request in one_of_each(world):
            before = world.snapshot()
            with elsewhere(world) as (wallets, session):
                world.send(type(request)(**vars(request) | {"idempotency_key": "other"}), wallets, session=session)
                with pytest.raises(OptimisticLockError) as error:
                    world.send(request)
                session.rollback()
            assert error.value.details == {"attempts": retries + 1}, operation
            assert world.snapshot() == before, operation
            assert world.send(request).replayed is False, f"{operation}: the key was not consumed"
        recount(database)
    engine.dispose()


def test_rows_that_stay_locked_surface_at_once_inside_the_callers_transaction(on_postgresql: World) -> None:
    with Database(on_postgresql.database.engine.url, lock_timeout_ms=1) as database:
        here = World(database)
        here.credit("ana")
        with elsewhere(here) as (wallets, other), Session(database.engine) as session:
            here.send(here.hold_request(), wallets, session=other)
            here.send(here.credit_request("ben", 7), session=session)
            with pytest.raises(OptimisticLockError) as error:
                here.send(here.hold_request(), session=session)
            assert error.value.details == {"attempts": 1}
            session.commit()
        assert here.wallets.get_user_balance("ben").available == 7, "the caller's transaction was not doomed"
        assert here.wallets.get_user_balance("ana").version == 1


def near_the_limit(world: World, wallets: WalletService, model_id: str) -> Callable[[], object]:
    """Another user's settlement that leaves room for ten points in the model's wallet."""
    world.credit("ben", MAX_POINTS)
    hold = world.hold("ben", MAX_POINTS - 10)
    settle = world.settle_request(hold.escrow_id, MAX_POINTS - 10, user_id="ben", model_id=model_id)
    return partial(world.send, settle, wallets)


@pytest.mark.parametrize("operation", ["settle", "partial_settle"])
def test_earnings_that_reach_the_limit_between_read_and_write_are_refused_by_name(
    on_postgresql: World, operation: str
) -> None:
    here = on_postgresql
    request = ready(here, operation)
    amount = 30 if operation == "settle" else 20
    with elsewhere(here) as (wallets, _):
        fill = near_the_limit(here, wallets, "luna")
        with meddling(here, "INSERT INTO model_wallets", fill), pytest.raises(BalanceLimitError) as refusal:
            here.send(request)
    assert refusal.value.details == {
        "limit": MAX_POINTS,
        "balance": MAX_POINTS - 10,
        "amount": amount,
        "currency": "points",
    }
    assert here.wallets.get_escrow(request.escrow_id).status == "held"
    assert here.wallets.get_model_balance("luna").version == 1


def test_a_balance_that_reaches_the_limit_between_read_and_write_is_refused_by_name(on_postgresql: World) -> None:
    here = on_postgresql
    with elsewhere(here) as (wallets, _):
        fill = partial(here.send, here.credit_request(amount=MAX_POINTS - 10), wallets)
        with meddling(here, "INSERT INTO user_wallets", fill), pytest.raises(BalanceLimitError) as refusal:
            here.credit(amount=11)
        assert refusal.value.details == {
            "limit": MAX_POINTS,
            "balance": MAX_POINTS - 10,
            "amount": 11,
            "currency": "points",
        }
        assert here.credit(amount=10).new_available_balance == MAX_POINTS


def test_a_limit_reached_inside_the_callers_transaction_is_refused_by_name_and_spares_what_the_caller_wrote(
    on_postgresql: World,
) -> None:
    """A wallet that does not exist yet cannot be locked, so it can still appear after the read."""
    here = on_postgresql
    with elsewhere(here) as (wallets, _), Session(here.database.engine) as session:
        here.send(here.credit_request("ben", 7), session=session)
        fill = partial(here.send, here.credit_request(amount=MAX_POINTS), wallets)
        with meddling(here, "INSERT INTO user_wallets", fill), pytest.raises(BalanceLimitError):
            here.send(here.credit_request(amount=11), session=session)
        session.commit()
    assert here.wallets.get_user_balance("ben").available == 7
    assert here.wallets.get_user_balance("ana").available == MAX_POINTS


def test_on_sqlite_no_writer_gets_between_a_read_and_its_write(sqlite_url: str) -> None:
    with Database(sqlite_url) as database:
        world = World(database)
        impatient = create_engine(sqlite_url, connect_args={"timeout": 0})

        def write() -> None:
            with pytest.raises(OperationalError, match="locked"), impatient.begin() as connection:
                connection.execute(text("UPDATE user_wallets SET version = version + 1"))

        for operation, request in one_of_each(world):
            with meddling(world, FIRST_WRITE[operation], write):
                assert world.send(request).replayed is False, operation
        impatient.dispose()
        recount(database)


@pytest.mark.parametrize("operation", ["settle", "partial_settle"])
def test_rows_are_locked_in_one_order_by_the_first_attempt_and_by_its_retry(
    on_postgresql: World, operation: str
) -> None:
    """The order is escrow item, user, model: the last is the row that most others want."""
    here = on_postgresql
    request = ready(here, operation)
    order = ["escrow_items", "user_wallets", "model_wallets"]
    with failing_once(here, "INSERT INTO ledger_transactions", "40001"), meddling(here, "", int) as statements:
        here.send(request)
    locking = [statement for statement in statements if re.match("UPDATE|INSERT|.*FOR UPDATE", statement, re.DOTALL)]
    touched = [re.search(r"(?:^UPDATE|^INSERT INTO|FOR UPDATE OF) (\w+)", statement) for statement in locking]
    tables = [match[1] for match in touched if match and match[1] in order]
    assert tables == order * 3, "the first attempt's writes, the retry's locks, the retry's writes"


def test_two_callers_in_a_deadlock_are_told_once_and_the_other_goes_on(on_postgresql: World) -> None:
    here = on_postgresql
    barrier = threading.Barrier(2)
    for user in ("ana", "ben"):
        here.credit(user)

    def hold(users: Sequence[str]) -> None:
        with Session(here.database.engine) as session:
            here.send(here.hold_request(users[0]), session=session)
            barrier.wait(timeout=30)
            here.send(here.hold_request(users[1]), session=session)
            session.commit()

    answers = at_once(partial(hold, ("ana", "ben")), partial(hold, ("ben", "ana")))
    (error,) = [answer for answer in answers if answer is not None]
    assert isinstance(error, OptimisticLockError)
    assert [here.wallets.get_user_balance(user).escrow for user in ("ana", "ben")] == [30, 30]


def test_an_operation_in_a_deadlock_with_a_caller_is_retried_and_never_fails(on_postgresql: World) -> None:
    """The caller has locked the model and wants the user; the operation has locked the user and wants the model."""
    here = on_postgresql
    mine, other = ready(here, "settle", "ana"), ready(here, "settle", "ben")
    with elsewhere(here) as (wallets, session):
        here.send(other, wallets, session=session)

        def cross() -> None:
            refund: EscrowRefundRequest = here.refund_request(mine.escrow_id)
            try:
                here.send(refund, wallets, session=session)
            except WalletError as error:
                answers.append(error)
            session.rollback()

        answers: list[WalletError] = []
        assert while_it_waits(here, partial(here.send, mine), cross).settled_amount == 30
    assert all(isinstance(answer, OptimisticLockError) for answer in answers)
    assert here.wallets.get_model_balance("luna").earned == 30
