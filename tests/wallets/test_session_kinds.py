"""Which sessions are joined: those of this database, by whatever engine; everything else is refused by name."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from points_platform.core import Database, InvalidRequestError, SchemaVersionError, StorageUnavailableError
from points_platform.core.sessions import Whereabouts
from support.connections import administrator
from support.statements import statements
from support.world import World


@contextmanager
def engine_for(url: Any, **options: Any) -> Iterator[Engine]:
    engine = create_engine(url, **options)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def other(request: pytest.FixtureRequest, world: World) -> Iterator[World]:
    """A second platform, on another database of the same kind."""
    kind = "sqlite" if world.database.is_sqlite else "postgresql"
    with request.getfixturevalue(f"{kind}_databases").fresh() as url, Database(url) as database:
        yield World(database)


def refused(call: Callable[[], object]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refusal:
        call()
    assert refusal.value.details["field"] == "session"
    return refusal.value


# ── another database ──


def test_a_session_of_another_database_is_refused_and_nothing_happens_in_either(world: World, other: World) -> None:
    for each in (world, other):
        each.credit()
    before = world.snapshot(), other.snapshot()
    held = world.hold_request()
    with Session(other.database.engine) as session:
        session.connection()
        calls: list[Callable[[], object]] = [
            lambda: world.wallets.hold_in_escrow(held, session=session),
            lambda: world.wallets.hold_many([held], session=session),
            lambda: world.wallets.get_user_balance("ana", session=session),
            lambda: world.ledger.entries("user:ana", "points", session=session),
            lambda: world.ledger.reader("mails").move(0, seen=0, session=session),
        ]
        for call in calls * 2:
            assert "bound to the engine of this Database" in str(refused(call))
        assert other.wallets.hold_in_escrow(held, session=session).escrow_balance == 30, "the session is of no use"
        session.rollback()
    assert (world.snapshot(), other.snapshot()) == before


def test_what_is_remembered_of_one_database_is_no_answer_in_a_session_of_another(world: World, other: World) -> None:
    request = world.credit_request()
    world.send(request)
    with Session(other.database.engine) as session:
        refused(lambda: world.send(request, session=session))
    assert other.wallets.get_user_balance("ana").available == 0


def bound_to_a_connection(engine: Engine) -> Session:
    connection = engine.connect()
    connection.begin()
    return Session(connection, join_transaction_mode="create_savepoint")


SAME: dict[str, Callable[[Engine], Session]] = {
    "engine": Session,
    "with options": lambda engine: Session(engine.execution_options(logging_token="host")),
    "connection": bound_to_a_connection,
}


@pytest.mark.parametrize("how", SAME)
@pytest.mark.parametrize("options", [{}, {"poolclass": NullPool}], ids=["pooled", "unpooled"])
def test_the_same_postgresql_database_by_another_engine_is_joined(
    postgresql_url: str, how: str, options: dict[str, Any]
) -> None:
    with Database(postgresql_url) as database, engine_for(postgresql_url, **options) as engine:
        world = World(database)
        world.credit()
        with SAME[how](engine) as session:
            for escrow in (30, 60):
                assert world.send(world.hold_request(), session=session).escrow_balance == escrow
                assert world.wallets.get_user_balance("ana", session=session).escrow == escrow
            assert world.wallets.get_user_balance("ana").escrow == 0
            session.commit()
            if isinstance(session.bind, Engine):
                assert world.wallets.get_user_balance("ana").escrow == 60
            else:
                session.close()
                session.get_bind().close()  # type: ignore[union-attr]
        world.hold()


def test_where_an_engine_leads_to_is_asked_once_for_each_connection(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, engine_for(postgresql_url) as engine:
        world = World(database)
        world.credit()
        with statements(engine) as theirs, statements(database.engine) as ours, Session(engine) as session:
            for _ in range(3):
                world.send(world.hold_request(amount=1), session=session)
                world.wallets.get_user_balance("ana", session=session)
                session.commit()
        asked = [sum("SELECT system_identifier" in statement for statement in seen) for seen in (theirs, ours)]
        assert asked == [1, 1]
        with statements(database.engine) as ours, Session(database.engine) as session:
            world.send(world.hold_request(amount=1), session=session)
        assert not any("system_identifier" in statement for statement in ours), "it is our own engine"


def test_the_same_numbers_on_another_server_are_another_database(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, engine_for(postgresql_url) as engine, engine.connect() as connection:
        here = database.whereabouts.find()
        assert here is not None
        Whereabouts(engine, lambda question: here, None).check(connection)
        for name in here._fields:
            there = here._replace(**{name: 1})
            with pytest.raises(InvalidRequestError):
                Whereabouts(engine, lambda question: there, None).check(connection)  # noqa: B023


def test_another_ledger_in_the_same_database_is_refused(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, database.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    tenants = make_url(postgresql_url).update_query_dict({"options": "-c search_path=tenant"})
    with Database(postgresql_url) as database, Database(tenants) as tenant:
        world = World(database)
        world.credit()
        with Session(tenant.engine) as session:
            refused(lambda: world.wallets.get_user_balance("ana", session=session))
            session.rollback()
        tenant.create_schema()
        World(tenant).credit(amount=7)
        for mine, other in ((world, tenant), (World(tenant), database)):
            with Session(other.engine) as session:
                refused(lambda: mine.wallets.get_user_balance("ana", session=session))  # noqa: B023
        assert World(tenant).wallets.get_user_balance("ana").available == 7


def test_tables_that_were_made_anew_are_still_ours(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, engine_for(postgresql_url) as engine:
        world = World(database)
        with Session(engine) as session:
            world.wallets.get_user_balance("ana", session=session)
        with database.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        database.create_schema()
        with Session(engine) as session:
            world.send(world.credit_request(), session=session)
            session.commit()
        assert world.wallets.get_user_balance("ana").available == 100


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_where_a_role_may_not_ask_only_sessions_of_our_own_engine_are_joined(postgresql_url: str, who: str) -> None:
    role = "points_platform_weak"
    weak = make_url(postgresql_url).update_query_dict({"options": f"-c role={role}"})
    with administrator(postgresql_url) as server:
        server.execute("REVOKE EXECUTE ON FUNCTION pg_control_system FROM public")
        server.execute(f"CREATE ROLE {role}")
        server.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            urls = (weak, make_url(postgresql_url))
            ours, theirs = urls if who == "ours" else reversed(urls)
            with Database(ours) as database, engine_for(theirs) as engine:
                world = World(database)
                world.credit()
                with Session(engine) as session:
                    refused(lambda: world.send(world.hold_request(), session=session))
                    assert session.scalar(text("SELECT 1")) == 1, "the caller's transaction has failed"
                with Session(database.engine) as session:
                    world.send(world.hold_request(), session=session)
        finally:
            server.execute(f"DROP OWNED BY {role}")
            server.execute(f"DROP ROLE {role}")


def test_a_session_of_another_sqlite_engine_is_refused_without_being_used(sqlite_url: str) -> None:
    with Database(sqlite_url) as database, engine_for(sqlite_url) as engine:
        world = World(database)
        world.credit()
        begun: list[object] = []
        event.listen(engine, "begin", begun.append)
        with Session(engine) as session:
            refused(lambda: world.send(world.hold_request(), session=session))
            refused(lambda: world.wallets.get_user_balance("ana", session=session))
        assert begun == []


# ── what is no session, or none that can be joined ──


def no_sessions(engine: Engine) -> dict[str, Any]:
    async_engine = create_async_engine("postgresql+psycopg://nobody@nowhere.invalid/none")
    return {
        "an engine": engine,
        "a connection": engine.connect(),
        "a URL": str(engine.url),
        "a number": 0,
        "false": False,
        "a dict": {},
        "the class": Session,
        "a sessionmaker": sessionmaker(engine),
        "an AsyncSession": AsyncSession(async_engine),
        "an async_sessionmaker": async_sessionmaker(async_engine),
        "an async_scoped_session": async_scoped_session(async_sessionmaker(async_engine), lambda: None),
    }


def test_what_is_no_session_is_refused_by_its_kind_before_anything_else(world: World) -> None:
    request = world.credit_request()
    world.send(request)
    held = world.hold()
    settle = world.settle_request(held.escrow_id)
    before = world.snapshot()
    given = no_sessions(world.database.engine)
    for name, session in given.items():
        calls: list[Callable[[], object]] = [
            lambda: world.send(request, session=session),  # noqa: B023
            lambda: world.send(settle, session=session, authorization="none"),  # noqa: B023
            lambda: world.wallets.credit_many([], session=session),  # noqa: B023
            lambda: world.wallets.get_escrow("none", session=session),  # noqa: B023
            lambda: world.ledger.head(session=session),  # noqa: B023
            lambda: world.ledger.reader("mails").move(1, seen=0, session=session),  # noqa: B023
        ]
        for call in calls:
            said = str(refused(call))
            assert "a Session or scoped_session of SQLAlchemy" in said, name
            assert type(session).__name__ in said or getattr(session, "__name__", "AsyncSession") in said, name
            assert "points_platform.aio.within" in said
    given["a connection"].close()
    assert world.snapshot() == before


@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
def test_a_session_of_a_driver_whose_errors_nobody_would_recognise_is_refused_by_its_name(
    postgresql_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = SimpleNamespace(paramstyle="pyformat", __version__="9.9.9")
    module.extras = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "psycopg2", module)
    with Database(postgresql_url) as database:
        world = World(database)
        with engine_for(make_url(postgresql_url).set(drivername=f"postgresql+{driver}"), module=module) as engine:
            with Session(engine) as session:
                said = str(refused(lambda: world.send(world.credit_request(), session=session)))
            assert f"a session of {driver}" in said
            assert "psycopg or asyncpg" in said


def test_a_session_of_another_kind_of_database_is_refused(postgresql_url: str, sqlite_url: str) -> None:
    with Database(postgresql_url) as postgresql, Database(sqlite_url) as sqlite:
        for mine, other in ((postgresql, sqlite), (sqlite, postgresql)):
            with Session(other.engine) as session:
                refused(lambda: World(mine).wallets.get_user_balance("ana", session=session))  # noqa: B023


def test_a_session_that_is_bound_to_nothing_says_what_to_do(world: World) -> None:
    with Session() as session, pytest.raises(StorageUnavailableError, match="bound to no engine"):
        world.wallets.get_user_balance("ana", session=session)


def test_a_session_that_only_its_connection_knows_the_bind_of_is_still_judged(world: World, other: World) -> None:
    """One that routes: what it says without being used need not be what it uses."""

    class Routing(Session):
        asked = 0

        def get_bind(self, *args: Any, **options: Any) -> Any:
            self.asked += 1
            return (world if self.asked == 1 else other).database.engine

    other.credit()
    before = other.snapshot()
    with Routing() as session:
        refused(lambda: world.wallets.credit_many([world.credit_request()], session=session))
        session.commit()
    assert other.snapshot() == before


# ── engines that are none of ours ──


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:///points.db", "postgresql+psycopg://a@b/c", "postgresql+asyncpg://a@b/c"]
)
def test_an_async_engine_is_refused_by_name_in_both_of_its_forms(url: str) -> None:
    engine = create_async_engine(url)
    for target in (engine, engine.sync_engine):
        with pytest.raises(InvalidRequestError) as refusal:
            Database(target)  # type: ignore[arg-type]
        assert refusal.value.details["field"] == "target"
        assert "async" in str(refusal.value)
        assert "points_platform.aio" in str(refusal.value)


def test_a_session_whose_database_has_another_schema_version_is_refused(world: World) -> None:
    with Database(world.database.engine) as database:
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE points_platform_schema SET version_num = '0000', oldest_writer = '0000'"))
        with Session(database.engine) as session, pytest.raises(SchemaVersionError):
            World(database).wallets.get_user_balance("ana", session=session)
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE points_platform_schema SET version_num = '0001', oldest_writer = '0001'"))
