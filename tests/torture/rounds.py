"""One round: a fresh database, workers, faults, moments, a calm, and then what the aftermath says."""

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import text

from points_platform.core import Database, WalletError

from . import proxy, worker
from .aftermath import conclude
from .counts import count
from .faults import Faults
from .history import calls_of
from .journal import CALM, STOP, clock, lines
from .judge import Finding
from .moments import Acknowledged, Moments
from .planted import BUGS, reached_in
from .servers import PostgreSQL, SQLite
from .worker import Round

# Two clients, each a thread, share the service and the connections of one worker process.
CLIENTS_OF_WORKER = 2
BETWEEN_MOMENTS = 8.0
LONGEST_RECOVERY = 30.0
LONGEST_END = 60.0
TICK = 0.02
# A fresh process that has everything imported already.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torture.worker", "torture.proxy", "torture.planted"])


@dataclass
class Result:
    """What a round has counted and found; ``reached`` are the places of a planted bug that its workers came to."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
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
        """Wait until all have ended; one that does not, or not well, is a finding."""
        until = clock() + LONGEST_END
        for number, process in enumerate(self._processes):
            process.join(max(0.1, until - clock()))
            if process.exitcode != 0:
                yield Finding("workers", f"worker {number} did not end well: {process.exitcode} {self._last_words()}")

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
    clients = tuple(tuple(f"{number}.{thread}" for thread in range(CLIENTS_OF_WORKER)) for number in range(workers))
    result, began = Result(), clock()
    with server.fresh() as url:
        if bug is not None:
            _take_down(url, BUGS[bug].walls)
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
                _storm_and_calm(server, round_, running, seconds, result)
            finally:
                running.kill()
        calls = [call for client in round_.everybody() for call in calls_of(client, lines(folder, client))]
        result.counts += count(round_, calls)
        result.reached = reached_in(folder)
        with Database(url) as database:
            result.findings += conclude(database, calls, seed, result.counts)
    result.seconds = clock() - began
    return result


def _take_down(url: str, walls: Sequence[str]) -> None:
    with Database(url) as database, database.engine.begin() as connection:
        for wall in walls:
            connection.execute(text(wall))


def _storm_and_calm(
    server: PostgreSQL | SQLite, round_: Round, running: Workers, seconds: float, result: Result
) -> None:
    """Faults, and looks at moments in between, until the time is over or something was found; then calm."""
    postgresql = server if isinstance(server, PostgreSQL) else None
    faults = Faults(round_.seed, round_.folder, round_.url, postgresql, running.pids)
    look_at = clock() + BETWEEN_MOMENTS
    moment: Future[list[str] | None] | None = None
    with Database(round_.url) as database, ThreadPoolExecutor(1) as threads:
        moments, acknowledged = Moments(database), Acknowledged(round_.folder)
        while clock() < round_.began + seconds and not result.findings:
            time.sleep(TICK)
            result.findings += running.revive()
            if clock() > faults.next:
                faults.strike()
            if moment is None and clock() > look_at:
                moment = threads.submit(_look, moments, acknowledged)
            if moment is not None and moment.done():
                _take(moment.result(), result)
                moment, look_at = None, clock() + BETWEEN_MOMENTS
        _calm(round_, running, result)
        if moment is not None:
            _take(moment.result(), result)


def _look(moments: Moments, acknowledged: Acknowledged) -> list[str] | None:
    """What was found; nothing if the database was out of reach, or somebody was faster."""
    acknowledged.update()
    try:
        return moments.look(acknowledged.transactions)
    except WalletError as error:
        return None if error.retryable else [str(error)]


def _take(found: list[str] | None, result: Result) -> None:
    result.counts["moments" if found is not None else "moments interrupted"] += 1
    result.findings += (Finding("a moment's snapshot", what) for what in found or [])


def _calm(round_: Round, running: Workers, result: Result) -> None:
    """After the last fault every client must do something new with success; then they end."""
    since = clock()
    (round_.folder / "since").write_text(str(since))
    (round_.folder / "since").rename(round_.folder / CALM)  # whoever sees it can read it
    while waiting := round_.waiting():
        if clock() > since + LONGEST_RECOVERY:
            what = f"{LONGEST_RECOVERY} s after the last fault, {waiting} had not succeeded again"
            result.findings.append(Finding("progress after faults", what))
            break
        result.findings += running.revive()
        time.sleep(TICK)
    result.recovery = clock() - since
    (round_.folder / STOP).touch()
    result.findings += running.end()


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
