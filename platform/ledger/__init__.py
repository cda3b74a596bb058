"""The append-only double-entry ledger: the one record that everything else is a view of."""

from ..core import errors as _errors
from ..core import refusals as _refusals
from ..core.database import Database
from ..core.errors import *
from ..core.refusals import *
from ..core.values import Page, every
from .accounts import ISSUER, REVENUE, Account, Bucket, Movement, Touch
from .following import follow
from .models import (
    EarningsPeriod,
    LedgerEntry,
    LedgerTransaction,
    LogEntry,
    LogHead,
    Sealed,
    StatementLine,
    StatementTransaction,
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
    "Database",
    "EarningsPeriod",
    "LedgerEntry",
    "LedgerService",
    "LedgerTransaction",
    "LogEntry",
    "LogHead",
    "LogReader",
    "Movement",
    "Page",
    "Sealed",
    "Sealer",
    "StatementLine",
    "StatementTransaction",
    "Touch",
    "TransactionDraft",
    "WalletState",
    "every",
    "follow",
    "post",
]
__all__ += _errors.__all__
__all__ += _refusals.__all__
