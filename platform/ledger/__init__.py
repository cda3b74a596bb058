"""The append-only double-entry ledger: the one record that everything else is a view of."""

from .accounts import ISSUER, Account, Bucket, Movement, Operation
from .models import LedgerEntry, LedgerTransaction, StatementLine, TransactionDraft, WalletState
from .service import LedgerService

__all__ = [
    "ISSUER",
    "Account",
    "Bucket",
    "LedgerEntry",
    "LedgerService",
    "LedgerTransaction",
    "Movement",
    "Operation",
    "StatementLine",
    "TransactionDraft",
    "WalletState",
]
