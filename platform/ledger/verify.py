"""Verifying the ledger and its log against themselves: every entry, every transaction, every seal.

Each check is one statement that the database answers with nothing but what is wrong, so a check takes
little memory whatever the ledger's size. The statements take ``{scope}`` fragments, so that they can be
narrowed to what came after a position of the log.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from ..core.values import MAX_POINTS
from . import log_store
from .accounts import ISSUER, LEGAL_MOVEMENTS, OWNER_KIND, Bucket
from .models import LogHead


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it must be: its kind, the ids that name it, what was expected and what is there."""

    kind: str
    ids: dict[str, Any]
    expected: Any
    found: Any


# Of one check; more than that is not read one by one, and would need memory without bound.
MOST_FINDINGS = 10_000

Check = Callable[[Connection, int], Iterator[Finding]]

# What came after a position: sealed later, or not sealed yet.
_LATER = """NOT EXISTS (SELECT 1 FROM ledger_log l
    WHERE l.transaction_id = {table}.transaction_id AND l.position <= :since)"""
_TOUCHED_LATER = f"""(e.account_id, e.currency) IN (SELECT s.account_id, s.currency FROM ledger_entries s
    WHERE {_LATER.format(table="s")})"""

_ENDED_LATER = f"t.escrow_id IN (SELECT s.escrow_id FROM ledger_transactions s WHERE {_LATER.format(table='s')})"


def _narrowed(statement: str, since: int) -> str:
    """The statement over everything, or over what came after a position."""
    later = {
        "transactions": _LATER.format(table="t"),
        "entries": _LATER.format(table="e"),
        "wallets": _TOUCHED_LATER,
        "escrows": _ENDED_LATER,
    }
    return statement.format(**{name: fragment if since else "1 = 1" for name, fragment in later.items()})


def _rows(connection: Connection, statement: str, since: int, **parameters: Any) -> Iterator[dict[str, Any]]:
    used = {"limit": MOST_FINDINGS, **parameters} | ({"since": since} if since else {})
    for row in connection.execute(text(_narrowed(statement, since)), used).all():
        yield dict(row._mapping)


# A bucket and a direction as a digit of a number: which entries a transaction has, in one sum.
DIGITS = {(bucket, sign): 16 ** (2 * n + (sign < 0)) for n, bucket in enumerate(Bucket) for sign in (1, -1)}
OTHER = 16 ** (2 * len(Bucket))
SHAPES = {
    operation: sum(DIGITS[source, -1] for source in {source for source, _ in movements})
    + sum(DIGITS[target, 1] for _, target in movements)
    for operation, movements in LEGAL_MOVEMENTS.items()
}
_SHAPE = " ".join(
    f"WHEN e.bucket = '{bucket.value}' AND e.amount {'>' if sign > 0 else '<'} 0 THEN {digit}"
    for (bucket, sign), digit in DIGITS.items()
)
_OWNER = " ".join(
    f"WHEN e.bucket = '{bucket.value}' THEN "
    + {
        "user": "e.account_id = t.owner_id",
        "model": "e.account_id = 'model:' || t.model_id",
        "platform": f"e.account_id = '{ISSUER.account_id}'",
    }[kind]
    for bucket, kind in OWNER_KIND.items()
)

_TRANSACTIONS = f"""
    WITH found AS MATERIALIZED (
        SELECT * FROM (
            SELECT t.transaction_id, t.operation, t.authorization_id, t.escrow_id, COUNT(e.amount) AS entries,
                COALESCE(SUM(e.amount >> 32), 0) * 4294967296 + COALESCE(SUM(e.amount & 4294967295), 0) AS total,
                SUM(CASE {_SHAPE} ELSE {OTHER} END) AS shape,
                SUM(CASE WHEN e.owner_id = t.owner_id AND e.currency = t.currency
                    AND CASE {_OWNER} ELSE 1 = 0 END THEN 0 ELSE 1 END) AS foreign_entries
            FROM ledger_transactions t LEFT JOIN ledger_entries e ON e.transaction_id = t.transaction_id
            WHERE {{transactions}}
            GROUP BY t.transaction_id, t.owner_id
        ) t
        WHERE total <> 0 OR entries = 0 OR foreign_entries > 0
           OR shape <> CASE operation {" ".join(f"WHEN '{o}' THEN {s}" for o, s in SHAPES.items())} ELSE -1 END
           OR (authorization_id IS NULL) <> (operation IN ('credit', 'hold'))
           OR (escrow_id IS NULL) <> (operation = 'credit')
    )
    SELECT * FROM found LIMIT :limit
"""


def _transactions(connection: Connection, since: int) -> Iterator[Finding]:
    """Transactions whose entries do not sum to zero or are not those of their operation."""
    for row in _rows(connection, _TRANSACTIONS, since):
        ids = {"transaction_id": row["transaction_id"]}
        operation, authorized = row["operation"], row["authorization_id"] is not None
        if row["entries"] == 0:
            yield Finding(kind="transaction_without_entries", ids=ids, expected="entries", found=0)
        elif row["total"] != 0:
            yield Finding(kind="transaction_unbalanced", ids=ids, expected=0, found=int(row["total"]))
        elif row["foreign_entries"] or row["shape"] != SHAPES.get(operation):
            yield Finding(kind="illegal_movement", ids=ids, expected=f"the entries of a {operation}", found="others")
        if authorized == (operation in {"credit", "hold"}):
            expected = "an authorization" if not authorized else None
            yield Finding(kind="authorization", ids=ids, expected=expected, found=row["authorization_id"])
        if (row["escrow_id"] is None) != (operation == "credit"):
            expected = None if operation == "credit" else "an escrow item"
            yield Finding(kind="transaction_escrow", ids=ids, expected=expected, found=row["escrow_id"])


_ORPHANS = """
    SELECT e.transaction_id, e.account_id, e.bucket FROM ledger_entries e
    WHERE {entries} AND NOT EXISTS (SELECT 1 FROM ledger_transactions t WHERE t.transaction_id = e.transaction_id)
    LIMIT :limit
"""
_KEYS = """
    SELECT owner_id, operation, idempotency_key, COUNT(*) AS uses FROM ledger_transactions t
    WHERE {transactions} GROUP BY owner_id, operation, idempotency_key HAVING COUNT(*) > 1
    LIMIT :limit
"""


_ENDED_TWICE = """
    SELECT escrow_id, COUNT(*) AS ends, MIN(transaction_id) AS one, MAX(transaction_id) AS other
    FROM ledger_transactions t
    WHERE operation NOT IN ('credit', 'hold') AND {escrows}
    GROUP BY escrow_id HAVING COUNT(*) > 1
    LIMIT :limit
"""


def _ended_twice(connection: Connection, since: int) -> Iterator[Finding]:
    """Holds that were settled or refunded more than once."""
    for row in _rows(connection, _ENDED_TWICE, since):
        ids = {"escrow_id": row["escrow_id"], "transaction_ids": [row["one"], row["other"]]}
        yield Finding(kind="escrow_ended_twice", ids=ids, expected=1, found=row["ends"])


def _orphans(connection: Connection, since: int) -> Iterator[Finding]:
    """Entries without a transaction."""
    for row in _rows(connection, _ORPHANS, since):
        yield Finding(kind="entry_without_transaction", ids=row, expected="its transaction", found=None)


def _keys(connection: Connection, since: int) -> Iterator[Finding]:
    """Idempotency keys with more than one transaction."""
    for row in _rows(connection, _KEYS, since):
        ids = {name: row[name] for name in ("owner_id", "operation", "idempotency_key")}
        yield Finding(kind="key_used_twice", ids=ids, expected=1, found=row["uses"])


_HISTORY = """
    WITH found AS MATERIALIZED (
        SELECT * FROM (
            SELECT e.account_id, e.currency, e.bucket, e.transaction_id, e.amount, e.balance_before, e.balance_after,
                e.wallet_version, e.posted_at, l.position,
                LAG(e.balance_after) OVER of_account AS last_balance,
                LAG(e.wallet_version) OVER of_wallet AS last_version,
                LAG(e.transaction_id) OVER of_wallet AS last_transaction,
                LAG(e.posted_at) OVER of_wallet AS last_posted,
                LAG(COALESCE(l.position, 0)) OVER of_wallet AS last_position
            FROM ledger_entries e LEFT JOIN ledger_log l ON l.transaction_id = e.transaction_id
            WHERE e.bucket <> 'issued' AND {wallets}
            WINDOW of_account AS (PARTITION BY e.account_id, e.currency, e.bucket ORDER BY e.wallet_version),
                of_wallet AS (PARTITION BY e.account_id, e.currency ORDER BY e.wallet_version, e.transaction_id)
        ) e
        WHERE wallet_version IS NULL OR balance_before IS NULL OR balance_after IS NULL
           OR balance_before <> COALESCE(last_balance, 0) OR balance_after <> balance_before + amount
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
    problems: dict[str, tuple[bool, Any, Any]]
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
            "balance_gap": (before != (row["last_balance"] or 0), row["last_balance"] or 0, before),
            "balance_sum": (after != before + row["amount"], before + row["amount"], after),
            "balance_limit": (not 0 <= after <= MAX_POINTS, f"0 to {MAX_POINTS}", after),
            "version_used_twice": (version == last and other, row["last_transaction"], row["transaction_id"]),
            "version_gap": (version not in (last, following), following, version),
            "posted_into_the_past": (past, str(row["last_posted"]), str(row["posted_at"])),
            "posted_apart": (apart, str(row["last_posted"]), str(row["posted_at"])),
            "log_order": (early, f"sealed after {row['last_transaction']}", f"position {row['position']}"),
        }
    ids = {name: row[name] for name in ("account_id", "currency", "bucket", "wallet_version", "transaction_id")}
    for kind, (there, expected, found) in problems.items():
        if there:
            yield Finding(kind=kind, ids=ids, expected=expected, found=found)


def _log(connection: Connection, since: int) -> Iterator[Finding]:
    """Positions that are missing, sealed transactions that are missing or have changed, hashes that do not follow."""
    if log_store.hash_at(connection, since) is None:
        kind = "log_gap" if since < log_store.head(connection).position else "log_cut"
        yield Finding(kind=kind, ids={"position": since}, expected=since, found=None)
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
    "ends of escrow items": _ended_twice,
    "accounts and versions": _history,
}
SEAL_CHECKS: dict[str, Check] = {"seals": _log}


def check_head(connection: Connection, kept: LogHead) -> Iterator[Finding]:
    """Whether the log still has what a head that was kept elsewhere has seen."""
    found = log_store.hash_at(connection, kept.position)
    if found != kept.hash:
        kind = "log_cut" if found is None else "log_rewritten"
        yield Finding(kind=kind, ids={"position": kept.position}, expected=kept.hash, found=found)
