"""What is sent at once: requests that succeed only once, and worker processes that send with services of their own."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

from points_platform.core import Database
from points_platform.wallets import WalletConfig

from .world import World, at_once

OPERATIONS = ("credit", "hold", "settle", "refund", "partial_settle", "spend", "transfer", "deposit", "open")
PROCESSES = 4
_ready: list[Barrier] = []


def ready(world: World, operation: str, user_id: str = "ana") -> Any:
    """A request whose user has points for it once, or one hold, and nothing else."""
    if operation == "open":
        return world.open_request(f"user:{user_id}")
    make = getattr(world, f"{operation}_request")
    if operation in ("credit", "deposit"):
        return make(user_id)
    world.credit(user_id, amount=30)
    if operation in ("hold", "spend"):
        return make(user_id)
    if operation == "transfer":
        return make(user_id, recipient_id=f"friend-of-{user_id}")
    return make(world.hold(user_id).escrow_id, user_id=user_id)


def one_of_each(world: World) -> Iterator[tuple[str, Any]]:
    """Each operation's name and such a request, for a user of its own."""
    for operation in OPERATIONS:
        yield operation, ready(world, operation, f"user-of-{operation}")


class Processes:
    """Worker processes that share nothing with the tests but the database."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def send(self, url: str, requests: Sequence[Any]) -> list[Any]:
        """Deal the requests out to all processes, which send them at once; errors are answers too."""
        hands = [requests[number::PROCESSES] for number in range(PROCESSES)]
        answers = list(self._pool.map(partial(_send, url), hands))
        return [answers[number % PROCESSES][number // PROCESSES] for number in range(len(requests))]


@contextmanager
def worker_processes() -> Iterator[Processes]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, context, initializer=_enter, initargs=(barrier,)) as pool:
        yield Processes(pool)


def _enter(barrier: Barrier) -> None:
    _ready.append(barrier)


def _send(url: str, requests: Sequence[Any]) -> list[Any]:
    with Database(url) as database:
        world = World(database, config=WalletConfig())
        world.wallets.get_user_balance("nobody")  # the first read also checks the schema
        _ready[0].wait(timeout=60)
        return at_once(*(partial(world.send, request) for request in requests))
