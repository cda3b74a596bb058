"""How a ``WalletService`` works: what its owner can set."""

from dataclasses import dataclass

from ..core.database import Retry
from ..core.errors import InvalidRequestError
from ..core.values import check_code

LIMITS = {
    "max_retry_attempts": 10_000,
    "retry_backoff_ms": 60_000,
    "idempotency_cache_size": 10_000_000,
    "idempotency_cache_ttl_s": 86_400,
}


@dataclass(frozen=True, kw_only=True)
class WalletConfig:
    """How a ``WalletService`` works.

    ``max_retry_attempts`` counts retries after the first attempt, ``retry_backoff_ms`` is the longest
    wait before the second of them and doubles from there. The cache answers repeated requests
    without a read: at most ``idempotency_cache_size`` of them, each for ``idempotency_cache_ttl_s``
    seconds; without it, or after it, the ledger answers. Raises ``InvalidRequestError``.
    """

    max_retry_attempts: int = 3
    retry_backoff_ms: int = 100
    default_currency: str = "points"
    idempotency_cache_size: int = 10_000
    idempotency_cache_ttl_s: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "default_currency", check_code("default_currency", self.default_currency))
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= limit:
                raise InvalidRequestError(field=name, value=value, expected=f"a whole number from 0 to {limit}")

    @property
    def retry(self) -> Retry:
        """The same as the database layer takes it."""
        return Retry(attempts=self.max_retry_attempts, backoff=self.retry_backoff_ms / 1000)
