"""Statements that SQLAlchemy has compiled for one engine serve the next of its kind: each test has its own engines."""

from typing import Any

from sqlalchemy import Connection, Engine, TextClause, event


class Compiled(dict[Any, Any]):
    """What SQLAlchemy keeps per dialect object, kept per kind of dialect.

    Not texts: what ``SELECT *`` gives is another thing in a database of another release.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_of_kind(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        if not isinstance(compiled.statement, TextClause):
            super().__setitem__(_of_kind(key), compiled)


def _of_kind(key: tuple[Any, ...]) -> tuple[Any, ...]:
    dialect, *rest = key
    return (type(dialect), dialect.paramstyle, dialect.server_version_info, *rest)


def share_compiled_statements() -> None:
    """From now on, on every connection of every engine of this process."""
    compiled = Compiled()

    @event.listens_for(Engine, "engine_connect")
    def share(connection: Connection) -> None:
        connection.execution_options(compiled_cache=compiled)
