"""A database all of whose transactions are undone: everything works as for real, and nothing of it stays."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelsAsyncSession

from points_platform import aio
from points_platform.core import (
    Database,
    InsufficientBalanceError,
    InvalidRequestError,
    OptimisticLockError,
    SchemaVersionError,
)
from points_platform.core.database import Retry
from points_platform.core.failures import Stale
from points_platform.core.values import now
from points_platform.ledger import LogEntry, follow
from points_platform.testing import UndoneDatabase, undone
from points_platform.wallets import EscrowHeld, WalletCredited, books
from points_platform.wallets.verify import verify
from support.examples import EXAMPLES
from support.world import World, at_once


class HostBase(DeclarativeBase):
    """The host's own tables."""


class Order(HostBase):
    __tablename__ = "orders"
    order_id: Mapped[str] = mapped_column(String(36), primary_key=True)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    Database(engine)
    HostBase.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def committed(engine: Engine) -> Iterator[World]:
    """What is there before and after: a user with points, an order, a hold."""
    world = World(Database(engine))
    world.credit(amount=1000, idempotency_key="before-1")
    world.hold(idempotency_key="before-2")
    before = world.snapshot()
    with Session(engine) as session:
        session.add(Order(order_id="before"))
        session.commit()
    yield world
    assert world.snapshot() == before, "something has stayed"
    with Session(engine) as session:
        assert session.scalars(text("SELECT order_id FROM orders")).all() == ["before"]


@pytest.fixture
def inside(engine: Engine, committed: World) -> Iterator[World]:
    with undone(engine) as database:
        yield World(database)


def session_of(world: World) -> Session:
    assert isinstance(world.database, UndoneDatabase)
    return world.database.session()


def orders(world: World) -> int:
    with session_of(world) as session:
        return int(session.scalar(text("SELECT count(*) FROM orders")) or 0)


@pytest.mark.parametrize("operation", EXAMPLES)
def test_every_operation_is_carried_out_announced_and_answered_again_from_the_ledger(
    inside: World, operation: str
) -> None:
    request = EXAMPLES[operation](inside)
    inside.events.clear()
    answer, again = inside.send(request), inside.send(request)
    assert (answer.replayed, again.replayed, again) == (False, True, answer)
    assert [event.transaction_id for event in inside.events] == [answer.transaction_id]
    assert inside.ledger.transaction(answer.transaction_id) is not None


def test_what_is_done_with_and_without_a_session_is_seen_by_every_read(inside: World, committed: World) -> None:
    held = inside.hold(amount=100)
    with session_of(inside) as session:
        inside.send(inside.hold_request(amount=200), session=session)
        for joined in (None, session):
            assert inside.wallets.get_user_balance("ana", session=joined).escrow == 330
            assert len(inside.wallets.list_escrows(user_id="ana", session=joined).items) == 3
        session.commit()
    inside.settle(held.escrow_id, amount=100)
    assert inside.wallets.get_model_balance("luna").earned == 100
    assert [book.currency for book in books(inside.database)] == ["points"]
    if not inside.database.is_sqlite:
        assert committed.wallets.get_user_balance("ana").escrow == 30, "nobody else sees it"


def test_events_come_after_the_commit_of_the_hosts_session_and_not_after_its_rollback(inside: World) -> None:
    for ends, expected in (("commit", [EscrowHeld]), ("rollback", [])):
        inside.events.clear()
        with session_of(inside) as session:
            session.add(Order(order_id=f"with {ends}"))
            inside.send(inside.hold_request(amount=1), session=session)
            assert inside.events == []
            getattr(session, ends)()
        assert [type(event) for event in inside.events] == expected
    assert orders(inside) == 2


def test_a_savepoint_that_is_undone_takes_its_event_with_it(inside: World) -> None:
    with session_of(inside) as session:
        kept = inside.send(inside.hold_request(amount=1), session=session)
        with session.begin_nested() as savepoint:
            inside.send(inside.hold_request(amount=2), session=session)
            savepoint.rollback()
        session.commit()
    assert [event.transaction_id for event in inside.events] == [kept.transaction_id]


def test_a_receiver_can_go_on_with_the_wallets(inside: World) -> None:
    def cashback(held: EscrowHeld) -> None:
        inside.credit("ben", 1)
        with session_of(inside) as session:
            session.add(Order(order_id=held.escrow_id))
            inside.send(inside.credit_request("ben", 2), session=session)
            session.commit()

    inside.bus.subscribe(EscrowHeld, cashback)
    with session_of(inside) as session:
        inside.send(inside.hold_request(), session=session)
        session.commit()
    inside.hold()
    assert inside.wallets.get_user_balance("ben").available == 6
    assert orders(inside) == 3
    assert inside.bus.failures == 0


def test_nothing_is_answered_from_memory(inside: World) -> None:
    """What was done while a session of the host's was open is undone with it here."""
    request = inside.credit_request()
    with session_of(inside) as session:
        session.connection()
        assert not inside.send(request).replayed
        session.rollback()
    assert not inside.send(request).replayed


def test_refusals_and_errors_of_the_host_leave_it_usable(inside: World) -> None:
    with pytest.raises(InsufficientBalanceError):
        inside.hold(amount=10_000)
    with session_of(inside) as session:
        inside.send(inside.hold_request(amount=1), session=session)
        session.add(Order(order_id="before"))
        with pytest.raises(Exception, match=r"(?i)unique"):
            session.commit()
    assert inside.wallets.get_user_balance("ana").escrow == 30
    assert inside.events == []


def test_batches_sealing_and_following_work_in_it(inside: World) -> None:
    answers = inside.wallets.hold_many([inside.hold_request(amount=amount) for amount in (1, 10_000, 2)])
    assert [isinstance(answer, InsufficientBalanceError) for answer in answers] == [False, True, False]

    def note(entry: LogEntry, session: Session) -> None:
        session.add(Order(order_id=entry.transaction.transaction_id))

    assert follow(inside.ledger, "notes", note, limit=2) == 4
    assert (orders(inside), inside.ledger.reader("notes").position) == (5, 4)


def test_those_who_await_and_threads_take_turns(inside: World) -> None:
    async def hold() -> None:
        await asyncio.gather(*(aio.call(inside.wallets.hold_in_escrow, inside.hold_request(amount=1)) for _ in "abcd"))

    asyncio.run(hold())
    answers = at_once(*(lambda: inside.credit("ben", 1) for _ in "abcd"))
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert inside.wallets.get_user_balance("ana").escrow == 34
    assert inside.wallets.get_user_balance("ben").available == 4


@pytest.mark.parametrize("kind", [None, SQLModelsAsyncSession])
def test_asynchronous_sessions_are_inside_too(inside: World, kind: type[AsyncSession] | None) -> None:
    assert isinstance(inside.database, UndoneDatabase)
    sessions = inside.database.async_sessions(kind)

    async def order(order_id: str, amount: int) -> None:
        async with sessions.begin() as session:
            assert type(session) is (kind or AsyncSession)
            session.add(Order(order_id=order_id))
            request = inside.hold_request(amount=amount, idempotency_key=order_id)
            await aio.within(session, inside.wallets.hold_in_escrow, request)
            assert inside.events == []

    async def found() -> list[str]:
        async with sessions() as session:
            names = ("before", "kept", "undone")
            return [name for name in names if await session.get(Order, name) is not None]

    asyncio.run(order("kept", 30))
    assert [event.idempotency_key for event in inside.events] == ["kept"]
    inside.events.clear()
    with pytest.raises(InsufficientBalanceError):
        asyncio.run(order("undone", 10**9))
    assert (inside.events, asyncio.run(found()), orders(inside)) == ([], ["before", "kept"], 2)


def test_plain_reads_of_a_connection_are_inside_too(inside: World) -> None:
    inside.credit(amount=7)
    statement = text("SELECT available FROM user_wallets WHERE owner_id = 'user:ana'")
    with inside.database.read() as connection:
        assert connection.scalar(statement) == 977
    with inside.database.snapshot() as connection:
        assert connection.scalar(statement) == 977
    assert not inside.database.schema_state().missing


def test_verifying_needs_rows_that_are_committed_and_says_so(inside: World) -> None:
    inside.credit()
    if inside.database.is_sqlite:
        assert list(verify(inside.database)) == []
        return
    with pytest.raises(InvalidRequestError, match="books"):
        list(verify(inside.database))
    assert inside.wallets.get_user_balance("ana").available == 1070


def test_making_the_schema_at_the_start_of_a_platform_changes_nothing(inside: World) -> None:
    inside.database.create_schema()
    inside.database.close()
    inside.credit()


def test_contention_is_told_as_in_a_callers_session(inside: World) -> None:
    def stale(*given: Any) -> None:
        raise Stale

    with pytest.raises(OptimisticLockError):
        inside.database.run(stale, retry=Retry(attempts=3, backoff=0))
    inside.credit()


def test_a_clock_can_be_given(engine: Engine, committed: World) -> None:
    noon = now() + timedelta(days=400)
    with undone(engine, clock=lambda: noon) as database:
        world = World(database)
        assert world.credit().timestamp == noon
        assert database.now() == noon


def test_a_transaction_that_the_test_has_ended_is_told(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="create_savepoint"), undone(engine) as database:
        database.connection.commit()


def test_an_error_of_the_test_is_not_hidden_by_that(engine: Engine) -> None:
    def fails() -> None:
        with undone(engine) as database:
            database.connection.commit()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()


def test_a_database_without_the_tables_is_refused(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/empty.db")
    with undone(engine) as database:
        for call in (database.create_schema, World(database).credit):
            with pytest.raises(SchemaVersionError):
                call()
    engine.dispose()


def test_it_works_in_a_schema_of_its_own(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url)
    Database(engine, schema="points").create_schema()
    with undone(engine, schema="points") as database:
        world = World(database)
        world.credit()
        with database.session() as session:
            world.send(world.hold_request(), session=session)
            session.commit()
        assert [type(event) for event in world.events] == [WalletCredited, EscrowHeld]
    assert World(Database(engine, schema="points")).wallets.get_user_balances("ana") == []
    engine.dispose()


def test_the_settings_of_the_hosts_statements_stay_as_they_were(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url)
    with undone(engine) as database:
        before = database.connection.scalar(text("SHOW lock_timeout"))
        World(database).credit()
        assert database.connection.scalar(text("SHOW lock_timeout")) == before
    engine.dispose()


def test_a_pool_of_one_connection_is_enough(url: str) -> None:
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with undone(engine) as database:
        world = World(database)
        world.credit()
        assert database.now() is not None
        with database.session() as session:
            world.send(world.hold_request(), session=session)
            session.commit()
        assert (world.wallets.get_user_balance("ana")).escrow == 30
    engine.dispose()
