"""Opening the database that a command line names, or saying in one line why it cannot be used."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import URL, inspect, make_url
from sqlalchemy.exc import DBAPIError

from ..core import Database, InvalidRequestError, StorageUnavailableError
from ..core.engines import create, reading_only
from ..core.failures import translated
from .terminal import Refusal

VARIABLE = "POINTS_PLATFORM_DATABASE"
FORMS = "sqlite:///file.db or postgresql+psycopg://user@host/name"

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        envvar=VARIABLE,
        show_default=False,
        help="the URL of a SQLite or PostgreSQL database; with ?schema=NAME where the tables are in a schema",
    ),
]


def required(url: str | None) -> str:
    """The URL that was given. Raises ``Refusal`` where there is none."""
    if not url:
        raise Refusal(f"which database? give --database URL after the command's name, or set {VARIABLE}")
    return url


@contextmanager
def any_database(url: str | None, *, writing: bool = False) -> Iterator[Database]:
    """The database of that URL, whatever its schema; unless it is for ``writing`` a file is there and stays as it is.

    Raises ``Refusal``.
    """
    with _named(required(url)) if writing else _looked_at(required(url)) as database:
        if not writing and database.is_sqlite and not (file := _file(database)).is_file():
            raise Refusal(f"there is no database file {file}")
        with _explained(database):
            yield database


@contextmanager
def existing_database(url: str | None, *, writing: bool = False) -> Iterator[Database]:
    """The database of that URL; nothing is created, and unless it is for ``writing`` a file stays as it is.

    Raises ``Refusal``, and ``SchemaVersionError`` for a database without our schema.
    """
    with _named(required(url)) if writing else _looked_at(required(url)) as database:
        if database.is_sqlite and not (file := _file(database)).is_file():
            raise Refusal(f"there is no database file {file}")
        with _explained(database), database.read():
            pass  # reached, and with our schema
        yield database


@contextmanager
def prepared_database(url: str | None, *, new: bool = False) -> Iterator[Database]:
    """The database of that URL, or a temporary SQLite file that is removed at the end; with our schema.

    A ``new`` one is refused if anything stands in it, of whoever. Raises ``Refusal``, and ``SchemaVersionError`` for a
    database with another release's schema.
    """
    if new and url:
        with _looked_at(url) as database:
            _check_nothing_stands(database)
    with (
        tempfile.TemporaryDirectory(prefix="points-platform-") as folder,
        _named(url or f"sqlite:///{folder}/points.db") as database,
    ):
        with _explained(database):
            database.create_schema()
        yield database


def _file(database: Database) -> Path:
    return Path((database.engine.url.database or "").removeprefix("file:"))


def _check_nothing_stands(database: Database) -> None:
    if database.is_sqlite and not _file(database).exists():
        return
    with _explained(database), translated():
        inspector = inspect(database.engine)
        schemas = [name for name in inspector.get_schema_names() if name != "information_schema"]
        for table in (table for schema in schemas for table in inspector.get_table_names(schema)):
            used = f"{database.engine.url.render_as_string()} is in use: it has a table {table}"
            raise Refusal(f"{used}. What a ledger has taken it never gives back, so name a new, empty database")


@contextmanager
def _looked_at(url: str) -> Iterator[Database]:
    """The database of that URL on connections that only read, so that a file of SQLite's stays in its mode."""
    with _options_checked(url):
        address, schema = parted(url)
        engine = reading_only(create(address))
        database = Database(engine, schema=schema)
    try:
        yield database
    finally:
        engine.dispose()


def _named(url: str) -> Database:
    with _options_checked(url):
        address, schema = parted(url)
        return Database(address, schema=schema)


@contextmanager
def _options_checked(url: str) -> Iterator[None]:
    if url.startswith("postgresql") and url.count("@") > 1:
        # Else a part of the password would be taken for the host, and named in an error.
        raise Refusal("--database: an @ within the password is written as %40")
    try:
        yield
    except (InvalidRequestError, TypeError, ValueError):
        # Without what was given: it may hold a password.
        raise Refusal(f"--database must be {FORMS}, with options that the driver knows") from None


def parted(url: str) -> tuple[str | URL, str | None]:
    """The URL as drivers know it, and the schema that its option ``schema`` names. Raises SQLAlchemy's errors."""
    if "schema=" not in url:
        return url, None
    address = make_url(url)
    schema = address.query.get("schema")
    return address.difference_update_query(["schema"]), schema if isinstance(schema, str) else None


@contextmanager
def _explained(database: Database) -> Iterator[None]:
    """Say which database could not be used, without its password, and why, in the driver's words."""
    try:
        yield
    except (StorageUnavailableError, TypeError, ValueError) as error:
        url = database.engine.url.render_as_string()
        told = "missing" not in getattr(error, "details", {}) and isinstance(error.__cause__, DBAPIError)
        reason = error.__cause__.orig if told and isinstance(error.__cause__, DBAPIError) else error
        raise Refusal(f"cannot use the database {url}: {reason}") from None
