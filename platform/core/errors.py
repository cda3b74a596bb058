"""What every error of the module is, and those that have nothing to do with points: input, contention, storage.

    WalletError
    ├── InvalidRequestError            a field of a request is not what it must be
    ├── …                              what is refused: ``core.refusals``, in the order in which it wins
    ├── OptimisticLockError            others were faster on every attempt          (retryable)
    ├── ClockSkewError                 the time was not the database's              (retryable)
    ├── StorageUnavailableError        the database did not do what it was asked    (retryable, mostly)
    ├── SchemaVersionError             the database holds no schema, or another one
    └── LedgerDamagedError             what is sealed is not there any more

An operation that raises one of these has changed nothing, with one exception: after a
``StorageUnavailableError`` that is retryable the outcome is unknown, and sending the same request with
the same idempotency key again gives the one answer.
"""

from typing import Any, ClassVar, NamedTuple

from .plain import handed_in, plain, shown

__all__ = [
    "ClockSkewError",
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
    succeed when it is simply sent again, ``details`` holds the values that the message speaks of: None, bool,
    int, float, text of moderate length, and tuples of these, so that any JSON writer takes them. What a caller
    handed in and is none of these stands there as short text. ``http_status`` is a suggestion for a host
    that answers by HTTP.
    """

    code: ClassVar[str]
    retryable: bool = False
    http_status: ClassVar[int] = 500
    template: ClassVar[str]

    def __init__(self, **details: Any) -> None:
        self.details: dict[str, Any] = {name: _kept(name, value) for name, value in details.items()}
        texts = {name: _shown(name, value, self.details[name]) for name, value in details.items()}
        super().__init__(self._template().format_map(texts))

    def _template(self) -> str:
        """The message with its places for the details."""
        return self.template

    def to_dict(self) -> dict[str, Any]:
        """Code, message, retryable and details, for a JSON answer; a copy, with lists for tuples."""
        details = {name: plain(value) for name, value in self.details.items()}
        return {"code": self.code, "message": str(self), "retryable": self.retryable, "details": details}

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.args), {**vars(self), "details": dict(self.details)}


def _remade(kind: type[WalletError], args: tuple[Any, ...]) -> WalletError:
    """As it was: what it was made of is no longer there."""
    return kind.__new__(kind, *args)


class InvalidRequestError(WalletError):
    """A field is missing, of the wrong type, or out of range. ``details``: field, value, expected."""

    code = "invalid_request"
    http_status = 422
    template = "{field} must be {expected}, not {value}"


class OptimisticLockError(WalletError):
    """Others were faster on every attempt, or kept a lock all the time; nothing was changed. ``details``: attempts."""

    code = "optimistic_lock"
    retryable = True
    http_status = 503
    template = "somebody else changed the same rows on each of {attempts} attempts; try again"

    def __init__(self, *, waited_for: str | None = None, **details: Any) -> None:
        self._waited_for = waited_for
        super().__init__(**details)

    def _template(self) -> str:
        return self._waited_for or self.template


class ClockSkewError(WalletError):
    """The process's idea of the time was too far from the database's; nothing was changed. ``details``: tolerance_s."""

    code = "clock_skew"
    retryable = True
    http_status = 503
    template = "the clock was more than {tolerance_s} s from the database's, which it has been set by now; try again"


class Advice(NamedTuple):
    """What to do after the database did not do its work; ``{server}`` in it is what the server has said."""

    text: str
    retryable: bool = True


SEND_AGAIN = Advice("do the very same again, a request with its own key")


class StorageUnavailableError(WalletError):
    """The database refused, failed or could not be reached. The message says what to do about it.

    ``retryable`` is false where doing the same again cannot help. ``details``: cause (SQLSTATE, result code or
    error name), and server (what it said) where that names a table.
    """

    code = "storage_unavailable"
    retryable = True
    http_status = 503
    template = "the database did not complete the work ({cause}); "

    def __init__(self, *, advice: Advice = SEND_AGAIN, **details: Any) -> None:
        self._advice = advice.text
        self.retryable = advice.retryable
        super().__init__(**details)

    def _template(self) -> str:
        return self.template + self._advice


class SchemaVersionError(WalletError):
    """The database's schema is not the one of this release. ``details``: found, expected."""

    code = "schema_version"
    template = "the database has schema version {found}, this release needs {expected}; "
    advice_of_missing = "call create_schema(), or points-platform schema upgrade"
    advice_of_newer = "a newer release has shut this one out, so use that one"

    def _template(self) -> str:
        found, expected = self.details["found"], self.details["expected"]
        newer = found is not None and str(found) > str(expected)
        return self.template + (self.advice_of_newer if newer else self.advice_of_missing)


class LedgerDamagedError(WalletError):
    """Something rests on a transaction that is not in the ledger. ``details``: what; position, where it is the log."""

    code = "ledger_damaged"
    template = "{what} has lost its transaction; verify the database"


def _kept(name: str, value: object) -> Any:
    """A detail as it is kept; what a caller handed in is ``value``."""
    if name == "value":
        return handed_in(value)
    told = plain(value)
    return tuple(told) if isinstance(told, list) else told


def _shown(name: str, value: object, kept: Any) -> str:
    """A detail as the message shows it; what a caller handed in as Python would write it."""
    if name == "value":
        return shown(value)
    text = ", ".join(map(str, kept)) if isinstance(kept, tuple) else str(kept)
    return text if text.isprintable() else ascii(text)[1:-1]
