"""The commands for the schema: what is there, what is missing, what brings it here, and what they refuse."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from points_platform.cli import main as cli
from points_platform.cli.databases import VARIABLE
from points_platform.core import Database
from points_platform.migrations import HEAD, Stamp, stamp_of
from points_platform.wallets.verify import verify
from support.connections import administrator
from support.world import World


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    def refused(self, status: int = 2) -> str:
        """The one line that a failure is."""
        assert (self.status, self.out) == (status, "")
        assert (self.err.startswith("error: "), self.err.count("\n")) == (True, 1)
        return self.err


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in this process."""
    monkeypatch.delenv(VARIABLE, raising=False)

    def command(*arguments: str) -> Outcome:
        status = cli.main(["schema", *arguments])
        return Outcome(status, *capsys.readouterr())

    return command


@pytest.fixture
def nowhere(url: str, tmp_path: Path) -> str:
    """The URL of a place without a single table."""
    if url.startswith("sqlite"):
        sqlite3.connect(tmp_path / "empty.db").close()
        return f"sqlite:///{tmp_path}/empty.db"
    return make_url(url).update_query_dict({"schema": "points"}).render_as_string(hide_password=False)


def opened(url: str) -> Database:
    address = make_url(url)
    schema: Any = address.query.get("schema")
    return Database(address.difference_update_query(["schema"]), schema=schema)


def test_it_tells_nothing_from_all_and_brings_one_to_the_other(command: Command, nowhere: str) -> None:
    found = command("--database", nowhere)
    assert (found.status, found.out) == (1, f"nothing of the module is there; schema upgrade makes the schema {HEAD}\n")
    made = command("upgrade", "--database", nowhere)
    assert (made.status, made.out) == (0, f"the schema has come from nothing to {HEAD}\n")
    again = command("upgrade", "--database", nowhere)
    assert (again.status, again.out) == (0, f"the schema is at {HEAD} already; nothing was changed\n")
    found = command("--database", nowhere)
    assert found.status == 0
    assert found.out.splitlines() == [
        f"schema {HEAD}; this release has {HEAD}; releases from {HEAD} on may write",
        "all tables, triggers, constraints and indexes are there",
    ]
    with opened(nowhere) as database:
        World(database).credit()
        assert list(verify(database)) == []
        with database.engine.connect() as connection:
            assert stamp_of(connection, database.schema) == Stamp(HEAD, HEAD)


def test_what_is_missing_is_named(command: Command, url: str, database: Database) -> None:
    trigger = "ledger_log_no_update" if database.is_sqlite else "ledger_log_append_only"
    with database.engine.begin() as connection:
        connection.execute(text("DROP INDEX escrow_items_held"))
        off = f"DROP TRIGGER {trigger}" if database.is_sqlite else f"ALTER TABLE ledger_log DISABLE TRIGGER {trigger}"
        connection.execute(text(off))
    found = command("--database", url)
    assert found.status == 1
    instead = "" if database.is_sqlite else ", there is: disabled"
    assert found.out.splitlines()[1:] == [
        "missing: index escrow_items_held of escrow_items",
        f"missing: trigger {trigger} of ledger_log{instead}",
    ]
    told = json.loads(command("--database", url, "--json").out)
    assert told.pop("missing") == [
        {"what": "index", "table": "escrow_items", "name": "escrow_items_held", "found": None},
        {"what": "trigger", "table": "ledger_log", "name": trigger, "found": None if not instead else "disabled"},
    ]
    assert told == {"revision": HEAD, "head": HEAD, "oldest_writer": HEAD, "serves": True, "complete": False}


def test_a_release_that_is_too_old_is_told_so(command: Command, url: str, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE points_platform_schema SET version_num = '0009', oldest_writer = '0007'"))
    found = command("--database", url)
    assert found.status == 1
    assert "this release is too old to write to it" in found.out
    assert "releases from 0007 on may write" in found.out
    assert json.loads(command("--database", url, "--json").out)["serves"] is False
    assert "schema version 0009" in command("upgrade", "--database", url).refused()


def test_the_script_makes_what_upgrade_makes(command: Command, nowhere: str) -> None:
    of_database = command("sql", "--database", nowhere)
    dialect = "sqlite" if nowhere.startswith("sqlite") else "postgresql"
    named = ("--schema", "points") if dialect == "postgresql" else ()
    assert of_database == command("sql", "--dialect", dialect, *named)
    assert of_database.status == 0
    with opened(nowhere) as database:
        if database.is_sqlite:
            with closing(sqlite3.connect(database.engine.url.database or "")) as connection:
                connection.executescript(of_database.out)
        else:
            with administrator(database.engine.url) as other:
                other.execute(of_database.out.encode())
        assert database.schema_state().complete
        World(database).credit()
    assert command("sql", "--database", nowhere) == Outcome(0, "", "")


def test_a_url_from_the_environment_serves_every_one(
    command: Command, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, url)
    assert [command(*which).status for which in ((), ("upgrade",), ("sql",))] == [0, 0, 0]


def test_the_database_is_never_another_one_than_was_said(
    command: Command, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An option before the command's name would lose against the environment."""
    monkeypatch.setenv(VARIABLE, url)
    assert "--database after upgrade" in command("--database", f"sqlite:///{tmp_path}/other.db", "upgrade").refused()


REFUSED: dict[tuple[str, ...], str] = {
    (): f"set {VARIABLE}",
    ("upgrade",): f"set {VARIABLE}",
    ("sql",): f"set {VARIABLE}",
    ("--database", "sqlite:////nowhere/typo.db"): "no database file",
    ("sql", "--database", "sqlite:////nowhere/typo.db"): "no database file",
    ("sql", "--dialect", "mysql"): "postgresql, sqlite",
    ("sql", "--dialect", "sqlite", "--schema", "points"): "schema",
    ("sql", "--schema", "points", "--database", "{url}"): "?schema=NAME",
    ("--database", "{url}?schema=points"): "--database must be",
    ("nonsense",): "nonsense",
}


@pytest.mark.parametrize(("arguments", "expected"), REFUSED.items(), ids=lambda value: " ".join(value)[:60])
def test_what_cannot_be_done_is_one_line(
    command: Command, sqlite_url: str, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in command(*(each.format(url=sqlite_url) for each in arguments)).refused()


def test_rights_that_are_missing_are_named(command: Command, postgresql_url: str) -> None:
    role = f"looks_{make_url(postgresql_url).database}"
    with administrator(postgresql_url) as admin:
        admin.execute(f"CREATE ROLE {role}")
    try:
        limited = make_url(postgresql_url).update_query_dict({"options": f"-crole={role}", "schema": "points"})
        told = command("upgrade", "--database", limited.render_as_string(hide_password=False)).refused()
        assert f"CREATE on database {limited.database}" in told
    finally:
        with administrator(postgresql_url) as admin:
            admin.execute(f"DROP ROLE {role}")


def test_the_other_commands_find_the_schema_too(command: Command, nowhere: str, capsys: Any) -> None:
    assert command("upgrade", "--database", nowhere).status == 0
    with opened(nowhere) as database:
        World(database).credit()
    for arguments in (["balance", "user:ana"], ["seal"], ["verify"], ["rebuild", "--check"]):
        assert cli.main([*arguments, "--database", nowhere]) == 0, capsys.readouterr()
