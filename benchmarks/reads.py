"""Reads: both balances, an escrow item and a page of 50 lines of a statement, and a repeated hold."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .measure import Contestant, Slice, interleave, work_through
from .report import Form, Report
from .server import Server
from .workload import MODELS, USERS, Traffic, opened

THREADS = (1, 8)
FASTEST = 30_000
REPEATED = 2000


def measure(server: Server, form: Form) -> Report:
    traffic = opened(server, "reads")
    report = Report()
    contestants: dict[str, Contestant] = {}
    for what, (read, keys) in _reads(traffic).items():
        for threads in THREADS:
            contestants[f"{what}, {threads}"] = partial(_slice, read, keys, threads)
    for name, series in interleave(contestants, seconds=form.seconds / 2, rounds=form.rounds).items():
        report.add_series(name, series)
    cached = [_cached_replay_us(traffic) for _ in range(2 * form.rounds + 1)]
    report.add("a repeated hold, answered from the cache", "µs", cached)
    report.summary["cached_replay_us"] = report.figures[-1].median
    return report


def _reads(traffic: Traffic) -> dict[str, tuple[Callable[[Any], object], Sequence[str]]]:
    """Each read, with what it is asked for in turn. Every user who is asked for a page has 100 entries."""
    page = partial(traffic.ledger.entries, currency="points", newest_first=True)
    users = [f"user-{number}" for number in range(20)]
    held = [
        task.escrow_id
        for user in users
        for task in traffic.held([task._replace(user_id=user) for task in traffic.ready("hold", 50)])
    ]
    return {
        "user's balance": (traffic.wallets.get_user_balance, [f"user-{number}" for number in range(USERS)]),
        "model's balance": (traffic.wallets.get_model_balance, [f"model-{number}" for number in range(MODELS)]),
        "escrow item": (traffic.wallets.get_escrow, held),
        "statement page": (page, [f"user:{user}" for user in users]),
    }


def _slice(read: Callable[[Any], object], keys: Sequence[str], threads: int, seconds: float) -> Slice:
    asked = [keys[number % len(keys)] for number in range(int(FASTEST * seconds))]
    return work_through(read, asked, threads=threads, seconds=seconds)


def _cached_replay_us(traffic: Traffic) -> float:
    """The mean of one thread's calls, the request made anew each time."""
    (task,) = traffic.ready("hold", 1)
    first = traffic.hold(task)
    begin = time.perf_counter()
    for _ in range(REPEATED):
        again = traffic.hold(task)
    seconds = time.perf_counter() - begin
    assert again == first
    assert again.replayed
    return seconds / REPEATED * 1e6
