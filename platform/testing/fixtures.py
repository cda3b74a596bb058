"""The fixtures: the services on one connection, in a transaction that is rolled back after each test."""

import secrets
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from ..core.database import Database
from ..events.models import WalletEvent
from ..events.service import EventBus
from ..ledger.service import LedgerService
from ..queue.service import QueueAuthorizer
from ..wallets.authorization import Authorizer
from ..wallets.config import WalletConfig
from ..wallets.service import WalletService
from .undone import UndoneDatabase, undone

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker


@pytest.fixture(scope="session")
def points_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine of the tests' database: override it to give the platform's own. By default a new SQLite file."""
    with Database(f"sqlite:///{tmp_path_factory.mktemp('points')}/points.db") as database:
        yield database.engine


@pytest.fixture(scope="session")
def points_schema() -> str | None:
    """The schema of PostgreSQL's that the tables are in, as ``Database(…, schema=…)`` takes it; by default ``None``."""
    return None


@pytest.fixture(scope="session")
def points_tables(points_engine: Engine, points_schema: str | None) -> None:
    """Makes the tables, once; override it where the platform's own migrations do that."""
    Database(points_engine, schema=points_schema).create_schema()


@pytest.fixture
def points_clock() -> Callable[[], datetime] | None:
    """The clock, as ``Database(…, clock=…)`` takes it; by default ``None``, the database's."""
    return None


@pytest.fixture
def points_database(
    points_engine: Engine,
    points_schema: str | None,
    points_tables: None,
    points_clock: Callable[[], datetime] | None,
) -> Iterator[UndoneDatabase]:
    """The ``Database`` of the test, inside a transaction that is rolled back after it."""
    with undone(points_engine, schema=points_schema, clock=points_clock) as database:
        yield database


@pytest.fixture
def points_connection(points_database: UndoneDatabase) -> Connection:
    """The connection of that transaction, which the test leaves open."""
    return points_database.connection


@pytest.fixture
def points_session_class() -> type[Session]:
    """The class of sessions; override it to give SQLModel's, or the platform's own."""
    return Session


@pytest.fixture
def points_sessions(points_connection: Connection, points_session_class: type[Session]) -> sessionmaker[Session]:
    """Makes sessions in that transaction, in the place of those of the platform's engine; they commit as usual."""
    return sessionmaker(points_connection, class_=points_session_class, join_transaction_mode="create_savepoint")


@pytest.fixture
def points_session(points_sessions: sessionmaker[Session]) -> Iterator[Session]:
    """One of these sessions, closed after the test."""
    with points_sessions() as session:
        yield session


@pytest.fixture
def points_async_session_class() -> "type[AsyncSession]":
    """The class of asynchronous sessions; override it to give SQLModel's, or the platform's own."""
    from sqlalchemy.ext.asyncio import AsyncSession

    return AsyncSession


@pytest.fixture
def points_async_sessions(
    points_database: UndoneDatabase, points_async_session_class: "type[AsyncSession]"
) -> "async_sessionmaker[Any]":
    """Makes asynchronous sessions in that transaction, in the place of those of an asynchronous engine."""
    return points_database.async_sessions(points_async_session_class)


@pytest.fixture
def points_config() -> WalletConfig:
    """The settings of the wallets."""
    return WalletConfig()


@pytest.fixture(scope="session")
def points_authorizer() -> QueueAuthorizer:
    """Signs and verifies, with a key that is made up; override it to give the platform's own."""
    return QueueAuthorizer(secrets.token_bytes(32))


@pytest.fixture
def points_bus() -> EventBus:
    """The bus on which events are published; override it to give the platform's own."""
    return EventBus()


@pytest.fixture
def points_events(points_bus: EventBus) -> Iterator[list[WalletEvent]]:
    """The events of the test, as they come."""
    events: list[WalletEvent] = []
    points_bus.subscribe(WalletEvent, events.append)
    yield events
    points_bus.unsubscribe(WalletEvent, events.append)


@pytest.fixture
def points_ledger(points_database: UndoneDatabase) -> LedgerService:
    """The ledger of the test."""
    return LedgerService(points_database)


@pytest.fixture
def points_wallets(
    points_ledger: LedgerService,
    points_authorizer: Authorizer,
    points_bus: EventBus,
    points_config: WalletConfig,
) -> WalletService:
    """The wallets of the test, which remember nothing of another one."""
    return WalletService(points_ledger, authorizer=points_authorizer, events=points_bus, config=points_config)
