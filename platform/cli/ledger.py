"""The commands that keep the ledger: seal, verify, rebuild, export, import."""

import gzip
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import jwt
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from ..core import Database
from ..core.values import MAX_POINTS, now
from ..ledger import LedgerService, LogHead
from ..ledger.files import export_log
from ..ledger.findings import Finding
from ..queue import AuthorizationKey
from ..wallets.rebuild import MOST_DRIFTS, Drift, drifts, put_right, restore
from ..wallets.verify import check_names, verify
from .databases import DatabaseOption, existing_database, prepared_database
from .known import Acceptance, AcceptOption, ByOption, KnownOption, ReasonOption
from .terminal import JsonOption, Refusal, console, print_json

SIGNED_FOR = "ledger-head"
DIGEST = re.compile("[0-9a-fA-F]{64}")

commands = typer.Typer()
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines; compressed if it ends in .gz")]


@commands.command(epilog="Example: points-platform seal --print-head --database sqlite:///points.db")
def seal(
    database: DatabaseOption = None,
    print_head: Annotated[bool, typer.Option("--print-head", help="print only the head, to be kept elsewhere")] = False,
    sign_with: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pem", show_default=False, help="print only the head, signed with an Ed25519 key"),
    ] = None,
) -> None:
    """Append to the log what the ledger has gained, also what committed late."""
    key = None if sign_with is None else _key(sign_with)
    with existing_database(database, writing=True) as opened, progress() as show:
        sealed = LedgerService(opened).seal(progress=lambda count: show(f"{count:,} transactions sealed"))
    if key is not None:
        typer.echo(_signed(sealed.head, key))
    elif print_head:
        typer.echo(sealed.head)
    else:
        waiting = f", {sealed.waiting:,} wait for a predecessor" if sealed.waiting else ""
        console.print(f"{sealed.appended:,} transactions sealed{waiting}; the head is {sealed.head}")


@commands.command("verify", epilog="Exit status: 0 nothing found that is not known, 1 findings, 2 could not run.")
def verify_command(
    database: DatabaseOption = None,
    since: Annotated[
        int, typer.Option(metavar="POSITION", min=0, max=MAX_POINTS, help="only what came after this position")
    ] = 0,
    head: Annotated[
        str | None,
        typer.Option(metavar="HEAD", show_default=False, help="a head that seal printed: finds what was cut off since"),
    ] = None,
    signed_by: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", show_default=False, help="the public key of a signed head")
    ] = None,
    known: KnownOption = None,
    accept: AcceptOption = None,
    by: ByOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check all invariants, the log and its chain, and that wallets and escrow items are what the ledger says."""
    if signed_by is not None and head is None:
        raise Refusal("--signed-by is for a signed --head")
    kept = None if head is None else _head(head, signed_by)
    accepted = Acceptance(known, accept, by, reason)
    with existing_database(database) as opened, progress(total=len(check_names())) as show:
        found = verify(opened, since=since, head=kept, progress=lambda check: show(f"checking {check}"))
        with closing(found) as findings:
            new = accepted.new(findings)
            count = _print_json(new, accepted) if as_json else _print_lines(map(_finding_line, new))
    if not as_json:
        console.print(_verdict(count, accepted))
    if count:
        raise typer.Exit(1)


def _verdict(count: int, accepted: Acceptance) -> str:
    known = f", beside {len(accepted.met):,} that are known" if accepted.met else ""
    if count:
        return f"{count:,} findings{known}"
    return f"nothing found{known}: everything {'else ' if known else ''}is as the ledger says"


@commands.command(epilog="Exit status: 0, 1 rows differ (--check) or could not be put right, 2 --check could not run.")
def rebuild(
    database: DatabaseOption = None,
    check: Annotated[bool, typer.Option("--check", help="only say whether anything differs")] = False,
    repair: Annotated[bool, typer.Option("--apply", help="put each row right, under its lock")] = False,
    known: KnownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute wallets and escrow items from the ledger, and say what has drifted; with --apply, put it right."""
    if check and repair:
        raise Refusal("--check only asks; give it or --apply")
    if known is not None and not repair:
        raise Refusal("--known is for --apply, which puts nothing right beside damage that nobody has accepted")
    with existing_database(database, writing=repair) as opened, progress() as show:
        if repair:
            show("verifying the ledger")
            _repair(opened, Acceptance(known), as_json=as_json)
            return
        show("comparing with the ledger")
        with opened.snapshot() as connection:
            found = list(drifts(connection, limit=1 if check else MOST_DRIFTS))
    if as_json:
        print_json({"rows": [vars(drift) for drift in found]})
    elif check:
        console.print("rows differ from the ledger" if found else "every row is what the ledger says")
    else:
        count = _print_lines(map(_plan, found))
        console.print(f"{count:,} rows to repair, with --apply" if count else "nothing to repair")
    if check and found:
        raise typer.Exit(1)


def _repair(database: Database, accepted: Acceptance, *, as_json: bool) -> None:
    """Repair all rows, unless the ledger has damage that nobody has accepted: it would spread what was done to it."""
    with closing(verify(database, ledger_only=True)) as findings:
        damaged = any(True for _ in accepted.new(findings))
    if damaged:
        raise Refusal("the ledger itself has findings, so nothing is repaired from it: see verify, and --known")
    repaired, left = put_right(database, lambda drift: None if as_json else console.print(f"repaired {_named(drift)}"))
    if as_json:
        print_json({"repaired": [vars(drift) for drift in repaired], "left": [vars(drift) for drift in left]})
    else:
        _print_lines(f"cannot be put right: {_named(drift)}" for drift in left)
        if repaired or not left:
            console.print(f"{len(repaired):,} rows repaired" if repaired else "nothing to repair")
    if left:
        raise typer.Exit(1)


@commands.command("export", epilog="Example: points-platform export ledger.jsonl.gz --database sqlite:///points.db")
def export_command(
    file: FileArgument,
    database: DatabaseOption = None,
    force: Annotated[bool, typer.Option("--force", help="write over a file that is there")] = False,
) -> None:
    """Seal, then write the whole log: a line for each transaction, at the end the count and the head."""
    _check_free(file, force=force)
    with existing_database(database, writing=True) as opened, progress() as show:
        sealed = LedgerService(opened).seal(progress=lambda count: show(f"{count:,} transactions sealed"))
        if sealed.waiting:
            raise Refusal(f"{sealed.waiting:,} transactions wait for one that is missing, so the log is not whole")
        unfinished = file.with_name(f".{file.name}.part")
        try:
            with _writing(unfinished, compressed=file.suffix == ".gz") as text:
                head = export_log(opened, text, progress=lambda at: show(f"{at:,} transactions written"))
            _check_free(file, force=force)  # it may have come meanwhile
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
    console.print(f"{head.position:,} transactions in {file}; the head is {head}")


def _check_free(file: Path, *, force: bool) -> None:
    if file.is_dir():
        raise Refusal(f"{file} is a folder; name a file in it")
    if not force and (file.exists() or file.is_symlink()):
        raise Refusal(f"{file} is there already, and may be the only copy of an earlier export; --force replaces it")


@commands.command("import", epilog="Example: points-platform import ledger.jsonl.gz --database sqlite:///copy.db")
def import_command(file: FileArgument, database: DatabaseOption = None) -> None:
    """Write an exported log into an empty database, with its wallets and escrow items; an interrupted one goes on."""
    if not database:
        raise Refusal("which database? give --database URL after the command's name")
    with _reading(file) as text, prepared_database(database) as opened, progress() as show:
        head = restore(opened, text, progress=lambda at: show(f"{at:,} transactions read"))
    console.print(f"{head.position:,} transactions are there; the head is {head}")


@contextmanager
def progress(total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A bar of so many steps on the terminal, or a line that changes; nothing where nobody watches."""
    terminal = Console(stderr=True)
    columns = (SpinnerColumn(), *([BarColumn()] if total else []), TextColumn("{task.description}"))
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, description=text, advance=1)


def _print_lines(lines: Iterable[str]) -> int:
    count = 0
    for line in lines:
        console.print(line)
        count += 1
    return count


def _print_json(findings: Iterable[Finding], accepted: Acceptance) -> int:
    """Print the findings as they come, so that any number of them takes no memory."""
    count = 0
    sys.stdout.write('{"findings": [')
    for finding in findings:
        sys.stdout.write((",\n" if count else "\n") + json.dumps(vars(finding), default=str))
        count += 1
    known = [{**vars(each.finding), "by": each.by, "reason": each.reason, "at": each.at} for each in accepted.met]
    sys.stdout.write(('], "known": ' + json.dumps(known, default=str) if accepted.asked else "]") + "}\n")
    return count


def _finding_line(finding: Finding) -> str:
    return f"{finding.kind} {_pairs(finding.ids)}: expected {_value(finding.expected)}, found {_value(finding.found)}"


def _plan(drift: Drift) -> str:
    what = "insert" if drift.found is None else "delete" if drift.expected is None else "update"
    return f"{what} {_named(drift)}"


def _named(drift: Drift) -> str:
    return f"{drift.table} {_pairs(drift.key)}: {_changes(drift)}"


def _changes(drift: Drift) -> str:
    expected, found = drift.expected or {}, drift.found or {}
    return ", ".join(f"{name} {_value(found.get(name))} -> {_value(expected.get(name))}" for name in drift.columns)


def _pairs(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _value(value: Any) -> str:
    return f"({_pairs(value)})" if isinstance(value, dict) else str(value)


def _key(path: Path) -> AuthorizationKey:
    key = AuthorizationKey.of(path.read_bytes())
    if key.algorithm != "EdDSA":
        raise Refusal(f"{path} holds no Ed25519 key")
    return key


def _signed(head: LogHead, key: AuthorizationKey) -> str:
    if key.signing is None:
        raise Refusal("a public key cannot sign; give the private one")
    claims = {"aud": SIGNED_FOR, "iat": int(now().timestamp()), "position": head.position, "hash": head.hash}
    return jwt.encode(claims, key.signing, algorithm=key.algorithm, headers={"kid": key.kid})


def _head(text: str, signed_by: Path | None) -> LogHead:
    """A head as seal has printed it, signed or not."""
    if signed_by is not None:
        key = _key(signed_by)
        try:
            claims = jwt.decode(text, key.verifying, algorithms=[key.algorithm], audience=SIGNED_FOR)
            return LogHead(position=claims["position"], hash=claims["hash"])
        except (jwt.PyJWTError, KeyError):
            raise Refusal(f"the head is not signed by {signed_by}") from None
    position, _, digest = text.strip().partition(":")
    if not (position.isascii() and position.isdigit() and len(position) < 16 and DIGEST.fullmatch(digest)):
        raise Refusal("a head looks like 42:1f3a…, with 64 hexadecimal digits; for a signed one give --signed-by")
    return LogHead(position=int(position), hash=digest.lower())


@contextmanager
def _writing(path: Path, *, compressed: bool) -> Iterator[TextIO]:
    # Neither a name nor a time in the file: the same ledger gives the same bytes.
    with path.open("wb") as file:
        binary = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if compressed else file
        with io.TextIOWrapper(binary, encoding="utf-8", newline="\n") as text:
            yield text
            text.flush()
            if compressed:
                binary.close()
            os.fsync(file.fileno())


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    with path.open("rb") as file:
        binary = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        with io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="\n") as text:
            yield text
