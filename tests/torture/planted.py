"""Bugs of the kind that wallets and ledgers elsewhere have had, put into workers to see whether they are found.

Where the database has a wall of its own against a bug, that wall is taken down first: what stands behind both is
what is tested here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from sqlalchemy import Connection, text

from points_platform.core import IdempotencyConflictError, InsufficientBalanceError, StorageUnavailableError
from points_platform.core.failures import translated
from points_platform.core.rows import insert_rows, update_rows
from points_platform.core.statement import Statement
from points_platform.ledger import LedgerService
from points_platform.queue import AuthorizationVerifier
from points_platform.wallets import WalletService, executor, rules, single, store
from points_platform.wallets.models import EscrowStatus
from points_platform.wallets.views import event_of

Patch = Callable[[], None]


@dataclass(frozen=True)
class Bug:
    """What is wrong; ``walls`` are the statements that take down what the database has against it."""

    patch: Patch
    walls: tuple[str, ...] = ()


def plant(name: str) -> None:
    """Put the bug into this process."""
    BUGS[name].patch()


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _version_check_left_out() -> None:
    """A wallet is written as it was read, whatever has become of it meanwhile."""

    def write_wallets(connection: Connection, work: Any, table: Any, kind: str) -> None:
        owner, currency, *_ = table.c
        columns = (table.c.version, table.c.updated_at, *(table.c[bucket] for bucket in store.BUCKETS[table]))
        for (owner_id, code), wallet in work.wallets.items():
            if owner_id.startswith(kind) and wallet.version != wallet.seen:
                values = wallet.version, wallet.updated_at, *(wallet.balances[each] for each in store.BUCKETS[table])
                key = owner_id.removeprefix(kind), code
                if wallet.seen:
                    update_rows(connection, (owner, currency), columns, [(*key, *values)])
                else:
                    created = table.c.created_at
                    insert_rows(connection, (owner, currency, created, *columns), [(*key, wallet.created_at, *values)])

    _replace(store, "_write_wallets", write_wallets)


def _status_check_left_out() -> None:
    """An escrow item may be ended again."""
    _without_status_in_sql()
    held = rules._held

    def any_item(request: Any, state: Any) -> Any:
        if state.item is not None and state.item.status is not EscrowStatus.HELD:
            ended = {"status": EscrowStatus.HELD, "settled_amount": 0, "refunded_amount": 0, "processed_at": None}
            state = state._replace(item=type(state.item)(**vars(state.item) | ended | {"model_id": None}))
        return held(request, state)

    _replace(rules, "_held", any_item)


def _without_status_in_sql() -> None:
    for name, statement in list(single.STATEMENTS.items()):
        single.STATEMENTS[name] = Statement(name, statement.sql.replace(" AND status = 'held'", ""))


def _commit_before_the_entries() -> None:
    """Wallets in one transaction, the ledger in the next."""
    _statement_by_statement()
    record = LedgerService.record

    def commit_first(self: LedgerService, connection: Connection, transactions: Any) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.commit()
        record(self, connection, transactions)

    _replace(LedgerService, "record", commit_first)


def _key_claimed_first() -> None:
    """A key is noted before the work, in a transaction of its own, and a failure burns it."""
    one = executor.Executor.one

    def claim(self: executor.Executor, request: Any, *args: Any, session: Any) -> Any:
        operation, _ = executor.OPERATIONS[type(request)]
        key = {"key": f"{request.user_id} {operation} {request.idempotency_key}"}
        if session is None:
            with translated(), self._database.engine.begin() as connection:
                claimed = connection.execute(text("INSERT INTO claimed VALUES (:key) ON CONFLICT DO NOTHING"), key)
                names = {"owner": f"user:{request.user_id}", "operation": operation, "key": request.idempotency_key}
                if not claimed.rowcount and not connection.execute(text(RECORDED), names).first():
                    raise IdempotencyConflictError(key=request.idempotency_key, fields=())
        return one(self, request, *args, session=session)

    _replace(executor.Executor, "one", claim)


RECORDED = (
    "SELECT 1 FROM ledger_transactions WHERE owner_id = :owner AND operation = :operation AND idempotency_key = :key"
)


def _event_before_the_commit() -> None:
    """What may still be rolled back is announced already."""
    _statement_by_statement()
    attempt = executor.Executor._attempt

    def announce_first(self: executor.Executor, batch: Any, connection: Connection, locked: bool) -> Any:
        outcomes = attempt(self, batch, connection, locked)
        for task, outcome in zip(batch.tasks, outcomes, strict=True):
            if self._events and not isinstance(outcome, Exception) and not task.replayed(outcome):
                self._events.publish(event_of(outcome))
        return outcomes

    _replace(executor.Executor, "_attempt", announce_first)
    _replace(executor.Executor, "_publish", lambda *args: None)


def _failed_commit_believed() -> None:
    """A retry takes what the attempt before it has decided for done, without a look."""
    _statement_by_statement()
    _replace(executor.Task, "is_done", lambda task, work: True)


def _model_credited_twice_on_retry() -> None:
    """A retry gives the model its points once more."""
    attempt = executor.Executor._attempt

    def credit_again(self: executor.Executor, batch: Any, connection: Connection, locked: bool) -> Any:
        outcomes = attempt(self, batch, connection, locked)
        if locked and batch.outcomes is outcomes:
            for task in batch.tasks:
                if task.keys.operation == "settle":
                    again = "UPDATE model_wallets SET earned = earned + :amount WHERE model_id = :model"
                    values = {"amount": task.request.amount, "model": task.request.model_id}
                    connection.execute(text(again), values)
        return outcomes

    _replace(executor.Executor, "_attempt", credit_again)


def _token_not_verified() -> None:
    """Any token will do, if it can be read."""

    def read(self: Any, authorization: Any, kind: Any, action: Any) -> str:
        return str(jwt.decode(authorization.token, options={"verify_signature": False})["jti"])

    _replace(AuthorizationVerifier, "verify", read)


def _failure_told_as_refusal() -> None:
    """What the database did not do is told as if there were too few points."""
    hold = WalletService.hold_in_escrow

    def refuse(self: WalletService, request: Any, **options: Any) -> Any:
        try:
            return hold(self, request, **options)
        except StorageUnavailableError as error:
            raise InsufficientBalanceError(required=request.amount, available=0) from error

    _replace(WalletService, "hold_in_escrow", refuse)


def _balance_from_memory() -> None:
    """Balances are kept in the process for a second."""
    get = WalletService.get_user_balance
    kept: dict[str, tuple[float, Any]] = {}

    def get_kept(self: WalletService, user_id: str, currency: str | None = None) -> Any:
        at, balance = kept.get(user_id, (0.0, None))
        if balance is None or time.monotonic() - at > 1:
            balance = get(self, user_id, currency)
            kept[user_id] = time.monotonic(), balance
        return balance

    _replace(WalletService, "get_user_balance", get_kept)


def _statement_by_statement() -> None:
    """Only there is something between one write and the next."""
    init = executor.Executor.__init__

    def without_single(self: executor.Executor, ledger: LedgerService, *args: Any, **options: Any) -> None:
        init(self, ledger, *args, **options)
        self._database.single_statement = False

    _replace(executor.Executor, "__init__", without_single)


BUGS = {
    "version check left out": Bug(
        _version_check_left_out, ("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_version",)
    ),
    "status check left out": Bug(_status_check_left_out),
    "commit before the entries": Bug(_commit_before_the_entries),
    "key claimed first": Bug(_key_claimed_first, ("CREATE TABLE claimed (key text PRIMARY KEY)",)),
    "event before the commit": Bug(_event_before_the_commit),
    "failed commit believed": Bug(_failed_commit_believed),
    "model credited twice on retry": Bug(_model_credited_twice_on_retry),
    "token not verified": Bug(_token_not_verified),
    "failure told as a refusal": Bug(_failure_told_as_refusal),
    "balance from memory": Bug(_balance_from_memory),
}
