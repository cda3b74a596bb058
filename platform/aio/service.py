"""The services for those who await: every method by its own name and types, and nothing that blocks the loop.

There is no second set of methods. ``await call(wallets.hold_in_escrow, request)`` is what
``wallets.hold_in_escrow(request)`` is, with the types of its arguments and of its answer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable, iscoroutinefunction, signature
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..core.database import Database
from ..core.errors import InvalidRequestError
from ..core.logs import say
from ..core.threads import in_thread, threads_of
from ..events.models import WalletEvent

if TYPE_CHECKING:  # importing it needs greenlet, which only those have who use it
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

P = ParamSpec("P")
T = TypeVar("T")
Event = TypeVar("Event", bound=WalletEvent)

log = logging.getLogger(__name__)


async def call(method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``method(*args, **kwargs)`` answers, carried out in a thread.

    At most as many of a ``Database`` run at once as its engine has connections; others wait without a thread. Receivers
    of events run in that thread, after the commit and before the answer. A call that is cancelled while it runs goes
    on: like after a lost connection, sending the same request again tells its outcome. Raises ``InvalidRequestError``
    for what is no plain callable, and what the method raises.
    """
    _check_plain("method", method)
    database = _database_of(method, *args)
    executor = None if database is None else threads_of(database.engine).calls
    return await in_thread(executor, lambda: method(*args, **kwargs))


async def within(
    session: "AsyncSession | async_scoped_session[Any]", method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """What ``method(*args, **kwargs, session=…)`` answers in the transaction of an ``AsyncSession``.

    Nothing is committed. After the caller's commit the events are read and published in a thread of their own, one
    transaction after the other; the commit does not wait for them. Raises ``InvalidRequestError`` for what is no
    ``AsyncSession`` of PostgreSQL, and for a method that takes no session; and what the method raises.
    """
    _check_plain("method", method)
    if "session" not in signature(method).parameters or "session" in kwargs:
        raise InvalidRequestError(field="method", value=_name(method), expected="one that is to be given the session=")
    options: dict[str, Any] = dict(kwargs)
    return await _asynchronous(session).run_sync(lambda joined: method(*args, **options, session=joined))  # type: ignore[arg-type]


def on_loop(receiver: Callable[[Event], Awaitable[object] | object]) -> Callable[[Event], None]:
    """A receiver for ``EventBus.subscribe`` that hands each event over to the loop that runs now.

    There ``receiver(event)`` is called, and awaited where it is to be; the publisher does not wait for it. Events come
    in the order in which they were handed over. What the receiver raises is logged with the event's id. To unsubscribe,
    keep what this returns.
    """
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()

    async def receive(event: Event) -> None:
        try:
            answer = receiver(event)
            if isawaitable(answer):
                await answer
        except Exception:
            told = {"event_id": event.event_id, "event_type": event.event_type, "receiver": _name(receiver)}
            say(log, logging.WARNING, "a receiver failed on event %s", event.event_id, exc_info=True, **told)

    def start(event: Event) -> None:
        task = loop.create_task(receive(event))
        running.add(task)
        task.add_done_callback(running.discard)

    def hand_over(event: Event) -> None:
        loop.call_soon_threadsafe(start, event)

    return hand_over


def _asynchronous(session: object) -> "AsyncSession":
    try:
        from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    except ImportError:  # without greenlet there is none
        given = None
    else:
        given = session() if isinstance(session, async_scoped_session) else session
        if isinstance(given, AsyncSession):
            return given
    raise InvalidRequestError(field="session", value=f"a {type(session).__name__}", expected="an AsyncSession")


def _check_plain(field: str, method: object) -> None:
    if not callable(method) or iscoroutinefunction(method):
        expected = "a plain method, like wallets.hold_in_escrow, with its arguments after it"
        raise InvalidRequestError(field=field, value=_name(method), expected=expected)


def _database_of(*given: object) -> Database | None:
    """The database of a service's method, or the one that is handed to a function."""
    for each in (getattr(given[0], "__self__", None), *given[1:]):
        found = each if isinstance(each, Database) else getattr(each, "database", None)
        if isinstance(found, Database):
            return found
    return None


def _name(method: object) -> str:
    return str(getattr(method, "__qualname__", None) or f"a {type(method).__name__}")
