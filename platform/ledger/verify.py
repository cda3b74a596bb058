"""Verifying the ledger and its log against themselves: every entry, every transaction, every seal.

Each check is one statement that the database answers with nothing but what is wrong, so a check takes
little memory whatever the ledger's size. The statements take ``{scope}`` fragments, so that they can be
narrowed to what came after a position of the log.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from ..core.schema import Sql, schema_of
from ..core.values import MAX_POINTS
from ..migrations import broken
from . import log_store
from .accounts import CHART, PLATFORM, WALLETS, InHold, Shape, operations_that, shapes
from .findings import Finding as Finding
from .findings import Kind
from .models import ENTRIES, LOG, TRANSACTIONS, LogHead

# Of one check; more than that is not read one by one, and would need memory without bound.
MOST_FINDINGS = 10_000

Check = Callable[[Connection, int], Iterator[Finding]]

# What came after a position: sealed later, or not sealed yet.
_LATER = f"""NOT EXISTS (SELECT 1 FROM {LOG} l
    WHERE l.transaction_id = {{table}}.transaction_id AND l.position <= :since)"""
_TOUCHED_LATER = f"""(e.account_id, e.currency) IN (SELECT s.account_id, s.currency FROM {ENTRIES} s
    WHERE {_LATER.format(table="s")})"""

_ENDED_LATER = f"t.escrow_id IN (SELECT s.escrow_id FROM {TRANSACTIONS} s WHERE {_LATER.format(table='s')})"


# The entries of a transaction in the order of their texts, which an aggregate of SQLite's takes from what it reads.
_AGGREGATED = {
    "postgresql": {"shape": """string_agg(entry, E'\n' ORDER BY entry COLLATE "C")""", "order": ""},
    "sqlite": {"shape": "group_concat(entry, char(10))", "order": "ORDER BY t.transaction_id, entry"},
}


def _narrowed(statement: str, since: int, dialect: str) -> str:
    """The statement over everything, or over what came after a position."""
    later = {
        "transactions": _LATER.format(table="t"),
        "entries": _LATER.format(table="e"),
        "wallets": _TOUCHED_LATER,
        "escrows": _ENDED_LATER,
    }
    scope = {name: fragment if since else "1 = 1" for name, fragment in later.items()}
    return statement.format(**scope, **_AGGREGATED[dialect])


def _rows(connection: Connection, statement: str, since: int, **parameters: Any) -> Iterator[dict[str, Any]]:
    used = {"limit": MOST_FINDINGS, **parameters} | ({"since": since} if since else {})
    for row in connection.execute(Sql(_narrowed(statement, since, connection.dialect.name)), used).all():
        yield dict(row._mapping)


def _named(operations: Iterable[str]) -> str:
    return ", ".join(f"'{operation}'" for operation in operations)


def _is_a(kind: str) -> str:
    return f"substr(e.account_id, 1, {len(kind) + 1}) = '{kind}:' AND e.account_id <> '{kind}:'"


# What an entry is in its transaction (``accounts.Place``, and the sign of its amount), as text.
_OF_PLATFORM = " OR ".join(f"(e.account_id = '{owner}' AND e.bucket = '{bucket}')" for owner, bucket in PLATFORM)
_OF_WALLETS = " OR ".join(f"({_is_a(kind)} AND e.bucket IN ({_named(buckets)}))" for kind, buckets in WALLETS.items())
_WHOSE = f"""CASE WHEN {_OF_PLATFORM} THEN e.account_id WHEN NOT ({_OF_WALLETS}) THEN 'nobody'
        WHEN e.account_id = t.owner_id THEN 'own' WHEN {_is_a("user")} THEN 'another'
        WHEN e.account_id = 'model:' || t.model_id THEN 'model' ELSE 'nobody' END"""
_SIGN = "CASE WHEN e.amount < 0 THEN '-1' WHEN e.amount > 0 THEN '1' ELSE '0' END"
_ENTRY = f"{_WHOSE} || ' ' || e.bucket || ' ' || {_SIGN}"


def _text(shape: Shape) -> str:
    """A shape as the statement puts it together: its entries in the order of their texts."""
    return "\n".join(sorted(f"{whose} {bucket} {sign}" for whose, bucket, sign in shape))


_LEGAL = " OR ".join(
    "(operation = '{}' AND shape IN ({}))".format(name, ", ".join(f"'{_text(shape)}'" for shape in shapes(name)))
    for name in CHART
)
_AUTHORIZED = _named(name for name, law in CHART.items() if law.authorized)
_OF_HOLDS = _named(name for name, law in CHART.items() if law.hold)
_KNOWN = _named(CHART)

_TRANSACTIONS = f"""
    WITH found AS MATERIALIZED (
        SELECT * FROM (
            SELECT transaction_id, operation, authorization_id, escrow_id, COUNT(amount) AS entries,
                COALESCE(SUM(amount >> 32), 0) * 4294967296 + COALESCE(SUM(amount & 4294967295), 0) AS total,
                {{shape}} AS shape, SUM(foreign_entry) AS foreign_entries
            FROM (
                SELECT t.transaction_id, t.owner_id, t.operation, t.authorization_id, t.escrow_id, e.amount,
                    {_ENTRY} AS entry,
                    CASE WHEN e.owner_id = t.owner_id AND e.currency = t.currency THEN 0 ELSE 1 END AS foreign_entry
                FROM {TRANSACTIONS} t LEFT JOIN {ENTRIES} e ON e.transaction_id = t.transaction_id
                WHERE {{transactions}}
                {{order}}
            ) t
            GROUP BY transaction_id, owner_id, operation, authorization_id, escrow_id
        ) t
        WHERE total <> 0 OR entries = 0 OR foreign_entries > 0 OR operation NOT IN ({_KNOWN}) OR NOT ({_LEGAL})
           OR (authorization_id IS NOT NULL) <> (operation IN ({_AUTHORIZED}))
           OR (escrow_id IS NOT NULL) <> (operation IN ({_OF_HOLDS}))
    )
    SELECT * FROM found LIMIT :limit
"""


def _transactions(connection: Connection, since: int) -> Iterator[Finding]:
    """Transactions whose entries do not sum to zero or are not those of their operation."""
    for row in _rows(connection, _TRANSACTIONS, since):
        ids, operation = {"transaction_id": row["transaction_id"]}, row["operation"]
        law = CHART.get(operation)
        if law is None:
            expected = f"an operation that this release knows: {', '.join(CHART)}"
            yield Finding(kind="operation_unknown", ids=ids, expected=expected, found=operation)
        if row["entries"] == 0:
            yield Finding(kind="transaction_without_entries", ids=ids, expected="entries", found=0)
        elif row["total"] != 0:
            yield Finding(kind="transaction_unbalanced", ids=ids, expected=0, found=int(row["total"]))
        elif law and (row["foreign_entries"] or row["shape"] not in map(_text, shapes(operation))):
            found = "others" if row["foreign_entries"] else row["shape"].split("\n")
            yield Finding(kind="illegal_movement", ids=ids, expected=f"the entries of a {operation}", found=found)
        if law and law.authorized != (row["authorization_id"] is not None):
            needed = "an authorization" if law.authorized else None
            yield Finding(kind="authorization", ids=ids, expected=needed, found=row["authorization_id"])
        if law and (law.hold is not None) != (row["escrow_id"] is not None):
            named = "an escrow item" if law.hold else None
            yield Finding(kind="transaction_escrow", ids=ids, expected=named, found=row["escrow_id"])


_ORPHANS = f"""
    SELECT e.transaction_id, e.account_id, e.bucket FROM {ENTRIES} e
    WHERE {{entries}} AND NOT EXISTS (SELECT 1 FROM {TRANSACTIONS} t WHERE t.transaction_id = e.transaction_id)
    LIMIT :limit
"""
_KEYS = f"""
    SELECT owner_id, operation, idempotency_key, COUNT(*) AS uses FROM {TRANSACTIONS} t
    WHERE {{transactions}} GROUP BY owner_id, operation, idempotency_key HAVING COUNT(*) > 1
    LIMIT :limit
"""
# A hold begins once and ends once.
_IN_HOLDS = f"""
    SELECT escrow_id, COUNT(*) AS times, MIN(transaction_id) AS one, MAX(transaction_id) AS other
    FROM {TRANSACTIONS} t
    WHERE operation IN ({{operations}}) AND {{{{escrows}}}}
    GROUP BY escrow_id HAVING COUNT(*) > 1
    LIMIT :limit
"""
_BEGUN_TWICE = _IN_HOLDS.format(operations=_named(operations_that(InHold.BEGINS)))
_ENDED_TWICE = _IN_HOLDS.format(operations=_named(operations_that(InHold.ENDS)))


def _begun_twice(connection: Connection, since: int) -> Iterator[Finding]:
    """Holds that have the escrow item of another one."""
    return _twice(connection, since, "escrow_begun_twice", _BEGUN_TWICE)


def _ended_twice(connection: Connection, since: int) -> Iterator[Finding]:
    """Holds that were settled or refunded more than once."""
    return _twice(connection, since, "escrow_ended_twice", _ENDED_TWICE)


def _twice(connection: Connection, since: int, kind: Kind, statement: str) -> Iterator[Finding]:
    for row in _rows(connection, statement, since):
        ids = {"escrow_id": row["escrow_id"], "transaction_ids": [row["one"], row["other"]]}
        yield Finding(kind=kind, ids=ids, expected=1, found=row["times"])


def _orphans(connection: Connection, since: int) -> Iterator[Finding]:
    """Entries without a transaction."""
    for row in _rows(connection, _ORPHANS, since):
        yield Finding(kind="entry_without_transaction", ids=row, expected="its transaction", found=None)


def _keys(connection: Connection, since: int) -> Iterator[Finding]:
    """Idempotency keys with more than one transaction."""
    for row in _rows(connection, _KEYS, since):
        ids = {name: row[name] for name in ("owner_id", "operation", "idempotency_key")}
        yield Finding(kind="key_used_twice", ids=ids, expected=1, found=row["uses"])


# What an account's entries before one sum to: a balance that was put right begins there again.
_SUM_BEFORE = f"""SELECT COALESCE(SUM(s.amount >> 32), 0) * 4294967296 + COALESCE(SUM(s.amount & 4294967295), 0)
    FROM {ENTRIES} s WHERE s.account_id = e.account_id AND s.currency = e.currency AND s.bucket = e.bucket
    AND (s.wallet_version < e.wallet_version OR s.wallet_version IS NULL)"""
_HISTORY = f"""
    WITH found AS MATERIALIZED (
        SELECT * FROM (SELECT e.*, CASE WHEN balance_before <> COALESCE(last_balance, 0) THEN ({_SUM_BEFORE}) END
            AS sum_before FROM (
            SELECT e.account_id, e.currency, e.bucket, e.transaction_id, e.amount, e.balance_before, e.balance_after,
                e.wallet_version, e.posted_at, l.position,
                LAG(e.balance_after) OVER of_account AS last_balance,
                LAG(e.wallet_version) OVER of_wallet AS last_version,
                LAG(e.transaction_id) OVER of_wallet AS last_transaction,
                LAG(e.posted_at) OVER of_wallet AS last_posted,
                LAG(COALESCE(l.position, 0)) OVER of_wallet AS last_position
            FROM {ENTRIES} e LEFT JOIN {LOG} l ON l.transaction_id = e.transaction_id
            WHERE ({_OF_WALLETS}) AND {{wallets}}
            WINDOW of_account AS (PARTITION BY e.account_id, e.currency, e.bucket ORDER BY e.wallet_version),
                of_wallet AS (
                    PARTITION BY e.account_id, e.currency ORDER BY e.wallet_version, e.transaction_id, e.bucket
                )
        ) e) e
        WHERE wallet_version IS NULL OR balance_before IS NULL OR balance_after IS NULL
           OR balance_before <> sum_before OR balance_after <> balance_before + amount
           OR balance_after NOT BETWEEN 0 AND :most
           OR posted_at < last_posted
           OR (wallet_version <> COALESCE(last_version, 0) + 1
               AND (last_version IS NULL OR wallet_version <> last_version
                   OR transaction_id <> last_transaction OR posted_at <> last_posted))
           OR (position IS NOT NULL AND transaction_id <> last_transaction
               AND (last_position = 0 OR last_position > position))
    )
    SELECT * FROM found LIMIT :limit
"""


def _history(connection: Connection, since: int) -> Iterator[Finding]:
    """Accounts whose balances do not follow, wallets whose versions have a gap or were sealed in another order."""
    for row in _rows(connection, _HISTORY, since, most=MAX_POINTS):
        yield from _entry_findings(row)


def _entry_findings(row: Mapping[str, Any]) -> Iterator[Finding]:
    before, after = row["balance_before"], row["balance_after"]
    version, last = row["wallet_version"], row["last_version"]
    problems: dict[Kind, tuple[bool, Any, Any]]
    if None in (before, after, version):
        problems = {"entry_incomplete": (True, "balances and a version", None)}
    elif not all(isinstance(value, int) for value in (before, after, version, row["amount"])):
        problems = {"balance_sum": (True, "whole numbers", [before, row["amount"], after, version])}
    else:
        following = (last or 0) + 1
        other = last is not None and row["transaction_id"] != row["last_transaction"]
        past = last is not None and row["posted_at"] < row["last_posted"]
        apart = last is not None and not other and row["posted_at"] > row["last_posted"]
        early = other and row["position"] is not None and not 0 < row["last_position"] < row["position"]
        problems = {
            "balance_gap": (
                before not in (row["last_balance"] or 0, row["sum_before"]),
                row["last_balance"] or 0,
                before,
            ),
            "balance_sum": (after != before + row["amount"], before + row["amount"], after),
            "balance_limit": (not 0 <= after <= MAX_POINTS, f"0 to {MAX_POINTS}", after),
            "version_used_twice": (version == last and other, row["last_transaction"], row["transaction_id"]),
            "version_gap": (version not in (last, following), following, version),
            "posted_into_the_past": (past, _time(row["last_posted"]), _time(row["posted_at"])),
            "posted_apart": (apart, _time(row["last_posted"]), _time(row["posted_at"])),
            "log_order": (early, f"sealed after {row['last_transaction']}", f"position {row['position']}"),
        }
    ids = {name: row[name] for name in ("account_id", "currency", "bucket", "wallet_version", "transaction_id")}
    for kind, (there, expected, found) in problems.items():
        if there:
            yield Finding(kind=kind, ids=ids, expected=expected, found=found)


def _time(moment: object) -> str:
    """A time as text that is the same in every session's zone; what is none (SQLite keeps anything) as it is."""
    return str(moment.astimezone(UTC) if isinstance(moment, datetime) else moment)


def _log(connection: Connection, since: int) -> Iterator[Finding]:
    """Positions that are missing, sealed transactions that are missing or have changed, hashes that do not follow."""
    if log_store.hash_at(connection, since) is None:
        gap = since < log_store.head(connection).position
        yield Finding(kind="log_gap" if gap else "log_cut", ids={"position": since}, expected=since, found=None)
    for position, last_position, transaction_id, stored, expected in log_store.broken(connection, since, MOST_FINDINGS):
        ids = {"position": position, "transaction_id": transaction_id}
        if position != last_position + 1:
            yield Finding(kind="log_gap", ids=ids, expected=last_position + 1, found=position)
        elif expected is None:
            yield Finding(kind="sealed_transaction_missing", ids=ids, expected="its transaction", found=None)
        else:
            yield Finding(kind="seal_broken", ids=ids, expected=expected, found=stored)


LEDGER_CHECKS: dict[str, Check] = {
    "transactions": _transactions,
    "entries": _orphans,
    "idempotency keys": _keys,
    "beginnings of escrow items": _begun_twice,
    "ends of escrow items": _ended_twice,
    "accounts and versions": _history,
}
SEAL_CHECKS: dict[str, Check] = {"seals": _log}


def _walls(connection: Connection, since: int) -> Iterator[Finding]:
    """Triggers, constraints and indexes that are not there, or not in force: what a promise rests on."""
    for (kind, table, name, says), found in broken(connection, schema_of(connection)):
        ids = {"table": table, "name": name} if table else {"function": name}
        yield Finding(kind=WALLS[kind], ids=ids, expected=says, found=found)


WALLS: dict[str, Kind] = {
    "trigger": "trigger_missing",
    "function": "trigger_missing",
    "constraint": "constraint_missing",
    "index": "index_missing",
}
SCHEMA_CHECKS: dict[str, Check] = {"triggers, constraints and indexes": _walls}
_FUTURE = f"""
    SELECT t.transaction_id, t.occurred_at, MAX(e.posted_at) AS posted_at
    FROM {TRANSACTIONS} t LEFT JOIN {ENTRIES} e ON e.transaction_id = t.transaction_id
    WHERE {{transactions}} GROUP BY t.transaction_id, t.owner_id, t.occurred_at
    HAVING t.occurred_at > :latest OR MAX(e.posted_at) > :latest
    LIMIT :limit
"""


def check_times(connection: Connection, since: int, latest: datetime) -> Iterator[Finding]:
    """Transactions that are dated later than it can be: whoever wrote them had another clock than the database."""
    bound = latest.strftime("%Y-%m-%d %H:%M:%S.%f") if connection.dialect.name == "sqlite" else latest
    for row in _rows(connection, _FUTURE, since, latest=bound):
        found = max(str(row[name]) for name in ("occurred_at", "posted_at") if row[name] is not None)
        ids = {"transaction_id": row["transaction_id"]}
        yield Finding(kind="from_the_future", ids=ids, expected="the database's time, or before", found=found)


def check_head(connection: Connection, kept: LogHead) -> Iterator[Finding]:
    """Whether the log still has what a head that was kept elsewhere has seen."""
    found = log_store.hash_at(connection, kept.position)
    if found != kept.hash:
        cut = found is None
        yield Finding(
            kind="log_cut" if cut else "log_rewritten", ids={"position": kept.position}, expected=kept.hash, found=found
        )
