"""The whole schema of a database, as the database itself describes it: columns, constraints, indexes, triggers."""

from typing import Any

from sqlalchemy import Connection, text

SQLITE = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2"
POSTGRESQL = """
    SELECT 'column', c.oid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull::text,
        coalesce(pg_get_expr(adbin, adrelid), ''), attcollation::regcollation::text
    FROM pg_attribute JOIN ours c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped AND c.relkind = 'r'
    UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated::text,
        '', '' FROM pg_constraint WHERE conrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 'index', indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid),
        indisvalid::text, '', '' FROM pg_index WHERE indrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), tgenabled::text, '', ''
    FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 'function', oid::regprocedure::text, '', pg_get_functiondef(oid), '', '', ''
    FROM pg_proc WHERE pronamespace = CAST(:schema AS regnamespace)
    ORDER BY 1, 2, 3
"""
OURS = "WITH ours AS (SELECT * FROM pg_class WHERE relnamespace = CAST(:schema AS regnamespace))"


def dump(connection: Connection, schema: str = "public") -> list[tuple[Any, ...]]:
    """Everything that is in the schema; where it is another one than the first of the search path, without its name."""
    if connection.dialect.name == "sqlite":
        return [tuple(row) for row in connection.execute(text(SQLITE))]
    rows = connection.execute(text(OURS + POSTGRESQL), {"schema": f'"{schema}"'})
    return [tuple(value.replace(f'"{schema}".', "").replace(f"{schema}.", "") for value in row) for row in rows]
