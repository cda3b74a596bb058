"""What follows a commit: remembering it, the audit line, and the event. Nothing here can change an outcome any more.

Each step stands behind a wall of its own: one that fails is logged with the event's id, and neither the operation,
nor the other steps, nor the other operations of a batch or of a session are the worse for it.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from ..core.logs import extra, say
from ..core.sessions import HostSession, after_commit, session_of
from ..events.service import EventBus
from ..ledger.models import LedgerTransaction
from ..ledger.service import LedgerService
from .facts import Record

T = TypeVar("T")
log = logging.getLogger(__name__)
audit = logging.getLogger("points_platform.audit")


def apart(transaction: LedgerTransaction, failed: str, step: Callable[[T], object], given: T) -> None:
    """Take a step that follows a commit; where it raises, ``failed`` is logged with the event's id."""
    try:
        step(given)
    except Exception:
        told = {"event_id": transaction.transaction_id, "operation": transaction.operation}
        say(log, logging.WARNING, f"{failed} event %s", transaction.transaction_id, exc_info=True, **told)


class Announcer:
    """Says what has been committed, once."""

    def __init__(self, ledger: LedgerService, events: EventBus | None) -> None:
        self._ledger = ledger
        self._events = events

    def announce(self, record: Record) -> None:
        """Write the audit line, and publish the event. Raises nothing."""
        apart(record.transaction, "the audit line failed on", _audit, record)
        if self._events is not None:
            apart(record.transaction, "the event bus failed on", self._publish, record)

    def announce_after(self, session: HostSession, transaction_id: str) -> None:
        """The same once the caller's transaction has committed, if it is there by then."""
        if session is not None:
            after_commit(session_of(session), self, transaction_id, self._after_commit)

    def _publish(self, record: Record) -> None:
        if self._events is not None:
            self._events.publish(record.event())

    def _announce(self, transaction: LedgerTransaction) -> None:
        self.announce(Record(transaction))

    def _after_commit(self, transaction_ids: list[str]) -> None:
        """Announce what a fresh read finds, since savepoints may have been undone."""
        try:
            found = self._ledger.transactions(transaction_ids)
        except Exception:
            message = "no events for committed transactions"
            say(log, logging.WARNING, message, exc_info=True, event_ids=transaction_ids)
            return
        for transaction in found:
            apart(transaction, "nothing was announced of", self._announce, transaction)


def _audit(record: Record) -> None:
    if audit.isEnabledFor(logging.INFO):
        transaction = record.transaction
        fields = extra(record.audit_fields())
        audit.info("%s %s", transaction.operation, transaction.transaction_id, extra=fields)
