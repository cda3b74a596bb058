"""Run the benchmarks on a server of their own; print a table, write benchmarks/results.json."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import ledger
from .server import SETTINGS, postgresql

RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes and few rounds, for CI")
    parser.add_argument("--long", action="store_true", help="also a ledger of 5 million entries")
    options = parser.parse_args()
    sizes = [100] if options.short else [100, 1000, 5000] if options.long else [100, 1000]
    with postgresql() as server:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "postgresql": server.version()}
        results: dict[str, Any] = {"machine": machine | SETTINGS, "short": options.short}
        for size in sizes:
            results[f"ledger of {size} thousand entries"] = ledger.whole_database(server, size)
        results["reading"] = ledger.reading(server, sizes[-1] if options.short else 1000)
        results["writing"] = ledger.writing(server, 10 if options.short else 60)
    RESULTS.write_text(json.dumps(results, indent=2))
    show(results)


def show(results: dict[str, Any]) -> None:
    table = Table("what", "figure", "value")
    for what, figures in results.items():
        if isinstance(figures, dict):
            for name, value in figures.items():
                table.add_row(what, name, f"{value:,}" if isinstance(value, int | float) else str(value))
            table.add_section()
    Console().print(table)


main()
