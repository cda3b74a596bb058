"""Sealing the ledger's transactions into the log, and following it."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import count

from cachetools import LRUCache
from sqlalchemy import Connection

from ..core.database import Database, Retry
from ..core.errors import InvalidRequestError
from ..core.failures import Stale
from ..core.logs import say
from ..core.sessions import HostSession
from ..core.values import check_count, check_identifier, check_limit, check_part
from . import log_store
from .log import Candidate, Wallet, chained, in_order, watermark
from .models import LogEntry, LogHead, Sealed

log = logging.getLogger(__name__)

SEAL_BATCH = 5000
REMEMBERED_WALLETS = 100_000
SEALING = Retry(attempts=10, backoff=0.05)
MOVING = Retry(attempts=1, backoff=0)  # the retry answers a first row made at the same time; a lost move stays lost


class LedgerLog:
    """The log of the ledger in a ``Database``. Raises ``InvalidRequestError`` for anything else."""

    def __init__(self, database: Database) -> None:
        check_part("database", database, "a Database", fits=isinstance(database, Database))
        self.database = database

    def seal(self, *, sweep: bool = True, progress: Callable[[int], object] | None = None) -> Sealed:
        """Append to the log what the ledger has gained; any number of sealers may run at once.

        A sweep compares the whole ledger with the whole log, so that nothing is missed that committed
        late; without it only what is near the newest sealed transaction is looked at. ``progress`` is
        called with the number of transactions appended so far. What waits for a predecessor that is not
        there (yet) stays unsealed. Raises ``OptimisticLockError``, ``StorageUnavailableError``.
        """
        after = "" if sweep else watermark(self.database.ask(log_store.newest_sealed))
        appended, waiting = 0, list[Candidate]()
        reached: LRUCache[Wallet, int] = LRUCache(REMEMBERED_WALLETS)
        while True:
            batch = self.database.run(partial(_seal_batch, after, waiting, reached), retry=SEALING)
            for each in batch.sealed:
                reached.update(each.versions)
            appended, waiting = appended + len(batch.sealed), batch.waiting
            if progress is not None:
                progress(appended)
            if batch.last is None:
                return Sealed(appended=appended, waiting=len(waiting), head=batch.head)
            after = batch.last

    def head(self, *, session: HostSession = None) -> LogHead:
        """The log's last position and hash; position 0 for an empty log.

        Raises ``InvalidRequestError``, ``StorageUnavailableError``.
        """
        return self.database.ask(log_store.head, session=session)

    def read_log(self, after: int = 0, limit: int = 100, *, session: HostSession = None) -> list[LogEntry]:
        """The sealed transactions after that position, with their entries, in the order of the log.

        Every transaction is in the log once, and each wallet's transactions are in the order of its
        versions; the order of transactions that share no wallet means nothing. Raises
        ``InvalidRequestError``, ``LedgerDamagedError`` where a sealed transaction is missing,
        ``StorageUnavailableError``.
        """
        check_count("after", after)
        check_limit("limit", limit)
        return self.database.ask(partial(log_store.read, after=after, limit=limit), session=session)

    def reader(self, name: str) -> "LogReader":
        """A reader of the log whose position is kept in the database. Raises ``InvalidRequestError``."""
        return LogReader(self, check_identifier("name", name))


class LogReader:
    """Follows the log, and remembers in the database how far it has come."""

    def __init__(self, log: "LedgerLog", name: str) -> None:
        self.database = log.database
        self._log = log
        self._name = name

    @property
    def position(self) -> int:
        """The last position that was moved to, 0 at first. Raises ``StorageUnavailableError``."""
        return self._position(None)

    def _position(self, session: HostSession) -> int:
        return self.database.ask(partial(log_store.reader_position, name=self._name), session=session) or 0

    def read(self, limit: int = 100, *, session: HostSession = None) -> list[LogEntry]:
        """What follows the position; the same again until ``move`` is called. Raises as ``read_log``."""
        return self._log.read_log(self._position(session), limit, session=session)

    def claim(self, *, session: HostSession) -> int:
        """The position, which nobody else can move until the caller's transaction has ended.

        Raises as ``move``.
        """
        seen = self._position(session)
        self.move(seen, seen=seen, session=session)
        return seen

    def move(self, position: int, *, seen: int, session: HostSession = None) -> None:
        """Remember that everything up to ``position`` is done, if the reader still stands at ``seen``.

        In the caller's ``session`` it commits together with what the caller did with the entries, so
        each is acted on exactly once. Raises ``InvalidRequestError``; ``OptimisticLockError`` if another
        process has moved the same reader; ``StorageUnavailableError``.
        """
        check_count("seen", seen)
        if check_count("position", position) < seen:
            raise InvalidRequestError(field="position", value=position, expected="not before the one seen")
        self.database.run(partial(self._move, position, seen), retry=MOVING, session=session)

    def _move(self, position: int, seen: int, connection: Connection, locked: bool, at: datetime) -> None:
        stands_at = log_store.reader_position(connection, self._name)
        if (stands_at or 0) != seen or not log_store.move_reader(
            connection, self._name, seen=stands_at, position=position, at=at
        ):
            raise Stale


class Sealer:
    """A thread that seals what the ledger gains; any number of them may run, in any processes.

    Every ``interval`` seconds it takes what is near the end of the log, and each ``sweep_every`` rounds
    it sweeps. What sealing raises is logged, and tried again in the next round. A context manager.
    Raises ``InvalidRequestError``.
    """

    def __init__(self, log: LedgerLog, *, interval: float = 1.0, sweep_every: int = 600) -> None:
        check_part("log", log, "a LedgerService", fits=isinstance(log, LedgerLog))
        if not (isinstance(interval, int | float) and 0 < interval <= threading.TIMEOUT_MAX):
            expected = f"a number of seconds above 0, at most {threading.TIMEOUT_MAX:.0f}"
            raise InvalidRequestError(field="interval", value=interval, expected=expected)
        if type(sweep_every) is not int or sweep_every < 1:
            raise InvalidRequestError(field="sweep_every", value=sweep_every, expected="a whole number from 1")
        self._log = log
        self._interval = interval
        self._sweep_every = sweep_every
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-sealer", daemon=True)

    def start(self) -> None:
        """Start sealing, with a sweep first."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the batch at hand, and wait for that."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> "Sealer":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _run(self) -> None:
        for number in count():
            try:
                self._log.seal(sweep=number % self._sweep_every == 0)
            except Exception:
                say(log, logging.WARNING, "sealing failed; it is tried again", exc_info=True)
            if self._stopping.wait(self._interval):
                return


@dataclass(frozen=True, kw_only=True)
class _Batch:
    sealed: list[Candidate]
    waiting: list[Candidate]
    last: str | None
    head: LogHead


def _seal_batch(
    after: str,
    waiting: list[Candidate],
    reached: Mapping[Wallet, int],
    connection: Connection,
    locked: bool,
    at: datetime,
) -> _Batch:
    head = log_store.head(connection, lock=locked)
    found = log_store.unsealed(connection, after, SEAL_BATCH)
    candidates = [*log_store.still_unsealed(connection, waiting), *found]
    ready = in_order(candidates, partial(_sealed, connection, reached))
    rows, last_hash = [], head.hash
    for each in ready:
        last_hash = chained(last_hash, each.digest)
        rows.append((each.transaction_id, last_hash))
    if rows:
        log_store.append(connection, head.position, rows)
    done = {each.transaction_id for each in ready}
    return _Batch(
        sealed=ready,
        waiting=[each for each in candidates if each.transaction_id not in done],
        last=found[-1].transaction_id if len(found) == SEAL_BATCH else None,
        head=LogHead(position=head.position + len(rows), hash=last_hash),
    )


def _sealed(connection: Connection, reached: Mapping[Wallet, int], wanted: dict[Wallet, int]) -> set[Wallet]:
    """Which wallets have that version in the log; the log only grows, so what was seen there is there."""
    unknown = {wallet: version for wallet, version in wanted.items() if reached.get(wallet, 0) < version}
    return (wanted.keys() - unknown.keys()) | log_store.sealed_versions(connection, unknown)
