"""The database: what it accepts, the schema, how connections are configured, forks, and time."""

import multiprocessing
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Column, Engine, Integer, MetaData, Table, create_engine, event, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from points_platform.core import (
    Base,
    Database,
    InvalidRequestError,
    SchemaVersionError,
    StorageUnavailableError,
    WalletError,
)
from points_platform.core.models import UtcDateTime
from points_platform.ledger import LedgerService
from points_platform.migrations import HEAD, stamp_of, upgrade
from points_platform.wallets import WalletService
from support.recount import recount
from support.statements import statements
from support.world import World, at_once

SECRET = "s3cret"


# ── targets ──


def test_a_url_as_text_or_object_and_an_engine_lead_to_the_same_database(url: str) -> None:
    targets: list[str | URL | Engine] = [url, make_url(url), create_engine(url)]
    if url.startswith("postgresql"):
        targets += [url.replace("postgresql+psycopg:", "postgresql:"), make_url(url).set(drivername="postgresql")]
    else:
        targets += [
            url.replace("sqlite:", "sqlite+pysqlite:"),
            url.replace("sqlite:///", "sqlite:///file:") + "?uri=true",
        ]
    with Database(url) as database:
        World(database).credit()
    for target in targets:
        with Database(target) as database:
            assert World(database).wallets.get_user_balance("ana").available == 100
            database.engine.dispose()


def in_memory() -> list[Any]:
    return [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
        create_engine("sqlite://"),
        create_engine("sqlite://", poolclass=StaticPool),
    ]


def unusable() -> list[Any]:
    return [
        "",
        "nonsense",
        "points.db",
        "sqlite",
        None,
        5,
        b"sqlite:///points.db",
        Path("points.db"),
        object,
        f"mysql://app:{SECRET}@db.example/points",
        f"mysql://app@db.example/points?password={SECRET}",
        f"oracle+nonsense://app:{SECRET}@db.example/points",
        f"postgresql+psycopg2://app:{SECRET}@db.example/points",
        f"postgresql+asyncpg://app:{SECRET}@db.example/points",
        "sqlite+aiosqlite:///points.db",
        f"postgresql://app:{SECRET}@db.example:port/points",
        f"postgresql://app:{SECRET}@{SECRET}@db.example:port/points",
        f"postgresql://app@db.example:port/points?password={SECRET}",
        f"host=db.example user=app password={SECRET}",
        f"//app:{SECRET}@db.example/points",
        "sqlite:///points.db?timeout=soon",
        "sqlite:///points.db?uri=perhaps",
        "sqlite:///points.db?plugin=nonsense",
    ]


@pytest.mark.parametrize("target", in_memory() + unusable(), ids=lambda target: repr(target).replace(SECRET, "…"))
def test_a_target_that_cannot_serve_is_refused_by_name_without_its_password(target: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Database(target)
    assert refused.value.details["field"] == "target"
    shown = f"{refused.value} {refused.value.details} {refused.value!r}"
    assert SECRET not in shown
    assert "sqlite:///" in str(refused.value), "the message must say what would do"


AUTOCOMMIT: dict[str, dict[str, Any]] = {
    "level": {"isolation_level": "AUTOCOMMIT"},
    "level in lower case": {"isolation_level": "autocommit"},
    "driver": {"connect_args": {"autocommit": True}},
    "option": {"execution_options": {"isolation_level": "AUTOCOMMIT"}},
    "option in lower case": {"execution_options": {"isolation_level": "autocommit"}},
}
every_autocommit = pytest.mark.parametrize("how", AUTOCOMMIT)
# SQLAlchemy cannot lend out a connection at another level if its engine was made with one in lower case.
lendable_autocommit = pytest.mark.parametrize("how", sorted(AUTOCOMMIT.keys() - {"level in lower case"}))
ways = pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])


@contextmanager
def engine_in_autocommit(url: str, how: str) -> Iterator[Engine]:
    engine = create_engine(url, **AUTOCOMMIT[how])
    yield engine
    engine.dispose()


def in_autocommit(refused: pytest.ExceptionInfo[InvalidRequestError]) -> str:
    """Which field it is that was refused for that."""
    assert "autocommit" in str(refused.value)
    return str(refused.value.details["field"])


@pytest.mark.parametrize("option", ["AUTOCOMMIT", "autocommit"])
@pytest.mark.parametrize("derived", [True, False])
def test_an_engine_with_the_option_autocommit_is_refused_and_left_as_it_was(
    postgresql_url: str, option: str, derived: bool
) -> None:
    options = {"isolation_level": option}
    plain = create_engine(postgresql_url, execution_options={} if derived else options)
    with pytest.raises(InvalidRequestError) as refused:
        Database(plain.execution_options(**options) if derived else plain)
    assert in_autocommit(refused) == "target"
    with plain.connect() as connection:
        assert not connection.info, "the host's engine was prepared"
    plain.dispose()


@ways
@pytest.mark.parametrize("how", ["level", "level in lower case", "driver"])
def test_an_engine_made_with_autocommit_is_refused_on_every_connection_of_its_pool(
    postgresql_url: str, how: str, single: bool
) -> None:
    """Also on one that the host has lent out at a level meanwhile: SQLAlchemy ends the driver's autocommit by that."""
    with Database(postgresql_url) as database, engine_in_autocommit(postgresql_url, how) as engine:
        before = World(database).snapshot()
        refusing = Database(engine, single_statement=single)
        world = World(refusing)
        calls: list[Callable[[], object]] = [
            refusing.create_schema,
            world.credit,
            lambda: world.wallets.credit_many([world.credit_request()]),
            world.ledger.seal,
            lambda: world.wallets.get_user_balance("ana"),
        ]
        for call in calls * 2:
            with pytest.raises(InvalidRequestError) as refused:
                call()
            assert in_autocommit(refused) == "target"
            if "lower" not in how:
                with engine.connect() as connection:
                    connection.execution_options(isolation_level="SERIALIZABLE")
        assert World(database).snapshot() == before


@ways
def test_a_connection_that_the_host_puts_into_autocommit_later_is_refused(postgresql_url: str, single: bool) -> None:
    engine = create_engine(postgresql_url)
    world = World(Database(engine, single_statement=single))
    world.credit()
    before = world.snapshot()
    event.listen(engine, "checkout", lambda connection, *others: setattr(connection, "autocommit", True))
    with pytest.raises(InvalidRequestError) as refused:
        world.hold()
    assert (in_autocommit(refused), world.snapshot()) == ("target", before)
    engine.dispose()


@lendable_autocommit
def test_with_a_level_of_its_own_the_module_has_transactions_on_an_engine_in_autocommit(
    postgresql_url: str, how: str
) -> None:
    """An operation that was interrupted between two of its statements would leave the first behind."""

    def interrupt(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "INSERT INTO ledger_entries" in statement:
            raise KeyboardInterrupt

    with engine_in_autocommit(postgresql_url, how) as engine:
        database = Database(engine, single_statement=False, isolation_level="READ COMMITTED")
        world = World(database)
        world.credit()
        before = world.snapshot()
        event.listen(engine, "before_cursor_execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            world.hold()
        event.remove(engine, "before_cursor_execute", interrupt)
        assert world.snapshot() == before
        recount(database)


@every_autocommit
def test_a_session_in_autocommit_is_refused_whatever_the_level_of_the_database(postgresql_url: str, how: str) -> None:
    with Database(postgresql_url) as other, engine_in_autocommit(postgresql_url, how) as engine:
        world = World(Database(engine, isolation_level="READ COMMITTED"))
        before = World(other).snapshot()
        for _ in range(2):
            with Session(engine) as session, pytest.raises(InvalidRequestError) as refused:
                world.wallets.credit_user(world.credit_request(), session=session)
            assert (in_autocommit(refused), World(other).snapshot()) == ("session", before)


@lendable_autocommit
def test_a_session_with_a_transaction_on_an_engine_in_autocommit_is_joined(postgresql_url: str, how: str) -> None:
    with engine_in_autocommit(postgresql_url, how) as engine:
        world = World(Database(engine, isolation_level="READ COMMITTED"))
        with Session(engine) as session:
            session.connection(execution_options={"isolation_level": "READ COMMITTED"})
            assert world.wallets.credit_user(world.credit_request(), session=session).replayed is False
            session.rollback()
        assert world.wallets.get_user_balance("ana").version == 0


def test_on_sqlite_an_engine_in_autocommit_has_transactions_all_the_same(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url, isolation_level="AUTOCOMMIT")
    world = World(Database(engine))
    world.credit()
    before = world.snapshot()

    def interrupt(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "INSERT INTO ledger_entries" in statement:
            raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.hold()
    event.remove(engine, "before_cursor_execute", interrupt)
    assert world.snapshot() == before
    engine.dispose()


@pytest.mark.parametrize("milliseconds", [0, -1, True, 1.0, "5000", None])
def test_the_lock_timeout_is_a_whole_number_of_milliseconds(milliseconds: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="lock_timeout_ms"):
        Database(f"sqlite:///{tmp_path}/points.db", lock_timeout_ms=milliseconds)


@pytest.mark.parametrize("path", ["missing-folder/points.db", "nul\x00.db"])
def test_a_file_that_cannot_be_opened_is_a_module_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(WalletError), Database(f"sqlite:///{tmp_path}/{path}") as database:
        database.create_schema()


# ── engines ──


def test_closing_a_database_closes_its_own_connections_and_leaves_a_hosts_engine_alone(url: str) -> None:
    def pooled(engine: Engine) -> int:
        pool: Any = engine.pool
        return int(pool.checkedin())

    with Database(url) as database:
        World(database).credit()
        assert pooled(database.engine) > 0
    assert pooled(database.engine) == 0
    assert World(database).wallets.get_user_balance("ana").available == 100, "it can be used again all the same"
    database.close()
    database.close()
    host = create_engine(url)
    with Database(host) as database:
        World(database).hold()
    assert pooled(host) > 0
    host.dispose()


def test_close_happens_also_when_the_block_raises_and_the_exception_goes_on(url: str) -> None:
    def use() -> None:
        with Database(url) as database:
            databases.append(database)
            World(database).credit()
            raise ZeroDivisionError

    databases: list[Database] = []
    with pytest.raises(ZeroDivisionError):
        use()
    pool: Any = databases[0].engine.pool
    assert pool.checkedin() == 0


def test_any_number_of_databases_over_one_engine_begin_each_transaction_once(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    databases = [Database(engine), Database(engine)]
    engine.dispose()
    databases.append(Database(engine))
    for database in databases:
        with statements(engine) as seen:
            World(database).credit()
        assert seen.count("BEGIN IMMEDIATE") == 1
    with statements(engine) as seen, engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    assert seen == ["BEGIN IMMEDIATE", "SELECT 1"]
    recount(databases[0])
    engine.dispose()


@pytest.mark.parametrize("order", [("options", "plain"), ("plain", "options")])
def test_databases_over_an_engine_and_over_the_same_with_options_get_along(
    sqlite_url: str, order: tuple[str, str]
) -> None:
    engine = create_engine(sqlite_url)
    targets = {"plain": engine, "options": engine.execution_options(logging_token="host")}
    databases = [Database(targets[name]) for name in order]
    for database in databases:
        with statements(database.engine) as seen:
            World(database).credit()
        assert seen.count("BEGIN IMMEDIATE") == 1
    recount(databases[0])
    engine.dispose()


def test_a_database_over_an_engine_with_options_leaves_the_engine_behind_it_transactional(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    database = Database(engine.execution_options(logging_token="host"))
    World(database).credit()
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM user_wallets"))
        connection.rollback()
    recount(database)
    engine.dispose()


def test_a_host_that_begins_its_sqlite_transactions_itself_is_not_begun_a_second_time(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    event.listen(engine, "connect", lambda connection, record: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with Database(engine) as database:
        World(database).credit()
        recount(database)
    engine.dispose()


def test_every_sqlite_connection_has_the_pragmas_that_the_module_relies_on(sqlite_url: str) -> None:
    expected = {"journal_mode": "wal", "synchronous": 2, "recursive_triggers": 1, "busy_timeout": 10_000}
    host = create_engine(sqlite_url)
    for target in (sqlite_url, host):
        with Database(target) as database:
            connections = [database.engine.connect() for _ in range(2)] if target == host else []
            for connection in connections:
                connection.close()
            for context in (database.engine.connect, database.read, database.read):
                with context() as connection:
                    found = {name: connection.scalar(text(f"PRAGMA {name}")) for name in expected}
                assert found == expected
            database.engine.dispose()
            with database.read() as connection:
                assert connection.scalar(text("PRAGMA synchronous")) == 2, "only the first connections were configured"
    host.dispose()


def test_the_modules_reads_do_not_wait_for_a_sqlite_writer_and_its_writers_begin_immediate(sqlite_url: str) -> None:
    with Database(sqlite_url) as database, closing(sqlite3.connect(make_url(sqlite_url).database or "")) as other:
        world = World(database)
        with statements(database.engine) as seen:
            world.credit()
        held = world.hold()
        assert [statement for statement in seen if statement.startswith("BEGIN")][-1] == "BEGIN IMMEDIATE"
        event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 0"))
        database.engine.dispose()
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE user_wallets SET available = 0")
        with statements(database.engine) as seen:
            assert world.wallets.get_user_balance("ana").available == 70
            assert world.wallets.get_model_balance("luna").earned == 0
            assert world.wallets.get_escrow(held.escrow_id).amount == 30
            assert len(world.wallets.list_escrows(user_id="ana").items) == 1
            assert len(world.ledger.entries("user:ana", "points").items) == 3
            assert world.ledger.transaction(held.transaction_id) is not None
        assert {statement for statement in seen if statement.startswith("BEGIN")} == {"BEGIN DEFERRED"}
        other.execute("ROLLBACK")
        recount(database)


# ── the schema ──


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without a single table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    url: str = request.getfixturevalue("postgresql_url")
    with Database(url) as database, database.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    return url


def schema_of(database: Database) -> list[Any]:
    """Everything that is in the schema, as the database itself describes it."""
    catalogue = (
        "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2"
        if database.is_sqlite
        else "SELECT 'column', table_name, column_name, data_type || is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'public' UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes "
        "WHERE schemaname = 'public' UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, '' FROM pg_trigger "
        "UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
        "FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2, 3"
    )
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(catalogue))]


def versions(database: Database) -> list[str]:
    with database.engine.connect() as connection:
        return list(connection.scalars(text("SELECT version_num FROM points_platform_schema")))


def test_create_schema_is_idempotent_and_leaves_rows_alone(empty_url: str) -> None:
    with Database(empty_url) as database:
        database.create_schema()
        made = schema_of(database)
        names = {row[1] for row in made} | {row[2] for row in made}
        assert {table.name for table in Base.metadata.sorted_tables} <= names
        world = World(database)
        world.credit()
        before = world.snapshot()
        database.create_schema()
        with Database(empty_url) as another:
            another.create_schema()
        assert (schema_of(database), world.snapshot(), versions(database)) == (made, before, [HEAD])


def test_eight_threads_can_create_the_schema_at_once(empty_url: str) -> None:
    databases = [Database(empty_url) for _ in range(4)]
    outcomes = at_once(*(database.create_schema for database in databases * 2))
    assert outcomes == [None] * 8
    assert versions(databases[0]) == [HEAD]
    world = World(databases[0])
    world.credit()
    recount(databases[0])
    for database in databases:
        database.close()


def test_four_processes_can_create_the_schema_at_once(empty_url: str) -> None:
    processes = multiprocessing.get_context("fork")
    barrier = processes.Barrier(4)

    def create() -> None:
        database = Database(empty_url)
        barrier.wait(timeout=60)
        database.create_schema()
        database.close()

    with quiet_fork():
        workers = [processes.Process(target=create) for _ in range(4)]
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with Database(empty_url) as database:
        assert versions(database) == [HEAD]
        World(database).credit()


def test_a_schema_that_somebody_else_makes_right_before_ours_is_taken_as_it_is(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, Database(postgresql_url) as faster:
        with database.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        raced: list[None] = []

        def race(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if "pg_advisory_xact_lock" in statement and not raced:
                raced.append(faster.create_schema())  # type: ignore[func-returns-value]

        event.listen(database.engine, "before_cursor_execute", race)
        database.create_schema()
        assert (raced, versions(database)) == ([None], [HEAD])
        World(database).credit()
        recount(database)


def everything(world: World) -> list[Callable[[], object]]:
    return [
        world.credit,
        world.hold,
        lambda: world.wallets.get_user_balance("ana"),
        lambda: world.wallets.get_model_balance("luna"),
        lambda: world.wallets.get_escrow("none"),
        lambda: world.wallets.list_escrows(user_id="ana"),
        lambda: world.ledger.entries("user:ana", "points"),
        lambda: world.ledger.transaction("none"),
    ]


def test_a_database_without_the_schema_is_refused_with_what_to_do_and_works_once_it_is_made(empty_url: str) -> None:
    with Database(empty_url) as database:
        world = World(database)
        for call in everything(world):
            with pytest.raises(SchemaVersionError, match=r"create_schema\(\)") as refused:
                call()
            assert refused.value.details == {"found": None, "expected": HEAD}
            assert not refused.value.retryable
        database.create_schema()
        assert not world.credit().replayed


def stamp(database: Database, revision: str, oldest_writer: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE points_platform_schema SET version_num = :revision, oldest_writer = :oldest_writer"),
            {"revision": revision, "oldest_writer": oldest_writer},
        )


@pytest.mark.parametrize("found", ["0000", "9999"])
def test_a_schema_that_this_release_may_not_write_to_is_refused_and_left_as_it_is(url: str, found: str) -> None:
    with Database(url) as database:
        stamp(database, found, found)
        before = schema_of(database)
    with Database(url) as database:
        for call in [database.create_schema, *everything(World(database))]:
            with pytest.raises(SchemaVersionError) as refused:
                call()
            assert refused.value.details == {"found": found, "expected": HEAD}
        assert (schema_of(database), versions(database)) == (before, [found])


def test_a_newer_schema_that_lets_this_release_write_serves(url: str) -> None:
    with Database(url) as database:
        stamp(database, "9999", HEAD)
        database.create_schema()
        assert versions(database) == ["9999"]
        World(database).credit()


@pytest.mark.parametrize("table", ["user_wallets", "ledger_log", "deposit_claims"])
def test_a_table_in_the_way_is_refused_by_name_and_nothing_is_created(empty_url: str, table: str) -> None:
    with Database(empty_url) as database:
        with database.engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE {table} (id INTEGER)"))
        before = schema_of(database)
        with pytest.raises(InvalidRequestError, match=f"a table {table} that is not the module's") as refused:
            database.create_schema()
        assert (refused.value.details["field"], refused.value.retryable) == ("database", False)
        assert schema_of(database) == before


def test_a_hosts_own_schema_version_is_not_taken_for_ours(empty_url: str) -> None:
    with Database(empty_url) as database:
        with database.engine.begin() as connection:
            connection.execute(text("CREATE TABLE schema_version (version INTEGER)"))
            connection.execute(text("INSERT INTO schema_version VALUES (1)"))
        with pytest.raises(SchemaVersionError, match=r"create_schema\(\)"):
            World(database).credit()
        database.create_schema()
        World(database).credit()
        with database.engine.connect() as connection:
            assert list(connection.scalars(text("SELECT version FROM schema_version"))) == [1]


def test_a_creation_that_was_cut_off_leaves_nothing_and_can_be_repeated(empty_url: str) -> None:
    with Database(empty_url) as database:
        nothing = schema_of(database)

        def cut(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.startswith("INSERT INTO points_platform_schema"):
                raise KeyboardInterrupt

        event.listen(database.engine, "before_cursor_execute", cut)
        with pytest.raises(KeyboardInterrupt):
            database.create_schema()
        event.remove(database.engine, "before_cursor_execute", cut)
        assert schema_of(database) == nothing
        database.create_schema()
        assert versions(database) == [HEAD]


def test_an_upgrade_that_a_host_rolls_back_leaves_nothing_and_can_be_repeated(empty_url: str) -> None:
    """On an engine that was not prepared too, as in a host's own migrations: SQLite's driver would begin too late."""
    engine = create_engine(empty_url)
    with engine.connect() as connection, connection.begin() as transaction:
        upgrade(connection)
        transaction.rollback()
    with engine.begin() as connection:
        assert stamp_of(connection) is None
        upgrade(connection)
    engine.dispose()
    with Database(empty_url) as database:
        assert versions(database) == [HEAD]
        World(database).credit()
        with pytest.raises(DBAPIError, match="append-only"), database.engine.begin() as connection:
            connection.execute(text("DELETE FROM ledger_transactions"))


def test_create_schema_on_a_database_that_refuses_is_storage_unavailable(empty_url: str) -> None:
    url = make_url(empty_url)
    if url.drivername.startswith("sqlite"):
        sqlite3.connect(url.database or "").close()
        read_only = f"sqlite:///file:{url.database}?mode=ro&uri=true"
    else:
        options = {"options": "-c default_transaction_read_only=on"}
        read_only = url.update_query_dict(options).render_as_string(hide_password=False)
    with Database(read_only) as database, pytest.raises(StorageUnavailableError):
        database.create_schema()


# ── fork ──


@contextmanager
def quiet_fork() -> Iterator[None]:
    """Newer Pythons warn of a fork beside threads, such as those that a test runner may have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def in_a_child(work: Callable[[], None]) -> int:
    """Do the work in a forked process; the status it ends with, 0 if it did not raise."""
    with quiet_fork():
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_worker_may_go_on_with_the_same_database_and_the_parent_is_unharmed(world: World) -> None:
    world.credit()
    with world.database.read() as mine:
        mine.execute(text("SELECT 1"))
        pooled = physical_connections(world.database)

        def work() -> None:
            assert not pooled & physical_connections(world.database), "the child talks over the parent's connection"
            hold_thrice(world, amount=10)
            assert world.wallets.get_user_balance("ana").escrow == 30
            assert len(world.events) == 4

        assert in_a_child(work) == 0
        assert mine.scalar(text("SELECT 1")) == 1
    assert physical_connections(world.database) & pooled, "the parent has lost its connection"
    hold_thrice(world, amount=10)
    assert world.wallets.get_user_balance("ana").escrow == 60


def test_a_forked_worker_that_closes_its_database_leaves_the_parents_connections_open(world: World) -> None:
    world.credit()
    pooled = physical_connections(world.database)
    assert in_a_child(world.database.close) == 0
    assert world.wallets.get_user_balance("ana").available == 100, "a read is not tried again"
    assert physical_connections(world.database) == pooled


def hold_thrice(world: World, amount: int) -> None:
    """With keys of this process: a child goes on where its parent's counter stood."""
    for number in range(3):
        assert not world.hold(amount=amount, idempotency_key=f"{os.getpid()}-{number}").replayed


def physical_connections(database: Database) -> set[Any]:
    """What identifies the connection that the pool hands out: the server's process, or the driver's object."""
    with database.engine.connect() as connection:
        if database.is_sqlite:
            return {id(connection.connection.dbapi_connection)}
        return {connection.scalar(text("SELECT pg_backend_pid()"))}


def test_forked_workers_and_the_parent_can_write_side_by_side(world: World) -> None:
    world.credit()

    def work() -> None:
        hold_thrice(world, amount=1)

    with quiet_fork():
        processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
        for process in processes:
            process.start()
    work()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 3
    balance = world.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.version) == (88, 12, 13)


def test_a_forked_worker_may_build_its_own_database(url: str) -> None:
    with Database(url) as database:
        world = World(database)
        world.credit()

        def work() -> None:
            with Database(url) as own:
                WalletService(LedgerService(own), authorizer=world.authorizer).hold_in_escrow(world.hold_request())

        assert in_a_child(work) == 0
        assert world.wallets.get_user_balance("ana").escrow == 30
        recount(database)


# ── time ──


def test_times_come_back_aware_in_utc_with_microseconds_whatever_the_offset(url: str) -> None:
    times = Table(
        "times", MetaData(), Column("number", Integer, primary_key=True), Column("at", UtcDateTime(), nullable=True)
    )
    instant = datetime(2026, 3, 29, 0, 59, 59, 123456, UTC)
    given = [instant.astimezone(timezone(timedelta(hours=hours))) for hours in (0, 14, -12, 5)] + [instant]
    engine = create_engine(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL TIME ZONE 'Asia/Kathmandu'"))
        times.create(connection)
        connection.execute(times.insert(), [{"number": number, "at": at} for number, at in enumerate(given)])
        connection.execute(times.insert(), {"number": 99, "at": None})
        *found, nothing = connection.scalars(select(times.c.at).order_by(times.c.number)).all()
        assert (found, nothing) == ([instant] * len(given), None)
        assert {(at.utcoffset(), at.microsecond) for at in found} == {(timedelta(0), 123456)}
        for at in given:
            matching = select(times.c.number).where(times.c.at == at)
            assert len(connection.scalars(matching).all()) == len(given), "compared by wall clock, not by instant"
            assert connection.scalars(select(times.c.number).where(times.c.at < at)).all() == []
    engine.dispose()
