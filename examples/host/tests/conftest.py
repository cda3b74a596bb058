"""Each test has the platform's database to itself, in a transaction that is rolled back."""

from collections.abc import Iterator

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from examples.host.demo import ROOT
from examples.host.server import fresh_database
from examples.host.tables import MenuItem
from points_platform.core import Database
from points_platform.ledger import LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import TransactionReason, UserCreditRequest, WalletService


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """A database with the platform's tables and the points', as Alembic makes them."""
    with fresh_database() as url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOST_DATABASE", url)
            command.upgrade(Config(ROOT / "examples" / "host" / "alembic.ini"), "head")
        yield url


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    """A session whose commits are savepoints of a transaction that is rolled back, with something on the menu."""
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.add(MenuItem(item_id="luna-song", model_id="luna", feature="song", price=120))
            session.commit()
            yield session
    engine.dispose()


@pytest.fixture
def queue() -> QueueAuthorizer:
    return QueueAuthorizer("the secret of the platform's own tests")


@pytest.fixture
def wallets(url: str, session: Session, queue: QueueAuthorizer) -> Iterator[WalletService]:
    """The points, of which ana has 300."""
    with Database(url) as database:
        wallets = WalletService(LedgerService(database), authorizer=queue)
        top_up = UserCreditRequest(
            user_id="ana", amount=300, reason=TransactionReason.TOP_UP, idempotency_key="top-up", request_id="r-1"
        )
        wallets.credit_user(top_up, session=session)
        yield wallets
