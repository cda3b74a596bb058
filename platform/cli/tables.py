"""The tables that the commands print: numbers to the right, ids whole, the rows of the usual data in 80 columns."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..ledger.models import EarningsPeriod, StatementLine
from ..wallets import EscrowItem

# What a spreadsheet computes instead of showing it, also in the letters of East Asian keyboards.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def amounts(title: str, rows: Iterable[tuple[str, Mapping[str, int]]], *, first: str) -> Table:
    """A row for each name, with its amounts in columns."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for _, values in rows for column in values))
    table = _table(title, first, numbers=columns)
    for name, values in rows:
        table.add_row(name, *(f"{values[column]:,}" if column in values else "" for column in columns))
    return table


def statement(title: str, lines: Iterable[StatementLine]) -> Table:
    """What happened to an owner's accounts, with the ids under each line."""
    table = _table(title, "when (UTC)", "operation, reason\ntransaction\nescrow item", numbers=("amount", "balance"))
    for line in lines:
        ids = "".join(f"\n{identifier}" for identifier in (line.transaction_id, line.escrow_id) if identifier)
        table.add_row(
            _time(line.posted_at),
            Text(f"{line.operation} {line.reason}").append(ids, style="dim"),
            Text(f"{line.amount:+,}", style="green" if line.amount > 0 else "red"),
            f"{'' if line.balance_after is None else f'{line.balance_after:,}'}\n{line.bucket}",
        )
    return table


def plain(value: EscrowItem | StatementLine | EarningsPeriod) -> dict[str, Any]:
    """What ``--json`` prints of it: all its fields, metadata as the object that it is."""
    told = {field.name: getattr(value, field.name) for field in fields(value)}
    if "metadata_json" in told:
        text = told.pop("metadata_json")
        told["metadata"] = None if text is None else json.loads(text)
    return told


def write_csv(lines: Iterable[StatementLine]) -> None:
    """The lines of a statement on stdout, a column for each of their fields.

    A text that a spreadsheet would take for a formula has an apostrophe before it; ``--json`` has it as it is.
    """
    names = [field.name for field in fields(StatementLine)]
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        cells = {**vars(line), "posted_at": line.posted_at.isoformat()}
        writer.writerow({name: _harmless(cell) for name, cell in cells.items()})


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def escrows(title: str, items: Iterable[EscrowItem]) -> Table:
    """Holds and what became of them."""
    texts = ("escrow item\nqueue item", "user\nmodel", "held since (UTC)\nstatus")
    table = _table(title, *texts, numbers=["held\nsettled"])
    for item in items:
        settled = f"{item.settled_amount:,} {item.currency}" if item.processed_at else ""
        table.add_row(
            Text(item.escrow_id).append(f"\n{item.queue_item_id}", style="dim"),
            f"{item.user_id}\n{item.model_id or ''}",
            f"{_time(item.created_at)}\n{item.status}",
            f"{item.amount:,} {item.currency}\n{settled}",
        )
    return table


def _table(title: str, *texts: str, numbers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for header in texts:
        table.add_column(header)
    for header in numbers:
        table.add_column(header, justify="right")
    return table


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
