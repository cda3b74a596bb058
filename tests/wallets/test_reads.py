"""The reads: balances, one escrow item, and pages of them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any
from uuid import uuid4

import pytest
from freezegun import freeze_time

from points_platform.core import EscrowNotFoundError, InvalidRequestError
from points_platform.core.values import encode_cursor
from points_platform.wallets import EscrowItem, EscrowStatus, ModelBalance, UserBalance, WalletConfig
from support.answers import told
from support.statements import statements
from support.world import World

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def listed(world: World, **options: Any) -> list[str]:
    """The ids of all pages, which are of the asked size and end with one that says so."""
    found: list[EscrowItem] = []
    after = None
    while True:
        page = world.wallets.list_escrows(**options, after=after)
        assert not set(page.items) & set(found), "a page repeats what an earlier one had"
        found += page.items
        after = page.next
        assert len(page.items) <= options.get("limit", 50)
        if after is None:
            return [item.escrow_id for item in found]
        assert len(page.items) == options.get("limit", 50)


def field_refused(call: Callable[..., object], **arguments: Any) -> str:
    with pytest.raises(InvalidRequestError) as refusal:
        call(**arguments)
    field: str = refusal.value.details["field"]
    if field in arguments:
        assert refusal.value.details["value"] == told(arguments[field])
    return field


def test_a_refusal_says_what_was_given_and_what_was_expected(world: World) -> None:
    identifier = "must be a string of 1 to 128 printable characters, not ''"
    calls: dict[str, Callable[[], object]] = {
        f"user_id {identifier}": lambda: world.wallets.get_user_balance(""),
        f"model_id {identifier}": lambda: world.wallets.get_model_balance(""),
        f"escrow_id {identifier}": lambda: world.wallets.get_escrow(""),
        f"queue_item_id {identifier}": lambda: world.wallets.list_escrows(queue_item_id=""),
        "currency must be a code like [a-z][a-z0-9_]{0,31}, not ''": lambda: world.wallets.get_user_balance("ana", ""),
        "status must be one of held, settled, refunded, partially_settled, not 'lost'": (
            lambda: world.wallets.list_escrows(status="lost")
        ),
        "status must be one of held, not 'settled'": (
            lambda: world.wallets.list_escrows(status="settled", held_before=NOON)
        ),
        "user_id must be given, or queue_item_id, status or held_before, not None": world.wallets.list_escrows,
        "limit must be a whole number from 1 to 1000, not 0": lambda: world.wallets.list_escrows(user_id="a", limit=0),
    }
    for message, call in calls.items():
        with pytest.raises(InvalidRequestError) as refusal:
            call()
        assert str(refusal.value) == message
    with pytest.raises(InvalidRequestError, match=f"^user_id {identifier}$"):
        world.wallets.get_escrow("escrow-1", "")


def test_an_unknown_user_or_model_has_nothing_and_reading_creates_nothing(world: World) -> None:
    world.credit()
    rows = world.snapshot()
    with freeze_time(NOON):
        assert world.wallets.get_user_balance("ben") == UserBalance(
            user_id="ben", currency="points", available=0, escrow=0, total=0, version=0, as_of=NOON
        )
        assert world.wallets.get_user_balance("ana", "gems").version == 0
        assert world.wallets.get_model_balance("ana", "gems") == ModelBalance(
            model_id="ana", currency="gems", earned=0, version=0, as_of=NOON
        )
    assert world.snapshot() == rows


def test_all_balances_of_an_owner_in_all_currencies(world: World) -> None:
    assert (world.wallets.get_user_balances("ana"), world.wallets.get_model_balances("luna")) == ([], [])
    for currency, amount in (("points", 100), ("gems", 50), ("a_first", 7)):
        world.credit(amount=amount, currency=currency)
        world.credit("ben", 1000, currency=currency)
        held = world.hold(amount=5, currency=currency)
        world.settle(held.escrow_id, amount=5)
    world.hold(amount=20, currency="gems")
    with freeze_time(NOON):
        users, models = world.wallets.get_user_balances("ana"), world.wallets.get_model_balances("luna")
        each = [world.wallets.get_user_balance("ana", currency) for currency in ("a_first", "gems", "points")]
        assert [world.wallets.get_model_balance("luna", balance.currency) for balance in each] == models
    assert users == each
    assert [(balance.currency, balance.available, balance.escrow) for balance in users] == [
        ("a_first", 2, 0),
        ("gems", 25, 20),
        ("points", 95, 0),
    ]
    assert field_refused(world.wallets.get_user_balances, user_id="user:ana") == "user_id"
    assert field_refused(world.wallets.get_model_balances, model_id="") == "model_id"


def test_all_balances_are_one_statement(world: World) -> None:
    for currency in ("points", "gems"):
        world.credit(currency=currency)
    with statements(world.database.engine) as seen:
        assert len(world.wallets.get_user_balances("ana")) == 2
    assert len([each for each in seen if each.startswith("SELECT")]) == 1


def test_balances_say_what_there_is_now(world: World) -> None:
    world.credit(amount=100)
    held = [world.hold(amount=amount) for amount in (30, 20)]
    world.settle(held[0].escrow_id)
    with freeze_time(NOON):
        user, model = world.wallets.get_user_balance("ana"), world.wallets.get_model_balance("luna", "points")
    assert user == UserBalance(
        user_id="ana", currency="points", available=50, escrow=20, total=70, version=4, as_of=NOON
    )
    assert model == ModelBalance(model_id="luna", currency="points", earned=30, version=1, as_of=NOON)


def test_a_balance_is_read_afresh_although_another_service_has_changed_it(world: World) -> None:
    other = world.service()
    for expected in (100, 200):
        other.credit_user(world.credit_request(amount=100))
        assert world.wallets.get_user_balance("ana").available == expected


def test_names_are_compared_by_every_character(world: World) -> None:
    world.credit("ana", 1)
    for other in ("Ana", "ana ", " ana", "an", "anaa", "aná", "user", "%", "ana%"):
        assert world.wallets.get_user_balance(other).available == 0


class Coin(StrEnum):
    GEMS = "gems"


def test_currencies_of_the_hosts_own_string_type_come_out_plain(world: World) -> None:
    world.credit(amount=5, currency=Coin.GEMS)
    balances = [
        world.wallets.get_user_balance("ana", Coin.GEMS),
        world.service(config=WalletConfig(default_currency=Coin.GEMS)).get_user_balance("ana"),
    ]
    assert [(balance.available, type(balance.currency)) for balance in balances] == [(5, str), (5, str)]


def test_an_escrow_item_is_read_whole(world: World) -> None:
    world.credit(amount=100)
    with freeze_time(NOON):
        held = world.hold(metadata={"song": ["é", 1.0]})
        world.partial_settle(held.escrow_id, 10, 20)
    item = world.wallets.get_escrow(held.escrow_id, "ana")
    assert item == EscrowItem(
        escrow_id=held.escrow_id,
        user_id="ana",
        currency="points",
        amount=30,
        status=EscrowStatus.PARTIALLY_SETTLED,
        queue_item_id="queue-1",
        feature_type="song",
        reason="performance_request",
        metadata_json='{"song":["é",1.0]}',
        model_id="luna",
        settled_amount=20,
        refunded_amount=10,
        created_at=NOON,
        processed_at=NOON,
    )
    assert item.metadata == {"song": ["é", 1.0]}
    assert (type(item.status), item.created_at.utcoffset()) == (EscrowStatus, timedelta(0))


def test_metadata_of_a_read_item_is_a_fresh_copy_each_time(world: World) -> None:
    world.credit()
    item = world.wallets.get_escrow(world.hold(metadata={"a": []}).escrow_id)
    assert item.metadata is not None
    item.metadata["a"].append(1)
    assert item.metadata == {"a": []}


def test_an_escrow_item_of_somebody_else_is_not_found(world: World) -> None:
    world.credit()
    escrow_id = world.hold().escrow_id
    assert world.wallets.get_escrow(escrow_id) == world.wallets.get_escrow(escrow_id, "ana")
    wrong: list[tuple[str, str | None]] = [
        (escrow_id, "ben"),
        (escrow_id, "ANA"),
        (str(uuid4()), None),
        (str(uuid4()), "ana"),
        ("no uuid", None),
        (escrow_id.upper(), None),
        (escrow_id + " ", None),
        ("x" * 128, "ana"),
    ]
    for given, user_id in wrong:
        with pytest.raises(EscrowNotFoundError) as refusal:
            world.wallets.get_escrow(given, user_id)
        assert refusal.value.details == {"escrow_id": given}


def test_filters_narrow_the_list_and_combine(world: World) -> None:
    world.credit("ana", 1000)
    world.credit("ben", 1000)
    a1 = world.hold("ana", queue_item_id="q1").escrow_id
    a2 = world.hold("ana", queue_item_id="q2").escrow_id
    b1 = world.hold("ben", queue_item_id="q1").escrow_id
    a3 = world.hold("ana", queue_item_id="q1").escrow_id
    world.refund(a3, queue_item_id="q1")
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"user_id": "ana"}, [a1, a2, a3]),
        ({"user_id": "ben"}, [b1]),
        ({"user_id": "eve"}, []),
        ({"queue_item_id": "q1"}, [a1, b1, a3]),
        ({"queue_item_id": "q"}, []),
        ({"status": "held"}, [a1, a2, b1]),
        ({"status": EscrowStatus.REFUNDED}, [a3]),
        ({"status": "settled"}, []),
        ({"user_id": "ana", "queue_item_id": "q1"}, [a1, a3]),
        ({"user_id": "ana", "queue_item_id": "q1", "status": "held"}, [a1]),
        ({"user_id": "ben", "status": "refunded"}, []),
        ({"user_id": "ana", "held_before": datetime(9999, 1, 1, tzinfo=UTC)}, [a1, a2]),
    ]
    for filters, expected in cases:
        for limit in (1, 2, 3, 1000):
            assert listed(world, **filters, limit=limit) == expected, filters


def test_a_page_that_is_just_full_is_the_last_one(world: World) -> None:
    world.credit(amount=100)
    ids = [world.hold(amount=1).escrow_id for _ in range(4)]
    page = world.wallets.list_escrows(user_id="ana", limit=2)
    assert page.next is not None
    last = world.wallets.list_escrows(user_id="ana", limit=2, after=page.next)
    assert ([item.escrow_id for item in page.items + last.items], last.next) == (ids, None)
    assert world.wallets.list_escrows(user_id="ana", limit=4).next is None


def test_pages_stay_right_while_items_arrive_and_end(world: World) -> None:
    """What ended after the first page was read, or came later, neither repeats nor hides another item."""
    world.credit(amount=100)
    ids = [world.hold(amount=1).escrow_id for _ in range(5)]
    page = world.wallets.list_escrows(status="held", limit=2)
    seen = [item.escrow_id for item in page.items]
    world.settle(ids[0], 1)
    world.settle(ids[3], 1)
    late = world.hold(amount=1).escrow_id
    while page.next is not None:
        page = world.wallets.list_escrows(status="held", limit=2, after=page.next)
        seen += [item.escrow_id for item in page.items]
    assert seen == [ids[0], ids[1], ids[2], ids[4], late]


def test_held_before_finds_what_is_stuck(world: World) -> None:
    with freeze_time(NOON):
        world.credit(amount=100)
        early, ended = (world.hold(amount=1).escrow_id for _ in range(2))
        world.refund(ended, 1)
    with freeze_time(NOON + timedelta(minutes=10)):
        late = world.hold(amount=1).escrow_id
    instant = timedelta(microseconds=1)
    assert listed(world, held_before=NOON) == []
    assert listed(world, held_before=NOON + instant) == [early]
    assert listed(world, held_before=NOON + timedelta(minutes=10), status="held") == [early]
    assert listed(world, held_before=NOON + timedelta(minutes=10) + instant, limit=1) == [early, late]
    elsewhere = timezone(timedelta(hours=-11, minutes=-30))
    assert listed(world, held_before=(NOON + instant).astimezone(elsewhere), status=EscrowStatus.HELD) == [early]


def test_a_list_needs_a_filter(world: World) -> None:
    assert field_refused(world.wallets.list_escrows) == "user_id"
    assert field_refused(world.wallets.list_escrows, limit=5, after=encode_cursor("x")) == "user_id"


NO_FILTERS: dict[str, list[Any]] = {
    "limit": [0, -1, 1001, True, 1.0, "5", None, 2**64],
    "status": ["", "HELD", "lost", 1, True, [], "held\n", b"held"],
    "user_id": ["", "x" * 129, 1, True, "a\nb", "a\x00", "\ud800", b"ana", []],
    "queue_item_id": ["", "x" * 129, 1, "\x7f", "\u2028", {}],
    "held_before": [datetime(2026, 3, 1), "2026-03-01", 1, NOON.date(), False],
    "after": ["", "x", "!!!", "é", "\ud800", 5, True, b"x", [], "=" * 7, "W10", "bnVsbA", "A" * 100_001],
}


def test_a_list_refuses_what_it_cannot_understand(world: World) -> None:
    for name, value in ((name, value) for name, values in NO_FILTERS.items() for value in values):
        assert field_refused(world.wallets.list_escrows, **{"user_id": "ana", name: value}) == name


def test_held_before_is_about_held_items_only(world: World) -> None:
    for status in ("settled", "refunded", "partially_settled"):
        assert field_refused(world.wallets.list_escrows, held_before=NOON, status=status) == "status"


def test_a_time_that_no_calendar_has_is_refused(world: World) -> None:
    beyond = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
    assert field_refused(world.wallets.list_escrows, held_before=beyond) == "held_before"


def test_reads_refuse_what_is_no_name(world: World) -> None:
    wallets = world.wallets
    wrong: Any
    for wrong in ("", "x" * 129, None, 1, True, 1.5, b"ana", "a\x00b", "a\nb", "\ud800", [], {}):
        assert field_refused(wallets.get_user_balance, user_id=wrong) == "user_id"
        assert field_refused(wallets.get_model_balance, model_id=wrong) == "model_id"
        assert field_refused(wallets.get_escrow, escrow_id=wrong) == "escrow_id"
        if wrong is not None:
            assert field_refused(wallets.get_escrow, escrow_id="x", user_id=wrong) == "user_id"
    for wrong in ("", "Points", "1x", "a-b", "x" * 33, "points\n", 1, True, b"points", "é"):
        assert field_refused(wallets.get_user_balance, user_id="ana", currency=wrong) == "currency"
        assert field_refused(wallets.get_model_balance, model_id="ana", currency=wrong) == "currency"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_retry_attempts": -1}, "max_retry_attempts"),
        ({"max_retry_attempts": True}, "max_retry_attempts"),
        ({"retry_backoff_ms": 1.0}, "retry_backoff_ms"),
        ({"idempotency_cache_size": None}, "idempotency_cache_size"),
        ({"idempotency_cache_ttl_s": "60"}, "idempotency_cache_ttl_s"),
        ({"default_currency": "Points"}, "default_currency"),
        ({"default_currency": None}, "default_currency"),
    ],
)
def test_a_configuration_refuses_what_it_cannot_mean(options: dict[str, Any], field: str) -> None:
    assert field_refused(WalletConfig, **options) == field
