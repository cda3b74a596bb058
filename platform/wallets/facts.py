"""The views of the one record: request, response, event and audit line are functions of a transaction.

What a transaction tells is derived once, by field name, and every view picks what it needs. A repeated request is
answered with the same function, so its answer is equal by construction.
"""

from collections.abc import Hashable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, cast

from ..core.errors import InvalidRequestError
from ..core.refusals import IdempotencyConflictError
from ..core.values import canonical_json
from ..events.models import WalletEvent
from ..ledger.models import LedgerTransaction
from .operation import Operation, Request, Response
from .operations import BY_NAME

T = TypeVar("T")
UNTOLD = frozenset({"metadata", "metadata_json", "details_json", "timestamp"})


class Record:
    """A transaction with everything that it tells."""

    __slots__ = ("_facts", "operation", "transaction")

    def __init__(self, transaction: LedgerTransaction) -> None:
        """Raises ``InvalidRequestError`` for an operation that this release does not know."""
        operation = BY_NAME.get(transaction.operation)
        if operation is None:
            expected = f"one that this release knows: {', '.join(BY_NAME)}"
            raise InvalidRequestError(field="operation", value=transaction.operation, expected=expected)
        self.transaction = transaction
        self.operation: Operation[Any, Any] = operation
        self._facts: Mapping[str, Any] | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """Everything that the views may ask for, by name. A balance that was not touched is not there."""
        if self._facts is None:
            transaction = self.transaction
            facts = vars(transaction).copy()
            del facts["entries"]
            facts["event_id"], facts["timestamp"] = transaction.transaction_id, transaction.occurred_at
            kind, _, name = transaction.owner_id.partition(":")
            if kind == "user":
                facts["user_id"] = name
            if self.operation.details:
                facts.update(dict.fromkeys(self.operation.details) | transaction.details)
            facts.update(self.operation.told(transaction))
            self._facts = facts
        return self._facts

    def request(self) -> Request:
        """The request that the transaction carried out, with its currency resolved."""
        request: Request = _pick(self.operation.request, self.facts, metadata=self.transaction.metadata)
        return request

    def response(self, *, replayed: bool) -> Response:
        """The answer to the request."""
        response: Response = _pick(self.operation.response, self.facts, replayed=replayed)
        return response

    def event(self) -> WalletEvent:
        """The event that announces the transaction."""
        return _pick(self.operation.event, self.facts)

    def audit_fields(self) -> dict[str, Any]:
        """What the audit line says, as structured fields; no metadata, which may be personal."""
        return {name: value for name, value in self.facts.items() if name not in UNTOLD}

    def check_repeats(self, request: Request, *, currency: str) -> None:
        """Refuse with ``IdempotencyConflictError`` unless the request is the recorded one, sent again.

        Every field counts but ``request_id``; ``currency`` is the request's, ``""`` if the recorded one is meant.
        """
        recorded = {**self.facts, "metadata": self.transaction.metadata}
        given = vars(request) | {"currency": currency or recorded["currency"]}
        differing = tuple(
            name
            for name in _names(cast(Hashable, type(request)))
            if name != "request_id" and _comparable(given[name]) != _comparable(recorded[name])
        )
        if differing:
            told = {"key": request.idempotency_key, "fields": differing}
            if differing == ("currency",) and request.currency is None:
                told |= {"recorded": recorded["currency"], "meant": currency}
            raise IdempotencyConflictError(**told)


def request_of(transaction: LedgerTransaction) -> Request:
    """The request that the transaction carried out. Raises ``InvalidRequestError`` for an unknown operation."""
    return Record(transaction).request()


def response_of(transaction: LedgerTransaction, *, replayed: bool = False) -> Response:
    """The answer to the request. Raises ``InvalidRequestError`` for an unknown operation."""
    return Record(transaction).response(replayed=replayed)


def event_of(transaction: LedgerTransaction) -> WalletEvent:
    """The event that announces the transaction. Raises ``InvalidRequestError`` for an unknown operation."""
    return Record(transaction).event()


def _comparable(value: Any) -> Any:
    # In Python {"n": 1} equals {"n": True} and {"n": 1.0}; as JSON they are three values.
    return canonical_json(value) if isinstance(value, dict) else value


def _pick(cls: type[T], facts: Mapping[str, Any], **others: Any) -> T:
    names = _names(cast(Hashable, cls))
    return cls(**{name: facts[name] for name in names if name in facts}, **others)


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.init)
