"""Which rights a role lacks: PostgreSQL says only what it has refused, and in the language of the server."""

from sqlalchemy import Connection, text

from ..migrations import VERSION_TABLE
from .errors import Advice, StorageUnavailableError, WalletError
from .models import Base
from .schema import named_tables

DENIED = "42501"
OPERATING = ("SELECT", "INSERT", "UPDATE")
MAKING = {"CREATE", "ALTER", "DROP", "LOCK"}
LACKING = Advice(
    "{server}; the role lacks {missing} (operations need SELECT, INSERT and UPDATE on every table of the module)",
    retryable=False,
)

# An empty list is one of one empty text, which names no table.
_ON_TABLES = text("""
    SELECT r.needed || ' on ' || c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN unnest(string_to_array(:needed, ',')) WITH ORDINALITY AS r (needed, place)
    WHERE n.nspname = coalesce(CAST(:schema AS text), current_schema(), 'public')
      AND c.relname = ANY (string_to_array(:tables, ','))
      AND NOT has_table_privilege(c.oid, r.needed)
    ORDER BY c.relname, r.place
""")
_OWNING = text("""
    SELECT 'ownership of ' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = coalesce(CAST(:schema AS text), current_schema(), 'public')
      AND c.relname = ANY (string_to_array(:tables, ',')) AND NOT pg_has_role(c.relowner, 'USAGE')
    ORDER BY c.relname
""")
_ON_SCHEMA = text("""
    SELECT r.needed || ' on schema ' || n.nspname
    FROM pg_namespace n CROSS JOIN unnest(string_to_array(:needed, ',')) AS r (needed)
    WHERE n.nspname = coalesce(CAST(:schema AS text), current_schema(), 'public')
      AND NOT has_schema_privilege(n.oid, r.needed)
""")
_ON_DATABASE = text("""
    SELECT 'CREATE on database ' || current_database()
    WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)
      AND NOT has_database_privilege(current_database(), 'CREATE')
""")


def missing(connection: Connection, schema: str | None, sql: str, said: str) -> tuple[str, ...]:
    """What the connection's role would need for a statement that was refused: each as right and object.

    On the table that the server has named, in whatever language; else on those of the statement, or all. Where the
    statement is not known (``""``) it is what operations need. Raises SQLAlchemy's errors.
    """
    verb = sql.split(maxsplit=1)[0].upper() if sql else ""
    tables = ",".join(named_tables(said) or named_tables(sql) or (*Base.metadata.tables, VERSION_TABLE))
    asked = {"schema": schema, "tables": tables}
    if verb in MAKING:
        found = [*connection.scalars(_ON_SCHEMA, {"schema": schema, "needed": "USAGE,CREATE"})]
        found += connection.scalars(_OWNING, asked)
        if schema is not None:
            found += connection.scalars(_ON_DATABASE, {"schema": schema})
    else:
        found = [*connection.scalars(_ON_SCHEMA, {"schema": schema, "needed": "USAGE"})]
        needed = ("SELECT", verb) if verb == "DELETE" else OPERATING
        found += connection.scalars(_ON_TABLES, asked | {"needed": ",".join(needed)})
    return tuple(found)


def lacking(failure: WalletError, error: Exception, connection: Connection, schema: str | None) -> WalletError:
    """The same failure with the rights that are missing for what was refused, where they are found."""
    found = missing(connection, schema, getattr(error, "statement", None) or "", str(failure.details["server"]))
    return StorageUnavailableError(advice=LACKING, **failure.details, missing=found) if found else failure
