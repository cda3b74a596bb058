"""Reading in the caller's transaction: what it has done so far is there, and nobody else sees it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from points_platform.core import Database, EscrowNotFoundError, StorageUnavailableError
from points_platform.ledger.accounts import escrow
from support.connections import end_connection
from support.statements import statements
from support.world import World

DAY = timedelta(days=1)


def reads(world: World, escrow_id: str, transaction_id: str) -> dict[str, Callable[..., Any]]:
    """Every read, with what it says of a hold of 30 by ana."""
    wallets, ledger = world.wallets, world.ledger

    def earnings(session: Session | None) -> int:
        now = datetime.now(UTC)
        period: Any = {"period": "day", "timezone": "UTC", "since": now - DAY, "until": now + DAY}
        return sum(each.earned for each in ledger.earnings("luna", "points", session=session, **period))

    def item(session: Session | None) -> str:
        try:
            return wallets.get_escrow(escrow_id, session=session).status
        except EscrowNotFoundError:
            return "none"

    return {
        "get_user_balance": lambda session: wallets.get_user_balance("ana", session=session).escrow,
        "get_model_balance": lambda session: wallets.get_model_balance("luna", session=session).earned,
        "get_user_balances": lambda session: [
            (balance.currency, balance.escrow) for balance in wallets.get_user_balances("ana", session=session)
        ],
        "get_model_balances": lambda session: [
            (balance.currency, balance.earned) for balance in wallets.get_model_balances("luna", session=session)
        ],
        "get_escrow": item,
        "list_escrows": lambda session: len(wallets.list_escrows(user_id="ana", session=session).items),
        "transaction": lambda session: ledger.transaction(transaction_id, session=session) is not None,
        "transactions": lambda session: len(ledger.transactions([transaction_id], session=session)),
        "transactions_of_escrow": lambda session: len(ledger.transactions_of_escrow(escrow_id, session=session)),
        "entries": lambda session: len(ledger.entries("user:ana", "points", session=session).items),
        "statement": lambda session: len(ledger.statement("user:ana", "points", session=session).items),
        "balance_as_of": lambda session: balance(world, session),
        "earnings": earnings,
        "head": lambda session: ledger.head(session=session).position,
        "read_log": lambda session: len(ledger.read_log(session=session)),
        "read": lambda session: len(ledger.reader("mails").read(session=session)),
    }


def balance(world: World, session: Session | None) -> int:
    return world.ledger.balance_as_of(escrow("ana"), "points", at=datetime.now(UTC), session=session)


BEFORE = {
    "get_user_balance": 0,
    "get_model_balance": 10,
    "get_user_balances": [("points", 0)],
    "get_model_balances": [("points", 10)],
    "get_escrow": "none",
    "list_escrows": 1,
    "transaction": False,
    "transactions": 0,
    "transactions_of_escrow": 0,
    "entries": 4,
    "statement": 3,
    "balance_as_of": 0,
    "earnings": 10,
    "head": 3,
    "read_log": 3,
    "read": 3,
}
AFTER = {
    "get_user_balance": 30,
    "get_model_balance": 17,
    "get_user_balances": [("points", 30)],
    "get_model_balances": [("points", 17)],
    "get_escrow": "held",
    "list_escrows": 3,
    "transaction": True,
    "transactions": 1,
    "transactions_of_escrow": 1,
    "entries": 9,
    "statement": 6,
    "balance_as_of": 30,
    "earnings": 17,
    # Nothing was sealed meanwhile, and the reader has moved on by two.
    "head": 3,
    "read_log": 3,
    "read": 1,
}


def test_every_read_sees_in_the_callers_transaction_what_it_has_done_and_nobody_else_does(world: World) -> None:
    world.credit(amount=100)
    world.settle(world.hold(amount=10).escrow_id, amount=10)
    world.ledger.seal()
    with Session(world.database.engine) as session:
        settled = world.send(world.hold_request(amount=7), session=session)
        world.send(world.settle_request(settled.escrow_id, amount=7), session=session)
        held = world.send(world.hold_request(amount=30), session=session)
        world.ledger.reader("mails").move(2, seen=0, session=session)
        asked = reads(world, held.escrow_id, held.transaction_id)
        assert set(asked) == set(BEFORE) == set(AFTER)
        assert {name: read(session) for name, read in asked.items()} == AFTER
        assert {name: read(None) for name, read in asked.items()} == BEFORE
        session.rollback()
        assert {name: read(session) for name, read in asked.items()} == BEFORE
        session.rollback()
    assert {name: read(None) for name, read in asked.items()} == BEFORE


def test_the_balance_after_a_hold_says_so_inside_the_callers_transaction(world: World) -> None:
    world.credit(amount=500)
    with Session(world.database.engine) as session:
        world.send(world.hold_request(amount=100), session=session)
        assert world.wallets.get_user_balance("ana", session=session).available == 400
        assert world.wallets.get_user_balance("ana").available == 500
        session.commit()
    assert world.wallets.get_user_balance("ana").available == 400


def test_a_read_in_a_session_is_one_statement_and_neither_commits_nor_rolls_back(world: World) -> None:
    world.credit()
    with Session(world.database.engine) as session:
        world.send(world.hold_request(), session=session)
        with statements(world.database.engine) as seen:
            world.wallets.get_user_balance("ana", session=session)
        assert len(seen) == 1
        with pytest.raises(EscrowNotFoundError):
            world.wallets.get_escrow("none", session=session)
        assert world.wallets.get_user_balance("ana", session=session).escrow == 30
        session.rollback()
    assert world.wallets.get_user_balance("ana").escrow == 0


def test_a_read_in_a_session_whose_connection_is_lost_is_not_tried_again_elsewhere(postgresql_url: str) -> None:
    """On a fresh connection it would tell of another transaction."""
    engine = create_engine(postgresql_url)
    world = World(Database(engine))
    world.credit()
    with Session(engine) as session:
        world.send(world.hold_request(), session=session)
        driver: Any = session.connection().connection.dbapi_connection
        end_connection(engine.url, driver.info.backend_pid)
        with pytest.raises(StorageUnavailableError, match="start it over") as lost:
            world.wallets.get_user_balance("ana", session=session)
        assert lost.value.retryable
    engine.dispose()
