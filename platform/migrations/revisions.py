"""Running the revisions, and telling where a database stands."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text

from .versions import v0001_baseline

HEAD = "0001"
VERSION_TABLE = "points_platform_schema"
FOLDER = Path(__file__).parent
# Any number that nobody else takes: those who upgrade one database come one after the other.
LOCK = 0x706F696E7473
LOCK_TIMEOUT = "10s"
TABLE = re.compile(r"CREATE TABLE (\w+)")

# ``oldest_writer`` is the oldest head with which a release may still write, so that releases can be rolled out.
_VERSIONS = f"""
    CREATE TABLE {VERSION_TABLE} (
        version_num VARCHAR(32) NOT NULL,
        oldest_writer VARCHAR(32) DEFAULT '0001' NOT NULL,
        CONSTRAINT {VERSION_TABLE}_pkey PRIMARY KEY (version_num)
    )
"""


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


def stamp_of(connection: Connection) -> Stamp | None:
    """Where the database stands; ``None`` if it has none of our tables."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    row = connection.execute(text(f"SELECT version_num, oldest_writer FROM {VERSION_TABLE}")).first()
    return None if row is None else Stamp(str(row[0]), str(row[1]))


def upgrade(connection: Connection) -> None:
    """Bring the database to this release's schema, in the connection's transaction; what is there already stays.

    A database of a newer release, or of none that is known, is left as it is. Waits for whoever upgrades it at the
    same time. Raises ``TableInTheWayError`` before anything is created, and SQLAlchemy's errors.
    """
    if connection.dialect.name == "sqlite":
        # Left to itself the driver begins before rows are written, and not before tables are made.
        if not getattr(connection.connection.dbapi_connection, "in_transaction", True):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    stamp = stamp_of(connection)
    if stamp is None:
        _check_room(connection)
        connection.execute(text(_VERSIONS))
    scripts = ScriptDirectory(FOLDER, version_locations=[FOLDER / "versions"])
    if stamp is not None and (stamp.revision >= HEAD or stamp.revision not in _known(scripts)):
        return
    options = {
        "version_table": VERSION_TABLE,
        "fn": lambda revision, context: scripts._upgrade_revs(HEAD, revision),
    }
    context = MigrationContext.configure(connection, opts=options)
    context.run_migrations(execute=context.execute, dialect=connection.dialect.name)


def _known(scripts: ScriptDirectory) -> set[str]:
    return {script.revision for script in scripts.walk_revisions()}


def _check_room(connection: Connection) -> None:
    there = set(inspect(connection).get_table_names())
    for statement in v0001_baseline.TABLES:
        named = TABLE.search(statement)
        if named is not None and named[1] in there:
            raise TableInTheWayError(named[1])


def metadata() -> MetaData:
    """All tables of the module, for a host's autogenerate. Imports the packages that declare them."""
    for package in ("ledger", "wallets"):
        import_module(f"..{package}.models", __package__)
    base: Any = import_module("..core.models", __package__).Base
    tables: MetaData = base.metadata
    return tables


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """For a host's autogenerate: leave out what is ours, which ``upgrade`` takes care of."""
    table = name if type_ == "table" else getattr(getattr(object_, "table", None), "name", None)
    return table not in {VERSION_TABLE, *metadata().tables}
