"""Statements with one line for each transaction: what it was, and what it did to one owner's buckets."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any

import pytest
from freezegun import freeze_time

from points_platform.core import InvalidRequestError, every
from points_platform.core.values import encode_cursor
from points_platform.ledger import LedgerService, StatementLine, StatementTransaction
from support.examples import METADATA
from support.world import World

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def busy(world: World) -> World:
    """Half of it at one time, and another currency lies between."""
    with freeze_time(NOON):
        for amount in (50, 60):
            world.credit(amount=amount)
            world.credit(amount=amount, currency="gems")
        world.deposit("ben", 40)
    for _ in range(2):
        world.settle(world.hold(amount=3).escrow_id, 3)
        world.partial_settle(world.hold(amount=5, feature_type="dance").escrow_id, 1, 4)
        world.refund(world.hold(amount=7).escrow_id, 7)
    world.spend(amount=9, order_id="order-1")
    world.transfer(amount=2)
    world.open()
    return world


def by_hand(ledger: LedgerService, owner: str, newest: bool) -> list[tuple[str, dict[str, int], dict[str, Any]]]:
    lines: Iterable[StatementLine] = every(ledger.entries, owner, "points", newest_first=newest)
    together = [(key, list(group)) for key, group in groupby(lines, key=attrgetter("transaction_id"))]
    return [
        (key, {each.bucket: each.amount for each in group}, {each.bucket: each.balance_after for each in group})
        for key, group in together
    ]


@pytest.mark.parametrize("newest", [False, True], ids=["oldest first", "newest first"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("owner", ["user:ana", "user:ben", "model:luna", "platform:issuer", "user:nobody"])
def test_pages_have_each_transaction_once_and_whole_in_the_order_of_the_entries(
    busy: World, owner: str, limit: int, newest: bool
) -> None:
    found, after = list[StatementTransaction](), None
    while len(found) < 100:  # a page that began where it ended would never come to an end
        page = busy.ledger.statement(owner, "points", newest_first=newest, limit=limit, after=after)
        found += page.items
        assert len(page.items) == limit or page.next is None
        if (after := page.next) is None:
            break
    assert [(line.transaction_id, line.amounts, line.balances) for line in found] == by_hand(busy.ledger, owner, newest)


def test_a_line_says_all_that_the_transaction_was(world: World) -> None:
    with freeze_time(NOON):
        world.credit(amount=100)
        held = world.hold(metadata=METADATA, idempotency_key="key-h", request_id="request-h")
    (line,) = world.ledger.statement("user:ana", "points", operation="hold").items
    transaction = world.ledger.transaction(held.transaction_id)
    assert transaction is not None
    header = vars(transaction).copy()
    assert (header.pop("occurred_at"), header) == (NOON, vars(line))
    assert (line.amounts, line.balances) == ({"available": -30, "escrow": 30}, {"available": 70, "escrow": 30})
    assert (line.feature_type, line.metadata, line.posted_at, line.wallet_version) == ("song", METADATA, NOON, 2)
    assert (line.idempotency_key, line.request_id, line.owner_id) == ("key-h", "request-h", "user:ana")


def test_feature_model_metadata_and_details_are_there_for_everyone_whom_it_touched(world: World) -> None:
    world.credit(amount=100)
    settled = world.settle(world.hold(feature_type="dance").escrow_id, metadata=METADATA)
    world.transfer(amount=5, metadata={"note": "thanks"})
    (earned,) = world.ledger.statement("model:luna", "points").items
    (mine,) = world.ledger.statement("user:ana", "points", operation="settle").items
    assert earned.transaction_id == mine.transaction_id == settled.transaction_id
    assert (earned.amounts, mine.amounts) == ({"earned": 30}, {"escrow": -30})
    for line in (earned, mine):
        assert (line.feature_type, line.model_id, line.metadata) == ("dance", "luna", METADATA)
        assert line.authorization_id is not None
    for owner in ("user:ana", "user:ben"):
        (given,) = world.ledger.statement(owner, "points", operation="transfer").items
        assert (given.owner_id, given.metadata, given.details) == ("user:ana", {"note": "thanks"}, {})
    world.spend(amount=5, order_id="order-9")
    (spent,) = world.ledger.statement("user:ana", "points", operation="spend").items
    assert spent.details == {"order_id": "order-9"}
    (entry,) = world.ledger.entries("model:luna", "points").items
    assert (entry.feature_type, entry.model_id, entry.metadata) == ("dance", "luna", METADATA)


def test_filters_are_those_of_the_entries(busy: World) -> None:
    lines = list(every(busy.ledger.entries, "user:ana", "points"))
    middle = lines[len(lines) // 2]
    for chosen in (
        {"operation": "hold"},
        {"reason": middle.reason},
        {"escrow_id": middle.escrow_id},
        {"queue_item_id": "queue-1"},
        {"request_id": "request-1"},
        {"request_id": "none"},
        {"since": middle.posted_at},
        {"until": middle.posted_at},
        {"operation": "settle", "since": NOON, "until": NOON + timedelta(days=9999)},
    ):
        options: dict[str, Any] = chosen
        expected = {line.transaction_id for line in every(busy.ledger.entries, "user:ana", "points", **options)}
        found = [line.transaction_id for line in every(busy.ledger.statement, "user:ana", "points", limit=2, **options)]
        assert sorted(found) == sorted(expected), chosen


def test_the_cursors_of_entries_and_of_transactions_are_not_taken_for_each_other(busy: World) -> None:
    of_entries = busy.ledger.entries("user:ana", "points", limit=1).next
    of_transactions = busy.ledger.statement("user:ana", "points", limit=1).next
    for read, cursor in ((busy.ledger.statement, of_entries), (busy.ledger.entries, of_transactions)):
        with pytest.raises(InvalidRequestError) as refusal:
            read("user:ana", "points", after=cursor)
        assert refusal.value.details["field"] == "after"


def test_what_it_cannot_understand_is_refused_by_name(world: World) -> None:
    wrong: list[tuple[str, Any]] = [
        ("account_id", "ana"),
        ("currency", "Points"),
        ("limit", 0),
        ("limit", 1001),
        ("after", encode_cursor(NOON, -1, "id")),
        ("after", "x"),
        ("operation", "Hold"),
        ("since", "today"),
    ]
    for name, value in wrong:
        options: dict[str, Any] = {"account_id": "user:ana", "currency": "points", name: value}
        with pytest.raises(InvalidRequestError) as refusal:
            world.ledger.statement(**options)
        assert refusal.value.details["field"] == name
