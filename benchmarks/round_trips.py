"""Round trips to the server per operation, counted on the wire, and throughput with 1 ms of network latency."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from points_platform.core import Database, InsufficientBalanceError

from .by_hand import ByHand
from .measure import Contestant, interleave
from .proxy import Proxy, proxied
from .report import Form, Report
from .server import Server
from .workload import Task, Traffic, opened

NAME = "round_trips"
WARM_UP, COUNTED = 12, 48  # until connections are open and statements prepared
THREADS = 8
BATCH = 100
BOTH = ("hold", "settle")
OF_THE_SUMMARY = {"module: hold": "hold", "module: settle": "settle", "module: user's balance": "balance"}
Asked = tuple[Callable[[Any], object], Sequence[Any]]


def measure(server: Server, form: Form) -> Report:
    report = Report()
    near = opened(server, NAME)
    with proxied(server) as proxy:
        for what, asked in _operations(proxy.url(NAME), near).items():
            trips = _trips(proxy, *asked)
            report.add(f"{what}, round trips", "", [trips])
            if what in OF_THE_SUMMARY:
                report.summary[f"round_trips_{OF_THE_SUMMARY[what]}"] = trips
    with proxied(server, delay_ms=1) as proxy:
        far = Traffic(Database(proxy.url(NAME)))
        hand = ByHand(near, proxy.url(NAME))
        contestants: dict[str, Contestant] = {}
        for operation in BOTH:
            contestants[f"by hand: {operation}, {THREADS}, 1 ms away"] = partial(hand.slice, operation, threads=THREADS)
            contestants[f"module: {operation}, {THREADS}, 1 ms away"] = partial(far.slice, operation, threads=THREADS)
        for name, series in interleave(contestants, seconds=form.seconds, rounds=form.rounds).items():
            report.add_series(name, series)
    return report


def _operations(url: str, near: Traffic) -> dict[str, Asked]:
    """What is counted, with what it is asked for; made ready on the short way, past the proxy."""
    many = WARM_UP + COUNTED
    far, uncached, hand = Traffic(Database(url)), Traffic(Database(url), cache=0), ByHand(near, url)
    again = near.ready("hold", 1) * many
    nobody = [Task("nobody", "nobody", str(number)) for number in range(many)]
    users = [f"user-{number}" for number in range(many)]
    batches = [near.ready("hold", BATCH) for _ in range(many)]
    page = partial(far.ledger.entries, currency="points")
    return {
        **{f"by hand: {name}": (operation, near.ready(name, many)) for name, operation in hand.operations.items()},
        **{f"module: {name}": (operation, near.ready(name, many)) for name, operation in far.operations.items()},
        "module: hold, refused": (partial(_refused, far), nobody),
        "module: hold, repeated": (uncached.hold, again),
        "module: hold, repeated and cached": (far.hold, again),
        f"module: batch of {BATCH} holds": (far.hold_many, batches),
        "module: user's balance": (far.wallets.get_user_balance, users),
        "module: statement page": (page, [f"user:{user}" for user in users]),
    }


def _refused(traffic: Traffic, task: Task) -> None:
    with suppress(InsufficientBalanceError):
        traffic.hold(task)
        raise AssertionError("nobody has points")


def _trips(proxy: Proxy, operation: Callable[[Any], object], asked: Sequence[Any]) -> float:
    for each in asked[:WARM_UP]:
        operation(each)
    before = proxy.trips
    for each in asked[WARM_UP:]:
        operation(each)
    return (proxy.trips - before) / COUNTED
