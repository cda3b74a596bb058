"""Where the module's tables lie, put into what is sent; and whether this release may still write to them.

Without a schema of their own, names are sent as they are, and the search path finds them. With one, SQLAlchemy puts it
into its statements (``schema_translate_map``); SQL that was put together as text names tables as they are called, and
has the schema put in here. So nobody's search path is ever changed.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Column, Connection, MetaData, String, Table, TextClause, text
from sqlalchemy.ext.compiler import compiles

from ..migrations import HEAD, VERSION_TABLE, Stamp, broken, check_schema, misplaced, stamp_of
from .errors import InvalidRequestError, SchemaVersionError
from .models import Base
from .statement import Statement

STATEMENTS = 1000
VERSIONS = Table(VERSION_TABLE, MetaData(), Column("version_num", String), Column("oldest_writer", String))
# Where this is false nothing is written: a newer release has raised the oldest writer.
MAY_WRITE = f"(SELECT oldest_writer FROM {VERSION_TABLE}) <= '{HEAD}'"  # noqa: S608 - constants
# A setting that nobody has: reading it is an error that tells itself from a need that is not met.
STOPPED = "current_setting('points_platform.may_write')"


class Sql(TextClause):
    """SQL as text whose tables are those of the connection's schema."""

    inherit_cache = True


@compiles(Sql)
def _with_schema(element: Sql, compiler: Any, **options: Any) -> str:
    written: str = compiler.visit_textclause(element, **options)
    if not compiler.schema_translate_map:
        return written
    return _tables().sub(lambda named: compiler.preparer.format_table(_table(named[0])), written)


@lru_cache(STATEMENTS)
def placed(statement: Statement, schema: str | None, place: str) -> Statement:
    """The statement on the tables of a schema, or else only where the search path begins with their place."""
    if schema is None:
        quoted = place.replace("'", "''")
        text = statement.sql.replace(MAY_WRITE, f"{MAY_WRITE} AND current_schema() = '{quoted}'")
    else:
        text = _tables().sub(rf'"{schema}".\g<0>', statement.sql)
    # Of its own: a connection remembers by name what it has prepared, and may be another schema's next.
    return Statement(f"{statement.name:.20}_{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)


def named_tables(sql: str) -> tuple[str, ...]:
    """The module's tables that SQL names, each once."""
    return tuple(dict.fromkeys(_tables(behind=True).findall(sql)))


def _table(name: str) -> Table:
    return Base.metadata.tables.get(name, VERSIONS)


def _tables(*, behind: bool = False) -> re.Pattern[str]:
    """The names of tables where they stand for tables, and not in a text or before a column; also behind a schema."""
    return _names((*Base.metadata.tables, VERSION_TABLE), behind)


@cache
def _names(tables: tuple[str, ...], behind: bool) -> re.Pattern[str]:
    before = r"[\w']" if behind else r"[\w.'\"]"
    return re.compile(rf"(?<!{before})(?:{'|'.join(tables)})(?![\w.'\"])")


def schema_of(connection: Connection) -> str | None:
    """The schema that ``Home.translation`` has given to a connection."""
    translated = connection.get_execution_options().get("schema_translate_map")
    return translated.get(None) if translated else None


def if_may_write(sql: str) -> str:
    """An expression in a single statement; where this release may not write, an error (``failures.is_stopped``)."""
    return f"CASE WHEN {MAY_WRITE} THEN {sql} ELSE {STOPPED} END"


# What every transaction for writing reads first.
_FOUND = f"""v.version_num, v.oldest_writer, n.nspname, current_schema()
    FROM {VERSION_TABLE} v JOIN pg_class c ON c.oid = v.tableoid JOIN pg_namespace n ON n.oid = c.relnamespace"""
_FOUND_BY_SQLITE = f"SELECT version_num, oldest_writer FROM {VERSION_TABLE}"  # noqa: S608 - a constant


def with_found(columns: str) -> Sql:
    """A statement of PostgreSQL's that selects the columns, and then what ``Home.confirm`` wants to know."""
    return Sql(f"SELECT {columns}, {_FOUND}")


@dataclass(frozen=True, kw_only=True)
class SchemaState:
    """Where a database stands, against what this release needs.

    ``revision`` is that of its schema, ``None`` if it has none of our tables; ``oldest_writer`` is the oldest revision
    whose release may write to it, and ``serves`` whether this one may. ``missing`` has each trigger, constraint and
    index that this release's schema has and the database has not: what, of which table, its name, and what is there.
    """

    revision: str | None
    head: str
    oldest_writer: str | None
    serves: bool
    missing: tuple[dict[str, str | None], ...]

    @property
    def complete(self) -> bool:
        """Whether this release may write to it and nothing is missing."""
        return self.serves and not self.missing


def state(connection: Connection, schema: str | None) -> SchemaState:
    """What stands there. Raises ``InvalidRequestError`` for tables of another schema, and SQLAlchemy's errors."""
    stamp = stamp_of(connection, schema)
    missing: list[dict[str, str | None]] = []
    if stamp is not None:
        for (kind, table, name, _), found in broken(connection, schema):
            missing.append({"what": kind, "table": table or None, "name": name, "found": found})
    return SchemaState(
        revision=None if stamp is None else stamp.revision,
        head=HEAD,
        oldest_writer=None if stamp is None else stamp.oldest_writer,
        serves=stamp is not None and stamp.serves,
        missing=tuple(missing),
    )


FOUND = Statement("found", f"SELECT {_FOUND}")


class Home:
    """Where the tables of a ``Database`` are, by whose search path, and whether this release may write to them.

    Raises ``InvalidRequestError`` for a schema that is none.
    """

    def __init__(self, schema: str | None, dialect: str) -> None:
        check_schema(schema, dialect)
        self.schema = schema
        self.checked = False
        self._place = schema or ""
        self.translation: dict[str, Any] = {} if schema is None else {"schema_translate_map": {None: schema}}

    def check(self, connection: Connection) -> None:
        """Once, before anything is read or written.

        Raises ``InvalidRequestError`` where the tables are not in the first schema of the search path,
        ``SchemaVersionError``.
        """
        self._check_stamp(stamp_of(connection, self.schema))
        if self.schema is None and connection.dialect.name != "sqlite":
            self._check_place(*[connection.scalar(text("SELECT current_schema()"))] * 2)
        self.checked = True

    def confirm(self, found: Sequence[Any] | None) -> None:
        """Again in each transaction for writing, from the row that ``with_found`` or ``FOUND`` has found there.

        Raises as ``check`` does.
        """
        self._check_stamp(None if found is None else Stamp(*found[-4:-2]))
        if found is not None and self.schema is None:
            self._check_place(*found[-2:])

    def confirm_on_sqlite(self, connection: Connection) -> None:
        """The same on SQLite, which has no round trips. Raises ``SchemaVersionError``."""
        found = _found_by_sqlite(connection)
        self._check_stamp(None if found is None else Stamp(*found))

    def placed(self, statement: Statement) -> Statement:
        """The statement on these tables."""
        return placed(statement, self.schema, self._place)

    @contextmanager
    def lent(self, connection: Connection) -> Iterator[None]:
        """The schema on a connection of somebody else's, for as long as it is ours."""
        if self.schema is None:
            yield
            return
        connection.execution_options(**self.translation)
        try:
            yield
        finally:
            connection.execution_options(schema_translate_map={})

    def _check_stamp(self, found: Stamp | None) -> None:
        if found is None or not found.serves:
            self.checked = False
            raise SchemaVersionError(found=found and found.revision, expected=HEAD)

    def _check_place(self, found: str, first: str | None) -> None:
        if found != first:
            raise misplaced(found, first)
        self._place = self._place or found
        if found != self._place:
            expected = f"the schema {self._place}, where this Database has its tables; make a Database for each schema"
            raise InvalidRequestError(
                field="database", value=f"the schema {found} by the search path", expected=expected
            )


def _found_by_sqlite(connection: Connection) -> tuple[Any, ...] | None:
    driver: Any = connection.connection.dbapi_connection
    try:
        found: tuple[Any, ...] | None = driver.execute(_FOUND_BY_SQLITE).fetchone()
    except Exception:
        # The same again by SQLAlchemy, which takes ten times as long, and whose errors can be told apart.
        row = connection.exec_driver_sql(_FOUND_BY_SQLITE).first()
        found = None if row is None else tuple(row)
    return found
