"""Slices of time in which one contestant works, and rounds of all of them, since the machine's speed drifts."""

import gc
import statistics
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from points_platform.core import WalletError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What was done between two moments of the system's monotonic clock; failed operations are not in ``done``."""

    done: int
    failed: int = 0
    begin: float = 0.0
    end: float
    latencies: Sequence[float] = ()

    @property
    def per_s(self) -> float:
        return self.done / (self.end - self.begin)


@dataclass(frozen=True)
class Series:
    """The slices of one contestant, one per round."""

    slices: list[Slice] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        return [each.per_s for each in self.slices]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def failed(self) -> int:
        return sum(each.failed for each in self.slices)

    def latency_us(self, percent: int) -> float | None:
        """Of all rounds together; ``None`` where single operations were not timed."""
        all_of_them = [latency for each in self.slices for latency in each.latencies]
        if len(all_of_them) < 2:
            return None
        return statistics.quantiles(all_of_them, n=100)[percent - 1] * 1e6


class RefusedError(Exception):
    """What a contestant that is not the wallet module refuses or gives up."""


Contestant = Callable[[float], Slice]


def interleave(contestants: Mapping[str, Contestant], *, seconds: float, rounds: int) -> dict[str, Series]:
    """Let each work for so many seconds, one round of all after the other; a short first round does not count."""
    series = {name: Series() for name in contestants}
    for work in contestants.values():
        work(seconds / 5)
    for _ in range(rounds):
        for name, work in contestants.items():
            series[name].slices.append(work(seconds))
    return series


def ratio(one: Series, other: Series) -> float:
    """The median of the rounds' own ratios. Who did nothing in a slice is taken to have done one thing."""
    least = (max(each.per_s, 1 / (each.end - each.begin)) for each in other.slices)
    return statistics.median(a / b for a, b in zip(one.rates, least, strict=True))


def work_through(operation: Callable[[T], object], tasks: Iterable[T], *, threads: int, seconds: float) -> Slice:
    """Threads that take tasks, one after the other from one list, until it or the time is over.

    Refusals are counted as failed, whatever their kind; any other exception is raised.
    """
    # What is kept ready for all contestants is nobody's garbage, and must not be searched at everybody's expense.
    gc.collect()
    gc.freeze()
    shared = iter(tasks)
    together = threading.Barrier(threads + 1)
    latencies = [array("d") for _ in range(threads)]
    failures: list[Exception] = []
    workers = [
        threading.Thread(target=_work, args=(operation, shared, seconds, together, taken, failures), daemon=True)
        for taken in latencies
    ]
    for worker in workers:
        worker.start()
    together.wait()
    begin = time.perf_counter()
    for worker in workers:
        worker.join()
    end = time.perf_counter()
    gc.unfreeze()
    for failure in failures:
        if not isinstance(failure, WalletError | RefusedError):
            raise failure
    all_of_them = array("d", (latency for taken in latencies for latency in taken))
    return Slice(done=len(all_of_them), failed=len(failures), begin=begin, end=end, latencies=all_of_them)


def _work(
    operation: Callable[[Any], object],
    tasks: Iterator[Any],
    seconds: float,
    together: threading.Barrier,
    taken: "array[float]",
    failures: list[Exception],
) -> None:
    together.wait()
    now = time.perf_counter()
    deadline = now + seconds
    for task in tasks:
        begin = now
        try:
            operation(task)
        except Exception as failure:
            failures.append(failure)
            now = time.perf_counter()
        else:
            now = time.perf_counter()
            taken.append(now - begin)
        if now > deadline:
            break


def resident_mb(peak: bool = False) -> float:
    """This process's resident size now, or the largest it ever had, on Linux.

    Not by ``getrusage``: there a child begins with the peak of its parent.
    """
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024
