"""What every command shares: its output, the line about the books, and one line for whatever goes wrong."""

import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.main import get_command

from ..core import Database, WalletError
from ..ledger.accounts import Bucket
from ..wallets import Books, books
from ..wallets.books import WALLET_COLUMNS

INTERRUPTED = 130
PASSWORD_OF_URL = re.compile(r"(://[^:/]*:).*")
PASSWORD = re.compile(r"(password=)[^&]*")
UNBOUNDED = 100_000

# Ids come from outside: nothing in them is markup. A line is never broken, so that it can be searched for.
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


JsonOption = Annotated[bool, typer.Option("--json", help="as one JSON object")]


class Refusal(typer.TyperException):
    """A command cannot do what it was asked; its message is what the user reads."""


def run(app: typer.Typer, arguments: Sequence[str] | None = None, *, failure: int = 1) -> int:
    """Carry out a command line and return its exit status; a failure is one line on stderr and its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter of a name
    given = sys.argv[1:] if arguments is None else arguments
    try:
        status = int(get_command(app).main(list(given), standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _fail(error.format_message(), failure)
    except (WalletError, OSError, ValueError) as error:
        return _fail(str(error), failure)
    if status == INTERRUPTED:
        typer.echo("interrupted", err=True)
    return status


def _fail(message: str, status: int) -> int:
    # A URL in the wrong place is quoted by the usage error, and may hold a password.
    shown = " ".join(map(_without_password, message.split()))
    typer.echo(f"error: {shown}", err=True)
    return status


def _without_password(word: str) -> str:
    # Where no @ follows, each :// would be followed to the end in vain: quadratic in what was typed.
    before, at, after = word.rpartition("@")
    return PASSWORD.sub(r"\1***", PASSWORD_OF_URL.sub(r"\1***", before) + at + after)


def show(table: Table) -> None:
    """Print a table as wide as its content: an id that is cut off cannot be used."""
    table.width = console.measure(table, options=console.options.update_width(UNBOUNDED)).maximum
    console.print(table)


def print_json(answer: Mapping[str, Any]) -> None:
    """Print one JSON object; times are ISO 8601 in UTC."""
    typer.echo(json.dumps(answer, default=_plain, ensure_ascii=False))


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def report_books(database: Database) -> bool:
    """Print for each currency whether its books balance, with the sums that say so; returns whether all do."""
    accounts = books(database)
    for account in accounts:
        console.print(books_line(account), style="green" if account.balanced else "bold red")
    return all(account.balanced for account in accounts)


def books_line(account: Books) -> str:
    """One currency's sums, each beside the one that it must equal."""
    verdict = "the books balance" if account.balanced else "THE BOOKS DO NOT BALANCE"
    escrow = account.wallets.get(Bucket.ESCROW, 0)
    wallets = (
        f"{bucket} {_compared(account.wallets.get(bucket, 0), account.ledger.get(bucket, 0))}"
        for bucket in WALLET_COLUMNS
        if bucket is not Bucket.PAYING or account.wallets.get(bucket) or account.ledger.get(bucket)
    )
    return (
        f"{verdict} ({account.currency}): entries sum to {account.entries:,}; "
        f"held escrow {_compared(account.held, escrow)} escrow balances; wallets and ledger: {', '.join(wallets)}"
    )


def _compared(left: int, right: int) -> str:
    return f"{left:,} {'=' if left == right else '!='} {right:,}"
