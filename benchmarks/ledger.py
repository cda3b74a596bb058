"""How fast the ledger is sealed, verified, compared and read, and what its indexes cost the operations."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import text

from points_platform.core import Database
from points_platform.ledger import Account, LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import (
    EscrowHoldRequest,
    EscrowSettleRequest,
    UserCreditRequest,
    WalletService,
)
from points_platform.wallets.rebuild import drifts, fill_empty
from points_platform.wallets.verify import verify

from .measure import resident_mb
from .server import Server
from .synthetic import fill

USERS, MODELS = 1000, 100
Result = dict[str, Any]


def whole_database(server: Server, thousands: int) -> Result:
    """Entries per second of sealing, verifying and comparing a ledger of so many thousand entries."""
    cycles = thousands * 1000 // (4 * USERS)
    database = server.fresh("whole")
    with database.engine.begin() as connection:
        fill(connection, users=USERS, models=MODELS, cycles=cycles)
    with database.engine.begin() as connection:
        fill_empty(connection)
        connection.execute(text("ANALYZE"))
    entries = 2 * USERS * (1 + 2 * cycles)
    result: Result = {"entries": entries}
    for work in ("seal", "verify", "rebuild"):
        measured = json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.ledger", work, server.url("whole")],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        result |= {f"{work}_per_s": round(entries / measured["seconds"]), f"{work}_mb": round(measured["mb"])}
    database.close()
    return result


def _in_process(work: str, url: str) -> None:
    """One of them in a process of its own, for its resident size."""
    with Database(url) as database, database.read():
        begin = time.perf_counter()
        if work == "seal":
            LedgerService(database).seal()
        elif work == "verify":
            assert list(verify(database)) == []
        else:
            with database.snapshot() as connection:
                assert list(drifts(connection)) == []
        seconds = time.perf_counter() - begin
    sys.stdout.write(json.dumps({"seconds": seconds, "mb": resident_mb(peak=True)}))


def reading(server: Server, thousands: int) -> Result:
    """What a statement page and a balance as of a time cost on a long account, against one with 1,000 entries."""
    ledgers: dict[str, LedgerService] = {}
    for name, entries in (("short", 1000), ("long", thousands * 1000)):
        database = server.fresh(name)
        with database.engine.begin() as connection:
            fill(connection, users=1, models=1, cycles=entries // 3)
        ledgers[name] = LedgerService(database)
    middle = {
        "short": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=20) * 333,
        "long": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=20) * (thousands * 1000 // 3),
    }
    account = Account("user:user-0", "available")  # type: ignore[arg-type]
    reads: dict[str, Callable[[str], object]] = {
        "statement_page": lambda name: ledgers[name].entries("user:user-0", "points", newest_first=True),
        "statement_page_within": lambda name: ledgers[name].entries("user:user-0", "points", since=middle[name]),
        "balance_as_of_time": lambda name: ledgers[name].balance_as_of(account, "points", at=middle[name]),
        "balance_as_of_version": lambda name: ledgers[name].balance_as_of(account, "points", version=300),
    }
    result: Result = {}
    for what, read in reads.items():
        seconds = interleaved({name: partial(read, name) for name in ledgers}, rounds=200)
        result[f"{what}_us"] = round(seconds["long"] * 1e6)
        result[f"{what}_long_vs_short"] = round(seconds["long"] / seconds["short"], 2)
    for ledger in ledgers.values():
        ledger.database.close()
    return result


def writing(server: Server, rounds: int) -> Result:
    """Hold and settle with the indexes that history and log need, against the same without them."""
    databases = {"with": server.fresh("with_indexes"), "without": server.fresh("without_indexes")}
    with databases["without"].engine.begin() as connection:
        connection.execute(text("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_version"))
        connection.execute(text("DROP INDEX ledger_transactions_escrow"))
    writers = {name: Writer(database) for name, database in databases.items()}
    seconds = interleaved({name: writer.round for name, writer in writers.items()}, rounds=rounds)
    return {"writing_slowdown": round(seconds["with"] / seconds["without"], 3)}


class Writer:
    """A hundred holds and settlements at a time, in four threads."""

    def __init__(self, database: Database) -> None:
        self.queue = QueueAuthorizer("a secret of at least 32 bytes, for benchmarks")
        self.wallets = WalletService(LedgerService(database), authorizer=self.queue)
        self.threads = ThreadPoolExecutor(4)
        self.number = 0
        for user in range(100):
            self.wallets.credit_user(
                UserCreditRequest(
                    user_id=f"u{user}", amount=10**9, reason="top_up", idempotency_key="first", request_id="r"
                )
            )

    def round(self) -> None:
        numbers = range(self.number, self.number + 100)
        self.number += 100
        list(self.threads.map(self.once, numbers))

    def once(self, number: int) -> None:
        user, key = f"u{number % 100}", str(number)
        hold = self.wallets.hold_in_escrow(
            EscrowHoldRequest(
                user_id=user,
                amount=10,
                reason="performance_request",
                queue_item_id=key,
                feature_type="song",
                idempotency_key=key,
                request_id=key,
            )
        )
        action = {"queue_item_id": key, "escrow_id": hold.escrow_id, "user_id": user, "model_id": f"m{number % 10}"}
        decided = {**action, "amount": 10, "reason": "performance_completed"}
        request = EscrowSettleRequest(**decided, idempotency_key=key, request_id=key)  # type: ignore[arg-type]
        self.wallets.settle_escrow(request, self.queue.authorize_settlement(**decided))  # type: ignore[arg-type]


def interleaved(contestants: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """The median seconds of each, one round of all after the other, since the machine's speed drifts."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


if __name__ == "__main__":
    _in_process(*sys.argv[1:])
