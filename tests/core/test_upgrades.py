"""From one release's schema to the next: by the module, by a host's own migrations, by a script; and meanwhile."""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from points_platform.core import Database, InvalidRequestError, SchemaVersionError, StorageUnavailableError
from points_platform.migrations import (
    HEAD,
    Stamp,
    include_object,
    include_object_outside,
    metadata,
    revisions,
    script,
    stamp_of,
    upgrade,
)
from points_platform.wallets import WalletConfig
from points_platform.wallets.verify import verify
from support.connections import administrator, scalar
from support.dump import dump
from support.recount import recount
from support.world import World, at_once

VERSIONS = Path(revisions.__file__).parent / "versions"
NEXT = "0002"
SECOND = f'''
revision = "{NEXT}"
down_revision = "{HEAD}"
oldest_writer = "{{oldest_writer}}"


def upgrade(execute, dialect, at):
    execute(f"ALTER TABLE {{{{at}}}}deposit_claims ADD COLUMN note TEXT")
    execute(f"CREATE INDEX deposit_claims_note ON {{{{at}}}}deposit_claims (note) WHERE note IS NOT NULL")
'''


class NextRelease:
    """A release after this one, which shares everything with it but a revision."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        shutil.copytree(VERSIONS, folder / "versions", ignore=shutil.ignore_patterns("__pycache__"))

    def upgrades(self, make: Callable[[], object], *, oldest_writer: str = HEAD) -> None:
        """What is made in the next release."""
        (self._folder / "versions" / "v0002_note.py").write_text(SECOND.format(oldest_writer=oldest_writer))
        with self._monkeypatch.context() as patched:
            patched.setattr(revisions, "FOLDER", self._folder)
            patched.setattr(revisions, "HEAD", NEXT)
            make()


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NextRelease:
    return NextRelease(tmp_path, monkeypatch)


@pytest.fixture
def old(url: str) -> Iterator[Database]:
    """A database of this release."""
    with Database(url) as database:
        yield database


@pytest.fixture
def fresh(url: str, tmp_path: Path) -> Iterator[Database]:
    """A place without a single table."""
    elsewhere = "other" if url.startswith("postgresql") else None
    with Database(url if elsewhere else f"sqlite:///{tmp_path}/fresh.db", schema=elsewhere) as database:
        yield database


def made_in(database: Database) -> Any:
    with database.engine.connect() as connection:
        return dump(connection, database.schema or "public"), stamp_of(connection, database.schema)


def upgraded(*databases: Database) -> None:
    """What ``create_schema`` does, without the look at the release that this process is."""
    for database in databases:
        with database.engine.begin() as connection:
            upgrade(connection, database.schema)


def used(database: Database) -> World:
    """A platform on which something has happened."""
    world = World(database)
    world.credit()
    world.settle(world.hold().escrow_id)
    world.deposit()
    world.hold()
    world.ledger.seal()
    return world


# ── from one release to the next ──


def test_a_schema_that_was_upgraded_with_rows_is_the_one_that_is_made_at_once(
    old: Database, fresh: Database, following: NextRelease
) -> None:
    world = used(old)
    before = world.snapshot()
    following.upgrades(lambda: upgraded(old, fresh))
    (came, stamp), (made, other) = made_in(old), made_in(fresh)
    assert stamp == other == Stamp(NEXT, HEAD)
    assert came == made
    assert any("deposit_claims_note" in str(row) for row in came), "the second revision has left nothing"
    after = world.snapshot()
    assert [row[:-1] for row in after.pop("deposit_claims")] == before.pop("deposit_claims")
    assert after == before
    assert list(verify(old)) == []


def test_an_upgrade_that_is_cut_off_leaves_the_schema_of_before_and_can_be_repeated(
    old: Database, following: NextRelease
) -> None:
    world = used(old)
    before, rows = made_in(old), world.snapshot()

    def cut(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "CREATE INDEX deposit_claims_note" in statement:
            raise KeyboardInterrupt

    def interrupted() -> None:
        event.listen(old.engine, "before_cursor_execute", cut)
        with pytest.raises(KeyboardInterrupt):
            upgraded(old)
        event.remove(old.engine, "before_cursor_execute", cut)

    following.upgrades(interrupted)
    assert (made_in(old), world.snapshot()) == (before, rows)
    world.hold(amount=1)
    following.upgrades(lambda: upgraded(old))
    assert made_in(old)[1] == Stamp(NEXT, HEAD)
    assert list(verify(old)) == []


def test_four_can_upgrade_at_once(old: Database, following: NextRelease) -> None:
    used(old)
    engines = [create_engine(old.engine.url) for _ in range(4)]

    def one(engine: Any) -> Callable[[], None]:
        def work() -> None:
            with engine.begin() as connection:
                upgrade(connection)

        return work

    outcomes: list[Any] = []
    following.upgrades(lambda: outcomes.extend(at_once(*map(one, engines))))
    assert outcomes == [None] * 4
    assert made_in(old)[1] == Stamp(NEXT, HEAD)
    assert list(verify(old)) == []
    for engine in engines:
        engine.dispose()


# ── a process of the release before, while it runs ──


def writes(world: World) -> dict[str, Callable[[], object]]:
    """What an old process may be about to do, each with a connection that it has used before."""
    held = [world.hold(amount=1).escrow_id for _ in range(3)]
    return {
        "credit": world.credit,
        "settle": lambda: world.settle(held[0], amount=1),
        "open": lambda: world.open("user:new"),
        "deposit": world.deposit,
        "batch": lambda: world.wallets.credit_many([world.credit_request(), world.credit_request()]),
        "seal": world.ledger.seal,
        "move": lambda: world.ledger.reader("follower").move(1, seen=0),
    }


def too_old(call: Callable[[], object]) -> None:
    with pytest.raises(SchemaVersionError) as refused:
        call()
    assert refused.value.details == {"found": NEXT, "expected": HEAD}
    assert not refused.value.retryable


@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
@pytest.mark.parametrize("attempts", [0, 3])
def test_a_process_that_has_become_too_old_stops_by_name(
    url: str, following: NextRelease, single: bool, attempts: int
) -> None:
    with Database(url, single_statement=single) as database:
        world = World(database, config=WalletConfig(max_retry_attempts=attempts, retry_backoff_ms=1))
        world.credit()
        world.ledger.seal()
        calls = writes(world)
        following.upgrades(lambda: upgraded(database), oldest_writer=NEXT)
        before = world.snapshot()
        for call in calls.values():
            database._home.checked = True  # as if it were the first one
            too_old(call)
        with Session(database.engine) as session:
            database._home.checked = True
            too_old(lambda: world.wallets.credit_user(world.credit_request(), session=session))
        assert world.snapshot() == before
        for call in [*calls.values(), lambda: world.wallets.get_user_balance("ana"), database.create_schema]:
            too_old(call)


@pytest.mark.parametrize("single", [True, False], ids=["single", "stepwise"])
def test_a_process_goes_on_where_a_newer_release_lets_it_write(url: str, following: NextRelease, single: bool) -> None:
    with Database(url, single_statement=single) as database:
        world = World(database)
        world.credit()
        calls = writes(world)
        following.upgrades(lambda: upgraded(database))
        for call in calls.values():
            call()
        database.create_schema()
        assert made_in(database)[1] == Stamp(NEXT, HEAD)
        assert list(verify(database)) == []


def test_what_a_newer_release_has_taken_away_is_named_by_the_release_it_needs(url: str) -> None:
    """Where a statement cannot even be understood any more."""
    with Database(url, single_statement=False) as database, Database(url) as other:
        world = World(database)
        world.credit()
        with other.engine.begin() as connection:
            connection.execute(text("ALTER TABLE user_wallets RENAME COLUMN available TO ready"))
            connection.execute(
                text(f"UPDATE points_platform_schema SET version_num = '{NEXT}', oldest_writer = '{NEXT}'")
            )
        too_old(lambda: world.wallets.get_user_balance("ana"))


def test_an_upgrade_that_shuts_old_writers_out_waits_for_those_that_are_at_it(
    postgresql_url: str, following: NextRelease
) -> None:
    """Else what a writer has decided by the old rules would come after the new ones."""
    with Database(postgresql_url) as database, Database(postgresql_url) as newer, ThreadPoolExecutor(1) as threads:
        world = World(database)
        world.credit()
        with Session(database.engine) as session:
            world.wallets.hold_in_escrow(world.hold_request(), session=session)
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            following_done = threads.submit(following.upgrades, lambda: upgraded(newer), oldest_writer=NEXT)
            wait_for_somebody_behind(postgresql_url, pid)
            assert not following_done.done()
            session.commit()
        following_done.result()
        assert len(world.events) == 2
        too_old(world.credit)
        recount(newer)


def wait_for_somebody_behind(url: str, pid: int) -> None:
    deadline = time.monotonic() + 30
    with administrator(url) as observer:
        while not scalar(observer, "SELECT 1 FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", pid):
            assert time.monotonic() < deadline, "nobody came to wait"


# ── what is no connection ──


def no_connections() -> dict[str, Any]:
    return {
        "None": None,
        "engine": create_engine("sqlite:///nowhere.db"),
        "session": Session(),
        "text": "sqlite:///nowhere.db",
        "metadata": MetaData(),
    }


@pytest.mark.parametrize("what", no_connections())
def test_what_is_no_connection_is_refused_with_what_is_right(what: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"op\.get_bind\(\)") as refused:
        upgrade(no_connections()[what])
    assert refused.value.details["field"] == "connection"
    if what == "None":
        assert "schema sql" in str(refused.value), "it is what Alembic's offline mode has"


def test_a_connection_that_commits_each_statement_is_refused(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(InvalidRequestError, match="autocommit"):
        upgrade(connection, "points")
    engine.dispose()


def test_a_connection_that_translates_schemas_is_refused(url: str) -> None:
    engine = create_engine(url, execution_options={"schema_translate_map": {None: "tenant_b"}})
    with engine.connect() as connection, pytest.raises(InvalidRequestError, match="schema_translate_map"):
        upgrade(connection)
    engine.dispose()


@pytest.mark.parametrize("schema", ["a b", "pg_points", 5, ""])
def test_what_is_no_name_of_a_schema_is_refused(url: str, schema: Any) -> None:
    engine = create_engine(url)
    with engine.connect() as connection, pytest.raises(InvalidRequestError) as refused:
        upgrade(connection, schema)
    assert refused.value.details["field"] == "schema"
    engine.dispose()


# ── a host's own migrations ──

ENVIRONMENT = """
from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, **context.config.attributes["options"])
with context.begin_transaction():
    context.run_migrations()
"""
REVISION = """
from alembic import op
import sqlalchemy as sa
from points_platform import migrations

revision = "a1"
down_revision = None


def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))
    migrations.upgrade(op.get_bind(){schema})
    op.add_column("orders", sa.Column("note", sa.Text))
    op.execute("INSERT INTO orders (id) VALUES (1)")
"""


def hosts_migrations(folder: Path, connection: Any, schema: str | None) -> Config:
    (folder / "host" / "versions").mkdir(parents=True)
    (folder / "host" / "env.py").write_text(ENVIRONMENT)
    said = "" if schema is None else f', schema="{schema}"'
    (folder / "host" / "versions" / "a1_points.py").write_text(REVISION.format(schema=said))
    config = Config()
    config.set_main_option("script_location", str(folder / "host"))
    config.attributes.update(connection=connection, options={})
    return config


@pytest.fixture(params=["sqlite", "postgresql", "postgresql in a schema"])
def hosted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A host's database, without a table of the module's where the module wants them."""
    if request.param == "sqlite":
        target, schema = f"sqlite:///{tmp_path}/host.db", None
    else:
        target, schema = request.getfixturevalue("postgresql_url"), "points" if "schema" in request.param else None
    with Database(target, schema=schema) as database:
        if "postgresql" in request.param:
            with database.engine.begin() as connection:
                connection.execute(text("DROP SCHEMA public CASCADE"))
                connection.execute(text("CREATE SCHEMA public"))
        yield database


def test_a_hosts_revision_makes_what_create_schema_makes(hosted: Database, tmp_path: Path) -> None:
    engine = create_engine(hosted.engine.url)
    with engine.begin() as connection:
        command.upgrade(hosts_migrations(tmp_path, connection, hosted.schema), "head")
        assert connection.scalar(text("SELECT id FROM orders WHERE note IS NULL")) == 1
    engine.dispose()
    hosted.create_schema()
    World(hosted).credit()
    assert list(verify(hosted)) == []
    with other_database(hosted, tmp_path) as fresh:
        fresh.create_schema()
        made, stamp = made_in(hosted)
        ours = [row for row in made if "orders" not in str(row) and "alembic_version" not in str(row)]
        assert (ours, stamp) == made_in(fresh)


def other_database(hosted: Database, tmp_path: Path) -> Database:
    if hosted.is_sqlite:
        return Database(f"sqlite:///{tmp_path}/other.db")
    return Database(hosted.engine.url, schema="another")


def differences(database: Database, target: Any, **options: Any) -> list[Any]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, **options})
        return list(compare_metadata(context, target))


def hosts_metadata() -> MetaData:
    tables = MetaData()
    Table("orders", tables, Column("id", Integer, primary_key=True))
    return tables


def test_autogenerate_sees_nothing_of_the_modules(hosted: Database) -> None:
    hosted.create_schema()
    hosts_metadata().create_all(hosted.engine)
    everywhere = {"include_schemas": hosted.schema is not None}
    assert differences(hosted, hosts_metadata(), **everywhere), "without a word it would drop the module's tables"
    assert differences(hosted, hosts_metadata(), include_object=include_object, **everywhere) == []
    with_ours = [hosts_metadata(), metadata(hosted.schema)]
    assert differences(hosted, with_ours, include_object=include_object, **everywhere) == []
    ignored = {"points_platform_schema"}
    seen = differences(hosted, with_ours, **everywhere)
    assert {each[1].name for each in seen} <= ignored, "the tables are not what the metadata says"


def test_autogenerate_sees_a_hosts_tables_of_the_same_names_in_another_schema(postgresql_url: str) -> None:
    with Database(postgresql_url, schema="points") as database:
        database.create_schema()
        tables = MetaData()
        Table("host_orders", tables, Column("id", Integer, primary_key=True))
        outside = include_object_outside("points")
        found = differences(database, tables, include_object=outside, include_schemas=True)
        dropped = {each[1].name for each in found if each[0] == "remove_table"}
        assert "user_wallets" in dropped, "those in public are another's, by what was said"
        assert {each[1].schema for each in found if each[0] == "remove_table"} == {None}


# ── a script for somebody else ──


def run_script(database: Database, statements: list[str]) -> None:
    if database.is_sqlite:
        with closing(sqlite3.connect(database.engine.url.database or "")) as connection:
            connection.executescript("".join(f"{statement};\n" for statement in statements))
        return
    with administrator(database.engine.url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_the_script_makes_what_the_module_makes(fresh: Database, old: Database) -> None:
    dialect = fresh.engine.dialect.name
    run_script(fresh, list(script(dialect, fresh.schema)))
    assert made_in(fresh) == made_in(old)
    fresh.create_schema()
    World(fresh).credit()
    assert list(verify(fresh)) == []
    assert list(script(dialect, since=Stamp(HEAD, HEAD))) == []


@pytest.mark.parametrize("oldest_writer", [HEAD, NEXT])
def test_the_script_brings_an_older_database_where_the_module_brings_it(
    old: Database, fresh: Database, following: NextRelease, oldest_writer: str
) -> None:
    used(old)
    dialect = old.engine.dialect.name

    def both() -> None:
        run_script(old, list(script(dialect, since=made_in(old)[1])))
        upgraded(fresh)

    following.upgrades(both, oldest_writer=oldest_writer)
    assert made_in(old) == made_in(fresh)
    assert made_in(old)[1] == Stamp(NEXT, oldest_writer)


@pytest.mark.parametrize(("dialect", "schema", "field"), [("mysql", None, "dialect"), ("sqlite", "points", "schema")])
def test_a_script_for_another_engine_is_refused(dialect: str, schema: str | None, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        list(script(dialect, schema))
    assert refused.value.details["field"] == field


def test_two_that_open_a_new_file_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No busy timeout counts for a file's change to WAL."""
    file = tmp_path / "new.db"
    first = sqlite3.connect(file, isolation_level=None)
    first.execute("CREATE TABLE host (id INTEGER)")
    first.execute("BEGIN IMMEDIATE")
    first.execute("INSERT INTO host VALUES (1)")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        first.execute("COMMIT")

    monkeypatch.setattr("points_platform.core.engines.time.sleep", pause)
    with Database(f"sqlite:///{file}") as database:
        database.create_schema()
        World(database).credit()
    assert len(pauses) == 1
    first.close()


# ── what an upgrade leaves as it was ──


def test_the_hosts_transaction_keeps_its_timeout_and_its_search_path(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '3s'"))
        connection.execute(text("SET LOCAL search_path = pg_temp, public"))
        upgrade(connection, "points")
        assert connection.scalar(text("SHOW lock_timeout")) == "3s"
        assert connection.scalar(text("SHOW search_path")) == "pg_temp, public"
        assert not connection.get_execution_options().get("schema_translate_map")
    engine.dispose()


def test_what_helps_depends_on_who_is_older() -> None:
    assert "create_schema()" in str(SchemaVersionError(found=None, expected=HEAD))
    assert "create_schema()" in str(SchemaVersionError(found="0000", expected=HEAD))
    newer = str(SchemaVersionError(found=NEXT, expected=HEAD))
    assert "a newer release" in newer
    assert "create_schema()" not in newer


def test_an_upgrade_waits_for_a_table_no_longer_than_it_says(
    postgresql_url: str, following: NextRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions, "LOCK_TIMEOUT", "1ms")
    with Database(postgresql_url) as database, Session(database.engine) as session:
        world = World(database)
        world.credit()
        before = made_in(database)
        session.execute(text("SELECT * FROM deposit_claims"))

        def refused() -> None:
            with pytest.raises(OperationalError, match="lock timeout"):
                upgraded(database)

        following.upgrades(refused)
        session.rollback()
        assert made_in(database) == before
        following.upgrades(lambda: upgraded(database))
        assert made_in(database)[1] == Stamp(NEXT, HEAD)


def test_a_role_that_does_not_own_the_tables_is_told_what_an_upgrade_needs(
    postgresql_url: str, following: NextRelease
) -> None:
    role = f"upgrades_{make_url(postgresql_url).database}"
    with administrator(postgresql_url) as admin:
        admin.execute(f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA public TO {role}")
        admin.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        limited = make_url(postgresql_url).update_query_dict({"options": f"-crole={role}"})
        with Database(limited) as database:

            def refused() -> None:
                with pytest.raises(StorageUnavailableError) as told:
                    database.create_schema()
                assert "ownership of deposit_claims" in told.value.details["missing"]
                assert not told.value.retryable

            following.upgrades(refused)
    finally:
        with administrator(postgresql_url) as admin:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
