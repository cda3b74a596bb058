"""Each test is given a database as if nobody had ever used it, whatever the test before has done to its own."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from points_platform.core import Base, Database
from points_platform.migrations import HEAD, Stamp, stamp_of
from support.connections import administrator, scalar
from support.databases import PostgreSQLDatabases, SQLiteDatabases
from support.emptied import Template
from support.world import World

# What a reader of a database's catalogue would ask for; on purpose not what decides whether it is used again.
DESCRIPTION = (
    "SELECT nspname, nspowner::regrole::text, nspacl::text FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_t%'",
    """SELECT oid::regclass::text, relkind::text, relowner::regrole::text, relacl::text, reloptions, relrowsecurity,
       relpersistence::text, relreplident::text, obj_description(oid, 'pg_class'),
       pg_get_viewdef(oid) FROM pg_class WHERE relnamespace = 'public'::regnamespace""",
    """SELECT attrelid::regclass::text, attname, atttypid::regtype::text, atttypmod, attnotnull, attacl::text,
       pg_get_expr(adbin, adrelid), attstattarget FROM pg_attribute LEFT JOIN pg_attrdef
       ON (adrelid, adnum) = (attrelid, attnum) WHERE attnum > 0 AND attrelid::regclass::text !~ '^(pg_|info)'""",
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint",
    "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index WHERE indrelid::regclass::text NOT LIKE 'pg_%'",
    "SELECT pg_get_triggerdef(oid), tgenabled::text FROM pg_trigger",
    "SELECT pg_get_functiondef(oid), proowner, proacl::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "SELECT pg_get_ruledef(oid), ev_enabled::text FROM pg_rewrite WHERE ev_class >= 16384",
    "SELECT polname, polrelid::regclass::text FROM pg_policy",
    "SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace",
    "SELECT evtname, evtevent, evtenabled::text FROM pg_event_trigger",
    "SELECT extname, extversion FROM pg_extension",
    "SELECT pubname FROM pg_publication",
    "SELECT defaclobjtype::text, defaclacl::text FROM pg_default_acl",
    "SELECT stxname FROM pg_statistic_ext",
    "SELECT loid FROM pg_largeobject",
    "SELECT starelid::regclass::text, staattnum FROM pg_statistic WHERE starelid >= 16384",
    """SELECT datdba::regrole::text, datconnlimit, datacl::text, datallowconn, datistemplate FROM pg_database
       WHERE datname = current_database()""",
    """SELECT setrole::regrole::text, setconfig FROM pg_db_role_setting JOIN pg_database d ON setdatabase = d.oid
       WHERE datname = current_database()""",
    # What sessions leave behind, and what is only theirs.
    """SELECT usename, application_name FROM pg_stat_activity WHERE datname = current_database()
       AND pid <> pg_backend_pid() AND backend_type = 'client backend'""",
    "SELECT locktype FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
    " WHERE datname = current_database())",
)


def described(url: str) -> dict[str, list[str]]:
    """The database's catalogue, and the rows of every table."""
    with administrator(url) as connection:
        asked = {query: connection.execute(query).fetchall() for query in DESCRIPTION}
        for (table,) in connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall():
            asked[table] = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))).fetchall()
    return {query: sorted(map(repr, rows)) for query, rows in asked.items()}


def identity(url: str) -> int:
    with administrator(url) as connection:
        return int(scalar(connection, "SELECT oid FROM pg_database WHERE datname = current_database()"))


@pytest.fixture(scope="module")
def pristine(postgresql_databases: PostgreSQLDatabases) -> Iterator[dict[str, list[str]]]:
    """What a copy of the template is like; it stays in use, so that none of these tests gets it."""
    databases = PostgreSQLDatabases(postgresql_databases.server)
    with databases.fresh() as url:
        description = described(url)
        assert {table.name for table in Base.metadata.sorted_tables} <= set(description)
        yield description
    databases.close()


def test_a_database_is_used_again_without_its_rows_under_another_name(
    postgresql_databases: PostgreSQLDatabases, pristine: dict[str, list[str]]
) -> None:
    with postgresql_databases.fresh() as first, Database(first) as database:
        before = identity(first)
        world = World(database)
        world.credit()
        world.settle(world.hold().escrow_id)
        world.ledger.seal()
        assert described(first) != pristine
    with postgresql_databases.fresh() as second:
        assert (identity(second), second != first) == (before, True)
        assert described(second) == pristine
        with Database(second) as database:
            World(database).credit()


def test_several_at_once_are_several(postgresql_databases: PostgreSQLDatabases, pristine: dict[str, list[str]]) -> None:
    for _ in range(2):
        with ExitStack() as stack:
            urls = [stack.enter_context(postgresql_databases.fresh()) for _ in range(3)]
            assert len(set(map(identity, urls))) == 3
            for url in urls:
                assert described(url) == pristine
                with Database(url) as database:
                    World(database).credit()


ROWS = {
    "a version changed": "UPDATE points_platform_schema SET version_num = '99'",
    "a version deleted": "DELETE FROM points_platform_schema",
    "a version added": "INSERT INTO points_platform_schema VALUES ('99')",
    "many versions": "INSERT INTO points_platform_schema SELECT g FROM generate_series(100, 2000) AS g",
}
CATALOGUE = {
    "a table": "CREATE TABLE notes (note text)",
    "a table without a column": "CREATE TABLE nothing ()",
    "a table of a schema": "CREATE SCHEMA other CREATE TABLE notes (note text)",
    "an empty schema": "CREATE SCHEMA other",
    "no table": "DROP TABLE user_wallets",
    "no table at all": "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    "no schema": "DROP SCHEMA public CASCADE",
    "a table by another name": "ALTER TABLE user_wallets RENAME TO wallets",
    "a copy in its place": "CREATE TABLE copied AS SELECT * FROM ledger_log; DROP TABLE ledger_log;"
    " ALTER TABLE copied RENAME TO ledger_log",
    "the same table again": "CREATE TABLE again (LIKE points_platform_schema INCLUDING ALL);"
    " DROP TABLE points_platform_schema; ALTER TABLE again RENAME TO points_platform_schema;"
    " INSERT INTO points_platform_schema VALUES ('0001')",
    "a column": "ALTER TABLE user_wallets ADD COLUMN note text",
    "no column": "ALTER TABLE escrow_items DROP COLUMN model_id",
    "a column of another type": "ALTER TABLE ledger_log ALTER COLUMN hash TYPE varchar(99)",
    "a default": "ALTER TABLE user_wallets ALTER COLUMN version SET DEFAULT 1",
    "a column that may be null": "ALTER TABLE ledger_log ALTER COLUMN hash DROP NOT NULL",
    "a constraint": "ALTER TABLE user_wallets ADD CONSTRAINT small CHECK (available < 1000)",
    "no constraint": "ALTER TABLE ledger_log DROP CONSTRAINT ledger_log_position",
    "no key": "ALTER TABLE ledger_log DROP CONSTRAINT ledger_log_pkey",
    "an index": "CREATE INDEX of_notes ON escrow_items (metadata)",
    "no index": """DO $$ BEGIN EXECUTE (SELECT 'DROP INDEX ' || indexrelid::regclass FROM pg_index
        LEFT JOIN pg_constraint ON conindid = indexrelid WHERE conindid IS NULL
        AND indrelid::regclass::text NOT LIKE 'pg_%' LIMIT 1); END $$""",
    "a disabled trigger": "ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_append_only",
    "disabled triggers": "ALTER TABLE ledger_entries DISABLE TRIGGER ALL",
    "a trigger for replicas": "ALTER TABLE ledger_entries ENABLE REPLICA TRIGGER ledger_entries_append_only",
    "a trigger that always fires": "ALTER TABLE ledger_entries ENABLE ALWAYS TRIGGER ledger_entries_append_only",
    "no trigger": "DROP TRIGGER ledger_entries_append_only ON ledger_entries",
    "a trigger": "CREATE TRIGGER see AFTER INSERT ON escrow_items EXECUTE FUNCTION ledger_entries_append_only()",
    "a trigger with its function": "CREATE FUNCTION mind() RETURNS trigger"
    " LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
    " CREATE TRIGGER minded BEFORE INSERT ON escrow_items FOR EACH ROW EXECUTE FUNCTION mind()",
    "a function": "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "another function of its name": "CREATE OR REPLACE FUNCTION ledger_entries_append_only() RETURNS trigger"
    " LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    "no function": "DROP FUNCTION ledger_entries_append_only() CASCADE",
    "a rule": "CREATE RULE nothing AS ON DELETE TO ledger_log_readers DO INSTEAD NOTHING",
    "a policy": "CREATE POLICY nobody ON escrow_items USING (false)",
    "row level security": "ALTER TABLE escrow_items FORCE ROW LEVEL SECURITY",
    "a sequence": "CREATE SEQUENCE failures",
    "a view": "CREATE VIEW seen AS SELECT 1",
    "a type": "CREATE TYPE kind AS ENUM ('a')",
    "a domain": "CREATE DOMAIN small AS int",
    "an event trigger": "CREATE FUNCTION see() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;"
    " CREATE EVENT TRIGGER seen ON ddl_command_end EXECUTE FUNCTION see()",
    "a publication": "CREATE PUBLICATION told FOR ALL TABLES",
    "a remark": "COMMENT ON TABLE user_wallets IS 'ours'",
    "storage options": "ALTER TABLE user_wallets SET (fillfactor = 50)",
    "an unlogged table": "ALTER TABLE ledger_log_readers SET UNLOGGED",
    "a right": "GRANT SELECT ON user_wallets TO PUBLIC",
    "a right to a column": "GRANT SELECT (available) ON user_wallets TO PUBLIC",
    "a right in the schema": "GRANT CREATE ON SCHEMA public TO PUBLIC",
    "a right to come": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "statistics": "ANALYZE user_wallets, points_platform_schema",
    "extended statistics": "CREATE STATISTICS both_of ON available, escrow FROM user_wallets",
    "a large object": "SELECT lo_from_bytea(0, 'abc')",
}
OF_THE_DATABASE = {
    "a setting": "ALTER DATABASE {} SET TimeZone = 'Asia/Kathmandu'",
    "a role's setting": "ALTER ROLE CURRENT_USER IN DATABASE {} SET default_transaction_isolation = 'serializable'",
    "a limit": "ALTER DATABASE {} CONNECTION LIMIT 7",
    "a right to the database": "REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
}


# What was only added is taken away, and the database is used again.
MENDED = [
    "a table",
    "a table without a column",
    "a sequence",
    "a view",
    "a function",
    "a trigger with its function",
    "an event trigger",
    "a setting",
    "a role's setting",
]


@pytest.fixture(scope="module")
def unused(postgresql_databases: PostgreSQLDatabases) -> Iterator[psycopg.Connection[Any]]:
    with postgresql_databases.fresh() as url, administrator(url) as connection:
        yield connection


@pytest.mark.parametrize("dirt", DIRT := CATALOGUE | OF_THE_DATABASE)
def test_a_database_with_dirt_that_is_no_row_is_used_again_only_without_it(
    unused: psycopg.Connection[Any], dirt: str
) -> None:
    template = Template(unused)
    with unused.transaction() as transaction:
        unused.execute(sql.SQL(DIRT[dirt]).format(sql.Identifier(unused.info.dbname)))
        assert template.restore(unused) == (dirt in MENDED)
        # Each of these goes with its transaction: one database is enough for all of them.
        raise psycopg.Rollback(transaction)
    assert template.restore(unused)


@pytest.mark.parametrize(
    "dirt",
    [
        *ROWS,
        *MENDED,
        "a table of a schema",
        "no table at all",
        "a disabled trigger",
        "another function of its name",
        "statistics",
    ],
)
def test_no_dirt_reaches_the_next_test(
    postgresql_databases: PostgreSQLDatabases, pristine: dict[str, list[str]], dirt: str
) -> None:
    with postgresql_databases.fresh():
        pass  # so that it is known what was written to its catalogue
    with postgresql_databases.fresh() as url, administrator(url) as connection:
        before = identity(url)
        statement = sql.SQL((ROWS | DIRT)[dirt])
        connection.execute(statement.format(sql.Identifier(connection.info.dbname)))
        assert described(url) != pristine
    with postgresql_databases.fresh() as url:
        assert described(url) == pristine
        assert (identity(url) == before) == (dirt in ROWS or dirt in MENDED)


def test_a_catalogue_that_nobody_has_written_to_is_not_read_again(
    postgresql_databases: PostgreSQLDatabases, pristine: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgresql_databases.fresh() as url:
        before = identity(url)
    monkeypatch.setattr(Template, "_read", lambda *given: pytest.fail("it was read"))
    with postgresql_databases.fresh() as url, Database(url) as database:
        World(database).credit()
    with postgresql_databases.fresh() as url:
        assert (identity(url), described(url)) == (before, pristine)


def test_a_database_that_was_dropped_or_renamed_is_replaced(
    postgresql_databases: PostgreSQLDatabases, pristine: dict[str, list[str]]
) -> None:
    for statement in ("DROP DATABASE {} WITH (FORCE)", "ALTER DATABASE {} RENAME TO points_platform_test_renamed"):
        with postgresql_databases.fresh() as url, administrator(postgresql_databases.server) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(make_url(url).database or "")))
        with postgresql_databases.fresh() as url:
            assert described(url) == pristine
    with administrator(postgresql_databases.server) as connection:
        connection.execute("DROP DATABASE points_platform_test_renamed")


def test_what_a_test_has_left_running_is_ended_and_does_not_come_back(
    postgresql_databases: PostgreSQLDatabases, pristine: dict[str, list[str]]
) -> None:
    with ExitStack() as stack:
        with postgresql_databases.fresh() as url:
            left = [stack.enter_context(administrator(url)) for _ in range(3)]
            left[0].execute("SELECT pg_advisory_lock(1)")
            left[1].execute("CREATE TEMPORARY TABLE mine (note text)")
            left[2].autocommit = False
            left[2].execute("LOCK TABLE user_wallets")
        with postgresql_databases.fresh() as another:
            assert described(another) == pristine
            for connection in left:
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("INSERT INTO points_platform_schema VALUES ('99')")
            with pytest.raises(psycopg.OperationalError):
                stack.enter_context(administrator(url))
            assert described(another) == pristine


def test_a_server_that_is_not_there_for_a_moment_costs_the_database_and_nothing_else(
    postgresql_databases: PostgreSQLDatabases, pristine: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> Any:
        monkeypatch.undo()
        raise psycopg.OperationalError("the database system is starting up")

    with postgresql_databases.fresh() as url:
        before = identity(url)
        with Database(url) as database:
            World(database).credit()
        monkeypatch.setattr(postgresql_databases, "_connect", refuse)
    with postgresql_databases.fresh() as url:
        assert identity(url) != before
        assert described(url) == pristine


def test_a_sqlite_file_is_a_copy_that_is_gone_afterwards(tmp_path: Path) -> None:
    databases = SQLiteDatabases(tmp_path)
    with databases.fresh() as first, databases.fresh() as second, Database(first) as database:
        World(database).credit()
        with Database(second) as other:
            assert World(other).snapshot()["ledger_entries"] == []
            with other.engine.connect() as connection:
                assert stamp_of(connection) == Stamp(HEAD, HEAD)
    assert [path.name for path in tmp_path.iterdir()] == ["template.db"]
