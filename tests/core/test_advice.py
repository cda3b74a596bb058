"""What to do about a database that did not do its work: advice that fits, and `retryable` only where it helps."""

import sqlite3
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import (
    ArgumentError,
    DisconnectionError,
    IntegrityError,
    PendingRollbackError,
    ResourceClosedError,
    UnboundExecutionError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from points_platform.core import Database, StorageUnavailableError, WalletError
from points_platform.core.errors import SEND_AGAIN, Advice
from points_platform.core.failures import (
    BIND,
    CREATE_SCHEMA,
    GRANT,
    MEND,
    REPEAT,
    ROLL_BACK,
    START_OVER,
    WRITABLE,
    Stale,
    translate,
    translated,
)
from points_platform.wallets import EscrowHeld
from support.connections import end_connection
from support.world import World


def of_sqlite(code: int, text: str = "what it said") -> Exception:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return IntegrityError("SELECT 1", {}, error)


def of_postgresql(sqlstate: str) -> Exception:
    error = psycopg.errors.lookup(sqlstate)("what it said")
    return IntegrityError("SELECT 1", {}, error)


AGAIN = Advice("whatever fits where it is asked")
KNOWN: list[tuple[Exception, Advice]] = [
    (of_postgresql("08006"), AGAIN),
    (of_postgresql("57P01"), AGAIN),
    (of_postgresql("57014"), AGAIN),
    (of_postgresql("53100"), AGAIN),
    (of_postgresql("58030"), AGAIN),
    (of_postgresql("XX000"), AGAIN),
    (psycopg.OperationalError("no server answers"), AGAIN),
    (PoolTimeoutError("all 32 are taken"), AGAIN),
    (DisconnectionError("it belongs to the parent"), AGAIN),
    (of_sqlite(sqlite3.SQLITE_FULL), AGAIN),
    (of_sqlite(sqlite3.SQLITE_IOERR_WRITE), AGAIN),
    (of_postgresql("42P01"), CREATE_SCHEMA),
    (of_postgresql("42703"), CREATE_SCHEMA),
    (of_postgresql("3F000"), CREATE_SCHEMA),
    (of_sqlite(sqlite3.SQLITE_ERROR, "no such table: user_wallets"), CREATE_SCHEMA),
    (of_sqlite(sqlite3.SQLITE_ERROR, "no such column: paying"), CREATE_SCHEMA),
    (of_postgresql("42501"), GRANT),
    (of_postgresql("25006"), WRITABLE),
    (of_sqlite(sqlite3.SQLITE_READONLY), WRITABLE),
    (of_sqlite(sqlite3.SQLITE_READONLY_DIRECTORY), WRITABLE),
    (of_postgresql("25P02"), ROLL_BACK),
    (PendingRollbackError("a flush has failed"), ROLL_BACK),
    (UnboundExecutionError("bound to nothing"), BIND),
    (of_postgresql("42601"), MEND),
    (of_postgresql("23514"), MEND),
    (of_postgresql("22P05"), MEND),
    (of_postgresql("0A000"), MEND),
    (of_postgresql("XX001"), MEND),
    (of_sqlite(sqlite3.SQLITE_ERROR, "near SELEC: syntax error"), MEND),
    (of_sqlite(sqlite3.SQLITE_CONSTRAINT_CHECK), MEND),
    (of_sqlite(sqlite3.SQLITE_CORRUPT), MEND),
    (of_sqlite(sqlite3.SQLITE_NOTADB), MEND),
    (ArgumentError("no such option"), MEND),
    (ResourceClosedError("this connection is closed"), MEND),
    (NotImplementedError("times in another DateStyle"), MEND),
    (UnicodeEncodeError("latin-1", "\u20ac", 0, 1, "it has no such letter"), MEND),
]


@pytest.mark.parametrize(("error", "advice"), KNOWN, ids=lambda value: type(getattr(value, "orig", value)).__name__)
def test_each_kind_of_failure_has_its_advice_and_is_retryable_where_that_can_help(
    error: Exception, advice: Advice
) -> None:
    told = translate(error, again=AGAIN)
    assert isinstance(told, StorageUnavailableError)
    assert str(told).endswith(f"; {advice.text.format_map(told.details)}")
    assert told.retryable == advice.retryable == (advice is AGAIN)
    assert set(told.details) == ({"cause", "server"} if advice in (CREATE_SCHEMA, GRANT) else {"cause"})


def test_no_advice_is_to_take_a_new_key() -> None:
    every = [SEND_AGAIN, REPEAT, START_OVER, ROLL_BACK, BIND, CREATE_SCHEMA, GRANT, WRITABLE, MEND]
    assert not any("new key" in advice.text or "another key" in advice.text for advice in every)
    assert [advice for advice in every if advice.retryable] == [SEND_AGAIN, REPEAT, START_OVER]


def test_contention_is_no_failure_of_the_storage_whatever_fits() -> None:
    for error in (Stale(), of_postgresql("40001"), of_sqlite(sqlite3.SQLITE_BUSY)):
        assert translate(error, attempts=3, again=AGAIN).details == {"attempts": 3}


def test_what_the_server_says_of_values_is_not_repeated() -> None:
    error = psycopg.errors.UndefinedTable("relation does not exist\nDETAIL: (secret)", info=None)
    assert "secret" in str(translate(error)), "without fields there is only its text"
    with pytest.raises(WalletError) as failure, translated():
        raise of_postgresql("23514")
    assert "what it said" not in str(failure.value)


def failed(call: Callable[[], object]) -> StorageUnavailableError:
    with pytest.raises(StorageUnavailableError) as failure:
        call()
    return failure.value


def test_a_session_that_is_bound_to_nothing_says_how_to_bind_it(world: World) -> None:
    with Session() as session:
        failure = failed(lambda: world.send(world.credit_request(), session=session))
    assert (failure.details, failure.retryable) == ({"cause": "UnboundExecutionError"}, False)
    assert "Session(database.engine)" in str(failure)


def test_an_aborted_transaction_is_to_be_rolled_back_first(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, Session(database.engine) as session:
        world, request = World(database), None
        request = world.credit_request()
        with pytest.raises(Exception, match="division"):
            session.execute(text("SELECT 1 / 0"))
        failure = failed(lambda: world.send(request, session=session))
        assert (failure.details, failure.retryable) == ({"cause": "25P02"}, False)
        assert "roll it back" in str(failure)
        session.rollback()
        assert not world.send(request, session=session).replayed


@pytest.fixture
def reading(world: World) -> dict[str, Callable[[], Any]]:
    held = (world.credit(), world.hold())[1]
    return {
        "balance": lambda: world.wallets.get_user_balance("ana"),
        "item": lambda: world.wallets.get_escrow(held.escrow_id),
        "items": lambda: world.wallets.list_escrows(user_id="ana"),
        "transaction": lambda: world.ledger.transaction(held.transaction_id),
        "statement": lambda: world.ledger.entries("user:ana", "points"),
    }


def test_a_read_that_failed_can_simply_be_repeated(world: World, reading: dict[str, Callable[[], Any]]) -> None:
    def lost(*given: Any) -> None:
        raise of_postgresql("57P01")

    event.listen(world.database.engine, "before_cursor_execute", lost)
    failures = [failed(call) for call in reading.values()]
    event.remove(world.database.engine, "before_cursor_execute", lost)
    assert {str(each) for each in failures} == {
        "the database did not complete the work (57P01); it can simply be repeated"
    }
    assert all(each.retryable for each in failures)
    assert all(call() for call in reading.values())


def test_a_connection_lost_in_the_callers_transaction_means_to_start_that_over(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, Session(database.engine) as session:
        world = World(database)
        request = world.credit_request()
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        end_connection(database.engine.url, pid)
        failure = failed(lambda: world.send(request, session=session))
        assert (failure.details, failure.retryable) == ({"cause": "57P01"}, True)
        assert str(failure).endswith(START_OVER.text), "before the schema is known"
        session.rollback()
        assert not world.send(request, session=session).replayed
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        end_connection(database.engine.url, pid)
        failure = failed(lambda: world.send(request, session=session))
        assert str(failure).endswith(START_OVER.text)
        session.rollback()
        assert not world.send(request, session=session).replayed


def test_a_pool_that_is_exhausted_says_to_do_the_same_again(url: str) -> None:
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    world = World(Database(engine))
    world.credit()
    seen: list[EscrowHeld] = []
    world.bus.subscribe(EscrowHeld, seen.append)
    request = world.hold_request()
    with engine.connect():
        failure = failed(lambda: world.send(request))
    assert (failure.details, failure.retryable) == ({"cause": "TimeoutError"}, True)
    assert str(failure).endswith(SEND_AGAIN.text)
    answer = world.send(request)
    assert [event.event_id for event in seen] == [answer.transaction_id]
    engine.dispose()
