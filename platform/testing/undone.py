"""A ``Database`` all of whose transactions are parts of one that is never committed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from ..core.database import AtOnce, Attempt, Database, Retry, rolled_back
from ..core.errors import InvalidRequestError
from ..core.sessions import HostSession

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

T = TypeVar("T")


class UndoneDatabase(Database):
    """A ``Database`` inside the open transaction of a connection: what commits elsewhere is a savepoint here.

    So operations and reads with and without ``session=`` see each other and what is not committed, events are
    delivered, and when the connection's transaction is rolled back nothing has happened. Nothing is answered from
    memory, since what is remembered may have been undone. ``session()`` and sessions that are made as it makes them
    (``join_transaction_mode="create_savepoint"``) belong to it, and those of ``async_sessions()``; those of the engine
    do not, nor do those of an asynchronous engine.
    Threads take turns. Everything is decided as in a caller's session, so contention is told and not tried again.
    """

    def __init__(
        self, connection: Connection, *, schema: str | None = None, clock: Callable[[], datetime] | None = None
    ) -> None:
        super().__init__(connection.engine, schema=schema, clock=clock)
        self.connection = connection
        self._turn = threading.RLock()

    def session(self) -> Session:
        """A new session, whose commit is a savepoint's and whose rollback undoes what it has done."""
        return Session(self.connection, join_transaction_mode="create_savepoint")

    def async_sessions(self, kind: "type[AsyncSession] | None" = None) -> "async_sessionmaker[Any]":
        """Makes asynchronous sessions of that kind inside the transaction, as ``session()`` makes plain ones.

        They take the place of those of an asynchronous engine, on the connection that everything here shares: so they
        hold up the loop, and have neither ``stream()`` nor ``connection()``. It needs SQLAlchemy's ``asyncio`` extra.
        """
        from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker  # without greenlet there is none

        made = AsyncSession if kind is None else kind

        def joined(**options: Any) -> Session:
            inside = {"bind": self.connection, "join_transaction_mode": "create_savepoint"}
            return made.sync_session_class(**options | inside)

        return async_sessionmaker(class_=made, sync_session_class=joined)

    def run(
        self,
        attempt: Attempt[T],
        *,
        retry: Retry,
        session: HostSession = None,
        at_once: AtOnce[T] | None = None,
    ) -> T:
        """The same inside the transaction. Raises what ``Database.run`` raises in a caller's session."""
        joined = partial(super().run, attempt, retry=retry)
        with self._turn:
            return self.in_session(lambda own: joined(session=own)) if session is None else joined(session=session)

    def ask(self, question: Callable[[Connection], T], *, session: HostSession = None) -> T:
        """The same inside the transaction. Raises what ``Database.ask`` raises in a caller's session."""
        joined = partial(super().ask, question)
        with self._turn:
            return self.in_session(lambda own: joined(session=own)) if session is None else joined(session=session)

    def remembers_for(self, session: HostSession) -> bool:
        """Never: what was done may have been undone since."""
        return False

    def create_schema(self) -> None:
        """Only look whether it is there. Raises ``SchemaVersionError``, ``StorageUnavailableError``."""
        self.ask(lambda connection: None)

    @contextmanager
    def snapshot(self, of: Connection | None = None) -> Iterator[Connection]:
        """The connection itself. Raises ``InvalidRequestError`` for a second one beside it, as ``verify`` needs."""
        if of is not None:
            expected = "one whose rows are committed; books(database) tells of those that are not"
            raise InvalidRequestError(field="database", value="a transaction that is undone", expected=expected)
        with super().snapshot() as connection:
            yield connection

    @contextmanager
    def _connect(self, isolation_level: str | None, **options: Any) -> Iterator[Connection]:
        with self._turn, self._home.lent(self.connection):
            yield self.connection


@contextmanager
def undone(
    engine: Engine, *, schema: str | None = None, clock: Callable[[], datetime] | None = None
) -> Iterator[UndoneDatabase]:
    """A ``Database`` for a block, whose tables are there already; at its end nothing of the block has happened.

    For what is no pytest. Raises ``InvalidRequestError`` for an engine or setting that cannot serve, and where the
    block has ended the transaction itself, so that its rows stay.
    """
    Database(engine, schema=schema)  # prepares the engine, before the connection is made
    with rolled_back(engine) as connection:
        yield UndoneDatabase(connection, schema=schema, clock=clock)
