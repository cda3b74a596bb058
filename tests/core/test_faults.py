"""What the database does to an operation, and what the caller learns: retried, contention, or unavailable."""

import random
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

from points_platform.core import (
    BalanceLimitError,
    Database,
    InsufficientBalanceError,
    OptimisticLockError,
    StorageUnavailableError,
    WalletError,
)
from points_platform.core.database import Retry
from points_platform.ledger import LedgerService
from points_platform.wallets import EscrowHoldResponse, WalletConfig, WalletService
from support.connections import administrator, end_connection
from support.recount import recount
from support.statements import before_each, once_before
from support.world import World

SLEEP = "points_platform.core.database.time.sleep"
RETRIES = WalletConfig().max_retry_attempts


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a retry would have made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(SLEEP, made.append)
    return made


WAYS: dict[str, dict[str, Any]] = {
    "single": {},
    "stepwise": {"single_statement": False},
    "single, serializable": {"isolation_level": "SERIALIZABLE"},
    "stepwise, serializable": {"single_statement": False, "isolation_level": "SERIALIZABLE"},
}


@pytest.fixture(params=WAYS)
def server(request: pytest.FixtureRequest, postgresql_url: str) -> Iterator[World]:
    """A world on PostgreSQL, whose user has 100 points; operations in one statement, and statement by statement."""
    with Database(postgresql_url, **WAYS[request.param]) as database:
        world = World(database)
        world.credit()
        world.events.clear()
        yield world
        recount(database)


@pytest.fixture
def stepwise_server(postgresql_url: str) -> Iterator[World]:
    """The same, statement by statement only: for what happens between two of them."""
    with Database(postgresql_url, single_statement=False) as database:
        world = World(database)
        world.credit()
        world.events.clear()
        yield world
        recount(database)


def service_on(world: World, ledger: LedgerService) -> WalletService:
    """A service that announces to the same world, on another ledger."""
    return WalletService(ledger, authorizer=world.authorizer, events=world.bus, config=world.config)


def driver_connection(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def assert_held_once(world: World, held: EscrowHoldResponse) -> None:
    assert (held.replayed, held.new_available_balance, held.escrow_balance) == (False, 70, 30)
    assert [event.transaction_id for event in world.events] == [held.transaction_id]
    assert world.wallets.get_user_balance("ana").version == 2
    assert world.wallets.list_escrows(user_id="ana").items[0].escrow_id == held.escrow_id


# ── the server refuses, by SQLSTATE ──


def fail_with(world: World, sqlstate: str, times: int) -> None:
    """Let the server raise that error for the next ledger transactions; a sequence counts past rollbacks."""
    with administrator(world.database.engine.url) as connection:
        connection.execute(
            f"""CREATE SEQUENCE IF NOT EXISTS failures;
            ALTER SEQUENCE failures RESTART;
            CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('failures') <= {times} THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{sqlstate}'; END IF;
            RETURN NEW; END $$;
            CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON ledger_transactions FOR EACH ROW EXECUTE FUNCTION fail()"""
        )


def failures_so_far(world: World) -> int:
    with administrator(world.database.engine.url) as connection:
        row = connection.execute("SELECT last_value FROM failures").fetchone()
    return int(row[0]) if row else 0


CONTENTION = ["40001", "40P01", "55P03", "23505"]
LOST = ["08006", "08003", "57P01", "57P02", "57P03", "53300"]
MENDED_BY_ITSELF = ["57014", "53100", "53200", "XX000"]
REFUSALS = [*MENDED_BY_ITSELF, "25006", "25P02", "22P05", "23514", "P0001"]
OF_A_TABLE = ["42501", "42P01"]


def test_contention_and_lost_connections_are_retried_until_the_last_attempt(server: World) -> None:
    for sqlstate in CONTENTION + LOST:
        fail_with(server, sqlstate, times=RETRIES)
        done = server.credit("ben", 1)
        assert (done.replayed, failures_so_far(server)) == (False, RETRIES + 1), sqlstate
    assert server.wallets.get_user_balance("ben").available == len(CONTENTION + LOST) == len(server.events)


def test_after_the_last_attempt_contention_is_named_so_and_everything_else_is_storage(server: World) -> None:
    before = server.snapshot()
    expected: list[tuple[str, type[WalletError], dict[str, Any], int]] = [
        *((code, OptimisticLockError, {"attempts": RETRIES + 1}, RETRIES + 1) for code in CONTENTION),
        *((code, StorageUnavailableError, {"cause": code}, RETRIES + 1) for code in LOST),
        *((code, StorageUnavailableError, {"cause": code}, 1) for code in REFUSALS),
        *((code, StorageUnavailableError, {"server": "on purpose", "cause": code}, 1) for code in OF_A_TABLE),
    ]
    for sqlstate, kind, details, attempts in expected:
        fail_with(server, sqlstate, times=1000)
        with pytest.raises(WalletError) as failure:
            server.hold()
        assert (type(failure.value), failure.value.details) == (kind, details), sqlstate
        assert failure.value.retryable == (sqlstate in {*CONTENTION, *LOST, *MENDED_BY_ITSELF})
        assert failures_so_far(server) == attempts, f"{sqlstate}: tried another number of times"
    assert (server.snapshot(), server.events) == (before, [])


def test_a_key_whose_attempts_all_failed_is_not_used_up(server: World) -> None:
    request = server.hold_request()
    fail_with(server, "40001", times=RETRIES + 1)
    with pytest.raises(OptimisticLockError):
        server.send(request)
    assert_held_once(server, server.send(request))


# ── real contention ──


def test_a_row_that_stays_locked_is_contention_and_never_insufficient_balance(postgresql_url: str) -> None:
    with Database(postgresql_url, lock_timeout_ms=1) as database:
        world = World(database)
        world.credit()
        before = world.snapshot()
        with database.engine.begin() as other:
            other.execute(text("UPDATE user_wallets SET available = available"))
            for amount in (30, 100):
                with pytest.raises(OptimisticLockError) as failure:
                    world.hold(amount=amount)
                assert failure.value.details == {"attempts": RETRIES + 1}
            other.rollback()
        assert world.snapshot() == before
        assert world.hold(amount=100).new_available_balance == 0
        recount(database)


def test_a_lock_that_is_given_back_between_two_attempts_is_waited_out(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(postgresql_url, lock_timeout_ms=1) as database, database.engine.connect() as other:
        world = World(database)
        world.credit()
        world.events.clear()
        monkeypatch.setattr(SLEEP, lambda pause: other.rollback())
        other.execute(text("SELECT 1 FROM user_wallets FOR UPDATE"))
        assert_held_once(world, world.hold())
        recount(database)


def test_the_victim_of_a_deadlock_is_tried_again(stepwise_server: World) -> None:
    held = stepwise_server.hold()
    stepwise_server.settle(stepwise_server.hold(amount=1).escrow_id, amount=1)
    impatient = stepwise_server.database.engine.url.update_query_dict({"options": "-c deadlock_timeout=1ms"})
    granted = threading.Event()
    with (
        Database(impatient, single_statement=False) as database,
        administrator(stepwise_server.database.engine.url) as other,
        administrator(stepwise_server.database.engine.url) as observer,
    ):
        service = service_on(stepwise_server, LedgerService(database))
        other.execute("BEGIN")
        other.execute("SET LOCAL deadlock_timeout = '60s'")
        other.execute("SELECT 1 FROM model_wallets FOR UPDATE")

        def want_the_user() -> None:
            other.execute("SELECT 1 FROM user_wallets FOR UPDATE")
            granted.set()
            other.execute("COMMIT")

        thread = threading.Thread(target=want_the_user)

        def cross(connection: Connection) -> None:
            thread.start()
            while not observer.execute(
                "SELECT 1 WHERE pg_blocking_pids(%s) <> '{}'", [other.info.backend_pid]
            ).fetchone():
                pass

        with before_each(database.engine, "UPDATE model_wallets", cross):
            settled = stepwise_server.send(stepwise_server.settle_request(held.escrow_id), service)
        thread.join()
    assert (granted.is_set(), settled.replayed, settled.model_earned_balance) == (True, False, 31)
    assert stepwise_server.events[-1].transaction_id == settled.transaction_id


def test_a_snapshot_that_went_stale_is_tried_again(stepwise_server: World) -> None:
    """At a level of the module's own, or of the host's engine."""
    url = stepwise_server.database.engine.url
    databases = (
        Database(url, single_statement=False, isolation_level="REPEATABLE READ"),
        Database(create_engine(url, isolation_level="SERIALIZABLE"), single_statement=False),
    )
    for database in databases:
        service = service_on(stepwise_server, LedgerService(database))
        with once_before(database.engine, "INSERT INTO escrow_items", lambda: stepwise_server.hold(amount=5)):
            held = stepwise_server.send(stepwise_server.hold_request(amount=5), service)
        assert not held.replayed
        database.engine.dispose()
    balance = stepwise_server.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.version) == (80, 20, 5)


def test_somebody_faster_between_read_and_write_makes_the_operation_start_over(stepwise_server: World) -> None:
    outcomes: list[Any] = []
    engine = stepwise_server.database.engine
    with once_before(engine, "INSERT INTO escrow_items", lambda: outcomes.append(stepwise_server.hold())):
        outcomes.append(stepwise_server.hold(amount=70))
    with once_before(engine, "UPDATE escrow_items", lambda: stepwise_server.credit(amount=1)):
        outcomes.append(stepwise_server.refund(outcomes[0].escrow_id))
    assert [outcome.replayed for outcome in outcomes] == [False] * 3
    assert [outcome.transaction_id for outcome in outcomes] == [
        event.transaction_id for event in stepwise_server.events if event.event_type != "wallet.credited"
    ]
    assert stepwise_server.wallets.get_user_balance("ana").available == 31
    taken = once_before(engine, "INSERT INTO escrow_items", lambda: stepwise_server.hold(amount=31))
    with taken, pytest.raises(InsufficientBalanceError) as refused:
        stepwise_server.hold(amount=31)
    assert refused.value.details == {"required": 31, "available": 0, "currency": "points"}


def test_a_busy_sqlite_file_is_contention_and_nothing_changes(sqlite_url: str) -> None:
    with Database(sqlite_url) as database:
        event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 1"))
        world = World(database)
        world.credit()
        before = world.snapshot()
        with sqlite3.connect(str(database.engine.url.database), isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(OptimisticLockError) as failure:
                world.hold()
            assert failure.value.details == {"attempts": RETRIES + 1}
            assert world.wallets.get_user_balance("ana").available == 100
            other.execute("ROLLBACK")
        other.close()
        assert world.snapshot() == before
        assert world.hold().new_available_balance == 70
        recount(database)


def test_a_busy_sqlite_file_that_frees_up_between_two_attempts_is_waited_out(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(sqlite_url) as database:
        event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 1"))
        world = World(database)
        world.credit()
        world.events.clear()
        other = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(SLEEP, lambda pause: other.close())
        assert_held_once(world, world.hold())
        recount(database)


# ── lost connections ──


def test_a_connection_that_died_in_the_pool_or_in_the_middle_is_replaced(stepwise_server: World) -> None:
    engine = stepwise_server.database.engine
    with engine.connect() as connection:
        pid = driver_connection(connection).info.backend_pid
    end_connection(stepwise_server.database.engine.url, pid)
    assert_held_once(stepwise_server, stepwise_server.hold())
    middles = ["LEFT OUTER JOIN", "INSERT INTO escrow_items", "UPDATE user_wallets", "INSERT INTO ledger_entries"]
    for number, fragment in enumerate(middles, start=1):
        cut = before_each(
            engine,
            fragment,
            lambda mine: end_connection(stepwise_server.database.engine.url, driver_connection(mine).info.backend_pid),
        )
        with cut:
            assert stepwise_server.hold(amount=1).new_available_balance == 70 - number


def kill_after_commit(world: World) -> Callable[[Connection], None]:
    """The server commits, and the client never hears of it."""

    def act(connection: Connection) -> None:
        mine = driver_connection(connection)
        mine.commit()
        # Without a transaction that is open, psycopg would not speak to the server at COMMIT at all.
        mine.execute("SELECT 1")
        end_connection(world.database.engine.url, mine.info.backend_pid)

    return act


def kill_before_commit(world: World) -> Callable[[Connection], None]:
    return lambda connection: end_connection(world.database.engine.url, driver_connection(connection).info.backend_pid)


@contextmanager
def at_first_commit(engine: Engine, act: Callable[[Connection], None], *, times: int = 1) -> Iterator[list[int]]:
    left = [act] * times
    commits: list[int] = []

    def watch(connection: Connection) -> None:
        commits.append(len(commits))
        if left:
            left.pop()(connection)

    event.listen(engine, "commit", watch)
    try:
        yield commits
    finally:
        event.remove(engine, "commit", watch)


@pytest.mark.parametrize("cut", [kill_after_commit, kill_before_commit])
def test_a_connection_lost_at_the_commit_leads_to_one_effect_one_event_and_the_first_answer(
    stepwise_server: World, cut: Callable[[World], Callable[[Connection], None]]
) -> None:
    held_before = stepwise_server.hold(amount=20)
    requests: list[Any] = [
        stepwise_server.credit_request(amount=7),
        stepwise_server.hold_request(amount=3),
        stepwise_server.settle_request(held_before.escrow_id, amount=20),
    ]
    stepwise_server.events.clear()
    for number, request in enumerate(requests, start=1):
        with at_first_commit(stepwise_server.database.engine, cut(stepwise_server)) as commits:
            answer = stepwise_server.send(request)
        assert len(commits) == 2, "it was not tried again"
        assert answer.replayed is False
        assert [event.transaction_id for event in stepwise_server.events[number - 1 :]] == [answer.transaction_id]
        again = stepwise_server.send(request, stepwise_server.service())
        assert (again, again.replayed) == (answer, True)
    assert len(stepwise_server.events) == len(requests)
    balance = stepwise_server.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.version) == (84, 3, 5)


def test_a_commit_that_is_lost_every_time_is_storage_unavailable_and_the_same_key_finds_the_outcome(
    stepwise_server: World,
) -> None:
    once = replace(stepwise_server.config, max_retry_attempts=0)
    for cut, happened in ((kill_before_commit, False), (kill_after_commit, True)):
        request = stepwise_server.hold_request(amount=1)
        with (
            at_first_commit(stepwise_server.database.engine, cut(stepwise_server)),
            pytest.raises(StorageUnavailableError),
        ):
            stepwise_server.send(request, stepwise_server.service(config=once))
        assert stepwise_server.events == []
        assert stepwise_server.send(request).replayed is happened
        stepwise_server.events.clear()


def test_contention_after_a_lost_commit_is_not_told_as_if_nothing_were_changed(postgresql_url: str) -> None:
    with Database(postgresql_url, lock_timeout_ms=1, single_statement=False) as database:
        world = World(database)
        world.credit()
        request = world.hold_request(amount=1)
        with database.engine.connect() as other:

            def lose_and_lock(connection: Connection) -> None:
                kill_after_commit(world)(connection)
                other.execute(text("SELECT FROM user_wallets FOR UPDATE"))

            with at_first_commit(database.engine, lose_and_lock), pytest.raises(StorageUnavailableError):
                world.send(request)
            other.rollback()
        assert world.send(request).replayed, "the first attempt was committed"
        recount(database)


def test_nobody_listening_is_storage_unavailable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # the port is taken, but nobody listens on it
        url = f"postgresql+psycopg://nobody:s3cret@127.0.0.1:{bound.getsockname()[1]}/none"
        with Database(url) as database:
            world = World(database)
            calls: list[Callable[[], object]] = [
                database.create_schema,
                world.credit,
                world.hold,
                lambda: world.wallets.get_user_balance("ana"),
                lambda: world.ledger.transaction("none"),
            ]
            for call in calls:
                with pytest.raises(StorageUnavailableError) as failure:
                    call()
                assert "s3cret" not in f"{failure.value} {failure.value.details}"


def test_a_server_that_is_gone_after_the_first_use_is_storage_unavailable_after_all_attempts(
    postgresql_url: str, pauses: list[float]
) -> None:
    attempts: list[object] = []
    with Database(postgresql_url) as database, socket.socket() as bound:
        world = World(database)
        world.credit()
        database.engine.dispose()
        bound.bind(("127.0.0.1", 0))

        def elsewhere(dialect: object, record: object, arguments: Any, options: dict[str, Any]) -> None:
            attempts.append(options)
            options.clear()
            options.update(host="127.0.0.1", port=bound.getsockname()[1])

        event.listen(database.engine, "do_connect", elsewhere)
        with pytest.raises(StorageUnavailableError):
            world.hold()
        assert (len(attempts), len(pauses)) == (RETRIES + 1, RETRIES - 1)
        event.remove(database.engine, "do_connect", elsewhere)
        assert world.hold().replayed is False


# ── a database that refuses ──


def test_a_cancelled_or_timed_out_statement_is_storage_unavailable(server: World) -> None:
    before = server.snapshot()
    url = server.database.engine.url.update_query_dict({"options": "-c statement_timeout=20ms"})
    with Database(url) as database, server.database.engine.begin() as other:
        service = service_on(server, LedgerService(database))
        assert service.get_user_balance("ana").available == 100
        other.execute(text("SELECT 1 FROM user_wallets FOR UPDATE"))
        with pytest.raises(StorageUnavailableError) as failure:
            server.send(server.hold_request(), service)
    assert failure.value.details == {"cause": "57014"}
    assert server.snapshot() == before


def test_missing_tables_are_storage_unavailable_for_reads_and_writes(database: Database) -> None:
    world = World(database)
    world.credit()
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE user_wallets"))
    sqlite = {"cause": 1, "server": "no such table: user_wallets"}
    cause = sqlite if database.is_sqlite else {"cause": "42P01", "server": 'relation "user_wallets" does not exist'}
    calls: list[Callable[[], object]] = [world.hold, world.credit, lambda: world.wallets.get_user_balance("ana")]
    for call in calls:
        with pytest.raises(StorageUnavailableError) as failure:
            call()
        assert failure.value.details == cause
        assert not failure.value.retryable
        assert str(failure.value).endswith(
            f"{cause['server']}; call create_schema(), and see to it that the search path finds the module's tables"
        )
    assert len(world.events) == 1


def test_a_role_that_may_only_read_can_read_and_gets_no_driver_error_for_writing(server: World) -> None:
    role = f"reader_{server.database.engine.url.database}"
    with administrator(server.database.engine.url) as admin:
        admin.execute(f"CREATE ROLE {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        denied: dict[str, Any] = {"cause": "42501", "server": "permission denied for table user_wallets"}
        denied["missing"] = ("INSERT on user_wallets", "UPDATE on user_wallets")
        for option, details in ((f"role={role}", denied), ("default_transaction_read_only=on", {"cause": "25006"})):
            url = server.database.engine.url.update_query_dict({"options": f"-c {option}"})
            with Database(url) as database:
                service = service_on(server, LedgerService(database))
                assert service.get_user_balance("ana").available == 100
                with pytest.raises(StorageUnavailableError) as failure:
                    server.send(server.hold_request(), service)
                assert (failure.value.details, failure.value.retryable) == (details, False)
                assert ("SELECT, INSERT and UPDATE" in str(failure.value)) == (details is denied)
                with pytest.raises(StorageUnavailableError):
                    server.send(server.credit_request(), service)
    finally:
        with administrator(server.database.engine.url) as admin:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert len(server.events) == 0


def test_a_read_only_sqlite_file_can_be_read_and_writing_is_storage_unavailable(sqlite_url: str) -> None:
    path = make_url(sqlite_url).database
    with Database(sqlite_url) as database:
        World(database).credit()
        before = World(database).snapshot()
        with Database(f"sqlite:///file:{path}?mode=ro&uri=true") as read_only:
            world = World(read_only)
            assert world.wallets.get_user_balance("ana").available == 100
            for write in (world.hold, world.credit):
                with pytest.raises(StorageUnavailableError):
                    write()
        assert (World(database).snapshot(), world.events) == (before, [])


def limit_pages(database: Database) -> None:
    """The file may not grow any more: a full disk, as SQLite sees it."""

    def limit(connection: sqlite3.Connection, record: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(database.engine, "connect", limit)


def test_a_full_disk_is_storage_unavailable_and_nothing_has_changed(sqlite_url: str) -> None:
    with Database(sqlite_url) as database:
        world = World(database)
        world.credit()
        before = world.snapshot()
        world.events.clear()
        database.engine.dispose()
        limit_pages(database)
        large = {"note": "x" * 16_000}
        for write in (world.hold_request, world.credit_request):
            with pytest.raises(StorageUnavailableError) as failure:
                world.send(write(metadata=large))
            assert failure.value.details == {"cause": sqlite3.SQLITE_FULL}
        assert (world.snapshot(), world.events) == (before, [])
        database.engine.dispose()
        event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=9999"))
        assert world.send(world.hold_request(metadata=large)).new_available_balance == 70
        recount(database)


@pytest.mark.parametrize("content", [b"", b"no database at all, but some text of a certain length" * 100])
def test_a_file_that_is_no_database_of_ours_is_a_module_error(content: bytes, tmp_path: Any) -> None:
    path = tmp_path / "file.db"
    path.write_bytes(content)
    with Database(f"sqlite:///{path}") as database:
        world = World(database)
        for call in (world.credit, world.hold):
            with pytest.raises(WalletError):
                call()
    assert content == b"" or path.read_bytes() == content


def test_text_that_a_database_dislikes_is_stored_or_refused_by_name(world: World) -> None:
    metadata = {"nul": "\x00", "key\x00": ["\x1f\x7f", "\U0001f3b5", "'; DROP TABLE user_wallets; --"]}
    world.credit(metadata=metadata)
    held = world.hold(metadata=metadata)
    assert world.wallets.get_escrow(held.escrow_id).metadata == metadata
    calls: list[Callable[[str], object]] = [
        world.wallets.get_user_balance,
        world.wallets.get_model_balance,
        world.wallets.get_escrow,
        lambda value: world.wallets.get_escrow(held.escrow_id, value),
        lambda value: world.wallets.list_escrows(user_id=value),
        lambda value: world.wallets.list_escrows(user_id="ana", after=value),
        world.ledger.transaction,
        lambda value: world.ledger.entries(f"user:{value}", "points"),
        lambda value: world.ledger.entries("user:ana", value),
    ]
    for call in calls:
        for value in ("nul\x00", "\ud800"):
            with pytest.raises(WalletError):
                call(value)


def test_an_amount_beyond_the_database_is_a_balance_limit_and_not_a_driver_error(world: World) -> None:
    world.credit(amount=2**53 - 1)
    with pytest.raises(BalanceLimitError):
        world.credit(amount=2**53 - 1)


# ── the back-off ──


def test_the_first_retry_comes_at_once_and_later_ones_have_full_jitter(server: World, pauses: list[float]) -> None:
    random.seed(7)
    config = WalletConfig(max_retry_attempts=5, retry_backoff_ms=100)
    fail_with(server, "40001", times=1000)
    rounds = 20
    for _ in range(rounds):
        with pytest.raises(OptimisticLockError) as failure:
            server.send(server.hold_request(), server.service(config=config))
        assert failure.value.details == {"attempts": 6}
    assert len(pauses) == 4 * rounds
    for number in range(4):
        bound = 0.1 * 2**number
        of_this_retry = pauses[number::4]
        assert all(0 <= pause <= bound for pause in of_this_retry)
        assert min(of_this_retry) < bound / 3 < bound * 2 / 3 < max(of_this_retry), "not full jitter"


def test_the_number_of_retries_is_configurable_down_to_none(server: World, pauses: list[float]) -> None:
    for retries in (0, 1, 2):
        fail_with(server, "40001", times=1000)
        config = WalletConfig(max_retry_attempts=retries)
        with pytest.raises(OptimisticLockError) as failure:
            server.send(server.hold_request(), server.service(config=config))
        assert failure.value.details == {"attempts": retries + 1}
        assert failures_so_far(server) == retries + 1
    assert len(pauses) == 1


def test_no_number_of_retries_is_too_large_to_compute_a_pause(pauses: list[float]) -> None:
    patient = Retry(attempts=5000, backoff=0.0)
    for retry in (0, 1, 2, 2000):
        patient.pause(retry)
    assert pauses == [0.0, 0.0]


# ── interrupted from outside ──


class Interrupted(LedgerService):
    """A ledger at whose write somebody presses Ctrl-C, once."""

    exception: BaseException | None = None

    def record(self, *given: Any) -> None:
        super().record(*given)
        if self.exception is not None:
            exception, self.exception = self.exception, None
            raise exception


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), SystemExit(1), RuntimeError("a bug")])
def test_an_interrupted_attempt_is_rolled_back_and_its_connection_stays_usable(
    stepwise: World, exception: BaseException
) -> None:
    stepwise.credit()
    stepwise.events.clear()
    before = stepwise.snapshot()
    ledger = Interrupted(stepwise.database)
    service = service_on(stepwise, ledger)
    request = stepwise.hold_request()
    ledger.exception = exception
    with pytest.raises(type(exception)):
        stepwise.send(request, service)
    assert (stepwise.snapshot(), stepwise.events) == (before, [])
    pool: Any = stepwise.database.engine.pool
    assert pool.checkedout() == 0
    assert_held_once(stepwise, stepwise.send(request, service))
