"""The commands for the schema: what is there and what is missing, bringing it to this release's, and the script."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from textwrap import dedent
from typing import Annotated

import typer

from ..core.schema import SchemaState
from ..migrations import HEAD, Stamp, script
from .databases import DatabaseOption, any_database, parted, required
from .terminal import Refusal, console

commands = typer.Typer(
    invoke_without_command=True,
    help="What there is of the schema and what is missing; upgrade brings it to this release's.",
    epilog="Exit status: 0 all is there, 1 something is missing, 2 could not run. "
    "Example: points-platform schema --database sqlite:///points.db",
)


@commands.callback()
def show(
    context: typer.Context,
    database: DatabaseOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """What there is of the schema and what is missing."""
    if context.invoked_subcommand is not None:
        source = context.get_parameter_source("database")
        if source is not None and source.name == "COMMANDLINE":  # the command's own would win, from wherever
            raise Refusal(f"give --database after {context.invoked_subcommand}")
        return
    with any_database(database) as opened:
        state = opened.schema_state()
    if as_json:
        sys.stdout.write(json.dumps(asdict(state) | {"complete": state.complete}) + "\n")
    else:
        for line in _lines(state):
            console.print(line)
    if not state.complete:
        raise typer.Exit(1)


@commands.command(epilog="Example: points-platform schema upgrade --database sqlite:///points.db")
def upgrade(database: DatabaseOption = None) -> None:
    """Bring an empty or older database to this release's schema; what is there already stays."""
    with any_database(database, writing=True) as opened:
        before = opened.schema_state()
        opened.create_schema()
        after = opened.schema_state()
    came = f"from {before.revision}" if before.revision else "from nothing"
    if before.revision == after.revision:
        console.print(f"the schema is at {after.revision} already; nothing was changed")
    else:
        console.print(f"the schema has come {came} to {after.revision}")
    for line in _missing(after):
        console.print(line)


@commands.command("sql", epilog="Example: points-platform schema sql --dialect postgresql | psql")
def print_sql(
    database: DatabaseOption = None,
    dialect: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="for an empty database: postgresql or sqlite"),
    ] = None,
    schema: Annotated[
        str | None, typer.Option("--schema", metavar="NAME", show_default=False, help="with --dialect postgresql")
    ] = None,
) -> None:
    """What upgrade would execute, for somebody else to run; of a named database what is left to do."""
    if dialect is not None:
        statements = script(dialect, schema)
    elif schema is not None:
        raise Refusal("--schema is for --dialect; a database is named with ?schema=NAME")
    else:
        statements = _left(database)
    for statement in statements:
        sys.stdout.write(f"{dedent(statement).strip()};\n")


def _left(database: str | None) -> Iterator[str]:
    url = required(database)
    with any_database(url) as opened:
        state, dialect = opened.schema_state(), opened.engine.dialect.name
    since = Stamp(state.revision, state.oldest_writer or HEAD) if state.revision else None
    return script(dialect, parted(url)[1], since=since)


def _lines(state: SchemaState) -> Iterator[str]:
    if state.revision is None:
        yield f"nothing of the module is there; schema upgrade makes the schema {state.head}"
        return
    yield f"schema {state.revision}; this release has {state.head}; releases from {state.oldest_writer} on may write"
    if not state.serves:
        older = state.revision < state.head
        yield "schema upgrade brings it here" if older else "this release is too old to write to it"
    yield from _missing(state)
    if state.complete:
        yield "all tables, triggers, constraints and indexes are there"


def _missing(state: SchemaState) -> Iterator[str]:
    for each in state.missing:
        of = f" of {each['table']}" if each["table"] else ""
        found = f", there is: {each['found']}" if each["found"] else ""
        yield f"missing: {each['what']} {each['name']}{of}{found}"
