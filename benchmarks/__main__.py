"""Run the benchmarks on a server of their own; print one table, write benchmarks/results.json.

All contestants work in turn, round after round, in one run on one server with fsync and synchronous commit
on. Ratios are medians of the rounds' own ratios. Linux only.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import batches, charts, decisions, embedded, growth, hot, ledger, memory, operations, reads, round_trips
from .machine import machine
from .report import Form, Report, show
from .server import Server, postgresql

RESULTS = Path(__file__).parent / "results.json"
LEDGER = "ledger"
PARTS: dict[str, Callable[[Server, Form], Report]] = {
    "operations": operations.measure,
    "hot": hot.measure,
    "batches": batches.measure,
    "decisions": decisions.measure,
    "reads": reads.measure,
    "round-trips": round_trips.measure,
    "growth": growth.measure,
    "sqlite": embedded.measure,
    "memory": memory.measure,
}
SHORT = Form(
    seconds=0.3,
    rounds=1,
    threads=(8,),
    zipf=False,
    batch_threads=(2,),
    growth=(10_000, 30_000),
    memory=(2000, 6000),
    ledger=(100,),
    ledger_rounds=10,
)
FULL = Form(
    seconds=1.2,
    rounds=5,
    threads=(1, 8, 32),
    zipf=True,
    batch_threads=(1, 2),
    growth=(10_000, 1_000_000),
    memory=(10_000, 50_000, 100_000, 250_000, 500_000),
    ledger=(100, 1000),
    ledger_rounds=60,
)
LONG = replace(FULL, growth=(10_000, 1_000_000, 5_000_000), ledger=(100, 1000, 5000))


def main() -> None:
    options = _options()
    form = SHORT if options.short else LONG if options.long else FULL
    form = replace(form, seconds=options.seconds or form.seconds, rounds=options.rounds or form.rounds)
    # By hand, a conflict ends a pipeline of psycopg's, which it remarks upon.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    reports: dict[str, Report] = {}
    others: dict[str, dict[str, Any]] = {}
    begin = time.monotonic()
    with postgresql() as server:
        ran_on = machine(server)
        for part in options.only:
            print(f"{time.monotonic() - begin:4.0f} s: {part}", file=sys.stderr, flush=True)
            if part == LEDGER:
                others |= _ledger(server, form, short=options.short)
            else:
                reports[part] = PARTS[part](server, form)
    ran_on["seconds taken"] = round(time.monotonic() - begin)
    summary = {name: round(value, 3) for report in reports.values() for name, value in report.summary.items()}
    results = {"machine": ran_on, "short": options.short, "form": vars(form), **others}
    results |= {part: report.as_dict() for part, report in reports.items()} | {"summary": summary}
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False))
    show(reports, {"machine": ran_on, **others}, summary)
    if options.charts is not None:
        charts.write(reports, options.charts)


def _options() -> argparse.Namespace:
    known = [LEDGER, *PARTS]
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes and one round, for CI")
    parser.add_argument("--long", action="store_true", help="also on ledgers of 5 million entries and transactions")
    parser.add_argument("--only", type=lambda given: given.split(","), default=known, help=", ".join(known))
    parser.add_argument("--seconds", type=float, help="how long each contestant works in each round")
    parser.add_argument("--rounds", type=int, help="how many rounds there are")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="write charts of the run as SVG there")
    options = parser.parse_args()
    unknown = set(options.only) - set(known)
    if unknown:
        parser.error(f"no part of that name: {', '.join(sorted(unknown))}")
    return options


def _ledger(server: Server, form: Form, *, short: bool) -> dict[str, dict[str, Any]]:
    results = {f"ledger of {size} thousand entries": ledger.whole_database(server, size) for size in form.ledger}
    results["reading"] = ledger.reading(server, form.ledger[0] if short else 1000)
    results["writing"] = ledger.writing(server, form.ledger_rounds)
    return results


if __name__ == "__main__":
    main()
