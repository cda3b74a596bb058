"""For those who await: any method in a thread or in an AsyncSession, and a loop that goes on whatever is held up."""

import asyncio
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from points_platform import aio
from points_platform.core import (
    Database,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidRequestError,
    OptimisticLockError,
    StorageUnavailableError,
)
from points_platform.core.threads import UNBOUNDED, connections_of
from points_platform.events import WalletEvent
from points_platform.wallets import EscrowHeld
from support.connections import administrator, end_connection
from support.recount import recount
from support.world import World

T = TypeVar("T")
TICKS = 200
DRIVERS = ["psycopg", "asyncpg"]
both_drivers = pytest.mark.parametrize("driver", DRIVERS)


def run(main: Awaitable[T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(main, 60)

    return asyncio.run(bounded())


async def tick() -> None:
    """The loop goes round, often."""
    for _ in range(TICKS):
        await asyncio.sleep(0)


async def until(call: Callable[[], bool]) -> None:
    while not call():
        await asyncio.sleep(0)


@asynccontextmanager
async def opened(world: World, driver: str) -> AsyncIterator[AsyncSession]:
    """A session of an asynchronous engine on the same database."""
    url = make_url(world.database.engine.url).set(drivername=f"postgresql+{driver}")
    engine = create_async_engine(url)
    try:
        async with AsyncSession(engine) as session:
            yield session
    finally:
        await engine.dispose()


@pytest.fixture
def shop(postgresql_url: str) -> Iterator[World]:
    """A platform on PostgreSQL, and ana with 100 points."""
    with Database(postgresql_url) as database:
        world = World(database)
        world.credit()
        world.events.clear()
        yield world
        recount(database)


@pytest.fixture
def narrow(postgresql_url: str) -> Iterator[World]:
    """The same with a pool of a single connection."""
    engine = create_engine(postgresql_url, pool_size=1, max_overflow=0, pool_timeout=5)
    world = World(Database(engine))
    world.credit()
    world.events.clear()
    yield world
    recount(world.database)
    engine.dispose()


def watched(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> threading.Event:
    """Set as soon as somebody calls that method."""
    method, entered = getattr(owner, name), threading.Event()

    def enter(*args: Any, **options: Any) -> Any:
        entered.set()
        return method(*args, **options)

    monkeypatch.setattr(owner, name, enter)
    return entered


# ── call ──


def test_a_call_answers_and_raises_what_the_method_does(world: World) -> None:
    async def main() -> None:
        credit = world.credit_request()
        credited = await aio.call(world.wallets.credit_user, credit)
        assert (credited.new_available_balance, credited.replayed) == (100, False)
        assert (await aio.call(world.wallets.credit_user, credit)).replayed
        with pytest.raises(InsufficientBalanceError):
            await aio.call(world.wallets.hold_in_escrow, world.hold_request(amount=101))
        held = await aio.call(world.wallets.hold_many, [world.hold_request()], atomic=True)
        assert len(held) == 1
        assert (await aio.call(world.wallets.get_user_balance, "ana")).escrow == 30
        page = await aio.call(world.ledger.entries, "user:ana", "points", limit=2)
        assert len(page.items) == 2
        assert (await aio.call(world.ledger.seal)).appended == 2
        assert await aio.call(world.ledger.reader("mails").read)
        assert await aio.call(len, "what is none of ours") == 20

    run(main())


def test_the_context_of_the_caller_is_that_of_the_call(world: World) -> None:
    current: ContextVar[str] = ContextVar("request")
    seen: list[str] = []
    world.bus.subscribe(WalletEvent, lambda event: seen.append(current.get()))

    async def main() -> None:
        current.set("request-7")
        await aio.call(world.wallets.credit_user, world.credit_request())

    run(main())
    assert seen == ["request-7"]


def test_the_loop_goes_on_while_every_connection_is_taken(narrow: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = watched(monkeypatch, narrow.database, "ask")

    async def main() -> None:
        with narrow.database.engine.connect():
            waiting = asyncio.create_task(aio.call(narrow.wallets.get_user_balance, "ana"))
            await until(asked.is_set)
            await tick()
            assert not waiting.done()
        assert (await waiting).available == 100

    run(main())


class Probe:
    """A service whose one method stays in its thread until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.database = Database(engine)
        self.inside = threading.Semaphore(0)
        self.gate = threading.Event()
        self.begun: list[int] = []

    def stay(self, number: int) -> int:
        self.begun.append(number)
        self.inside.release()
        assert self.gate.wait(timeout=60)
        return number


def test_no_more_calls_run_at_once_than_there_are_connections(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url, pool_size=2, max_overflow=1)
    probe = Probe(engine)

    async def main() -> None:
        calls = [asyncio.create_task(aio.call(probe.stay, number)) for number in range(7)]
        await until(lambda: len(probe.begun) == 3)
        await tick()
        assert probe.begun == [0, 1, 2]
        probe.gate.set()
        assert await asyncio.gather(*calls) == [*range(7)]

    run(main())


def test_a_call_that_is_cancelled_keeps_its_place_until_it_has_ended(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url, pool_size=1, max_overflow=0)
    probe = Probe(engine)

    async def main() -> None:
        first, never = (asyncio.create_task(aio.call(probe.stay, number)) for number in (1, 2))
        await until(lambda: probe.begun == [1])
        for each in (first, never):
            each.cancel()
        await asyncio.wait([first, never])
        third = asyncio.create_task(aio.call(probe.stay, 3))
        await tick()
        assert probe.begun == [1], "its connection is not free yet"
        probe.gate.set()
        assert await third == 3
        assert probe.begun == [1, 3], "what had not begun is not begun any more"

    run(main())


def test_the_bound_is_that_of_the_pool_where_it_has_one(postgresql_url: str) -> None:
    bounds: list[tuple[dict[str, Any], int]] = [
        ({"pool_size": 3, "max_overflow": 4}, 7),
        ({"pool_size": 3, "max_overflow": -1}, UNBOUNDED),
        ({"pool_size": 0}, UNBOUNDED),
        ({"poolclass": NullPool}, UNBOUNDED),
        ({"poolclass": StaticPool}, UNBOUNDED),
    ]
    for options, bound in bounds:
        assert connections_of(create_engine(postgresql_url, **options)) == bound


@pytest.mark.parametrize("method", [None, "text", aio.call])
def test_what_cannot_be_called_in_a_thread_is_refused(method: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        run(aio.call(method))
    assert refused.value.details["field"] == "method"


def test_a_forked_worker_has_threads_of_its_own(world: World) -> None:
    run(aio.call(world.wallets.credit_user, world.credit_request()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(aio.call(world.wallets.hold_in_escrow, world.hold_request()))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(aio.call(world.wallets.get_user_balance, "ana")).escrow == 30


# ── within ──


@both_drivers
def test_the_hosts_rows_and_a_hold_commit_together_and_are_announced_on_the_loop(shop: World, driver: str) -> None:
    async def main() -> None:
        arrived: asyncio.Queue[WalletEvent] = asyncio.Queue()
        shop.bus.subscribe(EscrowHeld, aio.on_loop(arrived.put_nowait))
        async with opened(shop, driver) as session:
            await session.execute(text("CREATE TABLE orders (id TEXT)"))
            await session.execute(text("INSERT INTO orders VALUES ('order-1')"))
            held = await aio.within(session, shop.wallets.hold_in_escrow, shop.hold_request())
            assert (await aio.within(session, shop.wallets.get_user_balance, "ana")).escrow == 30
            assert (await aio.call(shop.wallets.get_user_balance, "ana")).escrow == 0
            item = await aio.within(session, shop.wallets.get_escrow, held.escrow_id, user_id="ana")
            assert item.amount == 30
            await session.commit()
            assert (await arrived.get()).event_id == held.transaction_id
            assert (await aio.call(shop.wallets.get_user_balance, "ana")).escrow == 30
            assert (await session.execute(text("SELECT count(*) FROM orders"))).scalar() == 1

    run(main())


@both_drivers
def test_every_kind_of_operation_goes_in_an_asynchronous_session(shop: World, driver: str) -> None:
    async def main() -> None:
        async with opened(shop, driver) as session:
            responses = await aio.within(session, shop.wallets.credit_many, [shop.credit_request("ben") for _ in "123"])
            assert len(responses) == 3
            for finish in (shop.settle_request, shop.refund_request, shop.partial_settle_request):
                held = await aio.within(session, shop.wallets.hold_in_escrow, shop.hold_request())
                done = finish(held.escrow_id)
                await session.run_sync(lambda joined: shop.send(done, session=joined))  # noqa: B023
            for request in (shop.spend_request(amount=1), shop.transfer_request(amount=1), shop.deposit_request()):
                await session.run_sync(lambda joined: shop.send(request, session=joined))  # noqa: B023
            await aio.within(session, shop.ledger.reader("mails").move, 0, seen=0)
            await session.commit()

    run(main())


@both_drivers
def test_nothing_remains_of_what_an_asynchronous_session_rolls_back(shop: World, driver: str) -> None:
    before = shop.snapshot()

    async def main() -> None:
        async with opened(shop, driver) as session:
            await aio.within(session, shop.wallets.hold_in_escrow, shop.hold_request())
            await session.rollback()

    run(main())
    assert (shop.snapshot(), shop.events) == (before, [])


@both_drivers
def test_refusals_conflicts_and_losses_are_told_by_their_names_in_an_asynchronous_session(
    postgresql_url: str, driver: str
) -> None:
    with Database(postgresql_url, lock_timeout_ms=1) as database:
        shop = World(database)
        shop.credit()
        request = shop.hold_request()
        conflict = shop.hold_request(amount=31, idempotency_key=request.idempotency_key)

        async def main() -> None:
            async with opened(shop, driver) as session:
                hold = shop.wallets.hold_in_escrow
                with pytest.raises(InsufficientBalanceError):
                    await aio.within(session, hold, shop.hold_request(amount=101))
                held = await aio.within(session, hold, request)
                assert (await aio.within(session, hold, request)) == held
                with pytest.raises(IdempotencyConflictError):
                    await aio.within(session, hold, conflict)
                await session.rollback()
                with administrator(postgresql_url) as server, server.transaction():
                    server.execute("SELECT 1 FROM user_wallets FOR UPDATE")
                    with pytest.raises(OptimisticLockError):
                        await aio.within(session, hold, request)
                    assert (await session.execute(text("SELECT 1"))).scalar() == 1, "the transaction has failed"
                pid = (await session.execute(text("SELECT pg_backend_pid()"))).scalar()
                end_connection(postgresql_url, int(pid or 0))
                with pytest.raises(StorageUnavailableError) as lost:
                    await aio.within(session, hold, request)
                assert lost.value.retryable
                await session.rollback()
                assert not (await aio.within(session, hold, request)).replayed

        run(main())


@both_drivers
@pytest.mark.parametrize("how", ["within", "run_sync"])
def test_neither_an_operation_nor_a_commit_nor_its_events_hold_up_the_loop(
    narrow: World, driver: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that needs a connection of the pool, which is taken, waits somewhere else."""
    on_thread: list[int] = []
    narrow.bus.subscribe(WalletEvent, lambda event: on_thread.append(threading.get_ident()))
    asked = watched(monkeypatch, narrow.database.whereabouts, "find")
    read = watched(monkeypatch, narrow.ledger, "transactions")
    request = narrow.hold_request()

    async def main() -> None:
        arrived: asyncio.Queue[WalletEvent] = asyncio.Queue()
        narrow.bus.subscribe(WalletEvent, aio.on_loop(arrived.put_nowait))
        async with opened(narrow, driver) as session:
            if how == "within":
                work = aio.within(session, narrow.wallets.hold_in_escrow, request)
            else:
                work = session.run_sync(lambda joined: narrow.send(request, session=joined))
            with narrow.database.engine.connect():
                holding = asyncio.create_task(work)
                await until(asked.is_set)
                await tick()
                assert not holding.done(), "where the database is was known without asking it"
            held = await holding
            with narrow.database.engine.connect():
                await session.commit()
                await until(read.is_set)
                await tick()
                assert arrived.empty()
            assert (await arrived.get()).event_id == held.transaction_id
        assert len(on_thread) == 1
        assert threading.get_ident() not in on_thread

    run(main())


def test_events_of_one_commit_after_another_come_in_their_order(shop: World) -> None:
    async def main() -> list[str]:
        arrived: asyncio.Queue[WalletEvent] = asyncio.Queue()
        shop.bus.subscribe(WalletEvent, aio.on_loop(arrived.put_nowait))
        made = []
        async with opened(shop, "asyncpg") as session:
            for _ in range(10):
                for _ in range(3):
                    answer = await aio.within(session, shop.wallets.hold_in_escrow, shop.hold_request(amount=1))
                    made.append(answer.transaction_id)
                await session.commit()
        assert [(await arrived.get()).event_id for _ in made] == made
        return made

    assert len(run(main())) == 30


def test_an_async_scoped_session_is_taken_too(shop: World) -> None:
    async def main() -> None:
        url = make_url(shop.database.engine.url)
        engine = create_async_engine(url)
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        assert (await aio.within(scoped, shop.wallets.get_user_balance, "ana")).available == 100
        await scoped.remove()
        await engine.dispose()

    run(main())


def test_an_asynchronous_session_of_another_database_is_refused(shop: World, sqlite_url: str) -> None:
    elsewhere = make_url(shop.database.engine.url).set(database="postgres")
    file = make_url(sqlite_url).set(drivername="sqlite+aiosqlite")

    async def main(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            with pytest.raises(InvalidRequestError) as refused:
                await aio.within(session, shop.wallets.get_user_balance, "ana")
            assert refused.value.details["field"] == "session"
        await engine.dispose()

    for url in (elsewhere, file):
        run(main(create_async_engine(url)))


def test_an_asynchronous_session_of_the_same_sqlite_file_is_refused_by_name(sqlite_url: str) -> None:
    async def main() -> None:
        engine = create_async_engine(make_url(sqlite_url).set(drivername="sqlite+aiosqlite"))
        async with AsyncSession(engine) as session:
            with pytest.raises(InvalidRequestError, match="bound to the engine of this Database"):
                await aio.within(session, world.wallets.credit_user, world.credit_request())
        await engine.dispose()

    with Database(sqlite_url) as database:
        world = World(database)
        run(main())
        assert world.wallets.get_user_balance("ana").version == 0


def test_only_asynchronous_sessions_and_methods_that_take_one_go_within(shop: World) -> None:
    async def main() -> None:
        wrong: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("session", lambda: aio.within(Session(shop.database.engine), shop.wallets.get_user_balance, "a")),  # type: ignore[arg-type]
            ("session", lambda: aio.within(None, shop.wallets.get_user_balance, "a")),  # type: ignore[arg-type]
            ("session", lambda: aio.within(AsyncSession, shop.wallets.get_user_balance, "a")),  # type: ignore[arg-type]
            ("method", lambda: aio.within(AsyncSession(), shop.ledger.seal)),
            ("method", lambda: aio.within(AsyncSession(), shop.wallets.get_user_balance, "a", session=None)),
            ("method", lambda: aio.within(AsyncSession(), "hold_in_escrow")),  # type: ignore[arg-type]
        ]
        for field, call in wrong:
            with pytest.raises(InvalidRequestError) as refused:
                await call()
            assert refused.value.details["field"] == field

    run(main())


# ── receivers on the loop ──


def test_receivers_on_the_loop_run_there_are_awaited_and_come_in_order(world: World) -> None:
    seen: list[tuple[str, int, str]] = []

    async def main() -> None:
        done = asyncio.Event()

        async def waited_for(event: WalletEvent) -> None:
            seen.append(("awaited", threading.get_ident(), event.event_id))
            if len(seen) == 6:
                done.set()

        plain = aio.on_loop(lambda event: seen.append(("plain", threading.get_ident(), event.event_id)))
        for receiver in (plain, aio.on_loop(waited_for)):
            world.bus.subscribe(WalletEvent, receiver)
        made = [await aio.call(world.wallets.credit_user, world.credit_request()) for _ in range(3)]
        await done.wait()
        here = threading.get_ident()
        assert seen == [(how, here, each.transaction_id) for each in made for how in ("plain", "awaited")]
        world.bus.unsubscribe(WalletEvent, plain)
        await aio.call(world.wallets.credit_user, world.credit_request())
        await until(lambda: len(seen) == 7)

    run(main())


def test_a_receiver_on_the_loop_that_raises_is_logged_with_the_events_id(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(event: WalletEvent) -> None:
        raise ZeroDivisionError

    async def main() -> str:
        world.bus.subscribe(WalletEvent, aio.on_loop(fails))
        made = await aio.call(world.wallets.credit_user, world.credit_request())
        await until(lambda: bool(caplog.records))
        return made.transaction_id

    with caplog.at_level(logging.WARNING, "points_platform"):
        event_id = run(main())
    (record,) = caplog.records
    assert vars(record)["points_platform"]["event_id"] == event_id


def test_a_receiver_whose_loop_has_ended_hurts_nobody(world: World) -> None:
    async def main() -> None:
        world.bus.subscribe(WalletEvent, aio.on_loop(print))

    run(main())
    world.credit()
    assert (len(world.events), world.bus.failures) == (1, 1)
