"""What one transaction of the database has read, and what it is going to write.

Operations are carried out on it one after the other, in memory: each decides on what the ones before it
have left. (Unit of Work: Fowler, Patterns of Enterprise Application Architecture, 2002.)
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Table

from ..core.errors import LedgerDamagedError
from ..ledger.accounts import WALLETS, Bucket, kind_of
from ..ledger.models import LedgerTransaction, TransactionDraft, WalletState
from ..ledger.posting import post
from .operation import Decision
from .rows import Changed, Key, Row, key_names

IdempotencyKey = tuple[str, str, str]


@dataclass(slots=True)
class Wallet:
    """A wallet as the operations so far have left it. ``seen`` is the version that was read, 0 if there was none."""

    balances: dict[Bucket, int]
    seen: int = 0
    updated_at: datetime | None = None
    created_at: datetime | None = None
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.seen

    def change(self, gains: Mapping[Bucket, int], at: datetime) -> WalletState:
        """Add the gains, and count it; what is returned is good until the next change."""
        for bucket, gain in gains.items():
            self.balances[bucket] += gain
        self.version += 1
        # Never earlier than the change before, whatever the clocks do: history by time relies on it.
        self.updated_at = at if self.updated_at is None else max(at, self.updated_at)
        self.created_at = self.created_at or self.updated_at
        return WalletState(self.balances, self.version, self.updated_at)


@dataclass(slots=True)
class Written:
    """A row as it was read (``None`` if it was not there) and as it is going to be."""

    seen: Mapping[str, Any] | None
    now: Mapping[str, Any]


@dataclass
class UnitOfWork:
    """Wallets by owner and currency, rows by table and key, and what idempotency keys and ids stand for.

    ``at`` is the time by which everything in it is dated.
    """

    at: datetime
    wallets: dict[tuple[str, str], Wallet] = field(default_factory=dict)
    rows: dict[Table, dict[Key, Written]] = field(default_factory=lambda: defaultdict(dict))
    recorded: dict[IdempotencyKey, LedgerTransaction] = field(default_factory=dict)
    by_id: dict[str, LedgerTransaction] = field(default_factory=dict)
    posted: list[LedgerTransaction] = field(default_factory=list)

    def carry_out(self, decision: Decision, draft: TransactionDraft) -> LedgerTransaction:
        """Carry out the decision, or find the transaction that has done already what it asks for.

        Refuses as the first need that is not met does.
        """
        state = Seen(self, _currency(self, decision, draft))
        for need in decision.needs:
            if (refusal := need.refusal(state)) is not None:
                raise refusal
            if (transaction_id := need.answered_by(state)) is not None:
                return self._answer(transaction_id)
        # ── after this line the operation succeeds, or is tried again whole ──
        told = {"currency": state.currency}
        for row in decision.rows:
            self._write(row, draft, told)
        changed = {
            owner: self._wallet(owner, state.currency).change(gains, self.at)
            for owner, gains in draft.changes.wallets.items()
        }
        transaction = post(draft, changed, at=self.at, **told)
        self.posted.append(transaction)
        self.recorded[draft.owner_id, draft.operation, draft.idempotency_key] = transaction
        self.by_id[draft.transaction_id] = transaction
        return transaction

    def _answer(self, transaction_id: str) -> LedgerTransaction:
        answer = self.by_id.get(transaction_id)
        if answer is None:
            raise LedgerDamagedError(what=f"a row that names {transaction_id}")
        return answer

    def _write(self, row: Row, draft: TransactionDraft, told: dict[str, Any]) -> None:
        """Begin or change the row; what one that is there tells of the transaction is added to ``told``."""
        if isinstance(row, Changed):
            written = self.rows[row.table][row.key]
            for name in row.tells:
                told[name] = written.now[name]
        else:
            key = dict(zip(key_names(row.table), row.key, strict=True))
            written = self.rows[row.table][row.key] = Written(None, key)
        copied = {name: told[name] if name in told else getattr(draft, name) for name in row.copies}
        written.now = {**written.now, **row.values, **copied, row.at: self.at}

    def _wallet(self, owner: str, currency: str) -> Wallet:
        wallet = self.wallets.get((owner, currency))
        if wallet is None:
            wallet = self.wallets[owner, currency] = Wallet(dict.fromkeys(WALLETS[kind_of(owner)], 0))
        return wallet


@dataclass(frozen=True, slots=True)
class Seen:
    """What an operation finds in a unit of work: the state that its needs are asked on."""

    work: UnitOfWork
    currency: str

    def balances(self, owner_id: str) -> Mapping[Bucket, int]:
        """The balances of an owner's wallet, in the currency of the operation."""
        wallet = self.work.wallets.get((owner_id, self.currency))
        return {} if wallet is None else wallet.balances

    def row(self, table: Table, key: Key) -> Mapping[str, Any] | None:
        """The row of that key, ``None`` if there is none."""
        written = self.work.rows[table].get(key)
        return None if written is None else written.now


def _currency(work: UnitOfWork, decision: Decision, draft: TransactionDraft) -> str:
    """The draft's currency, or what a row tells that the decision changes."""
    if draft.currency:
        return draft.currency
    there = (work.rows[row.table].get(row.key) for row in decision.rows if isinstance(row, Changed))
    return next((str(written.now["currency"]) for written in there if written is not None), "")
