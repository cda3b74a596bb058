"""One row that everybody wants: 32 threads settling to one model, and 32 holding on one user's wallet."""

from functools import partial

from .by_hand import ByHand
from .floor import Floor
from .measure import Contestant, interleave, ratio
from .report import Form, Report
from .server import Server
from .workload import ONE_MODEL, ONE_USER, opened

THREADS = 32
KINDS = {"hot_model": ("settle", ONE_MODEL), "hot_user": ("hold", ONE_USER)}


def measure(server: Server, form: Form) -> Report:
    floor = Floor(server, opened(server, "hot_floor"))
    hand = ByHand(opened(server, "hot_by_hand"), server.url("hot_by_hand"))
    ours = opened(server, "hot_ours")
    contestants: dict[str, Contestant] = {}
    for kind, (operation, crowd) in KINDS.items():
        contestants[f"floor: {kind}"] = partial(floor.slice, operation, clients=THREADS, crowd=crowd)
        contestants[f"by hand: {kind}"] = partial(hand.slice, operation, threads=THREADS, crowd=crowd)
        contestants[f"module: {kind}"] = partial(ours.slice, operation, threads=THREADS, crowd=crowd)
    series = interleave(contestants, seconds=form.seconds, rounds=form.rounds)
    floor.check_complete()
    report = Report()
    for kind, (operation, _) in KINDS.items():
        for who in ("floor", "by hand", "module"):
            report.add_series(f"{who}: {operation}, {THREADS}, {kind.replace('_', ' ')}", series[f"{who}: {kind}"])
        module = series[f"module: {kind}"]
        report.summary[f"{kind}_vs_floor"] = ratio(module, series[f"floor: {kind}"])
        report.summary[f"{kind}_vs_by_hand"] = ratio(module, series[f"by hand: {kind}"])
        report.summary[f"{kind}_failed"] = module.failed
    return report
