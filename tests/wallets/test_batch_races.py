"""Batches that meet other batches and single calls, and a database that fails them: nothing is lost or done twice."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from points_platform.core import Database, OptimisticLockError, StorageUnavailableError, WalletError
from points_platform.wallets import WalletConfig, WalletService
from support.answers import announced, codes, ids
from support.connections import end_connection
from support.recount import recount
from support.statements import before_each
from support.world import World, at_once

AS_DELIVERED = WalletConfig()
USERS = [f"user-{n}" for n in range(12)]
RETRIES = "points_platform.core.database"
BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


@pytest.fixture(params=["sqlite", "postgresql"])
def patient(request: pytest.FixtureRequest) -> Iterator[World]:
    """A platform as it is delivered, whose operations wait for a row lock as long as it takes."""
    with Database(request.getfixturevalue(f"{request.param}_url"), lock_timeout_ms=60_000) as database:
        world = World(database, config=AS_DELIVERED)
        world.wallets.get_user_balance("nobody")  # the first read also checks the schema
        yield world
        recount(database)


@pytest.fixture
def server(postgresql_url: str) -> Iterator[World]:
    with Database(postgresql_url) as database:
        yield World(database)
        recount(database)


def pairs(world: World, requests: list[Any]) -> list[Any]:
    return [(request, world.authorize(request)) for request in requests]


def held_by(world: World, users: list[str], each: int = 1) -> list[Any]:
    """Holds of 30 points, with their requests."""
    world.wallets.credit_many([world.credit_request(user, 30 * each) for user in users])
    requests = [world.hold_request(user) for user in users * each]
    held: list[Any] = world.wallets.hold_many(requests)
    return [(request.user_id, answer.escrow_id) for request, answer in zip(requests, held, strict=True)]


def one_after_the_other(world: World, requests: list[Any]) -> list[Any]:
    return [world.send(request) for request in requests]


# ── at once ──


def test_batches_and_calls_in_opposite_orders_all_succeed_and_never_conflict(
    patient: World, caplog: pytest.LogCaptureFixture
) -> None:
    """They lock in one order, whatever the order of their items, so nobody even has to try again."""
    world = patient
    holds = held_by(world, USERS, each=6)
    models = [f"model-{n}" for n in range(5)]
    for model in models:
        world.settle(a_hold(world), user_id="first", model_id=model)
    settle = [
        world.settle_request(escrow_id, user_id=user, model_id=models[n % 5])
        for n, (user, escrow_id) in enumerate(holds)
    ]
    refund = [world.refund_request(escrow_id, user_id=user) for user, escrow_id in holds[48:]]
    credits_ = [[world.credit_request(user, 5) for user in users] for users in (USERS, USERS[::-1], USERS[::-1])]
    caplog.set_level(logging.DEBUG, logger=RETRIES)
    answers = at_once(
        partial(world.wallets.settle_many, pairs(world, settle[:24])),
        partial(world.wallets.settle_many, pairs(world, settle[24:40][::-1])),
        partial(one_after_the_other, world, settle[40:48][::-1]),
        partial(world.wallets.refund_many, pairs(world, refund[::-1])),
        partial(world.wallets.credit_many, credits_[0]),
        partial(world.wallets.credit_many, credits_[1]),
        partial(one_after_the_other, world, credits_[2]),
    )
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert {code for each in answers for code in codes(each)} == {"done"}
    assert [record.getMessage() for record in caplog.records if record.name == RETRIES] == []
    assert sum(world.wallets.get_model_balance(model).earned for model in models) == 30 * (48 + 5)
    balances = [world.wallets.get_user_balance(user) for user in USERS]
    assert [(balance.available, balance.escrow) for balance in balances] == [(30 * 2 + 15, 0)] * len(USERS)


def a_hold(world: World) -> str:
    world.credit("first", 30)
    return world.hold("first").escrow_id


def test_batches_that_make_the_same_wallets_in_opposite_orders_all_arrive(patient: World) -> None:
    orders = [USERS, USERS[::-1], USERS[6:] + USERS[:6]]
    calls = [partial(patient.wallets.credit_many, [patient.credit_request(user, 7) for user in o]) for o in orders]
    singles = [patient.credit_request(user, 7) for user in USERS[::-1]]
    answers = at_once(*calls, partial(one_after_the_other, patient, singles))
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert {code for each in answers for code in codes(each)} == {"done"}
    balances = [patient.wallets.get_user_balance(user) for user in USERS]
    assert [(balance.available, balance.version) for balance in balances] == [(28, 4)] * len(USERS)


def test_a_balance_for_seven_gives_seven_to_batches_and_calls_together(patient: World) -> None:
    world = patient
    world.credit(amount=75)
    batches = [[world.hold_request(amount=10) for _ in range(4)] for _ in range(4)]
    single = [partial(world.send, world.hold_request(amount=10)) for _ in range(4)]
    answers = at_once(*(partial(world.wallets.hold_many, requests) for requests in batches), *single)
    flat: list[Any] = [each for answer in answers for each in (answer if isinstance(answer, list) else [answer])]
    assert Counter(codes(flat)) == {"done": 7, "insufficient_balance": 13}
    assert all(
        each.details == {"required": 10, "available": 5, "currency": "points"}
        for each in flat
        if isinstance(each, WalletError)
    )
    assert sorted(each.escrow_balance for each in flat if not isinstance(each, WalletError)) == list(range(10, 71, 10))
    assert len(world.events) == 1 + 7


@pytest.mark.parametrize("operation", ["credit", "hold", "settle", "refund"])
@pytest.mark.parametrize("atomic", [False, True])
def test_twins_of_a_batch_at_the_same_time_have_one_effect(patient: World, operation: str, atomic: bool) -> None:
    world = patient
    if operation == "credit":
        items: list[Any] = [world.credit_request(user) for user in USERS]  # none of them has a wallet yet
    elif operation == "hold":
        world.wallets.credit_many([world.credit_request(user) for user in USERS])
        items = [world.hold_request(user) for user in USERS]
    else:
        make = getattr(world, f"{operation}_request")
        items = pairs(world, [make(escrow_id, user_id=user) for user, escrow_id in held_by(world, USERS)])
    world.events.clear()
    before = len(world.snapshot()["ledger_transactions"])
    twins = [partial(getattr(world.service(), f"{operation}_many"), items, atomic=atomic) for _ in range(4)]
    answers: list[Any] = at_once(*twins)
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert all(answer == answers[0] for answer in answers)
    assert Counter(each.replayed for answer in answers for each in answer) == {False: 12, True: 36}
    assert len(world.snapshot()["ledger_transactions"]) == before + 12
    assert sorted(announced(world)) == sorted(ids(answers[0]))


def test_settling_against_refunding_in_opposite_orders_ends_each_hold_once(patient: World) -> None:
    world = patient
    holds = held_by(world, USERS)
    settle = pairs(world, [world.settle_request(escrow_id, user_id=user) for user, escrow_id in holds])
    refund = pairs(world, [world.refund_request(escrow_id, user_id=user) for user, escrow_id in holds[::-1]])
    settled, refunded, *_ = at_once(
        partial(world.wallets.settle_many, settle), partial(world.wallets.refund_many, refund)
    )
    # Whoever locks the items first gets them all.
    assert sorted([codes(settled), codes(refunded)]) == [["done"] * 12, ["escrow_already_processed"] * 12]
    assert world.wallets.get_model_balance("luna").earned == 360 * (codes(settled)[0] == "done")


def test_one_key_in_two_batches_with_different_requests_serves_one_of_them(patient: World) -> None:
    patient.wallets.credit_many([patient.credit_request(user) for user in USERS])
    first = [patient.hold_request(user, amount=10) for user in USERS]
    other = [replace(request, amount=11) for request in reversed(first)]
    answers = at_once(*(partial(patient.wallets.hold_many, requests) for requests in (first, other)))
    assert sorted(map(codes, answers)) == [["done"] * 12, ["idempotency_conflict"] * 12]


# ── a database that is in the way ──


@pytest.mark.parametrize(
    ("table", "key"), [("escrow_items", "escrow_id"), ("user_wallets", "owner_id"), ("model_wallets", "owner_id")]
)
def test_a_batch_that_waits_for_the_first_row_of_a_table_has_locked_no_other_one(
    postgresql_url: str, table: str, key: str
) -> None:
    """Whoever locks in another order than this, whatever the order of the items, can meet it in a deadlock."""
    with Database(postgresql_url, lock_timeout_ms=60_000) as database, ThreadPoolExecutor(1) as threads:
        world = World(database)
        users = [f"user-{n:02}" for n in range(6)]
        for user, escrow_id in held_by(world, users):
            world.settle(escrow_id, user_id=user, model_id=f"of-{user}")
        items = [
            (escrow_id, {"user_id": user, "model_id": f"of-{user}"})
            for user, escrow_id in reversed(held_by(world, users))
        ]
        settle = pairs(world, [world.settle_request(escrow_id, **options) for escrow_id, options in items])
        with database.engine.connect() as other, database.engine.connect() as third:
            held = f"SELECT {key} FROM {table} {'WHERE status = :held ' * (key == 'escrow_id')}ORDER BY {key}"
            first = other.execute(text(f"{held} LIMIT 1 FOR UPDATE"), {"held": "held"}).scalar_one()
            answers = threads.submit(world.wallets.settle_many, settle)
            wait_for_a_lock(database, answers)
            free = text(f"SELECT {key} FROM {table} WHERE {key} <> :first FOR UPDATE NOWAIT")
            try:
                assert len(third.execute(free, {"first": first}).all()) >= 5
            finally:
                third.rollback()
                other.rollback()
        assert codes(answers.result()) == ["done"] * 6
        recount(database)


def wait_for_a_lock(database: Database, answer: "Future[Any]") -> None:
    deadline = time.monotonic() + 30
    with database.engine.connect() as observer:
        observer.execution_options(isolation_level="AUTOCOMMIT")
        while not observer.scalar(BLOCKED):
            assert not answer.done(), f"it did not wait: {answer.exception() or answer.result()}"
            assert time.monotonic() < deadline, "it never waited"


def test_wallets_that_appear_while_a_batch_is_about_to_make_them_are_credited_too(server: World) -> None:
    with Database(server.database.engine.url) as elsewhere:
        other = World(elsewhere)

        def be_faster(user: str, _: Connection) -> None:
            other.credit(user, 1, idempotency_key="other")

        with before_each(
            server.database.engine, "INSERT INTO user_wallets", *(partial(be_faster, user) for user in USERS[:3])
        ):
            answers = server.wallets.credit_many([server.credit_request(user, 5) for user in USERS[:5]])
    assert [answer.new_available_balance for answer in answers if not isinstance(answer, WalletError)] == [
        6,
        6,
        6,
        5,
        5,
    ]
    assert announced(server) == ids(answers)


def test_a_batch_of_one_decides_anew_when_somebody_was_faster(server: World) -> None:
    """One item is read without a lock, like a single call."""
    server.credit(amount=100)
    with Database(server.database.engine.url) as elsewhere:
        other = World(elsewhere)
        faster = before_each(
            server.database.engine, "INSERT INTO escrow_items", lambda _: other.hold(amount=80, idempotency_key="other")
        )
        with faster:
            answers = server.wallets.hold_many([server.hold_request(amount=30)])
    assert [answer.details for answer in answers if isinstance(answer, WalletError)] == [
        {"required": 30, "available": 20, "currency": "points"}
    ]


def test_a_row_that_stays_locked_is_contention_for_the_whole_batch(postgresql_url: str) -> None:
    with Database(postgresql_url, lock_timeout_ms=1) as database:
        world = World(database, config=WalletConfig(retry_backoff_ms=0))
        world.wallets.credit_many([world.credit_request(user) for user in USERS])
        world.events.clear()
        before = world.snapshot()
        requests = [world.hold_request(user, 1000 if n else 1) for n, user in enumerate(USERS)]
        with database.engine.begin() as other:
            other.execute(text("SELECT 1 FROM user_wallets WHERE owner_id = 'user:user-5' FOR UPDATE"))
            for atomic in (False, True):
                with pytest.raises(OptimisticLockError) as failure:
                    world.wallets.hold_many(requests, atomic=atomic)
                assert failure.value.details == {"attempts": 4}
        assert (world.snapshot(), world.events) == (before, [])
        assert codes(world.wallets.hold_many(requests)) == ["done"] + ["insufficient_balance"] * 11
        recount(database)


# ── lost connections ──


def end_this(world: World, connection: Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    end_connection(world.database.engine.url, driver.info.backend_pid)


@contextmanager
def lost_at_first_commit(world: World, *, after: bool) -> Iterator[None]:
    """The first transaction is committed, or not, and the client does not hear which."""
    left = [True]

    def lose(connection: Connection) -> None:
        if left:
            left.pop()
            if after:
                mine: Any = connection.connection.dbapi_connection
                mine.commit()
                mine.execute("SELECT 1")  # a transaction that is open, or psycopg would not speak at COMMIT
            end_this(world, connection)

    event.listen(world.database.engine, "commit", lose)
    try:
        yield
        assert not left, "nothing was committed"
    finally:
        event.remove(world.database.engine, "commit", lose)


def batches(world: World) -> list[tuple[str, list[Any]]]:
    """One of each kind, with a repetition in it, and one item that is refused for the first item's sake."""
    holds = held_by(world, USERS[:6])
    settle = [world.settle_request(escrow_id, user_id=user) for user, escrow_id in holds[:3]]
    refund = [world.refund_request(escrow_id, user_id=user) for user, escrow_id in holds[3:]]
    world.credit("spender", 50)
    hold = [world.hold_request("spender", amount) for amount in (30, 10, 11)]
    credits_ = [world.credit_request(user, 2**53 - 10) for user in ("rich", "new", "rich")]
    return [
        ("credit_many", [*credits_, credits_[0]]),
        ("hold_many", [*hold, hold[0]]),
        ("settle_many", pairs(world, [*settle, replace(settle[0], idempotency_key="again"), settle[0]])),
        ("refund_many", pairs(world, [*refund, replace(refund[0], idempotency_key="again"), refund[0]])),
    ]


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_lost_at_the_commit_leads_to_one_effect_and_the_first_answers(server: World, after: bool) -> None:
    for name, items in batches(server):
        server.events.clear()
        with lost_at_first_commit(server, after=after):
            answers = getattr(server.wallets, name)(items)
        refused = [answer for answer in answers if isinstance(answer, WalletError)]
        done = [answer for answer in answers if answer not in refused]
        assert len(refused) == 1
        assert [answer.replayed for answer in done] == [False] * (len(done) - 1) + [True]
        assert done[-1] == done[0]
        assert announced(server) == ids(done[:-1])
        again = getattr(server.service(), name)(items)
        assert [answer for answer in again if not isinstance(answer, WalletError)] == done


@pytest.mark.parametrize("after", [False, True])
def test_the_refusals_too_are_those_of_the_attempt_that_was_committed(server: World, after: bool) -> None:
    """A refused item frees its key for a later one, which the next attempt finds used, by another request."""
    server.credit(amount=50)
    refused = server.hold_request(amount=51)
    with lost_at_first_commit(server, after=after):
        first, second = server.wallets.hold_many([refused, replace(refused, amount=50)])
    assert (codes([first, second]), getattr(second, "replayed", None)) == (["insufficient_balance", "done"], False)
    assert isinstance(first, WalletError)
    assert first.details == {"required": 51, "available": 50, "currency": "points"}


def test_what_an_attempt_decided_is_no_answer_where_another_has_used_a_key_since_it_was_lost(server: World) -> None:
    requests = [server.credit_request(user) for user in USERS[:2]]
    theirs: list[Any] = []
    with lost_at_first_commit(server, after=False), Database(server.database.engine.url) as database:
        elsewhere = World(database)

        def overtake(connection: Connection) -> None:
            theirs.append(elsewhere.send(requests[0]))

        event.listen(server.database.engine, "commit", overtake, once=True)
        first, second = server.wallets.credit_many(requests)
    assert not isinstance(first, WalletError)
    assert not isinstance(second, WalletError)
    assert (first, first.replayed, second.replayed) == (theirs[0], True, False)
    assert server.ledger.transaction(second.transaction_id) is not None
    assert announced(server) == [second.transaction_id]


@pytest.mark.parametrize("after", [False, True])
def test_atomic_a_connection_lost_at_the_commit_leads_to_one_effect(server: World, after: bool) -> None:
    requests = [server.credit_request(user) for user in USERS]
    with lost_at_first_commit(server, after=after):
        answers = server.wallets.credit_many(requests, atomic=True)
    assert [answer.replayed for answer in answers if not isinstance(answer, WalletError)] == [False] * 12
    assert announced(server) == ids(answers)


def test_a_commit_of_unknown_outcome_is_answered_by_the_same_batch_again(server: World) -> None:
    requests = [server.credit_request(user) for user in USERS]
    impatient: WalletService = server.service(config=replace(server.config, max_retry_attempts=0))
    with lost_at_first_commit(server, after=True), pytest.raises(StorageUnavailableError):
        impatient.credit_many(requests)
    assert server.events == []
    again = impatient.credit_many(requests)
    assert [answer.replayed for answer in again if not isinstance(answer, WalletError)] == [True] * 12


def test_a_connection_that_dies_in_the_middle_of_a_batch_leaves_nothing_of_the_first_attempt(server: World) -> None:
    server.wallets.credit_many([server.credit_request(user) for user in USERS])
    for fragment in ("INSERT INTO escrow_items", "UPDATE user_wallets", "INSERT INTO ledger_entries"):
        server.events.clear()
        with before_each(server.database.engine, fragment, partial(end_this, server)):
            answers = server.wallets.hold_many([server.hold_request(user, 1) for user in USERS])
        assert (codes(answers), announced(server)) == (["done"] * 12, ids(answers))
    assert [server.wallets.get_user_balance(user).escrow for user in USERS] == [3] * 12
