"""How a ``WalletService`` works: what its owner can set."""

from collections.abc import Collection
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
    seconds; without it, or after it, the ledger answers. ``currencies`` are those that there are,
    ``default_currency`` among them: a request, or a question for a balance, that names another one is
    refused; ``None`` allows any. A hold in one that was taken out since can still be settled and refunded.
    Raises ``InvalidRequestError``.
    """

    max_retry_attempts: int = 3
    retry_backoff_ms: int = 100
    default_currency: str = "points"
    currencies: Collection[str] | None = None
    idempotency_cache_size: int = 10_000
    idempotency_cache_ttl_s: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "default_currency", check_code("default_currency", self.default_currency))
        if self.currencies is not None:
            object.__setattr__(self, "currencies", _codes(self.currencies))
        self.currency(self.default_currency, field="default_currency")
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= limit:
                raise InvalidRequestError(field=name, value=value, expected=f"a whole number from 0 to {limit}")

    def currency(self, named: str | None, field: str = "currency") -> str:
        """The currency that is meant. Raises ``InvalidRequestError`` for one that there is not."""
        meant = self.default_currency if named is None else check_code(field, named)
        if self.currencies is not None and meant not in self.currencies:
            raise InvalidRequestError(field=field, value=named, expected=f"one of {', '.join(self.currencies)}")
        return meant

    @property
    def retry(self) -> Retry:
        """The same as the database layer takes it."""
        return Retry(attempts=self.max_retry_attempts, backoff=self.retry_backoff_ms / 1000)


def _codes(given: object) -> tuple[str, ...]:
    """The codes in their order, each once; a text would be a collection of its letters."""
    try:
        codes = list(given) if isinstance(given, list | tuple | set | frozenset) else []
    except Exception:  # whatever a hostile subclass of these may raise
        codes = []
    if not codes:
        raise InvalidRequestError(field="currencies", value=given, expected="a list of codes, or None for any currency")
    return tuple(sorted({check_code("currencies", each) for each in codes}))
