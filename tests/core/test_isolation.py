"""The isolation level of the module's own transactions: the one that was asked for, and what contention is at it."""

import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import StringIO
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from points_platform.core import (
    BalanceLimitError,
    Database,
    EscrowAlreadyProcessedError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidRequestError,
    OptimisticLockError,
    StorageUnavailableError,
    WalletError,
)
from points_platform.core import statement as statement_module
from points_platform.core.values import MAX_POINTS
from points_platform.ledger.files import export_log
from points_platform.wallets import WalletConfig
from points_platform.wallets.rebuild import apply, drifts, restore
from support.connections import administrator, scalar
from support.databases import PostgreSQLDatabases
from support.recount import recount
from support.workers import OPERATIONS, ready
from support.world import World, at_once

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
STRICT = LEVELS[1:]
WAYS = {"single": True, "stepwise": False}
SERIALIZATION_FAILURE = "40001"
PROCESSES = 3
GATE = 7

level = pytest.mark.parametrize("level", LEVELS)
strict_level = pytest.mark.parametrize("level", STRICT)
way = pytest.mark.parametrize("way", WAYS)


def impatient(retries: int = 3) -> WalletConfig:
    return WalletConfig(max_retry_attempts=retries, retry_backoff_ms=1)


@contextmanager
def world_at(target: str | Engine, level: str | None, way: str = "single", retries: int = 3) -> Iterator[World]:
    """A world whose module writes at that level; every test ends with a recount of the invariants."""
    options = {"lock_timeout_ms": 60_000, "single_statement": WAYS[way]}
    with Database(target, isolation_level=level, **options) as database:  # type: ignore[arg-type]
        yield World(database, config=impatient(retries))
        recount(database)


def waits_for(holder: psycopg.Connection[Any], observer: psycopg.Connection[Any]) -> int:
    """The backend that waits for what the holder has, as soon as there is one."""
    deadline = time.monotonic() + 30
    blocked = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    while (pid := scalar(observer, blocked, holder.info.backend_pid)) is None:
        assert time.monotonic() < deadline, "nobody came to wait"
    return int(pid)


class Failures(logging.Handler):
    """The SQLSTATE of each failure that was tried again, or the error's name."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.codes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "attempt" in getattr(record, "points_platform", {}):
            self.codes.append(code_of(sys.exc_info()[1]))


def code_of(error: BaseException | None) -> str:
    driver = getattr(error, "orig", None) or error
    return getattr(driver, "sqlstate", None) or type(driver).__name__


@contextmanager
def retried() -> Iterator[list[str]]:
    """Why attempts were tried again, as the module's own log tells."""
    log = logging.getLogger("points_platform.core.database")
    before, handler = log.level, Failures()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield handler.codes
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


# ── what is asked for ──


BAD: list[Any] = [
    "",
    "serializable",
    "READ UNCOMMITTED",
    "AUTOCOMMIT",
    "SNAPSHOT",
    "SERIALIZABLE ",
    "x'; --",
    1,
    True,
    [],
]


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_any_other_level_is_refused_by_name_before_anything_else_is_made(value: Any, tmp_path: Path) -> None:
    host = create_engine(f"sqlite:///{tmp_path}/points.db")
    for target in ("nonsense", "postgresql://nowhere/none", host):
        with pytest.raises(InvalidRequestError) as refused:
            Database(target, isolation_level=value)
        assert refused.value.details["field"] == "isolation_level"
        assert all(known in str(refused.value) for known in LEVELS)
    with host.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "delete", "the host's engine was prepared"
    host.dispose()


@pytest.mark.parametrize("level", [None, *LEVELS])
def test_on_sqlite_nothing_changes(sqlite_url: str, level: str | None) -> None:
    with Database(sqlite_url, isolation_level=level) as database:
        begins: list[str] = []
        event.listen(database.engine, "before_cursor_execute", lambda *call: begins.append(call[2]))
        world = World(database)
        world.settle(ready(world, "settle").escrow_id)
        assert {each for each in begins if each.startswith("BEGIN")} == {"BEGIN IMMEDIATE", "BEGIN DEFERRED"}
        assert not [each for each in begins if "read_uncommitted" in each]
        recount(database)


@contextmanager
def levels_seen(url: str) -> Iterator[Callable[[], set[str]]]:
    """At which levels rows were written since the last time it was asked, as the server saw it."""
    with administrator(url) as other:
        other.execute(
            """CREATE TABLE seen (level text);
            CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen VALUES (current_setting('transaction_isolation')); RETURN NULL; END $$"""
        )
        written = ("ledger_transactions", "user_wallets", "model_wallets", "escrow_items", "deposit_claims")
        for table in (*written, "ledger_log", "ledger_log_readers"):
            other.execute(
                f"CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH STATEMENT"
                " EXECUTE FUNCTION see()"
            )

        def seen() -> set[str]:
            rows = other.execute("WITH gone AS (DELETE FROM seen RETURNING level) SELECT level FROM gone").fetchall()
            return {value.upper() for (value,) in rows}

        yield seen


@way
@level
def test_all_that_the_module_begins_for_writing_has_the_level(
    postgresql_databases: PostgreSQLDatabases, level: str, way: str
) -> None:
    # Only if it is not what the server gives anyway does it prove anything.
    default = "serializable" if level == "READ COMMITTED" else "read committed"
    with postgresql_databases.fresh() as url, postgresql_databases.fresh() as empty:
        for each in (url, empty):
            with administrator(each) as other:
                other.execute(f"ALTER DATABASE \"{other.info.dbname}\" SET default_transaction_isolation = '{default}'")
        with world_at(url, level, way) as world, levels_seen(url) as seen:
            for kind in OPERATIONS:
                assert world.send(ready(world, kind, f"user-of-{kind}")).replayed is False
                assert seen() == {level}, kind
            world.wallets.hold_many([world.hold_request("user-of-credit"), world.hold_request("nobody")])
            assert seen() == {level}, "a batch"
            assert (world.ledger.seal().waiting, seen()) == (0, {level})
            world.ledger.reader("host").move(1, seen=0)
            assert seen() == {level}, "a reader's position"
            with administrator(url) as other:
                other.execute("UPDATE user_wallets SET available = available + 1 WHERE owner_id = 'user:user-of-hold'")
            seen()
            with world.database.snapshot() as connection:
                (drift,) = drifts(connection)
            assert (apply(world.database, drift), seen()) == (True, {level})
            exported = StringIO()
            export_log(world.database, exported)
        with world_at(empty, level, way) as copy, levels_seen(empty) as seen:
            restore(copy.database, StringIO(exported.getvalue(), newline="\n"))
            assert seen() == {level}, "an import"


@way
@level
def test_a_retry_has_the_level_too(postgresql_url: str, level: str, way: str) -> None:
    with world_at(postgresql_url, level, way) as world, levels_seen(postgresql_url) as seen:
        world.credit()
        with administrator(postgresql_url) as other:
            other.execute(
                """CREATE SEQUENCE failures; CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('failures') = 1 THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '40001'; END IF;
                RETURN NEW; END $$;
                CREATE TRIGGER fail BEFORE INSERT ON ledger_entries FOR EACH ROW EXECUTE FUNCTION fail()"""
            )
        seen()
        with retried() as failures:
            assert world.hold().new_available_balance == 70
        assert (failures, seen()) == ([SERIALIZATION_FAILURE], {level})


@level
def test_the_schema_is_created_at_the_level(postgresql_url: str, level: str) -> None:
    with administrator(postgresql_url) as other:
        other.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    seen = set()

    def look(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith("INSERT INTO points_platform_schema"):
            seen.add(connection.exec_driver_sql("SHOW transaction_isolation").scalar_one().upper())

    with Database(postgresql_url, isolation_level=level) as database:
        event.listen(database.engine, "before_cursor_execute", look)
        database.create_schema()
        assert seen == {level}
        recount(database)


@pytest.mark.parametrize("default", LEVELS)
@way
def test_without_a_level_it_is_what_the_server_gives(postgresql_url: str, default: str, way: str) -> None:
    with administrator(postgresql_url) as other:
        other.execute(f"ALTER DATABASE \"{other.info.dbname}\" SET default_transaction_isolation = '{default}'")
    with world_at(postgresql_url, None, way) as world, levels_seen(postgresql_url) as seen:
        world.settle(ready(world, "settle").escrow_id)
        world.wallets.hold_many([world.hold_request(), world.hold_request()])
        assert seen() == {default}


@level
@pytest.mark.parametrize("own", LEVELS)
def test_a_callers_session_keeps_its_own_level(postgresql_url: str, level: str, own: str) -> None:
    with world_at(postgresql_url, level) as world, levels_seen(postgresql_url) as seen:
        world.credit()
        seen()
        with Session(world.database.engine) as session, session.begin():
            session.connection(execution_options={"isolation_level": own})
            world.wallets.hold_in_escrow(world.hold_request(), session=session)
            world.wallets.hold_many([world.hold_request()], session=session)
        assert seen() == {own}


def engines_at(url: str, level: str) -> list[Engine]:
    """By every way that SQLAlchemy knows, and in the spellings."""
    return [
        create_engine(url, isolation_level=level),
        create_engine(url).execution_options(isolation_level=level.lower()),
        create_engine(url, execution_options={"isolation_level": level.replace(" ", "_")}),
    ]


@way
@level
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_without_a_level_it_is_what_the_hosts_engine_has(postgresql_url: str, level: str, way: str, used: bool) -> None:
    """At the first try and at the next one, also on a connection from before the module knew the engine."""
    with administrator(postgresql_url) as other:
        default = "serializable" if level == "READ COMMITTED" else "read committed"
        other.execute(f"ALTER DATABASE \"{other.info.dbname}\" SET default_transaction_isolation = '{default}'")
    with levels_seen(postgresql_url) as seen:
        for engine in engines_at(postgresql_url, level):
            user = str(id(engine))
            if used:
                engine.connect().close()
            with world_at(engine, None, way) as world:
                for _ in range(2):
                    assert world.send(world.credit_request(user, idempotency_key=world.key() + user)).replayed is False
                    assert seen() == {level}
                    world.wallets.credit_many([world.credit_request(user, idempotency_key=world.key() + user)])
                    assert seen() == {level}, "a batch"
            engine.dispose()


@way
@level
@pytest.mark.parametrize("host", LEVELS)
def test_the_level_wins_over_one_of_the_hosts_engine(postgresql_url: str, level: str, way: str, host: str) -> None:
    with levels_seen(postgresql_url) as seen:
        for engine in engines_at(postgresql_url, host):
            with world_at(engine, level, way) as world:
                world.settle(ready(world, "settle", str(id(engine))).escrow_id, user_id=str(id(engine)))
                world.wallets.credit_many([world.credit_request(str(id(engine)))])
            assert seen() == {level}
            with engine.connect() as connection:
                assert connection.scalar(text("SHOW transaction_isolation")).upper() == host
            engine.dispose()


def test_reads_and_snapshots_have_their_own_level_on_any_engine_of_the_hosts(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url).execution_options(isolation_level="SERIALIZABLE")
    database = Database(engine)
    world = World(database)
    level = text("SHOW transaction_isolation")
    with database.snapshot() as snapshot, database.read() as read:
        assert snapshot.scalar(level) == "repeatable read"
        assert snapshot.scalar(text("SHOW transaction_read_only")) == "on"
        before = [each.scalar(text("SELECT count(*) FROM user_wallets")) for each in (snapshot, read)]
        world.credit()
        after = [each.scalar(text("SELECT count(*) FROM user_wallets")) for each in (snapshot, read)]
    assert (before, after) == ([0, 0], [0, 1])
    engine.dispose()


@level
def test_for_the_hosts_other_users_nothing_changes(postgresql_url: str, level: str) -> None:
    """They share its engine's one connection with the module."""
    engine = create_engine(postgresql_url, pool_size=1, max_overflow=0, pool_timeout=0)
    asked = "SELECT current_setting('transaction_isolation'), current_setting('default_transaction_isolation')"

    def told() -> list[tuple[str, str]]:
        with engine.connect() as connection, Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
            first = tuple(connection.execute(text(asked)).one())
            connection.close()
            return [first, tuple(session.execute(text(asked)).one())]

    before, options = told(), engine.get_execution_options()
    with world_at(engine, level) as world:
        world.credit()
        with pytest.raises(InsufficientBalanceError):
            world.hold(amount=1000)
        world.wallets.credit_many([world.credit_request()])
        assert (told(), engine.get_execution_options()) == (before, options)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE host (note text)"))
        assert told() == before == [("read committed", "read committed")] * 2
    engine.dispose()


# ── on the wire ──


@contextmanager
def wire(engine: Engine) -> Iterator[Callable[[], list[str]]]:
    """What has been sent and received on the pool's one connection, a line each."""
    with tempfile.TemporaryFile() as file:
        pooled = engine.raw_connection()
        libpq: Any = pooled.dbapi_connection.pgconn  # type: ignore[union-attr]
        pooled.close()
        libpq.trace(file.fileno())

        def lines() -> list[str]:
            libpq.untrace()  # which flushes
            libpq.trace(file.fileno())
            file.seek(0)
            found = file.read().decode().splitlines()
            file.truncate(0)
            return found

        try:
            yield lines
        finally:
            libpq.untrace()


@pytest.mark.parametrize("options", [{}, {"prepare_threshold": None}], ids=["prepared", "unprepared"])
@pytest.mark.parametrize("level", [None, *LEVELS])
def test_an_operation_is_one_round_trip(postgresql_url: str, level: str | None, options: dict[str, Any]) -> None:
    engine = create_engine(postgresql_url, pool_size=1, max_overflow=0, pool_timeout=0, connect_args=options)
    with world_at(engine, level) as world:
        for number in (1, 2, 3):  # until connections are open and statements prepared
            requests = {kind: ready(world, kind, f"user-{number}-{kind}") for kind in OPERATIONS}
            if number < 3:
                for request in requests.values():
                    world.send(request)
        with wire(engine) as lines:
            for kind, request in requests.items():
                assert world.send(request).replayed is False
                sent = lines()
                assert round_trips(sent) == ["I"], kind
                assert any("transaction_isolation" in line for line in sent) == (level is not None), kind
            with pytest.raises(InsufficientBalanceError):
                world.hold("nobody")
            assert round_trips(lines()) == ["I", "I"], "the statement that missed, and one read"
    engine.dispose()


def round_trips(lines: list[str]) -> list[str]:
    """In what state the server was at the end of each: I is in no transaction."""
    return [line.split()[-1] for line in lines if "\tReadyForQuery\t" in line]


@level
@way
def test_a_miss_leaves_no_transaction_open_and_is_refused_by_name(postgresql_url: str, level: str, way: str) -> None:
    engine = create_engine(postgresql_url, pool_size=1, max_overflow=0, pool_timeout=0)
    with world_at(engine, level, way) as world:
        world.credit(amount=100)
        ended, held = world.hold(amount=1), world.hold(amount=20)
        world.refund(ended.escrow_id, amount=1)
        with administrator(postgresql_url) as other:
            # Full, so that a settlement divides by zero after it has written the rest.
            other.execute(
                "INSERT INTO model_wallets (owner_id, currency, earned, paying, version, created_at, updated_at)"
                " VALUES ('model:luna', 'points', %s, 0, 1, now(), now())",
                [MAX_POINTS],
            )
        before, pid = world.snapshot(), backend(engine)
        refusals: list[tuple[type[WalletError], Any]] = [
            (InsufficientBalanceError, world.hold_request(amount=1000)),
            (EscrowAlreadyProcessedError, world.refund_request(ended.escrow_id, amount=1)),
            (BalanceLimitError, world.settle_request(held.escrow_id, amount=20)),
            (IdempotencyConflictError, world.credit_request(amount=5, idempotency_key="key-0")),
        ]
        for kind, request in refusals:
            with pytest.raises(kind):
                world.send(request)
            assert (state(engine), backend(engine)) == (TransactionStatus.IDLE, pid), kind
        assert world.snapshot() == before
        with administrator(postgresql_url) as other:
            other.execute("DELETE FROM model_wallets")
    engine.dispose()


def state(engine: Engine) -> TransactionStatus:
    """Of the connection as the pool has it."""
    pooled = engine.raw_connection()
    status: TransactionStatus = pooled.dbapi_connection.info.transaction_status  # type: ignore[union-attr]
    pooled.close()
    return status


def backend(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


# ── contention ──


@way
@strict_level
def test_a_row_that_changes_during_the_wait_is_a_serialization_failure_and_tried_again(
    postgresql_url: str, level: str, way: str
) -> None:
    with (
        world_at(postgresql_url, level, way) as world,
        administrator(postgresql_url) as holder,
        administrator(postgresql_url) as observer,
        ThreadPoolExecutor(1) as threads,
        retried() as failures,
    ):
        world.credit()
        world.events.clear()
        for service, expected in ((world.service(), []), (world.service(config=impatient(0)), ["raised"])):
            before = world.wallets.get_user_balance("ana").version
            holder.execute("BEGIN")
            holder.execute("UPDATE user_wallets SET available = available")
            request = world.hold_request()
            answer = threads.submit(world.send, request, service)
            waits_for(holder, observer)
            holder.execute("COMMIT")
            if expected:
                error = answer.exception(timeout=30)
                assert isinstance(error, OptimisticLockError)
                assert code_of(error.__cause__) == SERIALIZATION_FAILURE
                assert world.wallets.get_user_balance("ana").version == before
            else:
                assert answer.result(timeout=30).new_available_balance == 70
        assert failures == [SERIALIZATION_FAILURE]
        assert len(world.events) == 1


def hot_requests(world: World) -> list[Any]:
    """All on one user and one model; each can be carried out, and some are there twice."""
    world.credit(amount=1000)
    held = [world.hold(amount=10).escrow_id for _ in range(12)]
    requests: list[Any] = [world.hold_request(amount=10) for _ in range(18)]
    requests += [world.settle_request(each, amount=10) for each in held[:6]]
    requests += [world.refund_request(each, amount=10) for each in held[6:9]]
    requests += [world.partial_settle_request(each, 4, 6) for each in held[9:]]
    requests += [world.credit_request(amount=10) for _ in range(6)]
    world.events.clear()
    return requests + requests[::3]


def assert_each_has_happened_or_not(world: World, requests: Sequence[Any], answers: Sequence[Any]) -> None:
    """Acknowledged means once, contention means not at all, and to send it again settles the matter."""
    assert {type(answer).__name__ for answer in answers if isinstance(answer, Exception)} <= {"OptimisticLockError"}
    done: dict[str, list[Any]] = {}
    for request, answer in zip(requests, answers, strict=True):
        outcomes = done.setdefault(request.idempotency_key, [])
        if not isinstance(answer, Exception):
            outcomes.append(answer)
    assert done, "nothing has succeeded"
    for request in requests:
        outcomes = done[request.idempotency_key]
        again = world.send(request, world.service())
        assert again.replayed is bool(outcomes), "acknowledged, but not there; or there, but not acknowledged"
        assert all(answer == again for answer in outcomes)
        assert [answer.replayed for answer in [*outcomes, again]].count(False) == 1
        if not outcomes:
            outcomes.append(again)
    balance, model = world.wallets.get_user_balance("ana"), world.wallets.get_model_balance("luna")
    assert (balance.escrow, model.earned) == (180, 6 * 10 + 3 * 6)
    assert balance.total + model.earned == 1000 + 60
    recount(world.database)


@way
@strict_level
def test_threads_on_a_hot_wallet_succeed_or_are_told_of_contention(postgresql_url: str, level: str, way: str) -> None:
    with world_at(postgresql_url, level, way) as world:
        requests = hot_requests(world)
        with retried() as failures:
            answers: list[Any] = at_once(*(partial(world.send, request, world.service()) for request in requests))
        published = Counter(each.transaction_id for each in world.events)
        acknowledged = {answer.transaction_id for answer in answers if not isinstance(answer, Exception)}
        assert published == Counter(acknowledged), "an event for each that was acknowledged, and no other"
        assert_each_has_happened_or_not(world, requests, answers)
    assert SERIALIZATION_FAILURE in failures
    assert set(failures) <= {SERIALIZATION_FAILURE, "Stale", "23505", "40P01"}, Counter(failures)


_barrier: list[Barrier] = []


def _send_at_once(url: str, level: str, way: str, requests: Sequence[Any]) -> tuple[list[Any], list[str]]:
    with retried() as failures, Database(url, isolation_level=level, single_statement=WAYS[way]) as database:
        world = World(database, config=impatient())
        world.wallets.get_user_balance("nobody")  # the first read also checks the schema
        _barrier[0].wait(timeout=60)
        return at_once(*(partial(world.send, request) for request in requests)), failures


@way
@strict_level
def test_processes_on_a_hot_wallet_succeed_or_are_told_of_contention(postgresql_url: str, level: str, way: str) -> None:
    context = multiprocessing.get_context("fork")
    with world_at(postgresql_url, level, way) as world, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        requests = hot_requests(world)
        hands = [requests[number::PROCESSES] for number in range(PROCESSES)]
        enter = partial(_barrier.append, context.Barrier(PROCESSES))
        with ProcessPoolExecutor(PROCESSES, context, initializer=enter) as processes:
            work = partial(_send_at_once, postgresql_url, level, way)
            told = list(processes.map(work, hands))
        answers = [told[number % PROCESSES][0][number // PROCESSES] for number in range(len(requests))]
        assert_each_has_happened_or_not(world, requests, answers)
    assert SERIALIZATION_FAILURE in {code for _, failures in told for code in failures}


@way
@strict_level
def test_one_key_from_many_threads_has_one_effect_and_one_answer(postgresql_url: str, level: str, way: str) -> None:
    with world_at(postgresql_url, level, way) as world:
        for kind in OPERATIONS:
            request = ready(world, kind, f"user-of-{kind}")
            world.events.clear()
            services = [world.service() for _ in range(4)]
            answers: list[Any] = at_once(*(partial(world.send, request, services[n % 4]) for n in range(16)))
            done = [answer for answer in answers if not isinstance(answer, OptimisticLockError)]
            assert [answer.replayed for answer in done].count(False) == 1
            assert all(answer == done[0] for answer in done)
            assert len(world.events) == 1


@way
@strict_level
def test_batches_and_single_operations_on_the_same_rows(postgresql_url: str, level: str, way: str) -> None:
    with world_at(postgresql_url, level, way) as world:
        world.credit(amount=1000)
        batches = [[world.hold_request(amount=1) for _ in range(5)] for _ in range(6)]
        calls: list[Callable[[], Any]] = [partial(world.wallets.hold_many, batch) for batch in batches]
        calls += [partial(world.hold, amount=1) for _ in range(10)]
        answers = at_once(*calls)
        assert {type(answer).__name__ for answer in answers} <= {"list", "EscrowHoldResponse", "OptimisticLockError"}
        done = sum(len(each) if isinstance(each, list) else not isinstance(each, Exception) for each in answers)
        assert world.wallets.get_user_balance("ana").escrow == done > 0


# ── a commit that fails ──


@pytest.fixture
def closing(postgresql_url: str) -> str:
    """A host that closes users who hold nothing, and a rule that who is closed holds nothing.

    Each operation waits at its commit while the gate is locked: when all its rows have been told.
    """
    with administrator(postgresql_url) as other:
        other.execute(
            f"""CREATE TABLE closed (owner_id text);
            CREATE FUNCTION check_open() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM closed WHERE owner_id = NEW.owner_id) THEN
            RAISE EXCEPTION 'closed' USING ERRCODE = 'P0001'; END IF; RETURN NEW; END $$;
            CREATE TRIGGER check_open BEFORE INSERT ON escrow_items FOR EACH ROW EXECUTE FUNCTION check_open();
            CREATE FUNCTION pass_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON ledger_transactions DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION pass_the_gate()"""
        )
    return postgresql_url


@contextmanager
def at_its_commit(url: str, world: World, request: Any) -> Iterator[tuple[Any, int]]:
    """The answer to come of an operation that stands at its commit, and its backend; it goes on at the end."""
    with ThreadPoolExecutor(1) as threads, administrator(url) as gate, administrator(url) as observer:
        gate.execute("SELECT pg_advisory_lock(%s)", [GATE])
        answer = threads.submit(world.send, request)
        yield answer, waits_for(gate, observer)
        gate.execute("SELECT pg_advisory_unlock(%s)", [GATE])
        answer.exception(timeout=30)


@contextmanager
def close(url: str, level: str) -> Iterator[Callable[[], object]]:
    """The host's transaction at that level, which has found that ana holds nothing; what is yielded commits it."""
    with administrator(url) as host:
        host.execute(f"BEGIN ISOLATION LEVEL {level}")
        assert scalar(host, "SELECT count(*) FROM escrow_items WHERE owner_id = 'user:ana'") == 0
        host.execute("INSERT INTO closed VALUES ('user:ana')")
        yield partial(host.execute, "COMMIT")


@way
@level
def test_write_skew_with_the_hosts_own_transaction_is_prevented_by_serializable_alone(
    closing: str, level: str, way: str
) -> None:
    with world_at(closing, level, way) as world, retried() as failures:
        world.credit()
        with close(closing, level) as commit, at_its_commit(closing, world, world.hold_request()) as (answer, _):
            commit()
        serializable = level == "SERIALIZABLE"
        assert isinstance(answer.exception(), StorageUnavailableError if serializable else type(None))
        assert failures == [SERIALIZATION_FAILURE] * serializable
        assert world.wallets.get_user_balance("ana").escrow == (0 if serializable else 30)


@way
@pytest.mark.parametrize("retries", [0, 3])
def test_a_commit_that_fails_is_tried_again_and_never_taken_for_success(closing: str, way: str, retries: int) -> None:
    with world_at(closing, "SERIALIZABLE", way, retries) as world, retried() as failures:
        world.credit()
        world.events.clear()
        before = world.snapshot()
        with (
            close(closing, "SERIALIZABLE") as commit,
            at_its_commit(closing, world, world.hold_request()) as (answer, _),
            administrator(closing) as other,
        ):
            commit()
            other.execute("DELETE FROM closed")
        if retries:
            held = answer.result()
            assert (held.replayed, held.new_available_balance, held.escrow_balance) == (False, 70, 30)
            assert failures == [SERIALIZATION_FAILURE]
            assert [each.transaction_id for each in world.events] == [held.transaction_id]
        else:
            error = answer.exception()
            assert isinstance(error, OptimisticLockError)
            cause: Any = getattr(error.__cause__, "orig", None) or error.__cause__
            assert cause.sqlstate == SERIALIZATION_FAILURE
            assert "during commit attempt" in cause.diag.message_detail
            assert (world.snapshot(), world.events) == (before, [])
        assert state(world.database.engine) is TransactionStatus.IDLE


@way
@strict_level
def test_a_connection_cut_at_the_commit_leaves_one_effect_and_one_event(closing: str, level: str, way: str) -> None:
    with world_at(closing, level, way) as world, administrator(closing) as other:
        world.credit()
        world.events.clear()
        request = world.hold_request()
        with retried() as failures, at_its_commit(closing, world, request) as (answer, pid):
            assert scalar(other, "SELECT pg_terminate_backend(%s, 10000)", pid)
        held = answer.result()
        assert (len(failures), held.replayed, held.new_available_balance) == (1, False, 70)
        assert [each.transaction_id for each in world.events] == [held.transaction_id]
        again = world.send(request, world.service())
        assert (again, again.replayed) == (held, True)


@strict_level
def test_an_answer_lost_after_the_commit_is_found_by_the_retry(
    postgresql_url: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = statement_module._end_pipeline
    lost: list[object] = []

    def lose(libpq: Any) -> Any:
        results = end(libpq)
        if not lost:
            lost.append(results)
            raise psycopg.OperationalError("the connection is lost")
        return results

    with world_at(postgresql_url, level) as world, retried() as failures:
        world.credit()
        world.events.clear()
        monkeypatch.setattr(statement_module, "_end_pipeline", lose)
        held = world.hold()
        assert (failures, held.replayed, held.new_available_balance) == (["OperationalError"], False, 70)
        assert [each.transaction_id for each in world.events] == [held.transaction_id]
        assert world.wallets.get_user_balance("ana").version == 2
