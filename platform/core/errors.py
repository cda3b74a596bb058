"""What every error of the module is, and those that have nothing to do with points: input, contention, storage.

    WalletError
    ├── InvalidRequestError            a field of a request is not what it must be
    ├── …                              what is refused: ``core.refusals``, in the order in which it wins
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

__all__ = [
    "InvalidRequestError",
    "LedgerDamagedError",
    "OptimisticLockError",
    "SchemaVersionError",
    "StorageUnavailableError",
    "WalletError",
]


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
    """Something rests on a transaction that is not in the ledger. ``details``: what; position, where it is the log."""

    code = "ledger_damaged"
    template = "{what} has lost its transaction; verify the database"


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
