"""Whether the books balance: the sums of the ledger against the sums of the wallets, from one snapshot."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Select, literal, select, union_all

from ..core.database import Database
from ..ledger.accounts import WALLETS, Bucket
from ..ledger.models import ENTRIES
from ..ledger.store import exact, exact_sum
from .models import ESCROW_ITEMS, WALLET_TABLES, EscrowStatus

# The columns that have the balances of a bucket: where owners of several kinds have it, of each.
WALLET_COLUMNS = {
    bucket: [WALLET_TABLES[kind].c[bucket] for kind, buckets in WALLETS.items() if bucket in buckets]
    for bucket in Bucket
    if any(bucket in buckets for buckets in WALLETS.values())
}


@dataclass(frozen=True, kw_only=True)
class Books:
    """The sums of one currency, in minor units: per bucket what the ledger's entries and the wallets say."""

    currency: str
    ledger: dict[Bucket, int]
    wallets: dict[Bucket, int]
    held: int

    @property
    def entries(self) -> int:
        """The sum of all entries; not zero if points came from nowhere or went there."""
        return sum(self.ledger.values())

    @property
    def issued(self) -> int:
        """How many points the platform has issued."""
        return -self.ledger.get(Bucket.ISSUED, 0)

    @property
    def balanced(self) -> bool:
        """Whether entries sum to zero, held items to the escrow balances, and wallets equal the ledger."""
        return (
            self.entries == 0
            and self.held == self.wallets.get(Bucket.ESCROW, 0)
            and all(self.wallets.get(bucket, 0) == self.ledger.get(bucket, 0) for bucket in WALLET_COLUMNS)
        )


def books(database: Database) -> list[Books]:
    """The books of every currency, by name. Raises ``StorageUnavailableError``."""
    held = _sum("held", "held", ESCROW_ITEMS.c.amount).where(ESCROW_ITEMS.c.status == EscrowStatus.HELD)
    wallets = (_sum("wallets", bucket, column) for bucket, columns in WALLET_COLUMNS.items() for column in columns)
    entries = select(literal("ledger"), ENTRIES.c.bucket, ENTRIES.c.currency, *exact_sum(ENTRIES.c.amount))
    statement = union_all(entries.group_by(ENTRIES.c.bucket, ENTRIES.c.currency), held, *wallets)
    sums: dict[str, dict[str, dict[str, int]]] = {}
    for source, bucket, currency, high, low in database.ask(lambda connection: connection.execute(statement).all()):
        totals = sums.setdefault(currency, {}).setdefault(source, {})
        totals[bucket] = totals.get(bucket, 0) + exact(high, low)
    return [_books(currency, sums[currency]) for currency in sorted(sums)]


def _sum(source: str, bucket: str, column: Column[Any]) -> Select[Any]:
    currency = column.table.c.currency
    return select(literal(source), literal(bucket), currency, *exact_sum(column)).group_by(currency)


def _books(currency: str, sums: dict[str, dict[str, int]]) -> Books:
    ledger, wallets = (
        {Bucket(bucket): total for bucket, total in sums.get(source, {}).items()} for source in ("ledger", "wallets")
    )
    return Books(currency=currency, ledger=ledger, wallets=wallets, held=sums.get("held", {}).get("held", 0))
