"""Waiting for a lock: as long as it was said, and then the truth about what it was, which may be the caller's own."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from points_platform.core import Database, OptimisticLockError
from points_platform.core.engines import BUSY_TIMEOUT_MS
from points_platform.wallets import WalletConfig
from support.recount import recount
from support.world import World

IMPATIENT = WalletConfig(max_retry_attempts=3, retry_backoff_ms=0)


@contextmanager
def waits(engine: Engine) -> Iterator[list[int]]:
    """How long each transaction that begins is ready to wait, in milliseconds."""
    found: list[int] = []

    def look(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement == "BEGIN IMMEDIATE":
            found.append(connection.connection.dbapi_connection.execute("PRAGMA busy_timeout").fetchone()[0])

    event.listen(engine, "before_cursor_execute", look)
    yield found
    event.remove(engine, "before_cursor_execute", look)


def test_a_session_that_was_forgotten_is_what_the_error_speaks_of(url: str) -> None:
    with Database(url, lock_timeout_ms=1) as database:
        world = World(database, config=IMPATIENT)
        world.credit()
        with Session(database.engine) as session:
            world.send(world.hold_request(), session=session)
            with pytest.raises(OptimisticLockError, match="one of your own, pass its session=") as refused:
                world.hold()
            assert ("the file" if database.is_sqlite else "a row") in str(refused.value)
            assert "somebody else" not in str(refused.value)
            assert refused.value.details == {"attempts": 4}
            session.commit()
        assert world.hold().escrow_balance == 60
        recount(database)


def test_in_a_session_the_lock_is_anothers_and_the_callers_transaction_starts_over(url: str) -> None:
    with Database(url, lock_timeout_ms=1) as database, Database(url) as other:
        world = World(database)
        world.credit()
        if database.is_sqlite:
            event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=1"))
            database.engine.dispose()
        with Session(other.engine) as theirs, Session(database.engine) as session:
            World(other).send(world.hold_request(), session=theirs)
            with pytest.raises(OptimisticLockError, match="roll yours back, and start it over"):
                world.send(world.hold_request(), session=session)


def test_contention_without_a_wait_is_told_as_before(postgresql_url: str) -> None:
    with Database(postgresql_url) as database, Session(database.engine) as session:
        world = World(database)
        world.credit()
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        session.execute(text("SELECT 1 FROM user_wallets"))
        world.hold()
        with pytest.raises(OptimisticLockError, match="somebody else changed the same rows"):
            world.send(world.hold_request(), session=session)


def test_on_sqlite_a_call_waits_for_the_lock_timeout_twice_at_most(sqlite_url: str) -> None:
    with Database(sqlite_url, lock_timeout_ms=7) as database:
        world = World(database, config=IMPATIENT)
        with waits(database.engine) as each:
            world.credit()
            assert each == [7]
        other = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with waits(database.engine) as each, pytest.raises(OptimisticLockError):
            world.hold()
        other.close()
        assert each == [7, 7, 0, 0]
        recount(database)


def test_a_hosts_own_wait_is_given_back_and_a_shorter_one_stands(sqlite_url: str) -> None:
    for own, waited in ((None, 5000), (3, 3), (60_000, 5000)):
        with Database(sqlite_url) as database:
            if own is not None:
                pragma = f"PRAGMA busy_timeout = {own}"
                event.listen(database.engine, "connect", lambda connection, _, to=pragma: connection.execute(to))
            world = World(database)
            with waits(database.engine) as each:
                world.credit()
            assert each == [waited]
            with database.engine.connect() as connection:
                assert connection.scalar(text("PRAGMA busy_timeout")) == (own or BUSY_TIMEOUT_MS)
