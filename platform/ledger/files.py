"""Carrying a ledger from one database to another: the log as JSON lines, each line checked as it is read.

A line is one transaction with its entries, at its position and with its hash; the last line has the count
and the head. What is read is held against the chain of hashes, so a line that was changed, lost, added or
moved is refused by its number.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, TextIO

from sqlalchemy import Connection

from ..core.database import Database, Retry
from ..core.errors import InvalidRequestError, OptimisticLockError
from ..core.failures import is_unique_violation
from ..core.values import canonical_json
from . import log_store, store
from .log import ENTRY_FIELDS, GENESIS, HEADER_FIELDS, OPTIONAL_FIELDS, chained, digest, header_of, plain
from .models import ENTRIES, TRANSACTIONS, LedgerEntry, LedgerTransaction, LogEntry, LogHead

BATCH = 1000
MAX_LINE = 2**20  # characters; a transaction with the largest metadata takes less than a tenth
IMPORTING = Retry(attempts=0, backoff=0)
NUMBERS = {"amount", "balance_before", "balance_after", "wallet_version"}
TIMES = {"occurred_at", "posted_at"}
JSON = {"metadata_json", "details_json"}
# What the tables' own columns refuse to be without.
REQUIRED = {column.key for table in (TRANSACTIONS, ENTRIES) for column in table.columns if not column.nullable}


def export_log(
    database: Database, file: TextIO, *, progress: Callable[[int], object] = lambda position: None
) -> LogHead:
    """Write the log to a text file, and return its head. Seal first: what is not sealed is not exported.

    Raises ``LedgerDamagedError``, ``StorageUnavailableError``.
    """
    head = GENESIS
    with database.snapshot() as connection:
        for entry in log_store.read_on(connection, 0):
            file.write(_line(entry))
            head = LogHead(position=entry.position, hash=entry.hash)
            progress(head.position)
    file.write(_json({"count": head.position, "hash": head.hash}))
    return head


def import_log(
    database: Database,
    file: TextIO,
    *,
    admit: Callable[[Connection], object],
    finish: Callable[[Connection], object],
    progress: Callable[[int], object] = lambda position: None,
) -> LogHead:
    """Write an exported log into an empty database, and return its head.

    It is committed in batches; after an interruption, importing the same file again goes on where it
    stopped. ``admit`` is called before the first batch, and may refuse; ``finish`` in the transaction of
    the last one. Raises ``InvalidRequestError`` that names the line of a damaged or cut file, or the
    database where that has another log; ``OptimisticLockError``, ``StorageUnavailableError``.
    """
    entries = _checked(file)
    reached = _passed_over(database, entries)
    batch = list(islice(entries, BATCH))
    if batch:
        with database.read() as connection:
            admit(connection)
    while batch:
        following = list(islice(entries, BATCH))
        _write(database, batch, None if following else finish)
        reached = LogHead(position=batch[-1].position, hash=batch[-1].hash)
        progress(reached.position)
        batch = following
    return reached


def _passed_over(database: Database, entries: Iterator[LogEntry]) -> LogHead:
    """Skip what the database has already; it must be exactly the beginning of the file."""
    with database.read() as connection:
        present = log_store.head(connection)
        if log_store.unsealed(connection, "", 1):
            raise _other_ledger("one in use: its ledger has transactions of its own")
    reached = GENESIS
    for entry in islice(entries, present.position):
        reached = LogHead(position=entry.position, hash=entry.hash)
    if reached != present:
        raise _other_ledger(f"one in use: its log is another one, with {present.position} transactions")
    return reached


def _write(database: Database, batch: list[LogEntry], finish: Callable[[Connection], object] | None) -> None:
    def attempt(connection: Connection, locked: bool, at: datetime) -> None:
        store.add(connection, [entry.transaction for entry in batch])
        rows = [(entry.transaction.transaction_id, entry.hash) for entry in batch]
        log_store.append(connection, batch[0].position - 1, rows)
        if finish is not None:
            finish(connection)

    try:
        database.run(attempt, retry=IMPORTING)
    except OptimisticLockError as error:
        if not (isinstance(error.__cause__, Exception) and is_unique_violation(error.__cause__)):
            raise
        field = f"lines {batch[0].position} to {batch[-1].position}"
        raise InvalidRequestError(field=field, value="one that is there", expected="other transactions") from error


def _checked(file: TextIO) -> Iterator[LogEntry]:
    """The entries of a file, each proved by the chain up to its line."""
    head = GENESIS
    lines = _numbered(file)
    for number, line in lines:
        content = _parsed(number, line)
        if "count" in content:
            if line != _json({"count": head.position, "hash": head.hash}):
                raise _damaged(number, f"the count {head.position} and the hash {head.hash}")
            for extra, _ in lines:
                raise _damaged(extra, "nothing after the count")
            return
        transaction = _transaction(number, content)
        head = LogHead(position=head.position + 1, hash=chained(head.hash, digest(transaction)))
        entry = LogEntry(position=head.position, hash=head.hash, transaction=transaction)
        if _line(entry) != line:
            raise _damaged(number, "the transaction that its hash stands for")
        yield entry
    raise _damaged(head.position + 1, "the count; the file is cut")


def _numbered(file: TextIO) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        # A longer line comes in parts, none of them a transaction: what is packed small must not fill the memory.
        while line := file.readline(MAX_LINE):
            number += 1
            yield number, line
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise _damaged(number + 1, "readable text") from error


def _parsed(number: int, line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _damaged(number, "a JSON object")
    return content


def _transaction(number: int, content: dict[str, Any]) -> LedgerTransaction:
    try:
        given = content["transaction"]
        names = [*HEADER_FIELDS, *(name for name in OPTIONAL_FIELDS if name in given)]
        header = {name: _value(name, given[name]) for name in names}
        entries = [{name: _value(name, entry[name]) for name in ENTRY_FIELDS} for entry in content["entries"]]
        return LedgerTransaction(**header, entries=tuple(LedgerEntry(**entry) for entry in entries))
    except (KeyError, TypeError, ValueError, RecursionError, InvalidRequestError):
        raise _damaged(number, "a transaction with its entries") from None


def _value(name: str, value: Any) -> Any:
    if value is None and name not in REQUIRED:
        return None
    if type(value) is not (int if name in NUMBERS else str):
        raise TypeError(name)
    if (isinstance(value, int) and not -(2**63) <= value < 2**63) or (isinstance(value, str) and "\0" in value):
        raise ValueError(name)  # what no database of ours can hold
    if isinstance(value, str):
        value.encode()  # a lone surrogate is a ValueError too
    if name in JSON and canonical_json(json.loads(str(value))) != value:
        raise ValueError(name)  # it could be stored, but not read
    return datetime.fromisoformat(str(value)) if name in TIMES else value


def _other_ledger(value: str) -> InvalidRequestError:
    return InvalidRequestError(
        field="database",
        value=value,
        expected="a new one, or one that an interrupted import of this very file has left",
    )


def _damaged(number: int, expected: str) -> InvalidRequestError:
    return InvalidRequestError(field=f"line {number}", value="something else", expected=expected)


def _line(entry: LogEntry) -> str:
    transaction = entry.transaction
    return _json(
        {
            "position": entry.position,
            "hash": entry.hash,
            "transaction": header_of(transaction),
            "entries": [{name: plain(getattr(e, name)) for name in ENTRY_FIELDS} for e in transaction.entries],
        }
    )


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
