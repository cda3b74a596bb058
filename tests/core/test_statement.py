"""One statement past SQLAlchemy: what it sends, what it raises, and in what state it leaves the connection and pool."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, NullPool, PoolProxiedConnection, create_engine, event

from points_platform.core import Database, OptimisticLockError, StorageUnavailableError, WalletError
from points_platform.core.clock import microseconds
from points_platform.core.database import Retry
from points_platform.core.statement import Row, Statement
from points_platform.wallets import WalletConfig
from support.connections import administrator, scalar
from support.recount import recount
from support.world import World, at_once

ONE_TRY = Retry(attempts=0, backoff=0)
SAY = Statement("say", "SELECT %(text)s::text")
HOSTILE = [
    "",
    " ",
    'it\'s "quoted" `so`',
    "back\\slash \\' \\x41 \\N \\.",
    "100% %s %(text)s %% %d",
    "$1 $2 $$ $tag$ :name ::int ?",
    "'; DROP TABLE user_wallets; --",
    "line\nbreak\ttab\rreturn\x01\x7f",
    "żółw 🐢 \u2028 \u202e \U0010ffff",
    "NULL",
    '{"nul": "\\u0000"}',
]
# Without a level nothing is sent but the statement; with one they are a pipeline.
levels = pytest.mark.parametrize("level", [None, "SERIALIZABLE"])


Engines = Callable[..., Engine]


@pytest.fixture
def engines(postgresql_url: str) -> Iterator[Engines]:
    """Makes engines on one database, as a host would; in the end none has lent a connection for good."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(create_engine(postgresql_url, **options))
        return made[-1]

    yield make
    for engine in made:
        lent = 0 if isinstance(engine.pool, NullPool) else checked_out(engine)
        engine.dispose()
        assert lent == 0, "a connection was never given back"


@pytest.fixture
def engine(engines: Engines) -> Engine:
    return engines(pool_size=1, max_overflow=0, pool_timeout=0)


@pytest.fixture
def unprepared(engines: Engines) -> Engine:
    """An engine whose host has switched prepared statements off, as an older PgBouncer needs it."""
    return engines(pool_size=1, max_overflow=0, pool_timeout=0, connect_args={"prepare_threshold": None})


def checked_out(engine: Engine) -> int:
    pool: Any = engine.pool
    return int(pool.checkedout())


@pytest.fixture
def pooled(engine: Engine) -> Iterator[PoolProxiedConnection]:
    connection = engine.raw_connection()
    yield connection
    status = status_of(connection)
    connection.close()
    assert status is TransactionStatus.IDLE


def status_of(pooled: PoolProxiedConnection) -> TransactionStatus:
    connection: Any = pooled.dbapi_connection
    status: TransactionStatus = connection.info.transaction_status
    return status


def by_the_driver(pooled: PoolProxiedConnection, sql: str) -> None:
    cursor = pooled.cursor()
    cursor.execute(sql)
    cursor.close()
    pooled.commit()


def prepared_on(pooled: PoolProxiedConnection) -> int:
    cursor = pooled.cursor()
    cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'points_platform%%'")
    count = int((cursor.fetchone() or (0,))[0])
    cursor.close()
    pooled.commit()
    return count


# ── what is sent ──


def test_a_parameter_that_is_used_again_is_the_same_one_and_values_go_by_name(pooled: PoolProxiedConnection) -> None:
    statement = Statement("again", "SELECT %(b)s::text, %(a)s::int + 1, %(b)s::text || %(a)s::text, %(c)s::bigint")
    values: dict[str, str | int | None] = {"unused": "x\0", "c": 2**63 - 1, "a": -41, "b": "β"}
    assert statement.execute(pooled, values) == ("β", "-40", "β-41", str(2**63 - 1))


def test_what_looks_like_a_parameter_of_postgresql_or_python_is_none(pooled: PoolProxiedConnection) -> None:
    statement = Statement("others", "SELECT '%%', '%s', ':name', 7 % 4, %(a)s::text WHERE '$1' = '$' || '1'")
    assert statement.execute(pooled, {"a": "%(a)s"}) == ("%%", "%s", ":name", "3", "%(a)s")


@pytest.mark.parametrize("kind", ["engine", "unprepared"])
def test_any_text_comes_back_as_it_was_given(request: pytest.FixtureRequest, kind: str) -> None:
    pooled: PoolProxiedConnection = request.getfixturevalue(kind).raw_connection()
    for text in (*HOSTILE, "long " * 2_000_000):
        assert SAY.execute(pooled, {"text": text}) == (text,)
    assert SAY.execute(pooled, {"text": None}) == (None,)
    pooled.close()


def test_the_first_row_is_returned_and_none_where_there_is_none(pooled: PoolProxiedConnection) -> None:
    some = Statement("some", "SELECT n, NULL::text FROM generate_series(1, %(count)s::int) AS n")
    assert some.execute(pooled, {"count": 3}) == ("1", None)
    assert some.execute(pooled, {"count": 0}) is None
    with administrator(pooled_url(pooled)) as other:
        assert (
            Statement("delete", "DELETE FROM user_wallets WHERE owner_id = %(a)s").execute(pooled, {"a": "x"}) is None
        )
        assert scalar(other, "SELECT count(*) FROM user_wallets") == 0


def pooled_url(pooled: PoolProxiedConnection) -> str:
    connection: Any = pooled.dbapi_connection
    info = connection.info
    return f"postgresql://{info.user}@/{info.dbname}?host={info.host}&port={info.port}"


def test_what_cannot_be_sent_is_refused_before_anything_is(pooled: PoolProxiedConnection) -> None:
    for parameters, error in (({"text": "a\0b"}, ValueError), ({}, KeyError), ({"text": "\ud800"}, UnicodeEncodeError)):
        with pytest.raises(error):
            SAY.execute(pooled, parameters)
        assert status_of(pooled) is TransactionStatus.IDLE
    assert prepared_on(pooled) == 0
    assert SAY.execute(pooled, {"text": "ab"}) == ("ab",)


def test_a_statement_commits_by_itself(pooled: PoolProxiedConnection) -> None:
    with administrator(pooled_url(pooled)) as other:
        other.execute("CREATE TABLE notes (note text)")
        Statement("note", "INSERT INTO notes VALUES (%(text)s)").execute(pooled, {"text": "kept"})
        pooled.rollback()
        assert scalar(other, "SELECT note FROM notes") == "kept"


@levels
@pytest.mark.parametrize("moment", ["connect", "checkout"])
def test_a_transaction_that_the_host_has_begun_on_the_connection_does_not_swallow_the_commit(
    engines: Engines, moment: str, level: str | None
) -> None:
    """A host's listener that executes something leaves a transaction open on psycopg's connection."""
    engine = engines()
    world = World(Database(engine, isolation_level=level))
    assert world.wallets.get_user_balance("ana").version == 0
    engine.dispose()
    event.listen(engine, moment, lambda connection, *others: connection.execute("SET application_name = 'the host'"))
    answers = [world.credit(), world.credit()]
    with administrator(engine.url) as other:
        recorded = other.execute("SELECT transaction_id FROM ledger_transactions ORDER BY 1").fetchall()
    assert recorded == [(answer.transaction_id,) for answer in answers], "what was answered has not happened"


# ── prepared statements ──


def test_a_statement_is_prepared_once_for_each_connection(engine: Engine) -> None:
    for text in "abc":
        pooled = engine.raw_connection()
        assert SAY.execute(pooled, {"text": text}) == (text,)
        assert prepared_on(pooled) == 1
        pooled.close()
    engine.dispose()
    pooled = engine.raw_connection()
    assert prepared_on(pooled) == 0
    assert SAY.execute(pooled, {"text": "d"}) == ("d",)
    pooled.close()


def test_nothing_is_prepared_where_the_host_has_switched_it_off(unprepared: Engine) -> None:
    pooled = unprepared.raw_connection()
    for text in "abc":
        assert SAY.execute(pooled, {"text": text}) == (text,)
    assert prepared_on(pooled) == 0
    pooled.close()


@levels
@pytest.mark.parametrize("discard", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_a_prepared_statement_that_was_discarded_is_prepared_anew(
    pooled: PoolProxiedConnection, discard: str, level: str | None
) -> None:
    counted = Statement("counted", "INSERT INTO notes VALUES (%(text)s) RETURNING (SELECT count(*) FROM notes)")
    by_the_driver(pooled, "CREATE TABLE notes (note text)")
    for before in range(3):
        assert counted.execute(pooled, {"text": "x"}, level) == (str(before),), "it had another effect than one"
        pooled.dbapi_connection.autocommit = True  # type: ignore[union-attr]
        pooled.dbapi_connection.execute(discard)  # type: ignore[union-attr]
        pooled.dbapi_connection.autocommit = False  # type: ignore[union-attr]
        assert prepared_on(pooled) == 0
    assert SAY.execute(pooled, {"text": "and another"}) == ("and another",)


@levels
def test_a_statement_whose_table_has_changed_is_prepared_anew(pooled: PoolProxiedConnection, level: str | None) -> None:
    by_the_driver(pooled, "CREATE TABLE notes (note int); INSERT INTO notes VALUES (7)")
    notes = Statement("notes", "SELECT * FROM notes WHERE %(text)s::text IS NOT NULL")
    assert notes.execute(pooled, {"text": ""}, level) == ("7",)
    for change, expected in (
        ("ALTER TABLE notes ALTER note TYPE text", ("7",)),
        ("ALTER TABLE notes ADD more text DEFAULT 'more'", ("7", "more")),
    ):
        with administrator(pooled_url(pooled)) as other:
            other.execute(change)
        for _ in range(2):
            assert notes.execute(pooled, {"text": ""}, level) == expected, change


@levels
def test_what_is_not_supported_at_all_is_raised_and_not_tried_for_ever(
    pooled: PoolProxiedConnection, level: str | None
) -> None:
    """0A000 is also what a statement gives that PostgreSQL cannot carry out, at its preparation or execution."""
    early = Statement("early", "SELECT count(*) FROM user_wallets WHERE owner_id = %(text)s FOR UPDATE")
    late = Statement("late", "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '0A000'; END $$")
    for statement in (early, late):
        for _ in range(2):
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                statement.execute(pooled, {"text": "1"}, level)
            assert status_of(pooled) is TransactionStatus.IDLE
    assert SAY.execute(pooled, {"text": "on"}) == ("on",)


# ── errors ──


ERRORS = {
    "22012": "SELECT 1 / (%(text)s::text = '')::int",
    "22P02": "SELECT %(text)s::text::bigint",
    "42601": "SELEC %(text)s::text",
    "42P01": "SELECT %(text)s::text FROM nowhere",
    "42P18": "SELECT pg_typeof(%(text)s)",
    "23505": "INSERT INTO points_platform_schema SELECT * FROM points_platform_schema WHERE %(text)s::text <> ''",
    "23502": "INSERT INTO user_wallets (owner_id) VALUES (%(text)s)",
    "23001": "UPDATE ledger_entries SET amount = 1 WHERE account_id = %(text)s",
}


@levels
@pytest.mark.parametrize("kind", ["engine", "unprepared"])
def test_an_error_carries_its_sqlstate_and_leaves_the_connection_of_use(
    request: pytest.FixtureRequest, kind: str, level: str | None
) -> None:
    pooled: PoolProxiedConnection = request.getfixturevalue(kind).raw_connection()
    for sqlstate, sql in ERRORS.items():
        statement = Statement(f"error_{sqlstate}", sql)
        for _ in range(2):
            with pytest.raises(psycopg.Error) as error:
                statement.execute(pooled, {"text": "word"}, level)
            assert error.value.sqlstate == sqlstate
            assert type(error.value) is psycopg.errors.lookup(sqlstate)
            assert status_of(pooled) is TransactionStatus.IDLE
            assert SAY.execute(pooled, {"text": sqlstate}, level) == (sqlstate,)
    pooled.close()


@levels
@pytest.mark.parametrize("kind", ["engine", "unprepared"])
@pytest.mark.parametrize("returning", ["", "RETURNING note"])
def test_an_error_that_comes_only_at_the_commit_is_raised(
    request: pytest.FixtureRequest, kind: str, returning: str, level: str | None
) -> None:
    """By then the server has given the rows, and said that the statement is complete."""
    pooled: PoolProxiedConnection = request.getfixturevalue(kind).raw_connection()
    by_the_driver(pooled, "CREATE TABLE notes (note text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    note = Statement("note", f"INSERT INTO notes VALUES (%(text)s) {returning}")
    note.execute(pooled, {"text": "once"}, level)
    for _ in range(2):
        with pytest.raises(psycopg.errors.UniqueViolation):
            note.execute(pooled, {"text": "once"}, level)
        assert status_of(pooled) is TransactionStatus.IDLE
    assert SAY.execute(pooled, {"text": "usable"}) == ("usable",)
    pooled.close()


@levels
def test_an_error_given_to_the_pool_leaves_the_same_connection_of_use(engine: Engine, level: str | None) -> None:
    database = Database(engine, isolation_level=level)
    pid = ask(database, "SELECT pg_backend_pid(), %(text)s::text")
    for sqlstate, sql in ERRORS.items():
        if sqlstate in {"22012", "23505"}:
            assert ask(database, sql, f"error_{sqlstate}") is None, "a miss, and no failure"
        else:
            with pytest.raises(WalletError):
                ask(database, sql, f"error_{sqlstate}")
        assert checked_out(engine) == 0
    assert ask(database, "SELECT pg_backend_pid(), %(text)s::text") == pid


def ask(database: Database, sql: str, name: str = "asked") -> Row | None:
    """Carry out one statement as ``Database.run`` does, in one try."""

    def never(connection: object, locked: bool, at: object) -> Row | None:
        raise AssertionError("the locked way was taken")

    if sql.startswith("SELECT"):
        sql = f"WITH asked AS ({sql}) SELECT *, {microseconds('statement_timestamp()')} AS time FROM asked"
    statement = Statement(name, sql)
    return database.run(never, retry=ONE_TRY, at_once=lambda execute, connect: execute(statement, {"text": "word"}))


# ── lost connections ──


@contextmanager
def world_on(engine: Engine, attempts: int = 3, **options: Any) -> Iterator[World]:
    """A world whose user has 100 points and whose pool is warm."""
    database = Database(engine, lock_timeout_ms=60_000, **options)
    world = World(database, config=WalletConfig(max_retry_attempts=attempts, retry_backoff_ms=0))
    world.credit()
    yield world
    recount(database)


def until(seen: Callable[[], Any]) -> Any:
    """What is looked for, as soon as it is seen."""
    deadline = time.monotonic() + 30
    while not (found := seen()):
        assert time.monotonic() < deadline, "it never came"
    return found


def backends(other: psycopg.Connection[Any]) -> set[int]:
    """Who else is connected to this database."""
    rows = other.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    return {pid for (pid,) in rows}


def end_all(other: psycopg.Connection[Any]) -> None:
    for pid in backends(other):
        assert scalar(other, "SELECT pg_terminate_backend(%s, 10000)", pid)


def assert_held(world: World, times: int, version: int) -> None:
    """So many holds of 30 points, and nothing else."""
    balance = world.wallets.get_user_balance("ana")
    assert (balance.available, balance.escrow, balance.version) == (100 - 30 * times, 30 * times, version)


def test_a_connection_cut_while_idle_is_replaced_and_the_operation_has_one_effect(engine: Engine) -> None:
    with world_on(engine) as world, administrator(engine.url) as other:
        before = backends(other)
        end_all(other)
        assert world.hold().replayed is False
        assert not before & backends(other)
        assert_held(world, 1, version=2)


@levels
def test_a_cut_connection_without_a_retry_is_unavailable_once_and_no_effect(engine: Engine, level: str | None) -> None:
    with world_on(engine, attempts=0, isolation_level=level) as world, administrator(engine.url) as other:
        request = world.hold_request()
        end_all(other)
        with pytest.raises(StorageUnavailableError):
            world.send(request)
        assert_held(world, 0, version=1)
        assert world.send(request).replayed is False, "the key was not consumed"


def test_all_idle_connections_that_were_cut_cost_one_retry_together(engines: Engines) -> None:
    engine = engines(pool_size=8)
    with world_on(engine, attempts=1) as world, administrator(engine.url) as other:
        connections = [engine.raw_connection() for _ in range(8)]
        for connection in connections:
            connection.close()
        assert len(backends(other)) == 8
        end_all(other)
        for _ in range(3):
            assert world.hold().replayed is False
        assert_held(world, 3, version=4)


def test_a_ping_before_use_spares_the_retry(engines: Engines) -> None:
    engine = engines(pool_pre_ping=True)
    with world_on(engine, attempts=0) as world, administrator(engine.url) as other:
        for times in (1, 2):
            end_all(other)
            assert world.hold().replayed is False
            assert_held(world, times, version=1 + times)


def test_without_a_pool_every_operation_has_a_connection_and_leaves_none(engines: Engines) -> None:
    engine = engines(poolclass=NullPool)
    with world_on(engine) as world, administrator(engine.url) as other:
        until(lambda: not backends(other))
        assert world.hold().replayed is False
        with pytest.raises(OptimisticLockError), failing_statement(world):
            world.hold()
        assert_held(world, 1, version=2)
        until(lambda: not backends(other))


@contextmanager
def failing_statement(world: World) -> Iterator[None]:
    """Nothing can be recorded for the moment: a conflict each time."""
    with administrator(world.database.engine.url) as other:
        other.execute(
            """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'on purpose' USING ERRCODE = '40001'; END $$;
            CREATE TRIGGER fail BEFORE INSERT ON ledger_entries FOR EACH ROW EXECUTE FUNCTION fail()"""
        )
        yield
        other.execute("DROP TRIGGER fail ON ledger_entries")


@contextmanager
def locked_wallet(engine: Engine) -> Iterator[Callable[[], int]]:
    """The user's wallet is locked; what is yielded waits until somebody waits for it, and says which backend."""
    with administrator(engine.url) as holder, administrator(engine.url) as observer:
        holder.execute("BEGIN")
        holder.execute("SELECT FROM user_wallets FOR UPDATE")

        def waiting() -> int:
            sql = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            return int(until(lambda: scalar(observer, sql, holder.info.backend_pid)))

        yield waiting
        holder.execute("ROLLBACK")


@levels
@pytest.mark.parametrize("attempts", [0, 3])
def test_a_connection_cut_during_the_statement_leaves_one_effect_or_none(
    engine: Engine, attempts: int, level: str | None
) -> None:
    with world_on(engine, attempts=attempts, isolation_level=level) as world, ThreadPoolExecutor(1) as threads:
        request = world.hold_request()
        with locked_wallet(engine) as waiting, administrator(engine.url) as other:
            answer = threads.submit(world.send, request)
            assert scalar(other, "SELECT pg_terminate_backend(%s, 10000)", waiting())
            if attempts == 0:
                assert isinstance(answer.exception(timeout=30), StorageUnavailableError)
        if attempts:
            assert answer.result(timeout=30).replayed is False
        assert_held(world, bool(attempts), version=1 + bool(attempts))
        assert world.send(request).replayed is bool(attempts)
        assert_held(world, 1, version=2)


@levels
def test_other_threads_go_on_while_one_waits_for_a_lock(engines: Engines, level: str | None) -> None:
    engine = engines(pool_size=2, max_overflow=0)
    with (
        world_on(engine, isolation_level=level) as world,
        ThreadPoolExecutor(1) as threads,
        locked_wallet(engine) as waiting,
    ):
        answer = threads.submit(world.send, world.hold_request())
        waiting()
        assert world.credit("ben").replayed is False
        assert not answer.done()
    assert answer.result().replayed is False


# ── interrupts ──


@levels
def test_an_interrupt_during_the_wait_leaves_no_connection_in_an_unknown_state(
    engine: Engine, request: pytest.FixtureRequest, level: str | None
) -> None:
    main = threading.main_thread().ident
    assert main == threading.get_ident(), "signals reach only the main thread"
    # Where the suite runs in the background of a shell, the signal is ignored from the start.
    before_the_test = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(partial(signal.signal, signal.SIGINT, before_the_test))
    with world_on(engine, isolation_level=level) as world:
        hold = world.hold_request()
        with locked_wallet(engine) as waiting, administrator(engine.url) as other:
            before = backends(other)
            abandoned = []

            def interrupt() -> None:
                abandoned.append(waiting())
                signal.pthread_kill(main, signal.SIGINT)

            helper = threading.Thread(target=interrupt)
            helper.start()
            with pytest.raises(KeyboardInterrupt):
                world.send(hold)
            helper.join()
            assert checked_out(engine) == 0
            assert world.credit("ben").replayed is False, "another connection serves"
            assert backends(other) - before, "the interrupted connection is not used again"
        with administrator(engine.url) as other:
            gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active')"
            until(lambda: scalar(other, gone, *abandoned))
        assert_held(world, 0, version=1)  # the server has not gone on with what was interrupted
        answer = world.send(hold)
        assert (answer.new_available_balance, answer.escrow_balance, answer.replayed) == (70, 30, False)
        assert_held(world, 1, version=2)


@levels
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, RuntimeError])
def test_whatever_else_happens_the_connection_is_given_back_and_not_used_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], level: str | None
) -> None:
    with world_on(engine, isolation_level=level) as world, administrator(engine.url) as other:
        before = backends(other)
        request = world.hold_request()

        def interrupted(*arguments: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("points_platform.core.statement._results", interrupted)
            with pytest.raises(error):
                world.send(request)
        assert checked_out(engine) == 0
        answer = world.send(request)
        assert (answer.new_available_balance, answer.escrow_balance) == (70, 30)
        assert not before & backends(other)
        assert_held(world, 1, version=2)


# ── pools and processes ──


def test_threads_that_share_a_small_pool_leak_nothing(engines: Engines) -> None:
    engine = engines(pool_size=2, max_overflow=1)
    with world_on(engine) as world:
        calls: list[Callable[[], Any]] = [partial(world.hold, amount=1) for _ in range(20)]
        calls += [partial(world.hold, amount=1000) for _ in range(20)]
        calls += [partial(world.credit, f"user-{number}") for number in range(20)]
        answers = at_once(*calls)
        assert sum(isinstance(answer, Exception) for answer in answers) == 20
        assert world.wallets.get_user_balance("ana").escrow == 20


def test_a_forked_child_talks_over_connections_of_its_own(engine: Engine) -> None:
    with world_on(engine) as world, administrator(engine.url) as other:
        parents = backends(other)
        request = world.hold_request()

        assert in_a_child(partial(hold_and_ask, world, request)) == 0
        assert parents & backends(other) == parents, "the parent's connections live"
        assert world.service().hold_in_escrow(request).replayed is True
        assert world.hold(amount=1).new_available_balance == 69
        assert parents & backends(other) == parents


def hold_and_ask(world: World, request: Any) -> None:
    assert world.send(request).replayed is False
    assert ask(world.database, "SELECT %(text)s::text") == ("word",)


def in_a_child(work: Callable[[], object]) -> int:
    """Do the work in a forked process; the status it ends with, 0 if it did not raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
