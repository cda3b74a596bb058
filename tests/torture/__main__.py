"""``python -m torture``: rounds on PostgreSQL and on SQLite in turn, until the time is over."""

import argparse
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import ExitStack
from pathlib import Path

from . import sizes, tokens
from .judge import Finding
from .planted import BUGS
from .rounds import Result, play
from .servers import PostgreSQL, SQLite, postgresql

LONGEST_ROUND = 60.0
ROUNDS_AT_LEAST = 4
# Of the rounds on PostgreSQL: all workers at the level that the server gives, each at another one, all at one.
ISOLATION = ("mixed", None, "SERIALIZABLE", "REPEATABLE READ")
PLANTED_ROUND = 10.0
PLANTED_LONGEST = 60.0
SHOWN = 20
TOKENS_A_SECOND = 600
LONG = 600


def main() -> int:
    """Run what the command line says; 0 if nothing was found (of planted bugs: if each was found)."""
    given = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has made it deaf to interrupts
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="points-platform-torture-"))
    keep = True
    try:
        with ExitStack() as stack:
            servers: list[PostgreSQL | SQLite] = []
            if given.database != "sqlite" or given.planted:
                servers.append(stack.enter_context(postgresql()))
            if given.planted:
                keep = False
                return _find_planted(servers[0], folder, given)
            if given.database != "postgresql":
                servers.append(SQLite(folder))
            keep = _torture(servers, folder, given)
            return int(keep)
    except KeyboardInterrupt:
        keep = False
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if keep:
            print(f"journals are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long the workers work, all rounds together")
    parser.add_argument("--workers", type=int, default=4, help="worker processes, each with two clients")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the steps and the faults")
    parser.add_argument("--database", choices=("both", "postgresql", "sqlite"), default="both")
    parser.add_argument(
        "--planted", choices=("all", *BUGS), help="plant a bug, and see how soon it is found (on PostgreSQL)"
    )
    return parser.parse_args()


def _torture(servers: list[PostgreSQL | SQLite], folder: Path, given: argparse.Namespace) -> bool:
    """Rounds on all servers in turn; whether something was found."""
    print(f"seed {given.seed}, {given.workers} workers, {given.seconds:g} s", flush=True)
    totals: dict[str, Counter[str]] = {server.name: Counter() for server in servers}
    recovery: dict[str, float] = dict.fromkeys(totals, 0.0)
    length = min(LONGEST_ROUND, given.seconds / max(ROUNDS_AT_LEAST, len(servers)))
    findings: list[Finding] = []
    for number in range(round(given.seconds / length)):
        server = servers[number % len(servers)]
        isolation = ISOLATION[number // len(servers) % len(ISOLATION)] if isinstance(server, PostgreSQL) else None
        place = folder / f"round_{number}"
        result = play(
            server,
            place,
            seconds=length,
            workers=given.workers,
            seed=f"{given.seed} {number}",
            isolation_level=isolation,
        )
        totals[server.name] += result.counts
        recovery[server.name] = max(recovery[server.name], result.recovery)
        findings += result.findings
        _say(number, server.name, isolation, result)
        if not result.findings:
            shutil.rmtree(place)
    _report(totals, recovery)
    findings += _forge(given)
    print(f"{len(findings)} findings")
    return bool(findings)


def _say(number: int, name: str, isolation: str | None, result: Result) -> None:
    level = f" {isolation}" if isolation else ""
    done = f"{result.counts['operations']} operations, {result.counts['histories']} histories"
    print(
        f"round {number} on {name}{level}: {done}, {len(result.findings)} findings, {result.seconds:.0f} s", flush=True
    )
    for finding in result.findings[:SHOWN]:
        print(f"  {finding.check}: {finding.what}", flush=True)


def _report(totals: dict[str, Counter[str]], recovery: dict[str, float]) -> None:
    names = sorted({name for counts in totals.values() for name in counts})
    width = max(map(len, names))
    print(f"\n{'':{width}}" + "".join(f"{name:>12}" for name in totals))
    for name in names:
        print(f"{name:{width}}" + "".join(f"{counts[name]:12,}" for counts in totals.values()))
    print(f"{'longest recovery, s':{width}}" + "".join(f"{seconds:12.1f}" for seconds in recovery.values()))


def _forge(given: argparse.Namespace) -> Iterator[Finding]:
    """Forged tokens; and in a long run the figures that a busy machine has a say in."""
    count = int(TOKENS_A_SECOND * given.seconds)
    try:
        causes = tokens.attack(count, given.seed)
    except tokens.Accepted as error:
        yield Finding("forged tokens", str(error))
        return
    print(f"{count:,} forged tokens: {', '.join(f'{cause} {number:,}' for cause, number in sorted(causes.items()))}")
    if given.seconds >= LONG:
        print(tokens.timing(given.seed))
        for growth in map(sizes.growth, sizes.CASES):
            print(f"refusing {growth.name} of size {growth.size:,}: x {growth.factor:.1f} for four times the size")


def _find_planted(server: PostgreSQL | SQLite, folder: Path, given: argparse.Namespace) -> int:
    """Each bug in turn; 0 if the workers have come to all its places, and it is found in time."""
    missed = 0
    for bug in BUGS if given.planted == "all" else [given.planted]:
        began = time.monotonic()
        found, unreached = _searched(server, folder, bug, given)
        seconds = time.monotonic() - began
        missed += found is None or bool(unreached)
        print(f"{bug:36}{seconds:6.0f} s  {found.check if found else 'NOT FOUND'}", flush=True)
        if unreached:
            print(f"    NOT REACHED: {', '.join(sorted(unreached))}", flush=True)
        if found:
            print(f"    {found.what[:300]}", flush=True)
    return int(missed > 0)


def _searched(
    server: PostgreSQL | SQLite, folder: Path, bug: str, given: argparse.Namespace
) -> tuple[Finding | None, Set[str]]:
    """Rounds until it is found and was reached wherever it is, or the time is over: what was found, what is missing."""
    began, found, unreached = time.monotonic(), None, set(BUGS[bug].places)
    for number in itertools.count():
        if (found and not unreached) or time.monotonic() - began > PLANTED_LONGEST:
            break
        result = play(
            server,
            folder / f"{bug} {number}",
            seconds=PLANTED_ROUND,
            workers=given.workers,
            seed=f"{given.seed} {bug} {number}",
            isolation_level=None,
            bug=bug,
        )
        unreached -= result.reached
        found = found or next(iter(result.findings), None)
    return found, unreached


if __name__ == "__main__":
    sys.exit(main())
