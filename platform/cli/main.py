"""The command ``points-platform``: look at wallets, escrow items and statements, or see an evening of it all."""

import re
import secrets
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from importlib import metadata
from random import randrange
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from ..core import Database, InvalidRequestError
from ..core.values import MAX_PAGE, check_time, every, now
from ..ledger import Account, LedgerService
from ..ledger.accounts import WALLETS, Bucket
from ..queue import AuthorizationVerifier
from ..wallets import EscrowStatus, WalletService
from . import keys, schema, tables
from .databases import FORMS, VARIABLE, DatabaseOption, existing_database, prepared_database
from .demo import evening
from .ledger import commands
from .terminal import JsonOption, Refusal, console, print_json, report_books, run, show

AGE = re.compile(r"([0-9]{1,9})([smhd])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

COULD_NOT_RUN = 2  # where 1 is an answer: there are findings, rows differ, something is missing
ANSWERING = {"verify", "schema"}


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"points-platform {metadata.version('points-platform')}")
        raise typer.Exit


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Users' points, what waits in escrow, and what creators have earned.",
    epilog=f"A command on a database takes --database URL after its name, or (not demo) {VARIABLE} of the environment: "
    f"{FORMS}.",
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="print the version")
    ] = False,
) -> None:
    pass


app.add_typer(commands)
app.add_typer(keys.commands)
app.add_typer(schema.commands, name="schema")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; without arguments it explains itself."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    answers = given[0] in ANSWERING or (given[0] == "rebuild" and "--check" in given)
    return run(app, given, failure=COULD_NOT_RUN if answers else 1)


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
    database: Annotated[
        str | None,
        # Not from the environment: what stands there is a platform's own ledger.
        typer.Option("--database", metavar="URL", show_default=False, help="the URL of a new, empty database"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", show_default=False, help="repeat the evening of that number; else a new one each time"
        ),
    ] = None,
) -> None:
    """An evening on a small platform, in a temporary SQLite file unless a new, empty database is named."""
    number = randrange(10_000) if seed is None else seed  # noqa: S311 - chooses a story, guards nothing
    with prepared_database(database, new=True) as opened:
        console.print(f"an evening on a small platform (--seed {number} repeats it)\n", style="bold")
        evening(opened, seed=number)
        console.print()
        if not report_books(opened):
            raise typer.Exit(1)


@app.command(epilog="Example: points-platform balance user:ana --database sqlite:///points.db")
def balance(
    owner: OwnerArgument,
    database: DatabaseOption = None,
    currency: CurrencyOption = "points",
    at: Annotated[
        datetime | None,
        typer.Option(parser=_time_or_age, metavar="TIME|AGE", show_default=False, help="as of then"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a user has available and in escrow, or what a model has earned; now, or as of a time."""
    kind, _, name = owner.partition(":")
    if kind not in WALLETS or not name:
        raise Refusal(f"a balance is that of user:NAME or model:NAME, not of {owner!r}")
    with existing_database(database) as opened:
        if at is not None:
            ledger, buckets = LedgerService(opened), [b for b in WALLETS[kind] if b is not Bucket.PAYING]
            sums = {b.value: ledger.balance_as_of(Account(owner, b), currency, at=at) for b in buckets}
        elif kind == "user":
            user = _readable_wallets(opened).get_user_balance(name, currency)
            sums = {"available": user.available, "escrow": user.escrow}
        else:
            sums = {"earned": _readable_wallets(opened).get_model_balance(name, currency).earned}
    total = {"total": sum(sums.values())} if kind == "user" else {}
    if as_json:
        print_json({"owner": owner, "currency": currency, **sums, **total})
    else:
        show(tables.amounts(owner, [(currency, sums | total)], first="currency"))


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
    as_json: JsonOption = False,
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
    if as_json:
        print_json({"items": [tables.plain(item) for item in page.items], "next": page.next})
        return
    show(tables.escrows("escrow items", page.items))
    _hint(page.next)


def _filter(help_: str, metavar: str = "CODE") -> Any:
    return typer.Option(metavar=metavar, show_default=False, help=help_)


def _moment(help_: str) -> Any:
    return typer.Option(parser=_time_or_age, metavar="TIME|AGE", show_default=False, help=help_)


@app.command(epilog="Example: points-platform statement model:luna --since 7d --database sqlite:///points.db")
def statement(
    owner: OwnerArgument,
    database: DatabaseOption = None,
    currency: CurrencyOption = "points",
    bucket: Annotated[str | None, _filter("only available, escrow, earned or issued", "NAME")] = None,
    operation: Annotated[str | None, _filter("only credit, hold, settle, refund or partial_settle", "NAME")] = None,
    reason: Annotated[str | None, _filter("only for this reason")] = None,
    escrow_item: Annotated[str | None, _filter("only of this escrow item", "ID")] = None,
    queue_item: Annotated[str | None, _filter("only of this queue item", "ID")] = None,
    request: Annotated[str | None, _filter("only of this request", "ID")] = None,
    since: Annotated[datetime | None, _moment("posted at that time or later")] = None,
    until: Annotated[datetime | None, _moment("posted before that time")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="all lines as CSV, oldest first")] = False,
    newest_first: Annotated[bool, typer.Option("--newest-first/--oldest-first", help="the order of the lines")] = True,
    limit: LimitOption = 50,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """What happened to an owner's points, line by line; platform:issuer is where all of them come from."""
    if as_csv and as_json:
        raise Refusal("--csv or --json, not both")
    with existing_database(database) as opened:
        which: dict[str, Any] = {"bucket": bucket, "operation": operation, "reason": reason, "escrow_id": escrow_item}
        which |= {"queue_item_id": queue_item, "request_id": request, "since": since, "until": until}
        read = partial(LedgerService(opened).entries, owner, currency, **which)
        if as_csv:
            tables.write_csv(every(read))
            return
        page = read(newest_first=newest_first, limit=limit, after=after)
    if as_json:
        print_json({"lines": [tables.plain(line) for line in page.items], "next": page.next})
        return
    show(tables.statement(f"{owner} ({currency})", page.items))
    _hint(page.next)


@app.command(epilog="Example: points-platform earnings luna --per week --timezone Europe/Vienna --since 90d")
def earnings(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="the model's name", show_default=False)],
    database: DatabaseOption = None,
    currency: CurrencyOption = "points",
    per: Annotated[str, typer.Option(metavar="PERIOD", help="day, week or month")] = "day",
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="whose days, weeks and months")] = "UTC",
    since: Annotated[datetime, _moment("from the period of that time on; else 30 days ago")] = "30d",  # type: ignore[assignment]
    until: Annotated[datetime, _moment("up to the period of that time; else now")] = "0s",  # type: ignore[assignment]
    as_json: JsonOption = False,
) -> None:
    """What a model has earned per day, week or month of a time zone."""
    with existing_database(database) as opened:
        periods = LedgerService(opened).earnings(
            model, currency, period=per, timezone=timezone, since=since, until=until
        )
    if as_json:
        told = [tables.plain(period) for period in periods]
        print_json({"model": model, "currency": currency, "per": per, "timezone": timezone, "periods": told})
        return
    zone = ZoneInfo(timezone)
    rows = [(f"{period.start.astimezone(zone):%Y-%m-%d}", {"earned": period.earned}) for period in periods]
    show(tables.amounts(f"model:{model} ({currency})", rows, first=f"{per} ({timezone})"))


def _hint(cursor: str | None) -> None:
    if cursor is not None:
        console.print(f"\nthere is more: the same command with --after {cursor}")


def _readable_wallets(database: Database) -> WalletService:
    """Wallets for looking at: nobody has a token that this throw-away key would verify."""
    return WalletService(LedgerService(database), authorizer=AuthorizationVerifier([secrets.token_bytes(32)]))
