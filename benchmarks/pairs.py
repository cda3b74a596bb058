"""Old and new commit in one run: short pairs of holds and of settlements with 8 threads, and of batches of 1,000.

Both work in turn on one server (fsync on), each in a process of its own with a database of its own; same interpreter,
same libraries, same tasks. In each pair the order is the other way round than in the one before. Every ten pairs
both begin anew with other processes and databases, so that no chance of one of them lasts, and are warmed up. The
garbage collector runs in both, and begins each measurement with nothing to look at.

The interval of the median ratio is that of order statistics: free of assumptions on the distribution, and
at least 95 % where there are six pairs or more. (Of 30 pairs, from the 10th to the 21st ratio: 95.7 %.)
``--profile`` shows instead where Python's time goes in the new commit, and how much that is in both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import comb
from pathlib import Path
from typing import Any

import psycopg

from .machine import machine
from .server import Server, postgresql

HERE = Path(__file__).resolve().parent.parent
KINDS = ("hold", "settle", "hold_many", "settle_many")  # what is settled is what was held just before
RENEWED = 10
WARM_UPS = 3
ENOUGH = 0.95
MOST_OUTSIDE = 0.05
TIMES = 15


class Contestant:
    """A process that has imported the package from a checkout."""

    def __init__(self, checkout: Path, folder: Path, url: str) -> None:
        folder.mkdir()
        (folder / "points_platform").symlink_to(checkout / "platform")
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "benchmarks.contestant", url]
        self._process = subprocess.Popen(
            command, cwd=HERE, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        imported = Path(self.ask("where"))
        if not imported.is_relative_to((checkout / "platform").resolve()):
            raise RuntimeError(f"{imported} was imported, and not what is in {checkout}")

    def ask(self, call: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([call, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a contestant ended while it was asked to {call}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    options = _options()
    checkouts = {"old": options.old, "new": HERE}
    with postgresql() as server:
        if options.profile:
            _profile(server, {name: path for name, path in checkouts.items() if path is not None})
            return
        rates = _rates(server, checkouts, pairs=options.pairs, seconds=options.seconds)
        results = {
            "machine": machine(server),
            **{name: _commit(path) for name, path in checkouts.items()},
            "pairs": options.pairs,
            "seconds": options.seconds,
            "ratios": {kind: compared(**rates[kind]) for kind in KINDS},
        }
    _show(results["ratios"])
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.pairs", description=__doc__)
    parser.add_argument("--old", type=Path, metavar="CHECKOUT", help="a checkout of the commit to compare with")
    parser.add_argument("--pairs", type=int, default=30, help="how many pairs of each kind there are (30)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each measurement takes (1.0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--profile", action="store_true", help="where Python's time goes, the server's answers faked")
    options = parser.parse_args()
    if options.old is None and not options.profile:
        parser.error("--old is missing: a checkout of the commit to compare with")
    return options


def _commit(checkout: Path) -> str:
    asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


# ── the pairs ──

Rates = dict[str, dict[str, list[float]]]


def _rates(server: Server, checkouts: Mapping[str, Path], *, pairs: int, seconds: float) -> Rates:
    """Items per second, by kind and contestant, pair by pair."""
    rates: Rates = {kind: {name: [] for name in checkouts} for kind in KINDS}
    for first in range(0, pairs, RENEWED):
        with _begun(server, checkouts, backwards=first // RENEWED % 2 == 1) as contestants:
            for warm_up in range(WARM_UPS):
                _pair(contestants, seconds / 3, -1 - warm_up)
            for pair in range(first, min(first + RENEWED, pairs)):
                for kind, found in _pair(contestants, seconds, pair).items():
                    for name, rate in found.items():
                        rates[kind][name].append(rate)
                print(f"pair {pair + 1} of {pairs}", file=sys.stderr, flush=True)
    return rates


def _pair(contestants: Mapping[str, Contestant], seconds: float, number: int) -> dict[str, dict[str, float]]:
    names = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
    rates: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for name in names:
            measured = contestants[name].ask("measure", kind=kind, seconds=seconds, seed=number)
            rates[kind][name] = measured["done"] / measured["seconds"]
    return rates


@contextmanager
def _begun(
    server: Server, checkouts: Mapping[str, Path], *, backwards: bool = False
) -> Iterator[dict[str, Contestant]]:
    """A process and a database for each, in which everybody has a wallet."""
    begun: dict[str, Contestant] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in list(checkouts)[::-1] if backwards else list(checkouts):
            server.copy("template1", name).close()
            begun[name] = Contestant(checkouts[name], folder / name, server.url(name))
            stack.callback(begun[name].close)
            begun[name].ask("open")
        for name in begun:
            with psycopg.connect(server.url(name).replace("+psycopg", ""), autocommit=True) as connection:
                connection.execute("VACUUM (ANALYZE)")
                connection.execute("CHECKPOINT")
        yield {name: begun[name] for name in checkouts}


# ── what they come to ──


def compared(*, old: Sequence[float], new: Sequence[float]) -> dict[str, Any]:
    """Medians, the ratio of each pair, their median with its interval, and whether the new one is fast enough."""
    ratios = [after / before for before, after in zip(old, new, strict=True)]
    low, high, certainty = interval(ratios)
    return {
        "old_per_s": round(statistics.median(old), 1),
        "new_per_s": round(statistics.median(new), 1),
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "certainty": round(certainty, 4),
        "enough": low >= ENOUGH,
        "ratios": [round(each, 4) for each in ratios],
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Between which two of the values the median is, and how certain: 95 % or more, where there are enough values.

    As many values are below the median as heads in so many throws of a coin.
    """
    ordered, count = sorted(values), len(values)
    place, below = 0, 1 / 2**count
    while 2 * (more := below + comb(count, place + 1) / 2**count) <= MOST_OUTSIDE:
        place, below = place + 1, more
    return ordered[place], ordered[-1 - place], max(0.0, 1 - 2 * below)


def _show(ratios: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'':12} {'old /s':>9} {'new /s':>9} {'new/old':>8}   {'interval':18}")
    for kind, found in ratios.items():
        bounds = f"{found['low']:.3f} to {found['high']:.3f} ({found['certainty']:.1%})"
        bounds += f", {'at least' if found['enough'] else 'NOT at least'} {ENOUGH}"
        rates = f"{found['old_per_s']:>9,.0f} {found['new_per_s']:>9,.0f}"
        print(f"{kind:12} {rates} {found['ratio']:>8.3f}   {bounds}")


# ── where Python's time goes ──


def _profile(server: Server, checkouts: Mapping[str, Path]) -> None:
    with _begun(server, checkouts) as contestants:
        for contestant in contestants.values():
            contestant.ask("fake")
        print("µs of processor time per item, the server's answers faked (median, least)")
        for kind in KINDS:
            seconds: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(TIMES):
                for name, contestant in contestants.items():
                    seconds[name].append(contestant.ask("time", kind=kind))
            figures = (f"{name} {statistics.median(s) * 1e6:.1f}, {min(s) * 1e6:.1f}" for name, s in seconds.items())
            print(f"{kind:12} {'   '.join(figures)}")
        for name, contestant in contestants.items():
            for kind in KINDS:
                print(f"\n{name}, {kind}: own µs, whole µs, calls per item (by the profiler)")
                for where, calls, own, whole in contestant.ask("profile", kind=kind, rounds=TIMES):
                    print(f"{own * 1e6:8.2f} {whole * 1e6:8.2f} {calls:7.2f}  {where}")


if __name__ == "__main__":
    main()
