"""The append-only double-entry ledger: the one record that everything else is a view of."""

from .accounts import ISSUER, REVENUE, Account, Bucket, Movement, Touch
from .models import (
    EarningsPeriod,
    LedgerEntry,
    LedgerTransaction,
    LogEntry,
    LogHead,
    Sealed,
    StatementLine,
    TransactionDraft,
    WalletState,
)
from .posting import post
from .sealing import LogReader, Sealer
from .service import LedgerService

__all__ = [
    "ISSUER",
    "REVENUE",
    "Account",
    "Bucket",
    "EarningsPeriod",
    "LedgerEntry",
    "LedgerService",
    "LedgerTransaction",
    "LogEntry",
    "LogHead",
    "LogReader",
    "Movement",
    "Sealed",
    "Sealer",
    "StatementLine",
    "Touch",
    "TransactionDraft",
    "WalletState",
    "post",
]
