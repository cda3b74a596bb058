"""A caller's session: what may be joined, which database it leads to, and what follows the caller's commit."""

import logging
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from ..migrations import VERSION_TABLE
from .errors import InvalidRequestError
from .logs import say
from .threads import beside_the_loop, threads_of

T = TypeVar("T")
HostSession = Session | scoped_session[Any] | None

log = logging.getLogger(__name__)

# Drivers of PostgreSQL whose errors carry the SQLSTATE by which everything is decided.
DRIVERS = {"psycopg", "asyncpg"}
PLACE = "points_platform_place"
# Names and addresses have aliases, and rows go with a dump or a template; what the server tells here does not.
MAY_ASK = text("SELECT coalesce(has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE'), false)")
WHERE = text(
    "SELECT (SELECT system_identifier FROM pg_control_system()), "
    "(SELECT CAST(oid AS bigint) FROM pg_database WHERE datname = current_database()), "
    "CAST(CAST(to_regclass(CAST(:table AS text)) AS oid) AS bigint)"
)


class Place(NamedTuple):
    """Where a connection of PostgreSQL leads to: which server, database, and tables (``None`` if it finds none)."""

    server: int
    database: int
    tables: int | None


class Whereabouts:
    """Whether connections of other engines lead to the same tables; asked once for each connection."""

    def __init__(
        self,
        engine: Engine,
        ask: Callable[[Callable[[Connection], Place | None]], Place | None],
        schema: str | None,
    ) -> None:
        self._engine = engine
        self._ask = ask
        self._table = VERSION_TABLE if schema is None else f'"{schema}".{VERSION_TABLE}'
        self._mine: Place | None = None

    def find(self, *, again: bool = False) -> Place | None:
        """Where the database itself is, ``None`` if its role may not know. Raises ``StorageUnavailableError``."""
        if self._mine is None or again:
            self._mine = self._ask(self._place_of)
        return self._mine

    def check(self, connection: Connection) -> None:
        """Raises ``InvalidRequestError`` where the connection leads somewhere else, or that is not to be told."""
        # Once more, since a server may have been exchanged, or tables made anew.
        for again in (False, True):
            mine = beside_the_loop(connection, self._engine, partial(self.find, again=again))
            if mine is None:
                break
            if again or PLACE not in connection.info:
                connection.info[PLACE] = self._place_of(connection)
            if connection.info[PLACE] == mine:
                return
        raise elsewhere(connection.engine)

    def _place_of(self, connection: Connection) -> Place | None:
        if not connection.scalar(MAY_ASK):
            return None
        return Place(*connection.execute(WHERE, {"table": self._table}).one())


def elsewhere(engine: Engine) -> InvalidRequestError:
    """The refusal of a session that is bound to another database, or may be."""
    expected = "bound to the engine of this Database, or on PostgreSQL to one that certainly leads to the same tables"
    return InvalidRequestError(field="session", value=str(engine), expected=expected)


def session_of(session: object) -> Session:
    """The session itself. Raises ``InvalidRequestError`` for whatever else was given, and one that cannot be joined."""
    given = session() if isinstance(session, scoped_session) else session
    if not isinstance(given, Session):
        kind = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        expected = "a Session or scoped_session of SQLAlchemy; an AsyncSession goes to points_platform.aio.within"
        raise InvalidRequestError(field="session", value=kind, expected=expected)
    bind = bind_of(given)
    if bind is not None and bind.dialect.name == "postgresql" and bind.dialect.driver not in DRIVERS:
        expected = f"one whose driver is {' or '.join(sorted(DRIVERS, reverse=True))}"
        raise InvalidRequestError(field="session", value=f"a session of {bind.dialect.driver}", expected=expected)
    return given


def bind_of(session: Session) -> Engine | None:
    """The engine that a session is bound to, ``None`` if that is not to be told without using it."""
    try:
        return session.get_bind().engine
    except SQLAlchemyError:
        return None


def after_commit(session: Session, key: object, item: T, deliver: Callable[[list[T]], None]) -> None:
    """Call ``deliver`` with the items collected under ``key`` once the session's root transaction has committed.

    Nothing is delivered after a rollback of the root. What a rolled-back savepoint took with it is not
    known here: the receiver must read afresh what there is.
    """
    pending: dict[object, tuple[list[T], Callable[[list[T]], None]]] | None = session.info.get(after_commit)
    if pending is None:
        pending = session.info[after_commit] = {}
        _listen_for_the_end(session, pending)
    pending.setdefault(key, ([], deliver))[0].append(item)


def _listen_for_the_end(session: Session, pending: dict[object, Any]) -> None:
    committed: list[Any] = []

    # SQLAlchemy fires after_commit for released savepoints too, and before the connection is back in the pool.
    @event.listens_for(session, "after_commit")
    def mark(session: Session) -> None:
        if not session.in_nested_transaction():
            committed.extend(pending.values())

    @event.listens_for(session, "after_transaction_end")
    def end(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            deliveries = committed.copy()
            committed.clear()
            pending.clear()
            _deliver_all(bind_of(session), deliveries)


def _deliver_all(engine: Engine | None, deliveries: Sequence[Any]) -> None:
    """On the thread of the commit, but of a loop's: an asynchronous session is committed on that."""
    if engine is None or not engine.dialect.is_async:
        for items, deliver in deliveries:
            _deliver(deliver, items)
    elif deliveries:
        threads_of(engine).deliveries.submit(copy_context().run, _deliver_all, None, deliveries)


def _deliver(deliver: Callable[[list[T]], None], items: list[T]) -> None:
    try:
        deliver(items)
    except Exception:  # the caller's commit stands, and must not fail
        say(log, logging.WARNING, "a delivery after a commit failed", exc_info=True, items=items)
