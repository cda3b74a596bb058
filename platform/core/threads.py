"""Threads in which blocking work is done for those who await it: never more at once than an engine has connections.

An executor and not a semaphore: a call that is cancelled keeps its thread, and its connection, until it has ended.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, QueuePool
from sqlalchemy.util import await_only

T = TypeVar("T")

# Where a pool has no bound, or none that can be told.
UNBOUNDED = 32


class Threads:
    """Those of one engine: for calls, and one that delivers what follows commits, in their order."""

    def __init__(self, engine: Engine) -> None:
        self.calls = ThreadPoolExecutor(connections_of(engine), thread_name_prefix="points-platform")
        self.deliveries = ThreadPoolExecutor(1, thread_name_prefix="points-platform-deliveries")


_lock = threading.Lock()
_threads: WeakKeyDictionary[Engine, Threads] = WeakKeyDictionary()


def threads_of(engine: Engine) -> Threads:
    """The threads of an engine, the same for those that are derived from it."""
    engine = getattr(engine, "_proxied", engine)
    with _lock:
        if engine not in _threads:
            _threads[engine] = Threads(engine)
        return _threads[engine]


def connections_of(engine: Engine) -> int:
    """How many connections the engine's pool lends out at once."""
    pool = engine.pool
    size = pool.size() if isinstance(pool, QueuePool) else 0
    overflow: int = getattr(pool, "_max_overflow", -1)
    return size + overflow if size and overflow >= 0 else UNBOUNDED


def in_thread(executor: ThreadPoolExecutor | None, work: Callable[[], T]) -> asyncio.Future[T]:
    """Start the work in a thread, with the context of the caller; on the thread of a running loop."""
    return asyncio.get_running_loop().run_in_executor(executor, partial(copy_context().run, work))


def beside_the_loop(connection: Connection, engine: Engine, work: Callable[[], T]) -> T:
    """Do what blocks, but not on the thread of a loop, which is where an asynchronous connection is used."""
    if not connection.dialect.is_async:
        return work()
    return await_only(in_thread(threads_of(engine).calls, work))


def _forget() -> None:
    """Threads do not survive a fork."""
    global _lock
    _lock = threading.Lock()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
