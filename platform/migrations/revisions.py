"""Running the revisions, and telling where a database stands."""

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text

from .given import DIALECTS, check_connection, check_schema, refused

HEAD = "0001"
BASELINE = "0001"
VERSION_TABLE = "points_platform_schema"
FOLDER = Path(__file__).parent
# Any number that nobody else takes: those who upgrade one database come one after the other.
LOCK = 0x706F696E7473
LOCK_TIMEOUT = "10s"
TABLE = re.compile(r"CREATE TABLE (?:\"[^\"]+\"\.)?(\w+)")

# ``oldest_writer`` is the oldest head with which a release may still write, so that releases can be rolled out.
_VERSIONS = f"""
    CREATE TABLE {{at}}{VERSION_TABLE} (
        version_num VARCHAR(32) NOT NULL,
        oldest_writer VARCHAR(32) DEFAULT '{BASELINE}' NOT NULL,
        CONSTRAINT {VERSION_TABLE}_pkey PRIMARY KEY (version_num)
    )
"""
_RAISE = f"UPDATE {{at}}{VERSION_TABLE} SET oldest_writer = '{{oldest_writer}}'"
_PLACE = text(f"""
    SELECT n.nspname, current_schema() FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = '{VERSION_TABLE}' AND c.relkind IN ('r', 'p')
      AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = :schema END
""")


class Stamp(NamedTuple):
    """Where a database stands: its revision, and the oldest release (by its head) that may write to it."""

    revision: str
    oldest_writer: str

    @property
    def serves(self) -> bool:
        """Whether this release may write to it."""
        return self.oldest_writer <= HEAD <= self.revision


class TableInTheWayError(Exception):
    """A table of the database has a name of ours, and is not ours."""

    def __init__(self, table: str) -> None:
        super().__init__(f"a table {table} that is not the module's")
        self.table = table


def stamp_of(connection: Connection, schema: str | None = None) -> Stamp | None:
    """Where the database stands; ``None`` if it has none of our tables.

    On PostgreSQL they are looked for in the schema, by default the first one of the search path. Raises
    ``InvalidRequestError`` where the search path finds them in another one: they may be those of another tenant.
    """
    if connection.dialect.name != "sqlite":
        found = connection.execute(_PLACE, {"schema": schema}).first()
        if found is None:
            return None
        if schema is None and found[0] != found[1]:
            raise misplaced(*found)
    elif not inspect(connection).has_table(VERSION_TABLE):
        return None
    versions = f"SELECT version_num, oldest_writer FROM {_at(schema)}{VERSION_TABLE}"
    row = connection.execute(text(versions)).first()
    return None if row is None else Stamp(str(row[0]), str(row[1]))


def misplaced(found: str, first: str | None) -> Exception:
    """Why tables in one schema are not taken where the search path begins with another one."""
    value = f"the module's tables in the schema {found}, while the search path begins with {first}"
    expected = f'a database whose search path begins with the schema of the tables; or say schema="{found}"'
    return refused("database", value, expected)


def upgrade(connection: Connection, schema: str | None = None) -> None:
    """Bring the database to this release's schema, in the connection's transaction; what is there already stays.

    ``schema`` is where the tables are on PostgreSQL, by default the first schema of the search path; it is made if
    it is not there. A database of a newer release, or of none that is known, is left as it is. Waits for whoever
    upgrades it at the same time. Raises ``InvalidRequestError`` for what is no connection in a transaction,
    ``TableInTheWayError`` before anything is created, and SQLAlchemy's errors.
    """
    check_connection(connection, schema)
    timeout = _begin(connection)
    stamp = stamp_of(connection, schema)
    scripts = _scripts()
    pending = [each for each in _all(scripts) if stamp is None or each.revision > stamp.revision]
    if stamp is None:
        _make_room(connection, schema)
        connection.execute(text(_VERSIONS.format(at=_at(schema))))
    if stamp is None or (pending and stamp.revision in {each.revision for each in _all(scripts)}):
        _run(connection, schema, scripts, _raised(pending, stamp))
    if timeout is not None:
        connection.execute(_SET_TIMEOUT, {"timeout": timeout})


def _run(connection: Connection, schema: str | None, scripts: ScriptDirectory, oldest_writer: str | None) -> None:
    if oldest_writer is not None and connection.dialect.name != "sqlite":
        # Whoever has looked there whether it may write has ended by then, and everybody else looks afterwards.
        connection.execute(text(f"LOCK TABLE {_at(schema)}{VERSION_TABLE} IN ACCESS EXCLUSIVE MODE"))
    options = {
        "version_table": VERSION_TABLE,
        "version_table_schema": schema,
        "fn": lambda revision, context: scripts._upgrade_revs(HEAD, revision),
    }
    context = MigrationContext.configure(connection, opts=options)
    context.run_migrations(execute=context.execute, dialect=connection.dialect.name, at=_at(schema))
    if oldest_writer is not None:
        connection.execute(text(_RAISE.format(at=_at(schema), oldest_writer=oldest_writer)))


def _raised(pending: Sequence[Script], stamp: Stamp | None) -> str | None:
    """The oldest writer that these revisions leave, where it is another one than before."""
    before = Stamp("", BASELINE) if stamp is None else stamp
    oldest: str = max((each.module.oldest_writer for each in pending), default=before.oldest_writer)
    return oldest if oldest > before.oldest_writer else None


_SET_TIMEOUT = text("SELECT set_config('lock_timeout', :timeout, true)")


def _begin(connection: Connection) -> str | None:
    """Wait for others, in the transaction; returns the timeout of before for waiting for tables."""
    if connection.dialect.name == "sqlite":
        # Left to itself the driver begins before rows are written, and not before tables are made.
        if not getattr(connection.connection.dbapi_connection, "in_transaction", True):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        return None
    timeout: str | None = connection.scalar(text("SELECT current_setting('lock_timeout')"))
    connection.execute(_SET_TIMEOUT, {"timeout": LOCK_TIMEOUT})
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    return timeout


def _at(schema: str | None) -> str:
    return "" if schema is None else f'"{schema}".'


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(FOLDER, version_locations=[FOLDER / "versions"])


def _all(scripts: ScriptDirectory) -> list[Script]:
    """The revisions, the oldest first."""
    return [*scripts.walk_revisions()][::-1]


def statements(dialect: str, schema: str | None = None, *, since: str | None = None) -> Iterator[tuple[str, str]]:
    """What the revisions after that one execute, by default all of them: each statement with its revision."""
    check_schema(schema, dialect)
    for script in _all(_scripts()):
        if since is None or script.revision > since:
            made: list[str] = []
            make: Callable[..., None] = script.module.upgrade
            make(execute=made.append, dialect=dialect, at=_at(schema))
            yield from ((script.revision, statement) for statement in made)


def script(dialect: str, schema: str | None = None, *, since: Stamp | None = None) -> Iterator[str]:
    """What ``upgrade`` would execute on a database that stands there, or on an empty one, for somebody else to run.

    One transaction, statement by statement; nothing where there is nothing to do. Raises ``InvalidRequestError`` for
    what is no dialect, and for a schema that it does not have.
    """
    if dialect not in DIALECTS:
        raise refused("dialect", dialect, f"one of {', '.join(DIALECTS)}")
    check_schema(schema, dialect)
    pending = [each for each in _all(_scripts()) if since is None or each.revision > since.revision]
    if not pending:
        return
    at, oldest_writer = _at(schema), _raised(pending, since)
    yield from _beginning(dialect, schema, since, shuts_out=oldest_writer is not None)
    yield from (statement for _, statement in statements(dialect, schema, since=since and since.revision))
    if since is None:
        yield f"INSERT INTO {at}{VERSION_TABLE} (version_num) VALUES ('{pending[-1].revision}')"
    else:
        yield f"UPDATE {at}{VERSION_TABLE} SET version_num = '{pending[-1].revision}'"
    if oldest_writer is not None:
        yield _RAISE.format(at=at, oldest_writer=oldest_writer)
    yield "COMMIT"


def _beginning(dialect: str, schema: str | None, since: Stamp | None, *, shuts_out: bool) -> Iterator[str]:
    at = _at(schema)
    if dialect == "sqlite":
        yield "BEGIN IMMEDIATE"
    else:
        yield from ("BEGIN", f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'", f"SELECT pg_advisory_xact_lock({LOCK})")
    if since is None:
        if schema is not None:
            yield f'CREATE SCHEMA IF NOT EXISTS "{schema}"'
        yield _VERSIONS.format(at=at)
    elif shuts_out and dialect == "postgresql":
        yield f"LOCK TABLE {at}{VERSION_TABLE} IN ACCESS EXCLUSIVE MODE"


def _make_room(connection: Connection, schema: str | None) -> None:
    """See to it that there is a place for the tables. Raises ``TableInTheWayError``."""
    if connection.dialect.name != "sqlite":
        if schema is not None and schema not in inspect(connection).get_schema_names():
            connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        schema = schema or connection.scalar(text("SELECT current_schema()"))
    there = set(inspect(connection).get_table_names(schema))
    for _, statement in statements(connection.dialect.name):
        named = TABLE.search(statement)
        if named is not None and named[1] in there:
            raise TableInTheWayError(named[1])


def metadata(schema: str | None = None) -> MetaData:
    """All tables of the module, for a host's autogenerate. Imports the packages that declare them.

    With ``schema``, as they are where ``Database(…, schema=…)`` keeps them.
    """
    for package in ("ledger", "wallets"):
        import_module(f"..{package}.models", __package__)
    base: Any = import_module("..core.models", __package__).Base
    tables: MetaData = base.metadata
    if schema is None:
        return tables
    check_schema(schema, "postgresql")
    elsewhere = MetaData()
    for table in tables.sorted_tables:
        table.to_metadata(elsewhere, schema=schema)
    return elsewhere


Include = Callable[[Any, str | None, str, bool, Any], bool]


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """For a host's autogenerate: leave out what is ours, in whatever schema, which ``upgrade`` takes care of."""
    table = object_ if type_ == "table" else getattr(object_, "table", None)
    return getattr(table, "name", None) not in _names()


def include_object_outside(schema: str) -> Include:
    """The same where ours are in a schema of their own, and a host's tables of the same names in others.

    Raises ``InvalidRequestError``.
    """
    check_schema(schema, "postgresql")

    def include(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
        table = object_ if type_ == "table" else getattr(object_, "table", None)
        return getattr(table, "schema", None) != schema or getattr(table, "name", None) not in _names()

    return include


def _names() -> set[str]:
    return {VERSION_TABLE, *metadata().tables}
