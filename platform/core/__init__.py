"""What every other package stands on: errors, values, the database."""

from .database import Database
from .errors import (
    BalanceLimitError,
    EscrowAlreadyProcessedError,
    EscrowMismatchError,
    EscrowNotFoundError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidAuthorizationError,
    InvalidRequestError,
    LedgerDamagedError,
    OptimisticLockError,
    SchemaVersionError,
    StorageUnavailableError,
    WalletError,
)
from .models import Base
from .values import MAX_POINTS

__all__ = [
    "MAX_POINTS",
    "BalanceLimitError",
    "Base",
    "Database",
    "EscrowAlreadyProcessedError",
    "EscrowMismatchError",
    "EscrowNotFoundError",
    "IdempotencyConflictError",
    "InsufficientBalanceError",
    "InvalidAuthorizationError",
    "InvalidRequestError",
    "LedgerDamagedError",
    "OptimisticLockError",
    "SchemaVersionError",
    "StorageUnavailableError",
    "WalletError",
]
