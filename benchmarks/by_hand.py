"""By hand: what a competent user of SQLModel would write, as the plainest way to the same rows.

A session per operation, the unit of work, ``version_id_col`` on the wallets, and three attempts where
somebody else was faster. It looks for the idempotency key first, and for what the hold says. It verifies no
token and publishes nothing. The tables are the module's own, in a database of its own: same constraints,
same triggers.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import BigInteger, Column, DateTime, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import registry
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import Field, Session, SQLModel, select
from uuid_utils import uuid7

from .measure import RefusedError, Slice, work_through
from .workload import AMOUNT, EVERYBODY, Crowd, Task, Traffic

ATTEMPTS = 3
CURRENCY = "points"
THREADS = 32


class Base(SQLModel, registry=registry()):
    pass


def _time() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False)


_user_version = Column("version", BigInteger, nullable=False)
_model_version = Column("version", BigInteger, nullable=False)


class UserWallet(Base, table=True):
    __tablename__ = "user_wallets"
    __mapper_args__ = {"version_id_col": _user_version}
    owner_id: str = Field(primary_key=True)
    currency: str = Field(primary_key=True)
    available: int = Field(sa_type=BigInteger)
    escrow: int = Field(sa_type=BigInteger)
    paying: int = Field(sa_type=BigInteger, default=0)
    state: str = "active"
    version: int = Field(sa_column=_user_version)
    created_at: datetime = Field(sa_column=_time())
    updated_at: datetime = Field(sa_column=_time())


class ModelWallet(Base, table=True):
    __tablename__ = "model_wallets"
    __mapper_args__ = {"version_id_col": _model_version}
    owner_id: str = Field(primary_key=True)
    currency: str = Field(primary_key=True)
    earned: int = Field(sa_type=BigInteger)
    paying: int = Field(sa_type=BigInteger, default=0)
    state: str = "active"
    version: int = Field(sa_column=_model_version)
    created_at: datetime = Field(sa_column=_time())
    updated_at: datetime = Field(sa_column=_time())


class EscrowItem(Base, table=True):
    __tablename__ = "escrow_items"
    escrow_id: str = Field(primary_key=True)
    owner_id: str = Field(primary_key=True)
    currency: str
    amount: int = Field(sa_type=BigInteger)
    status: str
    queue_item_id: str
    feature_type: str
    reason: str
    model_id: str | None = None
    settled_amount: int = Field(sa_type=BigInteger, default=0)
    refunded_amount: int = Field(sa_type=BigInteger, default=0)
    created_at: datetime = Field(sa_column=_time())
    processed_at: datetime | None = Field(sa_type=DateTime(timezone=True), default=None)
    expires_at: datetime | None = Field(sa_type=DateTime(timezone=True), default=None)


class LedgerTransaction(Base, table=True):
    __tablename__ = "ledger_transactions"
    transaction_id: str = Field(primary_key=True)
    owner_id: str = Field(primary_key=True)
    operation: str
    idempotency_key: str
    request_id: str
    reason: str
    currency: str
    escrow_id: str | None = None
    queue_item_id: str | None = None
    feature_type: str | None = None
    model_id: str | None = None
    authorization_id: str | None = None
    details: str | None = None
    occurred_at: datetime = Field(sa_column=_time())


class LedgerEntry(Base, table=True):
    __tablename__ = "ledger_entries"
    transaction_id: str = Field(primary_key=True)
    account_id: str = Field(primary_key=True)
    bucket: str = Field(primary_key=True)
    owner_id: str
    currency: str
    amount: int = Field(sa_type=BigInteger)
    balance_before: int = Field(sa_type=BigInteger)
    balance_after: int = Field(sa_type=BigInteger)
    wallet_version: int = Field(sa_type=BigInteger)
    posted_at: datetime = Field(sa_column=_time())


class ByHand:
    """Hold and settle by hand. ``traffic`` opens the database's wallets and makes what is measured ready."""

    def __init__(self, traffic: Traffic, url: str) -> None:
        self.traffic = traffic
        self._engine = create_engine(url, pool_size=THREADS)
        self.operations: dict[str, Callable[[Task], None]] = {"hold": self.hold, "settle": self.settle}
        self._rates: dict[str, float] = {}

    def slice(self, operation: str, seconds: float, *, threads: int, crowd: Crowd = EVERYBODY) -> Slice:
        """Single operations in so many threads."""
        kind = f"{operation} {threads} {crowd}"
        tasks = self.traffic.ready(operation, int(self._rates.get(kind, 2000) * seconds * 1.3) + threads, crowd)
        measured = work_through(self.operations[operation], tasks, threads=threads, seconds=seconds)
        self._rates[kind] = measured.per_s + measured.failed / seconds
        return measured

    def hold(self, task: Task) -> None:
        self._attempt(_hold, task)

    def settle(self, task: Task) -> None:
        self._attempt(_settle, task)

    def _attempt(self, work: Callable[[Session, Task], None], task: Task) -> None:
        for _ in range(ATTEMPTS):
            try:
                with Session(self._engine) as session:
                    return work(session, task)
            except (StaleDataError, DBAPIError):
                continue
        raise RefusedError("three attempts met somebody faster")


def _hold(session: Session, task: Task) -> None:
    if _recorded(session, task, "hold"):
        return
    wallet = session.get(UserWallet, (f"user:{task.user_id}", CURRENCY))
    if wallet is None or wallet.available < AMOUNT:
        raise RefusedError("too few points")
    at = datetime.now(UTC)
    wallet.available -= AMOUNT
    wallet.escrow += AMOUNT
    wallet.updated_at = max(wallet.updated_at, at)
    item = EscrowItem(
        escrow_id=str(uuid7()),
        owner_id=wallet.owner_id,
        currency=CURRENCY,
        amount=AMOUNT,
        status="held",
        queue_item_id=f"q{task.key}",
        feature_type="song",
        reason="menu_purchase",
        created_at=at,
    )
    session.add(item)
    transaction = _transaction(task, item, "hold", "menu_purchase", at)
    session.add(transaction)
    owner, version, posted_at = transaction.owner_id, wallet.version + 1, wallet.updated_at
    session.add(_entry(transaction, owner, "available", -AMOUNT, wallet.available, version, posted_at))
    session.add(_entry(transaction, owner, "escrow", AMOUNT, wallet.escrow, version, posted_at))
    session.commit()


def _settle(session: Session, task: Task) -> None:
    if _recorded(session, task, "settle"):
        return
    item = session.get(EscrowItem, (task.escrow_id, f"user:{task.user_id}"))
    if item is None or item.status != "held" or item.amount != AMOUNT or item.queue_item_id != f"q{task.key}":
        raise RefusedError("no such hold")
    user = session.get(UserWallet, (f"user:{task.user_id}", CURRENCY))
    model = session.get(ModelWallet, (f"model:{task.model_id}", CURRENCY))
    if user is None or model is None:
        raise RefusedError("no such wallet")
    at = datetime.now(UTC)
    item.status, item.model_id, item.settled_amount, item.processed_at = "settled", task.model_id, AMOUNT, at
    user.escrow -= AMOUNT
    user.updated_at = max(user.updated_at, at)
    model.earned += AMOUNT
    model.updated_at = max(model.updated_at, at)
    transaction = _transaction(task, item, "settle", "performance_completed", at)
    transaction.model_id, transaction.authorization_id = task.model_id, str(uuid7())
    session.add(transaction)
    owner, payee = transaction.owner_id, f"model:{task.model_id}"
    session.add(_entry(transaction, owner, "escrow", -AMOUNT, user.escrow, user.version + 1, user.updated_at))
    session.add(_entry(transaction, payee, "earned", AMOUNT, model.earned, model.version + 1, model.updated_at))
    session.commit()


def _recorded(session: Session, task: Task, operation: str) -> bool:
    query = select(LedgerTransaction).where(
        LedgerTransaction.owner_id == f"user:{task.user_id}",
        LedgerTransaction.operation == operation,
        LedgerTransaction.idempotency_key == task.key,
    )
    return session.exec(query).first() is not None


def _transaction(task: Task, item: EscrowItem, operation: str, reason: str, at: datetime) -> LedgerTransaction:
    return LedgerTransaction(
        transaction_id=str(uuid7()),
        owner_id=f"user:{task.user_id}",
        operation=operation,
        idempotency_key=task.key,
        request_id=f"r{task.key}",
        reason=reason,
        currency=CURRENCY,
        escrow_id=item.escrow_id,
        queue_item_id=item.queue_item_id,
        feature_type=item.feature_type,
        occurred_at=at,
    )


def _entry(
    transaction: LedgerTransaction,
    account_id: str,
    bucket: str,
    amount: int,
    balance: int,
    version: int,
    posted_at: datetime,
) -> LedgerEntry:
    return LedgerEntry(
        transaction_id=transaction.transaction_id,
        account_id=account_id,
        bucket=bucket,
        owner_id=transaction.owner_id,
        currency=CURRENCY,
        amount=amount,
        balance_before=balance - amount,
        balance_after=balance,
        wallet_version=version,
        posted_at=posted_at,
    )
