"""What befalls the workers and the database from outside, at random, each fault logged with its time."""

import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from .journal import clock
from .servers import PostgreSQL

# Seconds between two faults, on average.
EVERY = 0.7
LONGEST_PAUSE = 0.8
ON_ALL = {"kill_worker": 5, "pause_worker": 1}
ON_POSTGRESQL = {"terminate_connections": 4, "cancel_statements": 2, "crash_server": 1, "lock_rows": 2, "lock_table": 1}
ON_SQLITE = {"lock_database": 3}
TABLES = ("user_wallets", "model_wallets", "escrow_items", "deposit_claims", "ledger_entries")
HOT_WALLETS = "SELECT FROM user_wallets WHERE owner_id LIKE 'user:hot-%' ORDER BY owner_id FOR UPDATE"


class Faults:
    """The faults of one round. ``pids`` tells which workers live."""

    def __init__(
        self, seed: str, folder: Path, url: str, server: PostgreSQL | None, pids: Callable[[], list[int]]
    ) -> None:
        self._chance = random.Random(f"{seed} faults")
        self._log = folder / "faults.log"
        self._url = url
        self._server = server
        self._pids = pids
        self._weights = ON_ALL | (ON_POSTGRESQL if server else ON_SQLITE)
        self.next = clock() + self._chance.expovariate(1 / EVERY)

    def strike(self) -> None:
        """One fault; the next one is due some time after it has ended."""
        name = self._chance.choices(list(self._weights), list(self._weights.values()))[0]
        at = clock()
        try:
            getattr(self, f"_{name}")()
        except (psycopg.OperationalError, sqlite3.OperationalError, ProcessLookupError):
            name = f"{name} (failed)"  # the faults meet with contention themselves
        with self._log.open("a") as file:
            file.write(json.dumps({"at": at, "fault": name}) + "\n")
        self.next = clock() + self._chance.expovariate(1 / EVERY)

    def _kill_worker(self) -> None:
        if pids := self._pids():
            os.kill(self._chance.choice(pids), signal.SIGKILL)

    def _pause_worker(self) -> None:
        """What a garbage collection, or a machine out of breath, does to one: perhaps while it holds locks."""
        if pids := self._pids():
            pid = self._chance.choice(pids)
            os.kill(pid, signal.SIGSTOP)
            self._pause()
            os.kill(pid, signal.SIGCONT)

    def _terminate_connections(self) -> None:
        self._signal_connections("pg_terminate_backend", self._chance.uniform(0.05, 1))

    def _cancel_statements(self) -> None:
        self._signal_connections("pg_cancel_backend", self._chance.uniform(0.05, 1))

    def _signal_connections(self, function: str, share: float) -> None:
        with self._connected() as connection:
            connection.execute(
                f"SELECT {function}(pid) FROM pg_stat_activity"
                f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < {share}"
            )

    def _crash_server(self) -> None:
        assert self._server is not None
        self._server.crash()

    def _lock_rows(self) -> None:
        with self._connected() as connection, connection.transaction():
            connection.execute(HOT_WALLETS)
            self._pause()

    def _lock_table(self) -> None:
        with self._connected() as connection, connection.transaction():
            table = self._chance.choice(TABLES)
            connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            self._pause()

    def _lock_database(self) -> None:
        connection = sqlite3.connect(self._url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._pause()
        finally:
            connection.close()

    def _connected(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self._url.replace("postgresql+psycopg://", "postgresql://"), autocommit=True)

    def _pause(self) -> None:
        time.sleep(self._chance.uniform(0.05, LONGEST_PAUSE))
