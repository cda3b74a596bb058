"""One round: a fresh database, workers, faults, moments, a calm, and then the judge."""

import json
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from points_platform.core import Database, WalletError
from points_platform.ledger import LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import WalletService
from points_platform.wallets.verify import verify
from support.recount import recount

from . import planted, proxy, worker
from .bursts import histories
from .client import ENDS, METHODS, SECRET
from .faults import Faults
from .history import Call, Key, Ledger, calls_of, without_flag
from .journal import Line, clock, fields_of, lines
from .judge import Finding, judge, unacknowledged
from .linearizability import Undecided, explain
from .moments import Acknowledged, Moments
from .plan import request_of
from .servers import PostgreSQL, SQLite
from .worker import CALM, STOP, Round

# Two clients, each a thread, share the service and the connections of one worker process.
CLIENTS_OF_WORKER = 2
BETWEEN_MOMENTS = 8.0
LONGEST_RECOVERY = 60.0
LONGEST_END = 60.0
TICK = 0.02
# A fresh process that has everything imported already.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torture.worker", "torture.proxy", "torture.planted"])


@dataclass
class Result:
    """What a round has counted and found."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    recovery: float = 0.0
    seconds: float = 0.0


class Workers:
    """The worker processes of a round, each begun again when it has died."""

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._lives = [0] * len(round_.clients)
        self._processes: list[BaseProcess] = [self._begin(number) for number in range(len(round_.clients))]

    def _begin(self, number: int) -> BaseProcess:
        process = processes.Process(target=worker.main, args=(self._round, number, self._lives[number]), daemon=True)
        process.start()
        return process

    def pids(self) -> list[int]:
        """Those that live."""
        return [process.pid for process in self._processes if process.pid and process.is_alive()]

    def revive(self) -> Iterator[Finding]:
        """Begin the dead ones again; one that was not killed is a finding."""
        for number, process in enumerate(self._processes):
            if not process.is_alive():
                if process.exitcode != -signal.SIGKILL:
                    yield Finding("workers", f"worker {number} has ended with {process.exitcode}: {self._last_words()}")
                self._lives[number] += 1
                self._processes[number] = self._begin(number)

    def _last_words(self) -> list[str]:
        return [path.read_text() for path in self._round.folder.glob("broken_*")]

    def end(self) -> Iterator[Finding]:
        """Wait until all have ended; one that does not is a finding."""
        until = clock() + LONGEST_END
        for number, process in enumerate(self._processes):
            process.join(max(0.1, until - clock()))
            if process.is_alive():
                process.kill()
                process.join()
                yield Finding("workers", f"worker {number} did not end")

    def kill(self) -> None:
        """End them at once."""
        for process in self._processes:
            process.kill()
            process.join()


def play(
    server: PostgreSQL | SQLite,
    folder: Path,
    *,
    seconds: float,
    workers: int,
    seed: str,
    isolation_level: str | None,
    bug: str | None = None,
) -> Result:
    """One round. The folder keeps the journals and the logs of faults."""
    folder.mkdir()
    url = server.fresh(planted.BUGS[bug].walls if bug else ())
    clients = tuple(tuple(f"{number}.{thread}" for thread in range(CLIENTS_OF_WORKER)) for number in range(workers))
    result, began = Result(), clock()
    with _proxy(server, folder, url, seed) as proxied:
        round_ = Round(
            folder=folder,
            url=url,
            proxy=proxied,
            seed=seed,
            clients=clients,
            isolation_level=isolation_level,
            began=began,
            planted=bug,
        )
        running = Workers(round_)
        try:
            _storm(server, round_, running, seconds, result)
            _calm(round_, running, result)
        finally:
            running.kill()
        with Database(url) as database:
            _conclude(round_, database, result)
    result.seconds = clock() - began
    return result


def _storm(server: PostgreSQL | SQLite, round_: Round, running: Workers, seconds: float, result: Result) -> None:
    """Faults, and looks at moments in between, until the time is over or something was found."""
    postgresql = server if isinstance(server, PostgreSQL) else None
    faults = Faults(round_.seed, round_.folder, round_.url, postgresql, running.pids)
    acknowledged = Acknowledged(round_.folder)
    look_at = clock() + BETWEEN_MOMENTS
    moment: Future[list[str] | None] | None = None
    with Database(round_.url) as database, ThreadPoolExecutor(1) as threads:
        moments = Moments(database)
        while clock() < round_.began + seconds and not result.findings:
            time.sleep(TICK)
            result.findings += running.revive()
            if clock() > faults.next:
                faults.strike()
            if moment is None and clock() > look_at:
                acknowledged.update()
                moment = threads.submit(_look, moments, set(acknowledged.transactions))
            if moment is not None and moment.done():
                _take(moment.result(), result)
                moment, look_at = None, clock() + BETWEEN_MOMENTS
        if moment is not None:
            _take(moment.result(), result)


def _look(moments: Moments, acknowledged: set[str]) -> list[str] | None:
    """What was found; nothing if the database was out of reach, or somebody was faster."""
    try:
        return moments.look(acknowledged)
    except WalletError as error:
        return None if error.retryable else [str(error)]


def _take(found: list[str] | None, result: Result) -> None:
    result.counts["moments" if found is not None else "moments interrupted"] += 1
    result.findings += (Finding("a moment's snapshot", what) for what in found or [])


def _calm(round_: Round, running: Workers, result: Result) -> None:
    """After the last fault every client must succeed again; then they end."""
    since = clock()
    (round_.folder / CALM).touch()
    acknowledged = Acknowledged(round_.folder)
    everybody = round_.everybody()
    while clock() < since + LONGEST_RECOVERY:
        result.findings += running.revive()
        acknowledged.update()
        if all(acknowledged.succeeded.get(client, 0) > since for client in everybody):
            break
        time.sleep(10 * TICK)
    else:
        waiting = [client for client in everybody if acknowledged.succeeded.get(client, 0) <= since]
        what = f"{LONGEST_RECOVERY} s after the last fault, {sorted(waiting)} had not succeeded again"
        result.findings.append(Finding("progress after faults", what))
    result.recovery = clock() - since
    (round_.folder / STOP).touch()
    result.findings += running.end()


def _conclude(round_: Round, database: Database, result: Result) -> None:
    """Judge, send again what was never answered, and judge the rest."""
    calls = [call for client in round_.everybody() for call in calls_of(client, lines(round_.folder, client))]
    _count(round_, calls, result)
    with database.snapshot() as connection:
        ledger = Ledger.read(connection)
    result.findings += judge(calls, ledger)
    result.findings += _linearizable(calls, result)
    open_ = unacknowledged(calls)
    result.counts["sent again at the end"] = len(open_)
    result.findings += (Finding("sent again", what) for what in _send_again(database, open_, ledger))
    result.findings += _recounted(database)


def _linearizable(calls: list[Call], result: Result) -> Iterator[Finding]:
    for burst, history in histories(calls).items():
        result.counts["histories"] += 1
        result.counts["calls in histories"] += len(history)
        try:
            account = explain(history)
        except Undecided:
            result.counts["histories undecided"] += 1
            continue
        if account is not None:
            yield Finding("linearizability", f"burst {burst}: {account}")


def _send_again(database: Database, open_: dict[Key, Line], ledger: Ledger) -> Iterator[str]:
    """What nobody was told the outcome of gets one answer, that of the ledger where it is there already."""
    queue = QueueAuthorizer(SECRET)
    for key, part in open_.items():
        request = request_of(part["operation"], part["request"] | {"request_id": "judge"})
        answers = [_answer(_service(database, queue), part["operation"], request, queue) for _ in range(2)]
        there = key in ledger.by_key
        if there and (not answers[0].get("replayed") or without_flag(answers[0]) != ledger.answer(ledger.by_key[key])):
            yield f"{key} is in the ledger, and sent again it was answered with {answers[0]}"
        if answers[1] != (answers[0] | {"replayed": True} if "replayed" in answers[0] else answers[0]):
            yield f"{key}, sent again, was answered with {answers[0]} and then with {answers[1]}"
        if answers[0].get("retryable"):
            yield f"{key}, sent again with nothing else going on, was answered with {answers[0]}"


def _service(database: Database, queue: QueueAuthorizer) -> WalletService:
    return WalletService(LedgerService(database), authorizer=queue)


def _answer(wallets: WalletService, operation: str, request: Any, queue: QueueAuthorizer) -> Line:
    permission = [queue.authorize(request)] if operation in ENDS else []
    try:
        return fields_of(getattr(wallets, METHODS[operation])(request, *permission))
    except WalletError as error:
        return {"code": error.code, "retryable": error.retryable}


def _recounted(database: Database) -> Iterator[Finding]:
    """The invariants, counted again from the rows alone, and the module's own verification."""
    try:
        recount(database)
    except AssertionError as error:
        yield Finding("invariants recounted", str(error))
    yield from (Finding("verify", str(finding)) for finding in verify(database))


def _count(round_: Round, calls: list[Call], result: Result) -> None:
    for call in calls:
        result.counts.update(_counted(call))
    for path in round_.folder.glob("faults*.jsonl"):
        result.counts.update(f"fault {json.loads(line)['fault']}" for line in path.read_text().splitlines())
    for client in round_.everybody():
        for line in lines(round_.folder, client):
            if "receiver" in line:
                result.counts[f"fault receiver_{line['receiver']}"] += 1
            if "settings" in line:
                result.counts.update(f"life with {each}" for each in _remarkable(line["settings"]))


def _counted(call: Call) -> Counter[str]:
    return Counter(
        {
            "calls": 1,
            "calls sent again": call.asked["resent"],
            "calls never answered": call.answer is None,
            "operations": len(call.asked["parts"]),
            "acknowledged": sum(1 for _ in call.successes()) if call.committed else 0,
            "events": len(call.events),
            "keys with another payload": sum(part["mutation"] is not None for part in call.asked["parts"]),
        }
    ) + Counter(f"answer {outcome['code']}" for _, outcome in call.outcomes() if "code" in outcome)


def _remarkable(settings: Line) -> Iterator[str]:
    if settings["clock_shift_s"]:
        yield "a wrong clock"
    if settings["small_disk"]:
        yield "a full disk"
    if settings["statement_timeout_ms"]:
        yield "a statement timeout"
    if settings["isolation_level"]:
        yield settings["isolation_level"]


@contextmanager
def _proxy(server: PostgreSQL | SQLite, folder: Path, url: str, seed: str) -> Iterator[str | None]:
    if isinstance(server, SQLite):
        yield None
        return
    process = processes.Process(target=proxy.serve, args=(server.socket(), folder, seed), daemon=True)
    process.start()
    port = folder / "port"
    until = clock() + 30
    while not port.exists():
        if clock() > until or not process.is_alive():
            raise RuntimeError("the proxy did not start")
        time.sleep(TICK)
    try:
        yield server.proxied(url, int(port.read_text()))
    finally:
        process.kill()
        process.join()
