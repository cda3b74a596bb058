"""The one way through, for one operation and for many: read → decide → write → commit → publish → respond.

On PostgreSQL one operation is tried at once, without the read: decided on a presumption, written where it holds.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, cast

from cachetools import TTLCache
from sqlalchemy import Connection

from ..core.database import Execute, HostSession, after_commit
from ..core.errors import WalletError
from ..core.failures import Stale
from ..core.values import new_id, now
from ..events.service import EventBus
from ..ledger.accounts import Operation, user_owner
from ..ledger.models import LedgerTransaction
from ..ledger.service import LedgerService
from . import rules, single, store
from .config import WalletConfig
from .requests import (
    EscrowHoldRequest,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    Request,
    UserCreditRequest,
)
from .responses import Response
from .unit_of_work import Keys, UnitOfWork
from .views import audit_fields_of, event_of, request_of, response_of

log = logging.getLogger(__name__)
audit = logging.getLogger("points_platform.audit")

OPERATIONS: dict[type[Request], tuple[Operation, rules.Rule[Any]]] = {
    UserCreditRequest: (Operation.CREDIT, rules.credit),
    EscrowHoldRequest: (Operation.HOLD, rules.hold),
    EscrowSettleRequest: (Operation.SETTLE, rules.settle),
    EscrowRefundRequest: (Operation.REFUND, rules.refund),
    EscrowPartialSettleRequest: (Operation.PARTIAL_SETTLE, rules.partial_settle),
}
Outcomes = Sequence[LedgerTransaction | WalletError]
Permitted = tuple[Request, str | None] | WalletError


class Task(NamedTuple):
    """A request that may be carried out, with all that it gets from outside, once for all attempts."""

    request: Request
    keys: Keys
    rule: rules.Rule[Any]
    occasion: rules.Occasion
    place: int | None = None

    def carry_out(self, work: UnitOfWork) -> LedgerTransaction:
        """Decide and post, or find what the key has already done.

        Refuses with ``IdempotencyConflictError``, then as the rule does.
        """
        recorded = work.recorded.get(self.keys.key)
        if recorded is None:
            return work.carry_out(self.rule(self.request, work.state(self.keys), self.occasion))
        return self.answered_by(recorded)

    def replayed(self, transaction: LedgerTransaction) -> bool:
        """By id, so that an answer lost at the commit and found by the retry is still the first one."""
        return transaction.transaction_id != self.occasion.transaction_id

    def is_done(self, work: UnitOfWork) -> bool:
        """Whether an earlier attempt of this very call is what the key stands for."""
        recorded = work.recorded.get(self.keys.key)
        return recorded is not None and not self.replayed(recorded)

    def answered_by(self, recorded: LedgerTransaction) -> LedgerTransaction:
        """The recorded transaction, if it is this request's. Refuses with ``IdempotencyConflictError``."""
        rules.check_same_request(self.request, request_of(recorded), currency=self.keys.currency)
        return recorded


@dataclass
class Batch:
    """Operations that one transaction carries out, and what the last attempt that came to its commit has decided."""

    tasks: Sequence[Task]
    atomic: bool
    outcomes: Outcomes = ()


class Executor:
    """Carries requests out on a ledger's database, once each, and announces what has been committed."""

    def __init__(self, ledger: LedgerService, events: EventBus | None, config: WalletConfig) -> None:
        self._ledger = ledger
        self._database = ledger.database
        self._events = events
        self._config = config
        self._cache: TTLCache[tuple[str, str, str], LedgerTransaction] = TTLCache(
            maxsize=config.idempotency_cache_size,
            ttl=config.idempotency_cache_ttl_s,
            timer=lambda: time.monotonic(),  # looked up at each call, so that frozen time freezes it too
        )
        self._cache_lock = threading.Lock()

    def one(self, request: Request, authorization_id: str | None = None, *, session: HostSession) -> Response:
        """Carry one request out. Raises its refusal, ``OptimisticLockError``, ``StorageUnavailableError``."""
        task = self._task(request, authorization_id, now())
        transaction: LedgerTransaction | WalletError | None = self._cached(task)
        if transaction is None:
            outcomes: Outcomes = self._database.run(
                partial(self._attempt, Batch([task], atomic=True)),
                retry=self._config.retry,
                session=session,
                at_once=partial(self._attempt_at_once, task),
            )
            transaction = outcomes[0]
            self._finish([task], outcomes, session, cache=True)
        return cast(Response, _answer(task, transaction))

    def many(self, asked: Sequence[Permitted], *, session: HostSession, atomic: bool) -> list[Response | WalletError]:
        """Carry requests of one kind out in one transaction, each on what the ones before it have left.

        Each has its response or its refusal; what is refused already stays so. If ``atomic`` the first
        refusal is raised, with its place as ``index`` in its details. Raises ``OptimisticLockError`` and
        ``StorageUnavailableError``, for all. Neither asks nor fills the cache: one read serves all.
        """
        answers: list[Any] = list(asked)
        at = now()
        tasks = [self._task(*each, at, place) for place, each in enumerate(asked) if not isinstance(each, WalletError)]
        if tasks:
            outcomes: Outcomes = self._database.run(
                partial(self._attempt, Batch(tasks, atomic)), retry=self._config.retry, session=session
            )
            for task, outcome in zip(tasks, outcomes, strict=True):
                answers[task.place or 0] = _answer(task, outcome)
            self._finish(tasks, outcomes, session)
        return answers

    def _task(self, request: Request, authorization_id: str | None, at: datetime, place: int | None = None) -> Task:
        operation, rule = OPERATIONS[type(request)]
        begins = operation in (Operation.CREDIT, Operation.HOLD)
        keys = Keys(
            owner_id=user_owner(request.user_id),
            operation=operation.value,
            idempotency_key=request.idempotency_key,
            escrow_id=getattr(request, "escrow_id", None),
            user_id=request.user_id,
            model_id=getattr(request, "model_id", None),
            currency=request.currency or (self._config.default_currency if begins else None),
        )
        occasion = rules.Occasion(transaction_id=new_id(), escrow_id=new_id(), at=at, authorization_id=authorization_id)
        return Task(request, keys, rule, occasion, place)

    def _attempt_at_once(
        self, task: Task, execute: Execute, connect: Callable[[], AbstractContextManager[Connection]]
    ) -> list[LedgerTransaction | WalletError]:
        """On the presumption that nothing stands against it, in one statement; where something does, see what."""
        presumed = rules.presume(task.request, task.keys.currency, task.occasion.at)
        decision = task.rule(task.request, presumed, task.occasion)
        transaction = single.carry_out(execute, decision, lock_timeout=self._database.lock_timeout)
        if transaction is not None:
            return [transaction]
        with connect() as connection:
            work = store.read(connection, store.ask(connection, [task.keys]))
        recorded = task.carry_out(work)
        if work.posted:
            raise Stale
        return [recorded]

    def _attempt(self, batch: Batch, connection: Connection, locked: bool) -> Outcomes:
        """Read, decide, write, in one transaction; or find what the keys have already done."""
        asked = store.ask(connection, [task.keys for task in batch.tasks])
        if locked or asked.many:
            # The read is a statement of its own, after the wait: a locking read that waited sees the new
            # row beside an old snapshot of everything else.
            store.lock(connection, asked)
        work = store.read(connection, asked)
        if batch.outcomes and any(task.is_done(work) for task in batch.tasks):
            return batch.outcomes  # the last attempt was committed, and only its answer was lost
        outcomes = [_outcome(task, work, batch.atomic) for task in batch.tasks]
        # ── after this line the operations succeed, or are tried again whole ──
        if work.posted:
            store.write(connection, work)
            self._ledger.record(connection, work.posted)
        batch.outcomes = outcomes
        return outcomes

    def _cached(self, task: Task) -> LedgerTransaction | None:
        with self._cache_lock:
            recorded = self._cache.get(task.keys.key)
        return None if recorded is None else task.answered_by(recorded)

    def _finish(
        self,
        tasks: Sequence[Task],
        outcomes: Sequence[LedgerTransaction | WalletError],
        session: HostSession,
        *,
        cache: bool = False,
    ) -> None:
        """What follows a commit, the caller's or our own: nothing here can change the outcome any more."""
        for task, outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, WalletError):
                continue
            if session is None:
                self._committed(outcome, cache=cache, announce=not task.replayed(outcome))
            elif not task.replayed(outcome):
                after_commit(session, self, outcome.transaction_id, self._joined_committed)

    def _committed(self, transaction: LedgerTransaction, *, cache: bool, announce: bool) -> None:
        if cache and self._cache.maxsize:
            with self._cache_lock:
                self._cache[transaction.owner_id, transaction.operation, transaction.idempotency_key] = transaction
        if announce:
            if audit.isEnabledFor(logging.INFO):
                fields = audit_fields_of(transaction)
                audit.info("%s %s", transaction.operation, transaction.transaction_id, extra=fields)
            if self._events is not None:
                self._publish(self._events, transaction)

    def _publish(self, events: EventBus, transaction: LedgerTransaction) -> None:
        try:
            events.publish(event_of(transaction))
        except Exception:
            log.warning(
                "the event bus failed on event %s",
                transaction.transaction_id,
                exc_info=True,
                extra={"event_id": transaction.transaction_id, "operation": transaction.operation},
            )

    def _joined_committed(self, transaction_ids: list[str]) -> None:
        """After the caller's commit: announce what a fresh read finds, since savepoints may have been undone."""
        try:
            found = self._ledger.transactions(transaction_ids)
        except WalletError:
            log.warning("no events for committed transactions", exc_info=True, extra={"event_ids": transaction_ids})
            return
        for transaction in found:
            self._committed(transaction, cache=False, announce=True)


def _outcome(task: Task, work: UnitOfWork, atomic: bool) -> LedgerTransaction | WalletError:
    try:
        return task.carry_out(work)
    except WalletError as refusal:
        if task.place is None:
            raise
        return refused(refusal, task.place, atomic=atomic)


def refused(refusal: WalletError, place: int, *, atomic: bool) -> WalletError:
    """The refusal as a member of a batch's answer; if the batch is atomic it is raised, with its place."""
    if atomic:
        refusal.details["index"] = place
        raise refusal
    refusal.__cause__ = refusal.__context__ = None  # their frames would keep all that the batch has
    return refusal.with_traceback(None)


def _answer(task: Task, outcome: LedgerTransaction | WalletError) -> Response | WalletError:
    return outcome if isinstance(outcome, WalletError) else response_of(outcome, replayed=task.replayed(outcome))
