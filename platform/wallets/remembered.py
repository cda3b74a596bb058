"""What this process remembers of its own commits, so that a request sent again is answered without a read."""

import threading
import time

from cachetools import FIFOCache

from ..ledger.models import LedgerTransaction
from .config import WalletConfig
from .unit_of_work import IdempotencyKey


class Remembered:
    """The latest transactions, each for a while; filled after commits only, and no reason to skip a verification.

    What has been kept for too long is not found any more, and makes room when its turn comes: to look for such at each
    call takes longer than the rest of it.
    """

    def __init__(self, config: WalletConfig) -> None:
        self._ttl_s = config.idempotency_cache_ttl_s
        self._kept: FIFOCache[IdempotencyKey, tuple[float, LedgerTransaction]] = FIFOCache(
            config.idempotency_cache_size
        )
        self._lock = threading.Lock()

    def get(self, key: IdempotencyKey) -> LedgerTransaction | None:
        """What the key stands for, if it is remembered."""
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            return None
        kept_at, transaction = kept
        return transaction if time.monotonic() < kept_at + self._ttl_s else None

    def keep(self, transaction: LedgerTransaction) -> None:
        """Remember what has been committed."""
        if self._kept.maxsize:
            with self._lock:
                key = transaction.owner_id, transaction.operation, transaction.idempotency_key
                self._kept[key] = time.monotonic(), transaction
