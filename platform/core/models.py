"""What every table of the module shares: the metadata, and the column types."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, DateTime, Dialect, String
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class Base(SQLModel, registry=registry()):
    """The base of all tables. ``Base.metadata`` is what a host's migration tool needs to know."""

    __tablename__: ClassVar[Any]


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes with microseconds on both engines; SQLite itself hands back naive ones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def text(length: int | None = None) -> Any:
    """A string type that compares and sorts by code point on both engines, whatever the locale."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


def column(name: str, type_: Any, *, key: bool = False, null: bool = False, default: str | None = None) -> Any:
    """A field of a table class that is exactly this column: not null unless said; ``default`` is the database's."""
    return Field(sa_column=Column(name, type_, primary_key=key, nullable=null, server_default=default))


def points(name: str, *, null: bool = False, default: str | None = None) -> Any:
    """A column of points, or of anything else that is counted."""
    return column(name, BigInteger(), null=null, default=default)
