"""What each operation does to every row, what it answers, and what it announces."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import jwt
import pytest
from freezegun import freeze_time
from sqlalchemy import select

from points_platform.core import Base
from points_platform.events import EscrowHeld, EscrowPartiallySettled, EscrowRefunded, EscrowSettled, WalletCredited
from points_platform.wallets import (
    EscrowHoldResponse,
    EscrowPartialSettleResponse,
    EscrowRefundResponse,
    EscrowSettleResponse,
    UserCreditResponse,
    WalletConfig,
    event_of,
    request_of,
    response_of,
)
from support.world import World

CREDITED, HELD, DONE = (datetime(2026, 3, 1, 12, minute, 0, 123456, tzinfo=UTC) for minute in (0, 1, 2))
METADATA = {"tip": 1.5, "song": "Clair de lune"}
METADATA_TEXT = '{"song":"Clair de lune","tip":1.5}'
Row = dict[str, Any]
Rows = dict[str, list[Row]]


def rows_of(world: World) -> Rows:
    with world.database.engine.connect() as connection:
        return {
            table.name: [dict(zip(table.columns.keys(), row, strict=True)) for row in connection.execute(select(table))]
            for table in Base.metadata.sorted_tables
        }


def changed(before: Rows, after: Rows) -> Rows:
    """The rows that are new or different, by table; a row that has gone is an error."""
    for table in Base.metadata.sorted_tables:
        keys = [[row[column.key] for column in table.primary_key] for row in after[table.name]]
        assert all([row[column.key] for column in table.primary_key] in keys for row in before[table.name])
    different = {name: [row for row in rows if row not in before[name]] for name, rows in after.items()}
    return {name: sorted(rows, key=repr) for name, rows in different.items() if rows}


def change_of(world: World, at: datetime, request: Any, **options: Any) -> tuple[Any, Rows]:
    """Send the request at that time; its response, and every row that it made or changed."""
    before = rows_of(world)
    with freeze_time(at):
        response = world.send(request, **options)
    return response, changed(before, rows_of(world))


def entry(response: Any, account_id: str, bucket: str, amount: int, before: int, version: int, at: datetime) -> Row:
    return {
        "transaction_id": response.transaction_id,
        "account_id": account_id,
        "bucket": bucket,
        "owner_id": "user:ana",
        "currency": "points",
        "amount": amount,
        "balance_before": before,
        "balance_after": before + amount,
        "wallet_version": version,
        "posted_at": at,
    }


def transaction(response: Any, request: Any, operation: str, at: datetime, **given: Any) -> Row:
    nothing = dict.fromkeys(("escrow_id", "queue_item_id", "feature_type", "model_id", "authorization_id"))
    return nothing | {
        "transaction_id": response.transaction_id,
        "owner_id": "user:ana",
        "operation": operation,
        "idempotency_key": request.idempotency_key,
        "request_id": request.request_id,
        "reason": request.reason,
        "currency": "points",
        "metadata_json": METADATA_TEXT,
        "occurred_at": at,
        **given,
    }


def user_wallet(available: int, escrow: int, version: int, at: datetime) -> Row:
    balances: Row = {"available": available, "escrow": escrow, "version": version}
    return {"user_id": "ana", "currency": "points", **balances, "created_at": CREDITED, "updated_at": at}


def model_wallet(earned: int, version: int, at: datetime) -> Row:
    return {
        "model_id": "luna",
        "currency": "points",
        "earned": earned,
        "version": version,
        "created_at": DONE,
        "updated_at": at,
    }


def held_item(response: Any, request: Any) -> Row:
    return {
        "escrow_id": response.escrow_id,
        "user_id": "ana",
        "currency": "points",
        "amount": request.amount,
        "status": "held",
        "queue_item_id": request.queue_item_id,
        "feature_type": request.feature_type,
        "reason": request.reason,
        "metadata_json": METADATA_TEXT,
        "model_id": None,
        "settled_amount": 0,
        "refunded_amount": 0,
        "created_at": HELD,
        "processed_at": None,
    }


def announced(request: Any, response: Any, at: datetime) -> dict[str, Any]:
    return {
        "event_id": response.transaction_id,
        "transaction_id": response.transaction_id,
        "occurred_at": at,
        "idempotency_key": request.idempotency_key,
        "request_id": request.request_id,
        "user_id": "ana",
        "currency": "points",
        "reason": request.reason,
        "metadata_json": METADATA_TEXT,
    }


def in_order(*rows: Row) -> list[Row]:
    return sorted(rows, key=repr)


def authorization_id(authorization: Any) -> str:
    claims = jwt.decode(authorization.token, options={"verify_signature": False})
    assert UUID(claims["jti"]).version == 7
    jti: str = claims["jti"]
    return jti


class Held:
    """A user with 70 points available and 30 in escrow, for the operations that end a hold."""

    def __init__(self, world: World) -> None:
        self.world = world
        with freeze_time(CREDITED):
            world.credit(amount=100)
        self.request = world.hold_request(amount=30, metadata=METADATA)
        with freeze_time(HELD):
            self.hold = world.send(self.request)
        world.events.clear()

    def end(self, request: Any) -> tuple[Any, Rows, str]:
        with freeze_time(DONE):
            authorization = self.world.authorize(request)
        response, rows = change_of(self.world, DONE, request, authorization=authorization)
        return response, rows, authorization_id(authorization)

    def item(self, **changes: Any) -> Row:
        return held_item(self.hold, self.request) | changes

    def entry(self, response: Any, account_id: str, bucket: str, amount: int, before: int, version: int = 3) -> Row:
        return entry(response, account_id, bucket, amount, before, version, DONE)

    def transaction(self, response: Any, request: Any, operation: str, **given: Any) -> Row:
        item = {"escrow_id": self.hold.escrow_id, "queue_item_id": "queue-1", "feature_type": "song"}
        return transaction(response, request, operation, DONE, **item, **given)

    def announced(self, request: Any, response: Any) -> dict[str, Any]:
        item = {"escrow_id": self.hold.escrow_id, "queue_item_id": "queue-1", "feature_type": "song"}
        return announced(request, response, DONE) | item


def test_credit_writes_wallet_transaction_and_both_entries(world: World) -> None:
    request = world.credit_request(amount=100, metadata=METADATA, request_id="request-7")
    response, rows = change_of(world, CREDITED, request)
    issuer = entry(response, "platform:issuer", "issued", -100, 0, 0, CREDITED)
    assert rows == {
        "user_wallets": [user_wallet(100, 0, 1, CREDITED)],
        "ledger_transactions": [transaction(response, request, "credit", CREDITED)],
        "ledger_entries": in_order(
            issuer | dict.fromkeys(("balance_before", "balance_after", "wallet_version")),
            entry(response, "user:ana", "available", 100, 0, 1, CREDITED),
        ),
    }
    assert response == UserCreditResponse(
        transaction_id=response.transaction_id, timestamp=CREDITED, previous_balance=0, new_available_balance=100
    )
    assert (response.replayed, UUID(response.transaction_id).version) == (False, 7)
    assert world.events == [
        WalletCredited(
            **announced(request, response, CREDITED), amount=100, previous_balance=0, new_available_balance=100
        )
    ]


def test_a_further_credit_changes_the_wallet_and_raises_its_version(world: World) -> None:
    with freeze_time(CREDITED):
        world.credit(amount=100)
    response, rows = change_of(world, HELD, world.credit_request(amount=1))
    assert rows["user_wallets"] == [user_wallet(101, 0, 2, HELD)]
    assert entry(response, "user:ana", "available", 1, 100, 2, HELD) in rows["ledger_entries"]
    assert (response.previous_balance, response.new_available_balance) == (100, 101)


def test_hold_writes_item_wallet_transaction_and_both_entries(world: World) -> None:
    with freeze_time(CREDITED):
        world.credit(amount=100)
    request = world.hold_request(amount=30, metadata=METADATA, request_id="request-8", reason="menu_purchase")
    response, rows = change_of(world, HELD, request)
    item = {"escrow_id": response.escrow_id, "queue_item_id": "queue-1", "feature_type": "song"}
    assert rows == {
        "user_wallets": [user_wallet(70, 30, 2, HELD)],
        "escrow_items": [held_item(response, request)],
        "ledger_transactions": [transaction(response, request, "hold", HELD, **item)],
        "ledger_entries": in_order(
            entry(response, "user:ana", "available", -30, 100, 2, HELD),
            entry(response, "user:ana", "escrow", 30, 0, 2, HELD),
        ),
    }
    balances: Row = {"previous_balance": 100, "new_available_balance": 70, "escrow_balance": 30}
    ids: Row = {"transaction_id": response.transaction_id, "escrow_id": response.escrow_id}
    assert response == EscrowHoldResponse(**ids, timestamp=HELD, **balances)
    assert (response.replayed, UUID(response.escrow_id).version) == (False, 7)
    assert world.events[1:] == [EscrowHeld(**announced(request, response, HELD), **item, **balances, amount=30)]


def test_hold_answers_with_the_whole_escrow_of_the_user(world: World) -> None:
    world.credit(amount=100)
    assert [world.hold(amount=30).escrow_balance, world.hold(amount=70).escrow_balance] == [30, 100]
    balance = world.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.total, balance.version) == (0, 100, 100, 3)


def test_settle_moves_the_hold_to_the_model(world: World) -> None:
    held = Held(world)
    request = world.settle_request(held.hold.escrow_id, 30, metadata=METADATA, request_id="request-9")
    response, rows, jti = held.end(request)
    assert rows == {
        "user_wallets": [user_wallet(70, 0, 3, DONE)],
        "model_wallets": [model_wallet(30, 1, DONE)],
        "escrow_items": [held.item(status="settled", settled_amount=30, model_id="luna", processed_at=DONE)],
        "ledger_transactions": [
            held.transaction(response, request, "settle", model_id="luna", authorization_id=jti),
        ],
        "ledger_entries": in_order(
            held.entry(response, "user:ana", "escrow", -30, 30),
            held.entry(response, "model:luna", "earned", 30, 0, version=1),
        ),
    }
    amounts: Row = {"settled_amount": 30, "model_earned_balance": 30}
    assert response == EscrowSettleResponse(transaction_id=response.transaction_id, timestamp=DONE, **amounts)
    assert world.events == [
        EscrowSettled(**held.announced(request, response), **amounts, model_id="luna", authorization_id=jti)
    ]


def test_refund_moves_the_hold_back_to_the_user(world: World) -> None:
    held = Held(world)
    request = world.refund_request(held.hold.escrow_id, 30, metadata=METADATA, reason="outbid")
    response, rows, jti = held.end(request)
    assert rows == {
        "user_wallets": [user_wallet(100, 0, 3, DONE)],
        "escrow_items": [held.item(status="refunded", refunded_amount=30, processed_at=DONE)],
        "ledger_transactions": [held.transaction(response, request, "refund", authorization_id=jti)],
        "ledger_entries": in_order(
            held.entry(response, "user:ana", "escrow", -30, 30),
            held.entry(response, "user:ana", "available", 30, 70),
        ),
    }
    amounts: Row = {"refunded_amount": 30, "user_available_balance": 100}
    assert response == EscrowRefundResponse(transaction_id=response.transaction_id, timestamp=DONE, **amounts)
    assert world.events == [EscrowRefunded(**held.announced(request, response), **amounts, authorization_id=jti)]


def test_partial_settle_splits_the_hold_between_model_and_user(world: World) -> None:
    held = Held(world)
    request = world.partial_settle_request(held.hold.escrow_id, 10, 20, metadata=METADATA)
    response, rows, jti = held.end(request)
    end = {"status": "partially_settled", "settled_amount": 20, "refunded_amount": 10}
    assert rows == {
        "user_wallets": [user_wallet(80, 0, 3, DONE)],
        "model_wallets": [model_wallet(20, 1, DONE)],
        "escrow_items": [held.item(**end, model_id="luna", processed_at=DONE)],
        "ledger_transactions": [
            held.transaction(response, request, "partial_settle", model_id="luna", authorization_id=jti),
        ],
        "ledger_entries": in_order(
            held.entry(response, "user:ana", "escrow", -30, 30),
            held.entry(response, "user:ana", "available", 10, 70),
            held.entry(response, "model:luna", "earned", 20, 0, version=1),
        ),
    }
    amounts: Row = {
        "refunded_amount": 10,
        "settled_amount": 20,
        "user_available_balance": 80,
        "model_earned_balance": 20,
    }
    assert response == EscrowPartialSettleResponse(transaction_id=response.transaction_id, timestamp=DONE, **amounts)
    assert world.events == [
        EscrowPartiallySettled(**held.announced(request, response), **amounts, model_id="luna", authorization_id=jti)
    ]


def test_ending_one_hold_leaves_the_others_and_adds_to_what_the_model_has(world: World) -> None:
    world.credit(amount=100)
    first, second, third = (world.hold(amount=amount).escrow_id for amount in (1, 10, 20))
    world.settle(first, 1)
    settled = world.partial_settle(second, 9, 1)
    assert (settled.user_available_balance, settled.model_earned_balance) == (78, 2)
    assert [world.wallets.get_escrow(item).status for item in (first, second, third)] == [
        "settled",
        "partially_settled",
        "held",
    ]
    user, model = world.wallets.get_user_balance("ana"), world.wallets.get_model_balance("luna")
    assert (user.available, user.escrow, user.version, model.earned, model.version) == (78, 20, 6, 2, 2)


def test_an_operation_changes_nothing_of_another_user_or_model(world: World) -> None:
    for user_id, model_id in (("ana", "luna"), ("ben", "nova")):
        world.credit(user_id)
        mine: Row = {"user_id": user_id, "model_id": model_id}
        world.settle(world.hold(user_id).escrow_id, **mine)
    _, rows = change_of(world, datetime.now(UTC), world.hold_request("ana"))
    assert [row["user_id"] for row in rows["user_wallets"]] == ["ana"]
    assert "model_wallets" not in rows


def test_a_user_and_a_model_of_one_name_are_two_owners(world: World) -> None:
    world.credit("luna", 100)
    world.settle(world.hold("luna").escrow_id, user_id="luna", model_id="luna")
    user, model = world.wallets.get_user_balance("luna"), world.wallets.get_model_balance("luna")
    assert (user.available, user.escrow, model.earned) == (70, 0, 30)


def test_currencies_stand_side_by_side(world: World) -> None:
    amounts = {"points": 100, "gems": 50, "a_2": 7}
    for currency, amount in amounts.items():
        assert world.credit(amount=amount, currency=currency).previous_balance == 0
    held = {currency: world.hold(amount=5, currency=currency).escrow_id for currency in amounts}
    world.settle(held["gems"], 5)
    world.refund(held["a_2"], 5, currency="a_2")

    def balance(currency: str) -> tuple[int, int, int, int]:
        user, model = (
            world.wallets.get_user_balance("ana", currency),
            world.wallets.get_model_balance("luna", currency),
        )
        assert (user.currency, model.currency) == (currency, currency)
        return user.available, user.escrow, user.version, model.earned

    assert {currency: balance(currency) for currency in amounts} == {
        "points": (95, 5, 2, 0),
        "gems": (45, 0, 3, 5),
        "a_2": (7, 0, 3, 0),
    }
    assert world.wallets.get_escrow(held["gems"]).currency == "gems"


def test_the_configured_currency_stands_for_the_one_left_open(world: World) -> None:
    gems = world.service(config=WalletConfig(default_currency="gems"))
    gems.credit_user(world.credit_request(amount=100))
    held = gems.hold_in_escrow(world.hold_request(amount=30))
    assert world.settle(held.escrow_id).model_earned_balance == 30, "the hold's currency, not the service's"
    assert (gems.get_user_balance("ana").currency, gems.get_user_balance("ana").available) == ("gems", 70)
    assert (gems.get_model_balance("luna").earned, world.wallets.get_model_balance("luna").earned) == (30, 0)
    assert world.wallets.get_user_balance("ana").version == 0
    assert {event.currency for event in world.events} == {"gems"}


@pytest.mark.parametrize(
    "make",
    [
        lambda world, hold: world.credit_request(metadata=METADATA),
        lambda world, hold: world.hold_request(metadata=METADATA),
        lambda world, hold: world.settle_request(hold.escrow_id, metadata=METADATA),
        lambda world, hold: world.refund_request(hold.escrow_id, metadata=METADATA),
        lambda world, hold: world.partial_settle_request(hold.escrow_id, metadata=METADATA),
    ],
    ids=["credit", "hold", "settle", "refund", "partial_settle"],
)
def test_the_record_holds_request_response_and_event(world: World, make: Callable[[World, Any], Any]) -> None:
    world.credit(amount=100)
    request = make(world, world.hold())
    response = world.send(request)
    recorded = world.ledger.transaction(response.transaction_id)
    assert recorded is not None
    assert request_of(recorded) == replace(request, currency="points")
    assert response_of(recorded) == response
    assert event_of(recorded) == world.events[-1]


def test_metadata_is_stored_as_canonical_text(world: World) -> None:
    metadata = {"ü": "\x00", "a": [1, 1.0, True, None, 10**30], "Z": {"b": "", "a": -0.0}, "😀": 1e-7}
    response = world.credit(metadata=metadata)
    recorded = world.ledger.transaction(response.transaction_id)
    assert recorded is not None
    assert recorded.metadata_json == (
        '{"Z":{"a":-0.0,"b":""},"a":[1,1.0,true,null,' + str(10**30) + '],"ü":"\\u0000","😀":1e-07}'
    )
    assert (recorded.metadata, world.events[-1].metadata) == (metadata, metadata)


def test_no_metadata_and_empty_metadata_are_two_things(world: World) -> None:
    metadata: Row | None
    for metadata in (None, {}):
        response = world.credit(metadata=metadata)
        recorded = world.ledger.transaction(response.transaction_id)
        assert recorded is not None
        assert recorded.metadata == metadata


def test_a_clock_that_goes_backwards_never_posts_into_a_wallets_past(world: World) -> None:
    with freeze_time(DONE):
        world.credit(amount=100)
        world.settle(world.hold(amount=1).escrow_id, 1)
    with freeze_time(CREDITED):
        world.credit(amount=1)
        held = world.hold(amount=20)
        response = world.partial_settle(held.escrow_id, 5, 15)
        world.refund(world.hold(amount=2).escrow_id, 2)
    rows = rows_of(world)
    assert response.timestamp == CREDITED
    wallets = {row["posted_at"] for row in rows["ledger_entries"] if row["bucket"] != "issued"}
    assert wallets == {DONE}
    item = world.wallets.get_escrow(held.escrow_id)
    assert (item.created_at, item.processed_at) == (CREDITED, CREDITED)
    assert {row["updated_at"] for row in rows["user_wallets"] + rows["model_wallets"]} == {DONE}
    later = datetime(2026, 3, 2, tzinfo=UTC)
    _, rows = change_of(world, later, world.credit_request(amount=1))
    assert [row["updated_at"] for row in rows["user_wallets"]] == [later]


def test_a_service_without_a_bus_does_the_same(world: World) -> None:
    silent = world.service(events=None)
    silent.credit_user(world.credit_request(amount=100))
    held = silent.hold_in_escrow(world.hold_request())
    assert world.send(world.settle_request(held.escrow_id), silent).model_earned_balance == 30
    assert world.events == []
