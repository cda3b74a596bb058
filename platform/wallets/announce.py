"""What follows a commit: the audit line and the event. Nothing here can change an outcome any more."""

import logging

from ..core.database import HostSession, after_commit
from ..core.errors import WalletError
from ..events.service import EventBus
from ..ledger.service import LedgerService
from .facts import Record

log = logging.getLogger(__name__)
audit = logging.getLogger("points_platform.audit")


class Announcer:
    """Says what has been committed, once."""

    def __init__(self, ledger: LedgerService, events: EventBus | None) -> None:
        self._ledger = ledger
        self._events = events

    def announce(self, record: Record) -> None:
        """Write the audit line, and publish the event."""
        transaction = record.transaction
        if audit.isEnabledFor(logging.INFO):
            fields = record.audit_fields()
            audit.info("%s %s", transaction.operation, transaction.transaction_id, extra=fields)
        if self._events is not None:
            self._publish(self._events, record)

    def announce_after(self, session: HostSession, transaction_id: str) -> None:
        """The same once the caller's transaction has committed, if it is there by then."""
        if session is not None:
            after_commit(session, self, transaction_id, self._after_commit)

    def _publish(self, events: EventBus, record: Record) -> None:
        try:
            events.publish(record.event())
        except Exception:
            transaction = record.transaction
            log.warning(
                "the event bus failed on event %s",
                transaction.transaction_id,
                exc_info=True,
                extra={"event_id": transaction.transaction_id, "operation": transaction.operation},
            )

    def _after_commit(self, transaction_ids: list[str]) -> None:
        """Announce what a fresh read finds, since savepoints may have been undone."""
        try:
            found = self._ledger.transactions(transaction_ids)
        except WalletError:
            log.warning("no events for committed transactions", exc_info=True, extra={"event_ids": transaction_ids})
            return
        for transaction in found:
            self.announce(Record(transaction))
