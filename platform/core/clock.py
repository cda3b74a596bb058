"""What time it is. The database says it, since processes disagree: one that is ahead would date a wallet's future.

PostgreSQL's time is told by statements that are sent anyway: a transaction begins with it, and a single statement
returns it. What a single statement is dated by is that time, carried on by the process's steady clock; the statement
itself has it judged by the server, and writes nothing where the two are further apart than ``TOLERANCE``. SQLite is in
the process, and is asked each time.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from .errors import InvalidRequestError
from .values import check_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a statement may take to the server, and what its clock may be set by, without a second try.
TOLERANCE = timedelta(seconds=5)
FOREVER = "Infinity"
RENEWED_S = 60.0
# What is so many microseconds ahead is no late statement, but a server whose clock was set.
SET = TOLERANCE.total_seconds() * 1e6 / 2


def microseconds(time: str) -> str:
    """PostgreSQL's SQL for a time as a number, which no DateStyle makes unreadable; ``at`` is the way back."""
    return f"(1000000 * extract(epoch FROM {time}))::bigint"


def at(microseconds: str | int) -> datetime:
    """The time that ``microseconds`` told."""
    return EPOCH + timedelta(microseconds=int(microseconds))


class _OfThread(threading.local):
    """A database of each thread's own: no other thread can be in the middle of it when the process forks."""

    def __init__(self) -> None:
        self.sqlite = sqlite3.connect(":memory:")


_own = _OfThread()


class Clock(Protocol):
    """What time it is, by whoever decides that."""

    @property
    def tolerance(self) -> str:
        """How many seconds a single statement may be from the server's time, as PostgreSQL takes it."""
        ...

    def now(self) -> datetime | None:
        """The time; ``None`` while nobody has told it."""
        ...

    def told(self, server: int, asked_at: float) -> None:
        """Take notice of the server's time in microseconds, which was asked for at ``asked_at`` of ``steady``."""
        ...

    def dated(self, server: int) -> datetime:
        """The time by this clock when the server's was that."""
        ...


# Seconds of the process that nobody sets, from some beginning; past what freezes Python's time, where there is a way.
steady: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic
)


class ServersClock:
    """PostgreSQL's: what the server has told, and what has passed since.

    A statement takes a while to the server, so what it tells is that much ahead of when it was sent: of all that was
    told in the last minute the least is right. (Cristian, Probabilistic clock synchronization, 1989.)
    """

    tolerance = str(TOLERANCE.total_seconds())

    def __init__(self) -> None:
        # The server's time when the steady clock was 0, in microseconds.
        self._began: float | None = None
        self._told_at = 0.0

    def now(self) -> datetime | None:
        """The server's time, as far as it is known."""
        began = self._began
        return None if began is None else EPOCH + timedelta(microseconds=began + steady() * 1e6)

    def told(self, server: int, asked_at: float) -> None:
        """Go on from there, if it is better than what is known."""
        told, known = server - asked_at * 1e6, self._began
        if known is None or told < known or told > known + SET or asked_at > self._told_at + RENEWED_S:
            self._began, self._told_at = told, asked_at

    def dated(self, server: int) -> datetime:
        """The server's time itself."""
        return at(server)


class SqlitesClock:
    """SQLite's own, which is the machine's: no test that freezes Python's time reaches it. Whole milliseconds."""

    tolerance = FOREVER

    def now(self) -> datetime:
        """The time of the machine."""
        (text,) = _own.sqlite.execute("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')").fetchone()
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    def told(self, server: int, asked_at: float) -> None:
        """Nobody is asked."""

    def dated(self, server: int) -> datetime:
        """The time of the machine."""
        return self.now()


class GivenClock:
    """A caller's own, whatever the server says. Raises ``InvalidRequestError`` for what is no clock."""

    tolerance = FOREVER

    def __init__(self, clock: Callable[[], datetime]) -> None:
        if not callable(clock):
            raise InvalidRequestError(field="clock", value=clock, expected="a function that returns the time")
        self._clock = clock
        self.now()

    def now(self) -> datetime:
        """The time by the caller's clock, which must be aware."""
        at: datetime = check_time("clock", self._clock())
        return at

    def told(self, server: int, asked_at: float) -> None:
        """Whatever the server says."""

    def dated(self, server: int) -> datetime:
        """The time by the caller's clock."""
        return self.now()
