"""What this process remembers of its own commits, so that a request sent again is answered without a read."""

import threading
import time

from cachetools import TTLCache

from ..ledger.models import LedgerTransaction
from .config import WalletConfig
from .unit_of_work import IdempotencyKey


class Remembered:
    """The latest transactions, each for a while; filled after commits only, and no reason to skip a verification."""

    def __init__(self, config: WalletConfig) -> None:
        self._transactions: TTLCache[IdempotencyKey, LedgerTransaction] = TTLCache(
            maxsize=config.idempotency_cache_size,
            ttl=config.idempotency_cache_ttl_s,
            timer=lambda: time.monotonic(),  # looked up at each call, so that frozen time freezes it too
        )
        self._lock = threading.Lock()

    def get(self, key: IdempotencyKey) -> LedgerTransaction | None:
        """What the key stands for, if it is remembered."""
        with self._lock:
            return self._transactions.get(key)

    def keep(self, transaction: LedgerTransaction) -> None:
        """Remember what has been committed."""
        if self._transactions.maxsize:
            with self._lock:
                key = transaction.owner_id, transaction.operation, transaction.idempotency_key
                self._transactions[key] = transaction
