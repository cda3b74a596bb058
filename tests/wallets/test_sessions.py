"""Operations that join the caller's transaction: one commit for both, or nothing of either."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlmodel
from sqlalchemy import CheckConstraint, Engine, String, create_engine, event, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from points_platform.core import (
    Database,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidAuthorizationError,
    InvalidRequestError,
    OptimisticLockError,
    StorageUnavailableError,
)
from points_platform.wallets import WalletService
from support.answers import announced, ids
from support.recount import recount
from support.statements import once_before
from support.world import World

AnySession = Session | scoped_session[Session]
PAUSE = "points_platform.core.database.time.sleep"

SESSIONS: dict[str, Callable[[Engine], AnySession]] = {
    "Session": Session,
    "sqlmodel": sqlmodel.Session,
    "sessionmaker": lambda engine: sessionmaker(engine, expire_on_commit=False)(),
    "scoped_session": lambda engine: scoped_session(sessionmaker(engine)),
}


class HostBase(DeclarativeBase):
    """The host's own tables, which the module knows nothing of."""


class Order(HostBase):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("length(order_id) > 1"),)
    order_id: Mapped[str] = mapped_column(String(40), primary_key=True)


@pytest.fixture
def shop(world: World) -> World:
    """A world whose host has an orders table on the same engine, and a user with 100 points."""
    HostBase.metadata.create_all(world.database.engine)
    world.credit()
    world.events.clear()
    return world


@pytest.fixture
def postgresql_shop(postgresql_url: str) -> Iterator[World]:
    """The same on PostgreSQL only, where rows are locked and snapshots can be stale."""
    with Database(postgresql_url) as database:
        world = World(database)
        HostBase.metadata.create_all(database.engine)
        world.credit()
        world.events.clear()
        yield world
        recount(database)


def orders(world: World) -> list[str]:
    """The committed orders, as another connection sees them."""
    with world.database.read() as connection:
        return list(connection.scalars(select(Order.order_id).order_by(Order.order_id)))


def nothing() -> None:
    """For those who only want to watch the statements."""


# ── one commit for both ──


@pytest.mark.parametrize("kind", SESSIONS)
def test_order_and_hold_become_visible_together_and_are_announced_after_the_commit(shop: World, kind: str) -> None:
    seen_by_receiver: list[tuple[str, list[str]]] = []
    shop.bus.subscribe(
        "wallet.escrow_held",
        lambda held: seen_by_receiver.append((shop.wallets.get_escrow(held.escrow_id).status, orders(shop))),
    )
    session = SESSIONS[kind](shop.database.engine)
    session.add(Order(order_id="order-1"))
    session.flush()
    held = shop.wallets.hold_in_escrow(shop.hold_request(), session=session)
    assert (held.new_available_balance, held.escrow_balance, held.replayed) == (70, 30, False)
    assert shop.wallets.get_user_balance("ana").available == 100
    assert (orders(shop), shop.events) == ([], [])
    with pytest.raises(EscrowNotFoundError):
        shop.wallets.get_escrow(held.escrow_id)
    session.commit()
    assert (orders(shop), shop.wallets.get_user_balance("ana").available) == (["order-1"], 70)
    assert announced(shop) == [held.transaction_id]
    assert seen_by_receiver == [("held", ["order-1"])], "delivered before the commit was there to be read"
    session.close()
    assert len(shop.events) == 1


@pytest.mark.parametrize("kind", SESSIONS)
def test_nothing_remains_of_a_transaction_that_is_not_committed_and_nothing_is_announced(
    shop: World, kind: str
) -> None:
    before = shop.snapshot()
    request = shop.hold_request()
    for give_up in ("rollback", "close"):
        session = SESSIONS[kind](shop.database.engine)
        session.add(Order(order_id=f"order-{give_up}"))
        shop.wallets.hold_in_escrow(request, session=session)
        getattr(session, give_up)()
        session.commit()
        session.close()
        assert (orders(shop), shop.events, shop.snapshot()) == ([], [], before)
    assert not shop.send(request).replayed, "a transaction that was rolled back has used up the key"


def test_an_exception_in_the_callers_block_takes_the_hold_with_it(shop: World) -> None:
    before = shop.snapshot()

    def order() -> None:
        with sessionmaker(shop.database.engine).begin() as session:
            session.add(Order(order_id="order-1"))
            shop.send(shop.hold_request(), session=session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        order()
    assert (orders(shop), shop.events, shop.snapshot()) == ([], [], before)


def test_all_operations_of_one_session_are_announced_in_their_order(shop: World) -> None:
    with Session(shop.database.engine) as session:
        responses = [shop.send(shop.credit_request(amount=50), session=session)]
        for finish in (shop.settle_request, shop.refund_request, shop.partial_settle_request):
            held = shop.send(shop.hold_request(), session=session)
            responses += [held, shop.send(finish(held.escrow_id), session=session)]
        assert shop.events == []
        session.commit()
    assert announced(shop) == ids(responses)
    assert [event.event_type.removeprefix("wallet.") for event in shop.events] == [
        "credited",
        *("escrow_held", "escrow_settled"),
        *("escrow_held", "escrow_refunded"),
        *("escrow_held", "escrow_partially_settled"),
    ]
    balance = shop.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.version) == (100, 0, 8)
    assert shop.wallets.get_model_balance("luna").earned == 50


def test_a_session_can_be_used_for_one_transaction_after_another(shop: World) -> None:
    with Session(shop.database.engine) as session:
        first = shop.send(shop.hold_request(amount=1), session=session)
        session.commit()
        shop.send(shop.hold_request(amount=2), session=session)
        session.rollback()
        session.commit()
        third = shop.send(shop.hold_request(amount=3), session=session)
        session.commit()
        session.add(Order(order_id="order-1"))
        session.commit()
    assert announced(shop) == ids([first, third])


def test_two_services_in_one_session_announce_their_own_operations_once(shop: World) -> None:
    with Session(shop.database.engine) as session:
        done = [shop.send(shop.hold_request(), service, session=session) for service in (shop.wallets, shop.service())]
        session.commit()
    assert sorted(announced(shop)) == sorted(ids(done))


# ── savepoints ──


def test_a_released_savepoint_announces_nothing_until_the_root_commits(shop: World) -> None:
    with Session(shop.database.engine) as session:
        with session.begin_nested(), session.begin_nested():
            held = shop.send(shop.hold_request(), session=session)
        assert shop.events == []
        session.commit()
    assert announced(shop) == [held.transaction_id]


def test_a_released_savepoint_in_a_root_that_is_rolled_back_leaves_nothing_and_announces_nothing(shop: World) -> None:
    before = shop.snapshot()
    with Session(shop.database.engine) as session:
        session.add(Order(order_id="order-1"))
        with session.begin_nested():
            shop.send(shop.hold_request(), session=session)
        session.rollback()
        session.add(Order(order_id="order-2"))
        session.commit()
    assert (orders(shop), shop.events, shop.snapshot()) == (["order-2"], [], before)


def test_only_what_a_savepoint_did_not_undo_is_announced(shop: World) -> None:
    with Session(shop.database.engine) as session:
        first = shop.send(shop.hold_request(amount=1), session=session)
        undone = session.begin_nested()
        lost = shop.hold_request(amount=2)
        shop.send(lost, session=session)
        undone.rollback()
        last = shop.send(shop.hold_request(amount=3), session=session)
        session.commit()
    assert announced(shop) == ids([first, last])
    assert shop.wallets.get_user_balance("ana").escrow == 4
    again = shop.send(lost)
    assert not again.replayed
    assert announced(shop) == ids([first, last, again])


def test_the_same_request_after_its_savepoint_was_rolled_back_is_carried_out_and_announced_once(shop: World) -> None:
    request = shop.hold_request()
    with Session(shop.database.engine) as session:
        savepoint = session.begin_nested()
        shop.send(request, session=session)
        savepoint.rollback()
        held = shop.send(request, session=session)
        session.commit()
    assert not held.replayed
    assert announced(shop) == [held.transaction_id]


def test_a_root_commit_with_a_savepoint_still_open_announces_everything(shop: World) -> None:
    with Session(shop.database.engine) as session:
        outer = shop.send(shop.hold_request(amount=1), session=session)
        session.begin_nested()
        inner = shop.send(shop.hold_request(amount=2), session=session)
        session.commit()
    assert announced(shop) == ids([outer, inner])


def test_a_session_inside_an_outer_connection_transaction_announces_nothing_that_is_undone(shop: World) -> None:
    before = shop.snapshot()
    with shop.database.engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            shop.send(shop.hold_request(), session=session)
            session.commit()
        outer.rollback()
    assert (shop.events, shop.snapshot()) == ([], before)


# ── the same key again ──


def test_a_key_repeated_before_the_commit_is_answered_from_the_session(shop: World) -> None:
    request = shop.hold_request()
    with Session(shop.database.engine) as session:
        first, second = (shop.send(request, session=session) for _ in range(2))
        with pytest.raises(IdempotencyConflictError) as conflict:
            shop.send(shop.hold_request(amount=31, idempotency_key=request.idempotency_key), session=session)
        session.commit()
    assert (first.replayed, second.replayed, second) == (False, True, first)
    assert conflict.value.details["fields"] == ("amount",)
    assert announced(shop) == [first.transaction_id]
    assert shop.send(request) == first


def test_an_answer_repeated_in_a_session_that_rolls_back_is_not_remembered(shop: World) -> None:
    request = shop.hold_request()
    with Session(shop.database.engine) as session:
        undone = shop.send(request, session=session)
        assert shop.send(request, session=session).replayed
        session.rollback()
    done = shop.send(request)
    assert (done.replayed, done.transaction_id != undone.transaction_id) == (False, True)
    assert shop.wallets.get_user_balance("ana").escrow == 30


# ── an error inside ──


def test_a_refusal_leaves_the_callers_transaction_usable(shop: World) -> None:
    held = shop.hold()
    wrong = shop.refund_request(held.escrow_id)
    with Session(shop.database.engine) as session:
        session.add(Order(order_id="order-1"))
        session.flush()
        before = shop.wallets.get_user_balance("ana")
        with pytest.raises(InsufficientBalanceError):
            shop.send(shop.hold_request(amount=71), session=session)
        with pytest.raises(InvalidAuthorizationError):
            shop.send(wrong, session=session, authorization=shop.authorize(wrong, amount=29))
        with pytest.raises(EscrowNotFoundError):
            shop.send(shop.refund_request("no such item"), session=session)
        session.add(Order(order_id="order-2"))
        done = shop.send(shop.hold_request(amount=70), session=session)
        session.commit()
    assert orders(shop) == ["order-1", "order-2"]
    assert announced(shop) == ids([held, done])
    assert (before.available, shop.wallets.get_user_balance("ana").available) == (70, 0)


def test_the_hosts_invalid_pending_rows_are_the_hosts_error_at_the_hosts_commit(shop: World) -> None:
    before = shop.snapshot()
    with Session(shop.database.engine) as session:
        session.add(Order(order_id="x"))
        assert not shop.send(shop.hold_request(), session=session).replayed
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
    assert (orders(shop), shop.events, shop.snapshot()) == ([], [], before)


def test_a_session_whose_transaction_has_failed_is_a_module_error_until_it_is_rolled_back(shop: World) -> None:
    before = shop.snapshot()

    def fail_to_flush() -> None:
        session.add(Order(order_id="x"))
        session.flush()

    def fail_in_the_database() -> None:
        session.execute(text("INSERT INTO orders VALUES ('x')"))

    # SQLite's transaction stays good after a failed statement that the session knows nothing of.
    failures = [fail_to_flush] if shop.database.is_sqlite else [fail_to_flush, fail_in_the_database]
    with Session(shop.database.engine) as session:
        for fail in failures:
            with pytest.raises(IntegrityError):
                fail()
            with pytest.raises(StorageUnavailableError):
                shop.send(shop.hold_request(), session=session)
            session.rollback()
        assert shop.snapshot() == before
        held = shop.send(shop.hold_request(), session=session)
        session.commit()
    assert announced(shop) == [held.transaction_id]


def test_a_closed_connection_under_the_session_is_a_module_error(postgresql_shop: World) -> None:
    shop = postgresql_shop
    before = shop.snapshot()
    with Session(shop.database.engine) as session:
        session.add(Order(order_id="order-1"))
        session.flush()
        kill(shop, session.scalar(text("SELECT pg_backend_pid()")))
        for _ in range(2):
            with pytest.raises(StorageUnavailableError):
                shop.send(shop.hold_request(), session=session)
        session.rollback()
        assert (orders(shop), shop.snapshot(), shop.events) == ([], before, [])
        shop.send(shop.hold_request(), session=session)
        session.commit()
    assert len(shop.events) == 1


def kill(world: World, pid: int | None) -> None:
    """End a connection at the server, and come back when it has ended."""
    with Database(world.database.engine.url) as other, other.engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})


# ── locks, snapshots, races ──


def locked_rows(world: World, keys: dict[str, dict[str, str]]) -> list[str]:
    """The tables whose row somebody else has locked."""
    locked = []
    for table, key in keys.items():
        condition = " AND ".join(f"{name} = :{name}" for name in key)
        try:
            with world.database.engine.begin() as connection:
                connection.execute(text(f"SELECT 1 FROM {table} WHERE {condition} FOR UPDATE NOWAIT"), key)
        except OperationalError:
            locked.append(table)
    return locked


def test_a_joined_operation_locks_its_rows_before_it_reads_and_leaves_the_commit_to_the_caller(
    postgresql_shop: World,
) -> None:
    shop = postgresql_shop
    shop.settle(shop.hold(amount=1).escrow_id, amount=1)
    held = shop.hold()
    rows = {
        "escrow_items": {"escrow_id": held.escrow_id},
        "user_wallets": {"owner_id": "user:ana"},
        "model_wallets": {"owner_id": "model:luna"},
    }
    while_reading: list[str] = []
    commits: list[object] = []
    engine = shop.database.engine
    with Session(engine) as session:
        mine = session.connection()
        event.listen(mine, "commit", commits.append)
        probe = once_before(
            engine, "LEFT OUTER JOIN ledger_transactions", lambda: while_reading.extend(locked_rows(shop, rows))
        )
        with probe as statements:
            shop.send(shop.settle_request(held.escrow_id), session=session)
        assert while_reading == list(rows)
        assert locked_rows(shop, rows) == list(rows), "a lock was given back before the caller's commit"
        assert commits == []
        session.rollback()
    locks = [
        re.findall(r"FOR UPDATE OF (\w+)", statement)[0] for statement in statements if "FOR UPDATE OF" in statement
    ]
    assert locks == list(rows), "not locked one by one, in the one order"
    assert locked_rows(shop, rows) == []
    assert shop.wallets.get_escrow(held.escrow_id).status == "held"


def test_a_joined_operation_that_cannot_get_its_lock_is_not_tried_again(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(PAUSE, pauses.append)
    with Database(postgresql_url, lock_timeout_ms=1) as database:
        world = World(database)
        HostBase.metadata.create_all(database.engine)
        world.credit()
        with database.engine.begin() as other, Session(database.engine) as session:
            other.execute(text("SELECT 1 FROM user_wallets FOR UPDATE"))
            session.add(Order(order_id="order-1"))
            session.flush()
            with (
                once_before(database.engine, "SAVEPOINT", nothing) as statements,
                pytest.raises(OptimisticLockError) as refused,
            ):
                world.send(world.hold_request(), session=session)
            assert refused.value.details == {"attempts": 1}
            assert sum("FOR UPDATE" in statement for statement in statements) == 1
            session.commit()
        assert (orders(world), pauses, len(world.events)) == (["order-1"], [], 1)


@pytest.mark.parametrize("setting", [None, "SET lock_timeout = '7s'", "SET LOCAL lock_timeout = '7s'"])
def test_the_callers_lock_timeout_is_its_own_again_after_success_and_refusal(
    postgresql_shop: World, setting: str | None
) -> None:
    shop = postgresql_shop
    bounds: list[Any] = []
    with Session(shop.database.engine) as session:
        if setting:
            session.execute(text(setting))
        show = text("SHOW lock_timeout")
        before = session.scalar(show)
        watch = once_before(shop.database.engine, "FOR UPDATE", lambda: bounds.append(session.scalar(show)))
        with watch:
            shop.send(shop.hold_request(), session=session)
        assert session.scalar(show) == before
        with pytest.raises(InsufficientBalanceError):
            shop.send(shop.hold_request(amount=1000), session=session)
        assert session.scalar(show) == before
        session.commit()
        assert session.scalar(show) == ("0" if setting and "LOCAL" in setting else before)
        session.execute(text("RESET lock_timeout"))
        session.commit()
    assert (before, bounds) == ("7s" if setting else "0", ["5s"])


def test_a_twin_that_commits_the_key_in_between_answers_and_the_callers_rows_survive(postgresql_shop: World) -> None:
    shop = postgresql_shop
    request = shop.credit_request("ben", 40)
    twins: list[Any] = []
    with Session(shop.database.engine) as session:
        session.add(Order(order_id="order-1"))
        session.flush()
        # A wallet that does not exist cannot be locked, so the twin is not held up.
        race = once_before(
            shop.database.engine, "INSERT INTO user_wallets", lambda: twins.append(shop.send(request, shop.service()))
        )
        with race:
            answer = shop.send(request, session=session)
        session.commit()
    assert (answer.replayed, [answer]) == (True, twins)
    assert announced(shop) == ids(twins)
    assert orders(shop) == ["order-1"]
    assert shop.wallets.get_user_balance("ben").available == 40


def test_another_request_under_the_key_that_commits_in_between_is_a_conflict(postgresql_shop: World) -> None:
    shop = postgresql_shop
    request = shop.credit_request("ben", 40)
    twin = shop.credit_request("ben", 40, currency="tips", idempotency_key=request.idempotency_key)
    with Session(shop.database.engine) as session:
        session.add(Order(order_id="order-1"))
        session.flush()
        race = once_before(shop.database.engine, "INSERT INTO ledger_transactions", lambda: shop.send(twin))
        with race, pytest.raises(IdempotencyConflictError) as conflict:
            shop.send(request, session=session)
        session.commit()
    assert conflict.value.details["fields"] == ("currency",)
    assert (orders(shop), len(shop.events)) == (["order-1"], 1)
    assert shop.wallets.get_user_balance("ben").version == 0


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("currency", ["points", "tips"])
def test_a_race_that_an_old_snapshot_cannot_resolve_asks_the_caller_to_start_over(
    postgresql_shop: World, isolation: str, currency: str
) -> None:
    shop = postgresql_shop
    request = shop.credit_request("ben", 40, currency=currency)
    twin = shop.credit_request("ben", 40, idempotency_key=request.idempotency_key)
    with Session(shop.database.engine) as session:
        session.connection(execution_options={"isolation_level": isolation})
        session.add(Order(order_id="order-1"))
        session.flush()
        shop.send(twin, shop.service())
        with pytest.raises(OptimisticLockError):
            shop.send(request, session=session)
        session.commit()
    assert (orders(shop), len(shop.events)) == (["order-1"], 1)
    with Session(shop.database.engine) as session:
        session.connection(execution_options={"isolation_level": isolation})
        if currency == "points":
            assert shop.send(request, shop.service(), session=session).replayed
        else:
            with pytest.raises(IdempotencyConflictError):
                shop.send(request, shop.service(), session=session)
        session.commit()
    assert shop.wallets.get_user_balance("ben").available == 40


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_wallet_that_changed_since_the_callers_snapshot_is_never_insufficient_balance(
    postgresql_shop: World, isolation: str
) -> None:
    shop = postgresql_shop
    with Session(shop.database.engine) as session:
        session.connection(execution_options={"isolation_level": isolation})
        session.add(Order(order_id="order-1"))
        session.flush()
        shop.hold(amount=90)
        with pytest.raises(OptimisticLockError):
            shop.send(shop.hold_request(amount=90), session=session)
        session.commit()
    with Session(shop.database.engine) as session:
        session.connection(execution_options={"isolation_level": isolation})
        held = shop.send(shop.hold_request(amount=10), session=session)
        session.commit()
    assert (orders(shop), held.new_available_balance, len(shop.events)) == (["order-1"], 0, 2)


def test_a_joined_operation_on_a_busy_sqlite_file_is_contention_and_the_session_can_start_over(
    sqlite_url: str,
) -> None:
    with Database(sqlite_url) as database:
        event.listen(database.engine, "connect", lambda connection, record: connection.execute("PRAGMA busy_timeout=1"))
        world = World(database)
        HostBase.metadata.create_all(database.engine)
        world.credit()
        with Session(database.engine) as session:
            with database.engine.begin(), pytest.raises(OptimisticLockError):
                world.send(world.hold_request(), session=session)
            session.rollback()
            session.add(Order(order_id="order-1"))
            world.send(world.hold_request(), session=session)
            session.commit()
        assert (orders(world), len(world.events)) == (["order-1"], 2)
        recount(database)


def test_a_full_disk_inside_keeps_the_callers_rows_or_fails_the_callers_commit(sqlite_url: str) -> None:
    with Database(sqlite_url) as database:
        world = World(database)
        HostBase.metadata.create_all(database.engine)
        world.credit()
        before = world.snapshot()
        database.engine.dispose()
        event.listen(database.engine, "connect", stop_growing)
        with Session(database.engine) as session:
            session.add(Order(order_id="order-1"))
            session.flush()
            with pytest.raises(StorageUnavailableError):
                world.send(world.hold_request(metadata={"note": "x" * 16_000}), session=session)
            session.add(Order(order_id="order-2"))
            with suppress(SQLAlchemyError):
                session.commit()
        assert orders(world) in (["order-1", "order-2"], []), "half of the caller's transaction was committed"
        assert (world.snapshot(), len(world.events)) == (before, 1)


def stop_growing(connection: Any, record: object) -> None:
    """The file may not grow any more: a full disk, as SQLite sees it."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_rollback_undoes_the_operation_whatever_engine_the_session_is_bound_to(shop: World) -> None:
    before = shop.snapshot()
    foreign = create_engine(shop.database.engine.url)
    try:
        with Session(foreign) as session:
            with suppress(InvalidRequestError):
                shop.send(shop.hold_request(), session=session)
            session.rollback()
    finally:
        foreign.dispose()
    assert (shop.snapshot(), shop.events) == (before, []), "the operation committed by itself"


# ── the delivery after the commit ──


@pytest.fixture
def narrow(url: str) -> Iterator[World]:
    """A world on a host's engine with a single connection; whoever wants a second one waits in vain."""
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.5)
    HostBase.metadata.create_all(engine)
    engine.dispose()
    with Database(engine) as database:
        yield World(database)
    engine.dispose()


def test_a_pool_of_one_connection_serves_session_delivery_and_receivers(narrow: World) -> None:
    narrow.credit()
    balances: list[int] = []
    narrow.bus.subscribe(
        "wallet.escrow_held", lambda held: balances.append(narrow.wallets.get_user_balance(held.user_id).escrow)
    )
    with Session(narrow.database.engine) as session:
        for number in (1, 2):
            session.add(Order(order_id=f"order-{number}"))
            narrow.send(narrow.hold_request(), session=session)
            session.commit()
    narrow.hold()
    assert balances == [30, 60, 90]
    assert len(narrow.events) == 4


def test_the_very_first_operation_may_be_a_joined_one_on_a_pool_of_one_connection(narrow: World) -> None:
    with Session(narrow.database.engine) as session:
        session.add(Order(order_id="order-1"))
        session.flush()
        narrow.send(narrow.credit_request(), session=session)
        session.commit()
    assert (orders(narrow), len(narrow.events)) == (["order-1"], 1)


def test_a_delivery_that_fails_is_logged_and_the_callers_commit_stands(
    shop: World, caplog: pytest.LogCaptureFixture
) -> None:
    host = create_engine(shop.database.engine.url)

    def rename(table: str, to: str) -> None:
        with host.begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} RENAME TO {to}"))

    with Session(shop.database.engine) as session:
        session.add(Order(order_id="order-1"))
        held = shop.send(shop.hold_request(), session=session)
        event.listen(session, "after_commit", lambda _: rename("ledger_entries", "elsewhere"), once=True)
        with caplog.at_level(logging.WARNING):
            session.commit()
        rename("elsewhere", "ledger_entries")
        (record,) = [record for record in caplog.records if record.name.startswith("points_platform")]
        assert (record.levelname, vars(record)["points_platform"]["event_ids"]) == ("WARNING", [held.transaction_id])
        assert (record.getMessage(), bool(record.exc_info)) == ("no events for committed transactions", True)
        assert (orders(shop), shop.events) == (["order-1"], [])
        second = shop.send(shop.hold_request(), session=session)
        session.commit()
    host.dispose()
    assert announced(shop) == [second.transaction_id]
    assert shop.wallets.get_escrow(held.escrow_id).status == "held"


def test_receivers_and_buses_that_fail_cannot_hurt_the_callers_commit(shop: World) -> None:
    class BrokenBus:
        def publish(self, event: object) -> None:
            raise RuntimeError("no bus")

    shop.bus.subscribe("wallet.escrow_held", lambda held: 1 / 0)
    broken = WalletService(shop.ledger, authorizer=shop.authorizer, events=BrokenBus())  # type: ignore[arg-type]
    with Session(shop.database.engine) as session:
        for service in (shop.wallets, broken):
            shop.send(shop.hold_request(), service, session=session)
        session.add(Order(order_id="order-1"))
        session.commit()
    assert (orders(shop), len(shop.events), shop.bus.failures) == (["order-1"], 1, 1)
    assert shop.wallets.get_user_balance("ana").escrow == 60
