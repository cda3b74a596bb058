"""What hosts hand in, refused by name where it cannot serve."""

import re
from importlib import import_module
from typing import Any

from sqlalchemy import Connection

DIALECTS = ("postgresql", "sqlite")
SCHEMA = re.compile(r"(?!pg_)[A-Za-z_][A-Za-z0-9_-]{0,62}")


def check_connection(connection: object, schema: object) -> None:
    """Refuse what is no connection in a transaction on PostgreSQL or SQLite, with ``InvalidRequestError``."""
    if not isinstance(connection, Connection):
        # Alembic's offline mode has none.
        expected = "a Connection in a transaction, such as op.get_bind(); points-platform schema sql prints statements"
        raise refused("connection", None if connection is None else f"a {type(connection).__name__}", expected)
    if connection.dialect.name not in DIALECTS:
        raise refused("connection", connection.dialect.name, f"one of {' or '.join(DIALECTS)}")
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql" and getattr(driver, "autocommit", False):
        raise refused("connection", "a connection in autocommit", "one in a transaction: half an upgrade would stay")
    check_schema(schema, connection.dialect.name)
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    if schema is None or translated.get(None) != schema:  # as ``Database`` has it
        check_untranslated(connection, "connection")


def check_schema(schema: object, dialect: str) -> None:
    """Refuse what is no name of a schema, or none that the engine has, with ``InvalidRequestError``."""
    if schema is None:
        return
    if dialect != "postgresql":
        raise refused("schema", schema, f"None on {dialect}, which has no schemas")
    if type(schema) is not str or not SCHEMA.fullmatch(schema):
        expected = "None, or the name of a schema: letters, digits, _ and -, at most 63, not beginning with pg_"
        raise refused("schema", schema, expected)


def check_untranslated(owner: Any, field: str) -> None:
    """Refuse an engine or a connection whose options put another schema into some statements, and not into others."""
    if owner.get_execution_options().get("schema_translate_map"):
        expected = 'one without schema_translate_map; say schema="…" where the module\'s tables are in a schema'
        raise refused(field, "one with a schema_translate_map", expected)


def refused(field: str, value: object, expected: str) -> Exception:
    """The module's error, which stands above this package."""
    error: Exception = import_module("..core.errors", __package__).InvalidRequestError(
        field=field, value=value, expected=expected
    )
    return error
