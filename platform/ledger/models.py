"""The ledger's tables, and the values that are read from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Table, Text, UniqueConstraint
from sqlmodel import Field

from ..core.models import Base, UtcDateTime, column, points, text
from ..core.values import MAX_ID_LENGTH, HasMetadata
from .accounts import Account, Bucket, Changes, Move, net

UUID_LENGTH = 36
HASH_LENGTH = 64
OWNER_LENGTH = MAX_ID_LENGTH + len("platform:")


class LedgerTransactionRow(Base, table=True):
    __tablename__ = "ledger_transactions"
    __table_args__ = (
        UniqueConstraint("owner_id", "operation", "idempotency_key", name="ledger_transactions_idempotency_key"),
        Index("ledger_transactions_escrow", "escrow_id"),
    )
    transaction_id: str = column("transaction_id", text(UUID_LENGTH), key=True)
    owner_id: str = column("owner_id", text(OWNER_LENGTH), key=True)
    operation: str = column("operation", text(32))
    idempotency_key: str = column("idempotency_key", text(MAX_ID_LENGTH))
    request_id: str = column("request_id", text(MAX_ID_LENGTH))
    reason: str = column("reason", text(64))
    currency: str = column("currency", text(32))
    escrow_id: str | None = column("escrow_id", text(UUID_LENGTH), null=True)
    queue_item_id: str | None = column("queue_item_id", text(MAX_ID_LENGTH), null=True)
    feature_type: str | None = column("feature_type", text(32), null=True)
    model_id: str | None = column("model_id", text(MAX_ID_LENGTH), null=True)
    authorization_id: str | None = column("authorization_id", text(MAX_ID_LENGTH), null=True)
    metadata_json: str | None = Field(sa_column=Column("metadata", Text(), key="metadata_json"))
    details_json: str | None = Field(sa_column=Column("details", Text(), key="details_json"))
    occurred_at: datetime = column("occurred_at", UtcDateTime())


class LedgerEntryRow(Base, table=True):
    __tablename__ = "ledger_entries"
    __table_args__ = (
        # An entry of 0 is a touch of a wallet, which has a version of its own by it.
        CheckConstraint("amount <> 0 OR wallet_version IS NOT NULL", name="ledger_entries_amount"),
        CheckConstraint(
            # A comparison with NULL is not false, and would pass.
            "(balance_before IS NULL AND balance_after IS NULL AND wallet_version IS NULL) OR "
            "(balance_before IS NOT NULL AND balance_after IS NOT NULL AND wallet_version IS NOT NULL "
            "AND balance_before >= 0 AND balance_after >= 0 AND balance_after = balance_before + amount "
            "AND wallet_version >= 1)",
            name="ledger_entries_balance",
        ),
        Index("ledger_entries_account", "account_id", "currency", "bucket", "posted_at", "wallet_version"),
        # A balance as of a version is read from it, and no version of an account is posted twice.
        UniqueConstraint("account_id", "currency", "bucket", "wallet_version", name="ledger_entries_version"),
    )
    transaction_id: str = column("transaction_id", text(UUID_LENGTH), key=True)
    owner_id: str = column("owner_id", text(OWNER_LENGTH), key=True)
    account_id: str = column("account_id", text(OWNER_LENGTH), key=True)
    bucket: str = column("bucket", text(32), key=True)
    currency: str = column("currency", text(32))
    amount: int = points("amount")
    balance_before: int | None = points("balance_before", null=True)
    balance_after: int | None = points("balance_after", null=True)
    wallet_version: int | None = points("wallet_version", null=True)
    posted_at: datetime = column("posted_at", UtcDateTime())


class LedgerLogRow(Base, table=True):
    """One sealed transaction; ``hash`` is chained to the row before."""

    __tablename__ = "ledger_log"
    __table_args__ = (CheckConstraint("position >= 1", name="ledger_log_position"),)
    position: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    transaction_id: str = Field(sa_column=Column(text(UUID_LENGTH), nullable=False, unique=True))
    hash: str = column("hash", text(HASH_LENGTH))


class LogReaderRow(Base, table=True):
    """How far a named reader of the log has come."""

    __tablename__ = "ledger_log_readers"
    name: str = column("name", text(MAX_ID_LENGTH), key=True)
    position: int = points("position")
    updated_at: datetime = column("updated_at", UtcDateTime())


TRANSACTIONS: Table = LedgerTransactionRow.__table__  # type: ignore[attr-defined]
ENTRIES: Table = LedgerEntryRow.__table__  # type: ignore[attr-defined]
LOG: Table = LedgerLogRow.__table__  # type: ignore[attr-defined]
LOG_READERS: Table = LogReaderRow.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class TransactionHeader(HasMetadata):
    """What an operation was: everything of a transaction but its time and its entries.

    ``owner_id`` is whose operation it is, ``authorization_id`` the ``jti`` of the queue's token. ``details_json`` is
    what the request said that neither the other fields nor the entries tell, as canonical JSON; ``None`` for nothing.
    """

    transaction_id: str
    owner_id: str
    operation: str
    idempotency_key: str
    request_id: str
    reason: str
    currency: str
    escrow_id: str | None = None
    queue_item_id: str | None = None
    feature_type: str | None = None
    model_id: str | None = None
    authorization_id: str | None = None
    metadata_json: str | None = None
    details_json: str | None = None

    @property
    def details(self) -> dict[str, Any]:
        """What the request said that nothing else tells, by the names of its fields; a fresh copy each time."""
        parsed: dict[str, Any] = {} if self.details_json is None else json.loads(self.details_json)
        return parsed


@dataclass(frozen=True, kw_only=True)
class TransactionDraft(TransactionHeader):
    """A transaction that is decided but not written: moves instead of entries, and what they come to."""

    moves: tuple[Move, ...]
    changes: Changes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", net(self.moves))


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """What a transaction did to one account, in minor units.

    Balances and the wallet's version are ``None`` for the platform's accounts, which have no balance row.
    """

    account_id: str
    bucket: str
    amount: int
    balance_before: int | None
    balance_after: int | None
    wallet_version: int | None
    posted_at: datetime

    @property
    def account(self) -> tuple[str, str]:
        """What it is an entry on; compares equal to an ``Account``."""
        return self.account_id, self.bucket


@dataclass(frozen=True, kw_only=True)
class LedgerTransaction(TransactionHeader):
    """The one record of one operation; its entries sum to zero."""

    occurred_at: datetime
    entries: tuple[LedgerEntry, ...]

    def entry(self, account: Account) -> LedgerEntry:
        """The entry on that account. Raises ``KeyError`` if the transaction did not touch it."""
        for entry in self.entries:
            if entry.bucket == account.bucket and entry.account_id == account.account_id:
                return entry
        raise KeyError(account)


@dataclass(frozen=True, kw_only=True)
class StatementLine(LedgerEntry, HasMetadata):
    """An entry of a statement, with what its transaction was."""

    transaction_id: str
    operation: str
    reason: str
    currency: str
    request_id: str
    idempotency_key: str
    escrow_id: str | None
    queue_item_id: str | None
    feature_type: str | None
    model_id: str | None
    metadata_json: str | None


@dataclass(frozen=True, kw_only=True)
class StatementTransaction(TransactionHeader):
    """One transaction in an owner's statement: what it was, and what it did to this owner's accounts."""

    entries: tuple[LedgerEntry, ...]

    @property
    def posted_at(self) -> datetime:
        """When it was posted on these accounts."""
        return self.entries[0].posted_at

    @property
    def wallet_version(self) -> int | None:
        """The version that it gave the owner's wallet; ``None`` for the platform, which has none."""
        return self.entries[0].wallet_version

    @property
    def amounts(self) -> dict[str, int]:
        """By bucket what it added, in minor units: a hold of 30 is ``{"available": -30, "escrow": 30}``."""
        return {entry.bucket: entry.amount for entry in self.entries}

    @property
    def balances(self) -> dict[str, int | None]:
        """By bucket the balance after it, of the buckets that it touched; ``None`` for the platform's."""
        return {entry.bucket: entry.balance_after for entry in self.entries}


class WalletState(NamedTuple):
    """A wallet as a write left it: what an entry on it needs to know."""

    balances: Mapping[Bucket, int]
    version: int
    posted_at: datetime


@dataclass(frozen=True, kw_only=True)
class EarningsPeriod:
    """What a model earned from ``start`` until before ``end``, in minor units."""

    start: datetime
    end: datetime
    earned: int


@dataclass(frozen=True, kw_only=True)
class LogHead:
    """The last position of the log and its hash: kept elsewhere, it proves that nothing was cut off."""

    position: int
    hash: str

    def __str__(self) -> str:
        return f"{self.position}:{self.hash}"


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """A sealed transaction at its place in the log."""

    position: int
    hash: str
    transaction: LedgerTransaction


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """What sealing did: transactions appended, transactions whose predecessor is not there (yet), the new head."""

    appended: int
    waiting: int
    head: LogHead
