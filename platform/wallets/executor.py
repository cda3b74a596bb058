"""The one way through, for one operation and for many: decide → read → write → commit → announce → respond.

On PostgreSQL one operation is tried at once, without the read: written where every need of its decision is met.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection

from ..core.database import Execute
from ..core.errors import WalletError
from ..core.failures import Stale
from ..core.sessions import HostSession
from ..core.values import canonical_json, filled, new_id
from ..events.service import EventBus
from ..ledger.accounts import net
from ..ledger.models import LedgerTransaction, TransactionDraft
from ..ledger.service import LedgerService
from . import at_once, locked
from .announce import Announcer, apart
from .config import WalletConfig
from .facts import Record
from .operation import Decision, Occasion, Operation, Request, Response
from .remembered import Remembered
from .rows import Begun
from .unit_of_work import IdempotencyKey, UnitOfWork


class Permitted(NamedTuple):
    """A request that may be carried out, and the id of the authorization that permits it, where it needs one."""

    request: Request
    authorization_id: str | None = None


class Drafted(NamedTuple):
    """What a task comes to: made anew for each attempt, and let go when it is carried out, since batches are large."""

    decision: Decision
    draft: TransactionDraft


class Task(NamedTuple):
    """A request, and what all its attempts have in common. ``currency`` is ``""`` where a row tells it."""

    operation: Operation[Any, Any]
    request: Request
    authorization_id: str | None
    key: IdempotencyKey
    currency: str
    transaction_id: str
    made_id: str
    place: int | None = None

    def drafted(self) -> Drafted:
        """The decision and its transaction: the same each time, since deciding is pure."""
        decision = self.operation.decide(self.request, Occasion(made_id=self.made_id, currency=self.currency))
        return Drafted(decision, _draft(self, decision))

    def carry_out(self, drafted: Drafted, work: UnitOfWork) -> LedgerTransaction:
        """Carry the decision out in memory, or find what the key has already done.

        Refuses with ``IdempotencyConflictError``, then as the needs do.
        """
        recorded = work.recorded.get(self.key)
        if recorded is None:
            return work.carry_out(*drafted)
        Record(recorded).check_repeats(self.request, currency=self.currency)
        return recorded

    def replayed(self, transaction: LedgerTransaction) -> bool:
        """By id, so that an answer lost at the commit and found by the retry is still the first one."""
        return transaction.transaction_id != self.transaction_id

    def is_done(self, work: UnitOfWork) -> bool:
        """Whether an earlier attempt of this very call is what the key stands for."""
        recorded = work.recorded.get(self.key)
        return recorded is not None and not self.replayed(recorded)


@dataclass
class Batch:
    """Operations that one transaction carries out, and what the last attempt that came to its commit has decided."""

    tasks: Sequence[Task]
    atomic: bool
    outcomes: Sequence[LedgerTransaction | WalletError] = ()


class Executor:
    """Carries requests out on a ledger's database, once each, and has announced what was committed."""

    def __init__(self, ledger: LedgerService, events: EventBus | None, config: WalletConfig) -> None:
        self._ledger = ledger
        self._database = ledger.database
        self._config = config
        self._remembered = Remembered(config)
        self._announcer = Announcer(ledger, events)

    def one(self, operation: Operation[Any, Any], asked: Permitted, *, session: HostSession) -> Response:
        """Carry one request out. Raises its refusal, ``OptimisticLockError``, ``StorageUnavailableError``."""
        request = asked.request
        key, currency = (request.owner_id, operation.name, request.idempotency_key), self._currency(operation, request)
        known = self._remembered.get(key) if self._database.remembers_for(session) else None
        if known is not None:
            record = Record(known)
            record.check_repeats(request, currency=currency)
            return record.response(replayed=True)
        task = Task(operation, request, asked.authorization_id, key, currency, new_id(), new_id())
        [transaction] = self._database.run(
            partial(self._attempt, Batch([task], atomic=True)),
            retry=self._config.retry,
            session=session,
            at_once=partial(self._attempt_at_once, task),
        )
        # One refusal would have been raised.
        return self._committed(task, cast(LedgerTransaction, transaction), session, remember=True)

    def many(
        self,
        operation: Operation[Any, Any],
        asked: Sequence[Permitted | WalletError],
        *,
        session: HostSession,
        atomic: bool,
    ) -> list[Response | WalletError]:
        """Carry requests of one kind out in one transaction, each on what the ones before it have left.

        Each has its response or its refusal; what is refused already stays so. If ``atomic`` the first
        refusal is raised, with its place as ``index`` in its details. Raises ``OptimisticLockError`` and
        ``StorageUnavailableError``, for all. Neither asks what is remembered nor adds to it: one read serves all.
        """
        answers: list[Any] = list(asked)
        tasks = list(self._tasks(operation, asked))
        if tasks:
            outcomes: Sequence[LedgerTransaction | WalletError] = self._database.run(
                partial(self._attempt, Batch(tasks, atomic)), retry=self._config.retry, session=session
            )
            for task, outcome in zip(tasks, outcomes, strict=True):
                answers[task.place or 0] = (
                    outcome
                    if isinstance(outcome, WalletError)
                    else self._committed(task, outcome, session, remember=False)
                )
        return answers

    def _tasks(self, operation: Operation[Any, Any], asked: Sequence[Permitted | WalletError]) -> Iterator[Task]:
        for place, each in enumerate(asked):
            if not isinstance(each, WalletError):
                request, authorization_id = each
                key = request.owner_id, operation.name, request.idempotency_key
                currency = self._currency(operation, request)
                yield Task(operation, request, authorization_id, key, currency, new_id(), new_id(), place)

    def _currency(self, operation: Operation[Any, Any], request: Any) -> str:
        """What the request says, or what is meant where it says nothing."""
        default = "" if operation.currency_of_hold else self._config.default_currency
        return request.currency or default

    def _attempt_at_once(
        self, task: Task, execute: Execute, connect: Callable[[], AbstractContextManager[Connection]]
    ) -> list[LedgerTransaction]:
        """In one statement, where every need is met; where one is not, see which."""
        drafted = task.drafted()
        transaction = at_once.carry_out(execute, *drafted)
        if transaction is not None:
            return [transaction]
        with connect() as connection:
            work = locked.read(connection, [locked.Wanted.by(*drafted)], self._database.now())
        recorded = task.carry_out(drafted, work)
        if work.posted:
            raise Stale
        return [recorded]

    def _attempt(
        self, batch: Batch, connection: Connection, lock: bool, at: datetime
    ) -> Sequence[LedgerTransaction | WalletError]:
        """Read, decide, write, in one transaction; or find what the keys have already done."""
        drafted = deque(task.drafted() for task in batch.tasks)
        wanted = [locked.Wanted.by(*each) for each in drafted]
        if lock or len(wanted) > 1:
            # The read is a statement of its own, after the wait: a locking read that waited sees the new
            # row beside an old snapshot of everything else.
            locked.lock(connection, wanted)
        work = locked.read(connection, wanted, at)
        del wanted  # the garbage collector looks at all that is kept
        if batch.outcomes and any(task.is_done(work) for task in batch.tasks):
            return batch.outcomes  # the last attempt was committed, and only its answer was lost
        outcomes = [_outcome(task, drafted.popleft(), work, batch.atomic) for task in batch.tasks]
        # ── after this line the operations succeed, or are tried again whole ──
        if work.posted:
            locked.write(connection, work)
            self._ledger.record(connection, work.posted)
        batch.outcomes = outcomes
        return outcomes

    def _committed(
        self, task: Task, transaction: LedgerTransaction, session: HostSession, *, remember: bool
    ) -> Response:
        """What follows a commit, the caller's or our own; the answer."""
        record, replayed = Record(transaction), task.replayed(transaction)
        if session is None:
            if remember:
                apart(transaction, "the cache failed on", self._remembered.keep, transaction)
            if not replayed:
                self._announcer.announce(record)
        elif not replayed:
            self._announcer.announce_after(session, transaction.transaction_id)
        return record.response(replayed=replayed)


def _draft(task: Task, decision: Decision) -> TransactionDraft:
    """The header of the transaction, as far as the request tells it, and the moves."""
    request = task.request
    given = vars(request)
    details = {name: given[name] for name in task.operation.details if given[name] is not None}
    owner_id, operation, idempotency_key = task.key
    header: dict[str, Any] = {
        "transaction_id": task.transaction_id,
        "owner_id": owner_id,
        "operation": operation,
        "idempotency_key": idempotency_key,
        "request_id": request.request_id,
        "reason": request.reason,
        "currency": task.currency,
        "escrow_id": given.get("escrow_id"),
        "queue_item_id": given.get("queue_item_id"),
        "feature_type": given.get("feature_type"),
        "model_id": given.get("model_id"),
        "authorization_id": task.authorization_id,
        "metadata_json": None if request.metadata is None else canonical_json(request.metadata),
        "details_json": canonical_json(details) if details else None,
        "moves": decision.moves,
        "changes": net(decision.moves),
    }
    for row in decision.rows:
        if isinstance(row, Begun):
            header.update(row.gives)
    return filled(TransactionDraft, header)


def _outcome(task: Task, drafted: Drafted, work: UnitOfWork, atomic: bool) -> LedgerTransaction | WalletError:
    try:
        return task.carry_out(drafted, work)
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
