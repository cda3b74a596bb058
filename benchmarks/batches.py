"""Batches of 10, 100 and 1,000 in one transaction each, against the floor of single operations at 8 clients.

In one thread and in two, of which the better counts. And how much memory a batch of 10,000 takes, the
requests and the answers with it, in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from points_platform.core import Database

from .floor import Floor
from .measure import Contestant, Series, Slice, interleave, ratio, resident_mb, work_through
from .report import Form, Report
from .server import Server
from .workload import Task, Traffic, opened

CLIENTS = 8
SIZES = (10, 100, 1000)
LARGEST = 10_000
BOTH = ("hold", "settle")
FASTEST = 30_000  # items per second that are made ready for the first slice of a kind


class Batches:
    """Slices of batches on one database."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._operations: dict[str, Callable[[Sequence[Task]], object]] = {
            "hold": traffic.hold_many,
            "settle": traffic.settle_many,
        }
        self._rates: dict[tuple[str, int, int], float] = {}

    def slice(self, operation: str, seconds: float, *, size: int, threads: int) -> Slice:
        """Items per second; a batch none of whose items may be refused."""
        kind = (operation, size, threads)
        count = max(2 * threads, int(self._rates.get(kind, FASTEST) * seconds * 1.3 / size))
        tasks = self._traffic.ready(operation, count * size)
        batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        measured = work_through(self._operations[operation], batches, threads=threads, seconds=seconds)
        items = Slice(done=measured.done * size, failed=measured.failed * size, begin=measured.begin, end=measured.end)
        self._rates[kind] = items.per_s
        return items


def measure(server: Server, form: Form) -> Report:
    floor = Floor(server, opened(server, "batch_floor"))
    ours = Batches(opened(server, "batches"))
    contestants: dict[str, Contestant] = {}
    for operation in BOTH:
        contestants[f"floor: {operation}"] = partial(floor.slice, operation, clients=CLIENTS)
        for size in SIZES:
            for threads in form.batch_threads:
                contestants[f"{operation} {size} {threads}"] = partial(
                    ours.slice, operation, size=size, threads=threads
                )
    series = interleave(contestants, seconds=form.seconds * 0.8, rounds=form.rounds)
    floor.check_complete()
    report = Report()
    for operation in BOTH:
        base = series[f"floor: {operation}"]
        report.add_series(f"floor: single {operation}s, {CLIENTS}", base)
        for size in SIZES:
            number, best = _best(series, f"{operation} {size} ")
            report.add_series(f"module: {operation}, batches of {size:,}, threads: {number}", best)
            if size == SIZES[-1]:
                report.summary[f"batch_{operation}_vs_floor"] = ratio(best, base)
    memory = [_memory(server, operation) for operation in BOTH]
    for operation, mb in zip(BOTH, memory, strict=True):
        report.add(f"module: {operation}, memory of a batch of {LARGEST:,}", "MB", [mb])
    report.summary["batch_10000_mb"] = max(memory)
    return report


def _best(series: dict[str, Series], kind: str) -> tuple[str, Series]:
    """In as many threads as did best, with their number."""
    return max(
        ((name.removeprefix(kind), each) for name, each in series.items() if name.startswith(kind)),
        key=lambda each: each[1].median,
    )


def _memory(server: Server, operation: str) -> float:
    command = [sys.executable, "-m", "benchmarks.batches", operation, server.url("batches")]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _in_process(operation: str, url: str) -> None:
    """How far the resident size rises while one batch is asked for, above what it was with the tasks ready."""
    with Database(url) as database:
        traffic = Traffic(database)
        work = traffic.hold_many if operation == "hold" else traffic.settle_many
        work(traffic.ready(operation, 10))
        tasks = traffic.ready(operation, LARGEST)
        before = resident_mb()
        # The peak is counted anew from here.
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        answers = work(tasks)
        sys.stdout.write(json.dumps(resident_mb(peak=True) - before))
        assert len(answers) == LARGEST


if __name__ == "__main__":
    _in_process(*sys.argv[1:])
