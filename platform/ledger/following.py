"""Following the log: everything that happened is acted on once, in its order, however often somebody crashes."""

from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction

from sqlalchemy.orm import Session

from ..core.database import Retry
from ..core.errors import InvalidRequestError, OptimisticLockError
from ..core.values import check_limit, check_part
from .models import LogEntry
from .sealing import LedgerLog, LogReader

Handle = Callable[[LogEntry, Session], object]

MEETING = Retry(attempts=10, backoff=0.05)


def follow(
    log: LedgerLog,
    name: str,
    handle: Handle,
    *,
    sessions: Callable[[], Session] | None = None,
    limit: int = 100,
    sweep: bool = False,
) -> int:
    """Call ``handle(entry, session)`` for each transaction that is new to the reader of that name.

    Seals first (``sweep`` as for ``seal``), then takes at most ``limit`` entries at a time, in the order of the log:
    the reader is moved in the transaction of the session in which they were handled, and that is committed. So
    whatever ``handle`` does in its session, operations of the wallets with ``session=`` too, is done exactly once for
    each entry: after a crash, and with any number of followers of one name, of which one works and the others wait.
    What it does elsewhere, like sending a mail, can happen again. What ``handle`` raises undoes the entries at hand,
    which the next call handles again, and leaves ``follow``; contention is tried again. ``sessions`` makes the
    sessions, by default SQLAlchemy's own. Returns how many entries there were. Raises ``InvalidRequestError``, what
    ``handle`` raises, and what ``seal`` and ``read_log`` raise.
    """
    check_part("log", log, "a LedgerService", fits=isinstance(log, LedgerLog))
    reader = log.reader(name)
    _check_callables(handle, sessions)
    check_limit("limit", limit)
    log.seal(sweep=sweep)
    number, met = 0, 0
    while reader.read(1):
        MEETING.pause(met)
        try:
            number += log.database.in_session(partial(_act, log, reader, handle, limit), sessions=sessions)
            met = 0
        except OptimisticLockError:
            if met == MEETING.attempts:
                raise
            met += 1
    return number


def _act(log: LedgerLog, reader: LogReader, handle: Handle, limit: int, session: Session) -> int:
    """The next entries, under the lock of the reader's row: who else follows waits for it before handling anything."""
    seen = reader.claim(session=session)
    entries = log.read_log(seen, limit, session=session)
    for entry in entries:
        handle(entry, session)
    if entries:
        reader.move(entries[-1].position, seen=seen, session=session)
    return len(entries)


def _check_callables(handle: object, sessions: object) -> None:
    if not callable(handle) or iscoroutinefunction(handle):
        kind = f"a {type(handle).__name__}"
        raise InvalidRequestError(field="handle", value=kind, expected="a plain callable: handle(entry, session)")
    if sessions is not None and not callable(sessions):
        expected = "a callable that makes a Session, like sessionmaker(engine), or None"
        raise InvalidRequestError(field="sessions", value=f"a {type(sessions).__name__}", expected=expected)
