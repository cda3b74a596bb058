"""Bugs of the kind that wallets and ledgers elsewhere have had, put into workers to see whether they are found.

Where the database has a wall of its own against a bug, that wall is taken down first: what stands behind both is
what is tested here.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import SQLAlchemyError

from points_platform.core import (
    EscrowAlreadyProcessedError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvalidAuthorizationError,
    StorageUnavailableError,
    WalletError,
)
from points_platform.core.failures import translated
from points_platform.core.rows import insert_rows, update_rows
from points_platform.ledger import LedgerService
from points_platform.queue import AuthorizationVerifier
from points_platform.wallets import WalletService, composer, executor, locked
from points_platform.wallets.announce import Announcer
from points_platform.wallets.facts import Record
from points_platform.wallets.models import DEPOSIT_CLAIMS
from points_platform.wallets.needs import Guard, Held, State, Unclaimed

Patch = Callable[[], None]


REACHED = "reached "
_marks: list[Path] = []


@dataclass(frozen=True)
class Bug:
    """What is wrong; ``walls`` are the statements that take down what the database has against it.

    ``places`` are those at which the planted code says that it was reached, and did what is wrong: a bug whose code
    never ran has not been looked for.
    """

    patch: Patch
    walls: tuple[str, ...] = ()
    places: tuple[str, ...] = ("there",)


def plant(name: str, folder: Path) -> None:
    """Put the bug into this process; what is reached of it is noted in the folder."""
    _marks[:] = [folder]
    BUGS[name].patch()


def reached(place: str = "there") -> None:
    """Said by the planted code, where it does what is wrong."""
    for folder in _marks:
        (folder / f"{REACHED}{place}").touch()


def reached_in(folder: Path) -> set[str]:
    """What the workers of a round have reached."""
    return {path.name.removeprefix(REACHED) for path in folder.glob(f"{REACHED}*")}


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _version_check_left_out() -> None:
    """A wallet is written as it was read, whatever has become of it meanwhile."""

    def without_version(connection: Connection, key: Any, columns: Any, rows: Sequence[Any]) -> int:
        if key[-1].key != "version":
            return update_rows(connection, key, columns, rows)
        owner, currency, version = key
        for owner_id, code, seen, *_ in rows:
            wallet = select(version).where(owner == owner_id, currency == code).with_for_update()
            if connection.scalar(wallet) != seen:
                reached()
        return update_rows(connection, (owner, currency), columns, [(*row[:2], *row[3:]) for row in rows])

    _replace(locked, "update_rows", without_version)


def _status_check_left_out() -> None:
    """An escrow item may be ended again, by the statement and by whoever reads first."""
    refusal, guard = Held.refusal, Held.guard

    def any_item(self: Held, state: State) -> WalletError | None:
        found = refusal(self, state)
        if isinstance(found, EscrowAlreadyProcessedError):
            reached("where it is read")
            return None
        return found

    def any_status(self: Held) -> Guard:
        whole = guard(self)
        return whole._replace(condition=whole.condition.replace(" = 'held'", " <> ''"))

    _replace(Held, "refusal", any_item)
    _replace(Held, "guard", any_status)
    _look_behind_the_statement(
        "SELECT count(*) > 1 FROM ledger_transactions WHERE operation <> 'hold' AND escrow_id = :escrow_id"
    )


def _claim_not_checked() -> None:
    """What was deposited is deposited again by any other key."""

    def unchecked(connection: Connection, columns: Any, rows: Sequence[Any]) -> None:
        if columns[0].table is not DEPOSIT_CLAIMS:
            insert_rows(connection, columns, rows)
            return
        names = [column.name for column in columns]
        values = ", ".join(f":{name}" for name in names)
        for row in rows:
            claim = text(f"INSERT INTO deposit_claims ({', '.join(names)}) VALUES ({values}) ON CONFLICT DO NOTHING")
            if not connection.execute(claim, dict(zip(names, row, strict=True))).rowcount:
                reached("where it is read")

    def any_claim(row: composer.RowShape, *args: Any) -> str:
        anyhow = "ON CONFLICT (source, reference) DO UPDATE SET source = excluded.source"
        made = making(row, *args)
        return made.replace("ON CONFLICT DO NOTHING", anyhow) if row.table is DEPOSIT_CLAIMS else made

    making = composer._making
    _replace(locked, "insert_rows", unchecked)
    _replace(composer, "_making", any_claim)
    _replace(Unclaimed, "refusal", lambda self, state: None)
    _replace(Unclaimed, "answered_by", lambda self, state: None)
    _look_behind_the_statement(
        "SELECT count(*) > 1 FROM ledger_transactions WHERE operation = 'deposit' AND details ="
        " (SELECT details FROM ledger_transactions WHERE transaction_id = :transaction_id)"
    )


def _look_behind_the_statement(done_again: str) -> None:
    """Tell where one statement has done what had been done before."""
    attempt = executor.Executor._attempt_at_once

    def look(self: executor.Executor, task: executor.Task, *args: Any) -> Any:
        [transaction] = attempt(self, task, *args)
        ids = {"transaction_id": transaction.transaction_id, "escrow_id": transaction.escrow_id}
        with suppress(SQLAlchemyError), self._database.engine.connect() as connection:
            if not task.replayed(transaction) and connection.scalar(text(done_again), ids):
                reached("in one statement")
        return [transaction]

    _replace(executor.Executor, "_attempt_at_once", look)


def _commit_before_the_entries() -> None:
    """Wallets in one transaction, the ledger in the next."""
    _statement_by_statement()
    record = LedgerService.record

    def commit_first(self: LedgerService, connection: Connection, transactions: Any) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.commit()
        reached()
        record(self, connection, transactions)

    _replace(LedgerService, "record", commit_first)


def _key_claimed_first() -> None:
    """A key is noted before the work, in a transaction of its own, and a failure burns it."""
    one = executor.Executor.one

    def claim(self: executor.Executor, operation: Any, asked: executor.Permitted, *, session: Any) -> Any:
        request = asked.request
        names = {"owner": request.owner_id, "operation": operation.name, "key": request.idempotency_key}
        if session is None:
            with translated(), self._database.engine.begin() as connection:
                claimed = connection.execute(text(CLAIM), names)
                if not claimed.rowcount and not connection.execute(text(RECORDED), names).first():
                    reached()
                    raise IdempotencyConflictError(key=request.idempotency_key, fields=())
        return one(self, operation, asked, session=session)

    _replace(executor.Executor, "one", claim)


CLAIM = "INSERT INTO claimed VALUES (:owner, :operation, :key) ON CONFLICT DO NOTHING"
RECORDED = (
    "SELECT 1 FROM ledger_transactions WHERE owner_id = :owner AND operation = :operation AND idempotency_key = :key"
)


def _event_before_the_commit() -> None:
    """What may still be rolled back is announced already."""
    _statement_by_statement()
    attempt, announce = executor.Executor._attempt, Announcer.announce

    def announce_first(self: executor.Executor, batch: executor.Batch, *args: Any) -> Any:
        outcomes = attempt(self, batch, *args)
        for task, outcome in zip(batch.tasks, outcomes, strict=True):
            if not isinstance(outcome, WalletError) and not task.replayed(outcome):
                reached()
                announce(self._announcer, Record(outcome))
        return outcomes

    _replace(executor.Executor, "_attempt", announce_first)
    _replace(Announcer, "announce", lambda *args: None)


def _failed_commit_believed() -> None:
    """A retry takes what the attempt before it has decided for done, without a look."""
    _statement_by_statement()
    is_done = executor.Task.is_done

    def believed(task: executor.Task, work: Any) -> bool:
        if not is_done(task, work):
            reached()
        return True

    _replace(executor.Task, "is_done", believed)


def _credited_twice_on_retry(operation: str, again: str) -> None:
    """A retry gives the one who takes the points once more."""
    attempt = executor.Executor._attempt

    def credit_again(
        self: executor.Executor, batch: executor.Batch, connection: Connection, lock: bool, at: Any
    ) -> Any:
        outcomes = attempt(self, batch, connection, lock, at)
        for task in batch.tasks if lock and batch.outcomes is outcomes else ():
            if task.key[1] == operation and connection.execute(text(again), vars(task.request)).rowcount:
                reached()
        return outcomes

    _replace(executor.Executor, "_attempt", credit_again)


def _model_credited_twice_on_retry() -> None:
    """The model, of a settlement."""
    again = "UPDATE model_wallets SET earned = earned + :amount WHERE owner_id = 'model:' || :model_id"
    _credited_twice_on_retry("settle", again)


def _taker_credited_twice_on_retry() -> None:
    """The taker, of a transfer."""
    again = "UPDATE user_wallets SET available = available + :amount WHERE owner_id = 'user:' || :recipient_id"
    _credited_twice_on_retry("transfer", again)


def _token_not_verified() -> None:
    """Any token will do, if it can be read."""
    verify = AuthorizationVerifier.verify

    def read(self: AuthorizationVerifier, authorization: Any, kind: Any, action: Any) -> str:
        try:
            return verify(self, authorization, kind, action)
        except InvalidAuthorizationError:
            reached()
            return str(jwt.decode(authorization.token, options={"verify_signature": False})["jti"])

    _replace(AuthorizationVerifier, "verify", read)


def _failure_told_as_refusal() -> None:
    """What the database did not do is told as if there were too few points."""
    hold = WalletService.hold_in_escrow

    def refuse(self: WalletService, request: Any, **options: Any) -> Any:
        try:
            return hold(self, request, **options)
        except StorageUnavailableError as error:
            reached()
            raise InsufficientBalanceError(required=request.amount, available=0, currency="points") from error

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
        else:
            reached()
        return balance

    _replace(WalletService, "get_user_balance", get_kept)


def _statement_by_statement() -> None:
    """Only there is something between one write and the next."""
    init = executor.Executor.__init__

    def without_single(self: executor.Executor, ledger: LedgerService, *args: Any, **options: Any) -> None:
        init(self, ledger, *args, **options)
        self._database.single_statement = False

    _replace(executor.Executor, "__init__", without_single)


BOTH_WAYS = ("in one statement", "where it is read")
BUGS = {
    "version check left out": Bug(
        _version_check_left_out, ("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_version",)
    ),
    "status check left out": Bug(_status_check_left_out, places=BOTH_WAYS),
    "deposit claim not checked": Bug(_claim_not_checked, places=BOTH_WAYS),
    "commit before the entries": Bug(_commit_before_the_entries),
    "key claimed first": Bug(
        _key_claimed_first,
        ("CREATE TABLE claimed (owner text, operation text, key text, PRIMARY KEY (owner, operation, key))",),
    ),
    "event before the commit": Bug(_event_before_the_commit),
    "failed commit believed": Bug(_failed_commit_believed),
    "model credited twice on retry": Bug(_model_credited_twice_on_retry),
    "taker credited twice on retry": Bug(_taker_credited_twice_on_retry),
    "token not verified": Bug(_token_not_verified),
    "failure told as a refusal": Bug(_failure_told_as_refusal),
    "balance from memory": Bug(_balance_from_memory),
}
