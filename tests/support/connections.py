"""Somebody else's connection to a PostgreSQL database, past the module."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import URL, make_url


@contextmanager
def administrator(url: str | URL) -> Iterator[psycopg.Connection[Any]]:
    """Each of its statements is its own transaction."""
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        yield connection


def scalar(connection: psycopg.Connection[Any], sql: str, *parameters: object) -> Any:
    """The first column of the first row; None if there is none."""
    row = connection.execute(sql, parameters).fetchone()
    return row[0] if row else None


def end_connection(url: str | URL, pid: int) -> None:
    """The server ends that connection, and has done so when this returns."""
    with administrator(url) as connection:
        assert scalar(connection, "SELECT pg_terminate_backend(%s, 10000)", pid) is True
