"""Connections as a host's pool hands them out: with a transaction begun by listeners, or cut while they lay idle."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from points_platform.core import Database, StorageUnavailableError
from points_platform.wallets.books import books
from points_platform.wallets.verify import verify
from support.answers import announced
from support.connections import administrator
from support.recount import recount
from support.world import World

SET = "SET app.tenant = 'acme'"


def at_checkout(engine: Engine) -> None:
    @event.listens_for(engine, "checkout")
    def tell(connection: Any, record: Any, proxy: Any) -> None:
        connection.cursor().execute(SET)


def at_connect(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def tell(connection: Any, record: Any) -> None:
        connection.cursor().execute(SET)


def at_engine_connect(engine: Engine) -> None:
    @event.listens_for(engine, "engine_connect")
    def tell(connection: Any) -> None:
        connection.execute(text(SET))


LISTENERS = [at_checkout, at_connect, at_engine_connect]
LEVELS = [None, "READ COMMITTED", "SERIALIZABLE"]


def every_read(world: World) -> dict[str, Callable[[], object]]:
    return {
        "a balance": lambda: world.wallets.get_user_balance("ana").available,
        "a list": lambda: world.wallets.list_escrows(user_id="ana"),
        "a statement": lambda: world.ledger.entries("user:ana", "points"),
        "transactions": lambda: world.ledger.transactions([event.transaction_id for event in world.events]),
        "the log": lambda: world.ledger.read_log(),
        "a reader": lambda: world.ledger.reader("mails").position,
        "the books": lambda: books(world.database),
        "verify": lambda: list(verify(world.database)),
        "a plain read": lambda: plainly(world.database),
        "a snapshot": lambda: in_a_snapshot(world.database),
    }


def plainly(database: Database) -> None:
    with database.read() as connection:
        connection.execute(text("SELECT 1"))


def in_a_snapshot(database: Database) -> None:
    with database.snapshot() as connection:
        connection.execute(text("SELECT 1"))


# ── listeners that run SQL ──


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
@pytest.mark.parametrize("listen", LISTENERS)
def test_a_listener_that_runs_sql_is_in_nobodys_way(
    postgresql_url: str, listen: Callable[[Engine], None], single: bool, level: str | None
) -> None:
    engine = create_engine(postgresql_url)
    listen(engine)
    database = Database(engine, single_statement=single, isolation_level=level)
    database.create_schema()
    world = World(database)
    world.credit()
    world.wallets.credit_many([world.credit_request()])
    world.hold()
    assert list(verify(database)) == []
    for read in every_read(world).values():
        read()
    world.ledger.seal()
    with Session(engine) as session:
        world.send(world.hold_request(), session=session)
        assert session.scalar(text("SHOW app.tenant")) == "acme"
        session.commit()
    with database.read() as connection:
        assert connection.scalar(text("SHOW app.tenant")) == "acme"
    assert len(world.events) == 4
    recount(database)
    engine.dispose()


@pytest.mark.parametrize("listen", LISTENERS)
def test_retries_go_on_behind_a_listener_that_runs_sql(postgresql_url: str, listen: Callable[[Engine], None]) -> None:
    engine = create_engine(postgresql_url)
    listen(engine)
    world = World(Database(engine))
    world.credit()
    cut_idle_connections(world.database)
    assert world.hold().escrow_balance == 30
    engine.dispose()


# ── connections that the server has cut ──


@pytest.fixture
def used(postgresql_url: str) -> Iterator[World]:
    """A world whose pool holds several idle connections."""
    with Database(postgresql_url) as database:
        world = World(database)
        world.credit()
        world.hold()
        world.ledger.seal()
        yield world
        recount(database)


def fill_the_pool(database: Database) -> None:
    connections = [database.engine.connect() for _ in range(3)]
    for connection in connections:
        connection.close()


def cut_idle_connections(database: Database) -> None:
    """As the server does after a while, or when it is started anew: all that lie in the pool are dead."""
    with administrator(database.engine.url) as server:
        ended = server.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()
    assert ended


@pytest.mark.parametrize("name", every_read(World.__new__(World)))
def test_the_first_read_after_the_server_has_cut_the_idle_connections_works(used: World, name: str) -> None:
    read = every_read(used)[name]
    answer = read()
    for _ in range(2):
        fill_the_pool(used.database)
        cut_idle_connections(used.database)
        assert read() == answer


def test_the_first_use_of_a_database_may_meet_a_connection_that_was_cut(postgresql_url: str) -> None:
    for first in (Database.create_schema, lambda database: World(database).wallets.get_user_balance("ana")):
        with Database(postgresql_url) as database:
            fill_the_pool(database)
            cut_idle_connections(database)
            first(database)


def test_events_of_a_callers_commit_are_announced_although_the_idle_connections_were_cut(used: World) -> None:
    used.events.clear()
    engine = create_engine(used.database.engine.url)
    with Session(engine) as session:
        held = used.send(used.hold_request(), session=session)
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with administrator(engine.url) as server:
            server.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s) AND backend_type = "
                "'client backend'",
                [pid],
            )
        session.commit()
    engine.dispose()
    assert announced(used) == [held.transaction_id]


def test_a_read_is_tried_once_more_and_not_for_ever(used: World) -> None:
    asked: list[int] = []

    def lost(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(connection.connection.dbapi_connection.info.backend_pid)
        with administrator(used.database.engine.url) as server:
            server.execute("SELECT pg_terminate_backend(%s, 10000)", [asked[-1]])

    event.listen(used.database.engine, "before_cursor_execute", lost)
    with pytest.raises(StorageUnavailableError) as failed:
        used.wallets.get_user_balance("ana")
    event.remove(used.database.engine, "before_cursor_execute", lost)
    assert (len(set(asked)), failed.value.retryable) == (2, True)
    assert used.wallets.get_user_balance("ana").total == 100


def test_a_read_that_fails_for_another_reason_is_not_tried_again(used: World) -> None:
    asked: list[str] = []

    def cancel(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)
        cursor.execute("SET statement_timeout = 1")
        cursor.execute("SELECT pg_sleep(60)")

    event.listen(used.database.engine, "before_cursor_execute", cancel)
    with pytest.raises(StorageUnavailableError):
        used.wallets.get_user_balance("ana")
    event.remove(used.database.engine, "before_cursor_execute", cancel)
    assert len(asked) == 1
    used.database.engine.dispose()
