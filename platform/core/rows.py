"""Any number of rows in one statement: they travel as one JSON parameter, which the database takes apart.

Of the ways to hand PostgreSQL many rows in a statement that can join, lock, insert and update, this one
costs client and server the least together. COPY is faster, but does nothing except insert.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, TypeVar

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Column,
    Connection,
    Insert,
    Integer,
    String,
    Update,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.selectable import Subquery

from .models import UtcDateTime

T = TypeVar("T")
Rows = Sequence[Sequence[Any]]
Columns = tuple[Column[Any], ...]

CHUNK = 1000


def given(dialect: str, columns: Columns, names: tuple[str, ...] = ()) -> Subquery:
    """The rows of the parameter ``rows`` as a table with these columns; ``names`` are other names for the first."""
    names += tuple(c.key for c in columns[len(names) :])
    rows = bindparam("rows", type_=String())
    if dialect == "sqlite":
        each = func.json_each(rows).table_valued(column("value"))
        parts = [func.json_extract(each.c.value, literal_column(f"'$[{n}]'")) for n in range(len(columns))]
    else:
        each = func.jsonb_array_elements(cast(rows, JSONB)).table_valued(column("value"))
        parts = [_typed(each.c.value.op("->>")(literal_column(str(n))), c) for n, c in enumerate(columns)]
    table = select(*(part.label(name) for part, name in zip(parts, names, strict=True)))
    if dialect != "sqlite":
        # It changes nothing but what PostgreSQL expects: else a hundred rows, and a join that reads a whole table.
        table = table.limit(bindparam("count", type_=Integer()))
    return table.subquery("given")


def _typed(text: Any, column: Column[Any]) -> Any:
    if isinstance(column.type, UtcDateTime):
        return cast(text, TIMESTAMP(timezone=True))
    return cast(text, BigInteger) if isinstance(column.type, BigInteger) else text


def parameters(connection: Connection, rows: Rows) -> dict[str, Any]:
    """The rows as ``given`` wants them. Times are aware. Raises ``ValueError`` for a text with NUL."""
    on_sqlite = connection.dialect.name == "sqlite"
    as_text = _sqlite_time if on_sqlite else _postgresql_time
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), default=as_text)
    if "\\u0000" in text and any("\0" in value for row in rows for value in row if isinstance(value, str)):
        raise ValueError("a database would take a text with NUL for shorter than it is")
    return {"rows": text} if on_sqlite else {"rows": text, "count": len(rows)}


# The rows of a batch have few different times.
@lru_cache
def _postgresql_time(value: datetime) -> str:
    return str(value)


@lru_cache
def _sqlite_time(value: datetime) -> str:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def insert_rows(connection: Connection, columns: Columns, rows: Rows) -> None:
    """Insert the rows, whose values are in the order of these columns of one table."""
    for chunk in chunks(rows):
        connection.execute(_insert(connection.dialect.name, columns), parameters(connection, chunk))


def update_rows(connection: Connection, keys: Columns, columns: Columns, rows: Rows) -> int:
    """Set the columns in the rows that have these keys; returns how many there were.

    Each row has the values of the keys, then those of the columns.
    """
    statement = _update(connection.dialect.name, keys, columns)
    return sum(connection.execute(statement, parameters(connection, chunk)).rowcount for chunk in chunks(rows))


def chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """The rows in parts that one statement takes."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


@cache
def _insert(dialect: str, columns: Columns) -> Insert:
    return insert(columns[0].table).from_select(columns, select(given(dialect, columns)))


@cache
def _update(dialect: str, keys: Columns, columns: Columns) -> Update:
    rows = given(dialect, keys + columns, tuple(f"key_{key.key}" for key in keys))
    matching = (key == rows.c[f"key_{key.key}"] for key in keys)
    return update(columns[0].table).where(*matching).values({c: rows.c[c.key] for c in columns})
