"""What is recorded is dated by the database, whatever the process believes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from freezegun import freeze_time
from sqlalchemy import text
from sqlalchemy.orm import Session

from points_platform.core import ClockSkewError, Database, InsufficientBalanceError, InvalidRequestError
from points_platform.core.clock import RENEWED_S, TOLERANCE, ServersClock, SqlitesClock, _own, microseconds
from points_platform.core.connections import TIME
from points_platform.ledger import LedgerService
from points_platform.wallets import WalletConfig
from points_platform.wallets.verify import verify
from support.statements import statements
from support.world import World

WRONG = [timedelta(days=400), timedelta(days=-400), timedelta(hours=-1), timedelta(seconds=30)]
# An estimate is ahead by as long as a statement takes to the server; SQLite's own time has whole milliseconds.
NEARLY = timedelta(seconds=1)


@pytest.fixture(params=["sqlite", "single", "stepwise"])
def platform(request: pytest.FixtureRequest) -> Iterator[World]:
    """A platform on the database's own clock."""
    engine = "sqlite" if request.param == "sqlite" else "postgresql"
    url = request.getfixturevalue(f"{engine}_url")
    with Database(url, single_statement=request.param == "single") as database:
        yield World(database)


def by_the_database(world: World) -> datetime:
    if world.database.is_sqlite:
        return SqlitesClock().now()
    with world.database.engine.connect() as connection:
        moment: datetime = connection.scalar(text("SELECT clock_timestamp()"))
        return moment


def dated(world: World, call: Callable[[], Any]) -> timedelta:
    """Carry it out; how long it took by the database, between whose times before and after it must be dated."""
    before = by_the_database(world)
    at: datetime = call().timestamp
    after = by_the_database(world)
    assert before - NEARLY <= at.astimezone(UTC) <= after + NEARLY
    return after - before


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_process_with_a_wrong_clock_dates_nothing_by_it(platform: World, wrong: timedelta) -> None:
    dated(platform, platform.credit)
    with freeze_time(datetime.now(UTC) + wrong):
        dated(platform, platform.hold)
        with World(platform.database).database.engine.connect():
            dated(World(platform.database), lambda: platform.credit("ben"))
    held = platform.hold()
    dated(platform, lambda: platform.settle(held.escrow_id))
    assert not [*verify(platform.database)]
    year = timedelta(days=365)
    at = by_the_database(platform)
    earned = platform.ledger.earnings("luna", "points", period="day", timezone="UTC", since=at - year, until=at + year)
    assert {each.start.date() for each in earned if each.earned} <= {at.date(), (at - timedelta(minutes=1)).date()}


def test_a_new_process_with_a_wrong_clock_dates_its_first_operation_right(platform: World) -> None:
    url = platform.database.engine.url
    for wrong in WRONG:
        with freeze_time(datetime.now(UTC) + wrong), Database(url) as database:
            world = World(database)
            dated(world, lambda: world.credit(f"user-{wrong}"))  # noqa: B023 - called at once


def test_in_batches_and_sessions_too(platform: World) -> None:
    with freeze_time("2031-01-01"):
        requests = [platform.credit_request("ana"), platform.credit_request("ben")]
        before = by_the_database(platform)
        answers: list[Any] = platform.wallets.credit_many(requests)
        with Session(platform.database.engine) as session, session.begin():
            answers.append(platform.wallets.credit_user(platform.credit_request("cem"), session=session))
        after = by_the_database(platform)
    assert all(before - NEARLY <= each.timestamp.astimezone(UTC) <= after + NEARLY for each in answers)


def test_a_balance_says_when_by_the_database(platform: World) -> None:
    with freeze_time("2031-01-01"):
        before = by_the_database(platform)
        as_of = platform.wallets.get_user_balance("ana").as_of, platform.wallets.get_model_balance("luna").as_of
        after = by_the_database(platform)
    assert all(before - NEARLY <= each.astimezone(UTC) <= after + NEARLY for each in as_of)


def test_a_thread_asks_a_sqlite_that_no_other_is_in() -> None:
    """Else a fork could leave the child with one that waits for a thread which is not there."""
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: _own.sqlite).result() is not _own.sqlite
        assert threads.submit(SqlitesClock().now).result() <= SqlitesClock().now()


# ── the estimate, and its guard ──


@pytest.fixture
def single(postgresql_url: str) -> Iterator[World]:
    with Database(postgresql_url) as database:
        world = World(database, config=WalletConfig(max_retry_attempts=0))
        world.credit()
        yield world


@pytest.mark.parametrize("wrong", [*WRONG, TOLERANCE + timedelta(seconds=2)], ids=str)
def test_without_retries_a_wrong_clock_is_said_and_set_right(single: World, wrong: timedelta) -> None:
    clock: Any = single.database._clock
    clock._began += wrong.total_seconds() * 1e6
    before = single.snapshot()
    with pytest.raises(ClockSkewError) as error:
        single.hold()
    assert (error.value.retryable, error.value.details) == (True, {"tolerance_s": 5.0})
    assert single.snapshot() == before
    dated(single, single.hold)


def test_within_the_tolerance_nothing_is_tried_twice(single: World) -> None:
    clock: Any = single.database._clock
    clock._began += 3e6
    single.hold()


def test_a_refusal_is_told_as_one_although_the_clock_was_wrong(single: World) -> None:
    clock: Any = single.database._clock
    clock._began += 86_400e6
    with pytest.raises(InsufficientBalanceError):
        single.hold(amount=101)


def test_with_retries_nobody_hears_of_it_and_it_is_right_from_then_on(postgresql_url: str) -> None:
    with Database(postgresql_url) as database:
        world = World(database)
        world.credit()
        clock: Any = database._clock
        clock._began += 400 * 86_400e6
        dated(world, world.hold)
        with statements(database.engine) as sent:
            dated_at = world.hold().timestamp
        assert sent == [], "not in one statement"
        assert abs(dated_at - by_the_database(world)) < TOLERANCE


def test_the_least_of_what_is_told_counts_for_a_minute() -> None:
    clock, second = ServersClock(), 1_000_000
    noon = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()) * second
    assert clock.now() is None
    for told, asked_at, began in (
        (noon, 100.0, noon - 100 * second),
        (noon + second, 100.5, noon - 100 * second),  # it was half a second on its way
        (noon, 100.125, noon - 100.125 * second),
        (noon + 62 * second, 100.125 + RENEWED_S + 1, noon + 62 * second - (101.125 + RENEWED_S) * second),
        (noon + 86_400 * second, 170.0, noon + 86_400 * second - 170 * second),  # it was set
    ):
        clock.told(told, asked_at)
        assert clock._began == began
    assert clock.dated(noon) == datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_the_servers_time_is_read_whatever_its_date_style(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, database.engine.connect() as connection:
        connection.execute(text("SET DateStyle = 'German, DMY'"))
        assert isinstance(connection.scalar(TIME), int)
        epoch = microseconds("timestamptz 'epoch'").replace(":", "\\:")
        assert connection.scalar(text(f"SELECT {epoch}")) == 0


# ── a given clock ──


def test_a_given_clock_is_taken_as_it_is(url: str) -> None:
    at = [datetime(2020, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)]
    with Database(url, clock=lambda: at[0]) as database:
        world = World(database)
        assert world.credit().timestamp == at[0] == world.wallets.get_user_balance("ana").as_of
        at[0] = datetime(2099, 1, 1, tzinfo=UTC)
        assert world.hold().timestamp == at[0]
        assert not [*verify(database)]
    with Database(url) as database:
        [found] = verify(database)
        assert found.kind == "from_the_future"


NAIVE, AWARE = datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("clock", ["noon", 7, AWARE, lambda: 7, lambda: NAIVE])
def test_what_is_no_clock_is_refused_by_name(url: str, clock: Any) -> None:
    with pytest.raises(InvalidRequestError) as error:
        Database(url, clock=clock)
    assert error.value.details["field"] == "clock"


def test_entries_from_the_future_are_named(platform: World) -> None:
    platform.credit()
    far = datetime.now(UTC) + timedelta(days=400)
    with Database(platform.database.engine.url, clock=lambda: far) as ahead:
        odd = World(ahead).credit("ben")
    found = [*verify(platform.database, ledger_only=True)]
    assert [(each.kind, each.ids) for each in found] == [("from_the_future", {"transaction_id": odd.transaction_id})]
    LedgerService(platform.database).seal()
    assert not [*verify(platform.database, since=LedgerService(platform.database).head().position)]
