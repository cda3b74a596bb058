"""All SQL on the log's tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, bindparam, func, insert, select, update

from ..core.errors import LedgerDamagedError
from ..core.models import UtcDateTime
from ..core.schema import Sql
from .accounts import WALLETS
from .log import ENTRY_FIELDS, GENESIS, HEADER_FIELDS, OPTIONAL_FIELDS, Candidate, Wallet, candidate, chained, digest
from .models import ENTRIES, LOG, LOG_READERS, TRANSACTIONS, LogEntry, LogHead
from .store import OF_TRANSACTION, RECORD, collect

STREAMED_ROWS = 2000


def _field(column: Column[Any], table: str) -> str:
    """The SQL of one field of the canonical form (``log.canonical_form``)."""
    name = f"{table}.{column.name}"
    if isinstance(column.type, UtcDateTime):
        return f"""to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
    return name


def _fields(table: str, columns: Any, names: Sequence[str]) -> str:
    return ", ".join(_field(columns[name], table) for name in names)


def _canonical_form() -> str:
    """``log.canonical_form`` where the rows are: a transaction then costs a line instead of its rows."""
    header, entries = _fields("t", TRANSACTIONS.c, HEADER_FIELDS), "coalesce(e.entries, '[]')"
    [optional] = OPTIONAL_FIELDS
    details = _fields("t", TRANSACTIONS.c, [optional])
    return f"""CASE WHEN {details} IS NULL THEN json_build_array({header}, {entries})
        ELSE json_build_array({header}, {details}, {entries}) END::text"""


CANONICAL_FORM = _canonical_form()
DIGEST = f"encode(sha256(convert_to({CANONICAL_FORM}, 'UTF8')), 'hex')"
ENTRIES_OF = f"""
    json_agg(json_build_array({_fields("e", ENTRIES.c, ENTRY_FIELDS)}) ORDER BY e.account_id, e.bucket)
"""

# Put together from constants of this package alone.
_UNSEALED = Sql(f"""
    SELECT t.transaction_id, t.currency, {DIGEST} AS digest, e.versions
    FROM (
        SELECT * FROM {TRANSACTIONS} t
        WHERE t.transaction_id > :after
          AND NOT EXISTS (SELECT FROM {LOG} l WHERE l.transaction_id = t.transaction_id)
        ORDER BY t.transaction_id
        LIMIT :limit
    ) t
    CROSS JOIN LATERAL (
        SELECT {ENTRIES_OF} AS entries,
               string_agg(e.wallet_version || ' ' || e.account_id, E'\n') AS versions
        FROM {ENTRIES} e
        WHERE e.transaction_id = t.transaction_id
    ) e
    ORDER BY t.transaction_id
""")

_CHANGED = Sql(f"""
    WITH changed AS MATERIALIZED (
        SELECT l.position, l.position - 1 AS last_position, l.transaction_id, l.hash,
            encode(sha256(convert_to(coalesce(p.hash, :genesis) || {DIGEST}, 'UTF8')), 'hex') AS expected
        FROM {LOG} l
        JOIN {TRANSACTIONS} t ON t.transaction_id = l.transaction_id
        LEFT JOIN {LOG} p ON p.position = l.position - 1
        LEFT JOIN (
            SELECT e.transaction_id, {ENTRIES_OF} AS entries FROM {ENTRIES} e GROUP BY e.transaction_id
        ) e ON e.transaction_id = t.transaction_id
        WHERE l.position > :since AND (p.position IS NOT NULL OR l.position = 1)
    )
    SELECT * FROM changed WHERE expected <> hash ORDER BY position LIMIT :limit
""")
_MISSING = Sql(f"""
    SELECT * FROM (
        SELECT l.position, LAG(l.position, 1, CAST(:since AS bigint)) OVER (ORDER BY l.position) AS last_position,
            l.transaction_id, l.hash, t.transaction_id AS found_id
        FROM {LOG} l LEFT JOIN {TRANSACTIONS} t ON t.transaction_id = l.transaction_id
        WHERE l.position > :since
    ) l
    WHERE l.position <> l.last_position + 1 OR l.found_id IS NULL
    ORDER BY l.position
    LIMIT :limit
""")

# An index leads by bucket to a version.
_BUCKETS = ", ".join(sorted({f"'{bucket.value}'" for buckets in WALLETS.values() for bucket in buckets}))

_SEALED_VERSIONS = {
    "postgresql": Sql(f"""
        SELECT w.account_id, w.currency
        FROM unnest(string_to_array(:accounts, E'\n'), string_to_array(:currencies, E'\n'),
                    CAST(string_to_array(:versions, E'\n') AS bigint[])) AS w (account_id, currency, version)
        WHERE EXISTS (
            SELECT FROM {ENTRIES} e JOIN {LOG} l ON l.transaction_id = e.transaction_id
            WHERE e.account_id = w.account_id AND e.currency = w.currency
              AND e.bucket IN ({_BUCKETS}) AND e.wallet_version = w.version
        )
    """),
    "sqlite": Sql(f"""
        SELECT w.value ->> 0, w.value ->> 1
        FROM json_each(:wallets) AS w
        WHERE EXISTS (
            SELECT 1 FROM {ENTRIES} e JOIN {LOG} l ON l.transaction_id = e.transaction_id
            WHERE e.account_id = w.value ->> 0 AND e.currency = w.value ->> 1
              AND e.bucket IN ({_BUCKETS}) AND e.wallet_version = w.value ->> 2
        )
    """),
}

_SEALED_IDS = {
    "postgresql": Sql(f"""
        SELECT l.transaction_id FROM unnest(string_to_array(:ids, E'\n')) AS given (id)
        JOIN {LOG} l ON l.transaction_id = given.id
    """),
    "sqlite": Sql(f"SELECT transaction_id FROM {LOG} WHERE transaction_id IN (SELECT value FROM json_each(:ids))"),
}

_APPEND = Sql(f"""
    INSERT INTO {LOG} (position, transaction_id, hash)
    SELECT :last + number, transaction_id, hash
    FROM unnest(string_to_array(:ids, E'\n'), string_to_array(:hashes, E'\n'))
         WITH ORDINALITY AS l (transaction_id, hash, number)
""")


def head(connection: Connection, *, lock: bool = False) -> LogHead:
    """The last position and its hash; locked, so that sealers come one after the other where they met before."""
    statement = select(LOG.c.position, LOG.c.hash).order_by(LOG.c.position.desc()).limit(1)
    if lock:
        connection.execute(statement.with_for_update())
    row = connection.execute(statement).first()
    return LogHead(position=row.position, hash=row.hash) if row else GENESIS


def newest_sealed(connection: Connection) -> str | None:
    newest: str | None = connection.scalar(select(func.max(LOG.c.transaction_id)))
    return newest


def unsealed(connection: Connection, after: str, limit: int) -> list[Candidate]:
    """The first transactions after that id that are not in the log."""
    if connection.dialect.name == "sqlite":
        return _unsealed_rows(connection, after, limit)
    rows = connection.execute(_UNSEALED, {"after": after, "limit": limit}).all()
    return [Candidate(id_, digest_, _versions(currency, lines)) for id_, currency, digest_, lines in rows]


def _versions(currency: str, lines: str | None) -> dict[Wallet, int]:
    pairs = (line.split(" ", 1) for line in lines.split("\n")) if lines else ()
    return {(account, currency): int(version) for version, account in pairs}


def _unsealed_rows(connection: Connection, after: str, limit: int) -> list[Candidate]:
    sealed = select(LOG.c.position).where(LOG.c.transaction_id == TRANSACTIONS.c.transaction_id).exists()
    first = select(TRANSACTIONS).where(TRANSACTIONS.c.transaction_id > after, ~sealed)
    ids = select(first.order_by(TRANSACTIONS.c.transaction_id).limit(limit).subquery().c.transaction_id)
    statement = (
        select(*RECORD)
        .join_from(TRANSACTIONS, ENTRIES, OF_TRANSACTION, isouter=True)
        .where(TRANSACTIONS.c.transaction_id.in_(ids))
        .order_by(TRANSACTIONS.c.transaction_id)
    )
    rows = connection.execute(statement).all()
    groups = groupby(rows, key=lambda row: row._mapping[TRANSACTIONS.c.transaction_id])
    return [candidate(collect(list(group))) for _, group in groups]


def still_unsealed(connection: Connection, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those candidates that nobody has sealed meanwhile; any number of them."""
    if not candidates:
        return []
    ids = [each.transaction_id for each in candidates]
    given = json.dumps(ids) if connection.dialect.name == "sqlite" else "\n".join(ids)
    sealed = set(connection.scalars(_SEALED_IDS[connection.dialect.name], {"ids": given}))
    return [each for each in candidates if each.transaction_id not in sealed]


def sealed_versions(connection: Connection, wanted: Mapping[Wallet, int]) -> set[Wallet]:
    """Those of these wallets that have the wanted version in the log."""
    if not wanted:
        return set()
    parameters: dict[str, Any]
    if connection.dialect.name == "sqlite":
        parameters = {"wallets": json.dumps([[*wallet, version] for wallet, version in wanted.items()])}
    else:
        accounts, currencies = zip(*wanted, strict=True)
        # One text each, cut up by the server: cheaper than arrays, and no identifier has a line break.
        columns = {"accounts": accounts, "currencies": currencies, "versions": map(str, wanted.values())}
        parameters = {name: "\n".join(values) for name, values in columns.items()}
    rows = connection.execute(_SEALED_VERSIONS[connection.dialect.name], parameters).all()
    return {(account, currency) for account, currency in rows}


def append(connection: Connection, last: int, rows: Sequence[tuple[str, str]]) -> None:
    """Append transaction ids with their hashes after a position. A position that is taken violates its key."""
    if connection.dialect.name == "sqlite":
        values = [{"position": n, "transaction_id": id_, "hash": at} for n, (id_, at) in enumerate(rows, last + 1)]
        connection.execute(insert(LOG), values)
        return
    ids, hashes = ("\n".join(column) for column in zip(*rows, strict=True))
    connection.execute(_APPEND, {"last": last, "ids": ids, "hashes": hashes})


def hash_at(connection: Connection, position: int) -> str | None:
    """The hash at a position, ``None`` where the log does not reach; that of position 0 is given."""
    if position == 0:
        return GENESIS.hash
    found: str | None = connection.scalar(select(LOG.c.hash).where(LOG.c.position == position))
    return found


Broken = tuple[int, int, str, str, str | None]


def broken(connection: Connection, since: int, limit: int) -> Iterator[Broken]:
    """Positions that do not follow: position, the last one, transaction, hash, and the hash that it should have."""
    if connection.dialect.name == "sqlite":
        yield from islice(_broken_rows(connection, since), limit)
        return
    scope = {"since": since, "limit": limit}
    for position, last_position, transaction_id, stored, found_id in connection.execute(_MISSING, scope).all():
        yield position, last_position, transaction_id, stored, found_id and stored
    for row in connection.execute(_CHANGED, {**scope, "genesis": GENESIS.hash}).all():
        yield tuple(row)


def _broken_rows(connection: Connection, since: int) -> Iterator[Broken]:
    last = LogHead(position=since, hash=hash_at(connection, since) or GENESIS.hash)
    for (position, stored, transaction_id), rows in _log_rows(connection, LOG.c.position > since):
        expected = _expected(last, rows)
        if position != last.position + 1:
            yield position, last.position, transaction_id, stored, stored
        elif expected != stored:
            yield position, last.position, transaction_id, stored, expected
        last = LogHead(position=position, hash=stored)


def _expected(last: LogHead, rows: Sequence[Row[Any]]) -> str | None:
    if rows[0]._mapping[TRANSACTIONS.c.transaction_id] is None:
        return None
    try:
        return chained(last.hash, digest(collect(rows)))
    except TypeError:  # SQLite keeps bytes in any column, and no canonical form has them
        return "none, its values are of other types"


def read(connection: Connection, after: int, limit: int) -> list[LogEntry]:
    """The log's entries after that position. Raises ``LedgerDamagedError`` where one is missing."""
    page = select(LOG.c.position).where(LOG.c.position > after).order_by(LOG.c.position).limit(limit).subquery()
    return list(_entries(_log_rows(connection, LOG.c.position.in_(select(page.c.position))), after + 1))


def read_on(connection: Connection, after: int) -> Iterator[LogEntry]:
    """All of the log after that position, as it comes. Raises ``LedgerDamagedError`` where one is missing."""
    connection = connection.execution_options(yield_per=STREAMED_ROWS)
    return _entries(_log_rows(connection, LOG.c.position > after), after + 1)


LogRows = Iterator[tuple[tuple[int, str, str], list[Row[Any]]]]


def _log_rows(connection: Connection, which: ColumnElement[bool]) -> LogRows:
    """Position, hash and transaction id, each with the rows of the transaction."""
    of_log = [LOG.c.position, LOG.c.hash, LOG.c.transaction_id.label("sealed_id")]
    statement = (
        select(*of_log, *RECORD)
        .join_from(LOG, TRANSACTIONS, LOG.c.transaction_id == TRANSACTIONS.c.transaction_id, isouter=True)
        .join(ENTRIES, OF_TRANSACTION, isouter=True)
        .where(which)
        .order_by(LOG.c.position)
    )
    with connection.execute(statement) as result:
        for key, rows in groupby(result, key=lambda row: (row[0], row[1], row[2])):
            yield key, list(rows)


def _entries(log_rows: LogRows, first: int) -> Iterator[LogEntry]:
    for expected, ((position, hash_, _), rows) in enumerate(log_rows, first):
        if position != expected or rows[0]._mapping[ENTRIES.c.account_id] is None:
            raise LedgerDamagedError(what=f"position {expected} of the log", position=expected)
        yield LogEntry(position=position, hash=hash_, transaction=collect(rows))


def reader_position(connection: Connection, name: str) -> int | None:
    return connection.scalar(select(LOG_READERS.c.position).where(LOG_READERS.c.name == name))


def move_reader(connection: Connection, name: str, *, seen: int | None, position: int, at: datetime) -> bool:
    """Move a reader from the position that it was seen at; false if it is elsewhere by now."""
    values = {"position": position, "updated_at": at}
    if seen is None:
        connection.execute(insert(LOG_READERS), {"name": name, **values})
        return True
    place = (LOG_READERS.c.name == bindparam("reader"), LOG_READERS.c.position == bindparam("seen"))
    moved = connection.execute(update(LOG_READERS).where(*place).values(values), {"reader": name, "seen": seen})
    return moved.rowcount == 1
