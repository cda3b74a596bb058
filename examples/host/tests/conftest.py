"""Each test has the platform to itself: on one connection, in a transaction that is rolled back."""

from collections.abc import Iterator

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from examples.host.demo import ROOT
from examples.host.live import Live
from examples.host.server import fresh_database
from examples.host.tables import MenuItem
from examples.host.web import Platform, application
from points_platform.ledger import LedgerService
from points_platform.wallets import TransactionReason, UserCreditRequest, WalletService


@pytest.fixture(scope="session")
def points_engine() -> Iterator[Engine]:
    """The platform's database, with its own tables and the points', as Alembic makes them."""
    with fresh_database() as url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOST_DATABASE", url)
            command.upgrade(Config(ROOT / "examples" / "host" / "alembic.ini"), "head")
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def points_tables() -> None:
    """They are there."""


@pytest.fixture
def points_async_session_class() -> type[AsyncSession]:
    return AsyncSession


@pytest.fixture
def session(points_session: Session) -> Session:
    """A session of the platform's, with something on the menu."""
    points_session.add(MenuItem(item_id="luna-song", model_id="luna", feature="song", price=120))
    points_session.commit()
    return points_session


@pytest.fixture
def wallets(points_wallets: WalletService) -> WalletService:
    """The points, of which ana has 300."""
    top_up = UserCreditRequest(
        user_id="ana", amount=300, reason=TransactionReason.TOP_UP, idempotency_key="top-up", request_id="r-1"
    )
    points_wallets.credit_user(top_up)
    return points_wallets


@pytest.fixture
def client(
    session: Session,
    wallets: WalletService,
    points_ledger: LedgerService,
    points_async_sessions: async_sessionmaker[AsyncSession],
) -> Iterator[TestClient]:
    """The endpoints, in the transaction of the test."""
    points_async_sessions.configure(expire_on_commit=False)
    web = application()
    web.state.platform = Platform(points_async_sessions, points_ledger, wallets, Live())
    with TestClient(web) as client:
        yield client
