"""Single operations, spread over 10,000 users and 1,000 models: the floor, by hand, the module."""

from functools import partial

from .by_hand import ByHand
from .floor import Floor, check_same_rows
from .measure import Contestant, interleave, ratio
from .processes import Processes
from .report import Form, Report
from .server import Server
from .workload import FANS, Traffic, opened

PROCESSES, THREADS = 2, 8
BOTH = ("hold", "settle")
OTHERS = ("refund", "partial settle", "credit", "spend", "transfer", "deposit", "open")


def measure(server: Server, form: Form) -> Report:
    check_same_rows(server)
    floor = Floor(server, opened(server, "floor"))
    hand = ByHand(opened(server, "by_hand"), server.url("by_hand"))
    ours = opened(server, "ours")
    with Processes(server.url("ours"), PROCESSES) as processes:
        contestants: dict[str, Contestant] = {}
        for number in (1, 8, 32):
            contestants |= _side_by_side(form, number, floor, hand, ours)
            if number == THREADS:
                for operation in BOTH:
                    together = partial(processes.slice, operation, threads=number)
                    contestants[f"module: {operation}, {PROCESSES} x {number}"] = together
        if form.zipf:
            contestants |= _zipf(floor, ours)
        series = interleave(contestants, seconds=form.seconds, rounds=form.rounds)
    floor.check_complete()
    report = Report()
    for name, each in series.items():
        report.add_series(name, each)
    for operation in BOTH:
        base, module = series[f"floor: {operation}, {THREADS}"], series[f"module: {operation}, {THREADS}"]
        report.summary[f"{operation}_vs_floor"] = ratio(module, base)
        both = series[f"module: {operation}, {PROCESSES} x {THREADS}"]
        report.summary[f"{operation}_vs_floor_2_processes"] = ratio(both, base)
        report.summary[f"{operation}_vs_by_hand"] = ratio(module, series[f"by hand: {operation}, {THREADS}"])
    return report


def _side_by_side(form: Form, number: int, floor: Floor, hand: ByHand, ours: Traffic) -> dict[str, Contestant]:
    """Those that are compared, next to each other in time."""
    contestants: dict[str, Contestant] = {}
    for operation in BOTH:
        contestants[f"floor: {operation}, {number}"] = partial(floor.slice, operation, clients=number)
        if number in form.threads:
            contestants[f"by hand: {operation}, {number}"] = partial(hand.slice, operation, threads=number)
        contestants[f"module: {operation}, {number}"] = partial(ours.slice, operation, threads=number)
    for operation in OTHERS if number in form.threads else ():
        contestants[f"module: {operation}, {number}"] = partial(ours.slice, operation, threads=number)
    return contestants


def _zipf(floor: Floor, ours: Traffic) -> dict[str, Contestant]:
    contestants: dict[str, Contestant] = {}
    for operation in BOTH:
        name = f"{operation}, {THREADS}, Zipf"
        contestants[f"floor: {name}"] = partial(floor.slice, operation, clients=THREADS, crowd=FANS)
        contestants[f"module: {name}"] = partial(ours.slice, operation, threads=THREADS, crowd=FANS)
    return contestants
