"""Verifying what the promises rest on: every trigger, constraint and index that was taken away or put out of force."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import Connection, text

from points_platform.core import Base, Database
from points_platform.ledger.verify import Finding
from points_platform.migrations import promises
from points_platform.wallets.verify import verify
from support.statements import statements
from support.world import World

LEDGER = ("ledger_transactions", "ledger_entries", "ledger_log")


@pytest.fixture
def used(database: Database) -> World:
    world = World(database)
    world.credit()
    world.settle(world.hold().escrow_id)
    world.ledger.seal()
    return world


def found_after(world: World, *damage: str) -> list[Finding]:
    with world.database.engine.begin() as connection:
        for statement in damage:
            connection.execute(text(statement))
    return list(verify(world.database))


def named(found: list[Finding]) -> list[tuple[str, str]]:
    return [(each.kind, next(reversed(each.ids.values()))) for each in found]


def names(connection: Connection, kind: str) -> list[tuple[str, str]]:
    """Table and name of everything of the kind, as the database says it."""
    queries = {
        "trigger": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal",
        "constraint": "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype IN ('c', 'p', 'u') "
        "AND connamespace = 'public'::regnamespace",
        "index": "SELECT tablename, indexname FROM pg_indexes WHERE schemaname = 'public' AND NOT EXISTS "
        "(SELECT FROM pg_constraint WHERE conname = indexname)",
    }
    sqlite = f"SELECT tbl_name, name FROM sqlite_master WHERE type = '{kind}' AND sql IS NOT NULL"
    query = sqlite if connection.dialect.name == "sqlite" else queries[kind]
    return sorted(map(tuple, connection.execute(text(query)).all()))


def test_what_is_promised_is_all_that_the_database_has(database: Database) -> None:
    """So nothing that the revisions make can be forgotten here."""
    with database.engine.connect() as connection:
        kinds = {kind: names(connection, kind) for kind in ("trigger", "index")}
        if not database.is_sqlite:
            kinds["constraint"] = names(connection, "constraint")
            kinds["constraint"].remove(("points_platform_schema", "points_platform_schema_pkey"))
            kinds["constraint"] += connection.execute(text(NOT_NULL)).all()
    dialect = database.engine.dialect.name
    for kind, there in kinds.items():
        assert sorted((each.table, each.name) for each in promises(dialect) if each.kind == kind) == sorted(there), kind
    columns = {(table.name, c.name) for table in Base.metadata.sorted_tables for c in table.c if not c.nullable}
    assert {(each.table, each.name) for each in promises(dialect) if each.says == f"{each.name} NOT NULL"} == columns


NOT_NULL = """SELECT attrelid::regclass::text, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND attnotnull
    AND relname <> 'points_platform_schema'"""


def dropped_on_postgresql() -> Iterator[tuple[str, str, str, str]]:
    for table in LEDGER:
        yield f"DROP TRIGGER {table}_append_only ON {table}", "trigger_missing", f"{table}_append_only", "None"
    for each in promises("postgresql"):
        if each.kind == "index":
            yield f"DROP INDEX {each.name}", "index_missing", each.name, "None"
        elif each.kind == "constraint" and each.says == f"{each.name} NOT NULL":
            if (each.table, each.name) in {("ledger_entries", "amount"), ("user_wallets", "available")}:
                statement = f"ALTER TABLE {each.table} ALTER COLUMN {each.name} DROP NOT NULL"
                yield statement, "constraint_missing", each.name, "None"
        elif each.kind == "constraint":
            yield f"ALTER TABLE {each.table} DROP CONSTRAINT {each.name}", "constraint_missing", each.name, "None"


def put_out_of_force() -> Iterator[tuple[str, str, str, str]]:
    for table in LEDGER:
        name = f"{table}_append_only"
        yield f"ALTER TABLE {table} DISABLE TRIGGER {name}", "trigger_missing", name, "disabled"
        yield f"ALTER TABLE {table} DISABLE TRIGGER ALL", "trigger_missing", name, "disabled"
        yield f"ALTER TABLE {table} ENABLE REPLICA TRIGGER {name}", "trigger_missing", name, "disabled"
    again = "ALTER TABLE {0} DROP CONSTRAINT {1}; ALTER TABLE {0} ADD CONSTRAINT {1} {2}"
    wallets, entries = ("user_wallets", "user_wallets_balance"), ("ledger_entries", "ledger_entries_version")
    weaker = "CHECK (available >= 0)"
    yield again.format(*wallets, weaker), "constraint_missing", wallets[1], "CHECK available >= 0"
    same = "CHECK (available >= 0 AND escrow >= 0 AND paying >= 0 AND available + escrow + paying <= 9007199254740991)"
    yield again.format(*wallets, f"{same} NOT VALID"), "constraint_missing", wallets[1], "not valid"
    narrow = "UNIQUE (account_id, currency, bucket, wallet_version, amount)"
    found = "UNIQUE account_id currency bucket wallet_version amount"
    yield again.format(*entries, narrow), "constraint_missing", entries[1], found
    invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{}'::regclass"
    yield invalid.format("ledger_entries_account"), "index_missing", "ledger_entries_account", "invalid"
    yield invalid.format(entries[1]), "constraint_missing", entries[1], "invalid"
    other = "DROP INDEX escrow_items_held; CREATE INDEX escrow_items_held ON escrow_items (escrow_id)"
    yield other, "index_missing", "escrow_items_held", "CREATE INDEX escrow_items_held ON escrow_items escrow_id"
    function = "ledger_log_append_only"
    body = "BEGIN RETURN NULL; END"
    replaced = f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
    yield replaced, "trigger_missing", function, "BEGIN RETURN NULL END"


@pytest.mark.parametrize(
    ("damage", "kind", "name", "instead"), [*dropped_on_postgresql(), *put_out_of_force()], ids=lambda text: text[:60]
)
def test_on_postgresql_it_is_named(postgresql_url: str, damage: str, kind: str, name: str, instead: str) -> None:
    with Database(postgresql_url) as database:
        (finding,) = found_after(World(database), damage)
        assert (finding.kind, str(finding.found)) == (kind, instead)
        assert name in finding.ids.values()


def test_a_trigger_that_is_enabled_always_serves(postgresql_url: str) -> None:
    with Database(postgresql_url) as database:
        always = "ALTER TABLE ledger_log ENABLE ALWAYS TRIGGER ledger_log_append_only"
        assert found_after(World(database), always) == []


def test_a_server_that_calls_no_triggers_is_named(postgresql_url: str) -> None:
    with Database(postgresql_url) as database:
        with database.engine.begin() as connection:
            name = connection.scalar(text("SELECT current_database()"))
            connection.execute(text(f'ALTER DATABASE "{name}" SET session_replication_role = replica'))
        database.engine.dispose()
        assert named(list(verify(database))) == [("trigger_missing", f"{table}_append_only") for table in LEDGER]


def test_on_sqlite_every_trigger_and_index_that_is_gone_is_named(sqlite_url: str) -> None:
    with Database(sqlite_url) as database:
        with database.engine.connect() as connection:
            there = {kind: [name for _, name in names(connection, kind)] for kind in ("trigger", "index")}
        damage = [f"DROP {kind} {name}" for kind, found in there.items() for name in found]
        found = named(found_after(World(database), *damage))
        assert sorted(found) == sorted((f"{kind}_missing", name) for kind in there for name in there[kind])
        assert len(found) == 11


CHANGED: dict[str, tuple[Callable[[str], str], str]] = {
    "ledger_entries": (lambda sql: sql.replace("amount <> 0 OR", "1 = 1 OR"), "ledger_entries_amount"),
    "ledger_transactions": (
        lambda sql: re.sub(r",\s*CONSTRAINT \w+ UNIQUE \([^)]*\)", "", sql),
        "ledger_transactions_idempotency_key",
    ),
    "ledger_log": (lambda sql: re.sub(r",\s*UNIQUE \(transaction_id\)", "", sql), "ledger_log_transaction_id_key"),
    "user_wallets": (lambda sql: sql.replace("available BIGINT NOT NULL", "available BIGINT"), "available"),
    "deposit_claims": (lambda sql: re.sub(r"PRIMARY KEY \([^)]*\),", "", sql), "deposit_claims_pkey"),
}


@pytest.mark.parametrize("table", CHANGED)
def test_on_sqlite_a_constraint_that_a_changed_table_lacks_is_named(sqlite_url: str, table: str) -> None:
    change, name = CHANGED[table]
    with Database(sqlite_url) as database:
        rebuild(database, table, change)
        assert named(list(verify(database))) == [("constraint_missing", name)]


def test_on_sqlite_a_table_that_was_made_anew_as_it_was_has_no_finding(sqlite_url: str) -> None:
    with Database(sqlite_url) as database:
        World(database).credit()
        for table in CHANGED:
            rebuild(database, table, lambda sql: sql)
        assert list(verify(database)) == []


def rebuild(database: Database, table: str, change: Callable[[str], str]) -> None:
    """As SQLite's documentation says how to change a table, with its indexes and triggers."""
    with closing(sqlite3.connect(database.engine.url.database or "")) as connection:
        kept: Any = connection.execute(
            "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type <> 'table' AND sql IS NOT NULL", [table]
        ).fetchall()
        (made,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", [table]).fetchone()
        connection.execute(change(made).replace(f"CREATE TABLE {table}", f"CREATE TABLE {table}_new"))
        connection.execute(f"INSERT INTO {table}_new SELECT * FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE {table}_new RENAME TO {table}")
        for (sql,) in kept:
            connection.execute(sql)
        connection.commit()


def test_what_a_host_has_added_is_none_of_ours(used: World) -> None:
    added = ["CREATE TABLE orders (id integer PRIMARY KEY)", "CREATE INDEX of_host ON ledger_entries (amount)"]
    assert found_after(used, *added, "ALTER TABLE escrow_items ADD COLUMN host_note TEXT") == []


def test_it_is_one_statement_whatever_the_size(used: World) -> None:
    with statements(used.database.engine) as seen:
        assert list(verify(used.database)) == []
    assert len([each for each in seen if "pg_trigger" in each or "sqlite_master WHERE sql" in each]) == 1


def test_the_ledger_alone_can_be_verified_without_its_walls(used: World) -> None:
    """A row can be put right from a ledger that is whole, whoever has taken down a trigger."""
    name = "ledger_log_no_update" if used.database.is_sqlite else "ledger_log_append_only ON ledger_log"
    assert [each.kind for each in found_after(used, f"DROP TRIGGER {name}")] == ["trigger_missing"]
    assert list(verify(used.database, ledger_only=True)) == []
