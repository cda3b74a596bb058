"""The command ``points-platform``: look at wallets, escrow items and statements, or see an evening of it all."""

import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from random import randrange
from typing import Annotated

import typer

from ..core import Database, InvalidRequestError
from ..core.values import MAX_PAGE, check_time, now
from ..ledger import LedgerService, StatementLine
from ..queue import AuthorizationVerifier
from ..wallets import EscrowStatus, WalletService
from . import tables
from .databases import FORMS, VARIABLE, DatabaseOption, existing_database, prepared_database
from .demo import evening
from .ledger import commands
from .terminal import Refusal, console, report_books, run, show

AGE = re.compile(r"([0-9]{1,9})([smhd])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

COULD_NOT_RUN = 2  # verify's 1 means that there are findings

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Users' points, what waits in escrow, and what creators have earned.",
    epilog=f"Every command takes --database URL after its name, or {VARIABLE} from the environment: {FORMS}.",
)


app.add_typer(commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; without arguments it explains itself."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    return run(app, given, failure=COULD_NOT_RUN if given[0] == "verify" else 1)


def _time_or_age(text: str) -> datetime:
    """A point in time, given as such or as how long ago it was."""
    try:
        if age := AGE.fullmatch(text):
            return now() - timedelta(**{UNITS[age[2]]: int(age[1])})
        return check_time("time", datetime.fromisoformat(text))
    except (OverflowError, ValueError, InvalidRequestError):
        forms = "an ISO 8601 time with a UTC offset nor an age such as 30m, 2h or 1d"
        raise typer.BadParameter(f"{text!r} is neither {forms}") from None


OwnerArgument = Annotated[str, typer.Argument(metavar="OWNER", help="user:NAME or model:NAME", show_default=False)]
CurrencyOption = Annotated[str, typer.Option(metavar="CODE", help="which of the owner's currencies")]
LimitOption = Annotated[int, typer.Option(metavar="N", help=f"how many rows, up to {MAX_PAGE}")]
AfterOption = Annotated[
    str | None, typer.Option(metavar="CURSOR", show_default=False, help="go on where an earlier page ended")
]


@app.command(epilog="Example: points-platform demo --database sqlite:///evening.db --seed 7")
def demo(
    database: DatabaseOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", show_default=False, help="repeat the evening of that number; else a new one each time"
        ),
    ] = None,
) -> None:
    """An evening on a small platform, in a temporary SQLite file unless a database is named."""
    number = randrange(10_000) if seed is None else seed  # noqa: S311 - chooses a story, guards nothing
    with prepared_database(database) as opened:
        console.print(f"an evening on a small platform (--seed {number} repeats it)\n", style="bold")
        evening(opened, seed=number)
        console.print()
        if not report_books(opened):
            raise typer.Exit(1)


@app.command(epilog="Example: points-platform balance user:ana --database sqlite:///points.db")
def balance(owner: OwnerArgument, database: DatabaseOption = None, currency: CurrencyOption = "points") -> None:
    """What a user has available and in escrow, or what a model has earned."""
    kind, _, name = owner.partition(":")
    if kind not in {"user", "model"} or not name:
        raise Refusal(f"a balance is that of user:NAME or model:NAME, not of {owner!r}")
    with existing_database(database) as opened:
        wallets = _readable_wallets(opened)
        if kind == "user":
            user = wallets.get_user_balance(name, currency)
            sums = {"available": user.available, "escrow": user.escrow, "total": user.total}
        else:
            sums = {"earned": wallets.get_model_balance(name, currency).earned}
    show(tables.amounts(owner, [(currency, sums)], first="currency"))


@app.command(epilog="Example: points-platform escrows --held-before 2h --database sqlite:///points.db")
def escrows(
    database: DatabaseOption = None,
    user: Annotated[str | None, typer.Option(metavar="NAME", show_default=False, help="of this user")] = None,
    queue_item: Annotated[str | None, typer.Option(metavar="ID", show_default=False, help="of this queue item")] = None,
    status: Annotated[
        EscrowStatus | None,
        typer.Option(metavar="STATUS", show_default=False, help="held, settled, refunded or partially_settled"),
    ] = None,
    held_before: Annotated[
        datetime | None,
        typer.Option(
            parser=_time_or_age,
            metavar="TIME|AGE",
            show_default=False,
            help="held since before a time (2026-01-31T20:00:00Z), or for longer than an age (30m, 2h, 1d)",
        ),
    ] = None,
    limit: LimitOption = 50,
    after: AfterOption = None,
) -> None:
    """Holds and what became of them, oldest first; also the stuck ones. Give at least one filter."""
    if all(given is None for given in (user, queue_item, status, held_before)):
        raise Refusal("give at least one of --user, --queue-item, --status, --held-before")
    with existing_database(database) as opened:
        page = _readable_wallets(opened).list_escrows(
            user_id=user,
            queue_item_id=queue_item,
            status=status and status.value,
            held_before=held_before,
            limit=limit,
            after=after,
        )
    show(tables.escrows("escrow items", page.items))
    _hint(page.next)


@app.command(epilog="Example: points-platform statement model:luna --limit 20 --database sqlite:///points.db")
def statement(
    owner: OwnerArgument,
    database: DatabaseOption = None,
    currency: CurrencyOption = "points",
    bucket: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="only available, escrow, earned or issued"),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="all lines as CSV, oldest first")] = False,
    newest_first: Annotated[bool, typer.Option("--newest-first/--oldest-first", help="the order of the lines")] = True,
    limit: LimitOption = 50,
    after: AfterOption = None,
) -> None:
    """What happened to an owner's points, line by line; platform:issuer is where all of them come from."""
    with existing_database(database) as opened:
        if as_csv:
            tables.write_csv(_all_lines(LedgerService(opened), owner, currency, bucket))
            return
        page = LedgerService(opened).entries(
            owner, currency, bucket=bucket, newest_first=newest_first, limit=limit, after=after
        )
    show(tables.statement(f"{owner} ({currency})", page.items))
    _hint(page.next)


def _all_lines(ledger: LedgerService, owner: str, currency: str, bucket: str | None) -> Iterator[StatementLine]:
    cursor = None
    while True:
        page = ledger.entries(owner, currency, bucket=bucket, limit=MAX_PAGE, after=cursor)
        yield from page.items
        if (cursor := page.next) is None:
            return


def _hint(cursor: str | None) -> None:
    if cursor is not None:
        console.print(f"\nthere is more: the same command with --after {cursor}")


def _readable_wallets(database: Database) -> WalletService:
    """Wallets for looking at: nobody has a token that this throw-away key would verify."""
    return WalletService(LedgerService(database), authorizer=AuthorizationVerifier([secrets.token_bytes(32)]))
