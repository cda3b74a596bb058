"""Several processes that work side by side, each with its own connections and threads."""

import multiprocessing
from array import array
from concurrent.futures import ProcessPoolExecutor
from threading import Barrier
from typing import Any

from points_platform.core import Database

from .measure import Slice
from .workload import Traffic

_here: dict[str, Any] = {}


class Processes:
    """So many processes on one database; use it as a context manager."""

    def __init__(self, url: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._count = count
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(url, context.Barrier(count))
        )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown()

    def slice(self, operation: str, seconds: float, *, threads: int) -> Slice:
        """The same in each, begun together."""
        futures = [self._pool.submit(_slice, operation, seconds, threads) for _ in range(self._count)]
        parts = [future.result() for future in futures]
        return Slice(
            done=sum(part.done for part in parts),
            failed=sum(part.failed for part in parts),
            begin=min(part.begin for part in parts),
            end=max(part.end for part in parts),
            latencies=array("d", (latency for part in parts for latency in part.latencies)),
        )


def _begin(url: str, together: Barrier) -> None:
    _here["traffic"] = Traffic(Database(url))
    _here["together"] = together


def _slice(operation: str, seconds: float, threads: int) -> Slice:
    traffic: Traffic = _here["traffic"]
    return traffic.slice(operation, seconds, threads=threads, together=_here["together"].wait)
