"""A worker process: some clients on one ``WalletService``, with settings, a clock and receivers of its own."""

import logging
import os
import random
import resource
import signal
import threading
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import freezegun
from sqlalchemy import create_engine, event, make_url

from points_platform.core import Database
from points_platform.events import EVENT_TYPES, EventBus
from points_platform.wallets import WalletConfig, WalletService

from .client import Client, current, next_number, note, unfinished, wallets_on
from .journal import CALM, RECOVERED, STOP, Journal, clock, lines
from .plan import Plan
from .planted import plant

BROKEN = 70
SMALL_DISK = 2 << 20
BURST_EVERY = 0.12
LATEST_BURST = 20


@dataclass(frozen=True, kw_only=True)
class Round:
    """What all workers of a round share. ``url`` is the way to the database, ``proxy`` the dangerous one."""

    folder: Path
    url: str
    proxy: str | None
    seed: str
    clients: tuple[tuple[str, ...], ...]
    isolation_level: str | None
    began: float
    planted: str | None = None

    @property
    def calm(self) -> bool:
        """Whether the faults are over."""
        return (self.folder / CALM).exists()

    @property
    def over(self) -> bool:
        """Whether workers are to end."""
        return (self.folder / STOP).exists()

    def note_recovery(self, client: Client) -> None:
        """Tell the coordinator once the client has done something new after the last fault."""
        if self.calm and client.succeeded > float((self.folder / CALM).read_text()):
            (self.folder / f"{RECOVERED}{client.name}").touch()

    def waiting(self) -> list[str]:
        """Who has not recovered yet."""
        return [client for client in self.everybody() if not (self.folder / f"{RECOVERED}{client}").exists()]

    def burst(self) -> int:
        """The burst whose time it is."""
        return int((clock() - self.began) / BURST_EVERY)

    def plan(self) -> Plan:
        """What everybody does."""
        return Plan(self.seed, self.everybody())

    def everybody(self) -> list[str]:
        """All clients."""
        return [client for clients in self.clients for client in clients]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one life of a worker is; drawn anew after each death."""

    through_proxy: bool
    isolation_level: str | None
    single_statement: bool
    lock_timeout_ms: int
    statement_timeout_ms: int | None
    busy_timeout_ms: int | None
    max_retry_attempts: int
    cache_size: int
    clock_shift_s: int
    small_disk: bool

    @classmethod
    def draw(cls, round_: Round, worker: int, incarnation: int) -> "Settings":
        chance = random.Random(f"{round_.seed} settings {worker} {incarnation}")
        sqlite = round_.url.startswith("sqlite")
        return cls(
            through_proxy=round_.proxy is not None and chance.random() < 0.6,
            isolation_level=None
            if sqlite
            else round_.isolation_level
            if round_.isolation_level != "mixed"
            else chance.choice((None, None, "REPEATABLE READ", "SERIALIZABLE")),
            single_statement=chance.random() < 0.7,
            lock_timeout_ms=chance.choice((50, 500, 5000)),
            statement_timeout_ms=chance.choice((20, 100)) if not sqlite and chance.random() < 0.15 else None,
            busy_timeout_ms=20 if sqlite and chance.random() < 0.3 else None,
            max_retry_attempts=chance.choice((0, 3, 3, 5)),
            cache_size=chance.choice((0, 1000)),
            clock_shift_s=chance.randint(-600, 600) if chance.random() < 0.25 else 0,
            small_disk=sqlite and chance.random() < 0.2,
        )


def main(round_: Round, worker: int, incarnation: int) -> None:
    """What a worker process does until it is told to stop, or killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator ends its workers
    logging.getLogger("points_platform").addHandler(logging.NullHandler())  # bad receivers are in the journal
    settings = Settings.draw(round_, worker, incarnation)
    with _shifted(settings.clock_shift_s), _database(round_, settings) as database:
        if round_.planted:
            plant(round_.planted, round_.folder)
        wallets = wallets_on(
            database,
            events=_bus(round_, random.Random(f"{round_.seed} receivers {worker} {incarnation}")),
            config=WalletConfig(
                max_retry_attempts=settings.max_retry_attempts, idempotency_cache_size=settings.cache_size
            ),
        )
        threads = [
            threading.Thread(target=_live_or_die, args=(round_, name, database, wallets, settings, incarnation))
            for name in round_.clients[worker]
        ]
        for thread in threads:
            thread.start()
        if settings.small_disk:
            _disk(SMALL_DISK)
            while not round_.calm and any(thread.is_alive() for thread in threads):
                time.sleep(0.05)
            _disk(None)
        for thread in threads:
            thread.join()


def _live_or_die(round_: Round, *args: Any) -> None:
    """A mistake in the torture itself must not pass for a quiet client."""
    try:
        _live(round_, *args)
    except BaseException:
        (round_.folder / f"broken_{os.getpid()}").write_text(traceback.format_exc())
        os._exit(BROKEN)


def _live(
    round_: Round, name: str, database: Database, wallets: WalletService, settings: Settings, incarnation: int
) -> None:
    before = list(lines(round_.folder, name))
    journal = Journal(round_.folder, name)
    journal.write(begin=incarnation, settings=asdict(settings))
    plan = round_.plan()
    client = Client(name, plan, journal, database, wallets, incarnation, settings.isolation_level)
    last = unfinished(before)
    if last is not None and incarnation % 2:
        client.recover(last)
    steps = plan.stream(name, next_number(before))
    done, parent = round_.burst(), os.getppid()
    while not round_.over and os.getppid() == parent:
        due = round_.burst()
        # Late ones too, as long as the others may still be at it.
        for burst in range(max(done, due - LATEST_BURST) + 1, due + 1):
            for step in plan.burst(name, burst) if name in plan.members(burst) else []:
                client.carry_out(step)
        done = due
        client.carry_out(next(steps))
        round_.note_recovery(client)


def _database(round_: Round, settings: Settings) -> Database:
    if settings.busy_timeout_ms is not None:
        engine = create_engine(round_.url)
        database = Database(engine)
        pragma = f"PRAGMA busy_timeout = {settings.busy_timeout_ms}"
        # After the module's own listener, which sets a longer one.
        event.listen(engine, "connect", lambda connection, record: connection.execute(pragma))
        return database
    url = make_url(round_.proxy if settings.through_proxy and round_.proxy else round_.url)
    if settings.statement_timeout_ms is not None:
        url = url.update_query_dict({"options": f"-c statement_timeout={settings.statement_timeout_ms}"})
    return Database(
        url,
        lock_timeout_ms=settings.lock_timeout_ms,
        single_statement=settings.single_statement,
        isolation_level=settings.isolation_level,
    )


def _shifted(seconds: int) -> AbstractContextManager[Any]:
    """A clock that goes wrong by this much, for everything but the driver's and the pool's deadlines."""
    if not seconds:
        return nullcontext()
    freezegun.configure(extend_ignore_list=["psycopg", "sqlalchemy", "torture", "threading"])
    frozen: AbstractContextManager[Any] = freezegun.freeze_time(
        datetime.now(UTC) + timedelta(seconds=seconds), tick=True
    )
    return frozen


def _disk(limit: int | None) -> None:
    """No file may grow beyond this many bytes: what a full disk looks like to SQLite."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))


def _bus(round_: Round, chance: random.Random) -> EventBus:
    """Receivers: a bad one, one that keeps the journal, and another bad one."""
    bus = EventBus()
    bad = [partial(_misbehave, round_, chance), partial(_misbehave, round_, chance)]
    for event_type in EVENT_TYPES:
        bus.subscribe(event_type, bad[0])
        bus.subscribe(event_type, note)
        bus.subscribe(event_type, bad[1])
    return bus


class ReceiverError(Exception):
    """What a bad receiver raises."""


def _misbehave(round_: Round, chance: random.Random, event: Any) -> None:
    """Raise, hang for a while, or kill the process; mostly nothing."""
    if round_.calm or current.client is None:
        return
    drawn = chance.random()
    if drawn < 0.0005:
        current.client.journal.write(receiver="killed")
        os.kill(os.getpid(), signal.SIGKILL)
    if drawn < 0.005:
        current.client.journal.write(receiver="hung")
        time.sleep(chance.uniform(0.02, 0.5))
    elif drawn < 0.05:
        current.client.journal.write(receiver="raised")
        raise ReceiverError
