"""The log: the ledger's transactions in one order, each sealed with a hash that is chained to the one before.

Sealing reads what the ledger has gained and appends it; the operations take no part in it. There is no
global sequence to follow. What gives the order is the versions of the wallets: a transaction is sealed
only after every lower version of each wallet that it touches, and among those that may come next, by id.
Since ids are made by clients whose clocks differ, and a transaction may commit long after its id was
made, a watermark is only good for speed: a sweep compares the whole ledger with the whole log.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush

from ..core.values import id_at, now, time_of
from .models import LedgerTransaction, LogHead

GENESIS = LogHead(position=0, hash="0" * 64)
# How far clocks and open transactions may lag behind the newest sealed id and still be found without a sweep.
OVERLAP = timedelta(hours=1)

HEADER_FIELDS = (
    "transaction_id",
    "owner_id",
    "operation",
    "idempotency_key",
    "request_id",
    "reason",
    "currency",
    "occurred_at",
    "escrow_id",
    "queue_item_id",
    "feature_type",
    "model_id",
    "authorization_id",
    "metadata_json",
)
# Left out where there is nothing, so that what was sealed before there was such a field keeps its digest.
OPTIONAL_FIELDS = ("details_json",)
ENTRY_FIELDS = (
    "account_id",
    "bucket",
    "amount",
    "balance_before",
    "balance_after",
    "wallet_version",
    "posted_at",
)

Wallet = tuple[str, str]


@dataclass(frozen=True)
class Candidate:
    """A transaction that is not sealed yet: its digest, and the version that it gave each wallet."""

    transaction_id: str
    digest: str
    versions: dict[Wallet, int]


def canonical_form(transaction: LedgerTransaction) -> str:
    """The one text of a transaction with its entries, from which its digest is computed.

    It is what ``json.dumps(…, ensure_ascii=False)`` makes of a list: the header's fields, those of ``OPTIONAL_FIELDS``
    only where they have a value, and last a list with a list of fields for each entry, by account and bucket. Times
    are ``2026-11-20T19:30:00.000000Z``.
    """
    header = list(header_of(transaction).values())
    entries = [[plain(getattr(entry, name)) for name in ENTRY_FIELDS] for entry in transaction.entries]
    return json.dumps([*header, entries], ensure_ascii=False)


def header_of(transaction: LedgerTransaction) -> dict[str, str | int | None]:
    """The header's fields as the canonical form and exports have them, in their order."""
    header = {name: plain(getattr(transaction, name)) for name in HEADER_FIELDS}
    for name in OPTIONAL_FIELDS:
        if (value := getattr(transaction, name)) is not None:
            header[name] = plain(value)
    return header


def digest(transaction: LedgerTransaction) -> str:
    """The SHA-256 of the canonical form in UTF-8, in hexadecimal."""
    return hashlib.sha256(canonical_form(transaction).encode()).hexdigest()


def chained(last_hash: str, transaction_digest: str) -> str:
    """The hash after one more transaction: the SHA-256 of the last hash followed by its digest."""
    return hashlib.sha256((last_hash + transaction_digest).encode()).hexdigest()


def candidate(transaction: LedgerTransaction) -> Candidate:
    """What sealing needs to know of a transaction."""
    currency = transaction.currency
    versions = {(e.account_id, currency): e.wallet_version for e in transaction.entries if e.wallet_version is not None}
    return Candidate(transaction.transaction_id, digest(transaction), versions)


def in_order(candidates: Sequence[Candidate], sealed: Callable[[dict[Wallet, int]], set[Wallet]]) -> list[Candidate]:
    """Those candidates that may be sealed now, in their order.

    ``sealed`` is asked which of these wallets have the given version sealed already.
    """
    expected = _next_versions(candidates, sealed)
    waiting: dict[tuple[Wallet, int], list[Candidate]] = {}
    ready: list[Candidate] = []
    # The number tells two of one id apart, which only a damaged ledger has.
    pending = [(each.transaction_id, number, each) for number, each in enumerate(candidates)]
    heapify(pending)
    while pending:
        _, number, each = heappop(pending)
        for wallet, version in each.versions.items():
            if expected.get(wallet) != version:
                waiting.setdefault((wallet, version), []).append(each)
                break
        else:
            ready.append(each)
            for wallet, version in each.versions.items():
                expected[wallet] = version + 1
                for freed in waiting.pop((wallet, version + 1), ()) if waiting else ():
                    heappush(pending, (freed.transaction_id, number, freed))
    return ready


def _next_versions(
    candidates: Sequence[Candidate], sealed: Callable[[dict[Wallet, int]], set[Wallet]]
) -> dict[Wallet, int]:
    """The version that each wallet's next transaction in the log must have; not there if one before is missing."""
    lowest: dict[Wallet, int] = {}
    for each in candidates:
        for wallet, version in each.versions.items():
            lowest[wallet] = min(version, lowest.get(wallet, version))
    known = sealed({wallet: version - 1 for wallet, version in lowest.items() if version > 1})
    return {wallet: version for wallet, version in lowest.items() if version == 1 or wallet in known}


def watermark(newest_sealed_id: str | None) -> str:
    """An id below which all should be sealed already; only a sweep can tell."""
    if newest_sealed_id is None:
        return ""
    return id_at(min(time_of(newest_sealed_id), now()) - OVERLAP)


def plain(value: str | int | datetime | None) -> str | int | None:
    """A field as the canonical form and exports have it; times are UTC, always with microseconds."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value
