"""The errors of the module, one small tree, in the order in which they win.

    WalletError
    ├── InvalidRequestError            a field of a request is not what it must be
    ├── InvalidAuthorizationError      the queue's token does not permit exactly this action
    ├── IdempotencyConflictError       the key was used for another request
    ├── EscrowNotFoundError            there is no such escrow item of this user
    ├── EscrowAlreadyProcessedError    the escrow item has left ``held``
    ├── EscrowMismatchError            the request says something else than the hold
    ├── InsufficientBalanceError       the user has fewer points available
    ├── BalanceLimitError              a balance would exceed 2**53 - 1
    ├── OptimisticLockError            others were faster on every attempt          (retryable)
    ├── StorageUnavailableError        the database did not do what it was asked    (retryable)
    ├── SchemaVersionError             the database holds no schema, or another one
    └── LedgerDamagedError             what is sealed is not there any more

An operation that raises one of these has changed nothing, with one exception: after a
``StorageUnavailableError`` the outcome is unknown, and sending the same request with the same
idempotency key again gives the one answer.
"""

import reprlib
from functools import partial
from itertools import islice
from typing import Any, ClassVar


class WalletError(Exception):
    """What every error of this module is.

    ``code`` is stable and meant for machines, ``retryable`` says whether the same request may
    succeed when it is simply sent again, ``details`` holds the values that the message speaks of.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False
    template: ClassVar[str]

    def __init__(self, **details: Any) -> None:
        self.details: dict[str, Any] = details
        super().__init__(self.template.format_map({name: _shown(name, value) for name, value in details.items()}))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self.details), ()


class InvalidRequestError(WalletError):
    """A field is missing, of the wrong type, or out of range. ``details``: field, value, expected."""

    code = "invalid_request"
    template = "{field} must be {expected}, not {value}"


class InvalidAuthorizationError(WalletError):
    """The token does not permit exactly this action. ``details``: cause, and claim where one is meant.

    Causes: ``missing``, ``malformed``, ``unknown_key``, ``algorithm``, ``signature``, ``expired``,
    ``not_yet_valid``, ``issuer``, ``audience``, ``claim_missing``, ``claim_mismatch`` and
    ``envelope_mismatch`` (the object around the token says something else than the token).
    """

    code = "invalid_authorization"
    template = "the authorization is refused ({cause}); the queue must sign one for exactly this action"


class IdempotencyConflictError(WalletError):
    """The key stands for another request already. ``details``: key, fields (a tuple of the names that differ)."""

    code = "idempotency_conflict"
    template = "idempotency key {key} was used with other values of {fields}; use a new key for a new request"


class EscrowNotFoundError(WalletError):
    """This user has no such escrow item. ``details``: escrow_id."""

    code = "escrow_not_found"
    template = "there is no escrow item {escrow_id} of this user"


class EscrowAlreadyProcessedError(WalletError):
    """The escrow item was settled or refunded before. ``details``: escrow_id, status."""

    code = "escrow_already_processed"
    template = "escrow item {escrow_id} is {status} already; it leaves 'held' only once"


class EscrowMismatchError(WalletError):
    """The request contradicts the hold. ``details``: field, expected (the hold's), given."""

    code = "escrow_mismatch"
    template = "the hold's {field} is {expected}, the request says {given}"


class InsufficientBalanceError(WalletError):
    """Too few points are available. ``details``: required, available."""

    code = "insufficient_balance"
    template = "{required} points are required, {available} are available"


class BalanceLimitError(WalletError):
    """A balance would exceed the limit. ``details``: limit, balance, amount."""

    code = "balance_limit"
    template = "a balance of {balance} points cannot take {amount} more; the limit is {limit}"


class OptimisticLockError(WalletError):
    """Others were faster on every attempt; nothing was changed. ``details``: attempts."""

    code = "optimistic_lock"
    retryable = True
    template = "somebody else changed the same rows on each of {attempts} attempts; try again"


class StorageUnavailableError(WalletError):
    """The database refused, failed or could not be reached. ``details``: cause (SQLSTATE or error name)."""

    code = "storage_unavailable"
    retryable = True
    template = "the database did not complete the work ({cause}); send the same request with the same key again"


class SchemaVersionError(WalletError):
    """The database's schema is not the one of this release. ``details``: found, expected."""

    code = "schema_version"
    template = (
        "the database has schema version {found}, this release needs {expected}; "
        "call create_schema() on an empty database, or use the release that made it"
    )


class LedgerDamagedError(WalletError):
    """The log names a transaction that the ledger does not have. ``details``: position."""

    code = "ledger_damaged"
    template = "position {position} of the log has lost its transaction; verify the database"


class _Repr(reprlib.Repr):
    """Its base sorts all members of what is not a sequence to show the least; this one sorts only the first."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)

    def repr_set(self, x: set[Any], level: int) -> str:
        return super().repr_set(set(islice(x, self.maxset + 1)), level)

    def repr_frozenset(self, x: frozenset[Any], level: int) -> str:
        return super().repr_frozenset(frozenset(islice(x, self.maxfrozenset + 1)), level)


_repr = _Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlevel = 2
MAX_SHOWN = 120


def _shown(name: str, value: object) -> str:
    """A detail as the message shows it; what a caller handed in is ``value``, and trusted with nothing."""
    if name != "value":
        return ", ".join(value) if isinstance(value, tuple) else str(value)
    try:
        text = _repr.repr(value)
        return (text if text.isprintable() else ascii(text))[:MAX_SHOWN]
    except Exception:  # a hostile __repr__, or an int with more digits than Python prints
        return f"<{type(value).__name__}>"
