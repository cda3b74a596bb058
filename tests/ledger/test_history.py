"""History: filtered statements, balances as of a time or a version, earnings per calendar period."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time
from sqlalchemy import Engine, event

from points_platform.core import InvalidRequestError
from points_platform.core.values import MAX_POINTS
from points_platform.ledger import ISSUER, Account, Bucket, LedgerService, StatementLine
from points_platform.ledger.accounts import available, earned, escrow
from points_platform.ledger.periods import period_edges
from support.answers import refused
from support.world import World

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
HOUR, MICROSECOND = timedelta(hours=1), timedelta(microseconds=1)
VIENNA, NEW_YORK = ZoneInfo("Europe/Vienna"), ZoneInfo("America/New_York")
OFFSETS: list[tzinfo] = [
    UTC,
    VIENNA,
    NEW_YORK,
    timezone(timedelta(hours=14)),
    timezone(timedelta(hours=-12)),
    timezone(timedelta(hours=5, minutes=45)),
    timezone(timedelta(hours=-3, minutes=-7, seconds=-1)),
]
ANA, HELD, LUNA = available("ana"), escrow("ana"), earned("luna")


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is sent to the database meanwhile, but for what begins a transaction."""
    seen: list[str] = []

    def watch(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", watch)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", watch)


@pytest.fixture
def afternoon(world: World) -> World:
    """A credit of 100 at 12:00, a hold of 30 at 13:00, its settlement at 14:00."""
    with freeze_time(NOON) as clock:
        world.credit(amount=100)
        clock.move_to(NOON + HOUR)
        held = world.hold(amount=30)
        clock.move_to(NOON + 2 * HOUR)
        world.settle(held.escrow_id, 30)
    return world


def test_a_balance_as_of_a_time_is_what_the_last_entry_until_then_left(afternoon: World) -> None:
    times = {
        utc(1, 1, 1): (0, 0, 0),
        NOON - HOUR: (0, 0, 0),
        NOON - MICROSECOND: (0, 0, 0),
        NOON: (100, 0, 0),
        NOON + MICROSECOND: (100, 0, 0),
        NOON + HOUR / 2: (100, 0, 0),
        NOON + HOUR - MICROSECOND: (100, 0, 0),
        NOON + HOUR: (70, 30, 0),
        NOON + 1.5 * HOUR: (70, 30, 0),
        NOON + 2 * HOUR - MICROSECOND: (70, 30, 0),
        NOON + 2 * HOUR: (70, 0, 30),
        NOON + 48 * HOUR: (70, 0, 30),
    }
    for at, balances in times.items():
        for zone in OFFSETS if at > utc(2, 1, 1) else [UTC]:
            local = at.astimezone(zone)
            found = tuple(afternoon.ledger.balance_as_of(account, "points", at=local) for account in (ANA, HELD, LUNA))
            assert found == balances, local


@pytest.mark.parametrize(
    ("day", "wall_times"),
    [
        # The clocks go from 02:00 to 03:00 at 01:00 UTC: 02:30 is not on the wall, its fold says by which offset.
        ((2025, 3, 30), {(1, 29, 0): 0, (1, 30, 0): 1, (2, 30, 1): 1, (3, 0, 0): 2, (2, 30, 0): 3, (3, 30, 0): 3}),
        # From 03:00 back to 02:00 at 01:00 UTC: 02:30 comes twice.
        ((2025, 10, 26), {(2, 29, 0): 0, (2, 30, 0): 1, (2, 59, 0): 1, (2, 0, 1): 2, (2, 29, 1): 2, (2, 30, 1): 3}),
    ],
)
def test_a_balance_as_of_a_wall_time_around_a_change_of_the_clocks(
    world: World, day: tuple[int, int, int], wall_times: dict[tuple[int, int, int], int]
) -> None:
    with freeze_time(utc(*day, 0, 30)) as clock:
        world.credit(amount=1)
        clock.move_to(utc(*day, 1, 0))
        world.credit(amount=1)
        clock.move_to(utc(*day, 1, 30))
        world.credit(amount=1)
    for (hour, minute, fold), balance in wall_times.items():
        at = datetime(*day, hour, minute, tzinfo=VIENNA, fold=fold)
        assert world.ledger.balance_as_of(ANA, "points", at=at) == balance, (at, fold)


def test_a_balance_as_of_a_version_is_what_the_wallet_had_then(afternoon: World) -> None:
    """Also of a bucket that this version did not touch."""
    balances = {ANA: [0, 100, 70, 70], HELD: [0, 0, 30, 0], LUNA: [0, 30]}
    for account, expected in balances.items():
        for version, balance in enumerate(expected):
            assert afternoon.ledger.balance_as_of(account, "points", version=version) == balance, (account, version)
        for beyond in (len(expected), len(expected) + 1, MAX_POINTS, MAX_POINTS + 1, 2**63, 2**200):
            refused("version", afternoon.ledger.balance_as_of, account, "points", version=beyond)


def test_an_owner_or_currency_without_entries_had_nothing_at_any_time(afternoon: World) -> None:
    strangers = [(available("ben"), "points"), (escrow("ben"), "points"), (earned("sol"), "points")]
    for account, currency in [*strangers, (ANA, "gems"), (HELD, "gems"), (LUNA, "gems"), (available("luna"), "points")]:
        assert afternoon.ledger.balance_as_of(account, currency, at=NOON + 48 * HOUR) == 0
        assert afternoon.ledger.balance_as_of(account, currency, version=0) == 0
        refused("version", afternoon.ledger.balance_as_of, account, currency, version=1)


def test_currencies_have_histories_of_their_own(world: World) -> None:
    with freeze_time(NOON) as clock:
        world.credit(amount=1)
        clock.move_to(NOON + HOUR)
        world.credit(amount=20, currency="gems")
        world.credit(amount=30, currency="gems")
    expected = {("points", 0): 1, ("points", 1): 1, ("gems", 0): 0, ("gems", 1): 50}
    for (currency, hours), balance in expected.items():
        assert world.ledger.balance_as_of(ANA, currency, at=NOON + hours * HOUR) == balance
    assert [world.ledger.balance_as_of(ANA, "gems", version=version) for version in (0, 1, 2)] == [0, 20, 50]
    refused("version", world.ledger.balance_as_of, ANA, "points", version=2)


def test_entries_of_one_instant_are_told_apart_by_version_and_a_clock_that_goes_back_changes_no_past(
    world: World,
) -> None:
    with freeze_time(NOON) as clock:
        for amount in (1, 10, 100):
            world.credit(amount=amount)
        clock.move_to(NOON - 3 * HOUR)
        world.credit(amount=1000)
    as_of = world.ledger.balance_as_of
    assert [as_of(ANA, "points", at=NOON + delta) for delta in (-2 * HOUR, -MICROSECOND, 0 * HOUR)] == [0, 0, 1111]
    assert [as_of(ANA, "points", version=version) for version in range(5)] == [0, 1, 11, 111, 1111]


def test_a_balance_in_the_future_is_refused_and_one_of_now_is_given(afternoon: World) -> None:
    now = NOON + 5 * HOUR
    with freeze_time(now):
        for zone in OFFSETS:
            assert afternoon.ledger.balance_as_of(ANA, "points", at=now.astimezone(zone)) == 70
            for ahead in (MICROSECOND, HOUR, timedelta(days=36500)):
                future = (now + ahead).astimezone(zone)
                refused("at", afternoon.ledger.balance_as_of, ANA, "points", at=future)


NAIVE = NOON.replace(tzinfo=None)
NO_TIMES: list[Any] = [NAIVE, NOON.date(), "2025-03-01T12:00:00Z", NOON.timestamp(), 0, True, ""]
NO_VERSIONS: list[Any] = [-1, True, False, 1.0, "1", b"1", [], NOON]
NO_ACCOUNTS: list[Any] = [None, 5, "ana", (), ("user:ana",), [*ANA]]
NO_BALANCE: list[tuple[str, dict[str, Any]]] = [
    ("at", {}),
    ("at", {"at": NOON, "version": 1}),
    ("at", {"at": NOON, "version": 0}),
    *(("at", {"at": wrong}) for wrong in NO_TIMES),
    ("at", {"at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}),
    *(("version", {"version": wrong}) for wrong in NO_VERSIONS),
    *(("currency", {"currency": wrong, "version": 0}) for wrong in ("", "Points", None, 5, "points\n")),
    ("account", {"account": ISSUER, "version": 0}),
    ("account", {"account": ISSUER, "at": NOON}),
    *(("account", {"account": wrong, "version": 0}) for wrong in NO_ACCOUNTS),
    *(("account_id", {"account": (wrong, "available"), "version": 0}) for wrong in ("ana", "user:", 5, "fan:ana")),
    *(("bucket", {"account": ("user:ana", wrong), "version": 0}) for wrong in ("earned", "issued", "", "x", 5)),
    ("bucket", {"account": ("model:luna", Bucket.AVAILABLE), "version": 0}),
]


def test_a_balance_is_refused_to_a_question_that_has_no_one_answer(afternoon: World) -> None:
    for field, changes in NO_BALANCE:
        options: dict[str, Any] = {"account": ANA, "currency": "points"} | changes
        refused(field, afternoon.ledger.balance_as_of, **options)


def test_an_account_without_a_bucket_names_no_balance(afternoon: World) -> None:
    wrong: Any
    for wrong in ("user:ana", ("user:ana", None)):
        with pytest.raises(InvalidRequestError):
            afternoon.ledger.balance_as_of(wrong, "points", version=1)


def whole(ledger: LedgerService, account_id: str, limit: int = 1000, **options: Any) -> list[StatementLine]:
    """All pages of a statement put together."""
    found: list[StatementLine] = []
    after = None
    while True:
        page = ledger.entries(account_id, "points", limit=limit, after=after, **options)
        found += page.items
        if (after := page.next) is None:
            return found


@pytest.fixture
def busy(world: World) -> World:
    """An hour between any two operations; neighbours share request ids, reasons and queue items crosswise."""
    with freeze_time(NOON) as clock:
        for number in range(4):
            names = {"queue_item_id": f"queue-{number % 2}", "request_id": f"request-{number // 2}"}
            world.credit(amount=50, request_id=names["request_id"], reason=("top_up", "bonus")[number % 2])
            clock.tick(HOUR)
            held = world.hold(amount=30, **names, reason=("performance_request", "bonus")[number // 2])
            clock.tick(HOUR)
            if number % 2:
                world.refund(held.escrow_id, 30, **names)
            else:
                world.partial_settle(held.escrow_id, 10, 20, **names, reason="bonus")
            clock.tick(HOUR)
    return world


FILTERS = ("operation", "reason", "escrow_id", "queue_item_id", "request_id")


def test_every_combination_of_filters_gives_exactly_what_it_says(busy: World) -> None:
    lines = whole(busy.ledger, "user:ana")
    assert len(lines) == 20
    (model_line, *_) = [line for line in lines if line.operation == "hold" and line.reason == "performance_request"]
    spans: list[dict[str, Any]] = [
        {},
        {"since": model_line.posted_at},
        {"until": model_line.posted_at + MICROSECOND},
        {"since": model_line.posted_at, "until": model_line.posted_at + 3 * HOUR},
    ]
    sizes, turns = set(), itertools.cycle([False, False, True])
    for chosen in itertools.product([False, True], repeat=len(FILTERS)):
        equal: dict[str, Any] = {
            name: getattr(model_line, name) for name, taken in zip(FILTERS, chosen, strict=True) if taken
        }
        for (span, bucket), newest in zip(itertools.product(spans, (None, "escrow")), turns, strict=False):
            expected = [line for line in lines if fits(line, equal, bucket, **span)]
            expected = expected[::-1] if newest else expected
            found = whole(busy.ledger, "user:ana", bucket=bucket, newest_first=newest, **equal, **span)
            assert found == expected, (equal, span, bucket, newest)
            sizes.add(len(found))
    assert min(sizes) >= 1, "each combination has something to find"
    assert len(sizes) > 5, "the combinations differ"


def fits(
    line: StatementLine,
    equal: dict[str, str],
    bucket: str | None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> bool:
    same = all(getattr(line, name) == value for name, value in equal.items())
    in_time = (since is None or since <= line.posted_at) and (until is None or line.posted_at < until)
    return same and in_time and bucket in (None, line.bucket)


def test_each_filter_alone_finds_its_own_and_a_stranger_nothing(busy: World) -> None:
    lines = whole(busy.ledger, "user:ana")
    for name in FILTERS:
        values: set[Any] = {getattr(line, name) for line in lines} - {None}
        assert len(values) > 1, "else the filter would have nothing to leave out"
        for value in values:
            expected = [line for line in lines if getattr(line, name) == value]
            chosen: dict[str, Any] = {name: value}
            assert whole(busy.ledger, "user:ana", **chosen) == expected, (name, value)
            assert whole(busy.ledger, "user:ben", **chosen) == []
        for stranger in ("stranger", f"{min(values)}x", "a"):
            chosen = {name: stranger}
            assert whole(busy.ledger, "user:ana", **chosen) == []
    assert [line.amount for line in whole(busy.ledger, "platform:issuer", reason="bonus")] == [-50, -50]
    assert [line.amount for line in whole(busy.ledger, "model:luna", reason="bonus", request_id="request-1")] == [20]


def test_filters_that_contradict_each_other_find_nothing(busy: World) -> None:
    contradictions: list[dict[str, Any]] = [
        {"operation": "credit", "bucket": "escrow"},
        {"operation": "hold", "reason": "top_up"},
        {"since": NOON + 2 * HOUR, "until": NOON + HOUR},
        {"since": NOON, "until": NOON},
        {"operation": "credit", "queue_item_id": "queue-0"},
    ]
    for options in contradictions:
        assert whole(busy.ledger, "user:ana", **options) == []


def test_since_is_inclusive_and_until_exclusive_through_any_offset(busy: World) -> None:
    times = [line.posted_at for line in whole(busy.ledger, "user:ana", bucket="available")]
    edge = times[3]
    for zone in OFFSETS:
        for shift, inside in ((-MICROSECOND, 3), (0 * HOUR, 3), (MICROSECOND, 4)):
            at = (edge + shift).astimezone(zone)
            found = [line.posted_at for line in whole(busy.ledger, "user:ana", bucket="available", since=at)]
            assert found == times[inside:], at
            found = [line.posted_at for line in whole(busy.ledger, "user:ana", bucket="available", until=at)]
            assert found == times[: 4 if shift > 0 * HOUR else 3], at
    assert whole(busy.ledger, "user:ana", since=utc(1, 1, 1), until=datetime.max.replace(tzinfo=UTC)) == whole(
        busy.ledger, "user:ana"
    )


def test_a_filter_refuses_what_it_cannot_mean(busy: World) -> None:
    codes = ["", "Hold", "hold ", 5, True, [], b"hold", "x" * 65, "hold\n"]
    identifiers = ["", "x" * 129, 5, True, [], b"x", "a\x00", "a\nb", "\ud800"]
    wrong: dict[str, list[Any]] = {"operation": codes, "reason": codes, "since": NO_TIMES, "until": NO_TIMES}
    wrong |= dict.fromkeys(("escrow_id", "queue_item_id", "request_id"), identifiers)
    for field, values in wrong.items():
        for value in values:
            options: dict[str, Any] = {field: value}
            refused(field, busy.ledger.entries, "user:ana", "points", **options)
    refused("since", busy.ledger.entries, "user:ana", "points", since=datetime(1, 1, 1, tzinfo=timezone(HOUR)))


@pytest.mark.parametrize("newest", [False, True], ids=["oldest first", "newest first"])
def test_filtered_pages_stay_right_while_entries_arrive(world: World, newest: bool) -> None:
    """They arrive at the one time that the pages stop in the middle of, though their clock lags."""
    with freeze_time(NOON):
        for number in range(5):
            world.credit(amount=10 + number, reason="bonus", request_id="mine")
            world.credit(amount=99, reason="top_up", request_id="mine")
    options: dict[str, Any] = {"reason": "bonus", "request_id": "mine", "newest_first": newest, "limit": 2}
    amounts, after, arriving = [], None, iter(range(20, 23))
    while True:
        page = world.ledger.entries("user:ana", "points", after=after, until=NOON + HOUR, **options)
        amounts += [line.amount for line in page.items]
        if (after := page.next) is None:
            break
        with freeze_time(NOON - HOUR):
            for amount in itertools.islice(arriving, 1):
                world.credit(amount=amount, reason="bonus", request_id="mine")
                world.credit(amount=98, reason="bonus", request_id="others")
    assert amounts == ([14, 13, 12, 11, 10] if newest else [10, 11, 12, 13, 14, 20, 21, 22])


def test_the_life_of_a_hold_begins_with_it_and_ends_with_what_ended_it(busy: World) -> None:
    holds = [line for line in whole(busy.ledger, "user:ana", bucket="escrow") if line.operation == "hold"]
    for number, line in enumerate(holds):
        assert line.escrow_id is not None
        hold, end = busy.ledger.transactions_of_escrow(line.escrow_id)
        assert (hold.operation, end.operation) == ("hold", "refund" if number % 2 else "partial_settle")
        assert hold == busy.ledger.transaction(line.transaction_id)
        assert sum(entry.amount for entry in hold.entries + end.entries if entry.account == HELD) == 0
    waiting = busy.hold()
    assert [t.transaction_id for t in busy.ledger.transactions_of_escrow(waiting.escrow_id)] == [waiting.transaction_id]
    for unknown in ("no uuid", holds[0].transaction_id, waiting.escrow_id.upper()):
        assert busy.ledger.transactions_of_escrow(unknown) == []
    wrong: Any
    for wrong in ("", None, 5, "x" * 129, "a\n"):
        refused("escrow_id", busy.ledger.transactions_of_escrow, wrong)


def test_a_hold_comes_first_even_if_what_ended_it_has_the_lower_id(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(f"0195{number:04x}-0000-7000-8000-000000000000" for number in range(9, 0, -1))
    world.credit()
    monkeypatch.setattr("points_platform.wallets.executor.new_id", lambda: next(ids))
    held = world.hold()
    settled = world.settle(held.escrow_id)
    assert settled.transaction_id < held.transaction_id
    life = [transaction.operation for transaction in world.ledger.transactions_of_escrow(held.escrow_id)]
    assert life == ["hold", "settle"]


def earn(world: World, times: Iterable[tuple[datetime, int]]) -> None:
    """Let luna earn these amounts at these times."""
    with freeze_time(NOON) as clock:
        for at, amount in sorted(times):
            clock.move_to(at)
            world.credit(amount=amount)
            world.settle(world.hold(amount=amount).escrow_id, amount)


# The edges of each day, by hand: 23 hours, 25 hours, and a day around which nothing changes.
DAYS = {
    "Europe/Vienna": [
        (utc(2025, 3, 29, 23), utc(2025, 3, 30, 22)),
        (utc(2025, 7, 9, 22), utc(2025, 7, 10, 22)),
        (utc(2025, 10, 25, 22), utc(2025, 10, 26, 23)),
    ],
    "America/New_York": [
        (utc(2025, 3, 9, 5), utc(2025, 3, 10, 4)),
        (utc(2025, 7, 10, 4), utc(2025, 7, 11, 4)),
        (utc(2025, 11, 2, 4), utc(2025, 11, 3, 5)),
    ],
    # Here the clocks go forward at midnight: the day begins at 01:00.
    "America/Sao_Paulo": [(utc(2018, 11, 4, 3), utc(2018, 11, 5, 2))],
    # Here midnight comes twice: the day begins with the first.
    "America/Havana": [(utc(2024, 11, 3, 4), utc(2024, 11, 4, 5))],
}


def test_earnings_per_day_hold_what_came_from_its_first_to_before_its_last_moment(world: World) -> None:
    """Also where a day has 23 or 25 hours, and where the clocks change at midnight."""
    edges = [edge for days in DAYS.values() for day in days for edge in day]
    moments = {edge + shift for edge in edges for shift in (-MICROSECOND, 0 * HOUR)}
    amounts = {at: 3**number for number, at in enumerate(sorted(moments))}
    earn(world, amounts.items())
    for zone, days in DAYS.items():
        for start, end in days:
            expected = sum(amount for at, amount in amounts.items() if start <= at < end)
            assert expected > 0
            spans = [(start, end), (start, start + MICROSECOND), (end - MICROSECOND, end)]
            for since, until in spans:
                options: dict[str, Any] = {"timezone": zone, "since": since.astimezone(NEW_YORK), "until": until}
                (found,) = world.ledger.earnings("luna", "points", period="day", **options)
                assert (found.start, found.end, found.earned) == (start, end, expected), (zone, since)
            around = world.ledger.earnings(
                "luna", "points", period="day", timezone=zone, since=start - MICROSECOND, until=end + MICROSECOND
            )
            assert [period.end for period in around[:2]] == [start, end]
            assert [period.start for period in around[1:]] == [start, end]


CALENDARS: list[tuple[str, str, datetime, datetime, list[datetime]]] = [
    (
        "week",
        "Europe/Vienna",
        utc(2025, 3, 26),
        utc(2025, 4, 8),
        [utc(2025, 3, 23, 23), utc(2025, 3, 30, 22), utc(2025, 4, 6, 22), utc(2025, 4, 13, 22)],
    ),
    (
        "week",
        "America/New_York",
        utc(2025, 11, 3, 4, 59),
        utc(2025, 11, 10, 5),
        [utc(2025, 10, 27, 4), utc(2025, 11, 3, 5), utc(2025, 11, 10, 5)],
    ),
    (
        "month",
        "Europe/Vienna",
        utc(2025, 1, 31, 23),
        utc(2025, 4, 1),
        [utc(2025, 1, 31, 23), utc(2025, 2, 28, 23), utc(2025, 3, 31, 22), utc(2025, 4, 30, 22)],
    ),
    (
        "month",
        "America/New_York",
        utc(2025, 11, 1, 3),
        utc(2026, 1, 1, 5),
        [utc(2025, 10, 1, 4), utc(2025, 11, 1, 4), utc(2025, 12, 1, 5), utc(2026, 1, 1, 5)],
    ),
    (
        "day",
        "Europe/Vienna",
        utc(2025, 3, 29),
        utc(2025, 4, 1),
        [utc(2025, 3, 28, 23), utc(2025, 3, 29, 23), utc(2025, 3, 30, 22), utc(2025, 3, 31, 22), utc(2025, 4, 1, 22)],
    ),
    # February of a leap year, and a day that an island skipped: it has no hours and no earnings.
    ("month", "UTC", utc(2024, 2, 29), utc(2024, 3, 1), [utc(2024, 2, 1), utc(2024, 3, 1)]),
    (
        "day",
        "Pacific/Apia",
        utc(2011, 12, 29, 12),
        utc(2011, 12, 30, 11),
        [utc(2011, 12, 29, 10), utc(2011, 12, 30, 10), utc(2011, 12, 30, 10), utc(2011, 12, 31, 10)],
    ),
]


def test_earnings_per_period_take_one_query_and_know_periods_without_any(world: World) -> None:
    points = {edge for *_, edges in CALENDARS for edge in edges[::2] if edge > utc(2025, 1, 1)}
    amounts = {at: 2**number for number, at in enumerate(sorted(points))}
    earn(world, amounts.items())
    empty = 0
    for period, zone, since, until, edges in CALENDARS:
        options: dict[str, Any] = {"period": period, "timezone": zone, "since": since, "until": until}
        with statements(world.database.engine) as sent:
            found = world.ledger.earnings("luna", "points", **options)
        assert len(sent) == 1
        assert [(each.start, each.end) for each in found] == list(itertools.pairwise(edges)), (period, zone)
        for each in found:
            assert each.earned == sum(amount for at, amount in amounts.items() if each.start <= at < each.end)
            empty += each.earned == 0
        for model_id, currency in (("sol", "points"), ("luna", "gems"), ("ana", "points")):
            others = world.ledger.earnings(model_id, currency, **options)
            assert [(each.start, each.end, each.earned) for each in others] == [(e.start, e.end, 0) for e in found]
    assert empty > 3


def test_earnings_refuse_what_is_no_period(world: World) -> None:
    since, until = utc(2025, 1, 1), utc(2025, 1, 2)
    zones = [
        "",
        "Vienna",
        "europe/nowhere",
        "Europe",
        "../Europe/Vienna",
        "/etc/localtime",
        "UTC\0",
        "\ud800",
        "x" * 999,
    ]
    wrong: list[tuple[str, list[Any]]] = [
        ("period", ["", "year", "Day", "days", None, 5, [], True, b"day"]),
        ("timezone", [*zones, None, 5, [], b"UTC", True, 1.5]),
        ("since", [None, since.replace(tzinfo=None), "2025-01-01", since.date(), 0]),
        ("until", [None, until.replace(tzinfo=None), "2025-01-02", until.date(), 0]),
        ("until", [since, since - MICROSECOND, since.astimezone(VIENNA)]),
        ("model_id", ["", None, 5, "x" * 129, "a\n"]),
        ("currency", ["", None, "Points", 5]),
    ]
    for field, values in wrong:
        for value in values:
            given: dict[str, Any] = {"period": "day", "timezone": "UTC", "since": since, "until": until}
            given |= {"model_id": "luna", "currency": "points", field: value}
            refused(field, world.ledger.earnings, **given)


def test_earnings_have_at_most_a_thousand_periods(world: World) -> None:
    since = utc(2001, 1, 1)
    last = since + timedelta(days=1000)
    options: dict[str, Any] = {"period": "day", "timezone": "UTC", "since": since}
    assert len(world.ledger.earnings("luna", "points", until=last, **options)) == 1000
    refused("until", world.ledger.earnings, "luna", "points", until=last + MICROSECOND, **options)
    refused("until", world.ledger.earnings, "luna", "points", until=utc(9999, 12, 31), **options)


@pytest.mark.parametrize("zone", ["Europe/Vienna", "America/New_York", "UTC"])
def test_periods_at_the_ends_of_the_calendar_are_given_or_refused_by_name(zone: str) -> None:
    """A dashboard without a choice of its own asks from the first to the last time that there is."""
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    spans = [(first, first + HOUR), (last - HOUR, last), (first, last)]
    for period, (since, until) in itertools.product(("day", "week", "month"), spans):
        with suppress(InvalidRequestError):
            edges = period_edges(period, zone, since, until)
            assert edges[0] <= since < until <= edges[-1]


def test_an_account_may_be_given_as_a_plain_pair(afternoon: World) -> None:
    pair: Any = ("user:ana", "escrow")
    assert afternoon.ledger.balance_as_of(pair, "points", version=2) == 30
    assert afternoon.ledger.balance_as_of(Account("user:ana", Bucket.ESCROW), "points", version=2) == 30


REFUSALS: dict[str, Callable[[LedgerService], object]] = {
    "account must be an account id with a bucket, not 'user:ana'": (
        lambda ledger: ledger.balance_as_of("user:ana", "points", version=1)  # type: ignore[arg-type]
    ),
    "account must be an account of a user or a model, not Account(": (
        lambda ledger: ledger.balance_as_of(ISSUER, "points", version=1)
    ),
    "currency must be a code like [a-z][a-z0-9_]{0,31}, not 'P'": lambda ledger: ledger.balance_as_of(
        ANA, "P", at=NOON
    ),
    "at must be given, or else version, and not both, not None": lambda ledger: ledger.balance_as_of(ANA, "points"),
    "at must be a time that is not in the future, not datetime.datetime(9999,": (
        lambda ledger: ledger.balance_as_of(ANA, "points", at=utc(9999, 1, 1))
    ),
    "version must be a version that the wallet has reached, not 9": (
        lambda ledger: ledger.balance_as_of(ANA, "points", version=9)
    ),
    "bucket must be a bucket of a user, not 'earned'": (
        lambda ledger: ledger.entries("user:ana", "points", bucket="earned")
    ),
    "account_id must be one of user:…, model:…, platform:issuer, platform:revenue, not 'ana'": lambda ledger: (
        ledger.entries("ana", "points")
    ),
    "period must be one of day, week, month, not 'year'": (
        lambda ledger: ledger.earnings(
            "luna", "points", period="year", timezone="UTC", since=NOON, until=NOON + MICROSECOND
        )
    ),
    "timezone must be the name of a time zone, like Europe/Vienna, not 'Wien'": (
        lambda ledger: ledger.earnings("luna", "points", period="day", timezone="Wien", since=NOON, until=NOON + HOUR)
    ),
    "until must be a time after since, not datetime.datetime(2025, 3, 1, 12,": (
        lambda ledger: ledger.earnings("luna", "points", period="day", timezone="UTC", since=NOON, until=NOON)
    ),
    "until must be at most 1000 periods after since, not datetime.datetime(2028,": (
        lambda ledger: ledger.earnings(
            "luna", "points", period="day", timezone="UTC", since=NOON, until=utc(2028, 1, 1)
        )
    ),
    "until must be periods between the years 1 and 9999, not datetime.datetime(9999,": (
        lambda ledger: ledger.earnings(
            "luna", "points", period="month", timezone="UTC", since=utc(9999, 12, 1), until=utc(9999, 12, 31)
        )
    ),
}


def test_a_refusal_says_what_was_given_and_what_was_expected(afternoon: World) -> None:
    for message, call in REFUSALS.items():
        with pytest.raises(InvalidRequestError) as refusal:
            call(afternoon.ledger)
        assert str(refusal.value).startswith(message)
