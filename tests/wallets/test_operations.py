"""What operations do to each other: several on one wallet, of one name, in several currencies, by a clock that lags."""

from datetime import UTC, datetime
from typing import Any

from freezegun import freeze_time
from sqlalchemy import select

from points_platform.core import Base
from points_platform.wallets import WalletConfig
from support.world import World

CREDITED, DONE = (datetime(2026, 3, 1, 12, minute, 0, 123456, tzinfo=UTC) for minute in (0, 2))
Row = dict[str, Any]
Rows = dict[str, list[Row]]


def rows_of(world: World) -> Rows:
    with world.database.engine.connect() as connection:
        return {
            table.name: [dict(zip(table.columns.keys(), row, strict=True)) for row in connection.execute(select(table))]
            for table in Base.metadata.sorted_tables
        }


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
    with freeze_time(later):
        world.credit(amount=1)
    assert [row["updated_at"] for row in rows_of(world)["user_wallets"]] == [later]


def test_a_service_without_a_bus_does_the_same(world: World) -> None:
    silent = world.service(events=None)
    silent.credit_user(world.credit_request(amount=100))
    held = silent.hold_in_escrow(world.hold_request())
    assert world.send(world.settle_request(held.escrow_id), silent).model_earned_balance == 30
    assert world.events == []
