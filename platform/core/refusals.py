"""What a platform's rules refuse, in the order in which it wins: a request that is wrong in two ways gets the first.

It stands at the bottom of the house, since whoever calls anything above may have to tell these apart. A new refusal is
a class here and its name in ``__all__``.
"""

from typing import Any

from .errors import WalletError

__all__ = [
    "BalanceLimitError",
    "DepositConflictError",
    "EscrowAlreadyProcessedError",
    "EscrowMismatchError",
    "EscrowNotFoundError",
    "IdempotencyConflictError",
    "InsufficientBalanceError",
    "InvalidAuthorizationError",
]


# What helps where a new authorization for the action alone would not, or is only half of it.
AUTHORIZATION_ADVICE = {
    "unknown_key": "give the verifier the key of that kid, or let the queue sign with a key that the verifier has",
    "expired": (
        "let the queue sign a fresh one for the same action and send the same request with it, under the same "
        "idempotency key"
    ),
    "not_yet_valid": "compare the clocks of the queue and of the wallets; the leeway is what they may differ by",
    "issuer": "queue and wallets must be given the same issuer",
    "audience": "queue and wallets must be given the same audience",
    "missing": "there is none; take the one that the queue has signed for exactly this action",
    "malformed": (
        "it is no token as the queue writes them: three parts of letters, digits, - and _, with dots between, and "
        "claims of their own types"
    ),
    "envelope_mismatch": "take the envelope as the queue made it, or from the token by from_token()",
}


class InvalidAuthorizationError(WalletError):
    """The token does not permit exactly this action.

    ``details``: cause, claim where one is meant, and for ``unknown_key`` the kid that the token names, if it names one.

    Causes: ``missing``, ``malformed``, ``unknown_key``, ``algorithm``, ``signature``, ``expired``,
    ``not_yet_valid``, ``issuer``, ``audience``, ``claim_missing``, ``claim_mismatch`` and
    ``envelope_mismatch`` (the object around the token says something else than the token).
    """

    code = "invalid_authorization"
    http_status = 403
    template = "the authorization is refused ({cause})"

    def __init__(self, *, advice: str | None = None, **details: Any) -> None:
        self._advice = advice
        super().__init__(**details)

    def _template(self) -> str:
        about = "".join(f", {name} {{{name}}}" for name in ("claim", "kid") if name in self.details)
        usual = AUTHORIZATION_ADVICE.get(str(self.details["cause"]), "the queue must sign one for exactly this action")
        return f"the authorization is refused ({{cause}}{about}); {self._advice or usual}"


class IdempotencyConflictError(WalletError):
    """The key stands for another request already, which was carried out.

    ``details``: key, fields (a tuple of the names that differ). Where nothing but the currency differs, and the
    request names none, also recorded (the currency of then) and meant (the configured one, which naming none means
    here): most likely the configuration has changed, and with a new key the operation would happen twice.
    """

    code = "idempotency_conflict"
    http_status = 409
    template = (
        "idempotency key {key} has carried out a request with other values of {fields}; send that one unchanged for "
        "its answer, and take another key only for what is to happen beside it"
    )
    template_of_currency = (
        "idempotency key {key} has carried out this request in {recorded}; it names no currency, which means {meant} "
        "as configured here: name {recorded} for its answer, since with another key it would happen twice"
    )

    template_of_reference = (
        "idempotency key {key} has carried out a deposit with other values of {fields}; send that one unchanged for "
        "its answer; another payment takes a key of its own, made of its source and reference, and is credited once "
        "whatever the key"
    )

    def _template(self) -> str:
        if "meant" in self.details:
            return self.template_of_currency
        fields = self.details.get("fields")
        of_payment = isinstance(fields, tuple) and ("source" in fields or "reference" in fields)
        return self.template_of_reference if of_payment else self.template


class DepositConflictError(WalletError):
    """The source's reference has been credited otherwise. ``details``: source, reference, fields (that differ)."""

    code = "deposit_conflict"
    http_status = 409
    template = (
        "{reference} of {source} was deposited with other values of {fields}; a reference is credited once, also under "
        "another key: look up what it was credited as, and if that was wrong, put it right by an operation of its own"
    )


class EscrowNotFoundError(WalletError):
    """There is no such escrow item, or none of the user who was named. ``details``: escrow_id."""

    code = "escrow_not_found"
    http_status = 404
    template = "there is no escrow item {escrow_id}"

    def __init__(self, *, of_user: bool = True, **details: Any) -> None:
        self._whose = " of this user" if of_user else ""
        super().__init__(**details)

    def _template(self) -> str:
        return self.template + self._whose


class EscrowAlreadyProcessedError(WalletError):
    """The escrow item was settled or refunded before. ``details``: escrow_id, status."""

    code = "escrow_already_processed"
    http_status = 409
    template = "escrow item {escrow_id} is {status} already; it leaves 'held' only once"


class EscrowMismatchError(WalletError):
    """The request contradicts the hold. ``details``: field, expected (the hold's), given."""

    code = "escrow_mismatch"
    http_status = 409
    template = "the hold's {field} is {expected}, the request says {given}"


class InsufficientBalanceError(WalletError):
    """Too few points of a currency are available. ``details``: required, available, currency."""

    code = "insufficient_balance"
    http_status = 402
    template = "{required} {currency} are required, {available} are available"


class BalanceLimitError(WalletError):
    """A balance would exceed the limit.

    ``details``: limit, amount, currency, and balance where it is the caller's to know.
    """

    code = "balance_limit"
    http_status = 409
    template = "the balance cannot take {amount} more; the limit is {limit} {currency}"
