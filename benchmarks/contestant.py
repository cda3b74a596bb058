"""One checkout of the module in a process of its own, which does line by line what ``pairs`` asks for.

Which checkout it is, PYTHONPATH tells: nothing here may need what only one of two has. The same seed gives the same
users, models and keys.
"""

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import points_platform.wallets
from points_platform.core import Database, WalletError
from points_platform.ledger import LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import EscrowHoldRequest, EscrowSettleRequest, UserCreditRequest, WalletService

from . import faked
from .measure import work_through

USERS, MODELS = 10_000, 1_000
AMOUNT, CREDIT = 10, 1_000_000_000
BATCH = 1000
THREADS = 8
FASTEST = {"hold": 12_000, "batches": 30_000}  # items per second that are made ready
SECRET = "a secret of at least 32 bytes, for benchmarks"


class Task(NamedTuple):
    """One hold, or the end of one where ``escrow_id`` and the queue's signed permission are there."""

    user_id: str
    model_id: str
    key: str
    escrow_id: str = ""
    authorization: Any = None


class Contestant:
    """Measures what a caller's thread does from plain values to the response; what was held is then settled."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._queue = QueueAuthorizer(SECRET)
        self._wallets = WalletService(LedgerService(self._database), authorizer=self._queue)
        self._held: list[Task] = []
        self._held_together: list[list[Task]] = []

    def open(self) -> None:
        """The schema, and a wallet for everybody."""
        self._database.create_schema()
        for start in range(0, USERS, BATCH):
            _done(self._wallets.credit_many([_credit(f"user-{number}") for number in range(start, start + BATCH)]))
        tasks = [Task(f"user-{number}", f"model-{number}", f"first-{number}") for number in range(MODELS)]
        self.settle_together(self.permitted(self.hold_together(tasks)))

    def measure(self, kind: str, seconds: float, seed: int) -> dict[str, float]:
        """Items done, in how many seconds."""
        operation, tasks, size, threads = self._prepared(kind, seconds, seed)
        measured = work_through(operation, tasks, threads=threads, seconds=seconds)
        if measured.failed:
            raise RuntimeError(f"{measured.failed} of {kind} were refused")
        return {"done": measured.done * size, "seconds": measured.end - measured.begin}

    def _prepared(self, kind: str, seconds: float, seed: int) -> tuple[Callable[[Any], object], list[Any], int, int]:
        if kind == "hold":
            self._held = []
            return self._hold, tasks_of(seed, "single", int(FASTEST[kind] * seconds)), 1, THREADS
        if kind == "settle":
            return self.settle, self.permitted(self._held), 1, THREADS
        if kind == "hold_many":
            self._held_together = []
            tasks = tasks_of(seed, "batch", int(FASTEST["batches"] * seconds) + BATCH)
            batches = [tasks[start : start + BATCH] for start in range(0, len(tasks) - BATCH + 1, BATCH)]
            return self._hold_together, batches, BATCH, 1
        return self.settle_together, [self.permitted(each) for each in self._held_together], BATCH, 1

    def hold(self, task: Task) -> Task:
        return task._replace(escrow_id=self._wallets.hold_in_escrow(_hold(task)).escrow_id)

    def settle(self, task: Task) -> None:
        self._wallets.settle_escrow(_settle(task), task.authorization)

    def hold_together(self, tasks: Sequence[Task]) -> list[Task]:
        answers = _done(self._wallets.hold_many([_hold(task) for task in tasks]))
        return [task._replace(escrow_id=answer.escrow_id) for task, answer in zip(tasks, answers, strict=True)]

    def settle_together(self, tasks: Sequence[Task]) -> None:
        _done(self._wallets.settle_many([(_settle(task), task.authorization) for task in tasks]))

    def permitted(self, tasks: Sequence[Task]) -> list[Task]:
        return [task._replace(authorization=self._queue.authorize(_settle(task))) for task in tasks]

    def _hold(self, task: Task) -> None:
        self._held.append(self.hold(task))

    def _hold_together(self, tasks: Sequence[Task]) -> None:
        self._held_together.append(self.hold_together(tasks))


def tasks_of(seed: int, kind: str, count: int) -> list[Task]:
    chance = random.Random(f"{kind} {seed}")
    numbers = ((chance.randrange(USERS), chance.randrange(MODELS), number) for number in range(count))
    return [Task(f"user-{user}", f"model-{model}", f"{kind}-{seed}-{number}") for user, model, number in numbers]


def _done(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, WalletError):
            raise answer
    return answers


def _credit(user_id: str) -> UserCreditRequest:
    return UserCreditRequest(
        user_id=user_id, amount=CREDIT, reason="top_up", idempotency_key="first", request_id=f"r-{user_id}"
    )


def _hold(task: Task) -> EscrowHoldRequest:
    return EscrowHoldRequest(
        user_id=task.user_id,
        amount=AMOUNT,
        reason="menu_purchase",
        queue_item_id=f"q{task.key}",
        feature_type="song",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def _settle(task: Task) -> EscrowSettleRequest:
    return EscrowSettleRequest(
        escrow_id=task.escrow_id,
        user_id=task.user_id,
        model_id=task.model_id,
        amount=AMOUNT,
        queue_item_id=f"q{task.key}",
        reason="performance_completed",
        idempotency_key=task.key,
        request_id=f"r{task.key}",
    )


def main(url: str) -> None:
    contestant = Contestant(url)
    calls: dict[str, Callable[..., object]] = {
        "where": lambda: os.path.realpath(points_platform.wallets.__file__),
        "open": contestant.open,
        "measure": contestant.measure,
        "fake": lambda: faked.begin(
            contestant, single=tasks_of(0, "one by one", faked.SINGLE + 1), batch=tasks_of(0, "together", BATCH)
        ),
        "time": faked.seconds_per_item,
        "profile": faked.functions,
    }
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(calls[name](**arguments)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
