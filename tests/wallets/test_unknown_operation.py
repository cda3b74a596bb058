"""A transaction of an operation that this release does not know, as a newer one would leave it: told by its name."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert

from points_platform.core import Database, InvalidRequestError
from points_platform.ledger import LedgerTransaction
from points_platform.ledger.models import ENTRIES, TRANSACTIONS
from points_platform.wallets import event_of, request_of, response_of
from points_platform.wallets.operations import OPERATIONS
from points_platform.wallets.verify import verify
from support.world import World

from .by_hand.rows import NOW, platform_entry, transaction

KNOWN = "credit, deposit, hold, settle, refund, partial_settle, spend, transfer, open"
LOTTERY = str(uuid4())


@pytest.fixture
def newer(database: Database) -> World:
    """A platform in which the platform has paid itself, by an operation that came later."""
    world = World(database)
    world.credit("ana", 100)
    header = transaction(LOTTERY, "lottery", "a_win", owner_id="platform:revenue", details='{"ticket":"7"}')
    paid = [
        platform_entry("platform:revenue", "revenue", -5, transaction_id=LOTTERY, owner_id="platform:revenue"),
        platform_entry("platform:issuer", "issued", 5, transaction_id=LOTTERY, owner_id="platform:revenue"),
    ]
    with database.engine.begin() as connection:
        connection.execute(insert(TRANSACTIONS), {column.key: header[column.name] for column in TRANSACTIONS.c})
        connection.execute(insert(ENTRIES), paid)
    return world


def found(world: World) -> LedgerTransaction:
    recorded = world.ledger.transaction(LOTTERY)
    assert recorded is not None
    return recorded


def test_verify_names_it_and_finds_nothing_else(newer: World) -> None:
    for _ in range(2):
        [finding] = verify(newer.database)
        assert (finding.kind, finding.ids, finding.found) == (
            "operation_unknown",
            {"transaction_id": LOTTERY},
            "lottery",
        )
        assert all(operation.name in finding.expected for operation in OPERATIONS)
        newer.ledger.seal()


@pytest.mark.parametrize("view", [request_of, response_of, event_of])
def test_what_it_asked_answered_and_announced_is_refused_by_its_name(
    newer: World, view: Callable[[LedgerTransaction], Any]
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        view(found(newer))
    details = refused.value.details
    assert (details["field"], details["value"]) == ("operation", "lottery")
    assert details["expected"] == f"one that this release knows: {KNOWN}"


def test_the_ledger_reads_and_seals_it_as_any_other(newer: World) -> None:
    recorded = found(newer)
    assert (recorded.operation, recorded.occurred_at, recorded.details) == ("lottery", NOW, {"ticket": "7"})
    assert [(entry.account_id, entry.amount) for entry in recorded.entries] == [
        ("platform:issuer", 5),
        ("platform:revenue", -5),
    ]
    assert newer.ledger.seal().appended == 2
    assert LOTTERY in [entry.transaction.transaction_id for entry in newer.ledger.read_log()]
    newer.credit("ana", 1)
    assert newer.wallets.get_user_balance("ana").available == 101


def test_its_key_is_nobody_elses(newer: World) -> None:
    """The keys of operations that are known are other keys."""
    assert newer.credit("ana", 7, idempotency_key="key-1").replayed is False
